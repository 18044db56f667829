"""Stores on fsspec's filesystems beyond the contract: their options, and one version for each download."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from perdure.errors import NotFound
from perdure.store import open_store


@pytest.mark.parametrize("protocol", ["memory", "file"])
async def test_an_option_that_the_filesystem_does_not_know_is_refused_by_name(protocol: str, tmp_path: Path) -> None:
    async with open_store(f"fsspec+{protocol}://{tmp_path}/s?no_such=1") as store:
        with pytest.raises(ValueError, match="no option 'no_such'"):
            await store.get("k")


async def test_an_option_that_the_filesystem_knows_reaches_it(tmp_path: Path) -> None:
    async with open_store(f"fsspec+file://{tmp_path}/s?auto_mkdir=true") as store:
        await store.put("k", b"x")
        assert bytes(await store.get("k")) == b"x"


@pytest.mark.parametrize("protocol", ["memory", "file"])
@pytest.mark.parametrize("then", ["replaced", "deleted"])
async def test_a_download_keeps_the_version_that_it_began_with(protocol: str, then: str, tmp_path: Path) -> None:
    old, new = bytes(9 << 20), b"n" * (9 << 20)
    async with open_store(f"fsspec+{protocol}://{tmp_path}/{then}") as store:
        await store.put("k", old)
        chunks = store.download("k").__aiter__()
        first = bytes(await chunks.__anext__())
        await (store.put("k", new) if then == "replaced" else store.delete("k"))
        rest = [bytes(chunk) async for chunk in chunks]
        assert rest
        assert b"".join([first, *rest]) == old
        await store.delete("k")
        with pytest.raises(NotFound):
            await store.download("k").__aiter__().__anext__()


async def test_threads_that_share_the_memory_filesystem_read_whole_values_and_listings() -> None:
    async with open_store("fsspec+memory://threads/a") as one, open_store("fsspec+memory://threads/b") as two:
        await one.put("k", b"0" * 5000)

        async def write(n: int) -> None:
            await two.put(f"n/{n}", b"x" * n)
            await one.put("k", str(n % 10).encode() * 5000)

        async def read() -> None:
            value = bytes(await one.get("k"))
            assert len(value) == 5000
            assert len(set(value)) == 1
            assert [key async for key, _ in one.list("")] == ["k"]

        await asyncio.gather(*(call for n in range(300) for call in (write(n), read())))
