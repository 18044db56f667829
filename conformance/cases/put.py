"""put: replace whole or not at all, and be seen at once (S2, S4)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from pathlib import Path
from typing import Any

from perdure.conformance import clocks, judging, workload
from perdure.conformance.child import ChildContext
from perdure.conformance.counters import Counters
from perdure.conformance.observed import Violation
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import HEAD, identity_of, make_value
from perdure.errors import NotFound, StoreError

B, F = Level.BASE, Level.FULL
MIB = 2**20


@case("put-01", B, "S2")
async def replaces(t: Trial) -> None:
    """put stores under an absent key, and replaces by longer, shorter, empty and equally long values."""
    previous = b""
    for data in (b"first", b"a longer one", b"short", b"", b"x", b"y", t.bytes(MIB), b"z", t.bytes(70_000)):
        await t.store.put("k", data)
        await t.expect_value("k", data, f"put after {len(previous)} bytes")
        previous = data
    await t.store.create("c", b"created")
    await t.store.put("c", b"put")
    await t.expect_value("c", b"put", "put after create")
    t.same(await t.keys(), ["c", "k"], "keys")


async def replace_reader(
    c: ChildContext, url: str, key: str, methods: list[str], sizes: set[int], counters: str, slot: int, slots: int
) -> dict[str, int]:
    """Read one key by the named methods until told to stop; how often each saw a value. Raises Violation."""
    store = c.open(url)
    counts = dict.fromkeys(methods, 0)
    shown = Counters(slots, counters)
    stop = asyncio.Event()

    async def wait() -> None:
        await c.receive()
        stop.set()

    waiting = asyncio.create_task(wait())
    await c.send("reading")
    try:
        while not stop.is_set():
            for method in methods:
                found = await _look(store, key, method, sizes)
                if found is None:
                    raise Violation(f"S2: {method} found nothing while the key was being replaced")
                if found not in sizes:
                    raise Violation(f"S2: {method} saw {found} bytes; whole values have {sorted(sizes)}")
                counts[method] += 1
            shown.set(slot, counts[methods[0]])
            await asyncio.sleep(0.0005)
    finally:
        await waiting
    return counts


async def _look(store: Any, key: str, method: str, sizes: set[int]) -> int | None:
    """The size of the value that one method sees; -1 if its bytes are not one whole value."""
    try:
        if method == "stat":
            return int(await store.stat(key))
        if method == "list":
            async for name, size in store.list(key, limit=1):
                return int(size) if name == key else None
            return None
        if method == "range":
            head = bytes(await store.get(key, 0, 64))
            try:
                size = int(head.split(b"|")[1])
            except (ValueError, IndexError):
                return -1
            whole = make_value(head.partition(b"|")[0].decode(errors="replace"), size)[:64]
            return size if head == whole else -1
        if method == "download":
            data = b"".join([bytes(c) async for c in store.download(key)])
        else:
            data = bytes(await store.get(key))
        return -1 if identity_of(data).startswith("torn") else len(data)
    except NotFound:
        return None


async def under_readers(t: Trial, methods: list[str], sizes: list[int], readers: int, rounds: int) -> None:
    await t.store.put("k", make_value("0", sizes[0]))
    if t.facts.gap("multi_process") is not None:
        stop = asyncio.Event()
        seen: list[int | None] = []

        async def read() -> None:
            store = t.open()
            while not stop.is_set():
                for method in methods:
                    seen.append(await _look(store, "k", method, set(sizes)))
                await asyncio.sleep(0)

        task = asyncio.create_task(read())
        for n in range(rounds):
            await t.store.put("k", make_value(f"{n}", sizes[n % len(sizes)]))
            await asyncio.sleep(0)
            t.round()
        stop.set()
        await task
        t.expect(all(s in sizes for s in seen), "S2: readers see the old value or the new, whole", set(seen))
        return
    counters = Counters(readers)
    met = 0
    try:
        async with t.crew(readers) as crew:
            for slot, child in enumerate(crew):
                await child.start(replace_reader, t.url, "k", methods, set(sizes), counters.path, slot, readers)
            for child in crew:
                assert await child.message() == "reading"
            for n in range(rounds):
                before = counters.total()
                await t.store.put("k", make_value(f"{n}", sizes[n % len(sizes)]))
                met += await passed(counters, before, 1.0)
                t.round()
                if n - met > 5 + rounds // 2:
                    break
            for child in crew:
                await child.send("stop")
            counts = [await c.result() for c in crew]
    finally:
        counters.close()
    t.evidence.numbers["looks"] = sum(sum(c.values()) for c in counts)
    if met < rounds // 2:
        t.cannot(f"the readers looked during {met} of {rounds} replacements only")
    t.expect(True, "readers saw whole values only", counts)


async def passed(counters: Counters, before: int, seconds: float) -> bool:
    """Whether somebody looked since ``before``, waiting at most so long."""
    end = time.monotonic() + seconds
    while counters.total() <= before:
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.001)
    return True


@case("put-02", B, "S2", Certainty.STOCHASTIC, cost=3)
async def replaced_whole(t: Trial) -> None:
    """While 8 MiB is replaced by equally many bytes, a reader in another process sees old or new, whole."""
    size = min(8 * MIB, t.capabilities.max_value_bytes or 8 * MIB)
    await under_readers(t, ["get", "stat"], [size], 1, 12)


@case("put-03", F, "S2", Certainty.STOCHASTIC, alone=True, cost=5)
async def replaced_lengths(t: Trial) -> None:
    """While values of other lengths replace each other, readers in 3 processes see whole ones, by get, range,
    download, stat and list."""
    await under_readers(
        t, ["get", "range", "download", "stat", "list"], [HEAD, 5000, 70_000, MIB, 3 * MIB], 3, t.rounds(60, 20)
    )


@case("put-04", B, "S4", Certainty.STOCHASTIC)
async def own_reads(t: Trial) -> None:
    """100 times: what was just put is what get, stat and list of this and another instance show."""
    other = t.open()
    for n in range(100):
        data = f"{n}".encode() * (n % 7 + 1)
        await t.store.put("k", data)
        for store in (t.store, other):
            t.same(await t.value("k", store), data, "get after put")
            t.same(await t.size("k", store), len(data), "stat after put")
            t.same(await t.items("k", store), [("k", len(data))], "list after put")
        t.round()


async def seen_by_reader(c: ChildContext, url: str) -> int:
    """Answer each of the parent's questions ``(key, ways)`` with what this process sees now."""
    store = c.open(url)
    answered = 0
    while (question := await c.receive()) is not None:
        answer: dict[str, Any] = {}
        for way in question[1]:
            try:
                if way == "get":
                    answer[way] = bytes(await store.get(question[0]))
                elif way == "stat":
                    answer[way] = await store.stat(question[0])
                elif way == "list":
                    answer[way] = [item async for item in store.list(question[0])]
                else:
                    answer[way] = b"".join([bytes(x) async for x in store.download(question[0])])
            except NotFound:
                answer[way] = None
        answered += 1
        await c.send(answer)
    return answered


async def ask(child: Any, key: str, *ways: str) -> dict[str, Any]:
    """What a ``seen_by_reader`` child sees of a key."""
    await child.send((key, ways))
    return await child.message()  # type: ignore[no-any-return]


@case("put-05", F, "S4", Certainty.STOCHASTIC, needs=["multi_process"], cost=3)
async def seen_elsewhere(t: Trial) -> None:
    """A process that has read a key (get, stat, list) sees another's next put at once; 200 rounds."""
    async with t.child() as child:
        await child.start(seen_by_reader, t.url)
        for n in range(t.rounds(200, 50)):
            data = f"value {n}".encode() * (n % 3 + 1)
            await t.store.put("k", data)
            seen = await ask(child, "k", "get", "stat", "list")
            wanted = {"get": data, "stat": len(data), "list": [("k", len(data))]}
            t.expect(seen == wanted, "S4: a read that begins after a put returned sees it", seen)
            t.round()
        await child.send(None)
        await child.result()


async def follow(c: ChildContext, url: str, key: str) -> list[int]:
    """Read until the last number is there; the numbers seen, in order."""
    store, seen = c.open(url), [-1]
    await c.send("ready")
    while seen[-1] < 10**6:
        try:
            found = bytes(await store.get(key))
            if not found.isdigit():
                raise Violation(f"S2: get saw {found!r}, which nobody wrote")
            seen.append(int(found))
        except NotFound:
            seen.append(-1)
        await asyncio.sleep(0.0005)
    return seen


@case("put-06", F, "S4", Certainty.STOCHASTIC, needs=["multi_process"], cost=3)
async def never_back(t: Trial) -> None:
    """No reader goes back to an older value while one writer counts up."""
    async with t.crew(2) as crew:
        for child in crew:
            await child.start(follow, t.url, "k")
        for child in crew:
            assert await child.message() == "ready"
        for n in range(t.rounds(300, 60)):
            await t.store.put("k", f"{n}".encode())
            t.round()
        await t.store.put("k", b"1000000")
        for child in crew:
            seen = await child.result()
            back = [(a, b) for a, b in itertools.pairwise(seen) if b < a]
            t.expect(not back, "S4: values only grow", f"went back {back[:3]} in {len(seen)} reads")


@case("put-07", F, "A1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def many_writers(t: Trial) -> None:
    """8 writers of one key: its history is linearizable and one whole value is there in the end."""
    history = workload.History()
    async with t.crew(8) as crew:
        for phase in range(t.rounds(12, 4)):
            plan = workload.Plan(
                (f"k{phase}",), ("put", "put", "get"), 6, t.seed % 100_000 + phase, (HEAD, 9000, 100_000)
            )
            await workload.run_plan(crew, t.url, plan, history, offset=8 * phase)
            found = await t.value(f"k{phase}")
            t.expect(found is not None and identity_of(found) in history.sizes, "one whole value in the end", found)
            t.round()
    judging.linearizable(t, history, "A1")


@case("put-08", F, "S2")
async def failed_puts(t: Trial) -> None:
    """A refused, failing or over-size put leaves the old value (or still nothing)."""
    await t.store.put("k", b"old")
    for wrong in ("text", None, 7):
        await t.refuses(t.store.put("k", wrong), TypeError, "refused put")
    await t.refuses(t.store.put("k//k", b"x"), ValueError, "put under a bad key")

    async def failing() -> Any:
        yield b"part"
        raise LookupError("the source failed")

    await t.refuses(t.store.upload("k", failing()), LookupError, "upload of a failing source")
    await t.refuses(t.store.upload("new", failing()), LookupError, "upload of a failing source")
    limit = t.capabilities.max_value_bytes
    if limit is not None and limit < 2**28:
        await t.refuses(t.store.put("k", bytes(limit + 1)), StoreError, "over-size put")
        await t.refuses(t.store.put("new", bytes(limit + 1)), StoreError, "over-size put")
    await t.expect_value("k", b"old", "after the failures")
    await t.expect_value("new", None, "after the failures")
    await t.store.put("k", b"next")
    await t.expect_value("k", b"next", "the next put works")


async def put_with_clock(c: ChildContext, url: str, offset: float, count: int) -> float:
    clocks.shift(offset)
    store = c.open(url)
    await c.send("ready")
    for _ in range(count):
        key, data = await c.receive()
        await store.put(key, data)
        await c.send("done")
    return clocks.moved()


@case("put-09", F, "C4", needs=["multi_process"])
async def slow_clock(t: Trial) -> None:
    """A writer whose clock is five minutes behind replaces what a writer with a right clock put before."""
    async with t.child() as right, t.child() as behind, t.child() as ahead:
        crew = [(right, 0.0), (behind, -300.0), (ahead, 300.0)]
        for child, offset in crew:
            await child.start(put_with_clock, t.url, offset, 20)
        for child, _ in crew:
            assert await child.message() == "ready"
        for n in range(20):
            for i, (child, offset) in enumerate([crew[2], crew[0], crew[1]] if n % 2 else crew):
                data = f"{n}.{i}.{offset}".encode()
                await child.send(("k", data))
                await child.message()
                t.same(await t.value("k"), data, f"the later put stays (clock {offset:+.0f} s)")
            t.round()
        for child, offset in crew:
            t.fault(abs(await child.result() - offset) < 2)
    t.note(clocks.NOTE)


def folder_size(root: Path) -> tuple[int, int]:
    """Files and bytes below a folder."""
    files = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink()]
    total = 0
    for p in files:
        with contextlib.suppress(FileNotFoundError):
            total += p.stat().st_size
    return len(files), total


@case("put-10", F, "S2", cost=2)
async def no_residue(t: Trial) -> None:
    """200 replacements leave one object, and within 5 s nothing else."""
    size = 50_000
    await t.store.put("k", t.bytes(size))
    root = t.subject.local_root(t.url)
    before = folder_size(root) if root else None
    for _ in range(t.rounds(200, 50)):
        await t.store.put("k", t.bytes(size))
        t.round()
    t.same(await t.items(), [("k", size)], "objects listed")
    if root is not None and before is not None:
        end = time.monotonic() + 5
        while time.monotonic() < end:
            files, total = folder_size(root)
            if files <= before[0] + 2 and total <= before[1] + 3 * size:
                break
            await asyncio.sleep(0.05)
        files, total = folder_size(root)
        t.expect(
            files <= before[0] + 2 and total <= before[1] + 3 * size, "no residue in the folder after 5 s",
            f"{files} files, {total} bytes (before: {before})",
        )  # fmt: skip
