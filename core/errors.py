"""Every error that Perdure raises on purpose.

A class exists only where a caller would act differently. Texts name the value, what was expected and the
next step; texts are not API, classes and attributes are. All errors survive pickling (they cross process
borders), with their attributes and ``__cause__``.

    PerdureError
    ├── WorkflowError
    │   ├── WorkflowExecutionError        a task of the workflow failed for good
    │   ├── WorkflowCancellationError     the workflow was cancelled
    │   ├── WorkflowNotResumableError     it can't be resumed as it is
    │   ├── WorkflowNotFoundError         no such workflow or task (also a ValueError)
    │   ├── WorkflowStillActiveError      somebody drives it now (also a RuntimeError)
    │   ├── WorkflowExistsError           this id belongs to another DAG (also a ValueError)
    │   └── QueueFull                     no room to wait (also a queue.Full)
    ├── StoreError                        permanent, unless one of:
    │   ├── NotFound, AlreadyExists, PermissionDenied
    │   └── StoreUnavailable              transient; the outcome of a write is unknown
    ├── CorruptedError                    stored bytes are damaged or missing
    │   └── SignatureError                not signed, or not validly for its place
    ├── FormatError                       stored by a newer Perdure, or not by Perdure
    ├── EncodeError, DecodeError          a value can't be stored, or stored bytes can't be a value
    ├── PluginError                       a plugin is missing, broken or in conflict
    ├── ListenerError                     an event listener failed for good
    └── ClusterError                      Ray or the coordinator can't be reached or doesn't fit
"""

from __future__ import annotations

import queue
from typing import Any


class PerdureError(Exception):
    """Root of all errors that Perdure raises on purpose."""

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with ``args``, which loses keyword-only attributes and the cause.
        state = dict(self.__dict__)
        if self.__cause__ is not None and state.get("cause_payload") is None:
            state["__cause__"] = self.__cause__
        return _rebuild, (type(self), self.args, state)


def _rebuild(cls: type[PerdureError], args: tuple[Any, ...], state: dict[str, Any]) -> PerdureError:
    cause = state.pop("__cause__", None)
    error = rebuild_exception(cls, args, state)
    assert isinstance(error, PerdureError)
    if cause is None and error.__dict__.get("cause_payload") is not None:
        # The user's exception passes the coordinator as bytes; it becomes an object where it is looked at.
        from perdure.onray.outputs import load_cause

        cause = load_cause(error.__dict__["cause_payload"])
    if cause is not None:
        error.__cause__ = cause
    return error


def rebuild_exception(cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    """A task's exception without a call of its ``__init__``. Stored pickles name this function."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def with_cause(error: BaseException, cause: BaseException) -> BaseException:
    """The exception as if raised ``from`` the other. Stored pickles name this function."""
    error.__cause__ = cause
    return error


class WorkflowError(PerdureError):
    """Root of the errors about one workflow."""

    def __init__(self, message: str, *, workflow_id: str | None = None) -> None:
        super().__init__(message)
        self.workflow_id = workflow_id


class WorkflowExecutionError(WorkflowError):
    """A task failed for good. ``__cause__`` is the user's exception where it can be loaded.

    Attributes: ``workflow_id``, ``task_id`` (the task that failed).
    """

    def __init__(
        self,
        message: str,
        *,
        workflow_id: str | None = None,
        task_id: str | None = None,
        cause_payload: bytes | None = None,
    ) -> None:
        super().__init__(message, workflow_id=workflow_id)
        self.task_id = task_id
        self.cause_payload = cause_payload


class WorkflowCancellationError(WorkflowError):
    """The workflow was cancelled."""


class WorkflowNotResumableError(WorkflowError):
    """The workflow can't be resumed as it is; the text says what can be done."""


class WorkflowNotFoundError(WorkflowError, ValueError):
    """No workflow (or no task of it) has this id in this store."""


class WorkflowStillActiveError(WorkflowError, RuntimeError):
    """The workflow is being driven now, by this cluster or another."""


class WorkflowExistsError(WorkflowError, ValueError):
    """The id belongs to a workflow with another DAG."""


class QueueFull(WorkflowError, queue.Full):
    """``max_running_workflows`` run and ``max_pending_workflows`` wait already; nothing was written."""


class StoreError(PerdureError):
    """A store failed; raised itself it is permanent.

    Attributes: ``url`` (redacted), ``key``, ``operation``: None where they don't apply.
    """

    def __init__(
        self, message: str, *, url: str | None = None, key: str | None = None, operation: str | None = None
    ) -> None:
        super().__init__(message)
        self.url = url
        self.key = key
        self.operation = operation


class NotFound(StoreError):
    """The key does not exist."""


class AlreadyExists(StoreError):
    """``create`` met an existing value."""


class PermissionDenied(StoreError):
    """The credentials or file permissions don't allow the operation."""


class StoreUnavailable(StoreError):
    """Transient failure after the store's own retries. A write may have happened or may yet happen, once."""


class CorruptedError(PerdureError):
    """Stored bytes are damaged, or an object that others name is missing. Attribute: ``key``."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        super().__init__(message)
        self.key = key


class SignatureError(CorruptedError):
    """A journal object under ``trust="signed"`` has no valid signature for its place.

    Attribute: ``unknown_key``: it may well be valid, but the key that signed it is not in the key file.
    """

    def __init__(self, message: str, *, key: str | None = None, unknown_key: bool = False) -> None:
        super().__init__(message, key=key)
        self.unknown_key = unknown_key


class FormatError(PerdureError):
    """The store or object was written by a newer Perdure, or is not Perdure's. Nothing was changed."""


class EncodeError(PerdureError):
    """A value can't be stored. Attribute: ``path`` (where inside the value, e.g. ``result['a'][3]``)."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class DecodeError(PerdureError):
    """Stored bytes can't be turned into a value (damaged, not allowed by the trust level, no serializer)."""


class PluginError(PerdureError):
    """A plugin is missing, broken or in conflict; the text names the distribution and what to install."""


class ListenerError(PerdureError):
    """An event listener failed for good."""


class ClusterError(PerdureError):
    """Ray or the coordinator can't be reached, or does not fit this process."""
