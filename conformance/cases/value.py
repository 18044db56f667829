"""Values: any bytes, any size up to the limit, never aliased to a buffer of the caller (V1)."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.errors import StoreError

B, F = Level.BASE, Level.FULL
MIB = 2**20


def digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


async def one_value(t: Trial, key: str, data: bytes) -> None:
    """Stored by create, put and upload, read by get and download, judged by size and hash."""

    async def chunks() -> Any:
        for start in range(0, len(data), 1_000_003):
            yield data[start : start + 1_000_003]

    for method in ("create", "put", "upload"):
        name = f"{key}-{method}"
        await getattr(t.store, method)(name, chunks() if method == "upload" else data)
        found = await t.store.get(name)
        t.expect(
            len(found) == len(data) and digest(found) == digest(data),
            f"{method} then get of {len(data)} bytes gives the same bytes",
            f"{len(found)} bytes, hash {'equal' if digest(found) == digest(data) else 'different'}",
        )
        t.same(await t.size(name), len(data), f"stat after {method}")
    joined = await t.joined(f"{key}-put")
    t.expect(joined is not None and digest(joined) == digest(data), f"download of {len(data)} bytes", "other bytes")


@case("value-01", B, "V1")
async def zero_bytes(t: Trial) -> None:
    """A value of 0 bytes is a value, not absence, in all methods."""
    await one_value(t, "empty", b"")
    for key in ("empty-create", "empty-put", "empty-upload"):
        await t.expect_value(key, b"", "a 0-byte value")
    t.same(await t.store.create_many([("many", b"")]), [None], "create_many of 0 bytes")
    t.same(bytes((await t.store.get_many(["many"]))[0]), b"", "get_many of 0 bytes")
    await t.store.put("full", b"x")
    await t.store.put("full", b"")
    await t.expect_value("full", b"", "replaced by 0 bytes")


@case("value-02", B, "V1")
async def small_sizes(t: Trial) -> None:
    """Sizes round 1, 16, 256, 4,096 and 65,536 bytes come back whole."""
    for size in (1, 15, 16, 17, 255, 256, 257, 4095, 4096, 4097, 65535, 65536, 65537):
        await one_value(t, f"s{size}", t.bytes(size))


@case("value-03", B, "V1")
async def every_byte(t: Trial) -> None:
    """Every byte value, NULs, line ends, BOM and magic numbers are kept under any file ending."""
    contents = [
        bytes(range(256)), b"\0", b"\0\0x\0", b"\r\n\n\r", b"\xef\xbb\xbfx", b"\x1f\x8b\x08\0rest", b"\xff\xfe", b"\n",
        b"x\n", b'{"a": 1}', b"PK\x03\x04", b"\xff" * 300, b" x ", b"\x1a",
    ]  # fmt: skip
    for i, data in enumerate(contents):
        for ending in ("", ".gz", ".json", ".txt", ".zst"):
            key = f"c{i}{ending}"
            await t.store.create(key, data)
            t.same(await t.value(key), data, f"bytes of {key}")
            t.same(await t.size(key), len(data), f"size of {key}")


@case("value-04", B, "V1", cost=3)
async def megabytes(t: Trial) -> None:
    """Odd sizes round 1, 5 and 8 MiB come back with the same hash."""
    limit = min(t.capabilities.max_value_bytes or 2**62, t.capabilities.max_create_bytes or 2**62)
    t.expect(limit >= 8 * MIB, "max_create_bytes is at least 8 MiB", limit)
    source = t.bytes(8 * MIB + 4097)
    for base in (MIB, 5 * MIB, 8 * MIB):
        for more in (-1, 1, 4095, 4097):
            if (size := base + more) > limit:
                continue
            await t.store.create(f"m{size}", source[:size])
            found = await t.store.get(f"m{size}")
            t.expect(
                len(found) == size and digest(found) == digest(source[:size]), f"{size} bytes come back", len(found)
            )
            await t.store.delete(f"m{size}")


@case("value-05", F, "V1", Certainty.STOCHASTIC, cost=8)
async def generated_sizes(t: Trial) -> None:
    """200 generated sizes up to 3 MiB, and 64 MiB + 7, come back with the same hash."""
    source = t.bytes(3 * MIB)
    for i in range(200):
        size = min(3 * MIB, int(2 ** (t.rng.random() * 21.6)) + t.rng.randrange(3))
        offset = t.rng.randrange(0, 3 * MIB - size + 1)
        data = memoryview(source)[offset : offset + size]
        await t.store.put(f"g{i % 16}", data)
        found = await t.store.get(f"g{i % 16}")
        t.expect(len(found) == size and digest(found) == digest(data), f"{size} bytes come back", len(found))
        t.round()
    size = 64 * MIB + 7
    if size <= (t.capabilities.max_value_bytes or 2**62):
        large = source * 21 + source[: size - 63 * MIB]
        await t.store.put("large", large)
        found = await t.store.get("large")
        t.expect(len(found) == size and digest(found) == digest(large), "64 MiB + 7 come back", len(found))


@case("value-06", B, "V1")
async def types(t: Trial) -> None:
    """bytes, bytearray and memoryview (strided too) are taken; str, int, None and lists are TypeErrors."""
    raw = bytes(range(200))
    good = {
        "bytes": raw,
        "bytearray": bytearray(raw),
        "view": memoryview(raw),
        "part": memoryview(raw)[3:50],
        "strided": memoryview(raw)[::3],
        "reversed": memoryview(raw)[::-1],
        "words": memoryview(raw).cast("I"),
        "matrix": memoryview(raw).cast("B", (10, 20)),
    }
    for name, data in good.items():
        wanted = data.tobytes() if isinstance(data, memoryview) else bytes(data)
        await t.store.create(f"c-{name}", data)
        t.same(await t.value(f"c-{name}"), wanted, f"create with {name}")
        t.same(await t.size(f"c-{name}"), len(wanted), f"stat after create with {name}")
        await t.store.put(f"p-{name}", data)
        t.same(await t.value(f"p-{name}"), wanted, f"put with {name}")
    for wrong in ("text", None, 5, [1, 2], {"a": 1}, 1.5):
        await t.refuses(t.store.create("wrong", wrong), TypeError, f"V1: create with {wrong!r}")
        await t.refuses(t.store.put("wrong", wrong), TypeError, f"V1: put with {wrong!r}")
    t.same(await t.value("wrong"), None, "nothing was stored by a refused write")
    found = await t.store.get("c-bytes")
    view = memoryview(found)
    t.expect(view.readonly, "get gives a read-only buffer", type(found).__name__)


async def _read(c: ChildContext, url: str, key: str) -> bytes:
    return bytes(await c.open(url).get(key))


@case("value-07", B, "V1", cost=1)
async def caller_reuses_its_buffer(t: Trial) -> None:
    """A buffer overwritten after create, put or create_many has returned changes nothing stored, here or in
    another process."""
    data = t.bytes(100_000)
    buffer = bytearray(data)

    async def fresh(key: str, method: str) -> None:
        buffer[:] = data
        if method == "create_many":
            t.same(await t.store.create_many([(key, buffer)]), [None], "create_many")
        else:
            await getattr(t.store, method)(key, buffer)
        buffer[:] = b"!" * len(buffer)

    for method in ("create", "put", "create_many"):
        for i in range(5):
            key = f"{method}-{i}"
            await fresh(key, method)
            t.same(await t.value(key), data, f"value after the caller reused its buffer ({method})")
    if t.facts.gap("multi_process") is None:
        async with t.child() as child:
            for method in ("create", "put", "create_many"):
                t.same(await child.call(_read, t.url, f"{method}-0"), data, f"the same in another process ({method})")


@case("value-08", F, "V1", cost=1)
async def got_buffers_stay(t: Trial) -> None:
    """A buffer that get returned is unchanged after put, upload, delete and aclose."""
    for size in (10, 5000, 300_000, 3 * MIB):
        data = t.bytes(size)
        for change in ("put", "shorter", "upload", "delete", "aclose"):
            store = t.open()
            key = f"{size}-{change}"
            await store.put(key, data)
            found = await store.get(key)
            pieces = [c async for c in store.download(key)]
            if change == "put":
                await store.put(key, b"\0" * size)
            elif change == "shorter":
                await store.put(key, b"")
            elif change == "upload":

                async def zeros(size: int = size) -> Any:
                    yield b"\0" * size

                await store.upload(key, zeros())
            elif change == "delete":
                await store.delete(key)
            await store.aclose()
            t.expect(bytes(found) == data, f"the buffer of get is unchanged after {change}", found)
            t.expect(b"".join(map(bytes, pieces)) == data, f"the chunks of download are unchanged after {change}", "")


@case("value-09", F, "V1", timeout=120, cost=10, alone=True)
async def largest_values(t: Trial) -> None:
    """max_create_bytes and max_value_bytes work (up to 1 GiB is tried); one byte more is refused, unseen."""
    create, value = t.capabilities.max_create_bytes, t.capabilities.max_value_bytes
    tried = 128 * MIB
    for method, limit in (("create", create), ("put", value)):
        if limit is None or limit > 2**30:
            size = tried
            t.note(f"{method}: {size} bytes tried, the declared limit is {limit}")
        else:
            size = limit
        data = bytearray(size)
        data[-1:] = b"!"
        await getattr(t.store, method)(f"most-{method}", data)
        t.same(await t.size(f"most-{method}"), size, f"{method} of {size} bytes")
        t.same(bytes(await t.store.get(f"most-{method}", size - 3)), b"\0\0!", "its last bytes")
        if limit is not None and limit <= 2**30:
            data += b"+"
            error = await t.refuses(
                getattr(t.store, method)(f"over-{method}", data), StoreError, f"V1: {method} of one byte more"
            )
            del error
            t.same(await t.value(f"over-{method}"), None, "nothing is visible of the refused value")
        del data
        await t.store.delete(f"most-{method}")
    await asyncio.sleep(0)
