"""What runs inside a Ray worker: one attempt of a task, and the Ray tasks that load and save large values.

The coordinator gets back a small `Report`; large values go straight to the store and into Ray's object store.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import msgspec
import ray

from perdure.code_names import is_name, load_name
from perdure.errors import ClusterError
from perdure.graph import Failure, Function, Graph, Payload
from perdure.onray.dag import Upload, flatten, place_uploads
from perdure.onray.failures import failure_from
from perdure.onray.loading import Loader, load_function, wrap
from perdure.onray.patience import UNREAD, StoreTrouble
from perdure.onray.process import PROCESS, boot_id
from perdure.onray.saving import Saver
from perdure.references import is_node

if TYPE_CHECKING:
    from perdure.onray.relay import Rest

_TERMINATED: Final = "ray_terminate_msg"
"""The mark of a SystemExit that Ray's handler of SIGTERM raises inside whatever runs."""


class Spec(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """One attempt, as it travels to a worker. ``live`` names the blobs whose refs come beside it, in order.

    ``tops``: (position or name, payload or None): None means that the value itself comes as an argument, and
    ``top_wraps`` what to add to each. ``submitted`` (seconds of the coordinator's boot clock) and ``quarter`` (of
    its lease) let the worker see that it begins late (L3). ``timed``: the coordinator wants to hear when it begins.
    """

    workflow_id: str
    name: str
    attempt: int
    key: str
    kind: str
    function: Function
    args: Payload | None
    tops: tuple[tuple[int | str, Payload | None, str], ...]
    nested: tuple[Payload, ...]
    live: tuple[str, ...]
    persist: bool
    retry_exceptions: bool | Payload
    store: str
    cycle: int
    coordinator: str
    boot: str
    submitted: float
    quarter: float
    code: tuple[str, tuple[str, ...], str] = ("", (), "")
    metadata: dict[str, Any] = {}
    driver: str = ""
    stay: bool = True
    timed: bool = False
    birth: int = 0


class Report(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """What became of an attempt. Exactly one of ``value``, ``graph``, ``failure``, ``not_begun`` is set."""

    started: float = 0.0
    ended: float = 0.0
    value: Payload | None = None
    graph: Graph | None = None
    graph_blob: str | None = None
    failure: Failure | None = None
    retryable: bool = False
    not_begun: str = ""
    output: str = ""


encode_spec = msgspec.msgpack.Encoder().encode
_decode_spec = msgspec.msgpack.Decoder(Spec).decode
_encode_report = msgspec.msgpack.Encoder().encode
decode_report = msgspec.msgpack.Decoder(Report).decode


@dataclass(frozen=True)
class TaskContext:
    """Where user code runs. ``idempotency_key``: the same for every attempt of this task, in any cluster."""

    workflow_id: str
    task_id: str
    attempt: int
    idempotency_key: str
    metadata: dict[str, Any]


CURRENT: ContextVar[TaskContext | None] = ContextVar("perdure_task", default=None)


class Continued(Exception):
    """Not raised to users: marks a graph that a task returned through `continuation`."""


# -- the attempt -----------------------------------------------------------------------------------------------------


def execute(spec_data: bytes, live_refs: list[ray.ObjectRef], *values: Any) -> Any:
    """The body of every Ray task that runs a workflow's task.

    Returns the report's bytes, or ``(bytes, [(blob, ref), ...])`` where large values were made.
    """
    spec = _decode_spec(spec_data)
    if spec.stay:
        PROCESS.stay()
    late = _late(spec)
    if late:
        return _encode_report(Report(not_begun=late))
    if spec.timed:
        _tell_begun(spec)
    if spec.boot != boot_id() and not PROCESS.store(spec.store).store.capabilities.multi_host:
        error = ClusterError(
            f"task {spec.name} was started on another machine than the coordinator, but "
            f"{PROCESS.store(spec.store).url} is local to one machine. Use a store that all machines reach (s3://, "
            "gs://, redis://), or say that the folder is on a cluster filesystem: file:///folder?multi_host=true."
        )
        return _encode_report(_failed("decode", error, time.time(), retryable=False))
    saver = Saver(spec.store, spec.cycle, persist=spec.persist)
    started = time.time()
    context = TaskContext(spec.workflow_id, spec.name, spec.attempt, spec.key, spec.metadata)
    token = CURRENT.set(context)
    try:
        PROCESS.enter(*spec.code)
        with _relayed(spec) as rest:
            report = _attempt(spec, dict(zip(spec.live, live_refs, strict=True)), list(values), saver, started)
    finally:
        CURRENT.reset(token)
    if rest.text:
        report = msgspec.structs.replace(report, output=rest.text)
    data = _encode_report(report)
    return (data, saver.made) if saver.made else data


def not_begun(reason: str) -> bytes:
    """The reply of an attempt that did not begin."""
    return _encode_report(Report(not_begun=reason))


def _attempt(spec: Spec, live: dict[str, ray.ObjectRef], values: list[Any], saver: Saver, started: float) -> Report:
    loader = Loader(spec.store, live, f"task {spec.name} of workflow {spec.workflow_id}")
    saver.known = loader.known
    try:
        if spec.kind == "gather":
            _, args, kwargs = None, *arguments(spec, loader, values)
            result: Any = list(args)
        else:
            function = load_function(spec.function, loader)
            args, kwargs = arguments(spec, loader, values)
    except StoreTrouble as error:
        return Report(not_begun=f"{UNREAD}: {error}")
    except ray.exceptions.ObjectLostError:
        raise  # gone with its node or its owner: the coordinator gives this attempt another ref
    except Exception as error:
        return _failed("decode", error, started, retryable=False)
    if spec.kind != "gather":
        try:
            result = function(*args, **kwargs)
            if inspect.iscoroutine(result):
                result = asyncio.run(result)
        except Exception as error:
            return _failed("raised", error, started, retryable=_retryable(spec, loader, error))
        except BaseException as error:
            if hasattr(error, _TERMINATED):
                raise  # not the task's doing: this worker is ended (its node stops, its owner died, a force cancel)
            if isinstance(error, KeyboardInterrupt):  # the task's own, or a signal that reached it: a retry, counted
                return _failed("raised", error, started, retryable=True)
            return _failed("raised", error, started, retryable=False)
    try:
        if is_node(result):
            flat = flatten(result, PROCESS.values, functions=PROCESS.cache)
            graph = place_uploads(flat.graph, [saver.upload(u) for u in flat.uploads])
            return Report(started, time.time(), graph=graph)
        payload = saver.value(result, f"the result of task {spec.name}")
        return Report(started, time.time(), value=payload)
    except StoreTrouble as error:
        return Report(not_begun=f"its result can't be stored: {error}")
    except Exception as error:
        return _failed("encode", error, started, retryable=False)


def arguments(spec: Spec, loader: Loader, values: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    if spec.args is not None:
        refs = [loader.ref(p) for p in spec.nested]
        data = loader.raw(spec.args)
        args, kwargs = PROCESS.values.load(data, refs=refs, where=f"the arguments of {spec.name}")
    given = iter(values)
    for where, payload, wraps in spec.tops:
        value = wrap(next(given), wraps) if payload is None else loader.value(payload)
        if isinstance(where, str):
            kwargs[where] = value
        else:
            while len(args) <= where:
                args.append(None)
            args[where] = value
    return args, kwargs


def _retryable(spec: Spec, loader: Loader, error: BaseException) -> bool:
    if isinstance(spec.retry_exceptions, bool):
        return spec.retry_exceptions
    try:
        classes = PROCESS.values.load(loader.raw(spec.retry_exceptions), where="retry_exceptions")
        loaded = [load_name(c, "retry_exceptions") if is_name(c) else c for c in classes]
        return isinstance(error, tuple(loaded))
    except Exception:
        return False


def _failed(kind: str, error: BaseException, started: float, *, retryable: bool) -> Report:
    return Report(started, time.time(), failure=failure_from(kind, error), retryable=retryable)


def _relayed(spec: Spec) -> AbstractContextManager[Rest]:
    from perdure.onray import relay

    return relay.task_output(spec.driver, spec.workflow_id, spec.name)


# -- late begins (L3) ------------------------------------------------------------------------------------------------


def _late(spec: Spec) -> str:
    """Why this attempt must not begin, or "": asked of the coordinator where it begins late.

    Clocks are compared only as elapsed time: on another machine the offset between the two boot clocks is measured
    once, by one call, on the safe side.
    """
    now = PROCESS.clock.boot()
    if spec.boot != boot_id():
        offset = PROCESS.offsets.get(spec.coordinator)
        if offset is None:
            asked = _ask(spec)
            if not isinstance(asked, float):
                return asked
            # its clock read `asked` at some time after `now`: so it is at least that far ahead of this clock
            PROCESS.offsets[spec.coordinator] = asked - now
            return ""
        now += offset
    if 0 <= now - spec.submitted <= spec.quarter:
        return ""
    asked = _ask(spec)
    return "" if isinstance(asked, float) else asked


def _ask(spec: Spec) -> float | str:
    """The coordinator's boot clock if the attempt may begin, else why not."""
    from perdure.onray import actor

    try:
        handle = ray.get_actor(actor.NAME, namespace=actor.NAMESPACE)
        reply = ray.get(handle.may_begin.remote(spec.coordinator), timeout=max(1.0, 4 * spec.quarter))
    except Exception as error:
        return f"the coordinator can't be asked ({type(error).__name__})"
    if reply is None:
        return "the coordinator's lease has run out, or it is another one now"
    return float(reply)


def _tell_begun(spec: Spec) -> None:
    """The time of a task's ``timeout`` runs from here, however long it was queued."""
    from perdure.onray import actor

    try:
        handle = ray.get_actor(actor.NAME, namespace=actor.NAMESPACE)
        handle.begun.remote(spec.coordinator, spec.key, spec.attempt)
    except ValueError as error:  # it is being restarted, and this attempt counts no more
        logging.getLogger("perdure").debug("the coordinator was not told that %s begins: %s", spec.name, error)


# -- large values ----------------------------------------------------------------------------------------------------


Code: TypeAlias = tuple[str, tuple[str, ...], str]
"""Digest of a driver's context, its folders, and the cluster's settings for values: arguments of `Process.enter`."""


def load_blob(payload_data: bytes, store: str, code: Code, live: list[tuple[str, ray.ObjectRef]]) -> Any:
    """A Ray task: the value of a blob, so that many tasks share one download. Refs inside come in ``live``."""
    PROCESS.enter(*code)
    payload = msgspec.msgpack.decode(payload_data, type=Payload)
    return Loader(store, dict(live), f"value {payload.blob}").value(payload)


def save_uploads(uploads: list[Upload], store: str, cycle: int, code: Code) -> Any:
    """A Ray task: store a driver's ObjectRefs and large arguments; returns payloads and the refs that hold them."""
    PROCESS.enter(*code)
    saver = Saver(store, cycle)
    payloads = [saver.upload(upload) for upload in uploads]
    return msgspec.msgpack.encode(payloads), saver.made
