"""The states of a workflow as users see them."""

from __future__ import annotations

import enum


class WorkflowStatus(str, enum.Enum):  # noqa: UP042 - repr and str as Ray Workflows had them
    """Status of a workflow. Members are strings and compare equal to their values."""

    NONE = "NONE"
    """No workflow has this id (internal; a lookup raises instead)."""
    RUNNING = "RUNNING"
    """A living coordinator drives it."""
    CANCELED = "CANCELED"
    """Cancelled for good."""
    SUCCESSFUL = "SUCCESSFUL"
    """Finished; its output is stored."""
    FAILED = "FAILED"
    """A task failed for good; `resume` tries it again."""
    RESUMABLE = "RESUMABLE"
    """Neither finished nor driven by anyone; `resume` goes on."""
    PENDING = "PENDING"
    """Accepted and stored, waiting for `max_running_workflows`."""

    def __str__(self) -> str:
        return self.value

    @classmethod
    def terminal(cls) -> frozenset[WorkflowStatus]:
        return frozenset({cls.CANCELED, cls.SUCCESSFUL, cls.FAILED})
