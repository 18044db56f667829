"""One seed: two or three clusters over one store, every fault that the protocol allows, then calm; then all must
have ended well.

The root seed feeds luck, clocks, faults and actors, so a seed is a run. What must always hold is checked while it
goes on (`oracle`); what must hold at the end is checked here: outputs, statuses, the stored history, and that
every workflow ends once the faults have ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from support.doubles import unpacked
from support.virtual import Dead, VirtualLoop, run_virtual

from perdure import chain as chain_module
from perdure import entering, inbox, reading
from perdure.care.collecting import Collector, Options, Report
from perdure.care.opening import Hand
from perdure.entering import Submission
from perdure.errors import (
    ClusterError,
    CorruptedError,
    FormatError,
    PerdureError,
    StoreError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.reading import Answer
from perdure.state import TERMINAL, Phase, fold
from perdure.status import WorkflowStatus
from simulation.crashes import _said
from simulation.graphs import expected, functions, random_graph
from simulation.server import Fate
from simulation.world import CONTEXT, Node, World

IDS = ("a", "b/..", "文")
LEASE = 6.0


@dataclass
class Result:
    seed: int
    trace: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()


def simulate(seed: int) -> Result:
    """Raises AssertionError, with the command that repeats the run, where something did not hold."""
    result = Result(seed)
    with _small_sizes(random.Random(seed)), _log_of_errors() as errors:
        try:
            run_virtual(lambda loop: Simulation(loop, seed, result, errors).play())
        except BaseException as error:
            error.result = result  # type: ignore[attr-defined]
            error.add_note(f"repeat it with: python -m tests.simulation {seed}")
            raise
    return result


@contextlib.contextmanager
def _small_sizes(rng: random.Random) -> Iterator[None]:
    """Bases every few segments and graphs in blobs, so that short runs trim much."""
    sizes = [
        (chain_module, "BASE_EVERY", rng.choice([2, 3, 5])),
        (chain_module, "_READ_AHEAD", rng.choice([1, 4, 10])),
        (entering, "GRAPH_INLINE", rng.choice([1000, 256 * 1024])),
        (inbox, "BELL_SECONDS", 2.0),
        (inbox, "INBOX_SECONDS", 30.0),
    ]
    old = [(module, name, getattr(module, name)) for module, name, _ in sizes]
    for module, name, value in sizes:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in old:
            setattr(module, name, value)


class _Collect(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "No space left" not in text:
            self.found.append(text)


@contextlib.contextmanager
def _log_of_errors() -> Iterator[list[str]]:
    logger, handler = logging.getLogger("perdure"), _Collect()
    before = logger.propagate, logger.level
    logger.propagate = False
    logger.setLevel(logging.ERROR)  # which also forgets what the logger has cached of levels
    logger.addHandler(handler)
    try:
        yield handler.found
    finally:
        logger.removeHandler(handler)
        logger.propagate = before[0]
        logger.setLevel(before[1])


class Faults:
    """What the network and the store do to requests; all rates are of this seed."""

    def __init__(self, rng: random.Random, end: float) -> None:
        self.rng = rng
        self.end = end
        self.now = 0.0
        self.latency = rng.choice([0.002, 0.01, 0.05])
        self.slow = rng.choice([0.0, 0.02, 0.1])
        self.lost_answer, self.lost_request, self.delayed = (rng.choice([0.0, 0.01, 0.06]) for _ in range(3))
        self.unread = rng.choice([0.0, 0.02])
        self.furthest = rng.choice([2.0, 15.0, 60.0])
        self.full = [(start, start + rng.uniform(1, 8)) for start in self._starts(rng.choice([0, 0, 1, 2]))]
        self.cut: dict[str, tuple[float, float]] = {}

    def _starts(self, count: int) -> list[float]:
        return [self.rng.uniform(0, self.end) for _ in range(count)]

    def fate(self, now: float, client: str, operation: str) -> Fate:
        rng = self.rng
        there, back = (rng.expovariate(1 / self.latency) for _ in range(2))
        if now >= self.end:
            return Fate(there=there, back=back)
        if rng.random() < self.slow:
            there += rng.uniform(0, 3)
        if rng.random() < self.slow:
            back += rng.uniform(0, 3)
        start, stop = self.cut.get(client, (0.0, 0.0))
        if start <= now < stop:
            return Fate(there=there, back=1.0, answered=False, lands=None)
        if operation == "create" and any(a <= now - 1000 < b for a, b in self.full):
            return Fate(there=there, back=back, refused=True)
        luck = rng.random()
        if operation in ("get", "list"):
            return Fate(there=there, back=back, answered=luck >= self.unread, lands=None)
        for rate, lands in (
            (self.lost_answer, 0.0),
            (self.lost_request, None),
            (self.delayed, rng.uniform(0, self.furthest)),
        ):
            if luck < rate:
                return Fate(there=there, back=rng.uniform(0.1, 2.0), answered=False, lands=lands)
            luck -= rate
        return Fate(there=there, back=back)


class Simulation:
    def __init__(self, loop: VirtualLoop, seed: int, result: Result, errors: list[str]) -> None:
        self.loop = loop
        self.rng = random.Random(seed)
        self.result = result
        self.errors = errors
        self.end = loop.now + self.rng.uniform(15, 40)
        self.faults = Faults(random.Random(self.rng.getrandbits(64)), self.end)
        self.attempts: dict[str, int] = {}
        self.world = World(
            loop,
            functions(random.Random(self.rng.getrandbits(64)), self.attempts),
            lambda client, operation, key: self.faults.fate(loop.now, client, operation),
            random.Random(self.rng.getrandbits(64)),
        )
        self.oracle = self.world.oracle
        self.expected: dict[str, Any] = {}
        self.graphs: dict[str, Any] = {}
        self.alive: list[Node] = []
        self.started = 0
        self.submitted = 0

    def count(self, what: str) -> None:
        self.result.counts[what] = self.result.counts.get(what, 0) + 1

    # -- the whole -------------------------------------------------------------------------------------------------

    async def play(self) -> None:
        rng = self.rng
        actors = [self._cluster(random.Random(rng.getrandbits(64))) for _ in range(rng.choice([1, 2, 2, 3]))]
        ids = IDS[: rng.choice([1, 1, 2, 3])]
        actors += [self._user(i, random.Random(rng.getrandbits(64))) for i in ids]
        if rng.random() < 0.5:
            actors.append(self._user(ids[0], random.Random(rng.getrandbits(64))))
        actors.append(self._reader(ids, random.Random(rng.getrandbits(64))))
        if rng.random() < 0.6:
            actors.append(self._collector(random.Random(rng.getrandbits(64))))
        tasks = [self.loop.create_task(actor) for actor in actors]
        await asyncio.sleep(self.end - self.loop.now)
        for task in tasks:
            task.cancel()
        for node in self.alive:
            node.process.go_on()
            node.workers.go_on()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        await self._end_well(ids)

    async def _end_well(self, ids: tuple[str, ...]) -> None:
        """The faults are over: a fresh cluster finishes everything, alone or with those that live."""
        node = await self._start(random.Random(self.rng.getrandbits(64)))
        before: list[int] = []
        while True:  # calls that users have given up may still begin something
            for workflow_id in ids:
                try:
                    async with asyncio.timeout(600):
                        await self._finish(node, workflow_id)
                except TimeoutError:
                    raise AssertionError(f"finish: {workflow_id} does not end, the faults have ended") from None
            await asyncio.sleep(3 * LEASE)
            lengths = [len(self.oracle.history(workflow_id).segments) for workflow_id in ids]
            if lengths == before:
                break
            before = lengths
        for workflow_id in ids:
            await self._check_end(node, workflow_id)
        listed = await node.call(node.coordinator.list_all())
        for workflow_id in ids:
            phase = self.oracle.history(workflow_id).state.phase
            seen = listed.get(workflow_id)
            want = reading.status_of(phase)
            if phase is Phase.NONE:
                assert seen is None, f"status: {workflow_id} is listed as {seen}, but it was deleted"
            else:
                assert seen is not None, f"status: {workflow_id} ({want}) is not listed"
                assert seen[0] is want, f"status: {workflow_id} is listed as {seen[0]}, but it is {want}"
        await self._check_garbage()
        self._check()
        self.result.trace = self.world.server.trace
        self.result.counts["requests"] = self.world.server.requests
        for n in self.world.nodes.values():
            n.kill()

    async def _check_garbage(self) -> None:
        """A last collection leaves nothing but what is named, and of deleted lives only entries."""
        collector = self.world.node("last collector", lease=LEASE)
        report = await collector.call(self._collect(collector, 300.0))
        if report.cycle == 0:
            return  # there is no blob
        assert not report.holding, f"garbage: held back by {report.holding}"
        named = {name for history in self.oracle.histories.values() for name in history.named}
        data = self.world.server.data
        for name in (name for name in data if name.startswith("blobs/")):
            assert name in named, f"garbage: {name} is left, and nothing names it"
        for prefix, history in self.oracle.histories.items():
            if history.segments and history.segments[-1].header.kind == "deleted":
                parts = [name for name in data if name.startswith(f"{prefix}s/")]
                assert not parts, f"garbage: {parts} are left of a deleted life"

    def _check(self) -> None:
        problems = self.oracle.broken + self.errors + self.loop.problems
        if problems:
            self.result.trace = self.world.server.trace
            raise AssertionError("\n".join(problems[:5]))

    async def _finish(self, node: Node, workflow_id: str) -> None:
        while True:
            history = self.oracle.history(workflow_id)
            if history.state.phase in (Phase.NONE, *TERMINAL):
                return
            try:
                met = await node.call(node.coordinator.resume(workflow_id, CONTEXT))
                self._check_answer(await node.outcome(met), workflow_id)
            except WorkflowStillActiveError:
                with contextlib.suppress(WorkflowNotResumableError, WorkflowNotFoundError):
                    self._check_answer(await node.call(node.coordinator.wait(workflow_id)), workflow_id)
            except (WorkflowNotFoundError, WorkflowNotResumableError):
                await asyncio.sleep(1.0)

    async def _check_end(self, node: Node, workflow_id: str) -> None:
        history = self.oracle.history(workflow_id)
        chain = node.coordinator.reader.chain(workflow_id)
        view = await node.call(chain.read())
        assert view.number == len(history.segments) - 1, f"read: {workflow_id} ends at {view.number}"
        if view.deleted:
            return
        state = fold([self.oracle.whole(record) for record in view.records], keep=True)
        assert _said(state) == _said(history.state), f"read: {workflow_id} is not what was committed"
        state.validate()
        status = await node.call(node.coordinator.status(workflow_id))
        assert status is reading.status_of(history.state.phase), f"status: {workflow_id} {status}"
        if state.phase is Phase.SUCCEEDED:
            self._check_answer(await node.call(node.coordinator.wait(workflow_id)), workflow_id)

    def _check_answer(self, answer: Answer, workflow_id: str) -> None:
        if answer.status is WorkflowStatus.SUCCESSFUL:
            if answer.payload is None:
                self.oracle.fail(f"output: {workflow_id} succeeded without one")
                return
            payload = answer.payload
            if payload.blob is not None:
                payload = type(payload)(self.world.server.data[payload.blob], None, payload.size, (), payload.wraps)
            output = unpacked(payload)
            if self.expected.get(output[0]) != output:
                self.oracle.fail(f"output: {workflow_id} gave {output!r}, expected {self.expected.get(output[0])!r}")
        elif answer.status is WorkflowStatus.FAILED:
            self.oracle.fail(f"output: {workflow_id} failed: {answer.failed_task} {answer.failure}")

    # -- actors ----------------------------------------------------------------------------------------------------

    async def _start(self, rng: random.Random) -> Node:
        self.started += 1
        late = rng.choice([0.0, 0.0, 0.5])
        node = self.world.node(
            f"n{self.started}",
            lease=LEASE,
            rate=rng.uniform(0.97, 1.03),
            skew=rng.uniform(-20, 20),
            late=lambda: rng.expovariate(1 / late) if late else 0.0,
            blob_from=rng.choice([100, 1 << 20]),
        )
        if rng.random() < 0.2:
            node.coordinator.window.size = 2
        await node.start()
        self.alive.append(node)
        return node

    async def _cluster(self, rng: random.Random) -> None:
        """A cluster whose coordinator is paused, cut off, killed, stopped and started again."""
        while True:
            try:
                node = await self._start(rng)
            except StoreError:  # the disk is full
                await asyncio.sleep(1.0)
                continue
            watching = self.loop.create_task(self._watch(node, rng.uniform(2, 10)))
            try:
                while not node.process.dead:
                    await asyncio.sleep(rng.expovariate(1 / rng.choice([2.0, 10.0])))
                    await self._trouble(node, rng)
                    if node.retired:
                        break
            finally:
                watching.cancel()
            node.kill(workers=rng.random() < 0.6)
            self.alive.remove(node)
            await asyncio.sleep(rng.choice([0.0, 1.0, 10.0]))
            node.workers.kill()

    async def _collector(self, rng: random.Random) -> None:
        """Collections one after the other, each by a process of its own; some die in the middle."""
        while True:
            await asyncio.sleep(rng.expovariate(1 / 4))
            self.started += 1
            node = self.world.node(f"g{self.started}", lease=LEASE, skew=rng.uniform(-20, 20))
            dies = self.loop.call_later(rng.uniform(0, 8), node.kill) if rng.random() < 0.4 else None
            self.count("collections")
            try:
                report = await node.call(self._collect(node, rng.choice([0.0, 10.0, 30.0])))
                self.count(f"collected {report.counts['blob']}")
            except (Dead, StoreError, CorruptedError, ClusterError):
                self.count("collections cut short")
            finally:
                if dies is not None:
                    dies.cancel()
                node.kill()

    async def _collect(self, node: Node, wait: float) -> Report:
        hand = Hand(node.coordinator)
        try:
            return await Collector(hand, Options(wait=wait), lambda item: None).run()
        finally:
            await hand.aclose()

    async def _trouble(self, node: Node, rng: random.Random) -> None:
        what = rng.choices(["pause", "freeze", "cut", "kill", "stop", "nothing"], [4, 1, 2, 2, 1, 3])[0]
        self.world.server.note(f"{node.name} {what}")
        self.count(what)
        if what in ("pause", "freeze"):
            node.process.pause()
            if what == "freeze":
                node.workers.pause()
            await asyncio.sleep(rng.choice([0.5, LEASE, 3 * LEASE]) * rng.random())
            node.process.go_on()
            node.workers.go_on()
        elif what == "cut":
            now = self.loop.now
            self.faults.cut[node.name] = (now, now + rng.choice([1.0, LEASE, 3 * LEASE]) * rng.random())
        elif what == "kill":
            node.kill(workers=rng.random() < 0.6)
        elif what == "stop":
            with contextlib.suppress(Dead):
                await node.call(node.coordinator.stop())
            node.kill()

    async def _watch(self, node: Node, every: float) -> None:
        """Take over from those that are surely dead, as a cluster does from time to time."""
        with contextlib.suppress(Dead):
            while True:
                await asyncio.sleep(every)
                with contextlib.suppress(PerdureError):
                    await node.call(self._take_over(node))

    async def _take_over(self, node: Node) -> None:
        coordinator = node.coordinator
        for name in await coordinator.watcher.coordinators():
            if name == coordinator.id or coordinator.out:
                continue
            roster = await coordinator.watcher.roster(name)
            if roster.open_ids() and await coordinator.watcher.surely_dead(roster):
                for _ in await coordinator.take_over(roster, lambda _: CONTEXT):
                    self.count("taken over")

    async def _user(self, workflow_id: str, rng: random.Random) -> None:
        """Somebody who runs, resumes, cancels, deletes and waits, on whatever cluster answers."""
        await asyncio.sleep(rng.random())
        while True:
            if not self.alive:
                await asyncio.sleep(0.5)
                continue
            node = rng.choice(self.alive)
            what = rng.choices(
                ["run", "resume", "wait", "cancel", "delete", "replace", "status"], [8, 6, 8, 1, 2, 1, 1]
            )[0]
            self.count(what)
            try:
                async with asyncio.timeout(rng.choice([1.0, 10.0, 30.0])):
                    await self._act(node, workflow_id, what, rng)
            except (CorruptedError, FormatError) as error:
                self.oracle.fail(f"read: {what} {workflow_id} on {node.name}: {error}")
            except (PerdureError, Dead, TimeoutError):
                await asyncio.sleep(rng.random())
            except asyncio.CancelledError:
                if self.loop.now >= self.end:
                    raise
                self.oracle.fail(f"cancelled: {what} of {workflow_id} on {node.name}")

    async def _act(self, node: Node, workflow_id: str, what: str, rng: random.Random) -> None:
        coordinator = node.coordinator
        history = self.oracle.history(workflow_id)
        if what in ("run", "replace"):
            self.submitted += 1
            tag = f"t{self.submitted}"
            graph = random_graph(rng, tag, rng.choice([3, 10, 30]))
            self.expected[tag] = expected(graph)
            submission = Submission(
                workflow_id, tag, graph, if_exists="replace" if what == "replace" else rng.choice(["return", "error"])
            )
            for _ in range(rng.choice([1, 1, 2])):
                met = await node.call(coordinator.submit(submission, CONTEXT))
            if rng.random() < 0.7:
                self._check_answer(await node.outcome(met), workflow_id)
        elif what == "resume":
            met = await node.call(coordinator.resume(workflow_id, CONTEXT, wait=rng.random() < 0.8))
            if rng.random() < 0.7:
                self._check_answer(await node.outcome(met), workflow_id)
        elif what == "wait":
            self._check_answer(await node.call(coordinator.wait(workflow_id)), workflow_id)
        elif what == "cancel":
            before = len(history.segments)
            status = await node.call(coordinator.cancel(workflow_id, CONTEXT))
            gone = any(s.header.kind == "deleted" for s in history.segments[before:])
            if not gone and status is not reading.status_of(history.state.phase):
                self.oracle.fail(f"status: cancel said {status}, {workflow_id} is {history.state.phase}")
        elif what == "delete":
            before = len(history.segments)
            await node.call(coordinator.delete(workflow_id))
            if not any(s.header.kind == "deleted" for s in history.segments[before:]):
                self.oracle.fail(f"delete: {workflow_id} was said to be deleted, but it was not")
        elif what == "status":
            await node.call(coordinator.status(workflow_id))

    async def _reader(self, ids: tuple[str, ...], rng: random.Random) -> None:
        """Slow readers see only states that were committed."""
        while True:
            await asyncio.sleep(rng.expovariate(1 / 2))
            if not self.alive:
                continue
            node, workflow_id = rng.choice(self.alive), rng.choice(ids)
            history = self.oracle.history(workflow_id)
            before = len(history.segments)
            try:
                async with asyncio.timeout(30):
                    view = await node.call(node.coordinator.reader.chain(workflow_id).read())
            except (CorruptedError, FormatError) as error:
                self.oracle.fail(f"read: {workflow_id} on {node.name}: {error}")
                continue
            except (ClusterError, Dead, TimeoutError):
                continue
            self.count("reads")
            if view.number < before - 1:
                self.oracle.fail(f"read: {workflow_id} was read up to {view.number}, {before - 1} was there before")
                continue
            if view.number < 0:
                continue
            if view.token != history.segments[view.number].token:
                self.oracle.fail(f"read: {workflow_id} {view.number} is not the committed segment")
                continue
            records = [record for s in history.segments[: view.number + 1] for record in s.records]
            truth = fold([self.oracle.whole(record) for record in records], keep=True)
            seen = fold([self.oracle.whole(record) for record in view.records], keep=True)
            if view.deleted:
                continue
            if _said(truth) != _said(seen):
                self.oracle.fail(f"read: {workflow_id} up to {view.number} is not what was committed")


__all__ = ["Result", "simulate"]
