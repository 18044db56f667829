"""Values for serializers, by group, and the equality that they are judged by."""

from __future__ import annotations

import math
import random
import struct
from typing import Any

SCALARS: list[Any] = [None, True, False, 0, 1, -1]
for _bits in (7, 8, 15, 16, 31, 32, 53, 63, 64, 65, 127, 128, 1024, 4096):
    SCALARS += [2**_bits - 1, 2**_bits, 2**_bits + 1, -(2**_bits) + 1, -(2**_bits), -(2**_bits) - 1]
FLOATS = [0.0, -0.0, 1.5, -1e300, 5e-324, math.inf, -math.inf, math.nan, 0.1, 2.0**53 + 1, 1.7976931348623157e308]
TEXTS = [
    "", "a", "\0", "a\0b", "\u00e9", "e\u0301", "\U0001f600", "\ufeffx", "\u2028", "x" * 2**20, "\uffff", "\r\n",
    "\u0130", "0" * 31, "0" * 32, "0" * 255, "0" * 256, "0" * 65536,
]  # fmt: skip
SURROGATES = ["\ud800", "a\udfffb", "\udc80"]
BYTES: list[Any] = [b"", b"\0", bytes(range(256)), b"x" * 2**20, bytearray(b"ab"), bytearray(), b"\xff" * 70_000]
CONTAINERS: list[Any] = [
    [], (), {}, [[]], [[], ()], {"a": {"b": [1, (2, 3)]}}, {1: "int", "1": "str"}, {(1, 2): "tuple"}, {None: 1, "b": 2},
    {"z": 1, "a": 2, "m": 3}, [1, [2, [3, [4, [5]]]]], ({"k": (1, [2])},), {b"bytes": 1}, {1.5: "float"},
    [None] * 1000, {f"k{i}": i for i in range(1000)}, {"": ""}, [{}, {}], {2**70: -(2**70)},
]  # fmt: skip
KINDS: list[Any] = [
    (1, 2), [1, 2], {1, 2}, frozenset({1, 2}), True, 1, 1.0, [True, 1, 1.0], (True, 1, 1.0), {"a": (1,), "b": [1]},
    set(), frozenset(), [(), []], {True: "bool"}, {1: "int"}, b"ab", bytearray(b"ab"), [b"ab", bytearray(b"ab"), "ab"],
]  # fmt: skip
EVERYTHING = [*SCALARS, *FLOATS, *TEXTS, *BYTES, *CONTAINERS, *KINDS]


def identical(a: Any, b: Any, depth: int = 0) -> bool:
    """Equal in value and type, all the way down; NaN equals NaN, -0.0 is not 0.0, dicts keep their order."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return struct.pack("d", a) == struct.pack("d", b) or (math.isnan(a) and math.isnan(b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(identical(x, y, depth + 1) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return len(a) == len(b) and all(
            identical(x, y, depth + 1) and identical(a[x], b[y], depth + 1) for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, (set, frozenset)):
        return a == b and sorted(map(repr, a)) == sorted(map(repr, b))
    if hasattr(a, "dtype") and hasattr(a, "tobytes"):
        return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())
    if hasattr(a, "equals"):
        return bool(a.equals(b))
    return bool(a == b)


def generated(rng: random.Random, depth: int = 4) -> Any:
    """A random value of plain types."""
    choice = rng.randrange(12 if depth else 8)
    if choice == 0:
        return rng.choice([None, True, False])
    if choice == 1:
        return rng.randrange(-(2 ** rng.randrange(1, 80)), 2 ** rng.randrange(1, 80))
    if choice == 2:
        return rng.choice(FLOATS) if rng.random() < 0.5 else struct.unpack("d", rng.randbytes(8))[0]
    if choice in (3, 4):
        return "".join(rng.choice("ab\0\u00e9\u4f60\U0001f600 ") for _ in range(rng.randrange(20)))
    if choice in (5, 6):
        return rng.randbytes(rng.choice((0, 1, 5, 31, 32, 33, 300)))
    if choice == 7:
        return frozenset(rng.randrange(100) for _ in range(rng.randrange(4)))
    items = [generated(rng, depth - 1) for _ in range(rng.randrange(5))]
    if choice == 8:
        return tuple(items)
    if choice == 9:
        return {rng.choice((f"k{i}", i, (i, "t"))): x for i, x in enumerate(items)}
    return items
