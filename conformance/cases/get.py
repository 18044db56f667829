"""get: exact bytes of one version, Python's slices, and no memory of absence (R1, S4)."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.conformance import resources
from perdure.conformance.cases.put import ask, seen_by_reader, under_readers
from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import HEAD
from perdure.errors import NotFound

B, F = Level.BASE, Level.FULL
MIB = 2**20


@case("get-01", B, "R1")
async def missing(t: Trial) -> None:
    """get of a missing key, and of a name that is only a folder, raises NotFound."""
    await t.store.create("a/b/c", b"x")
    for key in ("missing", "a", "a/b", "a/b/c/d", "a/b/cc", "A/b/c"):
        await t.refuses(t.store.get(key), NotFound, f"get({key!r})")
        await t.refuses(t.store.get(key, 0, 1), NotFound, f"get({key!r}, 0, 1)")
        t.same(await t.joined(key), None, f"download({key!r})")
    t.same(await t.value("a/b/c"), b"x", "the key that is there")


@case("get-02", B, "R1", Certainty.EXHAUSTIVE)
async def all_ranges(t: Trial) -> None:
    """Each range with ends in 0..20 on 17 bytes, and each end alone, is Python's slice."""
    data = bytes(range(17))
    await t.store.create("k", data)
    for start in [None, *range(21)]:
        for end in [None, *range(21)]:
            if start is not None and end is not None and start > end:
                continue
            found = bytes(await t.store.get("k", start, end))
            t.expect(found == data[start:end], f"get(17 bytes, {start}, {end}) is {data[start:end]!r}", found)


@case("get-03", B, "R1")
async def empty_ranges(t: Trial) -> None:
    """Ranges past the end and empty ranges give b""; on a missing key always NotFound."""
    await t.store.create("empty", b"")
    await t.store.create("ten", b"0123456789")
    for key, start, end in (
        ("empty", 0, None), ("empty", 0, 0), ("empty", 0, 5), ("empty", 3, None), ("empty", 3, 9), ("empty", None, 4),
        ("ten", 10, None), ("ten", 10, 20), ("ten", 11, None), ("ten", 99, 100), ("ten", 4, 4), ("ten", 0, 0),
        ("ten", 10, 10), ("ten", 2**40, None), ("ten", 2**40, 2**41), ("ten", None, 0),
    ):  # fmt: skip
        found = bytes(await t.store.get(key, start, end))
        t.expect(found == b"", f"get({key!r}, {start}, {end}) is empty", found)
        await t.refuses(t.store.get("missing", start, end), NotFound, f"get('missing', {start}, {end})")
    t.same(bytes(await t.store.get("ten", 8, 2**40)), b"89", "an end far past the end is cut")


@case("get-04", B, "R1")
async def bad_ranges(t: Trial) -> None:
    """Negative ends and start > end are ValueErrors, other types TypeErrors."""
    await t.store.create("k", b"0123456789")
    for start, end in ((-1, None), (None, -1), (-5, -1), (0, -1), (5, 4), (20, 19), (-1, 5)):
        await t.refuses(t.store.get("k", start, end), ValueError, f"get('k', {start}, {end})")
    wrong: list[tuple[Any, Any]] = [(1.0, None), (None, 2.0), ("1", None), (0, "5"), (b"0", 1)]
    for first, last in wrong:
        await t.refuses(t.store.get("k", first, last), TypeError, f"get('k', {first!r}, {last!r})")
    t.same(await t.value("k"), b"0123456789", "the value")


@case("get-05", F, "R1", Certainty.STOCHASTIC, cost=3)
async def large_ranges(t: Trial) -> None:
    """Ranges at borders of 64 KiB, 1, 5 and 8 MiB, and 200 generated ones, are Python's slices."""
    size = min(8 * MIB + 3, t.capabilities.max_value_bytes or 2**40)
    data = t.bytes(size)
    await t.store.put("k", data)
    borders = [b + d for b in (0, 65536, MIB, 5 * MIB, 8 * MIB, size) for d in (-1, 0, 1) if b + d >= 0]
    pairs = [(a, b) for a in borders for b in borders if a <= b and b - a < 200_000]
    for _ in range(200):
        start = t.rng.randrange(size + 10)
        pairs.append((start, start + int(2 ** (t.rng.random() * 18))))
        t.round()
    for start, end in pairs:
        found = await t.store.get("k", start, end)
        t.expect(found == data[start:end], f"get({size} bytes, {start}, {end})", found)
    for start in (size - 1, size - 65537, 5 * MIB):
        t.expect(await t.store.get("k", start) == data[start:], f"get(from {start})", "other bytes")


@case("get-06", B, "S4", needs=["multi_process"])
async def absence_is_not_remembered(t: Trial) -> None:
    """get misses, another process creates, get finds; both ways round, 20 keys."""
    async with t.child() as child:
        await child.start(seen_by_reader, t.url)
        for n in range(20):
            for way in ("get", "download"):
                key = f"k/{way}/{n}"
                t.expect((await ask(child, key, way))[way] is None, "not there yet", "")
                await t.store.create(key, b"now")
                t.same((await ask(child, key, way))[way], b"now", f"S4: {way} finds what it had missed")
            t.round()
        await child.send(None)
        await child.result()
        key = "other/k"
        t.same(await t.value(key), None, "not there yet")
        await child.call(_create, t.url, key)
        t.same(await t.value(key), b"theirs", "S4: get finds what it had missed")


async def _create(c: ChildContext, url: str, key: str) -> None:
    await c.open(url).create(key, b"theirs")


@case("get-07", F, "A1", Certainty.STOCHASTIC, alone=True, cost=3)
async def one_version(t: Trial) -> None:
    """get and ranged get under replacement give the bytes of one version."""
    await under_readers(t, ["get", "range"], [HEAD * 3, 300_000, 2 * MIB], 2, t.rounds(60, 20))


@case("get-08", F, "C2")
async def many_at_once(t: Trial) -> None:
    """64 gets at once of one key and of 64 keys each give their own bytes."""
    for i in range(64):
        await t.store.put(f"k{i}", f"{i}".encode() * 100)
    for _ in range(5):
        same = await asyncio.gather(*(t.store.get("k7") for _ in range(64)))
        t.expect(all(bytes(x) == b"7" * 100 for x in same), "64 gets of one key", "")
        each = await asyncio.gather(*(t.store.get(f"k{i}") for i in range(64)))
        t.expect(all(bytes(x) == f"{i}".encode() * 100 for i, x in enumerate(each)), "64 gets of 64 keys", "")
        parts = await asyncio.gather(*(t.store.get(f"k{i}", 1, 50) for i in range(64)))
        t.expect(
            all(bytes(x) == (f"{i}".encode() * 100)[1:50] for i, x in enumerate(parts)), "64 ranges of 64 keys", ""
        )
        t.round()


async def _leak(c: ChildContext, url: str, count: int) -> dict[str, int]:
    store = c.open(url)
    await store.put("k", b"x" * 10_000)

    async def some(n: int) -> None:
        for _ in range(n):
            await store.get("k")
            try:
                await store.get("missing")
            except NotFound:
                pass

    await some(300)
    grown = {"descriptors": 0, "memory": 0}
    for _ in range(2):
        fds, rss = resources.descriptors(), resources.memory()
        await some(count)
        grown = {"descriptors": resources.descriptors() - fds, "memory": resources.memory() - rss}
        # Errors are cycles, which pile up until Python collects them, once: a leak grows again.
        if grown["descriptors"] <= 8 and grown["memory"] <= 8 * MIB:
            break
    return grown


@case("get-09", F, "C5", needs=["multi_process"], cost=3)
async def no_leak(t: Trial) -> None:
    """2,000 gets, found and missed, leave descriptors and memory as they were (8 MiB allowed)."""
    async with t.child() as child:
        grown = await child.call(_leak, t.url, 2000)
    t.expect(grown["descriptors"] <= 8, "descriptors are steady", grown)
    t.expect(grown["memory"] <= 8 * MIB, "memory is steady", grown)
