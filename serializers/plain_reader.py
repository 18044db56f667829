"""Loading of plain values: total, whatever the bytes say.

Owns the other direction of ``perdure.serializers.plain``. Any bytes give a value or DecodeError in bounded
time, memory and depth; nothing is imported, called or opened because bytes say so.
"""

from __future__ import annotations

import datetime as dt
import re
import struct
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from perdure import references
from perdure.errors import DecodeError
from perdure.serializer import DEFAULT_LIMITS, Limits
from perdure.serializers import declared
from perdure.serializers.plain import (
    BYTEARRAY,
    BYTES,
    COMPLEX,
    COMPLEX_FORM,
    DATE,
    DATETIME,
    DECIMAL,
    DICT,
    FIRST_FOREIGN,
    FROZENSET,
    INT,
    MAX_DEPTH,
    MAX_MAP,
    RANGE,
    REF,
    SAME_HASH,
    SET,
    STR,
    TIME,
    TIMEDELTA,
    TUPLE,
    UUID_,
    same_hash,
)

ForeignLoad = Callable[["Reader", int, memoryview], Any]


class Reader:
    """One decoding; total: any bytes give a value or DecodeError."""

    __slots__ = ("_deepest", "_depth", "_foreign", "buffers", "limits")

    def __init__(
        self,
        buffers: Sequence[memoryview],
        limits: Limits = DEFAULT_LIMITS,
        foreign: ForeignLoad | None = None,
    ) -> None:
        self.buffers = buffers
        self.limits = limits
        self._foreign = foreign
        self._depth = 0
        self._deepest = min(limits.max_depth, MAX_DEPTH)

    def decode(self) -> Any:
        if not self.buffers:
            raise DecodeError("the value has no buffer")
        try:
            return self.nested(self.buffers[0])
        except DecodeError:
            raise
        except RecursionError as error:
            raise DecodeError("the value is nested too deeply") from error
        except (
            msgspec.MsgspecError,
            ValueError,
            TypeError,
            OverflowError,
            ArithmeticError,
            LookupError,
            AttributeError,
            struct.error,
        ) as error:
            raise DecodeError(
                f"the bytes are no value of this format: {type(error).__name__}: {error!s:.150}"
            ) from error

    def nested(self, body: memoryview) -> Any:
        """The MessagePack value in the body of an extension."""
        if len(body) >= _SCAN_FROM and _SUSPECT.search(body) is not None:
            _refuse_large_maps(body)
        return msgspec.msgpack.decode(body, ext_hook=self._extension)

    def buffer(self, number: object) -> memoryview:
        if type(number) is not int or not 1 <= number < len(self.buffers):
            raise DecodeError(f"the value names buffer {number!r:.50}; it has {len(self.buffers)}")
        return self.buffers[number]

    def _extension(self, code: int, body: memoryview) -> Any:
        if code >= FIRST_FOREIGN and self._foreign is not None:
            return self._foreign(self, code, body)
        load = _LOADS.get(code)
        if load is None:
            raise DecodeError(f"the value has the unknown extension {code}; a newer Perdure may have written it")
        if self._depth >= self._deepest:
            raise DecodeError(f"the value is nested deeper than {self._deepest}")
        self._depth += 1
        value = load(self, body)
        self._depth -= 1  # not after an error: it ends the decoding
        return value


def _items(reader: Reader, body: memoryview) -> list[Any]:
    items = reader.nested(body)
    if type(items) is not list:
        raise DecodeError(f"an extension holds {type(items).__name__}, expected an array")
    return items


# Runs of tokens that are neither large maps nor of variable length, as one match of the regular expression
# engine.
_RUN = re.compile(
    rb"(?s)(?:[\x00-\x9f\xc0\xc2\xc3\xe0-\xff]|\xcb.{8}|[\xcc\xd0].|[\xcd\xd1\xdc]..|[\xca\xce\xd2\xdd].{4}"
    rb"|[\xcf\xd3].{8}|\xde\x00.|\xd4..|\xd5.{3}|\xd6.{5}|\xd7.{9}|\xd8.{17}|"
    + b"|".join(bytes((0xA0 + size,)) + b".{%d}" % size for size in range(32))
    + rb")++"
)
_SUSPECT = re.compile(rb"\xde[\x01-\xff]|\xdf")
_SCAN_FROM = 1 << 13
# First byte of a token of variable length: bytes of its length, and those before its content (the code of an
# ext).
_VARIABLE = {0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0), 0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)} | {
    0xD9: (1, 0),
    0xDA: (2, 0),
    0xDB: (4, 0),
}


def _refuse_large_maps(body: memoryview) -> None:
    # MessagePack lets a map have arrays as keys, which hash to what their maker wants: a large one would take
    # quadratic time before any hook sees it. What this format writes has no large native map.
    at, end = 0, len(body)
    while at < end:
        run = _RUN.match(body, at)
        if run is not None:
            at = run.end()
            continue
        variable = _VARIABLE.get(body[at])
        if variable is None:
            raise DecodeError(f"a map of more than {MAX_MAP} entries, or a cut token, at byte {at}")
        width, extra = variable
        at += 1 + width + extra + int.from_bytes(body[at + 1 : at + 1 + width], "big")


def _check_hashes(keys: list[Any]) -> None:
    same = same_hash(keys)
    if same > SAME_HASH:
        raise DecodeError(f"{same} keys of a dict or set have one hash")


def _load_set(reader: Reader, body: memoryview) -> set[Any]:
    items = _items(reader, body)
    _check_hashes(items)
    return set(items)


def _load_dict(reader: Reader, body: memoryview) -> dict[Any, Any]:
    keys, values = _items(reader, body)
    _check_hashes(keys)
    return dict(zip(keys, values, strict=True))


def _load_zone(zone: list[Any] | None) -> dt.timezone | None:
    if zone is None:
        return None
    days, seconds, microseconds, *name = zone
    offset = dt.timedelta(days, seconds, microseconds)
    # The constructor gives the one UTC object for a nameless zero, as the value had.
    return dt.timezone(offset, *name)


def _load_datetime(reader: Reader, body: memoryview) -> dt.datetime:
    year, month, day, hour, minute, second, micro, fold, zone = _items(reader, body)
    return dt.datetime(year, month, day, hour, minute, second, micro, _load_zone(zone), fold=fold)


def _load_time(reader: Reader, body: memoryview) -> dt.time:
    hour, minute, second, micro, fold, zone = _items(reader, body)
    return dt.time(hour, minute, second, micro, _load_zone(zone), fold=fold)


def _load_complex(reader: Reader, body: memoryview) -> complex:
    real, imag = COMPLEX_FORM.unpack(body)
    return complex(real, imag)


def _load_ref(reader: Reader, body: memoryview) -> Any:
    return references.restore(reader.nested(body))


_LOADS: dict[int, Callable[[Reader, memoryview], Any]] = {
    TUPLE: lambda r, b: tuple(_items(r, b)),
    SET: _load_set,
    FROZENSET: lambda r, b: frozenset(_load_set(r, b)),
    DICT: _load_dict,
    INT: lambda r, b: int.from_bytes(b, "little", signed=True),
    STR: lambda r, b: str(b, "utf-8", "surrogatepass"),
    DATETIME: _load_datetime,
    DATE: lambda r, b: dt.date(*_items(r, b)),
    TIME: _load_time,
    TIMEDELTA: lambda r, b: dt.timedelta(*_items(r, b)),
    DECIMAL: lambda r, b: Decimal(str(b, "ascii")),
    UUID_: lambda r, b: UUID(bytes=bytes(b)),
    COMPLEX: _load_complex,
    BYTEARRAY: lambda r, b: bytearray(b),
    RANGE: lambda r, b: range(*_items(r, b)),
    REF: _load_ref,
    declared.CODE: lambda r, b: declared.rebuild(*_items(r, b)),
    BYTES: lambda r, b: bytes(r.buffer(r.nested(b))),
}
