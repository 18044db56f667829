"""Bad stored bytes, by kind, for the tests: each must be refused with one of Perdure's errors, or be a value."""

from __future__ import annotations

import itertools
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import xxhash
from msgspec.msgpack import Ext

from perdure.envelope import pack
from perdure.serializers.zstd import ZstdCodec
from perdure.values import Values


def resealed(data: bytes | bytearray) -> bytes:
    """The bytes with a length and checksum that fit: what an attacker would write."""
    out = bytearray(data)
    if len(out) >= 64:
        out[56:64] = len(out).to_bytes(8, "little")
        out[40:56] = bytes(16)
        out[40:56] = xxhash.xxh3_128(out).digest()
    return bytes(out)


def envelope(*buffers: bytes, serializer: str = "data", header: Any = None, signature: bytes = b"") -> bytes:
    """An envelope with a header of one's own."""
    if header is None:
        return b"".join(pack(buffers, serializer=serializer))
    head = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
    front = struct.pack(
        "<4sHH16sBBHIQ16sQ",
        b"PDva",
        1,
        len(head),
        bytes(16),
        1,
        bool(signature),
        0,
        len(signature),
        0,
        bytes(16),
        0,
    )
    return resealed(front + head + b"".join(buffers) + signature)


def ext(code: int, body: object) -> bytes:
    return msgspec.msgpack.encode(Ext(code, body if isinstance(body, bytes) else msgspec.msgpack.encode(body)))


class Reduce:
    """Pickles to a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def codes() -> Iterator[tuple[str, bytes]]:
    """Payloads that would run code."""
    import builtins
    import os
    import subprocess

    calls = [
        (os.system, "touch /tmp/never"),
        (builtins.exec, "raise SystemExit"),
        (builtins.eval, "1/0"),
        (builtins.__import__, "antigravity"),
        (subprocess.Popen, ["true"]),
        (builtins.open, "/tmp/never", "w"),
        (os.remove, "/tmp/never"),
        (os.putenv, "A", "B"),
        (builtins.compile, "1", "x", "eval"),
    ]
    for function, *arguments in calls:
        stream = pickle.dumps(Reduce(function, *arguments))
        yield f"pickle {function.__name__}", envelope(stream, serializer="pickle")
        yield f"pickle {function.__name__} under data", envelope(stream)
        yield f"pickle {function.__name__} under arrow", envelope(stream, serializer="arrow")
        yield f"pickle {function.__name__} in an ext", envelope(ext(1, stream))
    for name in ("module:thing", "os:system", "builtins:exec", "perdure.values:Values", "__main__:X"):
        yield f"declared {name}", envelope(ext(18, [name, [{"x": 1}]]))
    for name in (
        "os",
        "builtins",
        "../pickle",
        "pickle\0",
        "perdure.serializers.pickle:PickleSerializer",
        "Pickle",
        "",
    ):
        yield f"serializer {name!r}", envelope(b"\xc0", header=[name, 1, [1]])
        yield f"codec {name!r}", envelope(b"\xc0", header=["data", 1, [1], [name], [1], [1]])
    for dtype in ("O", "|O8", "object", "<f8,O", "os.system", [8, 0, [["a", "|O8", 0, []]]]):
        yield f"dtype {dtype!r}", envelope(ext(32, [dtype, [1], "C", b"\0" * 8]), serializer="arrow")
        yield f"scalar {dtype!r}", envelope(ext(33, [dtype, b"\0" * 8]), serializer="arrow")


def sizes() -> Iterator[tuple[str, bytes]]:
    """Declared lengths that the bytes do not have."""
    for length in (2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1):
        for name, code in (("str", 0xDB), ("bin", 0xC6), ("array", 0xDD), ("map", 0xDF)):
            yield f"{name} of {length}", envelope(bytes((code,)) + struct.pack(">I", length) + b"\x01" * 8)
            nested = (bytes((code,)) + struct.pack(">I", length)) * 400
            yield f"{name} of {length}, nested", envelope(nested + b"\x01" * 8)
        yield f"ext of {length}", envelope(b"\xc9" + struct.pack(">I", length) + b"\x01" * 8)
    for size in (2**31, 2**40, 2**63 - 1, 2**64 - 1, -1, -(2**63)):
        yield f"buffer of {size}", envelope(b"\xc0", header=["data", 1, [size]])
        yield f"buffers of {size}", envelope(b"\xc0", header=["data", 1, [1, size]])
        yield (
            f"content of {size}",
            envelope(*ZstdCodec().encode([b"x" * 9]), header=["data", 1, [size], ["zstd"], [9], [1]]),
        )
        yield f"stored size {size}", envelope(b"\xc0", header=["data", 1, [1], ["zstd"], [size], [0]])
        yield f"mask {size}", envelope(b"\xc0", header=["data", 1, [1], ["zstd"], [1], [size]])
        yield f"version {size}", envelope(b"\xc0", header=["data", size, [1]])
        yield f"buffer number {size}", envelope(ext(17, size))
        yield f"ref {size}", envelope(ext(16, size))
        yield f"array of {size}", envelope(ext(32, ["<f8", [size], "C", b"\0" * 8]), serializer="arrow")
        yield f"array of {size}, none", envelope(ext(32, ["<f8", [0, size], "C", b""]), serializer="arrow")
        yield f"rows {size}", envelope(ext(34, [1, size]), b"\0" * 64, serializer="arrow")
    yield "no header", envelope(b"\xc0", header=b"")
    yield "header too long", resealed(envelope(b"\xc0")[:6] + b"\xff\xff" + envelope(b"\xc0")[8:])
    yield "signature too long", resealed(envelope(b"\xc0")[:28] + b"\xff" * 4 + envelope(b"\xc0")[32:])
    yield "bytes after the last buffer", envelope(b"\xc0\xc0", header=["data", 1, [1]])
    yield "no buffers", envelope(header=["data", 1, []])
    yield "joined without table", envelope(b"\xc0", header=["data+joined", 1, [1]])
    yield "joined with wrong table", envelope(b"\x91\x7f", b"", header=["data+joined", 1, [2, 0]])


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small bytes that want much memory, time or stack."""
    zeros = b"".join(ZstdCodec().encode(bytes(1 << 20) for _ in range(64)))
    for size in (1, 1000, 1 << 20, 1 << 26, 1 << 27):
        yield f"zstd bomb declared as {size}", envelope(zeros, header=["data", 1, [size], ["zstd"], [len(zeros)], [1]])
    for depth in (101, 500, 1000, 10_000, 200_000):
        yield f"arrays {depth} deep", envelope(b"\x91" * depth + b"\xc0")
        yield f"maps {depth} deep", envelope(b"\x81\xa0" * depth + b"\xc0")
        yield f"keys {depth} deep", envelope(b"\x81" * depth + b"\xc0")
    for code in (1, 2, 3, 4, 18, 32):
        for depth in (101, 400):
            body = b"\xc0"
            for _ in range(depth):
                body = ext(code, b"\x91" + body if code != 4 else b"\x92\x91\xa0\x91" + body)
            yield f"ext {code} {depth} deep", envelope(body, serializer="arrow")
    prime = 2**61 - 1
    keys = list(itertools.product(*[[i + prime * k for k in range(8)] for i in range(5)]))
    plain = [list(key) for key in keys]
    tuples = b"\xdd" + struct.pack(">I", len(keys)) + b"".join(ext(1, key) for key in plain)
    yield (
        "flood by native map",
        envelope(b"\xdf" + struct.pack(">I", len(keys)) + b"".join(msgspec.msgpack.encode(k) + b"\xc0" for k in plain)),
    )
    yield "flood by set", envelope(ext(2, tuples))
    yield "flood by frozenset", envelope(ext(3, tuples))
    yield "flood by dict", envelope(ext(4, b"\x92" + tuples + tuples))
    yield (
        "flood by big ints",
        envelope(
            ext(
                2,
                b"\xdd"
                + struct.pack(">I", 20_000)
                + b"".join(ext(5, (prime * k * 2**64).to_bytes(24, "little", signed=True)) for k in range(20_000)),
            )
        ),
    )
    yield "decimal exponent", envelope(ext(2, b"\x91" + ext(11, b"1E+999999999999999999")))
    yield "decimal digits", envelope(ext(11, b"9" * 1_000_000))
    yield "int digits", envelope(ext(5, b"\xff" * 1_000_000 + b"\x01"))
    yield "range", envelope(ext(15, [0, 2**63, 1]))


def wrong_bodies() -> Iterator[tuple[str, bytes]]:
    """Extensions whose bodies are of another shape."""
    bodies: list[object] = [
        b"", b"\xc1", b"\xff" * 3, None, 1, -1, "x", b"x" * 7, [], [1], [None], [[]], ["x", "y"], {}, {"a": 1},
        [1, 2, 3, 4, 5, 6, 7, 8, 9], [10**18] * 9, [None] * 9, [[1], [1, 2]], [[[1]], [1]], [[{}], [1]], ["nan"],
        [2026, 13, 1], [2026, 1, 1, 25, 0, 0, 0, 0, None], [1, 1, 1, 1, 1, 1, 1, 1, [10**9, 0, 0]], [0, 0, 0],
        [1, 1, 1, 1, 0, [0, 0, 0, 5]], [1.5, 2.5],
    ]  # fmt: skip
    for code in (*range(21), 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 127, -1, -2, -128):
        for number, body in enumerate(bodies):
            raw = body if isinstance(body, bytes) else msgspec.msgpack.encode(body)
            for serializer in ("data", "arrow") if code >= 32 else ("data",):
                yield (
                    f"ext {code} body {number} {serializer}",
                    envelope(ext(code, raw), b"\0" * 8, serializer=serializer),
                )
                yield f"key ext {code} body {number}", envelope(b"\x81" + ext(code, raw) + b"\xc0")


def cut_and_flipped() -> Iterator[tuple[str, bytes]]:
    """A good value, cut and changed, under a right checksum and under the old one."""
    good = Values().dumps({"a": [1, (2, 3.5), {"x"}], "b": b"z" * 70_000})
    for end in [*range(0, 200, 3), *range(200, len(good), 7001)]:
        yield f"cut at {end}", good[:end]
        yield f"cut at {end}, resealed", resealed(good[:end])
    small = Values().dumps({"a": [1, (2, 3.5), {"x"}]})
    for at in range(len(small)):
        for bit in (0, 3, 7):
            data = bytearray(small)
            data[at] ^= 1 << bit
            yield f"bit {bit} of byte {at}", bytes(data)
            yield f"bit {bit} of byte {at}, resealed", resealed(data)
    for foreign in (b"", b"\0", b"PDva", b"PDsg" + bytes(100), b"\x80\x04N.", b"{}", b"PK\3\4" * 20, b"\0" * 64):
        yield f"foreign {foreign[:8]!r}", foreign


def all_cases() -> Iterator[tuple[str, bytes]]:
    for kind in (codes, sizes, bombs, wrong_bodies, cut_and_flipped):
        for name, data in kind():
            yield f"{kind.__name__}: {name}", data
