"""For authors whose client library is blocking: six plain methods, run in threads.

Owns the bridge from the asynchronous contract to blocking methods, nothing else.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import ClassVar

from perdure.store import Data, Page, Store
from perdure.store_url import StoreUrl
from perdure.threads import Threads


class SyncStore(Store):
    """A store whose methods block. Subclasses define ``capabilities`` and the six ``sync_…`` methods.

    They are called in up to ``threads`` threads at once, and in forked children: open connections per thread
    and process (``threading.local`` plus ``os.getpid()``). A call that was cancelled goes on in its thread.
    """

    threads: ClassVar[int] = 8

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self._threads = Threads(self.threads, f"perdure-{url.scheme}")

    @abstractmethod
    def sync_create(self, key: str, data: Data) -> None:
        """As ``Store._create``."""

    @abstractmethod
    def sync_put(self, key: str, data: Data) -> None:
        """As ``Store._put``."""

    @abstractmethod
    def sync_get(self, key: str, start: int, end: int | None) -> Data:
        """As ``Store._get``."""

    @abstractmethod
    def sync_stat(self, key: str) -> int:
        """As ``Store._stat``."""

    @abstractmethod
    def sync_delete(self, key: str) -> None:
        """As ``Store._delete``."""

    @abstractmethod
    def sync_list(self, prefix: str, start_after: str | None, limit: int) -> Iterable[tuple[str, int]]:
        """The first ``limit`` of what ``Store.list`` wants; called again with the last key as
        ``start_after``.
        """

    def sync_close(self) -> None:
        """Free what the store holds; called once, in the thread of the event loop."""

    async def _create(self, key: str, data: Data) -> None:
        await self._threads.run(partial(self.sync_create, key, data))

    async def _put(self, key: str, data: Data) -> None:
        await self._threads.run(partial(self.sync_put, key, data))

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        return await self._threads.run(partial(self.sync_get, key, start, end))

    async def _stat(self, key: str) -> int:
        return await self._threads.run(partial(self.sync_stat, key))

    async def _delete(self, key: str) -> None:
        await self._threads.run(partial(self.sync_delete, key))

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        wanted = 1000 if limit is None else min(limit, 1000)
        while True:
            page = await self._threads.run(partial(self._page, prefix, start_after, wanted))
            if page:
                yield page
            if len(page) < wanted:
                return
            start_after = page[-1][0]

    def _page(self, prefix: str, start_after: str | None, limit: int) -> list[tuple[str, int]]:
        return list(self.sync_list(prefix, start_after, limit))

    async def _aclose(self) -> None:
        await self._threads.aclose()
        self.sync_close()
