"""What a resume would do, before it is done: which tasks are reused, which run, and what stands in the way.

Owns the comparison of a stored workflow with this place: its values in the store, the serializers and versions that are
installed, the code of today. Changes nothing and loads no value.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

import perdure
from perdure import registry
from perdure.coordinator import Coordinator
from perdure.envelope import serializer_of
from perdure.errors import CorruptedError, FormatError, NotFound, PluginError
from perdure.graph import Function, Payload
from perdure.inspection import functions_to_run
from perdure.state import State, Task, TaskStatus
from perdure.status import WorkflowStatus

_HEADER_BYTES: Final = 4096
_SHOWN: Final = 3
_AT_ONCE: Final = 32

_WHY_NOT: Final = {
    WorkflowStatus.SUCCESSFUL: "it has succeeded: a resume gives the stored output",
    WorkflowStatus.CANCELED: "it was cancelled for good",
    WorkflowStatus.RUNNING: "it is being driven now",
    WorkflowStatus.PENDING: "it is accepted and waits for room",
}


_LOST = "it has succeeded, but its output can't be read: restore it, or delete the workflow and run it again"


class Facts(msgspec.Struct):
    """What the store says; `explanation` adds what the asking process knows."""

    report: dict[str, Any]
    functions: list[Function]
    versions: tuple[str, ...]
    python: str


encode_facts = msgspec.msgpack.Encoder().encode
decode_facts = msgspec.msgpack.Decoder(Facts).decode


async def facts_of(coordinator: Coordinator, store: Any, workflow_id: str) -> Facts:
    """Read the workflow and look at the values that a resume needs. WorkflowNotFoundError: there is none."""
    status = await coordinator.status(workflow_id)
    state = await coordinator.read(workflow_id, keep=True)
    problems, lost = await _problems(store, state)
    needed = {task.number for task in state.needed()} if state.root >= 0 else set()
    tasks = [{"task_id": t.name, **_action(state, t, needed, lost)} for t in state.tasks]
    created = state.created
    report = {
        "workflow_id": workflow_id,
        "status": str(status),
        "resumable": status in (WorkflowStatus.RESUMABLE, WorkflowStatus.FAILED),
        "reason": _LOST if problems and status is WorkflowStatus.SUCCESSFUL else _WHY_NOT.get(status),
        "tasks_reused": sum(t["action"] == "reuse" for t in tasks),
        "tasks_to_run": sum(t["action"] == "run" for t in tasks),
        "problems": problems,
        "tasks": tasks,
    }
    return Facts(
        report,
        functions_to_run(state),
        created.versions if created is not None else (),
        created.python if created is not None else "",
    )


def explanation(
    facts: Facts, *, python: str, ray: str, package: str | None, code: dict[str, str | None]
) -> dict[str, Any]:
    """The whole answer.

    ``code``: for each function's name the digest of its code in this process, None: not found. ``package``: None where
    the asking process is no driver.
    """
    stored = dict(zip(("Ray", "Perdure", "code package"), facts.versions, strict=False)) | {"Python": facts.python}
    here = {"Python": python, "Ray": ray, "Perdure": perdure.__version__, "code package": package}
    environment = [
        {
            "what": what,
            "stored": stored.get(what) or None,
            "here": value or None,
            "differs": _differs(stored, what, value),
        }
        for what, value in here.items()
    ]
    functions = []
    for function in facts.functions:
        now = code.get(function.name)
        comparable = function.python == python
        changed = None if now is None or not comparable else now != function.code
        if now is None:
            note = (
                "not found here by its name, so code='current' can't replace it; import its module (-m MODULE on the "
                "command line), and look again"
            )
        elif not comparable:
            note = f"stored by Python {function.python or '?'}: its code can't be compared with that of Python {python}"
        else:
            note = (
                "changed since: code='stored' runs the old one, code='current' the new one" if changed else "unchanged"
            )
        functions.append(
            {"function": function.name, "stored": function.code, "here": now, "changed": changed, "note": note}
        )
    return {**facts.report, "environment": environment, "code": functions}


def _differs(stored: dict[str, str], what: str, here: str | None) -> bool | None:
    return None if what not in stored or here is None else (stored[what] or "") != (here or "")


# -- tasks -----------------------------------------------------------------------------------------------------------


def _action(state: State, task: Task, needed: set[int], lost: set[str]) -> dict[str, str]:
    status = task.status
    if status is TaskStatus.DONE:
        if task.payload is not None and lost.intersection(task.payload.blobs()):
            return {"action": "reuse", "because": "its result is recorded, but can't be read: see problems"}
        return {"action": "reuse", "because": "its result is stored"}
    if task.number not in needed:
        return {"action": "none", "because": "nothing that is left needs it"}
    if task.alias >= 0:
        return {"action": "wait", "because": f"it has run; its value is that of {state.tasks[task.alias].name}"}
    if status is TaskStatus.FAILED and task.failure is not None:
        return {"action": "run", "because": f"it failed: {task.failure.type}: {task.failure.text[:200]}"}
    open_inputs = [state.tasks[n].name for n in sorted(task.upstream()) if state.tasks[n].status is not TaskStatus.DONE]
    if open_inputs:
        more = " …" if len(open_inputs) > _SHOWN else ""
        return {"action": "run", "because": f"after {', '.join(open_inputs[:_SHOWN])}{more}"}
    if not task.options.checkpoint:
        return {"action": "run", "because": "its result is never stored (checkpoint=False)"}
    if task.attempts:
        return {"action": "run", "because": f"it has no result yet ({task.attempts} attempts failed)"}
    return {"action": "run", "because": "it has no result yet"}


# -- values ----------------------------------------------------------------------------------------------------------


async def _problems(store: Any, state: State) -> tuple[list[dict[str, str]], set[str]]:
    """What a resume would stumble over: values that are gone or cut, and serializers that are not installed here. With
    the names of those values."""
    wanted: dict[str, tuple[str, Payload]] = {}
    inline: dict[str, str] = {}

    def need(task: str, payload: Payload | None) -> None:
        if payload is None:
            return
        if payload.blob is not None:
            wanted.setdefault(payload.blob, (task, payload))
        elif payload.data is not None:
            name = serializer_of(payload.data)
            if name is not None:
                inline.setdefault(name, task)
        for ref in payload.refs:
            need(task, ref)

    for task in state.tasks:
        if task.status is TaskStatus.DONE or task.node is None or task.scope is None:
            continue
        need(task.name, task.node.args)
        if task.node.function >= 0:
            need(task.name, task.function.payload)
        for source in [s for _, s in task.node.tops] + list(task.node.nested):
            if source < 0:
                need(task.name, task.scope.objects[-1 - source])
            else:
                need(task.name, state.tasks[task.source(source)].payload)
    if state.root >= 0:
        need(state.tasks[state.root].name, state.tasks[state.root].payload)
    gate = asyncio.Semaphore(_AT_ONCE)

    async def look(blob: str, task: str, payload: Payload) -> dict[str, str] | None:
        async with gate:
            try:
                size = await store.stat(blob)
                if size != payload.size:
                    return {"task_id": task, "what": f"value {blob} is damaged: {size} bytes of {payload.size}"}
                inline.setdefault(serializer_of(await store.get(blob, 0, _HEADER_BYTES)) or "", task)
            except NotFound:
                return {"task_id": task, "what": f"value {blob} is missing from the store"}
            except (CorruptedError, FormatError) as error:
                return {"task_id": task, "what": str(error)}
        return None

    found = await asyncio.gather(*(look(blob, task, payload) for blob, (task, payload) in wanted.items()))
    problems = [problem for problem in found if problem is not None]
    lost = {blob for blob, problem in zip(wanted, found, strict=True) if problem is not None}
    for name, task_id in inline.items():
        try:
            if name:
                registry.load(registry.SERIALIZERS, name)
        except PluginError as error:
            problems.append({"task_id": task_id, "what": f"a value needs the serializer {name!r}: {error}"})
    return problems, lost
