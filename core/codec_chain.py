"""The codecs of an envelope: applied to each buffer by itself, and undone under limits.

Owns order, omission and binding to a place; knows no codec and no layout. A codec that is optional is left
out of a buffer that it does not shrink, and a mask in the header says where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import msgspec

from perdure.errors import DecodeError, FormatError
from perdure.serializer import Buffer, Codec, Limits

_MOST_CODECS = 8


class Place(msgspec.Struct, array_like=True, frozen=True):
    """What a codec that authenticates is bound to: where the value belongs and what its header says of it."""

    context: bytes
    serializer: str
    version: int
    sizes: tuple[int, ...]

    def of(self, number: int) -> bytes:
        """The place of one buffer."""
        return msgspec.msgpack.encode(self) + number.to_bytes(8, "little")


def apply(
    contents: list[list[Buffer]], place: Place, codecs: Sequence[Codec]
) -> tuple[list[list[Buffer]], tuple[int, ...], tuple[int, ...]]:
    stored: list[int] = []
    applied: list[int] = []
    results: list[list[Buffer]] = []
    for number, pieces in enumerate(contents):
        size, mask = place.sizes[number], 0
        bound = place.of(number)
        for position, codec in enumerate(codecs):
            if codec.optional and not codec.suits(pieces, size):
                continue
            encoded = list(codec.bind(bound).encode(pieces))
            length = sum(memoryview(chunk).nbytes for chunk in encoded)
            if codec.optional and length >= size:
                continue
            pieces, size, mask = encoded, length, mask | 1 << position
        results.append(pieces)
        stored.append(size)
        applied.append(mask)
    return results, tuple(stored), tuple(applied)


def undo(
    buffers: list[memoryview],
    names: tuple[str, ...],
    applied: tuple[int, ...],
    place: Place,
    limits: Limits,
    key: str,
    codec: Callable[[str], Codec] | None,
) -> list[memoryview]:
    if codec is None:
        raise DecodeError(f"{key} was stored with the codecs {', '.join(names)}; none was given to read it")
    if len(names) > _MOST_CODECS:
        raise FormatError(f"{key}: {len(names)} codecs; the most is {_MOST_CODECS}")
    found = [codec(name) for name in names]
    results: list[memoryview] = []
    for number, buffer in enumerate(buffers):
        size, mask = place.sizes[number], applied[number]
        if not 0 <= mask < 1 << len(found):
            raise FormatError(f"{key}: the envelope's header names a codec that it doesn't list")
        used = [c for position, c in enumerate(found) if mask >> position & 1]
        if any(not c.optional and not mask >> position & 1 for position, c in enumerate(found)):
            raise FormatError(f"{key}: a codec that may not be left out was left out")
        if used:
            # A codec before the last may grow what it got a little: what it gives is bounded loosely, the
            # result exactly.
            chunks: Iterable[Buffer] = (buffer,)
            bound = place.of(number)
            for position, each in enumerate(reversed(used)):
                room = size if position == len(used) - 1 else size + (size >> 4) + 4096
                chunks = each.bind(bound).decode(chunks, Limits(room, limits.max_buffers, limits.max_depth))
            buffer = _gather(chunks, size, key)
        elif len(buffer) != size:
            raise FormatError(f"{key}: buffer {number} has {len(buffer)} bytes, its header says {size}")
        results.append(buffer)
    return results


def _gather(chunks: Iterable[Buffer], size: int, key: str) -> memoryview:
    # Grows with what really arrives: a declared size takes no memory by itself.
    whole = bytearray()
    for chunk in chunks:
        whole += chunk
        if len(whole) > size:
            raise DecodeError(f"{key}: a codec gave more than the {size} bytes that the header declares")
    if len(whole) != size:
        raise DecodeError(f"{key}: a codec gave {len(whole)} bytes, the header declares {size}")
    return memoryview(whole).toreadonly()
