"""Simulated clusters: a coordinator, its workers, its clocks and its client of the store.

Owns how the product is wired to the simulation. A node's coordinator can be paused and killed apart from its
workers, as a Ray actor can.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import blake3
from support.doubles import Plain, packed, unpacked
from support.virtual import Process, VirtualLoop

from perdure import keys
from perdure.coordinator import Coordinator
from perdure.drive import Drive
from perdure.errors import StoreError
from perdure.graph import Failure, Payload
from perdure.guarded_store import GuardedStore
from perdure.reading import Answer
from perdure.runner import Context, Job, LostValues
from perdure.scheduler import Continuation, NotBegun, Raised, Result, Value
from simulation.server import Policy, Server, SimStore

Functions = dict[str, Callable[..., Any]]


class NodeClock:
    """Clocks of one machine: ``boot`` runs at its own rate, ``wall`` is off by some seconds."""

    def __init__(self, loop: VirtualLoop, *, rate: float = 1.0, boot: float = 0.0, skew: float = 0.0) -> None:
        self.loop, self.rate, self.offset, self.skew = loop, rate, boot, skew

    def boot(self) -> float:
        return self.loop.now * self.rate + self.offset

    def wall(self) -> float:
        return 1_700_000_000.0 + self.loop.now + self.skew


class World:
    """One store, any number of nodes, one source of luck."""

    def __init__(self, loop: VirtualLoop, functions: Functions, policy: Policy, rng: random.Random) -> None:
        self.loop = loop
        self.functions = functions
        self.rng = rng
        self.server = Server(loop, policy)
        self.oracle = self.server.oracle
        self.nodes: dict[str, Node] = {}
        self.acknowledged: list[str] = []
        self.values: dict[str, Any] = {}  # what no store keeps (checkpoint=False), by name
        self.calls: dict[str, int] = {}

    def node(self, name: str, **options: Any) -> Node:
        node = self.nodes[name] = Node(self, name, **options)
        return node

    def check(self) -> None:
        problems = self.oracle.broken + self.loop.problems
        assert not problems, "\n".join(problems[:5])


class Node:
    """One cluster."""

    def __init__(
        self,
        world: World,
        name: str,
        *,
        lease: float = 20.0,
        rate: float = 1.0,
        skew: float = 0.0,
        late: Callable[[], float] = lambda: 0.0,
        blob_from: int = 1 << 30,
        **options: Any,
    ) -> None:
        self.world, self.name, self.late, self.blob_from = world, name, late, blob_from
        self.process = Process(world.loop, name)
        self.workers = Process(world.loop, f"{name}'s workers")
        self.store = GuardedStore(SimStore(world.server, name), rng=random.Random(world.rng.getrandbits(64)))
        self.retired = False
        self.coordinator = Coordinator(
            self.store,
            SimRunner(self),
            NodeClock(world.loop, rate=rate, skew=skew, boot=world.rng.random() * 1e6),
            random.Random(world.rng.getrandbits(64)),
            lease_seconds=lease,
            host={"node": name},
            on_retired=self._retired,
            **options,
        )
        self._watch_acknowledgements()

    def _retired(self) -> None:
        self.retired = True

    def _watch_acknowledgements(self) -> None:
        journal, oracle = self.coordinator.journal, self.world.oracle
        committed = journal._committed

        def watched(log: Any, records: Any) -> None:
            sent = log.chain.in_flight
            oracle.acknowledged(log.chain.prefix, sent.number, sent.token)
            committed(log, records)

        journal._committed = watched  # type: ignore[method-assign]

    async def start(self) -> Node:
        await self.process.call(self.coordinator.start())
        return self

    async def call(self, coroutine: Any) -> Any:
        return await self.process.call(coroutine)

    async def outcome(self, met: Drive | Answer) -> Answer:
        return met if isinstance(met, Answer) else await self.call(self.coordinator.outcome(met))

    def kill(self, *, workers: bool = True) -> None:
        self.process.kill()
        # what the dead left is buried after the run; nothing of it may begin then
        self.coordinator.window.queues.clear()
        self.coordinator.window.hold()
        if workers:
            self.workers.kill()

    @property
    def gone(self) -> bool:
        return self.process.dead and self.workers.dead


class SimRunner:
    """Attempts run in the workers' process, which goes on while the coordinator is paused."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def _arguments(self, job: Job) -> list[Any]:
        values = list(unpacked(job.args) or [])
        for where, payload in sorted(job.tops, key=lambda top: top[0]):
            values.insert(int(where), self._value(payload))
        return values + [self._value(p) for p in job.nested]

    def _value(self, payload: Payload) -> Any:
        if payload.blob is None:
            return unpacked(payload)
        world = self.node.world
        data = world.server.data.get(payload.blob) or world.values.get(payload.blob)
        if data is None:
            raise LostValues((payload.blob,))
        return unpacked(Payload(data, None, payload.size, payload.refs, payload.wraps))

    async def run(self, job: Job) -> Result:
        task = self.node.workers.spawn(self._attempt(job))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def _attempt(self, job: Job) -> Result:
        node = self.node
        world, lease = node.world, node.coordinator.lease
        await asyncio.sleep(node.late())
        if not await self._may_begin(job.submitted):
            return NotBegun("the lease has run out")
        world.oracle.begins(job.workflow_id, job.birth, job.task)
        world.server.note(f"{node.name} runs {job.key} {job.name} {job.attempt}")
        began = lease.clock.wall()
        try:
            arguments = self._arguments(job)
            world.calls[job.key] = world.calls.get(job.key, 0) + 1
            result = arguments if job.kind == "gather" else world.functions[job.function.name](*arguments)
            if asyncio.iscoroutine(result):
                result = await result
        except LostValues:
            raise
        except Exception as error:
            failure = Failure("raised", type(error).__name__, str(error), "", packed(error))
            return Raised(failure, bool(job.options.retry_exceptions), began, lease.clock.wall())
        if isinstance(result, Plain):
            return Continuation(result.graph, began, lease.clock.wall())
        payload = packed(result)
        if not job.persist:
            name = f"volatile/{node.name}/{job.key}/{job.attempt}"
            assert payload.data is not None
            world.values[name] = payload.data
            payload = Payload(None, name, payload.size)
        elif payload.size >= node.blob_from:
            payload = await self._upload(job, payload)
        return Value(payload, began, lease.clock.wall(), volatile=not job.persist)

    async def _upload(self, job: Job, payload: Payload) -> Payload:
        assert payload.data is not None
        name = keys.blob(job.cycle, blake3.blake3(payload.data).hexdigest())
        while True:
            try:
                await self.node.store.put(name, payload.data)
                break
            except StoreError:
                await asyncio.sleep(1.0)
        return Payload(None, name, payload.size)

    async def _may_begin(self, submitted: float) -> bool:
        """L3, as a worker asks it."""
        coordinator, process = self.node.coordinator, self.node.process
        if 0 <= coordinator.clock.boot() - submitted <= coordinator.lease.seconds / 4:
            return True
        await asyncio.sleep(0.1)
        return not (process.paused or process.dead) and coordinator.lease.may_submit

    async def poll(self, job: Job) -> Result:
        value = self.node.world.functions[job.function.name](*self._arguments(job))
        if asyncio.iscoroutine(value):
            value = await value
        payload = packed(value)
        if payload.size >= self.node.blob_from:
            payload = await self._upload(job, payload)
        return Value(payload, 0.0, self.node.coordinator.clock.wall())

    async def acknowledge(self, job: Job, payload: Payload) -> None:
        await asyncio.sleep(0.05)
        self.node.world.acknowledged.append(job.key)

    def none(self) -> Payload:
        return packed(None)

    async def gone(self, host: dict[str, str]) -> bool:
        node = self.node.world.nodes.get(host.get("node", ""))
        return node is not None and node.gone

    def forget(self, workflow_id: str) -> None:
        pass


CONTEXT = Context()
