"""``perdure output``: the value of a workflow, or of one of its tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli import arguments, show
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

if TYPE_CHECKING:
    from perdure.cli.sides import Side
    from perdure.cli.store_side import StoreSide
    from perdure.graph import Payload
    from perdure.reading import Answer


def output(
    workflow_id: arguments.WorkflowId,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Of this task.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for it, or end with code 4.")] = True,
    storage: arguments.Storage = None,
    trust: arguments.Trust = None,
    keys: arguments.Keys = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Print the stored value; waits while the workflow runs.

    Values that were pickled run code when they are loaded; without a cluster, --trust says what may be loaded.
    """
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli.cluster_side import ClusterSide
        from perdure.cli.sides import side
        from perdure.cli.store_side import StoreSide
        from perdure.status import WorkflowStatus

        found = side(storage, address)
        if not wait:
            status = found.status(workflow_id)
            if status not in WorkflowStatus.terminal() and (task is None or not _done(found, workflow_id, task)):
                what = f"workflow {workflow_id!r}" if task is None else f"task {task!r} of workflow {workflow_id!r}"
                terminal.stop(f"{what} is not finished: the workflow is {status}", Exit.RUNNING)
        kind: str | None = None
        try:
            if isinstance(found, ClusterSide):
                from perdure import workflow
                from perdure.cli import progress

                ref = workflow.get_output_async(workflow_id, task_id=task)
                result = progress.wait(terminal, found.connection, workflow_id, ref)
            else:
                assert isinstance(found, StoreSide)
                answer = found.answer(workflow_id, task)
                kind = answer.failure.type if answer.failure is not None else None
                result = _stored(found, answer)
        except Exception as error:
            show.failure(terminal, workflow_id, task, error, kind)
        else:
            show.value(terminal, workflow_id, task, result)


def _done(found: Side, workflow_id: str, task: str) -> bool:
    return any(t["task_id"] == task and t["status"] == "DONE" for t in found.describe(workflow_id)["tasks"])


def _stored(found: StoreSide, answer: Answer) -> Any:
    """Read without a cluster. ObjectRefs inside are shown as what they refer to."""
    from perdure.onray.loading import Loader
    from perdure.onray.outputs import raise_for
    from perdure.onray.process import PROCESS
    from perdure.value_settings import chosen

    class Here(Loader):
        def ref(self, payload: Payload) -> Any:
            return self.value(payload)

    PROCESS.configure(chosen(found.url).encode())  # the first value that is loaded: now the trust level matters
    payload = raise_for(answer)
    return Here(found.url, {}, f"the output of workflow {answer.workflow_id!r}").value(payload)
