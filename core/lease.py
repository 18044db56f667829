"""A coordinator's own chain: its lease, its takeover list and the status index, all in one (L1-L6).

Owns pages: what a coordinator announces before it enters a workflow, what it has finished, and since when its
lease holds. Owns also the other side: how a watcher finds a coordinator dead and retires it. It never reads a
workflow's chain.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from perdure import keys
from perdure import records as r
from perdure.chain import CREATED, RETIRED, Chain, ChainStore, EntryLost, Fenced, View
from perdure.clock import Clock
from perdure.errors import AlreadyExists, StoreError

logger = logging.getLogger("perdure")

MARGIN: Final = 0.1
"""Share of the lease that is not used (2 s of 20 s): clock rates may differ by so much (L4)."""
SURELY_OLD: Final = 10
"""A page whose wall time is over so many leases old is not waited for (L5)."""


@dataclass
class Entry:
    """What the pages say of one workflow id: ``number`` orders entries of different coordinators."""

    number: int
    status: str = ""  # "" while it is open
    start: float = 0.0
    end: float = 0.0


@dataclass
class Roster:
    """A coordinator's pages, folded.

    ``opened``: what it may own, with the highest slot that it announced; ``ended``: what it has seen the end of.
    """

    coordinator: str = ""
    opened: dict[str, int] = field(default_factory=dict)
    ended: dict[str, Entry] = field(default_factory=dict)
    wall: float = 0.0
    lease: float = 20.0
    cycle: int = 0
    host: dict[str, str] = field(default_factory=dict)
    retired: bool = False
    clean: bool = False
    number: int = -1

    def apply(self, record: r.Record) -> None:
        if isinstance(record, r.Retired):
            self.retired, self.clean = True, record.clean
        if not isinstance(record, r.Page):
            return
        self.wall, self.lease, self.cycle = record.wall, record.lease, record.cycle
        self.host = record.host or self.host
        for workflow_id in record.dropped:  # first: what is dropped may be announced anew in the same page
            self.opened.pop(workflow_id, None)
        for workflow_id, number in record.announced:
            self.opened[workflow_id] = max(number, self.opened.get(workflow_id, -1))
        for workflow_id, number, status, start, end in record.finished:
            old = self.ended.get(workflow_id)
            if old is None or number >= old.number:
                self.ended[workflow_id] = Entry(number, status, start, end)
            if self.opened.get(workflow_id, number + 1) <= number:
                del self.opened[workflow_id]

    @property
    def entries(self) -> dict[str, Entry]:
        """The newest that it says of each id."""
        entries = dict(self.ended)
        for workflow_id, number in self.opened.items():
            if workflow_id not in entries or number > entries[workflow_id].number:
                entries[workflow_id] = Entry(number)
        return entries

    def open_ids(self) -> list[str]:
        return list(self.opened)


def compact_pages(records: Iterable[r.Record]) -> list[r.Record]:
    """One page that says what these say together."""
    roster = Roster()
    for record in records:
        roster.apply(record)
    announced = tuple(roster.opened.items())
    finished = tuple((i, e.number, e.status, e.start, e.end) for i, e in roster.ended.items())
    return [r.Page(roster.wall, roster.lease, roster.cycle, announced, finished, (), roster.host)]


def roster_of(coordinator: str, view: View) -> Roster:
    roster = Roster(coordinator)
    for record in view.records:
        roster.apply(record)
    roster.number = view.number
    return roster


class Lease:
    """This coordinator's own chain.

    ``on_retired`` is called once when somebody has retired us: all is over, stop at once (J3).
    """

    def __init__(
        self,
        store: ChainStore,
        coordinator: str,
        clock: Clock,
        tokens: Callable[[], bytes],
        *,
        seconds: float,
        host: dict[str, str],
        on_retired: Callable[[], None],
    ) -> None:
        self.coordinator = coordinator
        self.clock = clock
        self.tokens = tokens
        self.seconds = seconds
        self.cycle = 0
        self.roster = Roster(coordinator)
        self._host = host
        self._on_retired = on_retired
        self._chain = Chain(store, keys.coordinator_chain(coordinator), coordinator, tokens, compact_pages, patience=5)
        self._sent = float("-inf")
        self._announce: dict[str, int] = {}
        self._finished: list[tuple[str, int, str, float, float]] = []
        self._dropped: list[str] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._wake = asyncio.Event()
        self._renewed = asyncio.Event()
        self._upkeep: asyncio.Task[None] | None = None
        self._ended = asyncio.Event()
        self._ended.set()
        self._stopping = False
        self.retired = False

    # -- validity (L3, L4) ---------------------------------------------------------------------------------------

    @property
    def remaining(self) -> float:
        """Seconds for which tasks may still begin: from before the send of the last confirmed page (L4)."""
        if self.retired:
            return 0.0
        return self._sent + self.seconds * (1 - MARGIN) - self.clock.boot()

    @property
    def may_submit(self) -> bool:
        """L3: only while more than a quarter is left, so that what begins within a quarter begins in time."""
        return self.remaining > self.seconds / 4

    async def renewed(self) -> None:
        """Wait for the next confirmed page."""
        self._renewed.clear()
        await self._renewed.wait()

    # -- pages ---------------------------------------------------------------------------------------------------

    async def register(self) -> None:
        """L1: page 0, before anything else."""
        sent = self.clock.boot()
        await self._chain.enter(CREATED, [self._page()], View())
        self._sent = sent

    def announce(self, workflow_id: str, number: int) -> asyncio.Future[None]:
        """L2: durable before the entry is sent. The future fails with Fenced when we are retired."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.retired:
            future.set_exception(Fenced("this coordinator has been retired"))
            return future
        self._announce[workflow_id] = number
        self._waiting.append(future)
        self._wake.set()
        return future

    def finished(self, workflow_id: str, number: int, status: str, start: float, end: float) -> None:
        """Goes out with the next page."""
        self._finished.append((workflow_id, number, status, start, end))

    def dropped(self, workflow_id: str) -> None:
        """Somebody else holds the announced slot, so nothing of ours can come of it; goes out with the next page."""
        self._dropped.append(workflow_id)

    def acknowledge(self, cycle: int) -> None:
        """B2: with the next page, which is written now."""
        self.cycle = cycle
        self._wake.set()

    def _page(self) -> r.Page:
        return r.Page(
            self.clock.wall(),
            self.seconds,
            self.cycle,
            tuple(self._announce.items()),
            tuple(self._finished),
            tuple(self._dropped),
            self._host,
        )

    async def run(self) -> None:
        """Write pages for ever: each quarter of the lease, and at once when there is something to announce."""
        self._ended.clear()
        try:
            while not self._stopping:
                try:
                    await asyncio.wait_for(self._wake.wait(), self.seconds / 4)
                except TimeoutError:
                    pass
                self._wake.clear()
                while not self._stopping:
                    await self.flush()
                    if self._sent > self.clock.boot() - self.seconds / 4:
                        break  # else the page took so long that the next one is due
        except Fenced:
            self._out()
        finally:
            self._ended.set()

    async def flush(self) -> None:
        """Write a page. What the store refuses (a full disk) is sent again, the same bytes, until it is taken.

        Raises:
            Fenced: we have been retired.
        """
        page, waiting = self._page(), self._waiting
        self._announce, self._finished, self._dropped, self._waiting = {}, [], [], []
        sent = self.clock.boot()  # of the first attempt: that may be the one a watcher sees (L4)
        try:
            await self._insist(page)
        except BaseException:
            for future in waiting:
                if not future.done():
                    future.set_exception(Fenced("this coordinator has been retired"))
            raise
        self._sent = sent
        self.roster.apply(page)
        self._renewed.set()
        for future in waiting:
            if not future.done():
                future.set_result(None)
        if self._upkeep is None and (self._chain.wants_base or self._chain.wants_trim):
            self._upkeep = asyncio.get_running_loop().create_task(self._keep_up())

    async def _keep_up(self) -> None:
        """Beside the pages: what announces must not wait for old pages to be deleted."""
        try:
            if self._chain.wants_base:
                await self._chain.write_base()
            if self._chain.wants_trim:
                await self._chain.trim()
        except StoreError as error:
            logger.warning("the coordinator's own chain keeps old pages: %s", error)  # it costs only space
        finally:
            self._upkeep = None

    async def _insist(self, page: r.Page) -> None:
        delay = self.seconds / 40
        prepared = self._chain.prepare([page])
        while True:
            try:
                await self._chain.store.create_once(prepared.key, prepared.data, prepared.token)
            except AlreadyExists as error:
                self._chain.lost()
                raise Fenced(prepared.key) from error
            except StoreError as error:
                logger.warning("the lease can't be renewed: %s", error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, self.seconds / 8)
            else:
                self._chain.committed()
                return

    def _out(self) -> None:
        if not self.retired:
            self.retired = True
            for future in self._waiting:
                if not future.done():
                    future.set_exception(Fenced("this coordinator has been retired"))
            self._waiting = []
            self._renewed.set()
            self._on_retired()

    async def retire_myself(self, *, clean: bool = False) -> None:
        """A clean end: all workflows are resumable at once, in one write. ``clean`` as in `Retired`."""
        self._stopping = True
        self._wake.set()
        await self._ended.wait()
        if self._upkeep is not None:
            await self._upkeep
        if self.retired:
            return
        try:
            if self._finished or self._dropped:
                await self.flush()
            while True:
                view = await self._chain.read()
                if view.header is None or view.header.kind == RETIRED:
                    break
                try:
                    await self._chain.enter(RETIRED, [r.Retired(self.clock.wall(), self.coordinator, clean)], view)
                    break
                except EntryLost:
                    continue
        except Fenced:
            pass
        self._out()


class Watcher:
    """Finds out whether another coordinator lives, and retires those that don't (L5)."""

    def __init__(
        self,
        store: ChainStore,
        me: str,
        clock: Clock,
        tokens: Callable[[], bytes],
        *,
        gone: Callable[[dict[str, str]], Awaitable[bool]],
    ) -> None:
        self.store = store
        self.me = me
        self.clock = clock
        self.tokens = tokens
        self.gone = gone

    def _chain(self, coordinator: str) -> Chain:
        return Chain(self.store, keys.coordinator_chain(coordinator), self.me, self.tokens, compact_pages)

    async def coordinators(self) -> list[str]:
        """All coordinators that ever registered here and are not forgotten."""
        names = await self.store.list_keys(keys.COORDINATORS)
        return list(dict.fromkeys(keys.coordinator_of(name) for name in names))

    async def roster(self, coordinator: str) -> Roster:
        return roster_of(coordinator, await self._chain(coordinator).read())

    async def surely_dead(self, roster: Roster) -> bool:
        """Dead without waiting: retired, provably gone, or silent for very long."""
        if roster.retired or roster.number < 0:
            return True
        if self.clock.wall() - roster.wall > SURELY_OLD * roster.lease:
            return True
        return await self.gone(roster.host)

    async def retire(self, coordinator: str, *, wait: bool = True) -> bool:
        """Retire a coordinator unless it lives; True when it is retired now.

        ``wait=False`` gives up at once where only a whole lease of silence could show that it is dead. With
        ``wait`` it takes up to a lease on our own clock; no clocks are compared.
        """
        since, seen = 0.0, -1
        while True:
            chain = self._chain(coordinator)
            view = await chain.read()
            roster = roster_of(coordinator, view)
            if roster.retired or view.number < 0:
                return True
            dead = await self.surely_dead(roster)
            if not dead:
                if seen < 0:
                    seen, since = view.number, self.clock.boot()
                elif view.number > seen:
                    return False
                if self.clock.boot() - since < roster.lease:
                    if not wait:
                        return False
                    left = roster.lease - (self.clock.boot() - since)
                    await asyncio.sleep(max(0.01, min(left, roster.lease / 8)))
                    continue
            try:
                await chain.enter(RETIRED, [r.Retired(self.clock.wall(), self.me)], view)
            except EntryLost:
                if not dead:
                    return False
                continue
            return True
