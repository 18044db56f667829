"""``perdure resume``: go on with workflows that nobody drives."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from perdure.cli import arguments
from perdure.cli.exits import Exit, code_of
from perdure.cli.terminal import Format, Terminal


def resume(
    workflow_id: Annotated[str | None, typer.Argument(metavar="ID", help="Workflow id.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every RESUMABLE workflow of the store.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="With --all: FAILED ones too.")] = False,
    code: Annotated[str, typer.Option("--code", metavar="stored|current", help="Code of what is to run.")] = "stored",
    modules: Annotated[
        list[str] | None, typer.Option("--module", "-m", metavar="MODULE", help="With --code current: where it is.")
    ] = None,
    storage: arguments.Storage = None,
    trust: arguments.Trust = None,
    keys: arguments.Keys = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Resume a workflow, wait for it and print its value; with --all, print how each one ended."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        if everything == (workflow_id is not None):
            raise ValueError("give either a workflow id, or --all")
        if failed and not everything:
            raise ValueError("--failed goes with --all; a failed workflow named by its id is resumed without it")
        if code != "stored" and everything:
            raise ValueError("--code goes with a workflow id")
        from perdure import workflow
        from perdure.cli import target as targets
        from perdure.cli.cluster_side import find, join
        from perdure.cli.run import finish
        from perdure.errors import WorkflowNotResumableError

        targets.import_modules(modules)
        if find(address) is None:
            _look(terminal, storage, workflow_id, failed)
        joined = join(address, storage, show_output=not quiet)
        if workflow_id is not None:
            try:
                ref = workflow.resume_async(workflow_id, code=code)
            except WorkflowNotResumableError as error:
                terminal.stop(str(error), Exit.CANCELLED)
            finish(terminal, joined, workflow_id, ref)
            return
        _finish_all(terminal, joined, workflow.resume_all(include_failed=failed))


def _look(terminal: Terminal, storage: str | None, workflow_id: str | None, failed: bool) -> None:
    """Before a cluster is started for it: is there anything to resume?"""
    from perdure.cli.sides import side
    from perdure.status import WorkflowStatus

    found = side(storage, None)
    if workflow_id is not None:
        found.status(workflow_id)
        return
    wanted = {WorkflowStatus.RESUMABLE, WorkflowStatus.FAILED} if failed else {WorkflowStatus.RESUMABLE}
    if not any(row.status in wanted for _, row in found.list_all()):
        _finish_all(terminal, None, [])
        raise typer.Exit


def _finish_all(terminal: Terminal, joined: Any, started: list[tuple[str, Any]]) -> None:
    """Wait for each; the exit code is that of the first one that did not succeed."""
    from perdure.cli import progress

    rows, worst = [], Exit.OK
    for workflow_id, ref in started:
        status, text = "SUCCESSFUL", None
        try:
            progress.wait(terminal, joined.connection, workflow_id, ref)
        except Exception as error:
            code = code_of(error)
            if code is None:
                raise
            worst = worst or code
            status = {Exit.FAILED: "FAILED", Exit.CANCELLED: "CANCELED"}.get(code, "RESUMABLE")
            text = str(error).splitlines()[0]
        rows.append({"workflow_id": workflow_id, "status": status, "error": text})
    terminal.data(rows, lambda: terminal.table(("WORKFLOW", "STATUS", "ERROR"), [list(row.values()) for row in rows]))
    if worst:
        raise typer.Exit(int(worst))
