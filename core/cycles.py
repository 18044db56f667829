"""GC cycles as a coordinator sees them: which one its new blobs carry, and when it may say so in a page.

Owns the count of what was begun under each cycle and is neither committed nor dropped yet. It collects nothing
(`perdure.care` does), and reads no workflow.

    B1  a record adds references only to blobs of the acknowledged cycle or a later one; anything else is copied first
    B2  a cycle is acknowledged when every task and upload begun under an older one is committed or dropped, unknown
        creates included
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any, TypeVar

from perdure import keys
from perdure.errors import NotFound, PerdureError
from perdure.naming import blobs_of, renamed

logger = logging.getLogger("perdure")

T = TypeVar("T")


class Ticket:
    """Something begun under a cycle, whose blobs may still be named by a record. `leave` once that is decided."""

    __slots__ = ("_cycles", "_open", "cycle")

    def __init__(self, cycles: Cycles, cycle: int) -> None:
        self.cycle = cycle
        self._cycles = cycles
        self._open = True
        cycles.entered(cycle)

    def again(self) -> Ticket:
        """One more of the same cycle, which this one still holds."""
        assert self._open, "a ticket that was left holds nothing"
        return Ticket(self._cycles, self.cycle)

    def leave(self) -> None:
        if self._open:
            self._open = False
            self._cycles.left(self.cycle)


class Cycles:
    """``newest`` is the cycle of what begins now. ``acknowledge`` is called with the newest cycle once nothing holds an
    older one."""

    def __init__(self, store: Any, acknowledge: Callable[[int], None]) -> None:
        self.store = store
        self.newest = 0
        self.acknowledged = 0
        self._acknowledge = acknowledge
        self._held: dict[int, int] = {}

    def begin(self) -> Ticket:
        return Ticket(self, self.newest)

    def entered(self, cycle: int) -> None:
        self._held[cycle] = self._held.get(cycle, 0) + 1

    def left(self, cycle: int) -> None:
        self._held[cycle] -= 1
        if not self._held[cycle]:
            del self._held[cycle]
            self._look_at_held()

    def _look_at_held(self) -> None:
        if self.acknowledged < self.newest and not any(cycle < self.newest for cycle in self._held):  # B2
            self.acknowledged = self.newest
            self._acknowledge(self.newest)

    async def start(self) -> None:
        """L1: after page 0, before anything is begun."""
        found = await self.store.list_keys(keys.CYCLES)
        self.newest = max((keys.segment_number(key) or 0 for key in found), default=0)
        self._look_at_held()

    async def look(self) -> None:
        """Cycles are numbered without gaps and never removed, so the next number tells."""
        while True:
            try:
                await self.store.get(keys.cycle(self.newest + 1))
            except NotFound:
                return
            self.newest += 1
            self._look_at_held()

    async def watch(self, seconds: float) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.look()
            except PerdureError as error:
                logger.warning("the GC cycles can't be read: %s", error)

    async def carried(self, value: T, cycle: int) -> T:
        """The value with every blob of an older cycle copied into this one, which the caller holds (B1).

        NotFound: a blob has been collected already, since nothing named it.
        """
        names: dict[str, str] = {}
        for name in blobs_of(value):
            old = keys.blob_cycle(name)
            if old is not None and old < cycle:
                names[name] = keys.in_cycle(name, cycle)
        for old_name, new_name in names.items():
            await copy_blob(self.store, old_name, new_name)
        return renamed(value, names) if names else value


async def copy_blob(store: Any, old: str, new: str) -> None:
    """Copy within one `GuardedStore`; the same bytes always, so somebody else's copy is as good."""
    size = await store.stat(old)
    try:
        if await store.stat(new) == size:
            return
    except NotFound:
        pass

    def chunks() -> AsyncIterable[Any]:
        async def read() -> AsyncIterator[Any]:
            async for chunk in store.store.download(old):
                yield chunk

        return read()

    await store.upload(new, chunks)
