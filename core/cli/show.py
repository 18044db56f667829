"""How values, workflows and failures look, as text and as JSON.

Owns the JSON field names of docs/cli.md.
"""

from __future__ import annotations

import json
import math
import pprint
from typing import Any

from perdure.cli.exits import Exit, code_of
from perdure.cli.terminal import Terminal
from perdure.errors import WorkflowCancellationError, WorkflowExecutionError


def value(terminal: Terminal, workflow_id: str, task_id: str | None, result: Any) -> None:
    """The value of a workflow or task. Text stays as it is; all else as Python shows it."""
    terminal.data(
        {
            "workflow_id": workflow_id,
            "task_id": task_id,
            "status": "SUCCESSFUL",
            "type": _type(result),
            "value": _json(result),
            "repr": _short(result),
            "error": None,
        },
        lambda: terminal.line(result if isinstance(result, str) else pprint.pformat(result, width=110)),
    )


def failure(
    terminal: Terminal, workflow_id: str, task_id: str | None, error: Exception, kind: str | None = None
) -> Exit:
    """A workflow's or task's end without a value: JSON on stdout, or text on stderr. Its exit code.

    ``kind``: the class of the user's exception where ``error`` has no cause (read from a store, nothing is unpickled).
    Raises ``error`` where it is of another kind.
    """
    if not isinstance(error, WorkflowExecutionError | WorkflowCancellationError):
        raise error
    if terminal.json:
        failed = isinstance(error, WorkflowExecutionError)
        cause = error.__cause__
        shown = {
            "task_id": error.task_id if isinstance(error, WorkflowExecutionError) else None,
            "type": type(cause).__qualname__ if cause is not None else kind,
            "text": str(error),
        }
        terminal.data(
            {
                "workflow_id": workflow_id,
                "task_id": task_id,
                "status": "FAILED" if failed else "CANCELED",
                "type": None,
                "value": None,
                "repr": None,
                "error": shown,
            },
            lambda: None,
        )
    code = code_of(error)
    assert code is not None
    terminal.stop(str(error), code)


def _type(result: Any) -> str:
    kind = type(result)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _short(result: Any) -> str:
    text = repr(result)
    return text if len(text) <= 10_000 else text[:10_000] + "…"


def _json(result: Any) -> Any:
    """The value where JSON can say it exactly, else None."""
    try:
        again = json.loads(json.dumps(result, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return None
    if isinstance(result, float) and not math.isfinite(result):
        return None
    return again if again == result or isinstance(result, tuple) else None
