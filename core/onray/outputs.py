"""What comes back to a driver: values and failures, unpacked only where they are looked at.

Owns the objects that a coordinator returns. They hold bytes and ObjectRefs while they travel; unpickling one in the
driver (which is what `ray.get` does) gives the user's value or exception itself. So no worker stands between, and
the coordinator never loads user code.
"""

from __future__ import annotations

import traceback
from typing import Any

import msgspec
import ray

from perdure.code_names import exception_from
from perdure.errors import (
    WorkflowCancellationError,
    WorkflowExecutionError,
    WorkflowNotResumableError,
)
from perdure.graph import Failure, Payload
from perdure.reading import Answer
from perdure.status import WorkflowStatus

_SHOWN = 2000


class Output:
    """A stored value on its way: pickling it makes the value at the other end."""

    def __init__(self, payload: Payload, store: str, settings: str, where: str, live: dict[str, ray.ObjectRef]) -> None:
        self.payload = payload
        self.store = store
        self.settings = settings
        self.where = where
        self.live = live

    def __reduce__(self) -> tuple[Any, ...]:
        data = msgspec.msgpack.encode(self.payload)
        return load_output, (data, self.store, self.settings, self.where, list(self.live.items()))


def load_output(data: bytes, store: str, settings: str, where: str, live: list[tuple[str, ray.ObjectRef]]) -> Any:
    """What `ray.get` gives for an `Output`. An error is returned, as Ray's own of a failed task: raised here, it would
    come out as a RaySystemError that hides its class."""
    from perdure.onray.loading import Loader
    from perdure.onray.process import PROCESS

    PROCESS.configure(settings)
    try:
        return Loader(store, dict(live), where).value(msgspec.msgpack.decode(data, type=Payload))
    except Exception as error:
        return ray.exceptions.RayTaskError(where, traceback.format_exc(), error)


def load_cause(data: bytes) -> BaseException | None:
    """The user's exception; None where it can't be loaded here."""
    from perdure.onray.process import PROCESS

    try:
        error = exception_from(PROCESS.values.load(data, where="the exception"))
    except Exception:
        return None
    return error if isinstance(error, BaseException) else None


def execution_error(workflow_id: str, task: str, failure: Failure) -> WorkflowExecutionError:
    """The error for a task that failed for good, with the user's exception still packed."""
    shown = failure.text if len(failure.text) <= _SHOWN else failure.text[:_SHOWN] + " …"
    payload = failure.exception
    text = f"task {task!r} of workflow {workflow_id!r} failed: {failure.type}: {shown}"
    if failure.traceback:
        text += f"\n\n{failure.traceback.rstrip()}"
    return WorkflowExecutionError(
        text, workflow_id=workflow_id, task_id=task, cause_payload=payload.data if payload else None
    )


def raise_for(answer: Answer) -> Payload:
    """The payload of an answer, or its error."""
    workflow_id = answer.workflow_id
    if answer.payload is not None:
        return answer.payload
    if answer.status is WorkflowStatus.CANCELED:
        raise WorkflowCancellationError(f"workflow {workflow_id!r} was cancelled", workflow_id=workflow_id)
    if answer.failure is not None:
        raise execution_error(workflow_id, answer.failed_task or "?", answer.failure)
    raise WorkflowNotResumableError(
        f"workflow {workflow_id!r} has no output: it is {answer.status}. Resume it with "
        f"workflow.resume({workflow_id!r}).",
        workflow_id=workflow_id,
    )
