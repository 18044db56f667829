"""Plain values as MessagePack: containers and scalars of exact types, with a hook for leaves of other types.

Owns the data format that the serializers ``data`` and ``arrow`` share: which types are kept, and their bytes
(docs/format.md, "Plain values"). Never accepts a subclass, never imports what it meets, never runs code on
load.

Native in MessagePack: None, bool, int of 64 bits, float, str, bytes, list, and dict of up to 255 entries with
str keys. All else is an extension type whose body is MessagePack again.
"""

from __future__ import annotations

import datetime as dt
import struct
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from perdure import references
from perdure.errors import EncodeError
from perdure.serializer import Buffer, Pieces
from perdure.serializers import declared

TUPLE: Final = 1
SET: Final = 2
FROZENSET: Final = 3
DICT: Final = 4
INT: Final = 5
STR: Final = 6
DATETIME: Final = 7
DATE: Final = 8
TIME: Final = 9
TIMEDELTA: Final = 10
DECIMAL: Final = 11
UUID_: Final = 12
COMPLEX: Final = 13
BYTEARRAY: Final = 14
RANGE: Final = 15
REF: Final = 16
BYTES: Final = 17
FIRST_FOREIGN: Final = 32
"""Codes from here on belong to the serializer that gives the hook."""

MAX_DEPTH: Final = 100
MAX_MAP: Final = 255  # entries of a native map; larger ones are checked before they are built
_LARGE = 1 << 16  # bytes from here on travel in a buffer of their own
_REPEATS = 1_000_000  # elements of containers met again, before sharing is taken for an explosion
SAME_HASH: Final = 64  # keys with one hash, before a dict or set is taken for an attack

Hook = Callable[["Writer", object], Any]
"""Turns a leaf of another type into something encodable (an ``Ext``), or returns ``NotImplemented``."""

_ATOMS = frozenset({type(None), bool, int, float, str})
STR_ONLY: Final = frozenset({str})
_encode = msgspec.msgpack.Encoder().encode
COMPLEX_FORM: Final = struct.Struct("<dd")


class NotPlain(Exception):
    """The value holds something that this format does not keep. Its argument is that object."""


class Writer:
    """One encoding. ``buffers`` are those after the first, in the order of their numbers (from 1)."""

    __slots__ = ("_depth", "_exact", "_hook", "_repeats", "_seen", "buffers")

    def __init__(self, hook: Hook | None = None) -> None:
        self.buffers: list[Buffer | Pieces] = []
        self._hook = hook
        self._depth = 0
        self._exact = False
        self._seen: dict[int, bool] = {}
        self._repeats = 0

    def encode(self, obj: object) -> bytes:
        """The first buffer. NotPlain: not in this format."""
        try:
            try:
                return _encode(self.plain(obj))
            except (OverflowError, UnicodeEncodeError):
                # An int beyond 64 bits or a lone surrogate in a container of atoms, which is not looked into.
                self._exact = True
                self.buffers.clear()
                self._depth, self._repeats = 0, 0
                self._seen.clear()
                return _encode(self.plain(obj))
        except RecursionError:  # the caller's own stack is deep
            raise NotPlain(obj) from None

    def nested(self, code: int, obj: object) -> Ext:
        return Ext(code, _encode(obj))

    def buffer(self, data: Buffer | Pieces) -> int:
        """Put data out of band; its number."""
        self.buffers.append(data)
        return len(self.buffers)

    def plain(self, obj: Any) -> Any:
        """What MessagePack can hold in place of the object. NotPlain: nothing."""
        kind = type(obj)
        if kind in _ATOMS:
            return obj if not self._exact else _exact_atom(obj)
        if kind is bytes:
            return obj if len(obj) < _LARGE else self.nested(BYTES, self.buffer(obj))
        if kind is list or kind is dict or kind is tuple or kind is set or kind is frozenset:
            return self._container(obj, kind)
        scalar = _SCALARS.get(kind)
        if scalar is not None:
            return scalar(self, obj)
        state = declared.fields_of(obj)
        if state is not None:
            return self._declared(obj, *state)
        if references.is_ref(obj):
            return self.nested(REF, references.collect(obj))
        if self._hook is not None:
            found = self._hook(self, obj)
            if found is not NotImplemented:
                return found
        raise NotPlain(obj)

    def _declared(self, obj: object, name: str, state: list[Any]) -> Ext:
        # The object may contain itself through its fields.
        if self._depth >= MAX_DEPTH or self._seen.get(id(obj)):
            raise NotPlain(obj)
        self._seen[id(obj)] = True
        self._depth += 1
        try:
            return self.nested(declared.CODE, [name, [self.plain(part) for part in state]])
        finally:
            self._depth -= 1
            self._seen[id(obj)] = False

    def _container(self, obj: Any, kind: type) -> Any:
        identity = id(obj)
        active = self._seen.get(identity)
        if active is not None:
            self._repeats += 1 + len(obj)
            if active or self._repeats > _REPEATS:
                raise NotPlain(obj)
        if self._depth >= MAX_DEPTH:
            raise NotPlain(obj)
        self._seen[identity] = True
        self._depth += 1
        try:
            if kind is list:
                return self._items(obj)
            if kind is dict:
                if len(obj) > MAX_MAP or not STR_ONLY.issuperset(map(type, obj)):
                    return self._pairs(obj)
                if self._exact:
                    if any(type(_exact_atom(k)) is Ext for k in obj):
                        return self._pairs(obj)
                elif _ATOMS.issuperset(map(type, obj.values())):
                    return obj
                plain = self.plain
                return {k: plain(v) for k, v in obj.items()}
            if kind is tuple:
                return self.nested(TUPLE, self._items(obj))
            if same_hash(obj) > SAME_HASH:
                raise NotPlain(obj)
            # In the order of their bytes: equal sets give equal bytes in every process.
            items = sorted(_encode(self.plain(item)) for item in obj)
            return self.nested(SET if kind is set else FROZENSET, [msgspec.Raw(item) for item in items])
        finally:
            self._depth -= 1
            self._seen[identity] = False

    def _pairs(self, obj: dict[Any, Any]) -> Ext:
        if same_hash(obj) > SAME_HASH:
            raise NotPlain(obj)
        return self.nested(DICT, [self._items(list(obj)), self._items(list(obj.values()))])

    def _items(self, items: Sequence[Any]) -> Any:
        if not self._exact and _ATOMS.issuperset(map(type, items)):
            return items
        plain = self.plain
        return [plain(item) for item in items]


def encode(obj: object, hook: Hook | None = None) -> list[Buffer | Pieces]:
    """All buffers of a value. NotPlain: not in this format."""
    writer = Writer(hook)
    first = writer.encode(obj)
    return [first, *writer.buffers]


def same_hash(keys: Collection[Any]) -> int:
    """How many keys have one hash, where there are enough to matter."""
    # Numbers, tuples and their like hash to what their maker wants: a dict of such keys takes quadratic time.
    if len(keys) <= SAME_HASH or STR_ONLY.issuperset(map(type, keys)):
        return 0
    return max(Counter(map(hash, keys)).values())


def explain(obj: object) -> str:
    """Why an object that raised NotPlain is not kept."""
    if type(obj) in (list, dict, tuple, set, frozenset):
        return f"it contains itself, is nested deeper than {MAX_DEPTH}, or has many keys of one hash"
    return f"{type(obj).__module__}.{type(obj).__qualname__} is not a plain type"


# Encoding of single types.


def _exact_atom(obj: Any) -> Any:
    kind = type(obj)
    if kind is int and not -(1 << 63) <= obj < 1 << 64:
        return Ext(INT, obj.to_bytes(obj.bit_length() // 8 + 1, "little", signed=True))
    if kind is str and not obj.isascii():
        try:
            obj.encode()
        except UnicodeEncodeError:
            return Ext(STR, obj.encode("utf-8", "surrogatepass"))
    return obj


def _zone(value: dt.datetime | dt.time) -> list[Any] | None:
    zone = value.tzinfo
    if zone is None:
        return None
    if type(zone) is not dt.timezone:
        raise NotPlain(value)
    offset = zone.utcoffset(None)
    arguments = zone.__getinitargs__()  # type: ignore[attr-defined]
    return [offset.days, offset.seconds, offset.microseconds, *arguments[1:]]


def _datetime(writer: Writer, v: dt.datetime) -> Ext:
    return writer.nested(
        DATETIME, [v.year, v.month, v.day, v.hour, v.minute, v.second, v.microsecond, v.fold, _zone(v)]
    )


def _time(writer: Writer, v: dt.time) -> Ext:
    return writer.nested(TIME, [v.hour, v.minute, v.second, v.microsecond, v.fold, _zone(v)])


def _bytearray(writer: Writer, v: bytearray) -> Ext:
    return Ext(BYTEARRAY, bytes(v))


def _range(writer: Writer, v: range) -> Ext:
    parts = [_exact_atom(part) for part in (v.start, v.stop, v.step)]
    return writer.nested(RANGE, parts)


_SCALARS: dict[type, Callable[[Writer, Any], Any]] = {
    dt.datetime: _datetime,
    dt.date: lambda w, v: w.nested(DATE, [v.year, v.month, v.day]),
    dt.time: _time,
    dt.timedelta: lambda w, v: w.nested(TIMEDELTA, [v.days, v.seconds, v.microseconds]),
    Decimal: lambda w, v: Ext(DECIMAL, str(v).encode()),
    UUID: lambda w, v: Ext(UUID_, v.bytes),
    complex: lambda w, v: Ext(COMPLEX, COMPLEX_FORM.pack(v.real, v.imag)),
    bytearray: _bytearray,
    range: _range,
}


def plain_error(obj: object, found: object, name: str) -> EncodeError:
    return EncodeError(f"the serializer {name!r} can't keep {type(obj).__name__}: {explain(found)}")
