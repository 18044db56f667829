"""``memory://name``: a store in this process's memory, shared by all instances of one name.

For tests and single-process use. It declares that it survives nothing and serves one process only; a copy
that reaches another process (by pickle or fork) refuses to work rather than be a different, empty store.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator

from perdure.errors import AlreadyExists, NotFound, StoreError
from perdure.store import Capabilities, Data, Page, Store, running_pid
from perdure.store_url import StoreUrl

_PAGE = 1000

_CAPABILITIES = Capabilities(
    durability="memory",
    multi_process=False,
    multi_host=False,
    max_value_bytes=1 << 32,
    max_create_bytes=256 << 20,
    max_key_bytes=1024,
    retry_seconds=0.0,
)


class _Space:
    """The values of one name. Python orders str by code point, which is the order of UTF-8 bytes."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.values: dict[str, bytes] = {}
        self.keys: list[str] = []


_spaces: dict[str, _Space] = {}
_home = running_pid()


class MemoryStore(Store):
    """A store in memory; see the module's text."""

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self._prefix = url.path.strip("/") + "/" if url.path.strip("/") else ""
        self._space = _spaces.setdefault(url.host, _Space())

        self._foreign = False

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self.url, running_pid())

    @classmethod
    def forget(cls, name: str) -> None:
        """Drop the values of ``memory://name``; open instances keep theirs."""
        _spaces.pop(name, None)

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    async def _create(self, key: str, data: Data) -> None:
        full, value, space = self._full(key), bytes(data), self._space
        with space.lock:
            if full in space.values:
                raise AlreadyExists("it exists")
            space.values[full] = value
            insort(space.keys, full)

    async def _put(self, key: str, data: Data) -> None:
        full, value, space = self._full(key), bytes(data), self._space
        with space.lock:
            if full not in space.values:
                insort(space.keys, full)
            space.values[full] = value

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        value = self._find(key)
        return value if start == 0 and end is None else value[start:end]

    async def _stat(self, key: str) -> int:
        return len(self._find(key))

    async def _delete(self, key: str) -> None:
        full, space = self._full(key), self._space
        with space.lock:
            if space.values.pop(full, None) is not None:
                del space.keys[bisect_left(space.keys, full)]

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        first, space, cut = self._full(prefix), self._space, len(self._prefix)
        after = None if start_after is None else self._prefix + start_after
        size = _PAGE if limit is None else min(limit, _PAGE)
        while True:
            with space.lock:
                begin = bisect_left(space.keys, first)
                if after is not None:
                    begin = max(begin, bisect_right(space.keys, after))
                keys = [k for k in space.keys[begin : begin + size] if k.startswith(first)]
                page = [(k[cut:], len(space.values[k])) for k in keys]
            if not page:
                return
            after = self._prefix + page[-1][0]
            yield page

    def _find(self, key: str) -> bytes:
        try:
            return self._space.values[self._full(key)]
        except KeyError:
            raise NotFound("no such key") from None

    def _full(self, key: str) -> str:
        if self._foreign or running_pid() != _home:
            raise StoreError("a memory:// store lives in the process that opened it; use file:// to share one")
        return self._prefix + key


def _reopen(url: str, pid: int) -> MemoryStore:
    store = MemoryStore.make(url)
    store._foreign = pid != running_pid()
    return store
