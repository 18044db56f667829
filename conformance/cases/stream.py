"""upload and download: large values in bounded memory, invisible until done, one version (S2, V1)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from typing import Any

from perdure.conformance import resources
from perdure.conformance.cases.put import folder_size
from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import identity_of, make_value
from perdure.errors import NotFound, StoreError

B, F = Level.BASE, Level.FULL
MIB = 2**20


async def pieces(*parts: bytes) -> Any:
    for part in parts:
        yield part


@case("stream-01", B, "V1")
async def chunk_sizes(t: Trial) -> None:
    """Chunks of 0 bytes, 1, 65,537 and 5 MiB + 1, mixed, are joined in order; bytearray and views too."""
    big = t.bytes(5 * MIB + 1)
    for n, parts in enumerate([
        [b"", b"a", b"", b"b"], [b"x"] * 300, [t.bytes(65_537)] * 3, [big, b"", b"end"],
        [b"a", big[:MIB], b"z" * 70_000],
    ]):  # fmt: skip
        await t.store.upload(f"u/{n}", pieces(*parts))
        joined = b"".join(parts)
        t.expect(await t.value(f"u/{n}") == joined, "get gives the joined chunks", f"{len(joined)} bytes uploaded")
        t.same(await t.size(f"u/{n}"), len(joined), "stat")
    buffer = bytearray(b"1234")

    async def reused() -> Any:
        yield memoryview(buffer)
        buffer[:] = b"5678"
        yield buffer

    await t.store.upload("reused", reused())
    t.same(await t.value("reused"), b"12345678", "a source that reuses its buffer")
    await t.store.upload("u/0", pieces(b"replaced"))
    await t.expect_value("u/0", b"replaced", "upload replaces like put")


@case("stream-02", B, "V1")
async def nothing(t: Trial) -> None:
    """No chunk, or only empty ones, makes a value of 0 bytes."""
    await t.store.upload("none", pieces())
    await t.expect_value("none", b"", "upload of no chunk")
    await t.store.upload("empty", pieces(b"", b"", b""))
    await t.expect_value("empty", b"", "upload of empty chunks")
    await t.store.put("k", b"x")
    await t.store.upload("k", pieces())
    await t.expect_value("k", b"", "upload of no chunk replaces")


class SourceFailed(Exception):
    """What the failing source of stream-03 raises."""


@case("stream-03", B, "S2")
async def failing_source(t: Trial) -> None:
    """A source that raises after 0, 1 or 3 chunks: its error comes out, the old value or nothing stays."""
    for count in (0, 1, 3):
        for size in (10, 3 * MIB):

            async def failing(count: int = count, size: int = size) -> Any:
                for _ in range(count):
                    yield b"n" * size
                raise SourceFailed(f"after {count}")

            error = await t.refuses(t.store.upload("new", failing()), SourceFailed, "the source's own error")
            t.same(str(error), f"after {count}", "its text")
            await t.expect_value("new", None, "nothing was there before")
            await t.store.put("old", b"old")
            await t.refuses(t.store.upload("old", failing()), SourceFailed, "the source's own error")
            await t.expect_value("old", b"old", "the old value stays")
            t.same(await t.keys(), ["old"], "keys")

    async def wrong() -> Any:
        yield "text"

    await t.refuses(t.store.upload("new", wrong()), TypeError, "a chunk that is a str")
    await t.expect_value("new", None, "nothing is stored")


@case("stream-04", B, "S2")
async def invisible_until_done(t: Trial) -> None:
    """A value is invisible (or the old one) until upload returns."""
    other = t.open()
    await t.store.put("old", b"old")
    for key, before in (("new", None), ("old", b"old")):
        looked = 0

        async def chunks(key: str = key, before: bytes | None = before) -> Any:
            nonlocal looked
            for _ in range(6):
                yield b"n" * (2 * MIB)
                await t.expect_value(key, before, "before the upload has ended", other)
                looked += 1

        await t.store.upload(key, chunks())
        t.same(looked, 6, "looks during the upload")
        t.same(await t.size(key, other), 12 * MIB, "after the upload")


@case("stream-05", B, "A1")
async def download(t: Trial) -> None:
    """download gives chunks that join to the value; a missing key is NotFound before the first chunk."""
    for size in (0, 1, 65_536, 5 * MIB + 1):
        data = t.bytes(size)
        await t.store.put(f"d/{size}", data)
        t.expect(await t.joined(f"d/{size}") == data, f"download of {size} bytes joins to the value", "other bytes")
    count = 0
    try:
        async for _ in t.store.download("missing"):
            count += 1
        t.fail("download of a missing key raises NotFound", f"it ended after {count} chunks")
    except NotFound:
        t.same(count, 0, "chunks before NotFound")


async def large(c: ChildContext, url: str, size: int) -> dict[str, Any]:
    """Upload ``size`` bytes and download them again, with the peak of memory over idle for each."""
    store = c.open(url)
    await store.put("warm", b"x" * MIB)
    await store.get("warm")
    block = hashlib.shake_128(b"block").digest(MIB)
    sent, got = hashlib.blake2b(), hashlib.blake2b()

    async def chunks() -> Any:
        for i in range(size // MIB):
            part = i.to_bytes(8) + block[8:]
            sent.update(part)
            yield part

    resources.reset_peak()
    idle = resources.memory()
    await store.upload("large", chunks())
    up = resources.peak() - idle
    resources.reset_peak()
    length = 0
    async for chunk in store.download("large"):
        got.update(chunk)
        length += len(chunk)
    down = resources.peak() - idle
    return {"up": up, "down": down, "equal": sent.digest() == got.digest(), "length": length}


@case("stream-06", F, "V1", needs=["multi_process"], alone=True, timeout=180, cost=20)
async def gigabyte(t: Trial) -> None:
    """1 GiB goes both ways in at most 64 MiB more memory, with the same hash."""
    size = min(1024 * MIB, (t.capabilities.max_value_bytes or 2**40) // MIB * MIB)
    if t.facts.latency > 0.02:
        size = min(size, 256 * MIB)
        t.note("256 MiB instead of 1 GiB: the store is far away")
    async with t.child() as child:
        seen = await child.call(large, t.url, size)
    t.same(seen["length"], size, "bytes downloaded")
    t.expect(seen["equal"], "the same hash", seen)
    for way in ("up", "down"):
        t.evidence.numbers[f"{way}_MiB"] = round(seen[way] / MIB, 1)
        t.expect(seen[way] <= 64 * MIB, f"at most 64 MiB over idle on the way {way}", f"{seen[way] / MIB:.0f} MiB")


@case("stream-07", F, "S2", Certainty.STOCHASTIC, cost=2)
async def two_uploads(t: Trial) -> None:
    """Two uploads of one key at once leave one of both values, whole."""
    for n in range(8):
        values = [make_value(f"{i}.{n}", 3 * MIB + i) for i in range(2)]

        async def chunks(data: bytes) -> Any:
            for start in range(0, len(data), 400_000):
                yield data[start : start + 400_000]
                await asyncio.sleep(0)

        stores = [t.store, t.store if n % 2 else t.open()]
        await asyncio.gather(*(s.upload("k", chunks(v)) for s, v in zip(stores, values, strict=True)))
        found = await t.value("k")
        t.expect(found in values, "S2: one of both values, whole", identity_of(found or b""))
        t.same(await t.keys(), ["k"], "keys")
        t.round()


@case("stream-08", F, "S2", Certainty.STOCHASTIC, cost=2)
async def replaced_during_download(t: Trial) -> None:
    """A value replaced during its download: one version whole, or a StoreError."""
    other = t.open()
    for n, (size, after) in enumerate(
        [(9 * MIB, 9 * MIB), (9 * MIB, 100), (9 * MIB, 12 * MIB), (3 * MIB, 3 * MIB)] * 2
    ):
        old, new = make_value(f"old{n}", size), make_value(f"new{n}", after)
        await t.store.put("k", old)
        chunks: list[bytes] = []
        failed = False
        try:
            async for chunk in t.store.download("k"):
                if not chunks:
                    await other.put("k", new)
                chunks.append(bytes(chunk))
        except StoreError:
            failed = True
        joined = b"".join(chunks)
        t.expect(failed or joined in (old, new), "S2: one version or a StoreError", identity_of(joined))
        t.same(await t.value("k", other), new, "the new value")
        t.round()


@case("stream-09", F, "C1", Certainty.STOCHASTIC, cost=4)
async def cancelled(t: Trial) -> None:
    """An upload cancelled at six points leaves nothing visible and no residue that stays."""
    root = t.subject.local_root(t.url)
    await t.store.put("other", b"x")
    before = folder_size(root)[1] if root else 0
    for point in range(6):
        reached = asyncio.Event()

        async def chunks(point: int = point, reached: asyncio.Event = reached) -> Any:
            for i in range(6):
                if i == point:
                    reached.set()
                    await asyncio.sleep(30)
                yield b"u" * (2 * MIB)

        task = asyncio.create_task(t.store.upload("k", chunks()))
        await t.within(30, reached.wait(), "the source is read")
        task.cancel()
        start = time.monotonic()
        await t.within(10, asyncio.wait([task]), "the cancelled upload ends")
        t.expect(time.monotonic() - start < 1.5, "C1: cancelled within 1 s", f"{time.monotonic() - start:.2f} s")
        t.expect(task.cancelled(), "CancelledError comes out", task)
        await t.expect_value("k", None, "after a cancelled upload")
        t.same(await t.keys(), ["other"], "keys")
        t.round()
    await t.store.upload("k", pieces(b"fine"))
    await t.expect_value("k", b"fine", "the instance stays usable")
    if root is not None:

        async def clean() -> bool:
            return folder_size(root)[1] - before < 5 * MIB

        await t.eventually(5, clean, "less than 5 MiB of six cancelled uploads of up to 10 MiB stay on disk")


@case("stream-10", F, "C2", cost=5)
async def slow_source(t: Trial) -> None:
    """A source that takes 5 s does not block any other call of the instance."""

    async def slow() -> Any:
        for _ in range(5):
            yield b"s" * 100_000
            await asyncio.sleep(1)

    upload = asyncio.create_task(t.store.upload("slow", slow()))
    slowest, n = 0.0, 0
    while not upload.done():
        start = time.monotonic()
        await t.store.create(f"k/{n}", b"x")
        await t.store.get(f"k/{n}")
        await t.keys("k/", limit=1)
        slowest = max(slowest, time.monotonic() - start)
        n += 1
        await asyncio.sleep(0.05)
    await upload
    t.same(await t.size("slow"), 500_000, "the slow upload")
    t.evidence.numbers["slowest_ms"] = round(slowest * 1000, 1)
    t.expect(slowest < 2 + 50 * t.facts.latency, "other calls go on", f"one took {slowest:.2f} s")
    t.expect(n >= 10, "other calls went on", f"{n} calls in 5 s")


async def drop_downloads(c: ChildContext, url: str, count: int) -> dict[str, int]:
    store = c.open(url)

    async def some(n: int) -> None:
        for _ in range(n):
            stream = store.download("k")
            async for _ in stream:
                break
            await stream.aclose()  # type: ignore[attr-defined]

    await some(20)
    await asyncio.sleep(0.05)
    before = resources.descriptors(), resources.threads(), len(asyncio.all_tasks()), resources.memory()
    await some(count)
    await asyncio.sleep(0.2)
    with contextlib.suppress(StoreError):
        await store.get("k", 0, 1)
    after = resources.descriptors(), resources.threads(), len(asyncio.all_tasks()), resources.memory()
    return dict(
        zip(
            ("descriptors", "threads", "tasks", "memory"),
            (b - a for a, b in zip(before, after, strict=True)),
            strict=True,
        )
    )


@case("stream-11", F, "C5", needs=["multi_process"], cost=3)
async def dropped(t: Trial) -> None:
    """A download dropped midway, 100 times, leaks no descriptor, thread, task or memory."""
    await t.store.put("k", bytes(10 * MIB))
    async with t.child() as child:
        grown = await child.call(drop_downloads, t.url, 100)
    t.expect(grown["descriptors"] <= 4 and grown["threads"] <= 4 and grown["tasks"] <= 0, "nothing is left open", grown)
    t.expect(grown["memory"] <= 48 * MIB, "memory is steady", grown)
