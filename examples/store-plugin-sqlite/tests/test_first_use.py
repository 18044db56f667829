"""A new file that many open at once."""

import asyncio
import sqlite3
import threading
from pathlib import Path

from perdure.store import open_store


def test_a_new_file_waits_while_another_connection_prepares_it(tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "work.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE other (x)")
    other.execute("BEGIN IMMEDIATE")  # what a connection holds on its way to the write-ahead log

    async def use() -> bytes:
        async with open_store(f"sqlite://{tmp_path}/work") as store:
            await store.create("k", b"v")
            return bytes(await store.get("k"))

    release = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    release.start()
    assert asyncio.run(use()) == b"v"
    release.join()
    other.close()


def test_a_crowd_may_be_the_first_to_open_a_file(tmp_path: Path) -> None:
    async def use(number: int) -> None:
        stores = [open_store(f"sqlite://{tmp_path}/work{number}") for _ in range(3)]
        items = [(f"k/{i:02}", b"x") for i in range(40)]
        for answers in await asyncio.gather(*(store.create_many(items) for store in stores)):
            assert not [a for a in answers if a is not None and type(a).__name__ != "AlreadyExists"]
        for store in stores:
            await store.aclose()

    for number in range(5):
        asyncio.run(use(number))
