"""Codecs: bytes come back, whatever the chunks; damage is noticed as declared; bombs stop at the limit."""

from __future__ import annotations

import functools
import hashlib
import itertools
import pickle
import time
from collections.abc import Iterable, Iterator
from typing import Any

from perdure.conformance import resources
from perdure.conformance.child import ChildContext
from perdure.conformance.observed import brief
from perdure.conformance.plugin_bench import PluginTrial
from perdure.conformance.register import Certainty, Kind, Level, case
from perdure.errors import DecodeError
from perdure.serializer import DEFAULT_LIMITS, Limits

B, F = Level.BASE, Level.FULL
C = Kind.CODEC
MIB = 2**20


def encoded(codec: Any, chunks: Iterable[Any]) -> bytes:
    return b"".join(bytes(c) for c in codec.encode(chunks))


def decoded(codec: Any, chunks: Iterable[Any], limits: Limits = DEFAULT_LIMITS) -> bytes:
    return b"".join(bytes(c) for c in codec.decode(chunks, limits))


def split(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@case("cod-01", B, "D", kind=C, cost=3)
async def round_trip(t: PluginTrial) -> None:
    """0 bytes to 8 MiB + 1 come back, in all chunkings of both ways; id and integrity are of the right form."""
    codec = t.make()
    t.expect(isinstance(codec.id, str) and codec.id != "", "id is a str", codec.id)
    t.expect(codec.integrity in ("none", "checksum", "authenticated"), "integrity is declared", codec.integrity)
    for size in (0, 1, 2, 15, 16, 17, 255, 256, 4095, 4097, 65_535, 65_537, MIB, 8 * MIB + 1):
        for data in (t.rng.randbytes(size), bytes(size), (b"compress me " * (size // 12 + 1))[:size]):
            for width in (max(1, size), 7 if size < 5000 else 65_536, 1000 if size < 70_000 else MIB + 3):
                packed = encoded(codec, split(data, width))
                for back in (max(1, len(packed)), 13 if size < 5000 else 99_991):
                    found = decoded(codec, split(packed, back))
                    t.expect(
                        found == data,
                        f"decode(encode(b)) == b for {size} bytes in chunks of {width} and {back}",
                        f"{len(found)} bytes",
                    )


@case("cod-02", B, "D", kind=C)
async def odd_chunks(t: PluginTrial) -> None:
    """Empty chunks, one-byte chunks, bytearray and memoryview change nothing."""
    codec = t.make()
    data = b"some data, \0 and more" * 50
    for chunks in (
        [b"", data, b""], [b""] * 5, [bytes([x]) for x in data], [b"", *split(data, 3), b"", b""],
        [bytearray(data[:10]), memoryview(data)[10:]], [],
    ):  # fmt: skip
        whole = b"".join(bytes(c) for c in chunks)
        packed = encoded(codec, iter(chunks))
        for back in ([packed], [b"", *(bytes([x]) for x in packed), b""], [bytearray(packed)], [memoryview(packed)]):
            t.same(decoded(codec, iter(back)), whole, "decode(encode(b))")


async def _stream(c: ChildContext, subject: Any, size: int) -> dict[str, Any]:
    codec = subject.make()
    block = hashlib.shake_128(b"block").digest(MIB)
    sent, got = hashlib.blake2b(), hashlib.blake2b()

    def source() -> Iterator[bytes]:
        for i in range(size // MIB):
            part = i.to_bytes(8) + block[8 : MIB // 2] + bytes(MIB // 2)
            sent.update(part)
            yield part

    resources.reset_peak()
    before = resources.memory()
    length = 0
    for chunk in codec.decode(codec.encode(source()), DEFAULT_LIMITS):
        got.update(chunk)
        length += len(chunk)
    return {"memory": resources.peak() - before, "equal": sent.digest() == got.digest(), "length": length}


@case("cod-03", F, "D", kind=C, alone=True, timeout=180, cost=10)
async def gigabyte(t: PluginTrial) -> None:
    """1 GiB streams through both ways in at most 64 MiB."""
    seen = await t.in_child(_stream, 1024 * MIB)
    t.expect(seen["equal"] and seen["length"] == 1024 * MIB, "1 GiB comes back", seen)
    t.evidence.numbers["memory_MiB"] = round(seen["memory"] / MIB, 1)
    t.expect(seen["memory"] <= 64 * MIB, "at most 64 MiB", f"{seen['memory'] / MIB:.0f} MiB")


@case("cod-04", B, "D", Certainty.EXHAUSTIVE, kind=C)
async def cuts(t: PluginTrial) -> None:
    """Every cut of the encoding of a small value is a DecodeError."""
    codec = t.make()
    for data in (b"", b"x", b"a value of some length, compressible " * 20, t.rng.randbytes(500)):
        packed = encoded(codec, [data])
        for n in range(len(packed)):
            cut = functools.partial(decoded, codec, [packed[:n]] if n else [])
            t.raises(cut, DecodeError, f"cut at {n} of {len(packed)}")
            t.round()


@case("cod-05", B, "D", Certainty.EXHAUSTIVE, kind=C, cost=2)
async def flips(t: PluginTrial) -> None:
    """Bit flips: authenticated, always DecodeError; with a checksum DecodeError, or the same bytes where the bit meant
    nothing; else DecodeError or other bytes. Never a crash."""
    codec = t.make()
    for data in (b"x", b"a value of some length, compressible " * 8, t.rng.randbytes(200)):
        packed = encoded(codec, [data])
        for n in range(len(packed) * 8):
            changed = bytearray(packed)
            changed[n // 8] ^= 1 << (n % 8)
            start = time.monotonic()
            try:
                found = decoded(codec, [bytes(changed)], Limits(max_bytes=16 * MIB))
            except DecodeError:
                t.expect(True, "", "")
            except Exception as error:
                t.fail("DecodeError", f"{type(error).__name__}: {error}")
            else:
                t.expect(
                    codec.integrity == "none" or (codec.integrity == "checksum" and found == data),
                    f"integrity {codec.integrity!r}: a flipped bit is DecodeError",
                    f"bit {n}: {brief(found)}",
                )
            t.expect(time.monotonic() - start < 1, "within 1 s", time.monotonic() - start)
            t.round()


@case("cod-06", F, "D", kind=C)
async def appended(t: PluginTrial) -> None:
    """Bytes after the end are refused."""
    codec = t.make()
    for data in (b"", b"x", b"some data " * 100):
        packed = encoded(codec, [data])
        for more in (b"\0", b"x", b"\n", packed, b"\0" * 1000):
            for chunks, what in (([packed + more], "appended"), ([packed, more], "in a chunk of their own")):
                t.raises(functools.partial(decoded, codec, chunks), DecodeError, f"{len(more)} bytes {what}")


@case("cod-07", B, "D", kind=C)
async def bomb(t: PluginTrial) -> None:
    """A value that unpacks to far more than the limit stops at the limit, in little memory."""
    codec = t.make()
    size = 512 * MIB

    def zeros() -> Iterator[bytes]:
        part = bytes(4 * MIB)
        for _ in range(size // len(part)):
            yield part

    packed = list(itertools.islice(codec.encode(zeros()), 10_000_000))
    limit, came = 4 * MIB, 0
    before = resources.memory()
    resources.reset_peak()
    start = time.monotonic()
    try:
        for chunk in codec.decode(iter(packed), Limits(max_bytes=limit)):
            came += len(chunk)
    except DecodeError:
        t.expect(True, "", "")
    else:
        t.fail("DecodeError at the limit", f"{came} bytes came out of a limit of {limit}")
    t.expect(came <= limit, "no more than the limit comes out", came)
    t.expect(time.monotonic() - start < 5, "it stops at once", f"{time.monotonic() - start:.1f} s")
    t.expect(resources.peak() - before < 96 * MIB, "in little memory", f"{(resources.peak() - before) / MIB:.0f} MiB")
    exact = bytes(limit)
    t.expect(
        decoded(codec, [encoded(codec, [exact])], Limits(max_bytes=limit)) == exact, "exactly the limit passes", ""
    )


@case("cod-08", F, "D", kind=C)
async def two(t: PluginTrial) -> None:
    """Two instances, one after the other, in both orders, and interleaved, don't disturb each other."""
    one, other = t.make(), t.make()
    data = b"data " * 1000
    t.same(decoded(one, [decoded(other, [encoded(other, [encoded(one, [data])])])]), data, "codec over codec")
    first, second = one.encode(iter([data] * 5)), one.encode(iter([data[::-1]] * 5))
    a, b = [], []
    for x, y in itertools.zip_longest(first, second, fillvalue=b""):
        a.append(bytes(x))
        b.append(bytes(y))
    t.same(decoded(one, a), data * 5, "two encodings interleaved: the first")
    t.same(decoded(other, b), data[::-1] * 5, "two encodings interleaved: the second")


@case("cod-09", F, "D", kind=C)
async def growth(t: PluginTrial) -> None:
    """Random data grows by at most 1 % and 1 KiB."""
    codec = t.make()
    for size in (0, 1, 100, 10_000, MIB, 8 * MIB):
        packed = len(encoded(codec, split(t.rng.randbytes(size), 65_536)))
        t.expect(packed <= size * 1.01 + 1024, f"{size} random bytes grow by at most 1 % + 1 KiB", packed)


def authenticated(t: PluginTrial) -> Any:
    codec = t.make()
    if codec.integrity != "authenticated":
        t.lacks("capability", "integrity", f"the codec declares integrity={codec.integrity!r}")
    return codec


@case("cod-10", B, "D", kind=C)
async def forged(t: PluginTrial) -> None:
    """Authenticated: another key, a swapped header, and a value moved to another place are refused."""
    codec = authenticated(t)
    here, there = codec.bind(b"place 1"), codec.bind(b"place 2")
    packed, other = encoded(here, [b"value one" * 10]), encoded(here, [b"value two" * 10])
    t.same(decoded(here, [packed]), b"value one" * 10, "at its own place")
    t.raises(lambda: decoded(there, [packed]), DecodeError, "moved to another place")
    t.raises(lambda: decoded(codec, [packed]), DecodeError, "moved to no place")
    for n in range(1, min(60, len(packed) - 1)):
        mixed = other[:n] + packed[n:]
        if mixed not in (packed, other):
            t.raises(lambda m=mixed: decoded(here, [m]), DecodeError, f"the first {n} bytes of another value")  # type: ignore[misc]
    if t.subject.other_key is None:
        t.note("the hook `other_key` is not offered: no other key was tried")
        return
    stranger = t.subject.other_key().bind(b"place 1")
    t.raises(lambda: decoded(stranger, [packed]), DecodeError, "another key")


@case("cod-11", F, "D", kind=C)
async def rotation(t: PluginTrial) -> None:
    """Authenticated: after a rotation the old key reads and the new key writes; equal input differs each time."""
    codec = authenticated(t)
    first, second = encoded(codec, [b"equal"]), encoded(codec, [b"equal"])
    t.expect(first != second, "the same input encodes differently each time", first[:40])
    rotated = t.hook("rotated")()
    t.same(decoded(rotated, [first]), b"equal", "the old key still reads")
    new = encoded(rotated, [b"new"])
    t.same(decoded(rotated, [new]), b"new", "the new key reads what it wrote")
    t.raises(lambda: decoded(codec, [new]), DecodeError, "the old ring does not know the new key")


@case("cod-12", B, "D", kind=C)
async def secrets(t: PluginTrial) -> None:
    """No key or secret in repr, error, pickle or output; a pickled instance works where it can be pickled."""
    codec = t.make()
    shown = [
        repr(codec).encode(),
        str(codec).encode(),
        repr(vars(codec) if hasattr(codec, "__dict__") else "").encode(),
    ]
    packed = encoded(codec, [b"value"])
    shown.append(packed)
    try:
        decoded(codec, [packed[:-1]])
    except DecodeError as error:
        shown += [repr(error).encode(), str(error).encode()]
    try:
        data = pickle.dumps(codec)
    except Exception as error:
        t.note(f"an instance is not picklable ({type(error).__name__})")
    else:
        shown.append(data)
        t.same(decoded(pickle.loads(data), [packed]), b"value", "a pickled instance decodes")
    import base64

    for secret in t.subject.secrets:
        for form in (secret, secret.hex().encode(), base64.b64encode(secret), repr(secret)[2:-1].encode()):
            for text in shown:
                t.expect(form not in text, "no secret is shown", "it is")
    t.same(decoded(codec, [packed]), b"value", "and it works")
