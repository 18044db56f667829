"""Garbage: what nobody needs any more, and its removal (B3, B4); retention.

Owns the order of steps. Each may be cut off by a crash and begun again, by any number of collectors at the same time:
what is deleted can never be needed again, because no new reference to an older cycle can appear.

    B3  begin a cycle; list the coordinators; wait until each has acknowledged it, or is settled
    B4  then read the references of all live chains; one that can't be read aborts. Then delete blobs of older cycles
        that none names, what is left of deleted lives, and uploads that nobody goes on with
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from perdure import keys
from perdure import records as r
from perdure.care import settling
from perdure.care.names import NameSet
from perdure.care.opening import Hand
from perdure.care.walk import folders, pages
from perdure.chain import Chain, View
from perdure.entering import remains
from perdure.errors import (
    AlreadyExists,
    CorruptedError,
    FormatError,
    NotFound,
    StoreError,
    WorkflowNotFoundError,
    WorkflowStillActiveError,
)
from perdure.guarded_store import GuardedStore
from perdure.naming import blobs_of
from perdure.segment import NO_TOKEN, Header, decode_segment, encode_body
from perdure.state import compact
from perdure.status import WorkflowStatus

logger = logging.getLogger("perdure")

_BATCH: Final = 1000


@dataclass(frozen=True)
class Options:
    """``older_than`` (seconds since the end) and ``statuses`` choose workflows to delete; neither: none. ``wait``:
    seconds for which coordinators may take to acknowledge the cycle."""

    dry_run: bool = False
    older_than: float | None = None
    statuses: frozenset[WorkflowStatus] | None = None
    wait: float = 60.0


@dataclass(frozen=True)
class Item:
    """One thing that goes, or would go. ``kind``: workflow, blob, remains, upload."""

    kind: str
    name: str
    reason: str
    size: int = 0
    certain: bool = True
    """False in a dry run: a running task may name it before a collection decides."""


@dataclass
class Report:
    """``cycle``: blobs of older ones were looked at; 0: none."""

    cycle: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    holding: dict[str, str] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class Collector:
    """One collection. ``tell`` hears of each thing before it goes."""

    def __init__(self, hand: Hand, options: Options, tell: Callable[[Item], None]) -> None:
        self.hand = hand
        self.store: GuardedStore = hand.reading.store  # type: ignore[assignment]
        self.options = options
        self._tell = tell
        self.report = Report()

    async def run(self) -> Report:
        """Raises CorruptedError: a chain can't be read, so no blob was deleted; FormatError: a newer Perdure's;
        StoreError: an append-only store."""
        if not self.store.store.capabilities.complete_lists:
            raise StoreError(
                f"{self.store.url} is append-only: its lists may lack what has just been written, so nothing can be "
                "known to be needless. Copy what you need to another store, and remove the whole place"
            )
        if self.options.older_than is not None or self.options.statuses is not None:
            await self._retain()
        cycle = await self._begin()
        names = NameSet()
        try:
            await self._chains(names)
            await self._blobs(names, cycle)
        finally:
            names.close()
        await self._signals()
        await self._uploads(cycle)
        return self.report

    def _goes(self, item: Item) -> None:
        self.report.counts[item.kind] += 1
        self.report.sizes[item.kind] += item.size
        self._tell(item)

    async def _delete(self, names: Sequence[str]) -> None:
        for at in range(0, len(names), _BATCH):
            if not self.options.dry_run:
                await self.store.delete_many(names[at : at + _BATCH])

    # -- retention -----------------------------------------------------------------------------------------------

    async def _retain(self) -> None:
        reading = self.hand.reading
        wanted = self.options.statuses or WorkflowStatus.terminal()
        now = reading.clock.wall()
        for workflow_id, (status, start, end, _) in sorted((await reading.list_all()).items()):
            age = now - (end or start)
            if status not in wanted or age < (self.options.older_than or 0.0):
                continue
            try:
                if await reading.status(workflow_id) not in wanted:  # the list is an index, its chain decides
                    continue
            except WorkflowNotFoundError:
                continue
            except CorruptedError as error:
                self.report.refused[workflow_id] = str(error)
                continue
            self._goes(Item("workflow", workflow_id, f"{status}, ended {age / 86400:.1f} days ago"))
            if self.options.dry_run:
                continue
            try:
                await (await self.hand.writing()).delete(workflow_id)
            except WorkflowNotFoundError:
                pass  # somebody else was faster
            except WorkflowStillActiveError as error:
                self.report.refused[workflow_id] = str(error)

    # -- B3 ------------------------------------------------------------------------------------------------------

    async def _begin(self) -> int | None:
        """The cycle below which blobs may go; None where there is no blob."""
        if not await self.store.list_keys(keys.BLOBS, None, 1):
            return None
        cycles = self.hand.reading.cycles
        if self.hand.registered is None:
            await cycles.start()
        if self.options.dry_run:
            agreement = await settling.standing(self.hand.reading)
        else:
            await cycles.look()
            cycle = await self._create_cycle(cycles.newest)
            agreement = await settling.agree(self.hand, cycle, wait=self.options.wait)
        self.report.cycle = agreement.cycle
        self.report.holding, self.report.settled = agreement.holding, agreement.settled
        return agreement.cycle

    async def _create_cycle(self, newest: int) -> int:
        token = self.hand.reading.lease.tokens()
        data = encode_body(Header("cycle", -1, -1, ""), b"", token=token, prev=NO_TOKEN)  # its name says it all
        while True:
            newest += 1
            try:
                await self.store.create_once(keys.cycle(newest), data, token)
            except AlreadyExists:
                continue  # another collector's: the next one
            return newest

    # -- B4 ------------------------------------------------------------------------------------------------------

    async def _chains(self, names: NameSet) -> None:
        """The names that live chains need, and what is left of lives before them."""
        async for prefix, found in folders(self.store, keys.WORKFLOWS):
            chain = chain_of(self.store, prefix)
            view = await read_chain(chain)
            if view.header is None:
                continue
            below = view.number if view.deleted else view.birth
            if any(_before(key, below) for key in found):
                await self._remains(chain, below)
            if not view.deleted:
                await self._needed(chain, view, names)

    async def _needed(self, chain: Chain, view: View, names: NameSet) -> None:
        try:
            async for name in names_of(self.store, view.records):
                names.add([name])
        except CorruptedError:
            again = await read_chain(chain)
            if again.birth == view.birth and not again.deleted:
                raise  # else that life has been deleted meanwhile, and a new one names newer blobs only

    async def _remains(self, chain: Chain, below: int) -> None:
        left = await remains(self.store, chain, below)
        for name in left:
            self._goes(Item("remains", name, "its workflow's life is over"))
        await self._delete(left)

    async def _blobs(self, names: NameSet, cycle: int | None) -> None:
        if cycle is None:
            return
        # a dry run shows what running coordinators hold back, too
        below = self.hand.reading.cycles.newest + 1 if self.options.dry_run else cycle
        async for page in pages(self.store, keys.BLOBS):
            old = {key: (of, size) for key, size in page if (of := keys.blob_cycle(key)) is not None and of < below}
            unnamed = names.missing(list(old))
            for name in unnamed:
                of, size = old[name]
                self._goes(Item("blob", name, "no workflow names it", size, of < cycle))
            await self._delete(unnamed)

    async def _signals(self) -> None:
        """Inboxes and events of lives that are over and whose chains were purged before."""
        for prefix in (keys.INBOXES, keys.EVENTS):
            async for folder, found in folders(self.store, prefix):
                chain = chain_of(self.store, keys.WORKFLOWS + folder.removeprefix(prefix))
                view = await read_chain(chain)
                below = view.number if view.deleted else view.birth
                left = [name for name in found if _born_before(name, below)]
                for name in left:
                    self._goes(Item("remains", name, "it was sent to a life that is over"))
                await self._delete(left)

    async def _uploads(self, cycle: int | None) -> None:
        """Temporary files and multipart uploads that nobody goes on with."""

        def over(key: str) -> bool:
            of = keys.blob_cycle(key)
            return of is not None and cycle is not None and of < cycle

        for name, size in await self.store.store.leftovers(over, remove=not self.options.dry_run):
            self._goes(Item("upload", name, "its writer is gone", size))


def chain_of(store: GuardedStore, prefix: str) -> Chain:
    """A workflow's chain, to be read only."""
    return Chain(store, prefix, "", lambda: b"", compact)


async def read_chain(chain: Chain) -> View:
    """Raises CorruptedError or FormatError that says what to do."""
    try:
        return await chain.read()
    except CorruptedError as error:
        raise CorruptedError(
            f"{error}. It is not known which values its workflow needs, so no value was deleted. Look at it with "
            "`perdure verify`; restore the object from a copy, or go on without it: `perdure repair`.",
            key=error.key,
        ) from error
    except FormatError as error:
        raise FormatError(f"{error} A collector deletes nothing from a store that a newer Perdure uses.") from error


async def names_of(store: GuardedStore, records: Sequence[r.Record]) -> AsyncIterator[str]:
    """All blobs that a life's records need, those inside graphs that are blobs included.

    Raises CorruptedError: such a graph is damaged or missing.
    """
    for record in records:
        for name in blobs_of(record):
            yield name
        if isinstance(record, r.Created | r.Continued) and record.graph_blob:
            for held in await stored_graph(store, record.graph_blob):
                for name in blobs_of(held):
                    yield name


async def stored_graph(store: GuardedStore, name: str) -> list[r.Record]:
    try:
        return decode_segment(await store.get(name), name).records
    except NotFound:
        raise CorruptedError(f"{name} is missing, but a workflow's record names it", key=name) from None


def _before(key: str, below: int) -> bool:
    number = keys.part_number(key) if "/s/" in key else keys.segment_number(key)
    return number is not None and number < below


def _born_before(key: str, below: int) -> bool:
    birth = keys.inbox_birth(key)
    return birth is not None and birth < below
