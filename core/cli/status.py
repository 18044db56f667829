"""``perdure status``: one word."""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import arguments
from perdure.cli.exits import code_of_status
from perdure.cli.terminal import Format, Terminal


def status(
    workflow_id: arguments.WorkflowId,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End with 0 SUCCESSFUL, 1 FAILED, 4 not finished, 6 CANCELED.")
    ] = False,
    storage: arguments.Storage = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Print a workflow's status."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli.sides import side

        found = side(storage, address).status(workflow_id)
        terminal.data({"workflow_id": workflow_id, "status": str(found)}, lambda: terminal.line(str(found)))
        if exit_code:
            raise typer.Exit(int(code_of_status(found)))
