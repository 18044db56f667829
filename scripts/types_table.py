"""Make docs/types.md: what each Python type becomes when it is stored. ``--check`` only compares.

Each row is tried: the value is dumped and loaded, and the table says what happened.
"""

from __future__ import annotations

import datetime as dt
import enum
import sys
import threading
import zoneinfo
from collections import Counter, OrderedDict, deque, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pydantic

from perdure.errors import EncodeError
from perdure.serializers.declared import declare
from perdure.values import Values

TARGET = Path(__file__).parent.parent / "docs" / "types.md"
HEAD = """# What each Python type becomes

Made by `scripts/types_table.py`, which stores and loads a value of each row. The first serializer in the order
`data`, `arrow`, `pickle` that keeps a value *exactly* takes all of it: one object that only pickle keeps makes the
whole value a pickle. Values stored by `data` and `arrow` load at every trust level; pickles need `trust="signed"` or
`"all"` ([security](security.md)).

| type | example | serializer | comes back as | loads under `trust="data"` |
|---|---|---|---|---|
"""
TAIL = """
- "The same" is equal in value and type, in every part. Identity is not kept by `data` and `arrow`: a list that is held
  twice comes back as two equal lists. Arrays and tables come back read-only, as views of the stored bytes.
- Subclasses of plain types (`IntEnum`, `namedtuple`, `OrderedDict`) are not plain: as plain data they would come back
  as their base.
- pandas and polars frames and series are kept by `arrow` where Arrow gives back the same types, index and values (most
  do; mixed `object` columns, mixed column names and `attrs` don't), otherwise by pickle.
- Enums, dataclasses and Pydantic models are data once they are declared:

```python
from dataclasses import dataclass

from perdure.serializers.declared import declare


@declare(name="order")
@dataclass
class Order:
    id: int
    items: list[str]
```

## What may change between releases

| change | effect |
|---|---|
| a type moves from pickle to `data` or `arrow` | new values only; the stored ones load as before |
| a new version of a serializer | it loads all versions before; an older release refuses the new one by number |
| a declared class gets a field with a default | stored values get the default |
| a declared class gets a field without one, or loses a field | its stored values are refused: keep a default |
| a declared class moves or is renamed | give `declare` the old name |
| a pickled class moves, changes, or its library is missing | they may not load; the error names the module |
"""


class Colour(enum.IntEnum):
    RED = 1


Point = namedtuple("Point", "x y")


@dataclass
class Plain:
    x: int


@declare
@dataclass
class Declared:
    x: int


@declare
class Shade(enum.Enum):
    DARK = 1


@declare
class Model(pydantic.BaseModel):
    x: int


class Any_:
    def __init__(self) -> None:
        self.x = 1

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    __hash__ = None  # type: ignore[assignment]


LOOP: list[Any] = []
LOOP.append(LOOP)
DEEP: list[Any] = []
for _ in range(150):
    DEEP = [DEEP]

ROWS: list[tuple[str, str, Any]] = [
    ("None, bool", "`None`", None),
    ("int of any size", "`2**100`", 2**100),
    ("float", "`float('inf')`", float("inf")),
    ("complex", "`1+2j`", 1 + 2j),
    ("str", "`'ä'`", "ä"),
    ("str with lone surrogates", "`'\\ud800'`", "\ud800"),
    ("bytes, bytearray", "`bytearray(b'a')`", bytearray(b"a")),
    ("memoryview", "`memoryview(b'a')`", memoryview(b"a")),
    ("list, tuple", "`[1, (2,)]`", [1, (2,)]),
    ("dict, str keys", "`{'a': 1}`", {"a": 1}),
    ("dict, any keys", "`{(1, 2): 3}`", {(1, 2): 3}),
    ("set, frozenset", "`{1, 2}`", {1, 2}),
    ("range", "`range(3)`", range(3)),
    ("slice", "`slice(3)`", slice(3)),
    (
        "datetime without zone, in UTC or at a fixed offset",
        "`datetime(…, tzinfo=UTC)`",
        dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
    ),
    ("datetime in a named zone", "`ZoneInfo('UTC')`", dt.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))),
    ("date, time, timedelta", "`date(2026, 1, 1)`", dt.date(2026, 1, 1)),
    ("Decimal", "`Decimal('1.10')`", Decimal("1.10")),
    ("Fraction", "`Fraction(1, 3)`", Fraction(1, 3)),
    ("UUID", "`UUID(int=1)`", UUID(int=1)),
    ("path", "`PurePosixPath('a')`", PurePosixPath("a")),
    ("Enum, IntEnum", "`Colour.RED`", Colour.RED),
    ("Enum, declared", "`Shade.DARK`", Shade.DARK),
    ("namedtuple", "`Point(1, 2)`", Point(1, 2)),
    ("OrderedDict, Counter, deque", "`[OrderedDict(), Counter(), deque()]`", [OrderedDict(), Counter(), deque()]),
    ("dataclass", "`Plain(1)`", Plain(1)),
    ("dataclass, declared", "`Declared(1)`", Declared(1)),
    ("Pydantic model, declared", "`Model(x=1)`", Model(x=1)),
    ("numpy array", "`np.arange(3)`", np.arange(3)),
    ("numpy array, structured", "`np.zeros(1, [('a', 'i4')])`", np.zeros(1, [("a", "i4")])),
    ("numpy array of objects", "`np.array([None])`", np.array([None])),
    ("numpy masked array", "`np.ma.array([1])`", np.ma.array([1])),
    ("numpy scalar, dtype", "`np.float32(1)`", np.float32(1)),
    ("Arrow Table, RecordBatch", "`pa.table({'x': [1]})`", pa.table({"x": [1]})),
    ("Arrow Array, ChunkedArray, Schema", "`pa.array([1])`", pa.array([1])),
    ("Arrow scalar", "`pa.scalar(1)`", pa.scalar(1)),
    ("arrays and tables inside containers", "`{'a': [np.arange(3)]}`", {"a": [np.arange(3)]}),
    ("an array beside an object of any class", "`[np.arange(3), obj]`", [np.arange(3), Any_()]),
    ("object of any class", "`obj`", Any_()),
    ("exception", "`ValueError('x')`", ValueError("x")),
    ("class", "`dict`", dict),
    ("function, also nested or lambda", "`lambda: 1`", lambda: 1),
    ("list that contains itself", "`l = []; l.append(l)`", LOOP),
    ("nested deeper than 100", "`[[[…]]]`", DEEP),
    ("lock, socket, open file, generator", "`threading.Lock()`", threading.Lock()),
]


def same(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and bool((a == b).all())
    if isinstance(a, (list, tuple)):
        return a is LOOP or b[0] is b or (len(a) == len(b) and all(map(same, a, b))) if a else not b
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(x, y) for x, y in zip(a.values(), b.values(), strict=True))
    if isinstance(a, BaseException):
        return a.args == b.args
    if callable(a) and not isinstance(a, type):
        return bool(a() == b())
    return bool(a == b)


def row(kind: str, example: str, value: Any) -> str:
    try:
        dumped = Values().dump(value)
    except EncodeError:
        return f"| {kind} | {example} | none | refused when stored, with the path to it | |"
    back = Values().load(dumped.join())
    result = "the same" if same(value, back) else f"`{type(back).__name__}`, not the same"
    plain = "no" if dumped.serializer == "pickle" else "yes"
    return f"| {kind} | {example} | `{dumped.serializer}` | {result} | {plain} |"


def table() -> str:
    ref = "| ObjectRef, anywhere | `ray.put(1)` | as the value around it | a ref to the stored value | |"
    return HEAD + "\n".join([*(row(*r) for r in ROWS), ref]) + "\n" + TAIL


if __name__ == "__main__":
    text = table()
    if "--check" not in sys.argv:
        TARGET.write_text(text)
    elif TARGET.read_text() != text:
        sys.exit(f"{TARGET} is not what the code does: run {sys.argv[0]}")
