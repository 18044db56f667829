from fractions import Fraction

import pytest

from perdure.errors import DecodeError
from perdure.values import Values

VALUES = Values(["data", "fraction"], trust="data")


@pytest.mark.parametrize("value", [Fraction(1, 3), Fraction(-(2**200), 7), [Fraction(1), Fraction(2, 5)]])
def test_fractions_come_back_exactly(value: object) -> None:
    dumped = VALUES.dump(value)
    assert dumped.serializer == "fraction"
    assert VALUES.load(dumped.join()) == value


def test_plain_values_stay_with_data() -> None:
    assert VALUES.dump([1]).serializer == "data"


@pytest.mark.parametrize("data", [b"", b";", b"x;", b"1;", b"11;", b"11/0;", b"1g/1;", b"*1/1 ;", b"11/10", b"1\xff;"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(DecodeError):
        VALUES.serializer("fraction").load([memoryview(data)], VALUES.limits)
