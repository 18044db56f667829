"""The coordinator as a Ray actor: detached, named, one per cluster, pinned to the head.

Owns only the border: calls in, plain data out, start and restart. Every start of the process is a new coordinator;
one that was retired by another ends its process, and Ray starts a fresh one.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Sequence
from typing import Any, Final, NoReturn, TypeVar

import msgspec
import ray

import perdure
from perdure.clock import SystemClock, host_facts
from perdure.coordinator import Coordinator
from perdure.drive import Drive
from perdure.entering import Code, Submission
from perdure.errors import ClusterError, PerdureError, StoreError, WorkflowNotFoundError, WorkflowStillActiveError
from perdure.graph import decode_graph
from perdure.guarded_store import GuardedStore, answering, probe
from perdure.inspection import functions_to_run
from perdure.onray import memory, relay
from perdure.onray.dag import Upload, place_function, place_uploads
from perdure.onray.executor import RayRunner, cluster_id
from perdure.onray.outputs import Output, raise_for
from perdure.reading import Answer
from perdure.runner import Context
from perdure.state import State
from perdure.status import WorkflowStatus
from perdure.store import Store, open_store
from perdure.store_format import check_format, refuse_foreign
from perdure.value_settings import settings_from

logger = logging.getLogger("perdure")

NAME: Final = "perdure"
NAMESPACE: Final = "perdure"
PROTOCOL: Final = 1
"""Version of the calls between drivers, workers and this actor."""
CONTEXTS: Final = b"perdure"
_PREDECESSOR: Final = b"coordinator:"
_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 10.0
_ANSWER_SECONDS: Final = 8.0
"""How long the store's first answer may take, before its address is called wrong."""

T = TypeVar("T")
_READ_SECONDS: Final = 3.0
_MEMORY_SECONDS: Final = 5.0
_MEMORY_SEGMENTS: Final = 100
_LARGE_REQUEST: Final = 256 * 1024


class Config(msgspec.Struct, frozen=True):
    """How the cluster's coordinator was started; the same for all its drivers."""

    storage: str
    lease_seconds: float = 20.0
    max_running: int = -1
    max_pending: int = -1
    values: str = ""
    """`ValueSettings.encode`."""


class Request(msgspec.Struct, array_like=True, frozen=True):
    """A driver's `run`. ``graph`` is encoded; its uploads come beside it, because they hold ObjectRefs."""

    workflow_id: str
    client: str
    graph: bytes
    metadata: dict[str, Any]
    if_exists: str
    versions: tuple[str, ...] = ()


class CoordinatorActor:
    """See `Coordinator`; the methods here only translate."""

    def __init__(self, config_data: bytes) -> None:
        self.config = msgspec.msgpack.decode(config_data, type=Config)
        self.outbox = relay.Outbox()
        self.problem: PerdureError | None = None
        self.coordinator: Coordinator | None = None
        self.runner: RayRunner | None = None
        self._starting: asyncio.Lock | None = None
        self._failures = 0
        self._contexts: dict[str, Context] = {}
        self._large_request = False
        here = ray.get_runtime_context()
        self.restarted = here.was_current_actor_reconstructed
        self.ending = False
        # Ray calls nothing after a restart: so the actor calls itself
        here.current_actor.hello.remote(perdure.__version__, PROTOCOL)

    async def _ready(self) -> Coordinator:
        """The coordinator, started. A restarted one has work that waits for it: it tries for as long as it takes."""
        if self.ending:
            await self._gone()
        if self.coordinator is not None:
            return self.coordinator
        if self._starting is None:
            self._starting = asyncio.Lock()
        pause, failures = _FIRST_PAUSE, self._failures
        async with self._starting:
            if self.problem is not None and self._failures > failures:
                raise self.problem  # it failed while this call waited: no second time for the same answer
            while self.coordinator is None:
                try:
                    await self._start()
                except PerdureError as error:
                    self.problem, self._failures = error, self._failures + 1
                    if not self.restarted or not isinstance(error, StoreError):
                        raise
                    logger.warning("the restarted coordinator can't begin yet: %s", error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
        return self.coordinator

    async def _gone(self) -> NoReturn:
        """This process ends in a moment; Ray then repeats the call at the next one (`max_task_retries`)."""
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    async def _or_next(self, call: Awaitable[T]) -> T:
        """A call's result; where it fails because this coordinator was retired, the next process answers it."""
        try:
            return await call
        except ClusterError:
            if not self.ending:
                raise
            await self._gone()

    async def _start(self) -> None:
        store = open_store(self.config.storage)
        _check_hosts(store)
        settings = settings_from(self.config.values)
        guarded = GuardedStore(store, seal=settings.seal())
        async with answering(store, _ANSWER_SECONDS):
            await refuse_foreign(guarded, sealed=settings.trust == "signed")  # the probe writes
        warnings = (await probe(store)).warnings
        for warning in warnings:
            logger.warning("%s", warning)
        await check_format(guarded, sealed=settings.trust == "signed")
        runner = RayRunner(self.config.storage, lease_seconds=self.config.lease_seconds, settings=self.config.values)
        runner.output = self._output
        host = host_facts() | {
            "name": socket.gethostname(),
            "cluster": cluster_id(),
            "node": ray.get_runtime_context().get_node_id(),
        }
        coordinator = Coordinator(
            guarded,
            runner,
            SystemClock(),
            random.Random(os.urandom(32)),
            lease_seconds=self.config.lease_seconds,
            max_running=self.config.max_running,
            max_pending=self.config.max_pending,
            host=host,
            on_retired=self._retired,
        )
        await coordinator.start()
        runner.coordinator = coordinator.id
        runner.active = lambda: {drive.context.digest for drive in coordinator.drives.values()}
        self.runner = runner
        await self._recover(coordinator)
        self.coordinator = coordinator
        coordinator.spawn(self._give_back_memory(coordinator))

    async def _give_back_memory(self, coordinator: Coordinator) -> None:
        """After bursts; an idle coordinator does nothing."""
        seen = 0
        while True:
            await asyncio.sleep(_MEMORY_SECONDS)
            if coordinator.journal.segments - seen > _MEMORY_SEGMENTS or self._large_request:
                seen, self._large_request = coordinator.journal.segments, False
                memory.give_back()

    async def _recover(self, coordinator: Coordinator) -> None:
        """Take over what this cluster's earlier coordinators left: they crashed, or were retired by another cluster
        that wanted only some of their workflows. Their names are in the cluster's memory: the store's list may be
        long.
        """
        from ray.experimental import internal_kv

        for key in internal_kv._internal_kv_list(_PREDECESSOR, namespace=CONTEXTS):
            name = key.removeprefix(_PREDECESSOR).decode()
            try:
                taken = await coordinator.take_over(await coordinator.watcher.roster(name), self._context)
            except Exception as error:
                logger.warning("what coordinator %s left was not taken over: %s", name[:8], error)
                continue
            internal_kv._internal_kv_del(key, namespace=CONTEXTS)
            if taken:
                logger.info("took over %d workflows of coordinator %s", len(taken), name[:8])
        own = _PREDECESSOR + coordinator.id.encode()
        internal_kv._internal_kv_put(own, b"", overwrite=True, namespace=CONTEXTS)

    def _retired(self) -> None:
        logger.warning("this coordinator has been retired by another cluster; its process ends")
        self.ending = True
        asyncio.get_running_loop().call_later(0.5, os._exit, 1)

    # -- environments --------------------------------------------------------------------------------------------

    def _context(self, digest: str) -> Context | None:
        known = self._contexts.get(digest)
        if known is None:
            from ray.experimental import internal_kv

            data = internal_kv._internal_kv_get(b"context:" + digest.encode(), namespace=CONTEXTS)
            if data is None:
                return None
            known = self._contexts[digest] = _decode_context(data)
        return known

    def _remember(self, data: bytes) -> Context:
        """A driver's environment; kept in the cluster's memory for a restart, never in the store."""
        context = _decode_context(data)
        if context.digest not in self._contexts:
            from ray.experimental import internal_kv

            internal_kv._internal_kv_put(
                b"context:" + context.digest.encode(), data, overwrite=True, namespace=CONTEXTS
            )
        self._contexts[context.digest] = context
        return context

    # -- calls of drivers ----------------------------------------------------------------------------------------

    async def hello(self, version: str, protocol: int) -> dict[str, Any]:
        """The handshake; tells which storage this cluster uses."""
        if protocol != PROTOCOL:
            raise ClusterError(
                f"this cluster's coordinator runs Perdure {perdure.__version__} (protocol {PROTOCOL}), the caller has "
                f"{version} (protocol {protocol}). Install the same version on both sides, or stop the coordinator "
                "with `perdure stop` and start it anew."
            )
        coordinator = await self._ready()
        return {
            "version": perdure.__version__,
            "storage": self.config.storage,
            "shown": coordinator.store.url,  # type: ignore[attr-defined]
            "lease_seconds": self.config.lease_seconds,
            "max_running": self.config.max_running,
            "max_pending": self.config.max_pending,
            "coordinator": coordinator.id,
            "values": self.config.values,
            "pid": os.getpid(),
        }

    async def submit(self, request_data: bytes, uploads: list[Upload], context_data: bytes) -> tuple[str, bytes]:
        """Durable on return. Gives the kind of what was met: ``driven`` or ``finished``."""
        coordinator = await self._ready()
        assert self.runner is not None
        request = msgspec.msgpack.decode(request_data, type=Request)
        self._large_request |= len(request_data) > _LARGE_REQUEST
        context = self._remember(context_data)
        graph = decode_graph(request.graph)
        ticket = coordinator.cycles.begin()
        try:
            if uploads:
                graph = place_uploads(graph, await self.runner.save(uploads, context, ticket.cycle))
            submission = Submission(
                request.workflow_id, request.client, graph, request.metadata, request.if_exists, request.versions
            )
            met = await self._or_next(coordinator.submit(submission, context, ticket))
        finally:
            ticket.leave()
        return ("driven" if isinstance(met, Drive) else "finished"), b""

    async def explain(self, workflow_id: str) -> bytes:
        from perdure.explaining import encode_facts, facts_of

        coordinator = await self._ready()
        return encode_facts(await facts_of(coordinator, coordinator.store, workflow_id))

    async def functions(self, workflow_id: str) -> bytes:
        """The functions that tasks of a workflow which are not done would run, without their code."""
        coordinator = await self._ready()
        state = await coordinator.read(workflow_id)
        return msgspec.msgpack.encode(functions_to_run(state))

    async def resume(
        self,
        workflow_id: str,
        context_data: bytes,
        seen: str = "",
        code_data: bytes = b"",
        uploads: Sequence[Upload] = (),
    ) -> str:
        """``seen``: the coordinator that the caller knew. Where it is another one now, this may be a call that Ray
        repeats, and the workflow may be running because of its first attempt. ``code_data``: functions that take the
        place of stored ones; what they need stored first is in ``uploads``.
        """
        coordinator = await self._ready()
        context = self._remember(context_data)
        code = msgspec.msgpack.decode(code_data, type=Code) if code_data else ()
        ticket = coordinator.cycles.begin()
        try:
            if uploads:
                assert self.runner is not None
                saved = await self.runner.save(list(uploads), context, ticket.cycle)
                code = tuple((digest, place_function(function, saved)) for digest, function in code)
            met = await self._or_next(coordinator.resume(workflow_id, context, code=code, ticket=ticket))
        except WorkflowStillActiveError:
            if seen and seen != coordinator.id and workflow_id in coordinator.drives:
                return "driven"
            raise
        finally:
            ticket.leave()
        return "driven" if isinstance(met, Drive) else "finished"

    async def wait(self, workflow_id: str, task_id: str | None = None, driver: str = "") -> Output:
        """The value, as an object that becomes the value where it is unpickled; raises the failure."""
        coordinator = await self._ready()
        with self.outbox.audience(workflow_id, driver):
            answer = await self._or_next(coordinator.wait(workflow_id, task_id))
        return self._output_of(answer, task_id)

    def _output_of(self, answer: Answer, task_id: str | None) -> Output:
        payload = raise_for(answer)
        assert self.runner is not None
        live = {}
        for blob in payload.blobs():
            ref = self.runner.residents.get(blob)
            if ref is not None:
                live[blob] = ref
        where = f"the output of workflow {answer.workflow_id!r}"
        return Output(payload, self.config.storage, self.config.values, where, live)

    async def status(self, workflow_id: str) -> str:
        return str(await (await self._ready()).status(workflow_id))

    async def list_all(self) -> list[tuple[str, str, float, float, str]]:
        listed = await (await self._ready()).list_all()
        return [(i, str(status), start, end, problem) for i, (status, start, end, problem) in listed.items()]

    async def metadata(self, workflow_id: str, task_id: str | None) -> dict[str, Any]:
        from perdure.inspection import metadata_of

        coordinator = await self._ready()
        status = await coordinator.status(workflow_id)
        return metadata_of(await coordinator.read(workflow_id, keep=True), status, workflow_id, task_id)

    async def describe(self, workflow_id: str) -> dict[str, Any]:
        from perdure.inspection import description_of

        coordinator = await self._ready()
        status = await coordinator.status(workflow_id)
        drive = coordinator.drives.get(workflow_id)
        running = sorted(drive.scheduler.running) if drive is not None else []
        waiting = await asyncio.to_thread(self._waiting, drive) if drive is not None else {}
        if drive is not None:
            refusals = {n: f"its source, which refused the acknowledgement: {t}" for n, t in drive.refusals.items()}
            waiting |= refusals
        state = await self._state(coordinator, workflow_id, drive)
        problem = _problem(coordinator, drive) if drive is not None else None
        return description_of(state, status, workflow_id, running, problem, waiting)

    async def _state(self, coordinator: Coordinator, workflow_id: str, drive: Drive | None) -> State:
        """All tasks with their upstream, from the store. Where that does not answer, and the workflow is driven here:
        what a drive keeps, without the upstream of finished tasks."""
        reading = coordinator.read(workflow_id, keep=True)
        if drive is None:
            return await reading
        try:
            return await asyncio.wait_for(reading, _READ_SECONDS)
        except (TimeoutError, StoreError):
            return drive.state

    def _waiting(self, drive: Drive) -> dict[int, str]:
        """Of the submitted tasks, those that no node of the cluster can run, and what they wait for."""
        from perdure.onray.resources import unmet

        nodes = ray.nodes()
        words: dict[str, str] = {}
        out = {}
        for number in sorted(drive.scheduler.running):
            task = drive.state.tasks[number]
            if task.node is None or task.node.kind != "task":
                continue
            asked = task.options.ray
            key = repr(sorted(asked.items(), key=str))
            if key not in words:
                words[key] = unmet(asked, nodes)
            if words[key]:
                out[number] = words[key]
        return out

    async def progress(self, workflow_id: str) -> dict[str, Any]:
        """Counts for a progress bar."""
        coordinator = await self._ready()
        drive = coordinator.drives.get(workflow_id)
        if drive is None:
            return {"status": str(await coordinator.status(workflow_id))}
        total = len(drive.state.tasks)
        return {
            "status": str(WorkflowStatus.RUNNING),
            "total": total,
            "done": drive.state.done,
            "running": len(drive.scheduler.running),
            "problem": _problem(coordinator, drive),
        }

    async def cancel(self, workflow_id: str, context_data: bytes) -> str:
        coordinator = await self._ready()
        return str(await self._or_next(coordinator.cancel(workflow_id, self._remember(context_data))))

    async def delete(self, workflow_id: str, seen: str = "") -> None:
        """``seen``: the coordinator that the caller knew, as in `resume`: a repeated call finds its own work done."""
        coordinator = await self._ready()
        try:
            await self._or_next(coordinator.delete(workflow_id))
        except WorkflowNotFoundError:
            if not seen or seen == coordinator.id:
                raise

    async def set_limits(self, max_running: int, max_pending: int) -> None:
        coordinator = await self._ready()
        coordinator.max_running, coordinator.max_pending = max_running, max_pending

    async def stop(self) -> None:
        """A clean end: everything is resumable at once, from any cluster."""
        if self.coordinator is not None:
            from ray.experimental import internal_kv

            await self.coordinator.stop()
            # what was stopped on purpose is not gone on with by itself
            internal_kv._internal_kv_del(_PREDECESSOR + self.coordinator.id.encode(), namespace=CONTEXTS)

    # -- calls of workers ----------------------------------------------------------------------------------------

    async def batch_news(self, name: str, replies: list[tuple[int, Any]]) -> None:
        """A worker reports part of a batch early."""
        if self.runner is not None:
            self.runner.batch_news(name, replies)

    async def batch_more(self, name: str, replies: list[tuple[int, Any]]) -> list[bytes]:
        """A worker reports a round of a batch, and asks for the next."""
        return await self.runner.batch_more(name, replies) if self.runner is not None else []

    async def may_begin(self, coordinator_id: str) -> float | None:
        """L3: the boot clock if attempts of this coordinator may begin now."""
        coordinator = self.coordinator
        if coordinator is None or coordinator.id != coordinator_id or not coordinator.lease.may_submit:
            return None
        return coordinator.clock.boot()

    async def begun(self, coordinator_id: str, key: str, attempt: int) -> None:
        """A task with a timeout begins: its time runs from now."""
        if self.runner is not None and self.runner.coordinator == coordinator_id:
            self.runner.begun(key, attempt)

    def _output(self, driver: str, text: str, workflow_id: str) -> None:
        self.outbox.add(driver, text, workflow_id)

    async def relay(self, driver: str, text: str, workflow_id: str) -> None:
        self._output(driver, text, workflow_id)

    async def output(self, driver: str, after: int, seconds: float) -> tuple[int, str]:
        """A driver's tasks' output after a number; waits up to ``seconds`` for some."""
        return await self.outbox.fetch(driver, after, seconds)

    async def leave(self, driver: str) -> None:
        """A driver ends: nothing is kept for it."""
        self.outbox.leave(driver)


def _problem(coordinator: Coordinator, drive: Drive) -> str | None:
    """Why a workflow waits that is driven here, if it does not go on by itself."""
    trouble = coordinator.store.trouble  # type: ignore[attr-defined]
    return drive.log.problem or (str(trouble) if trouble is not None else None)


def _check_hosts(store: Store) -> None:
    """A store of one machine is refused for a cluster of several."""
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and not store.capabilities.multi_host:
        raise ClusterError(
            f"{store.url} is local to one machine, but this cluster has {len(hosts)} ({', '.join(sorted(hosts)[:5])}). "
            "Use a store that all of them reach (s3://, gs://, redis://), or say that the folder is on a cluster "
            "filesystem: file:///shared/folder?multi_host=true."
        )


def encode_context(context: Context) -> bytes:
    return msgspec.msgpack.encode((context.digest, context.runtime_env, context.paths, context.driver))


def _decode_context(data: bytes) -> Context:
    digest, runtime_env, paths, driver = msgspec.msgpack.decode(
        data, type=tuple[str, dict[str, Any], tuple[str, ...], str]
    )
    return Context(digest, runtime_env, paths, driver)
