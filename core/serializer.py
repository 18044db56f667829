"""The contract of serializers and codecs: what turns a value into buffers, and buffers into other bytes.

Owns the interfaces and the limits of loading; knows no serializer and no codec by name (``perdure.values``
finds them through the registry). A serializer is value ↔ buffers, a codec is bytes ↔ bytes; the envelope
names both, so nothing is ever guessed. docs/writing-a-serializer.md is the guide; the rules, which the
conformance suite checks:

- ``load(dump(x))`` equals x in value and type. Types that can't be kept exactly are not accepted.
- Loading is total: any bytes give a value or ``DecodeError``, in bounded time, memory and depth.
- ``runs_code=False`` means that loading runs no code, imports nothing and touches no file or network,
  whatever the bytes say.
- Instances are cheap, picklable and used by many threads at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
"""Contiguous bytes."""


class Pieces(tuple[Buffer, ...]):
    """One buffer given as parts that follow each other, so that they need not be joined in memory."""

    __slots__ = ()

    @property
    def nbytes(self) -> int:
        return sum(len(piece) for piece in self)


Dump: TypeAlias = Sequence[Buffer | Pieces]
"""What ``dump`` returns: a small buffer first, then the large ones, by reference."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What loading may take; beyond it is a ``DecodeError`` before the memory is taken.

    ``max_bytes``: of all buffers of one value, decompressed. ``max_buffers``: their number. ``max_depth``: of
    nesting.
    """

    max_bytes: int = 1 << 40
    max_buffers: int = 1 << 20
    max_depth: int = 100


DEFAULT_LIMITS = Limits()


class Serializer(ABC):
    """Subclass it or offer the same members. Found by entry points of the group ``perdure.serializers``.

    ``id`` is ``[a-z0-9][a-z0-9._-]{0,31}``, stands in every stored value and equals the entry point's name.
    ``version`` is what ``dump`` writes; ``load`` reads it and all older ones, which the bytes must tell
    apart. ``runs_code``: can loading run code that the bytes choose?
    """

    id: ClassVar[str]
    version: ClassVar[int] = 1
    runs_code: ClassVar[bool]

    @abstractmethod
    def accepts(self, obj: object) -> bool:
        """Whether ``dump`` keeps this object exactly. Imports nothing and raises nothing."""

    @abstractmethod
    def dump(self, obj: object) -> Dump:
        """The object's buffers. EncodeError, with the path inside the object, where it can't be kept."""

    @abstractmethod
    def load(self, buffers: Sequence[memoryview], limits: Limits) -> object:
        """The object. ``buffers`` are read-only and may be used without a copy. DecodeError: they are no
        value.
        """

    def attempt(self, obj: object) -> Dump | None:
        """``dump`` if ``accepts``, else None. Override it where one walk can do both."""
        return self.dump(obj) if self.accepts(obj) else None


class Codec(ABC):
    """Bytes ↔ bytes, streaming. Found by entry points of the group ``perdure.codecs``.

    ``integrity``: what ``decode`` notices by itself. ``optional``: the envelope may leave the codec out for a
    buffer that it does not shrink.
    """

    id: ClassVar[str]
    integrity: ClassVar[Literal["none", "checksum", "authenticated"]] = "none"
    optional: ClassVar[bool] = False
    keyed: ClassVar[bool] = False
    """Made with a ``perdure.keyring.Keyring`` as its only argument."""

    @abstractmethod
    def encode(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        """Encoded chunks, in any sizes."""

    @abstractmethod
    def decode(self, chunks: Iterable[Buffer], limits: Limits) -> Iterator[Buffer]:
        """The chunks' content; DecodeError for what ``encode`` never gave or more than
        ``limits.max_bytes``.
        """

    def bind(self, context: bytes) -> Codec:
        """This codec, bound to the place of the value; one that authenticates refuses any other place."""
        return self

    def suits(self, pieces: Sequence[Buffer], size: int) -> bool:
        """Whether to try this buffer of ``size`` bytes at all; asked only where the codec is optional."""
        return True


class AdaptedSerializer(Serializer):
    """An object that offers the required members without being a ``Serializer``."""

    id = "adapted"
    runs_code = True

    def __init__(self, inner: Any) -> None:
        self.id, self.version, self.runs_code = inner.id, inner.version, inner.runs_code  # type: ignore[misc]
        self._inner = inner

    def accepts(self, obj: object) -> bool:
        return bool(self._inner.accepts(obj))

    def dump(self, obj: object) -> Dump:
        found: Dump = self._inner.dump(obj)
        return found

    def load(self, buffers: Sequence[memoryview], limits: Limits) -> object:
        return self._inner.load(buffers, limits)


class AdaptedCodec(Codec):
    """An object that offers the required members without being a ``Codec``."""

    id = "adapted"

    def __init__(self, inner: Any) -> None:
        self.id = inner.id  # type: ignore[misc]
        self._inner = inner

    def encode(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        return iter(self._inner.encode(chunks))

    def decode(self, chunks: Iterable[Buffer], limits: Limits) -> Iterator[Buffer]:
        return iter(self._inner.decode(chunks, limits))
