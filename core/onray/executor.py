"""The runner behind which Ray is: attempts as Ray tasks, values in Ray's object store.

Owns how a `Job` becomes a Ray task and how Ray's failures become results; which blobs are alive as ObjectRefs; the
environments of the drivers. It unpickles nothing of the user's: functions and values pass as bytes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import ray
from ray import exceptions as rx

from perdure.clock import provably_gone
from perdure.events.waits import Waits
from perdure.graph import Failure, Payload
from perdure.onray import worker, worker_batch
from perdure.onray.batching import Batches, More, Tell
from perdure.onray.dag import Upload
from perdure.onray.failures import exception_payload, text_of
from perdure.onray.options import strategy_from_data
from perdure.onray.patience import UNREAD, StoreTrouble
from perdure.onray.process import PROCESS, boot_id
from perdure.onray.saving import VOLATILE
from perdure.runner import Context, Job, LostValues
from perdure.scheduler import Continuation, NotBegun, Raised, Result, Value

logger = logging.getLogger("perdure")

RESIDENT_BYTES: Final = 2 << 30
"""How much may be held in Ray's object store for values that are stored as blobs too."""
_ENV_RETRIES = 2
_CPUS_SECONDS: Final = 10.0

_LOST = (rx.ObjectLostError, rx.OwnerDiedError, rx.ReferenceCountingAssertionError, rx.ObjectFetchTimedOutError)
_CRASHED = (rx.WorkerCrashedError, rx.OutOfMemoryError, rx.ActorDiedError)
_NODE_GONE = (rx.NodeDiedError, rx.LocalRayletDiedError)


def environment_of(context: Context, own: dict[str, Any] | None = None) -> dict[str, Any]:
    """The runtime_env of a task: the driver's, with the task's own on top, as Ray merges a job's and a task's.

    Nothing is added to it: a worker with an environment of its own is started anew (1 s) and ended early by Ray while
    plain ones idle. What else differs between drivers, `process.Process.enter` separates inside a worker.
    """
    env = dict(context.runtime_env)
    if own:
        env_vars = {**(env.get("env_vars") or {}), **(own.get("env_vars") or {})}
        env.update(own)
        if env_vars:
            env["env_vars"] = env_vars
    return env


class Residents:
    """ObjectRefs of stored blobs, so that a value is downloaded once; the least recently used go first."""

    def __init__(self, limit: int = RESIDENT_BYTES) -> None:
        self.limit = limit
        self.bytes = 0
        self._refs: OrderedDict[str, tuple[ray.ObjectRef, int]] = OrderedDict()

    def get(self, blob: str) -> ray.ObjectRef | None:
        found = self._refs.get(blob)
        if found is None:
            return None
        self._refs.move_to_end(blob)
        return found[0]

    def add(self, blob: str, ref: ray.ObjectRef, size: int) -> None:
        self.drop(blob)
        self._refs[blob] = (ref, size)
        self.bytes += size
        while self.bytes > self.limit and len(self._refs) > 1:
            oldest = next((b for b in self._refs if not b.startswith(VOLATILE)), None)
            if oldest is None or oldest == blob:
                break
            self.drop(oldest)

    def drop(self, blob: str) -> None:
        old = self._refs.pop(blob, None)
        if old is not None:
            self.bytes -= old[1]


@dataclass(frozen=True)
class _Open:
    """A batch whose Ray task is under way: ``take(index, reply)``, and the next round's specs."""

    take: Callable[[int, Any], None]
    more: Callable[[], Awaitable[list[bytes]]]


class RayRunner:
    """Runs jobs on the cluster that this process belongs to."""

    def __init__(self, store_url: str, *, lease_seconds: float, settings: str = "") -> None:
        self.store_url = store_url
        self.settings = settings
        PROCESS.configure(settings)
        self.coordinator = ""
        self.quarter = lease_seconds / 4
        self.residents = Residents()
        self.waits = Waits(store_url, settings, self._tell)
        self.boot = boot_id()
        self.output: Any = None
        self._none = PROCESS.values.dumps(None)
        self._functions: dict[str, Any] = {}
        self._execute = ray.remote(worker.execute)
        self._execute_batch = ray.remote(worker_batch.execute_batch)
        self.batches = Batches(self._alone, self._together, self._width)
        self.active: Callable[[], set[str]] = set
        self._plain_owner = ""
        self._separate: dict[str, bool] = {}
        self._batch_number = 0
        self._open_batches: dict[str, _Open] = {}
        self._cpus = 1
        self._cpus_read = float("-inf")
        self._load = ray.remote(worker.load_blob)
        self._save = ray.remote(worker.save_uploads)
        self._volatile: dict[str, list[str]] = {}
        self._begun: dict[tuple[str, int], asyncio.Event] = {}

    def _tell(self, driver: str, text: str) -> None:
        if self.output is not None:
            self.output(driver, text, "")

    def _code(self, context: Context) -> worker.Code:
        """What `process.Process.enter` needs."""
        return context.digest, context.paths, self.settings

    def none(self) -> Payload:
        return Payload(self._none, None, len(self._none))

    # -- attempts ------------------------------------------------------------------------------------------------

    async def run(self, job: Job) -> Result:
        if _may_share(job):
            return await self.batches.run(self._kind(job), job)
        return await self._alone(job)

    def _kind(self, job: Job) -> str:
        options = msgspec.json.encode(job.options.ray, order="sorted").decode()
        return f"{job.context.digest}|{job.function.name}|{options}"

    def _width(self) -> int:
        """How many tasks of one CPU the cluster runs at once, with one more waiting for each."""
        now = time.monotonic()
        if now - self._cpus_read > _CPUS_SECONDS:
            self._cpus_read = now
            self._cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
        return 2 * self._cpus

    async def _together(self, jobs: list[Job], tell: Tell, more: More) -> None:
        """One Ray task for several attempts, and for those that its worker asks for before it ends. Where it fails as a
        whole nothing is told, and they run alone: tiny tasks with retries only, so that what ran unreported may run
        again."""
        self._batch_number += 1
        name = f"{self.coordinator}/{self._batch_number}"

        told: set[int] = set()

        def take(index: int, reply: Any) -> None:
            if index in told:  # a worker that did not hear that it was heard
                return
            told.add(index)
            result = self._result(jobs[index], reply)
            handed_back = isinstance(result, NotBegun) and result.reason == worker_batch.HANDED_BACK
            tell(index, None if handed_back else result)

        async def give() -> list[bytes]:
            new = await more()
            jobs.extend(new)
            return [self._batch_spec(job) for job in new]

        self._open_batches[name] = _Open(take, give)
        ref = self._remote(jobs[0], batch=True).remote(name, [self._batch_spec(job) for job in jobs])
        try:
            for index, reply in await ref:
                take(index, reply)
        except asyncio.CancelledError:
            _kill(ref)
            raise
        except (rx.RayError, OSError) as error:
            logger.info("a batch of %d attempts of %s failed, they run alone: %s", len(jobs), jobs[0].name, error)
        finally:
            del self._open_batches[name]

    def _batch_spec(self, job: Job) -> bytes:
        return worker.encode_spec(self._spec(job, tuple((w, p, "") for w, p in job.tops), ()))

    def batch_news(self, name: str, replies: list[tuple[int, Any]]) -> bool:
        """A worker reports part of a batch early; whether the batch is known here."""
        batch = self._open_batches.get(name)
        if batch is None:
            return False
        for index, reply in replies:
            batch.take(index, reply)
        return True

    async def batch_more(self, name: str, replies: list[tuple[int, Any]]) -> list[bytes]:
        """A worker reports a round of a batch, and gets the next one; nothing: that was all."""
        if not self.batch_news(name, replies):
            return []
        return await self._open_batches[name].more()

    async def _alone(self, job: Job) -> Result:
        for _ in range(_ENV_RETRIES):
            ref = self._submit(job)
            try:
                reply = await (ref if job.options.timeout is None else self._within(ref, job, job.options.timeout))
                return self._result(job, reply)
            except TimeoutError:
                _kill(ref)
                text = f"task {job.name} ran longer than timeout={job.options.timeout:g} s"
                return self._raised("timeout", rx.GetTimeoutError(text), retryable=True)
            except asyncio.CancelledError:
                _kill(ref)
                raise
            except rx.TaskCancelledError:
                return NotBegun("stopped")
            except _LOST as error:
                self._forget_inputs(job, error)
            except _NODE_GONE as error:
                return NotBegun(f"its node went away: {error}", preempted=True)
            except _CRASHED as error:
                return self._raised("crashed", error, retryable=True)
            except rx.RayTaskError as error:
                if isinstance(error.cause, StoreTrouble):
                    self._load_again(job)
                    return NotBegun(f"{UNREAD}: {error.cause}")
                lost = error.cause if isinstance(error.cause, _LOST) else None
                if lost is None:
                    return self._raised("crashed", error, retryable=False)
                self._forget_inputs(job, lost)
            except Exception as error:
                # the environment can't be set up, the task can't be scheduled, its options are wrong
                return self._raised("crashed", error, retryable=False)
        return NotBegun("its inputs were lost from Ray's object store and are loaded again")

    async def _within(self, ref: ray.ObjectRef, job: Job, seconds: float) -> Any:
        """The reply, or TimeoutError. The time runs from when the attempt begins, however long it was queued."""
        begun = self._begun[job.key, job.attempt] = asyncio.Event()
        reply = asyncio.ensure_future(_await(ref))
        waiting = asyncio.ensure_future(begun.wait())
        try:
            await asyncio.wait((reply, waiting), return_when=asyncio.FIRST_COMPLETED)
            return await asyncio.wait_for(reply, seconds)
        finally:
            waiting.cancel()
            reply.cancel()
            self._begun.pop((job.key, job.attempt), None)

    def begun(self, key: str, attempt: int) -> None:
        """A worker says that an attempt with a timeout has begun."""
        event = self._begun.get((key, attempt))
        if event is not None:
            event.set()

    def _submit(self, job: Job) -> ray.ObjectRef:
        tops: list[tuple[int | str, Payload | None, str]] = []
        arguments: list[ray.ObjectRef] = []
        live: dict[str, ray.ObjectRef] = {}
        for where, payload in job.tops:
            if payload.blob is None:
                self._live_inside(payload, live, job)
                tops.append((where, payload, ""))
            else:
                arguments.append(self.resident(payload, job))
                tops.append((where, None, payload.wraps))
        for payload in job.nested:
            if payload.blob is not None:
                live[payload.blob] = self.resident(payload, job)
            else:
                self._live_inside(payload, live, job)
        spec = worker.encode_spec(self._spec(job, tuple(tops), tuple(live)))
        return self._remote(job).remote(spec, list(live.values()), *arguments)

    def _spec(self, job: Job, tops: tuple[tuple[int | str, Payload | None, str], ...], live: tuple[str, ...]) -> Any:
        context = job.context
        return worker.Spec(
            job.workflow_id, job.name, job.attempt, job.key, job.kind, job.function, job.args, tops, job.nested, live,
            job.persist, job.options.retry_exceptions, self.store_url, job.cycle, self.coordinator, self.boot,
            job.submitted, self.quarter, self._code(context), job.metadata, context.driver, not _ends_worker(job),
            job.options.timeout is not None,
        )  # fmt: skip

    def _live_inside(self, payload: Payload, live: dict[str, ray.ObjectRef], job: Job) -> None:
        for inner in payload.refs:
            if inner.blob is not None:
                live[inner.blob] = self.resident(inner, job)
            else:
                self._live_inside(inner, live, job)

    def resident(self, payload: Payload, job: Job) -> ray.ObjectRef:
        """An ObjectRef of a blob's value (without its wraps): the live one, or one from a load task."""
        assert payload.blob is not None
        ref = self.residents.get(payload.blob)
        if ref is None:
            if payload.blob.startswith(VOLATILE):
                raise LostValues((payload.blob,))
            live: dict[str, ray.ObjectRef] = {}
            self._live_inside(payload, live, job)
            plain = Payload(None, payload.blob, payload.size, payload.refs)
            options = {"num_cpus": 0, "name": "perdure.load", "runtime_env": environment_of(job.context)}
            ref = self._load.options(**options).remote(
                msgspec.msgpack.encode(plain), self.store_url, self._code(job.context), list(live.items())
            )
            self.residents.add(payload.blob, ref, payload.size)
        return ref

    def _forget_inputs(self, job: Job, error: BaseException) -> None:
        """An input's ref is dead (its node or owner went away): what is stored is loaded anew."""
        blobs = self._inputs(job)
        for blob in blobs:
            self.residents.drop(blob)
        logger.info("task %s of %s lost an input: %s", job.name, job.workflow_id, error)
        if lost := [blob for blob in blobs if blob.startswith(VOLATILE)]:
            raise LostValues(tuple(lost))

    def _load_again(self, job: Job) -> None:
        """A load task may have failed: the refs of what is stored are forgotten."""
        for blob in self._inputs(job):
            if not blob.startswith(VOLATILE):
                self.residents.drop(blob)

    @staticmethod
    def _inputs(job: Job) -> list[str]:
        return [blob for payload in [*(p for _, p in job.tops), *job.nested] for blob in payload.blobs()]

    def _remote(self, job: Job, *, batch: bool = False) -> Any:
        key = f"{batch}|{self._kind(job)}"
        function = self._functions.get(key)
        if function is None:
            options = dict(job.options.ray)
            own = options.pop("runtime_env", None)
            if "scheduling_strategy" in options:
                options["scheduling_strategy"] = strategy_from_data(options["scheduling_strategy"])
            calls = options.pop("max_calls", None)
            env = self._separated(job.context, environment_of(job.context, own))
            if env:
                options["runtime_env"] = env
            name = job.function.name.rsplit(".", 1)[-1]
            body = self._execute_batch if batch else self._execute
            if _ends_worker(job):  # as Ray does for GPU tasks, so that their memory is freed
                body = ray.remote(max_calls=calls or 1)(worker.execute)
            function = body.options(name=name, max_retries=0, **options)
            if len(self._functions) > 10_000:
                self._functions.clear()
            self._functions[key] = function
        return function

    def _separated(self, context: Context, env: dict[str, Any]) -> dict[str, Any]:
        """Drivers that are active at the same time get worker processes of their own, as Ray's jobs do; one that comes
        alone takes the plain workers over (`process.Process.enter`), which costs it no new process."""
        if context.runtime_env:
            return env
        if context.digest not in self._separate:
            owner = self._plain_owner
            self._separate[context.digest] = owner != context.digest and owner in self.active()
            if not self._separate[context.digest]:
                self._plain_owner = context.digest
        if self._separate[context.digest]:
            env_vars = {**(env.get("env_vars") or {}), "PERDURE_DRIVER": context.digest}
            return {**env, "env_vars": env_vars}
        return env

    def _result(self, job: Job, reply: Any) -> Result:
        made: list[tuple[str, ray.ObjectRef]] = []
        if isinstance(reply, tuple):
            reply, made = reply
        report = worker.decode_report(reply)
        if report.output and self.output is not None:
            self.output(job.context.driver, report.output, job.workflow_id)
        if report.not_begun:
            if report.not_begun.startswith(UNREAD):
                self._load_again(job)
            return NotBegun(report.not_begun)
        sizes = {p.blob: p.size for p in _tree(report.value)} if report.value is not None else {}
        for blob, ref in made:
            self.residents.add(blob, ref, sizes.get(blob, 0))
        if report.failure is not None:
            return Raised(report.failure, report.retryable, report.started, report.ended)
        if report.graph is not None:
            return Continuation(report.graph, report.started, report.ended, report.graph_blob)
        assert report.value is not None
        if not job.persist:
            names = [b for b in report.value.blobs() if b.startswith(VOLATILE)]
            self._volatile.setdefault(job.workflow_id, []).extend(names)
        return Value(report.value, report.started, report.ended, volatile=not job.persist)

    def _raised(self, kind: str, error: BaseException, *, retryable: bool) -> Raised:
        text = text_of(error)
        failure = Failure(kind, type(error).__name__, text, "", exception_payload(error, text))
        return Raised(failure, retryable)

    # -- events --------------------------------------------------------------------------------------------------

    async def poll(self, job: Job) -> Result:
        return await self.waits.poll(job, environment_of(job.context))

    async def acknowledge(self, job: Job, payload: Payload) -> None:
        await self.waits.acknowledge(job, payload, environment_of(job.context))

    # -- the rest ------------------------------------------------------------------------------------------------

    async def save(self, uploads: list[Upload], context: Context, cycle: int) -> list[Payload]:
        """Store what a driver's graph needs before it is created; large values pass this process by. ``cycle``: one
        that the caller holds until a record names them, or never will (B2)."""
        options = {"num_cpus": 0, "name": "perdure.save", "runtime_env": environment_of(context)}
        data, made = await self._save.options(**options).remote(uploads, self.store_url, cycle, self._code(context))
        payloads = msgspec.msgpack.decode(data, type=list[Payload])
        sizes = {p.blob: p.size for payload in payloads for p in _tree(payload)}
        for blob, ref in made:
            self.residents.add(blob, ref, sizes.get(blob, 0))
        return payloads

    async def gone(self, host: dict[str, str]) -> bool:
        if provably_gone(host):
            return True
        node = host.get("node")
        if not node or host.get("cluster") != cluster_id():
            return False
        nodes = await asyncio.to_thread(ray.nodes)
        return any(n["NodeID"] == node and not n["Alive"] for n in nodes)

    def forget(self, workflow_id: str) -> None:
        for blob in self._volatile.pop(workflow_id, ()):
            self.residents.drop(blob)


def cluster_id() -> str:
    """An id of this Ray cluster, "" where Ray does not tell."""
    try:
        session = str(ray._private.worker.global_worker.node.session_name)
        return f"{ray.get_runtime_context().gcs_address}/{session}"
    except AttributeError:
        return ""


def _ends_worker(job: Job) -> bool:
    return bool(job.options.ray.get("max_calls") or job.options.ray.get("num_gpus"))


def _may_share(job: Job) -> bool:
    """Whether an attempt may travel with others: all its data inline, no limit on its time, and allowed to run twice
    where a whole batch is lost."""
    if job.options.timeout is not None or job.options.max_retries == 0 or not job.persist or _ends_worker(job):
        return False
    payloads = [job.args, job.function.payload, *(p for _, p in job.tops), *job.nested]
    return all(p is None or (p.blob is None and not p.refs) for p in payloads)


def _tree(payload: Payload) -> list[Payload]:
    out = [payload]
    for inner in payload.refs:
        out += _tree(inner)
    return out


async def _await(ref: ray.ObjectRef) -> Any:
    return await ref


def _kill(ref: ray.ObjectRef) -> None:
    try:
        ray.cancel(ref, force=True)
    except Exception as error:
        logger.debug("cancel: %s", error)
