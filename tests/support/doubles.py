"""A store in a dictionary, a clock that a test moves, and a runner that calls plain Python functions.

They stand in for the edges of the durable core, so that its tests need neither Ray nor a disk.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.errors import AlreadyExists, NotFound, StoreError
from perdure.graph import Failure, Function, Graph, Node, Options, Payload
from perdure.runner import Job
from perdure.scheduler import Continuation, Raised, Result, Value


class DictStore:
    """`perdure.journal.JournalStore` in a dictionary. ``before`` and ``after`` are called around each create."""

    def __init__(self) -> None:
        self.data: dict[str, bytes] = {}
        self.writes: list[str] = []

    async def create_once(self, key: str, data: bytes, token: bytes) -> None:
        await asyncio.sleep(0)
        if key in self.data:
            if self.data[key][8:24] != token:
                raise AlreadyExists("exists", key=key)
            return
        self.data[key] = data
        self.writes.append(key)

    async def create_many_once(self, items: Sequence[tuple[str, bytes, bytes]]) -> list[StoreError | None]:
        out: list[StoreError | None] = []
        for item in items:
            try:
                await self.create_once(*item)
                out.append(None)
            except StoreError as error:
                out.append(error)
        return out

    async def get(self, key: str) -> bytes:
        await asyncio.sleep(0)
        if key not in self.data:
            raise NotFound("not found", key=key)
        return self.data[key]

    async def get_many(self, keys: Sequence[str]) -> list[bytes | memoryview | StoreError]:
        await asyncio.sleep(0)
        return [self.data.get(key) or NotFound("not found", key=key) for key in keys]

    async def list_keys(self, prefix: str, start_after: str | None = None) -> list[str]:
        await asyncio.sleep(0)
        return sorted(k for k in self.data if k.startswith(prefix) and (start_after is None or k > start_after))

    async def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            await self.delete(key)

    async def delete(self, key: str) -> None:
        await asyncio.sleep(0)
        self.data.pop(key, None)


@dataclass
class LoopClock:
    """Both clocks are the event loop's: virtual where the loop's time is."""

    offset: float = 1_000_000.0

    def boot(self) -> float:
        return asyncio.get_running_loop().time()

    def wall(self) -> float:
        return asyncio.get_running_loop().time() + self.offset


def packed(value: Any, refs: tuple[Payload, ...] = ()) -> Payload:
    data = pickle.dumps(value)
    return Payload(data, None, len(data), refs)


def unpacked(payload: Payload | None) -> Any:
    if payload is None:
        return None
    value = pickle.loads(payload.data) if payload.data else None
    for mark in payload.wraps:
        value = (value, None) if mark == "v" else (None, value)
    return value


@dataclass
class Plain:
    """What a plain function returns to continue with a graph."""

    graph: Graph


@dataclass
class PlainRunner:
    """Calls ``functions[name](*arguments)``; async functions are awaited. ``calls`` counts per idempotency key."""

    functions: dict[str, Callable[..., Any]]
    calls: dict[str, int] = field(default_factory=dict)
    events: dict[str, Callable[..., Awaitable[Any]]] = field(default_factory=dict)
    acknowledged: list[str] = field(default_factory=list)
    dead: bool = False

    def arguments(self, job: Job) -> list[Any]:
        literal = unpacked(job.args) or []
        values = list(literal)
        for where, payload in sorted(job.tops, key=lambda top: top[0]):
            values.insert(int(where), unpacked(payload))
        return values + [unpacked(p) for p in job.nested]

    async def run(self, job: Job) -> Result:
        self.calls[job.key] = self.calls.get(job.key, 0) + 1
        began = asyncio.get_running_loop().time()
        try:
            if job.kind == "gather":
                result: Any = self.arguments(job)
            else:
                result = self.functions[job.function.name](*self.arguments(job))
            if asyncio.iscoroutine(result):
                result = await result
        except asyncio.CancelledError:
            raise
        except Exception as error:
            failure = Failure("raised", type(error).__name__, str(error), "", packed(error))
            return Raised(failure, bool(job.options.retry_exceptions), began, asyncio.get_running_loop().time())
        ended = asyncio.get_running_loop().time()
        if isinstance(result, Plain):
            return Continuation(result.graph, began, ended)
        return Value(packed(result), began, ended, volatile=not job.persist)

    async def poll(self, job: Job) -> Result:
        self.calls[job.key] = self.calls.get(job.key, 0) + 1
        value = await self.events[job.function.name](*self.arguments(job))
        return Value(packed(value), 0.0, asyncio.get_running_loop().time())

    async def acknowledge(self, job: Job, payload: Payload) -> None:
        self.acknowledged.append(job.key)

    def none(self) -> Payload:
        return packed(None)

    async def gone(self, host: dict[str, str]) -> bool:
        return self.dead

    def forget(self, workflow_id: str) -> None:
        pass


class GraphBuilder:
    """Builds a `Graph` by function names: ``b.task("add", 1, b.task("one"))`` gives node numbers."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.functions: list[Function] = []
        self.options: list[Options] = [Options()]
        self.objects: list[Payload] = []

    def object(self, value: Any) -> Ref:
        """An object of the graph (an ObjectRef that was saved with it)."""
        self.objects.append(packed(value))
        return Ref(-len(self.objects))

    def task(self, name: str, *args: Any, kind: str = "task", seconds: float | None = None, **options: Any) -> Ref:
        digest = name
        numbers = [f.name for f in self.functions]
        if name not in numbers:
            self.functions.append(Function(name, digest, packed(name)))
        number = [f.name for f in self.functions].index(name)
        chosen = Options(**options)
        if chosen not in self.options:
            self.options.append(chosen)
        literal = [a for a in args if not isinstance(a, Ref)]
        tops = tuple((i, a.number) for i, a in enumerate(args) if isinstance(a, Ref))
        self.nodes.append(
            Node(
                name,
                kind,
                number,
                self.options.index(chosen),
                packed(literal) if literal else None,
                tops,
                seconds=seconds,
            )
        )
        return Ref(len(self.nodes) - 1)

    def graph(self, root: Ref) -> Graph:
        return Graph(self.nodes, root.number, self.functions, self.options, self.objects)


@dataclass(frozen=True)
class Ref:
    number: int
