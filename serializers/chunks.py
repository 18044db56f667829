"""Reading pieces of wanted sizes from chunks of any size. Owns no format; never holds more than was asked
for.
"""

from __future__ import annotations

from collections.abc import Iterable

from perdure.serializer import Buffer


class ChunkReader:
    """A cursor over chunks."""

    __slots__ = ("_chunks", "_held", "_rest")

    def __init__(self, chunks: Iterable[Buffer]) -> None:
        self._chunks = iter(chunks)
        self._held = bytearray()
        self._rest = memoryview(b"")

    def fill(self, size: int) -> int:
        """Bytes that can be taken now: ``size``, or fewer where the chunks end."""
        while len(self._held) < size:
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                view = memoryview(chunk)
                self._rest = view if view.itemsize == 1 and view.ndim == 1 else view.cast("B")
                continue
            room = size - len(self._held)
            self._held += self._rest[:room]
            self._rest = self._rest[room:]
        return min(size, len(self._held))

    def take(self, size: int) -> bytes:
        """Bytes that ``fill`` has promised."""
        out = bytes(self._held[:size])
        del self._held[:size]
        return out
