"""Fractions as data: exact, in hexadecimal text, alone or in a list; a semicolon ends it, so that a cut shows."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from perdure.errors import DecodeError, EncodeError
from perdure.serializer import Dump, Limits, Serializer

_LONGEST = 1 << 20


class FractionSerializer(Serializer):
    """A ``Fraction``, or a list of them."""

    id = "fraction"
    version = 1
    runs_code = False

    def accepts(self, obj: object) -> bool:
        # The exact types: a subclass would come back as its base.
        return type(obj) is Fraction or (
            type(obj) is list and bool(obj) and all(type(item) is Fraction for item in obj)
        )

    def dump(self, obj: object) -> Dump:
        if not self.accepts(obj):
            raise EncodeError(f"{type(obj).__name__} is not a Fraction or a list of them")
        if isinstance(obj, Fraction):
            return [b"1" + _text(obj) + b";"]
        assert isinstance(obj, list)
        return [b"*" + b" ".join(map(_text, obj)) + b";"]

    def load(self, buffers: Sequence[memoryview], limits: Limits) -> object:
        if len(buffers) != 1 or len(buffers[0]) > _LONGEST:
            raise DecodeError(f"fractions stand in one buffer of up to {_LONGEST} bytes")
        data, end = bytes(buffers[0][:-1]), bytes(buffers[0][-1:])
        if end != b";":
            raise DecodeError("fractions end with a semicolon: this was cut")
        try:
            if data[:1] == b"1":
                return _fraction(data[1:])
            if data[:1] == b"*":
                return [_fraction(word) for word in data[1:].split(b" ")]
        except (ValueError, ZeroDivisionError) as error:
            raise DecodeError(f"not a fraction: {error!s:.100}") from error
        raise DecodeError(f"fractions begin with 1 or *, not {data[:1]!r}")


def _text(value: Fraction) -> bytes:
    return f"{value.numerator:x}/{value.denominator:x}".encode()


def _fraction(word: bytes) -> Fraction:
    over, under = word.decode("ascii").split("/")
    return Fraction(int(over, 16), int(under, 16))
