"""The actor in which users' event listeners run.

Owns one environment's listeners: loading their code and arguments, polling, storing what they return, telling
them that it is durable. Users' code runs in lanes (see `lanes`), never in this actor's own loop; what may do I/O or
unpickles runs in a few threads for each class, so that nobody stalls another class.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import inspect
import logging
import time
import zlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

import msgspec

from perdure.event_listener import LIFE, STORE, EventListener
from perdure.events.lanes import Lanes, Wait
from perdure.graph import Payload
from perdure.onray import relay, worker
from perdure.onray.failures import failure_from
from perdure.onray.loading import Loader, load_function
from perdure.onray.process import PROCESS
from perdure.onray.saving import Saver
from perdure.onray.worker import Report
from perdure.threads import Threads

logger = logging.getLogger("perdure")

T = TypeVar("T")

_POOLS: Final = 16
_THREADS: Final = 4
"""Threads that load and store for a class of listeners, at most; classes share a number of pools."""
_BATCH: Final = 500


class Order(msgspec.Struct, array_like=True, frozen=True):
    """One wait, or with ``event`` one acknowledgement."""

    number: int
    spec: worker.Spec
    event: Payload | None = None


class News(msgspec.Struct, array_like=True, frozen=True):
    """What has ended since the last news: (number of the order, report), and warnings: (driver, text).

    ``silent``: digests of classes that have nothing to do when an event is durable.
    """

    number: int
    reports: list[tuple[int, Report]]
    warnings: list[tuple[str, str]]
    silent: list[str]


class ListenerHost:
    """The Ray actor (asyncio), asked by one `waits.Host`. Thin, because Ray wraps each method of an actor."""

    def __init__(self, code: worker.Code) -> None:
        PROCESS.enter(*code)
        relay.install()
        self.listeners = Listeners()

    async def begin(self, orders_data: bytes) -> None:
        self.listeners.begin(msgspec.msgpack.decode(orders_data, type=list[Order]))

    async def cancel(self, numbers: list[int]) -> None:
        self.listeners.cancel(numbers)

    async def take(self, after: int, seconds: float) -> bytes:
        return msgspec.msgpack.encode(await self.listeners.take(after, seconds))


class Listeners:
    """Many waits; the methods are called in one loop and return at once, but for `take`."""

    def __init__(self) -> None:
        self.lanes = Lanes(self._warn)
        self._specs: dict[int, worker.Spec] = {}
        self._classes: dict[str, concurrent.futures.Future[Any]] = {}
        self._pools: dict[int, Threads] = {}
        self._silent: dict[str, bool] = {}  # digests, and whether it was told
        self._number = 0
        self._reports: dict[int, tuple[int, Report]] = {}
        self._warnings: list[tuple[str, str]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news: asyncio.Event | None = None

    # -- calls of the coordinator --------------------------------------------------------------------------------

    def begin(self, orders: list[Order]) -> None:
        for order in orders:
            spec = order.spec
            self._specs[order.number] = spec
            name = f"listener {spec.function.name} (task {spec.name} of workflow {spec.workflow_id})"
            wait = Wait(order.number, spec.function.name, name, partial(self._report, order), self._answer)
            self.lanes.begin(wait)

    def cancel(self, numbers: list[int]) -> None:
        for number in numbers:
            self.lanes.cancel(number)
            self._specs.pop(number, None)

    async def take(self, after: int, seconds: float) -> News:
        """The news after a number, as soon as there are some; the older ones are dropped. Empty after a while."""
        if self._news is None:
            self._loop, self._news = asyncio.get_running_loop(), asyncio.Event()
        for number in [n for n in self._reports if n <= after]:
            del self._reports[number]
        if not self._reports and not self._warnings:
            self._news.clear()
            if not self._reports and not self._warnings:
                try:
                    await asyncio.wait_for(self._news.wait(), seconds)
                except TimeoutError:
                    pass
        numbers = list(self._reports)[:_BATCH]
        warnings, self._warnings = self._warnings, []
        silent = [digest for digest, told in list(self._silent.items()) if not told]
        self._silent.update(dict.fromkeys(silent, True))
        return News(numbers[-1] if numbers else after, [self._reports[n] for n in numbers], warnings, silent)

    # -- answers, from any thread --------------------------------------------------------------------------------

    def _answer(self, wait: Wait, result: Any) -> None:
        if isinstance(result, Report):
            report = result
        else:
            cancelled = isinstance(result, asyncio.CancelledError)
            error = RuntimeError(f"{wait.name} cancelled itself") if cancelled else result
            report = Report(time.time(), time.time(), failure=failure_from("event", error))
        with self.lanes.lock:
            self._specs.pop(wait.number, None)
            self._number += 1
            self._reports[self._number] = (wait.number, report)
        self._ring()

    def _warn(self, wait: Wait | None, text: str) -> None:
        logger.warning("%s", text)
        spec = self._specs.get(wait.number) if wait is not None else None
        self._warnings.append((spec.driver if spec is not None else "", text))
        self._ring()

    def _ring(self) -> None:
        if self._loop is not None and self._news is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    # -- one wait, in a lane -------------------------------------------------------------------------------------

    async def _report(self, order: Order) -> Report:
        started = time.time()
        spec = order.spec
        worker.CURRENT.set(worker.TaskContext(spec.workflow_id, spec.name, spec.attempt, spec.key, spec.metadata))
        STORE.set(spec.store)
        LIFE.set(spec.birth)
        relay.wait_output(spec.driver, spec.workflow_id, spec.name)
        try:
            value = await (self._poll(spec) if order.event is None else self._acknowledge(spec, order.event))
            return Report(started, time.time(), value=value)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit too: it must not end the loop
            return Report(started, time.time(), failure=failure_from("event", error))

    async def _poll(self, spec: worker.Spec) -> Payload:
        loader = self._loader(spec)
        listener_class = await self._class(spec, loader)
        args, kwargs = await self._in_thread(spec, lambda: worker.arguments(spec, loader, []))
        if listener_class.event_checkpointed is EventListener.event_checkpointed:
            self._silent.setdefault(spec.function.digest, False)
        poll = listener_class().poll_for_event(*args, **kwargs)
        event = await _awaitable(poll, spec, "poll_for_event")
        saver = Saver(spec.store, spec.cycle, known=loader.known)
        return await self._in_thread(spec, lambda: saver.value(event, f"the event of {spec.name}"))

    async def _acknowledge(self, spec: worker.Spec, payload: Payload) -> Payload:
        loader = self._loader(spec)
        listener_class = await self._class(spec, loader)
        event = await self._in_thread(spec, lambda: loader.value(payload))
        told = listener_class().event_checkpointed(event)
        await _awaitable(told, spec, "event_checkpointed")
        return Payload(None, None, 0)

    def _loader(self, spec: worker.Spec) -> Loader:
        return Loader(spec.store, {}, f"listener {spec.name} of workflow {spec.workflow_id}")

    # -- threads for what may block ------------------------------------------------------------------------------

    def _pool(self, spec: worker.Spec) -> Threads:
        number = zlib.crc32(spec.function.name.encode()) % _POOLS
        with self.lanes.lock:
            pool = self._pools.get(number)
            if pool is None:
                pool = self._pools[number] = Threads(_THREADS, "perdure-load")
        return pool

    async def _in_thread(self, spec: worker.Spec, work: Callable[[], T]) -> T:
        return await self._pool(spec).run(partial(contextvars.copy_context().run, work))

    async def _class(self, spec: worker.Spec, loader: Loader) -> Any:
        """The listener's class; loaded by one thread, however many wait for it."""
        digest = spec.function.digest
        found = PROCESS.functions.get(digest)
        if found is not None:
            return found
        with self.lanes.lock:
            loading = self._classes.get(digest)
            if loading is None:
                loading = self._classes[digest] = concurrent.futures.Future()
                context = contextvars.copy_context()
                self._pool(spec).start(partial(context.run, self._load_class, spec, loader, loading))
        return await asyncio.shield(asyncio.wrap_future(loading))

    def _load_class(self, spec: worker.Spec, loader: Loader, loading: concurrent.futures.Future[Any]) -> None:
        found: Any = None
        problem: BaseException | None = None
        try:
            found = load_function(spec.function, loader)
        except BaseException as error:
            problem = error
        with self.lanes.lock:
            del self._classes[spec.function.digest]
        if problem is None:
            loading.set_result(found)
        else:
            loading.set_exception(problem)


async def _awaitable(given: Any, spec: worker.Spec, method: str) -> Any:
    if not inspect.isawaitable(given):
        raise TypeError(f"{spec.function.name}.{method} is not async: write `async def {method}`")
    coroutine: Coroutine[Any, Any, Any] = given  # type: ignore[assignment]
    return await coroutine
