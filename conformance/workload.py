"""Random concurrent calls whose history can be judged: what processes do in the linearizability cases.

Values carry their own identity and length, so that a reader can tell which write it saw and whether it saw
all of it. A worker streams each call's begin and end, so that a killed worker leaves an unknown outcome and
not a hole.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import math
import random
import time
from collections.abc import Sequence
from typing import Any

from perdure.conformance.child import ChildContext
from perdure.conformance.linear import Op
from perdure.conformance.processes import Child, ChildDied
from perdure.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable

HEAD = 40


def make_value(identity: str, size: int) -> bytes:
    """``size`` bytes (at least 40) that name their writer and their own length, and are its own throughout."""
    size = max(size, HEAD)
    head = f"{identity}|{size}|".encode()
    own = hashlib.blake2b(identity.encode(), digest_size=16).digest().replace(b"|", b"!")
    return (head + own * (size // len(own) + 1))[:size]


def identity_of(data: Any) -> str:
    """The identity of a value, or a text that no writer used if it is not whole."""
    raw = bytes(data)
    head, _, rest = raw[:HEAD].partition(b"|")
    length, _, _ = rest.partition(b"|")
    try:
        identity = head.decode()
        if int(length) == len(raw) and raw == make_value(identity, len(raw)):
            return identity
    except ValueError:
        pass
    return f"torn value of {len(raw)} bytes beginning {raw[:16]!r}"


def size_of(identity: str, size: int) -> int:
    return max(size, HEAD)


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """What one worker does. ``methods`` may repeat a name to make it more likely."""

    keys: tuple[str, ...]
    methods: tuple[str, ...]
    calls: int
    seed: int
    sizes: tuple[int, ...] = (HEAD, 200, 5000)
    reopen_every: int = 0
    retried: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Listing:
    """One list call of a worker."""

    keys: list[str]
    start: float
    end: float


async def do(store: Any, method: str, key: str, identity: str, size: int) -> tuple[str, Any]:
    """One call; how it ended and what it saw: ``ok``, ``exists``, ``unknown`` or ``nothing`` (say nothing)."""
    value = make_value(identity, size)
    try:
        if method == "create":
            await store.create(key, value)
        elif method == "create_many":
            found = (await store.create_many([(key, value)]))[0]
            if found is not None:
                raise found
        elif method == "put":
            await store.put(key, value)
        elif method == "upload":

            async def chunks() -> Any:
                yield value[: size // 2]
                yield value[size // 2 :]

            await store.upload(key, chunks())
        elif method == "delete":
            await store.delete(key)
        elif method == "stat":
            return "ok", await store.stat(key)
        elif method == "download":
            return "ok", identity_of(b"".join([bytes(c) async for c in store.download(key)]))
        elif method == "get_many":
            got = (await store.get_many([key]))[0]
            if isinstance(got, BaseException):
                raise got
            return "ok", identity_of(got)
        elif method == "range":
            return "ok", bytes(await store.get(key, 0, HEAD)).partition(b"|")[0].decode()
        else:
            return "ok", identity_of(await store.get(key))
    except AlreadyExists:
        return "exists", identity
    except NotFound:
        return "ok", None
    except StoreUnavailable:
        return "unknown", identity
    except StoreError:
        return "nothing", None
    return "ok", identity


KIND = {"upload": "put", "create_many": "create", "download": "get", "get_many": "get", "range": "get"}


async def worker(c: ChildContext, number: int, url: str, plan: Plan) -> int:
    """The child's side: ready, go, calls (each announced before and reported after), end."""
    rng = random.Random(plan.seed * 1000 + number)
    store = c.open(url)
    async for _ in store.list("warm-up", limit=1):
        pass
    await c.send("ready")
    await c.at(await c.receive())
    for i in range(plan.calls):
        if plan.reopen_every and i and i % plan.reopen_every == 0:
            await store.aclose()
            store = c.open(url)
        method, key = rng.choice(plan.methods), rng.choice(plan.keys)
        if method == "list":
            start = time.monotonic()
            try:
                keys = [k async for k, _ in store.list("")]
            except StoreUnavailable:
                continue
            await c.send(("list", Listing(keys, start, time.monotonic())))
            continue
        identity, size = f"{number}.{plan.seed}.{i}", rng.choice(plan.sizes)
        write = KIND.get(method, method) in ("create", "put", "delete")
        if write:
            await c.send(("begin", KIND.get(method, method), key, identity, size, time.monotonic()))
        start = time.monotonic()
        outcome, seen = await do(store, method, key, identity, size)
        await c.send(("end", KIND.get(method, method), key, identity, size, start, time.monotonic(), outcome, seen))
    await c.send(("over",))
    return c.recorder.count


@dataclasses.dataclass(slots=True)
class History:
    """What all workers saw. ``sizes`` maps identities to lengths, for the checker."""

    ops: list[Op] = dataclasses.field(default_factory=list)
    listings: list[Listing] = dataclasses.field(default_factory=list)
    sizes: dict[Any, int] = dataclasses.field(default_factory=dict)
    calls: int = 0

    def to_dicts(self) -> list[dict[str, Any]]:
        return [
            dataclasses.asdict(o) | {"end": None if math.isinf(o.end) else o.end, "size": self.sizes.get(o.value)}
            for o in self.ops
        ]


async def collect(child: Child, number: int, history: History, *, retried: bool = False) -> bool:
    """Read one worker's messages until it is over (True) or dead (False)."""
    pending: tuple[Any, ...] | None = None
    while True:
        try:
            message = await child.message()
        except ChildDied:
            if pending is not None:
                _, op, key, identity, size, start = pending
                value = None if op == "delete" else identity
                history.sizes[identity] = size_of(identity, size)
                history.ops.append(Op(number, op, value, start, math.inf, "unknown", key, retried))
            return False
        if message[0] == "over":
            history.calls += await child.result()
            return True
        if message[0] == "list":
            history.listings.append(message[1])
        elif message[0] == "begin":
            pending = message
        else:
            pending = None
            _, op, key, identity, size, start, end, outcome, seen = message
            if outcome == "nothing" or (outcome == "unknown" and op in ("get", "stat")):
                continue
            if op in ("create", "put"):
                history.sizes[identity] = size_of(identity, size)
                seen = identity
            elif op == "delete":
                seen = None
            finish = math.inf if outcome == "unknown" else end
            history.ops.append(Op(number, op, seen, start, finish, outcome, key, retried))


async def run_plan(
    children: Sequence[Child],
    url: str,
    plan: Plan,
    history: History,
    *,
    offset: int = 0,
    started: asyncio.Event | None = None,
) -> None:
    """Let all children work through the plan from one common instant; ``started`` is set at it."""
    for i, child in enumerate(children):
        await child.start(worker, offset + i, url, plan)
    for child in children:
        assert await child.message() == "ready"
    instant = time.monotonic() + 0.005
    for child in children:
        await child.send(instant)
    if started is not None:
        started.set()
    await asyncio.gather(*(collect(c, offset + i, history, retried=plan.retried) for i, c in enumerate(children)))
