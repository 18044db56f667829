"""Stored bytes of every release load for ever.

``golden/<version>/<case>.bin`` were written by that release (``scripts/make_golden.py``) and are never changed. What
the format of today gives for plain values must be these bytes still, or have a new format version.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from perdure.errors import FormatError
from perdure.keyring import Keyring
from perdure.serializers.declared import declare
from perdure.values import Values

GOLDEN = Path(__file__).parent / "golden"
PLACE = ("golden workflow", "1/task")
TOKEN = bytes(range(16))
KEYS = Keyring.load(GOLDEN / "keys")
HMAC = Keyring([KEYS.find("sign", "golden-hmac")])  # type: ignore[list-item]
ED = Keyring([KEYS.find("sign", "golden-ed")])  # type: ignore[list-item]


@declare(name="golden-colour")
class Colour(enum.Enum):
    RED = 1


@declare(name="golden-point")
@dataclass
class Point:
    x: int
    y: tuple[int, ...]


PLAIN: dict[str, Any] = {
    "none": None,
    "bools": [True, False],
    "ints": [0, 1, -1, 127, 128, -33, 2**63 - 1, -(2**63), 2**64 - 1, 2**64, -(2**200)],
    "floats": [0.0, -0.0, 1.5, float("inf"), 5e-324],
    "texts": ["", "a", "ä\0", "\U0001f600", "\ud800", "x" * 300],
    "bytes": [b"", b"\0\xff", bytearray(b"ab")],
    "large-bytes": b"z" * 70_000,
    "containers": [[], (), {}, set(), frozenset(), [(1, [2, (3,)])], {"a": {"b": []}}],
    "dict-keys": {1: "a", (1, 2): "b", None: "c", b"x": 1, 1.5: 2, "s": 3, False: 4},
    "dict-large": {f"k{i}": i for i in range(300)},
    "sets": [{1, "a", (2,)}, frozenset({b"x"})],
    "times": [
        dt.datetime(2026, 11, 24, 1, 2, 3, 4, fold=1),
        dt.datetime(2026, 11, 24, tzinfo=dt.UTC),
        dt.datetime(2026, 11, 24, tzinfo=dt.timezone(dt.timedelta(hours=2), "X")),
        dt.date(1, 1, 1),
        dt.time(1, 2, 3, 4),
        dt.timedelta(-1, 2, 3),
    ],
    "numbers": [Decimal("1.10"), Decimal("-Infinity"), 1 + 2j, range(0, 10, 3)],
    "uuid": UUID(int=0x1234),
    "declared": [Colour.RED, Point(1, (2, 3))],
}
OTHERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "array": ({"a": np.arange(6, dtype="<i4").reshape(2, 3)}, {}),
    "array-fortran": (np.arange(6, dtype=">f8").reshape(2, 3).T, {}),
    "array-structured": (np.zeros(2, dtype=[("a", "<i4"), ("b", "<f8", (2,))]), {}),
    "scalar": ([np.float32(1.5), np.bool_(True)], {}),
    "table": (pa.table({"x": [1, None], "s": ["a", "ä"]}), {}),
    "batch": ([pa.record_batch({"x": [1]}), pa.array([1, None])], {}),
    "pickle": (Ellipsis, {}),
    "zstd": ("hello " * 1000, {"codecs": ["zstd"]}),
    "aes-gcm": ("secret", {"codecs": ["zstd", "aes-gcm"], "keys": KEYS}),
    "signed-hmac": ([1, (2,)], {"keys": HMAC, "trust": "signed"}),
    "signed-ed25519": ([1, (2,)], {"keys": ED, "trust": "signed"}),
    "array-large": (np.arange(1000, dtype="<i8"), {}),
}
CASES = {name: (value, {}) for name, value in PLAIN.items()} | OTHERS
RELEASES = sorted(path.name for path in GOLDEN.iterdir() if path.is_dir())


def dumped(name: str) -> bytes:
    value, options = CASES[name]
    context = PLACE if "keys" in options else None
    return Values(**options).dump(value, token=TOKEN, context=context).join()


def write(folder: Path) -> None:
    """Write the golden files of a release; existing ones stay."""
    folder.mkdir(exist_ok=True)
    for name in CASES:
        path = folder / f"{name}.bin"
        if not path.exists():
            path.write_bytes(dumped(name))


def equal(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, (pa.Table, pa.RecordBatch, pa.Array)):
        return bool(a.equals(b))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return equal(list(a.items()), list(b.items()))
    return repr(a) == repr(b) if isinstance(a, (float, dt.datetime)) else bool(a == b)


def _cases(names: Callable[[], Any]) -> Any:
    return pytest.mark.parametrize(
        ("release", "name"), [(r, n) for r in RELEASES for n in names() if (GOLDEN / r / f"{n}.bin").exists()]
    )


@_cases(lambda: CASES)
def test_values_of_earlier_releases_load(release: str, name: str) -> None:
    value, options = CASES[name]
    data = (GOLDEN / release / f"{name}.bin").read_bytes()
    back = Values(**options).load(data, context=PLACE if "keys" in options else None)
    assert equal(back, value)


@_cases(lambda: PLAIN)
def test_plain_values_are_written_as_in_earlier_releases_of_this_format(release: str, name: str) -> None:
    assert dumped(name) == (GOLDEN / release / f"{name}.bin").read_bytes()


def test_there_are_golden_files_of_every_case() -> None:
    assert RELEASES
    newest = GOLDEN / RELEASES[-1]
    assert {path.stem for path in newest.glob("*.bin")} == CASES.keys()


def test_a_value_of_a_later_format_is_refused_by_number() -> None:
    data = bytearray(dumped("none"))
    data[4:6] = (2).to_bytes(2, "little")
    with pytest.raises(FormatError, match="format 2"):
        Values().load(data)
