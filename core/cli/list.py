"""``perdure list``: the workflows of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import arguments
from perdure.cli.terminal import Format, Terminal, span, when
from perdure.status import WorkflowStatus


def list_workflows(
    status: Annotated[
        list[WorkflowStatus] | None,
        typer.Option("--status", case_sensitive=False, help="Only these; may be repeated.", show_default=False),
    ] = None,
    storage: arguments.Storage = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """List all workflows of the store, from whichever cluster."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli.sides import side

        listed = side(storage, address).list_all()
        found = sorted((row for row in listed if not status or row[1] in status), key=lambda row: (row[2], row[0]))
        terminal.data(
            [
                {"workflow_id": i, "status": str(s), "start_time": start or None, "end_time": end or None}
                for i, s, start, end in found
            ],
            lambda: terminal.table(
                ("WORKFLOW", "STATUS", "STARTED", "TOOK"),
                [(i, s, when(start), span(start, end)) for i, s, start, end in found],
            ),
        )
