"""What a store holds of a workflow, read in this process by the chain's own rules, with no cluster."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

from perdure import keys
from perdure.chain import Chain
from perdure.guarded_store import GuardedStore
from perdure.lease import compact_pages, roster_of
from perdure.state import State, TaskStatus, compact, fold
from perdure.store import open_store


def segments(storage: Path | str, workflow_id: str) -> int:
    """How many segments lie in a workflow's chain (ids of plain characters only)."""
    if "://" in str(storage):
        return len(keys_below(storage, f"w/{workflow_id}/j/"))
    try:
        names = os.listdir(Path(storage) / "w" / workflow_id / "j")
    except FileNotFoundError:
        return 0
    return sum(name.endswith(".obj") for name in names)


def keys_below(storage: Path | str, prefix: str) -> list[str]:
    """The keys of a store that begin with ``prefix``."""

    async def read() -> list[str]:
        async with open_store(str(storage)) as store:
            return [key async for key, _ in store.list(prefix)]

    return asyncio.run(read())


def state(storage: Path | str, workflow_id: str) -> tuple[State, int, str]:
    """Folded state, number of the last segment, and who entered last."""

    async def read() -> tuple[State, int, str]:
        async with open_store(str(storage)) as store:
            chain = Chain(GuardedStore(store), keys.workflow_chain(workflow_id), "reader", lambda: b"", compact)
            view = await chain.read()
            assert view.header is not None
            return fold(view.records, keep=True), view.number, view.header.entry_by

    return asyncio.run(read())


def parts(storage: Path | str, workflow_id: str) -> list[str]:
    """The keys of the base parts that a workflow's chain names."""

    async def read() -> list[str]:
        async with open_store(str(storage)) as store:
            chain = Chain(GuardedStore(store), keys.workflow_chain(workflow_id), "reader", lambda: b"", compact)
            header = (await chain.read()).header
            assert header is not None
            return [keys.parts(chain.prefix) + name for name, _ in header.parts]

    return asyncio.run(read())


def done(storage: Path | str, workflow_id: str) -> set[str]:
    """Names of the tasks whose results are stored."""
    found, _, _ = state(storage, workflow_id)
    return {t.name for t in found.tasks if t.status in (TaskStatus.DONE, TaskStatus.CONTINUED)}


def executions(side: Path, workflow_id: str) -> Counter[str]:
    """How often each task began, by the side file."""
    try:
        lines = side.read_text().splitlines()
    except FileNotFoundError:
        return Counter()
    return Counter(task for found, task, _, _ in map(str.split, lines) if found == workflow_id)


def retired(storage: Path | str, coordinator: str) -> bool:
    async def read() -> bool:
        async with open_store(str(storage)) as store:
            chain = Chain(
                GuardedStore(store), keys.coordinator_chain(coordinator), "reader", lambda: b"", compact_pages
            )
            return roster_of(coordinator, await chain.read()).retired

    return asyncio.run(read())
