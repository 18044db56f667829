"""Progress that one process shows another without a message: numbers in a mapped temporary file."""

from __future__ import annotations

import mmap
import os
import struct
import tempfile

SLOT = struct.Struct("=Q")


class Counters:
    """``count`` numbers; each slot has one writer. Open the same ``path`` in a child to write there."""

    def __init__(self, count: int, path: str | None = None) -> None:
        self.count = count
        self.owner = path is None
        if path is None:
            fd, path = tempfile.mkstemp(prefix="perdure-counters-")
            os.ftruncate(fd, SLOT.size * count)
        else:
            fd = os.open(path, os.O_RDWR)
        self.path = path
        self._map = mmap.mmap(fd, SLOT.size * count)
        os.close(fd)

    def set(self, slot: int, value: int) -> None:
        SLOT.pack_into(self._map, slot * SLOT.size, value)

    def get(self, slot: int) -> int:
        return int(SLOT.unpack_from(self._map, slot * SLOT.size)[0])

    def total(self) -> int:
        return sum(self.get(i) for i in range(self.count))

    def close(self) -> None:
        self._map.close()
        if self.owner:
            os.unlink(self.path)
