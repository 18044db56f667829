"""``perdure delete``: forget workflows."""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import arguments
from perdure.cli.terminal import Format, Terminal


def delete(
    workflow_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Workflow ids.", show_default=False)],
    storage: arguments.Storage = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Delete workflows that don't run; a running one is refused (cancel it first)."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli.sides import side

        found = side(storage, address)
        for workflow_id in workflow_ids:
            found.delete(workflow_id)
            terminal.note(f"deleted {workflow_id}")
        terminal.data([{"workflow_id": workflow_id, "deleted": True} for workflow_id in workflow_ids], lambda: None)
