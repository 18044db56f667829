"""From the order of a server that lists folder by folder to the bytewise order of keys, page by page.

SeaweedFS walks a tree: all of ``a/`` comes before ``a-b``, though ``-`` is less than ``/``. So what is below a folder
is held back until no name can follow that stands before it; what has no folder below the listed prefix is not held.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Final

from perdure.backends.local_names import CONTINUES
from perdure.errors import StoreError

_LONG: Final = 200
"""Longer names of folders may have been cut in pieces, whose order is another."""


class KeyOrder:
    """Takes names in the server's order (spelled, from the listed folder on, ending in ``!``) with their keys."""

    def __init__(self) -> None:
        self._held: list[tuple[str, int, str]] = []
        self._last = ""

    def take(self, name: str, key: str, size: int) -> Iterator[tuple[str, int]]:
        """One more; gives what nothing that comes later can stand before."""
        heapq.heappush(self._held, (key, size, name))
        newest = name.partition("/")[0]
        while self._held and _settled(self._held[0][2], newest):
            yield self._pop()

    def rest(self) -> Iterator[tuple[str, int]]:
        """At the end of the list: everything."""
        while self._held:
            yield self._pop()

    def _pop(self) -> tuple[str, int]:
        key, size, _ = heapq.heappop(self._held)
        if key < self._last:
            raise StoreError(f"the server's list is out of order: {key!r:.100} came after {self._last!r:.100}")
        self._last = key
        return key, size


def _settled(name: str, newest: str) -> bool:
    """Stands every key before ``name``'s in the list, once it has come to ``newest`` (the first part of a name)?

    A name with escapes waits for the end. Among plain ones, a later sibling of the folder ``a`` stands before what is
    in it only if it begins with ``a`` and goes on with less than ``/``: with ``!``, the key ``a`` itself, or ``-``.
    """
    if "!" in name[:-1] or CONTINUES in name:
        return False
    first, slash, _ = name.partition("/")
    return not slash or (len(first) <= _LONG and newest >= first + "/")
