"""``perdure explain``: what a resume would do, before it is done."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from perdure.cli import arguments
from perdure.cli.terminal import Format, Terminal


def explain(
    workflow_id: arguments.WorkflowId,
    modules: Annotated[
        list[str] | None,
        typer.Option("--module", "-m", metavar="MODULE", help="Module (or file) with the code of today; repeatable."),
    ] = None,
    storage: arguments.Storage = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Show which tasks a resume would reuse and which it would run, and why; changes nothing.

    The code of functions is compared where their modules can be imported from here.
    """
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli import target as targets
        from perdure.cli.sides import side

        targets.import_modules(modules)
        found = side(storage, address).explain(workflow_id)
        terminal.data(found, lambda: _text(terminal, found))


def _text(terminal: Terminal, found: dict[str, Any]) -> None:
    terminal.line(f"workflow {found['workflow_id']} is {found['status']}: {found['reason'] or 'a resume goes on'}")
    terminal.line(f"{found['tasks_reused']} tasks are reused, {found['tasks_to_run']} run")
    for problem in found["problems"]:
        terminal.line(f"problem: {problem['task_id']}: {problem['what']}")
    for fact in found["environment"]:
        if fact["differs"]:
            terminal.line(
                f"differs: {fact['what']} is {fact['here'] or 'none'} here, it was {fact['stored'] or 'none'}"
            )
    if found["code"]:
        terminal.line("")
        terminal.table(("CODE THAT WOULD RUN", "NOTE"), [(c["function"], c["note"]) for c in found["code"]])
    terminal.line("")
    terminal.table(("TASK", "ACTION", "BECAUSE"), [(t["task_id"], t["action"], t["because"]) for t in found["tasks"]])
