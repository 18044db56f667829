"""``perdure list``: the workflows of a store."""

from __future__ import annotations

from typing import Annotated

import typer

from perdure.cli import arguments
from perdure.cli.exits import Exit
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
        found = [(i, row) for i, row in listed if not status or row.status in status]
        found.sort(key=lambda item: (item[1].start, item[0]))
        terminal.data(
            [
                {
                    "workflow_id": i,
                    "status": str(row.status),
                    "start_time": row.start or None,
                    "end_time": row.end or None,
                    "problem": row.problem or None,
                }
                for i, row in found
            ],
            lambda: terminal.table(
                ("WORKFLOW", "STATUS", "STARTED", "TOOK"),
                [(i, row.status, when(row.start), span(row.start, row.end)) for i, row in found],
            ),
        )
        unread = [(i, row.problem) for i, row in found if row.problem]
        for workflow_id, problem in unread:
            terminal.note(f"{workflow_id}: {problem}")
        if unread:
            terminal.stop(
                f"{len(unread)} workflows can't be read. See `perdure verify` and `perdure repair`", Exit.CORRUPTED
            )
