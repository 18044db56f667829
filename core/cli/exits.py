"""Exit codes, a contract with scripts (docs/cli.md).

Owns which error ends a command with which code.
"""

from __future__ import annotations

import enum

from perdure.errors import (
    ClusterError,
    CorruptedError,
    DecodeError,
    EncodeError,
    FormatError,
    ListenerError,
    PerdureError,
    PluginError,
    QueueFull,
    StoreError,
    WorkflowCancellationError,
    WorkflowExecutionError,
    WorkflowExistsError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.status import WorkflowStatus


class Exit(enum.IntEnum):
    OK = 0
    FAILED = 1
    """The workflow failed."""
    USAGE = 2
    NOT_FOUND = 3
    RUNNING = 4
    """It is not finished: it runs, waits, or nobody drives it."""
    STORE = 5
    """The store or the cluster can't be used."""
    CANCELLED = 6
    CORRUPTED = 7
    BUG = 70
    INTERRUPTED = 130


_CODES: tuple[tuple[type[Exception], Exit], ...] = (
    (WorkflowExecutionError, Exit.FAILED),
    (WorkflowCancellationError, Exit.CANCELLED),
    (WorkflowNotResumableError, Exit.RUNNING),
    (WorkflowNotFoundError, Exit.NOT_FOUND),
    (WorkflowStillActiveError, Exit.RUNNING),
    (QueueFull, Exit.RUNNING),
    (WorkflowExistsError, Exit.USAGE),
    (EncodeError, Exit.USAGE),
    (CorruptedError, Exit.CORRUPTED),
    (DecodeError, Exit.CORRUPTED),
    (StoreError, Exit.STORE),
    (FormatError, Exit.STORE),
    (PluginError, Exit.STORE),
    (ClusterError, Exit.STORE),
    (ListenerError, Exit.FAILED),
    (PerdureError, Exit.STORE),
    (ValueError, Exit.USAGE),
    (TypeError, Exit.USAGE),
)


def code_of(error: BaseException) -> Exit | None:
    """The exit code of an error; None for one that is not a known kind (a bug)."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), None)


def code_of_status(status: WorkflowStatus) -> Exit:
    """The exit code that tells a status (`status --exit-code`)."""
    return {
        WorkflowStatus.SUCCESSFUL: Exit.OK,
        WorkflowStatus.FAILED: Exit.FAILED,
        WorkflowStatus.CANCELED: Exit.CANCELLED,
        WorkflowStatus.NONE: Exit.NOT_FOUND,
    }.get(status, Exit.RUNNING)
