"""Going through a store's keys in pages: memory is bounded by the keys of one chain, however large the store is."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Final

from perdure.guarded_store import GuardedStore

PAGE: Final = 1000


async def pages(store: GuardedStore, prefix: str) -> AsyncIterator[list[tuple[str, int]]]:
    """(key, size) of all keys below a prefix, a page at a time. Keys that come or go meanwhile may be seen or not."""
    last: str | None = None
    while True:
        page = await store.list_sizes(prefix, last, PAGE)
        if page:
            yield page
        if len(page) < PAGE:
            return
        last = page[-1][0]


async def folders(store: GuardedStore, prefix: str) -> AsyncIterator[tuple[str, list[str]]]:
    """Of keys ``<prefix><name>/…``: each ``<prefix><name>/`` with all its keys."""
    depth = prefix.count("/") + 1
    name, gathered = "", list[str]()
    async for page in pages(store, prefix):
        for folder, keys in itertools.groupby((key for key, _ in page), lambda key: _folder(key, depth)):
            if folder != name:
                if gathered:
                    yield name, gathered
                name, gathered = folder, []
            gathered.extend(keys)
    if gathered:
        yield name, gathered


def _folder(key: str, depth: int) -> str:
    return "/".join(key.split("/", depth)[:depth]) + "/"
