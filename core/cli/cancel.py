"""``perdure cancel``: end a workflow for good."""

from __future__ import annotations

from perdure.cli import arguments
from perdure.cli.terminal import Format, Terminal


def cancel(
    workflow_id: arguments.WorkflowId,
    storage: arguments.Storage = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Cancel a workflow, wherever it runs; a finished one stays as it is. Prints its status afterwards."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli.sides import side

        status = side(storage, address).cancel(workflow_id)
        terminal.data({"workflow_id": workflow_id, "status": str(status)}, lambda: terminal.line(str(status)))
