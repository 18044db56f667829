"""The page about writing a store, and the example that follows it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from support.distributions import install, run

from perdure import registry
from perdure.guarded_store import probe
from perdure.store import open_store

ROOT = Path(__file__).parents[2]


def test_the_store_of_the_page_works() -> None:
    page = (ROOT / "docs" / "writing-a-store.md").read_text()
    names: dict[str, object] = {"__name__": "page"}
    first, *others = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(first, "writing-a-store.md", "exec", dont_inherit=True), names)
    for block in others:
        compile(block, "writing-a-store.md", "exec")

    async def use() -> None:
        async with open_store("shelf://kitchen?colour=pine") as store:
            await probe(store)
            await store.upload("k", [b"a", b"b"])
            assert bytes(await store.get("k", 1)) == b"b"
            assert [item async for item in store.list("")] == [("k", 2)]

    with registry.registered(registry.STORES, "shelf", names["ShelfStore"]):
        asyncio.run(use())


def test_the_example_distribution_installs_and_conforms(tmp_path: Path) -> None:
    site = install(ROOT / "examples" / "store-plugin-sqlite", tmp_path)
    tests = str(ROOT / "examples" / "store-plugin-sqlite" / "tests")
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), tests], site, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
