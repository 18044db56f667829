"""Durable workflows on Ray: the public API, compatible with the former Ray Workflows.

    from perdure import workflow

    result = workflow.run(add.bind(100, one.bind()), workflow_id="run_1")

Owns argument checks and the shapes that users see; everything else happens in the coordinator.
"""

from __future__ import annotations

import logging
import os
import uuid
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import ray

from perdure import code_names, event_listener, exceptions
from perdure.code_names import PYTHON, code_digest
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
from perdure.event_listener import EventListener, EventListenerType, TimerListener
from perdure.events.event_node import event_node
from perdure.graph import Function, encode_graph
from perdure.keys import check_workflow_id
from perdure.onray import actor, cluster
from perdure.onray.dag import Upload, event_marker, flatten, timer_marker
from perdure.onray.options import check_metadata, options
from perdure.onray.process import PROCESS
from perdure.onray.worker import CURRENT, TaskContext
from perdure.references import is_node
from perdure.status import WorkflowStatus

NONE = WorkflowStatus.NONE
RUNNING = WorkflowStatus.RUNNING
CANCELED = WorkflowStatus.CANCELED
SUCCESSFUL = WorkflowStatus.SUCCESSFUL
FAILED = WorkflowStatus.FAILED
RESUMABLE = WorkflowStatus.RESUMABLE
PENDING = WorkflowStatus.PENDING

logger = logging.getLogger("perdure")

__all__ = [
    "CANCELED",
    "FAILED",
    "NONE",
    "PENDING",
    "RESUMABLE",
    "RUNNING",
    "SUCCESSFUL",
    "EventListener",
    "EventListenerType",
    "QueueFull",
    "TaskContext",
    "TimerListener",
    "WorkflowCancellationError",
    "WorkflowError",
    "WorkflowExecutionError",
    "WorkflowExistsError",
    "WorkflowNotFoundError",
    "WorkflowNotResumableError",
    "WorkflowStatus",
    "WorkflowStillActiveError",
    "cancel",
    "context",
    "continuation",
    "delete",
    "event_listener",
    "exceptions",
    "explain",
    "get_metadata",
    "get_output",
    "get_output_async",
    "get_status",
    "init",
    "list_all",
    "options",
    "resume",
    "resume_all",
    "resume_async",
    "run",
    "run_async",
    "sleep",
    "wait_for_event",
]


def init(
    *,
    storage: str | None = None,
    max_running_workflows: int | None = None,
    max_pending_workflows: int | None = None,
    lease_seconds: float | None = None,
    trust: str | None = None,
    keys: str | os.PathLike[str] | None = None,
    serializers: Sequence[str] | None = None,
    codecs: Sequence[str] | None = None,
    **ray_init: Any,
) -> None:
    """Connect to the cluster's workflows; starts Ray where it is down.

    Args:
        storage: URL or folder of the store. Default: the cluster's, else ``PERDURE_STORAGE``, else a temporary folder
            (said once in the log). The first `init` of a cluster decides for all its drivers.
        max_running_workflows: more wait as PENDING. -1 (default): no limit.
        max_pending_workflows: more are refused with QueueFull. -1 (default): no limit; 0: nothing may wait.
        lease_seconds: how long another cluster waits before it takes a silent one for dead (default 20).
        trust: what may be loaded from the store: ``all``; ``signed``: only what was written with one of ``keys``;
            ``data``: nothing that runs code, so tasks are functions of importable modules and values are data (see
            docs/security.md). Default: ``PERDURE_TRUST``, else ``all`` for a temporary folder of this user; every other
            store needs one.
        keys: path of a key file (`perdure.keyring`), the same on every machine. Default: ``PERDURE_KEYS``.
        serializers: names, tried in this order (default: data, arrow, pickle; or ``PERDURE_SERIALIZERS``, commas).
        codecs: names, applied in this order: zstd, aes-gcm (default: none; or ``PERDURE_CODECS``, commas).
        ray_init: arguments of `ray.init`, if Ray is not running yet.

    Raises:
        ValueError: a wrong value, or one that differs from what this cluster was started with (both are shown).
        StoreError, FormatError, PluginError: the storage can't be used, and why.
        ClusterError: the coordinator can't be started or reached.
    """
    values = {"trust": trust, "keys": keys, "serializers": serializers, "codecs": codecs}
    cluster.init(storage, max_running_workflows, max_pending_workflows, lease_seconds, ray_init, values)


# -- run -------------------------------------------------------------------------------------------------------------


def run(
    dag: Any,
    *args: Any,
    workflow_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    if_exists: str = "return",
    input_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> Any:
    """Run a DAG durably and return its value.

    Args:
        dag: a DAG made with ``.bind()``.
        args, kwargs: feed the DAG's InputNode.
        workflow_id: 1 to 200 printable characters; default: a new one.
        metadata: user metadata, a dict that JSON can hold.
        if_exists: when the id exists already. ``return`` (default): the same DAG gives the stored result, or goes on
            where it stopped; another DAG is an error. ``error``: always an error. ``replace``: deletes the stored one
            first. ``resume``: as ``return``, and waits for it if it is running.
        input_kwargs: inputs whose names are those of this function's own arguments.

    Raises:
        TypeError: not a DAG, or wrong arguments. ValueError: a wrong id or option.
        WorkflowExecutionError: a task failed for good; ``__cause__`` is its exception.
        WorkflowCancellationError, WorkflowStillActiveError, WorkflowExistsError, QueueFull, EncodeError, StoreError.
    """
    connection, chosen = _submit(dag, args, kwargs, workflow_id, metadata, if_exists, input_kwargs)
    return _wait(connection, chosen)


def run_async(
    dag: Any,
    *args: Any,
    workflow_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    if_exists: str = "return",
    input_kwargs: dict[str, Any] | None = None,
    **kwargs: Any,
) -> ray.ObjectRef:
    """As `run`, but return an ObjectRef of the value at once.

    When it returns, the workflow is stored: this driver may exit.
    """
    connection, chosen = _submit(dag, args, kwargs, workflow_id, metadata, if_exists, input_kwargs)
    return connection.wait(chosen)


def _submit(
    dag: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    workflow_id: str | None,
    metadata: dict[str, Any] | None,
    if_exists: str,
    input_kwargs: dict[str, Any] | None,
) -> tuple[cluster.Connection, str]:
    chosen = check_workflow_id(workflow_id) if workflow_id is not None else f"workflow-{uuid.uuid4()}"
    checked = check_metadata(metadata)
    if if_exists not in ("return", "error", "replace", "resume"):
        raise ValueError(f"if_exists={if_exists!r}: expected 'return', 'error', 'replace' or 'resume'")
    if not is_node(dag):
        raise TypeError(
            f"run() expects a DAG made with .bind(), got {type(dag).__name__}: {dag!r:.200}. Call function.bind(...) "
            "and pass what it returns."
        )
    inputs = (args, {**kwargs, **(input_kwargs or {})})
    settings = PROCESS.settings
    flat = flatten(dag, PROCESS.values, inputs)  # before a cluster is started: what is wrong is told at once
    connection = cluster.connected()
    if PROCESS.settings != settings:
        flat = flatten(dag, PROCESS.values, inputs)
    request = actor.Request(
        chosen, uuid.uuid4().hex, encode_graph(flat.graph), checked, if_exists, connection.versions()
    )
    context = cluster.context_of(connection)
    connection.printer.watch()
    connection.call("submit", msgspec.msgpack.encode(request), flat.uploads, context)
    return connection, chosen


def _wait(connection: cluster.Connection, workflow_id: str, task_id: str | None = None) -> Any:
    try:
        return cluster.get(connection.wait(workflow_id, task_id))
    finally:
        connection.printer.drain()


# -- resume ----------------------------------------------------------------------------------------------------------


def resume(workflow_id: str, *, code: str = "stored") -> Any:
    """Go on with a workflow that nobody drives, from any cluster with the store; return its value.

    A finished one gives its stored output. A failed one tries its failed tasks again.

    Args:
        code: ``stored``: tasks run the code that they were stored with. ``current``: tasks that are not done run what
            their functions' names stand for in this process, from here on. See `explain`.

    Raises:
        WorkflowNotFoundError, WorkflowStillActiveError (somebody drives it), WorkflowNotResumableError (cancelled, or
        some current code can't be found), WorkflowExecutionError.
    """
    connection = _resume(workflow_id, code)
    return _wait(connection, workflow_id)


def resume_async(workflow_id: str, *, code: str = "stored") -> ray.ObjectRef:
    """As `resume`, but return an ObjectRef of the value at once."""
    return _resume(workflow_id, code).wait(workflow_id)


def _resume(workflow_id: str, code: str) -> cluster.Connection:
    check_workflow_id(workflow_id)
    if code not in ("stored", "current"):
        raise ValueError(f"code={code!r}: expected 'stored' or 'current'")
    connection = cluster.connected()
    connection.printer.watch()
    arguments: tuple[Any, ...] = (workflow_id, cluster.context_of(connection), connection.coordinator())
    if code == "current":
        arguments += _current_code(connection, workflow_id)
    connection.call("resume", *arguments)
    return connection


def _current_code(connection: cluster.Connection, workflow_id: str) -> tuple[bytes, list[Upload]]:
    """What replaces the functions that are still to run, and what of it has to be stored first."""
    stored = msgspec.msgpack.decode(connection.call("functions", workflow_id), type=list[Function])
    here = {function.name: code_names.current(function.name) for function in stored}
    if missing := sorted(name for name, body in here.items() if body is None):
        raise WorkflowNotResumableError(
            f"the current code of {', '.join(missing)} can't be found in this process. Import or define it under the "
            "same module and name, or resume with code='stored'.",
            workflow_id=workflow_id,
        )
    uploads: list[Upload] = []
    replaced = []
    for function in stored:
        body = here[function.name]
        if function.python == PYTHON and code_digest(body) == function.code:
            continue
        new = PROCESS.cache.stored(body, function.name, uploads)
        replaced.append((function.digest, new))
    return msgspec.msgpack.encode(replaced), uploads


def explain(workflow_id: str) -> dict[str, Any]:
    """What a resume would do, before it is done; nothing is changed and no value is loaded.

    Returns:
        ``resumable`` and ``reason``; ``tasks``: for each one ``action`` (``reuse``, ``run``, ``wait`` for its
        continuation, ``none``) and ``because``; ``problems``: values that are missing or damaged, serializers that are
        not installed; ``environment``: Python, Ray, Perdure and the code package, stored and here; ``code``: the
        functions that would run, and whether their code has changed.

    Raises WorkflowNotFoundError.
    """
    from perdure.explaining import decode_facts, explanation

    check_workflow_id(workflow_id)
    connection = cluster.connected()
    facts = decode_facts(connection.call("explain", workflow_id))
    ray_version, _, package = connection.versions()
    code = {f.name: code_names.digest_here(f.name) for f in facts.functions}
    return explanation(facts, python=PYTHON, ray=ray_version, package=package, code=code)


def resume_all(include_failed: bool = False) -> list[tuple[str, ray.ObjectRef]]:
    """Resume every RESUMABLE workflow (and FAILED ones, if asked).

    One that can't be resumed does not stop the others: its ref raises why.
    """
    statuses = {RESUMABLE, FAILED} if include_failed else {RESUMABLE}
    connection = cluster.connected()
    connection.printer.watch()
    context, seen = cluster.context_of(connection), connection.coordinator()
    started = [
        (workflow_id, connection.handle.resume.remote(workflow_id, context, seen))
        for workflow_id, _ in list_all(statuses)
    ]
    out = []
    for workflow_id, ref in started:
        try:
            cluster.get(ref)
        except Exception:
            out.append((workflow_id, ref))
        else:
            out.append((workflow_id, connection.wait(workflow_id)))
    return out


# -- read ------------------------------------------------------------------------------------------------------------


def get_output(workflow_id: str, *, task_id: str | None = None) -> Any:
    """The value of a workflow (or of one of its tasks); waits while it runs.

    Raises:
        WorkflowNotFoundError; WorkflowExecutionError: it failed, as `run` would have said; WorkflowCancellationError;
        WorkflowNotResumableError: nobody drives it, resume it first.
    """
    check_workflow_id(workflow_id)
    connection = cluster.connected()
    connection.printer.watch()
    return _wait(connection, workflow_id, task_id)


def get_output_async(workflow_id: str, *, task_id: str | None = None) -> ray.ObjectRef:
    """As `get_output`, but return an ObjectRef of the value at once."""
    check_workflow_id(workflow_id)
    return cluster.connected().wait(workflow_id, task_id)


def get_status(workflow_id: str) -> WorkflowStatus:
    """The status now. WorkflowNotFoundError: no such workflow."""
    check_workflow_id(workflow_id)
    return WorkflowStatus(cluster.connected().call("status", workflow_id))


def list_all(
    status_filter: WorkflowStatus | str | Iterable[WorkflowStatus | str] | None = None,
) -> list[tuple[str, WorkflowStatus]]:
    """All workflows of the store, from whichever cluster, with their statuses.

    ``status_filter``: a status, its name, or several. ValueError: not a status.
    """
    wanted = _statuses(status_filter)
    listed = cluster.connected().call("list_all")
    found = []
    for workflow_id, status, _, _, problem in listed:
        if problem:
            logger.warning("workflow %r can't be read: %s", workflow_id, problem)
        found.append((workflow_id, WorkflowStatus(status)))
    return [(i, status) for i, status in found if wanted is None or status in wanted]


def _statuses(
    status_filter: WorkflowStatus | str | Iterable[WorkflowStatus | str] | None,
) -> set[WorkflowStatus] | None:
    if status_filter is None:
        return None
    given = [status_filter] if isinstance(status_filter, str) else list(status_filter)
    try:
        return {WorkflowStatus(status) for status in given}
    except ValueError as error:
        names = ", ".join(s.value for s in WorkflowStatus)
        raise ValueError(f"status_filter={status_filter!r}: expected statuses out of {names}") from error


def get_metadata(workflow_id: str, task_id: str | None = None) -> dict[str, Any]:
    """Metadata of a workflow, or of one of its tasks.

    Workflow: ``status``, ``user_metadata``, ``stats`` (``start_time``, ``end_time``, Unix seconds). Task: also
    ``task_options``, ``upstream_dependencies``, ``attempts``.
    """
    check_workflow_id(workflow_id)
    found: dict[str, Any] = cluster.connected().call("metadata", workflow_id, task_id)
    return found


# -- cancel, delete --------------------------------------------------------------------------------------------------


def cancel(workflow_id: str) -> None:
    """Cancel a workflow for good; its running tasks are ended by force. A finished one stays as it is.

    Raises WorkflowNotFoundError.
    """
    check_workflow_id(workflow_id)
    connection = cluster.connected()
    connection.call("cancel", workflow_id, cluster.context_of(connection))


def delete(workflow_id: str) -> None:
    """Forget a workflow and its values. Raises WorkflowNotFoundError, WorkflowStillActiveError (it runs)."""
    check_workflow_id(workflow_id)
    connection = cluster.connected()
    connection.call("delete", workflow_id, connection.coordinator())


# -- inside DAGs and tasks -------------------------------------------------------------------------------------------


def continuation(dag: Any) -> Any:
    """Inside a task: return ``continuation(dag)`` to go on with that DAG; the task's value becomes the DAG's.

    Outside a task it runs the DAG at once, without durability, and returns its value.
    """
    if not is_node(dag):
        raise TypeError(f"continuation() expects a DAG made with .bind(), got {type(dag).__name__}: {dag!r:.200}")
    if CURRENT.get() is not None:
        return dag
    with warnings.catch_warnings():
        # execute() is deprecated without a successor; what it does is pinned by a test on each version of Ray
        warnings.simplefilter("ignore", DeprecationWarning)
        return ray.get(dag.execute())


def sleep(duration: float) -> Any:
    """A DAG node that is done ``duration`` seconds after it first begins; crashes don't prolong it."""
    if isinstance(duration, bool) or not isinstance(duration, int | float) or not 0 <= duration < 1e12:
        raise ValueError(f"sleep({duration!r:.100}): expected a number of seconds from 0 to 1e12")
    return event_node(timer_marker, float(duration))


def wait_for_event(listener: type | str, *args: Any, **kwargs: Any) -> Any:
    """A DAG node whose value is an event.

    ``listener``: a subclass of EventListener (or any class with its two methods), or the name of an installed one
    (entry points ``perdure.listeners``). ``args`` go to its ``poll_for_event``.

    Raises TypeError: not a listener class; PluginError: no such name.
    """
    if isinstance(listener, str):
        from perdure import registry

        found: Any = registry.load(registry.LISTENERS, listener)
        listener = found
    if not isinstance(listener, type) or not all(
        callable(getattr(listener, name, None)) for name in ("poll_for_event", "event_checkpointed")
    ):
        raise TypeError(
            f"wait_for_event() expects a listener class with async poll_for_event and event_checkpointed, got "
            f"{listener!r:.200}"
        )
    return event_node(event_marker, listener, *args, **kwargs)


def context() -> TaskContext:
    """Inside a task: its workflow id, task id, attempt, metadata, and the idempotency key of its effects.

    Raises RuntimeError outside a task.
    """
    current = CURRENT.get()
    if current is None:
        raise RuntimeError("workflow.context() was called outside a task of a workflow")
    return current
