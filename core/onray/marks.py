"""Marks in a worker's log files: whose output the lines that follow are.

Owns the text of a mark, written before a task's first line and read by ``perdure logs``. A worker runs one task after
the other, so lines belong to the mark above them. Silent tasks leave none.
"""

from __future__ import annotations

import json
from typing import Final

_START: Final = ":perdure:"


def mark(workflow_id: str, task: str) -> str:
    """The line, with its end."""
    return f"{_START}{json.dumps([workflow_id, task])}\n"


def read_mark(line: str) -> tuple[str, str] | None:
    """Workflow id and task of a mark; None for any other line."""
    if not line.startswith(_START):
        return None
    try:
        workflow_id, task = json.loads(line[len(_START) :])
    except ValueError:
        return None
    return str(workflow_id), str(task)
