"""Batches: aligned with their input, item by item as good as single calls."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from perdure.conformance import names
from perdure.conformance.cases.list import fill
from perdure.conformance.child import ChildContext
from perdure.conformance.race import LEAD, Round
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import identity_of, make_value
from perdure.errors import AlreadyExists, NotFound, StoreError

B, F = Level.BASE, Level.FULL
MIB = 2**20


@case("many-01", B, "A1")
async def get_many(t: Trial) -> None:
    """get_many is aligned with its input: order, duplicates, missing keys as NotFound, the empty list."""
    for key in ("a", "b", "c", "d/e"):
        await t.store.create(key, key.encode() * 3)
    await t.store.create("empty", b"")
    t.same(await t.store.get_many([]), [], "get_many([])")
    asked = ["d/e", "missing", "a", "a", "empty", "c", "missing", "b", "a", "d"]
    found = await t.store.get_many(asked)
    t.expect(isinstance(found, list) and len(found) == len(asked), f"a list of {len(asked)}", found)
    for key, value in zip(asked, found, strict=True):
        if key in ("missing", "d"):
            t.expect(isinstance(value, NotFound), f"NotFound in the place of {key!r}", value)
            t.same(getattr(value, "key", None), key, "the key in the error")
        else:
            t.same(bytes(value), b"" if key == "empty" else key.encode() * 3, f"value of {key!r}")
    await t.refuses(t.store.get_many(["a", "b//c"]), ValueError, "get_many with a bad key")
    found = await t.store.get_many(("b", "a"))
    t.same([bytes(v) for v in found], [b"bbb", b"aaa"], "get_many of a tuple")


@case("many-02", B, "S1")
async def create_many(t: Trial) -> None:
    """create_many with the first, middle or last key existing stores the others, and its results are aligned."""
    t.same(await t.store.create_many([]), [], "create_many([])")
    for n, existing in enumerate([{0}, {3}, {6}, {0, 3, 6}, set(range(7)), set()]):
        keys = [f"m{n}/{i}" for i in (5, 2, 6, 0, 3, 1, 4)]
        for i in existing:
            await t.store.create(keys[i], b"old")
        results = await t.store.create_many([(k, k.encode()) for k in keys])
        t.expect(isinstance(results, list) and len(results) == 7, "a list of 7", results)
        for i, (key, result) in enumerate(zip(keys, results, strict=True)):
            if i in existing:
                t.expect(isinstance(result, AlreadyExists), f"AlreadyExists in the place of {key!r}", result)
                t.same(getattr(result, "key", None), key, "the key in the error")
                t.same(await t.value(key), b"old", "an existing value is unchanged")
            else:
                t.expect(result is None, f"None in the place of {key!r}", result)
                t.same(await t.value(key), key.encode(), "a new value is stored")
    results = await t.store.create_many([("twice", b"1"), ("twice", b"2")])
    winners = [r for r in results if r is None]
    t.expect(len(winners) == 1, "a key twice in one batch is created once", results)
    await t.refuses(t.store.create_many([("ok", b"x"), ("bad//key", b"x")]), ValueError, "a bad key")
    t.same(await t.value("ok"), None, "nothing is stored by a refused batch")


async def creating_many(store: Any, items: list[tuple[str, bytes]]) -> list[bool]:
    return [r is None for r in await store.create_many(items)]


@case("many-03", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=3)
async def overlapping_sets(t: Trial) -> None:
    """4 processes create overlapping sets of keys: each key has one winner, and its bytes."""
    async with t.crew(4) as crew:

        def items(n: int, i: int, k: int) -> tuple[list[tuple[str, bytes]]]:
            keys = [f"r{n}/{j:02}" for j in range(24) if (j + i) % 4 != 3]
            if i % 2:
                keys.reverse()
            return ([(key, make_value(f"{i}.{key}", 40 + i)) for key in keys],)

        async def judge(done: Round) -> None:
            winners: dict[str, list[int]] = {}
            for a in done.attempts:
                t.expect(a.error is None, "create_many returns", repr(a.error), done.timeline())
                for (key, _), won in zip(items(done.number, a.child, 0)[0], a.result, strict=True):
                    winners.setdefault(key, []).extend([a.child] if won else [])
            for key, won in winners.items():
                t.expect(len(won) == 1, f"S1: one winner of {key}", won, done.timeline())
                t.same(identity_of(await t.value(key) or b""), f"{won[0]}.{key}", "the winner's bytes")

        await t.race(crew, creating_many, t.rounds(20, 8), items, judge)


@case("many-04", F, "A1", cost=4)
async def thousand(t: Trial) -> None:
    """1,000 items of mixed sizes are created and read in one call each, in any order."""
    items = [(f"k/{i:04}", bytes([i % 256]) * (i * 7 % 3001 if i % 100 else 300_000)) for i in range(1000)]
    t.rng.shuffle(items)
    results = await t.store.create_many(items)
    t.expect(results == [None] * 1000, "all are created", [r for r in results if r is not None][:3])
    order = items[:]
    t.rng.shuffle(order)
    found = await t.store.get_many([k for k, _ in order])
    for (key, data), value in zip(order, found, strict=True):
        t.expect(not isinstance(value, StoreError) and bytes(value) == data, f"value of {key!r}", value)
    t.same(await t.items(), sorted((k, len(d)) for k, d in items), "list")
    results = await t.store.create_many(items)
    t.expect(all(isinstance(r, AlreadyExists) for r in results), "all exist the second time", results[:3])


@case("many-05", B, "A1")
async def delete_prefix(t: Trial) -> None:
    """delete_prefix("run/1/") leaves run/10/… and run/1, gives the count, and refuses ""."""
    keys = ["run/1/a", "run/1/b/c", "run/1/d", "run/10/a", "run/2", "run-1", "other"]
    if t.capabilities.key_under_key:
        keys.append("run/1")
    for key in keys:
        await t.store.create(key, b"x")
    await t.refuses(t.store.delete_prefix(""), ValueError, 'delete_prefix("")')
    t.same(await t.keys(), names.in_order(keys), "keys after the refusal")
    t.same(await t.store.delete_prefix("run/1/"), 3, "count")
    left = [k for k in names.in_order(keys) if not k.startswith("run/1/")]
    t.same(await t.keys(), left, "keys left")
    t.same(await t.store.delete_prefix("run/1/"), 0, "count the second time")
    t.same(await t.store.delete_prefix("run/1"), len([k for k in left if k.startswith("run/1")]), "plain prefix")
    left = [k for k in left if not k.startswith("run/1")]
    t.same(await t.keys(), left, "keys left")
    t.same(await t.store.delete_prefix("other"), 1, "a prefix that is a key")
    for key in keys:
        t.same(await t.value(key) is not None, key in ("run/2", "run-1"), f"{key!r} is there")


@case("many-06", F, "A1", timeout=180, cost=8)
async def delete_many(t: Trial) -> None:
    """delete_prefix of 2,500 keys deletes all, twice is silent, and creates beside it do no harm."""
    keys = [f"d/{i:04}" for i in range(2500)]
    await fill(t, keys)
    await t.store.create("keep", b"x")
    other = t.open()

    async def beside() -> None:
        for i in range(100):
            await other.create(f"e/{i}", b"x")
            await other.create(f"d/new-{i}", b"x")

    count, _ = await asyncio.gather(t.store.delete_prefix("d/"), beside())
    t.expect(2500 <= count <= 2600, "count", count)
    left = await t.keys("d/")
    t.expect(all(k.startswith("d/new-") for k in left), "every key from before the call is gone", left[:5])
    t.same(len(await t.keys("e/")), 100, "keys created beside it")
    t.same(await t.value("keep"), b"x", "another key")
    await t.store.delete_prefix("d/")
    t.same(await t.store.delete_prefix("d/"), 0, "count the second time")


async def batch(c: ChildContext, url: str, folder: str, size: int) -> None:
    store = c.open(url)
    async for _ in store.list("warm", limit=1):
        pass
    await c.send("ready")
    await c.at(await c.receive())
    await store.create_many([(f"{folder}/{i:02}", make_value(f"{i}", size)) for i in range(40)])
    await c.send("done")
    await asyncio.sleep(30)


@case("many-07", F, "S2", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def killed(t: Trial) -> None:
    """A process killed in create_many leaves each key whole or absent (and the key can be created)."""
    size, partly = 100_000, 0
    start = time.monotonic()
    await t.store.create_many([(f"measure/{i:02}", make_value(f"{i}", size)) for i in range(40)])
    duration = time.monotonic() - start
    for n in range(12):
        async with t.child() as child:
            await child.start(batch, t.url, f"b{n}", size)
            assert await child.message() == "ready"
            await child.send(time.monotonic() + LEAD)
            await asyncio.sleep(LEAD + duration * (n + 0.5) / 12)
            await child.kill()
        await t.settle()
        there = 0
        for i in range(40):
            found = await t.value(f"b{n}/{i:02}")
            t.expect(
                found is None or (identity_of(found) == f"{i}" and len(found) == size), "S2: whole or absent", found
            )
            there += found is not None
        partly += 0 < there < 40
        t.same(len(await t.keys(f"b{n}/")), there, "listed are those that are there")
        t.round()
    t.evidence.numbers["batches cut in the middle"] = partly
