"""Enums, dataclasses and models that the program declares as data."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pydantic
import pytest

from perdure.errors import DecodeError, EncodeError
from perdure.serializers import declared
from perdure.serializers.declared import declare
from perdure.values import Values

values = Values(["data", "arrow"], trust="data")


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    types, names = dict(declared._by_type), dict(declared._by_name)
    yield
    for held, before in ((declared._by_type, types), (declared._by_name, names)):
        held.clear()
        held.update(before)  # type: ignore[arg-type]


@declare
class Colour(enum.IntEnum):
    RED = 1


@declare
class Bits(enum.Flag):
    A = 1
    B = 2


@declare(name="point")
@dataclass(frozen=True, slots=True)
class Point:
    x: int
    y: Any = None


@declare
@dataclass
class Loud:
    items: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.items.append("made")


@declare
class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    id: int = pydantic.Field(alias="ID")
    tags: set[str] = set()


def test_declared_types_come_back_exactly_in_any_nesting() -> None:
    value = {
        "c": Colour.RED,
        "b": [Bits.A | Bits.B],
        "p": (Point(1, Point(2)), {Point(3): 4}),
        "m": Model(ID=1, more=[1, 2]),
        "l": Loud([1]),
    }
    back = values.loads(values.dumps(value))
    assert back == value
    assert type(back["c"]) is Colour
    assert back["m"].model_fields_set == value["m"].model_fields_set  # type: ignore[attr-defined]
    assert back["l"].items == [1, "made"]


def test_arrays_may_stand_in_declared_types() -> None:
    back = values.loads(values.dumps(Point(1, np.arange(3))))
    assert back.y.tolist() == [0, 1, 2]


def test_what_is_not_declared_is_refused_when_dumped_and_when_loaded() -> None:
    @dataclass
    class Other:
        x: int

    with pytest.raises(EncodeError, match="Other"):
        values.dumps(Other(1))
    declare(name="gone")(Other)
    data = values.dumps(Other(1))
    declared._by_name.pop("gone")
    with pytest.raises(DecodeError, match="'gone'"):
        values.loads(data)


def test_a_new_field_gets_its_default_and_a_lost_or_missing_one_is_refused() -> None:
    @declare(name="v")
    @dataclass
    class First:
        x: int

    data = values.dumps(First(1))
    declared._by_name.pop("v")

    @declare(name="v")
    @dataclass
    class Second:
        x: int
        y: list[int] = field(default_factory=list)

    assert values.loads(data) == Second(1, [])
    newer = values.dumps(Second(1))
    declared._by_name["v"] = First
    with pytest.raises(DecodeError, match="'y'"):
        values.loads(newer)


def test_objects_with_state_beside_their_fields_and_other_classes_are_refused() -> None:
    loud = Loud()
    loud.more = 1  # type: ignore[attr-defined]
    with pytest.raises(EncodeError):
        values.dumps(loud)
    with pytest.raises(TypeError, match="not an enum"):
        declare(int)
    with pytest.raises(ValueError, match="point"):
        declare(name="point")(Loud)


def test_a_declared_object_that_contains_itself_is_refused() -> None:
    loud = Loud()
    loud.items.append(loud)
    with pytest.raises(EncodeError):
        values.dumps(loud)
