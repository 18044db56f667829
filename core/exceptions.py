"""The errors under the name that Ray Workflows used: ``workflow.exceptions.WorkflowExecutionError``."""

from perdure.errors import (
    QueueFull,
    WorkflowCancellationError,
    WorkflowError,
    WorkflowExecutionError,
    WorkflowExistsError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)

__all__ = [
    "QueueFull",
    "WorkflowCancellationError",
    "WorkflowError",
    "WorkflowExecutionError",
    "WorkflowExistsError",
    "WorkflowNotFoundError",
    "WorkflowNotResumableError",
    "WorkflowStillActiveError",
]
