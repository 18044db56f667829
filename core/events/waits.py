"""The coordinator's side of users' event listeners: hosts, and the orders that are out.

Owns the host actors, one per environment (see `listener_host`), made when needed and ended when idle; that each
order is answered once, also when its host dies; retries of listeners that raise. The coordinator never loads a
listener's code. A few calls serve any number of waits: orders go in batches, one long poll brings all news.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final

import msgspec
import ray
from ray import exceptions as rx

from perdure.events.listener_host import News, Order
from perdure.graph import Failure, Payload
from perdure.onray import worker
from perdure.onray.failures import exception_payload, text_of
from perdure.onray.worker import Report
from perdure.runner import Job
from perdure.scheduler import Raised, Result, Value

logger = logging.getLogger("perdure")

RETRY_FIRST: Final = 0.5
RETRY_LONGEST: Final = 30.0
IDLE_SECONDS: Final = 60.0
_NEWS_SECONDS: Final = 20.0
_SILENT_SECONDS: Final = 30.0
"""A host that was there and doesn't answer for so long is taken for dead (code that never lets go of the GIL)."""
_SLOW_START: Final = 30.0
_DEATHS_SECONDS: Final = 300.0
_BATCH: Final = 500


class HostDied(Exception):
    """The host of this order is gone. ``alone``: it hosted this class of listeners only."""

    def __init__(self, reason: str, alone: bool) -> None:
        super().__init__(reason)
        self.alone = alone


class _Host:
    """One host actor. `ask` and it lives; without orders for `IDLE_SECONDS` it ends."""

    def __init__(self, waits: Waits, key: tuple[str, str], make: Callable[[], Any]) -> None:
        self.waits = waits
        self.key = key
        self.actor = make()
        self.over = False
        self._number = 0
        self._orders: dict[int, tuple[Order, asyncio.Future[Report]]] = {}
        self._unsent: list[int] = []
        self._withdrawn: list[int] = []
        self._sending = False
        waits.spawn(self._serve())

    async def ask(self, spec: worker.Spec, event: Payload | None = None) -> Report:
        """The report of one order. Cancelling withdraws it. Raises HostDied."""
        self._number += 1
        number = self._number
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._orders[number] = (Order(number, spec, event), future)
        self._unsent.append(number)
        self._send_soon()
        try:
            return await future
        finally:
            if self._orders.pop(number, None) is not None:
                self._withdrawn.append(number)
                self._send_soon()

    def _send_soon(self) -> None:
        if not self._sending and not self.over:
            self._sending = True
            self.waits.spawn(self._send())

    async def _send(self) -> None:
        """What has gathered, in order: orders, then withdrawals."""
        await asyncio.sleep(0)
        self._sending = False
        unsent, self._unsent = self._unsent, []
        withdrawn, self._withdrawn = self._withdrawn, []
        calls = []
        for at in range(0, len(unsent), _BATCH):
            orders = [self._orders[n][0] for n in unsent[at : at + _BATCH] if n in self._orders]
            calls.append(self.actor.begin.remote(msgspec.msgpack.encode(orders)))
        if withdrawn:
            calls.append(self.actor.cancel.remote(withdrawn))
        for call in calls:
            try:
                await call
            except rx.RayError as error:
                if not self.over:
                    logger.debug("a call to a listener host: %s", error)  # the long poll finds out too

    async def _serve(self) -> None:
        try:
            await self._take_news()
            reason = ""
        except TimeoutError:
            reason = f"it did not answer for {_SILENT_SECONDS:g} s (code that never lets go of the GIL?)"
            self.waits.crashed(self.key[0], hung=True)
        except rx.RayError as error:
            reason = str(error)
            self.waits.crashed(self.key[0], hung=False)
        self.over = True
        self.waits.forget(self)
        try:
            ray.kill(self.actor, no_restart=True)
        except Exception as error:
            logger.debug("end of a listener host: %s", error)
        if reason and self._orders:
            logger.warning("a listener host died, its %d waits begin again: %s", len(self._orders), reason)
        for _, future in list(self._orders.values()):
            if not future.done():
                future.set_exception(HostDied(reason, alone=bool(self.key[1])))
                future.exception()

    async def _take_news(self) -> None:
        """Until nothing was asked for a while. Raises RayError or TimeoutError where the host is gone."""
        answer = await self._first(self.actor.take.remote(0, 0.0))
        busy = time.monotonic()
        while True:
            news = msgspec.msgpack.decode(answer, type=News)
            for number, report in news.reports:
                order = self._orders.pop(number, None)
                if order is not None and not order[1].done():
                    order[1].set_result(report)
            for driver, text in news.warnings:
                logger.warning("%s", text)
                self.waits.output(driver, f"(perdure) {text}\n")
            self.waits.silent.update(news.silent)
            if self._orders or news.reports:
                busy = time.monotonic()
            elif time.monotonic() - busy > IDLE_SECONDS:
                return
            call = self.actor.take.remote(news.number, _NEWS_SECONDS)
            answer = await asyncio.wait_for(_await(call), _NEWS_SECONDS + _SILENT_SECONDS)

    async def _first(self, ref: ray.ObjectRef) -> bytes:
        """The first news: an environment may take minutes to set up, but not in silence."""
        began = time.monotonic()
        call = asyncio.ensure_future(_await(ref))
        while True:
            done, _ = await asyncio.wait([call], timeout=_SLOW_START)
            if done:
                answer: bytes = call.result()
                return answer
            logger.warning(
                "listeners have waited for %d s for a process to run in; their runtime_env is being set up, or Ray "
                "can't start it (see the newest worker's .err file in Ray's logs)", time.monotonic() - began,
            )  # fmt: skip


class Waits:
    """All waits for users' events of this coordinator. ``output`` gets (driver, text) that concerns a driver's
    listeners."""

    def __init__(self, store_url: str, settings: str, output: Callable[[str, str], None]) -> None:
        self.store_url = store_url
        self.settings = settings
        self.output = output
        self._hosts: dict[tuple[str, str], _Host] = {}
        self._deaths: dict[str, float] = {}
        self._apart: set[str] = set()
        self.silent: set[str] = set()
        """Digests of listener classes whose sources need not be told; it spares a call for each event."""
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- hosts ---------------------------------------------------------------------------------------------------

    def _host(self, job: Job, env: dict[str, Any]) -> _Host:
        digest = job.context.digest
        key = (digest, job.function.name if digest in self._apart else "")
        host = self._hosts.get(key)
        if host is None:
            host = self._hosts[key] = _Host(self, key, lambda: _make(job, env, self.settings))
        return host

    def forget(self, host: _Host) -> None:
        if self._hosts.get(host.key) is host:
            del self._hosts[host.key]

    def crashed(self, digest: str, *, hung: bool) -> None:
        """A host that hangs, or the second to die within minutes: some class does it. Each gets a host of its own."""
        now = time.monotonic()
        if hung or now - self._deaths.get(digest, -_DEATHS_SECONDS) < _DEATHS_SECONDS:
            self._apart.add(digest)
        self._deaths[digest] = now

    def _spec(self, job: Job) -> worker.Spec:
        context = job.context
        return worker.Spec(
            job.workflow_id, job.name, job.attempt, job.key, job.kind, job.function, job.args,
            tuple((where, payload, "") for where, payload in job.tops), job.nested, (), True,
            job.options.retry_exceptions, self.store_url, job.cycle, "", "", 0.0, 0.0,
            (context.digest, context.paths, self.settings), job.metadata, context.driver, birth=job.birth,
        )  # fmt: skip

    # -- orders --------------------------------------------------------------------------------------------------

    async def poll(self, job: Job, env: dict[str, Any]) -> Result:
        """Poll until there is an event.

        A listener that raises is tried again with backoff, as often as the task's ``max_retries`` says. A host that
        dies costs nothing but a new poll, unless only this class of listeners can have killed it.
        """
        failures, deaths, limit = 0, 0, job.options.max_retries
        while True:
            report = await self._attempt(job, env)
            if report is None:
                deaths += 1
                await asyncio.sleep(_backoff(deaths))
                continue
            if report.failure is None:
                assert report.value is not None
                return Value(report.value, report.started, report.ended)
            failures += 1
            failure = report.failure
            if 0 <= limit < failures:
                return Raised(failure, False, report.started, report.ended)
            delay = _backoff(failures)
            text = (
                f"listener {job.name} of workflow {job.workflow_id} raised ({failures} of "
                f"{limit if limit >= 0 else 'unlimited'} retries, next in {delay:g} s): {failure.type}: {failure.text}"
            )
            logger.warning("%s", text)
            self.output(job.context.driver, f"(perdure) {text[:2000]}\n")
            await asyncio.sleep(delay)

    async def _attempt(self, job: Job, env: dict[str, Any]) -> Report | None:
        """None: the host died, and it may have been another's doing."""
        began = time.time()
        try:
            return await asyncio.wait_for(self._host(job, env).ask(self._spec(job)), job.options.timeout)
        except TimeoutError:
            text = f"no event came within timeout={job.options.timeout:g} s"
            return _failed("timeout", rx.GetTimeoutError(text), began)
        except HostDied as error:
            if not error.alone:
                return None
            return _failed("crashed", rx.RaySystemError(f"the process of this listener died: {error}"), began)

    async def acknowledge(self, job: Job, payload: Payload, env: dict[str, Any]) -> None:
        """Raises what the listener raised, as text, or HostDied."""
        if job.function.digest in self.silent:
            return
        report = await self._host(job, env).ask(self._spec(job), payload)
        if report.failure is not None:
            raise RuntimeError(f"{report.failure.type}: {report.failure.text}")


def _make(job: Job, env: dict[str, Any], settings: str) -> Any:
    from perdure.events.listener_host import ListenerHost

    # on the head, as the coordinator: an actor without CPUs elsewhere would keep its node from being scaled down
    return (
        ray.remote(ListenerHost)
        .options(num_cpus=0, resources={"node:__internal_head__": 0.001}, max_restarts=0, runtime_env=env or None)
        .remote((job.context.digest, job.context.paths, settings))
    )


def _failed(kind: str, error: Exception, began: float) -> Report:
    text = text_of(error)
    failure = Failure(kind, type(error).__name__, text, "", exception_payload(error, text))
    return Report(began, time.time(), failure=failure)


def _backoff(failures: int) -> float:
    return min(RETRY_LONGEST, RETRY_FIRST * 2.0 ** min(failures - 1, 16))


async def _await(ref: ray.ObjectRef) -> Any:
    return await ref
