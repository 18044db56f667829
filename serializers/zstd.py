"""Compression with Zstandard.

Owns nothing but the stream's form: one Zstandard frame, then the length of its content (8 bytes,
little-endian), by which a cut shows. What a sample says won't shrink is left as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import IO, ClassVar, Literal, cast

import zstandard

from perdure.errors import DecodeError
from perdure.serializer import Buffer, Codec, Limits
from perdure.serializers.chunks import ChunkReader

_SLICE = 1 << 20
_SMALLEST = 256
_SAMPLE = 1 << 16
_WORTH = 0.95  # of the sample's size
_WINDOW = 1 << 27
_LENGTH = 8


class ZstdCodec(Codec):
    """``level``: 1 (fast) to 19 (small)."""

    id: ClassVar[str] = "zstd"
    integrity: ClassVar[Literal["none", "checksum", "authenticated"]] = "none"
    optional: ClassVar[bool] = True

    def __init__(self, level: int = 3) -> None:
        if not 1 <= level <= 19:
            raise ValueError(f"a zstd level is 1 to 19, not {level!r:.40}")
        self.level = level

    def suits(self, pieces: Sequence[Buffer], size: int) -> bool:
        if size < _SMALLEST:
            return False
        if size < 4 * _SAMPLE:
            return True
        longest = memoryview(max(pieces, key=len))
        step = max(_SAMPLE, len(longest) // 3)
        sample = b"".join(longest[at : at + _SAMPLE] for at in range(0, len(longest), step))
        return len(zstandard.ZstdCompressor(level=1).compress(sample)) < _WORTH * len(sample)

    def encode(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        stream = zstandard.ZstdCompressor(level=self.level, write_content_size=False, write_checksum=True).compressobj()
        length = 0
        for chunk in chunks:
            view = memoryview(chunk)
            length += len(view)
            for at in range(0, len(view), _SLICE):
                out = stream.compress(view[at : at + _SLICE])
                if out:
                    yield out
        yield stream.flush() + length.to_bytes(_LENGTH, "little")

    def decode(self, chunks: Iterable[Buffer], limits: Limits) -> Iterator[Buffer]:
        source = _Source(chunks)
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(
            cast(IO[bytes], source), read_size=_SLICE, read_across_frames=True
        )
        total = 0
        while True:
            try:
                out = reader.read(_SLICE)
            except zstandard.ZstdError as error:
                raise DecodeError(f"compressed bytes are damaged: {error!s:.100}") from error
            if not out:
                break
            total += len(out)
            if total > limits.max_bytes:
                raise DecodeError(f"compressed bytes give more than the limit of {limits.max_bytes} bytes")
            yield out
        written = source.trailer()
        if total != written:
            raise DecodeError(f"compressed bytes are cut: they give {total} bytes, {written} were compressed")


class _Source:
    """The chunks as a file, without their last eight bytes."""

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._reader = ChunkReader(chunks)

    def read(self, size: int = -1) -> bytes:
        return self._reader.take(max(0, self._reader.fill(size + _LENGTH) - _LENGTH))

    def trailer(self) -> int:
        size = self._reader.fill(_LENGTH + 1)
        if size != _LENGTH:
            raise DecodeError("compressed bytes are cut, or others follow them")
        return int.from_bytes(self._reader.take(_LENGTH), "little")
