"""What a stored workflow looks like to people and programs: metadata, descriptions.

Owns the names of fields that users see (`get_metadata` keeps those of Ray Workflows). Reads states, changes nothing.
"""

from __future__ import annotations

from typing import Any

from perdure.errors import WorkflowNotFoundError
from perdure.graph import Function
from perdure.state import State, Task, TaskStatus
from perdure.status import WorkflowStatus


def metadata_of(state: State, status: WorkflowStatus, workflow_id: str, task_id: str | None) -> dict[str, Any]:
    """`workflow.get_metadata`: of the workflow, or of one task. Times are Unix seconds."""
    if task_id is None:
        stats: dict[str, Any] = {"start_time": state.started}
        if state.ended:
            stats["end_time"] = state.ended
        metadata = state.created.metadata if state.created is not None else {}
        return {"status": status, "user_metadata": metadata, "stats": stats}
    number = state.names.get(task_id)
    if number is None:
        raise WorkflowNotFoundError(
            f"workflow {workflow_id!r} has no task {task_id!r}; it has: {', '.join(list(state.names)[:20])}",
            workflow_id=workflow_id,
        )
    return task_metadata(state, state.tasks[number])


def task_metadata(state: State, task: Task) -> dict[str, Any]:
    options = task.options
    stats = {}
    if task.started:
        stats["start_time"] = task.started
    if task.ended:
        stats["end_time"] = task.ended
    return {
        "name": task.function.name if task.node is not None and task.node.function >= 0 else task.name,
        "task_id": task.name,
        "task_options": {
            "task_type": "WAIT_EVENT" if task.node is not None and task.node.kind in ("event", "timer") else "FUNCTION",
            "max_retries": options.max_retries,
            "catch_exceptions": options.catch_exceptions,
            "retry_exceptions": bool(options.retry_exceptions),
            "checkpoint": options.checkpoint,
            "ray_options": options.ray,
        },
        "user_metadata": options.metadata,
        "workflow_refs": [],
        "upstream_dependencies": [state.tasks[n].name for n in sorted(task.upstream())],
        "status": task.status.name,
        "attempts": task.attempts,
        "stats": stats,
    }


def functions_to_run(state: State) -> list[Function]:
    """The functions that unfinished tasks would run, without their code, by digest."""
    found = {}
    for task in state.tasks:
        if task.status is not TaskStatus.DONE and task.node is not None and task.node.function >= 0:
            f = task.function
            found[f.digest] = Function(f.name, f.digest, None, f.code, f.python)
    return list(found.values())


def description_of(
    state: State,
    status: WorkflowStatus,
    workflow_id: str,
    running: list[int],
    problem: str | None,
    waiting: dict[int, str] | None = None,
) -> dict[str, Any]:
    """All that is known of a workflow, task by task. ``waiting``: what tasks wait for that no node can
    run, or whose event's source refuses the acknowledgement."""
    live = set(running)
    tasks = []
    for task in state.tasks:
        shown = "RUNNING" if task.number in live and task.status is not TaskStatus.DONE else task.status.name
        entry: dict[str, Any] = {
            "task_id": task.name,
            "status": shown,
            "kind": task.node.kind if task.node is not None else "task",
            "attempts": task.attempts,
            "upstream": [state.tasks[n].name for n in sorted(task.upstream())] if task.node is not None else [],
            "start_time": task.started or None,
            "end_time": task.ended or None,
            "size": task.payload.size if task.payload is not None else None,
            "waiting_for": (waiting or {}).get(task.number),
            "continued_by": state.tasks[task.alias].name if task.alias >= 0 else None,
        }
        if task.failure is not None:
            entry["error"] = f"{task.failure.type}: {task.failure.text}"
        if task.timer is not None:
            entry["deadline"] = task.timer[0]
        tasks.append(entry)
    created = state.created
    return {
        "workflow_id": workflow_id,
        "status": str(status),
        "start_time": state.started,
        "end_time": state.ended or None,
        "user_metadata": created.metadata if created is not None else {},
        "tasks_total": len(state.tasks),
        "tasks_done": state.done,
        "failed_task": state.tasks[state.failed_task].name if state.failed_task >= 0 else None,
        "waiting_because": problem,
        "python": created.python if created is not None else "",
        "tasks": tasks,
    }
