"""``perdure describe``: a workflow, task by task."""

from __future__ import annotations

from typing import Any

from perdure.cli import arguments
from perdure.cli.terminal import Format, Terminal, span, when


def describe(
    workflow_id: arguments.WorkflowId,
    storage: arguments.Storage = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Show all that is known of a workflow and its tasks."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli.sides import side

        found = side(storage, address).describe(workflow_id)
        terminal.data(found, lambda: _text(terminal, found))


def _text(terminal: Terminal, found: dict[str, Any]) -> None:
    facts = [
        ("workflow", found["workflow_id"]),
        ("status", found["status"]),
        ("started", when(found["start_time"])),
        ("ended", when(found["end_time"])),
        ("tasks", f"{found['tasks_done']} of {found['tasks_total']} done"),
        ("metadata", found["user_metadata"] or None),
        ("failed task", found["failed_task"]),
        ("waits because", found["waiting_because"]),
    ]
    for name, fact in facts:
        if fact:
            terminal.line(f"{name + ':':<15}{fact}")
    terminal.line("")
    terminal.table(
        ("TASK", "STATUS", "ATTEMPTS", "TOOK", "NOTE"),
        [
            (t["task_id"], t["status"], t["attempts"] or "", span(t["start_time"], t["end_time"]), _note(t))
            for t in found["tasks"]
        ],
    )


def _note(task: dict[str, Any]) -> str:
    if task.get("error"):
        return str(task["error"]).splitlines()[0][:200]
    if task.get("deadline") and task["status"] != "DONE":
        return f"until {when(task['deadline'])}"
    if task.get("waiting_for"):
        return f"waits: {task['waiting_for']}"
    if task["continued_by"]:
        return f"continued by {task['continued_by']}"
    return ""
