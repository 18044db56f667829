"""One chain of numbered segments: how it is read, entered, appended to and trimmed.

Owns the rules J1-J15 of docs/design.md for workflow chains and coordinator chains alike; it knows no meaning of
their records. The store's create-if-absent is the only primitive: the number of an object is its commit.

    J2  one append in flight; n+1 is sent only when n is known to exist
    J3  who loses a slot is out and never tries n+1 without entering anew
    J4  a slot's bytes are frozen at the first attempt
    J6  trim only below the base before the committed one, and only then
    J7  damage is reported only after a new list still shows that the object is needed
    J9  numbers never restart: Deleted is an entry, the next life's Created is a later number
    J10 an entry counts only if a list after its create shows nothing higher
    J11 Claimed, Deleted and Retired are never trimmed, so a fenced owner's next number is always taken
    J12 a reader checks each segment's link to its predecessor
    J13 an unknown create is repeated with the same bytes; AlreadyExists is mine only if the token is
    J15 a reader whose last segment is an entry lists once more

The idea is SlateDB's numbered, fenced write-ahead log; the rules about trimming are ours (see docs/design.md).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from perdure import keys
from perdure import records as r
from perdure.errors import AlreadyExists, CorruptedError, NotFound, StoreError
from perdure.segment import NO_TOKEN, Header, Segment, decode_segment, encode_segment

LISTS_BEFORE_CORRUPTED: Final = 5
BASE_EVERY: Final = 12
"""A part costs a write and spares reads: at this number a resume of 10,000 finished tasks takes about 20 requests."""
LARGEST_PART: Final = 4 << 20
SEGMENT_CAP: Final = 4 << 20
_READ_AHEAD = BASE_EVERY

APPEND: Final = "append"
CREATED: Final = "created"
CLAIMED: Final = "claimed"
DELETED: Final = "deleted"
RETIRED: Final = "retired"
KEPT: Final = frozenset({CLAIMED, DELETED, RETIRED})
ENTRIES: Final = KEPT | {CREATED}


class ChainStore(Protocol):
    """What a chain needs of a store: `perdure.guarded_store.GuardedStore` has it."""

    async def create_once(self, key: str, data: bytes, token: bytes) -> None:
        """Create, knowing the answer: lost answers are repeated, my own first attempt is success (J13).

        Raises AlreadyExists only where somebody else's bytes hold the key.
        """

    async def get(self, key: str) -> bytes | memoryview: ...
    async def get_many(self, keys: Sequence[str]) -> list[bytes | memoryview | StoreError | CorruptedError]: ...
    async def list_keys(self, prefix: str, start_after: str | None = None) -> list[str]: ...
    async def delete(self, key: str) -> None: ...
    async def delete_many(self, keys: Sequence[str]) -> None: ...


class Fenced(Exception):
    """Somebody else holds the next number: this owner is out (J3)."""


class EntryLost(Exception):
    """The entry lost its slot, or fell into a trimmed gap (J10, J14): begin again from a new list."""


@dataclass
class View:
    """A chain as read: the last number (-1: empty), the newest segment's header, the records since the last
    Created (from base parts, then from segments), and what an owner needs to go on."""

    number: int = -1
    token: bytes = NO_TOKEN
    header: Header | None = None
    records: list[r.Record] = field(default_factory=list)
    recent: list[list[r.Record]] = field(default_factory=list)
    lists: int = 0

    @property
    def deleted(self) -> bool:
        return self.header is None or self.header.kind == DELETED

    @property
    def birth(self) -> int:
        return self.header.birth if self.header else -1


@dataclass
class Prepared:
    """A segment on its way: frozen bytes (J4), one in flight per chain (J2)."""

    key: str
    data: bytes
    token: bytes
    number: int
    header: Header
    records: list[r.Record]


class Chain:
    """One process's hold on one chain.

    ``tokens`` makes 16 fresh bytes at each call; ``compact`` shortens a list of records for base parts; a base is
    written every ``patience`` times `BASE_EVERY` segments.
    """

    def __init__(
        self,
        store: ChainStore,
        prefix: str,
        owner: str,
        tokens: Callable[[], bytes],
        compact: Callable[[Iterable[r.Record]], list[r.Record]],
        *,
        patience: int = 1,
    ) -> None:
        self.store = store
        self.prefix = prefix
        self.owner = owner
        self.tokens = tokens
        self.compact = compact
        self.patience = patience
        self.number = -1
        self.token = NO_TOKEN
        self.header = Header(APPEND, -1, -1, owner)
        self.fenced = False
        self.landed = False
        """Whether the last `enter` has put its entry there, also where it failed afterwards."""
        self.in_flight: Prepared | None = None
        self._since_base: list[list[r.Record]] = []
        self._kinds: dict[int, str] = {}
        self._seen: dict[int, Segment] = {}  # read before this process owned the chain: a name has one content for ever
        self._new_base: tuple[int, tuple[tuple[str, int], ...]] | None = None
        self._dropped_parts: list[str] = []
        self._trim_below = -1
        self._writing_base = False

    # -- reading -------------------------------------------------------------------------------------------------

    async def read(self) -> View:
        """The committed history (J12, J15).

        Raises:
            CorruptedError: damaged, or a gap that five lists in a row show.
            FormatError: a newer format; nothing may be done to this chain (J8).
            StoreError: the store failed.
        """
        unchanged, before, lists = 0, None, 0
        while True:
            names = await self.store.list_keys(keys.segments(self.prefix))
            lists += 1
            numbers = [n for n in map(keys.segment_number, names) if n is not None]
            unchanged = unchanged + 1 if numbers == before else 1
            before = numbers
            if not numbers:
                return View(lists=lists)
            final = unchanged >= LISTS_BEFORE_CORRUPTED
            try:
                view = await self._read_listed(numbers, final)
            except CorruptedError:
                if final:
                    raise
                continue  # it may have been trimmed, or replaced, since the list (J7)
            if view is None:
                continue
            view.lists = lists
            assert view.header is not None
            if view.header.kind in ENTRIES:  # J15
                later = await self.store.list_keys(keys.segments(self.prefix), keys.segment(self.prefix, view.number))
                view.lists = lists = lists + 1
                if later:
                    before = None
                    continue
            return view

    async def _read_listed(self, numbers: list[int], final: bool) -> View | None:
        last = numbers[-1]
        have = {n: self._seen[n] for n in numbers if n in self._seen}
        # A short chain has no base: all of it is needed. Of a longer one the newest segment says where the base is.
        ahead = numbers if len(numbers) <= _READ_AHEAD else numbers[-1:]
        if not await self._fetch([n for n in ahead if n not in have], have, last):
            return None
        header = have[last].header
        wanted = range(header.base + 1, last + 1)
        listed = set(numbers)
        gap = next((n for n in wanted if n not in listed), None)
        if gap is not None:
            if final:
                key = keys.segment(self.prefix, gap)
                raise CorruptedError(f"{key} is missing, but {keys.segment(self.prefix, last)} needs it", key=key)
            return None
        if not await self._fetch([n for n in wanted if n not in have], have, last):
            return None
        segments = [have[n] for n in wanted]
        for a, b in itertools.pairwise(segments):
            if b.prev != a.token:  # J12
                if final:
                    key = keys.segment(self.prefix, b.number)
                    raise CorruptedError(f"{key} does not continue the segment before it", key=key)
                return None
        parts = await self._fetch_parts(header.parts)
        if parts is None:
            return None
        recent = [s.records for s in segments]
        flat = [record for part in parts for record in part] + [record for part in recent for record in part]
        for segment in segments:
            self._kinds[segment.number] = segment.header.kind
        self._seen = {segment.number: segment for segment in segments}
        return View(last, have[last].token, header, flat, recent)

    async def _fetch(self, numbers: Sequence[int], have: dict[int, Segment], last: int) -> bool:
        """Read these segments; False where one is gone and the list must be made again."""
        names = [keys.segment(self.prefix, n) for n in numbers]
        got = await self.store.get_many(names)
        # the newest first: it says which of the others are needed at all
        for n, name, data in reversed(list(zip(numbers, names, got, strict=True))):
            if isinstance(data, NotFound):
                if n == last or n > have[last].header.base:
                    return False
                continue
            if isinstance(data, StoreError):
                raise data
            try:
                if isinstance(data, CorruptedError):
                    raise data
                have[n] = decode_segment(data, name, n)
            except CorruptedError:
                if n == last or n > have[last].header.base:
                    raise
        return last in have

    async def _fetch_parts(self, parts: tuple[tuple[str, int], ...]) -> list[list[r.Record]] | None:
        if not parts:
            return []
        out = []
        names = [keys.parts(self.prefix) + name for name, _ in parts]
        for name, data in zip(names, await self.store.get_many(names), strict=True):
            if isinstance(data, NotFound):
                raise CorruptedError(f"{name} is missing, but the chain's base names it", key=name)
            if isinstance(data, StoreError | CorruptedError):
                raise data
            out.append(decode_segment(data, name).records)
        return out

    # -- entering ------------------------------------------------------------------------------------------------

    async def enter(
        self,
        kind: str,
        records: list[r.Record],
        view: View,
        parts: tuple[tuple[str, int], ...] = (),
        *,
        rebased: bool = False,
    ) -> None:
        """Take the slot after ``view`` with an entry; on return this process owns the chain.

        For Deleted nothing is owned: only the life is over. ``parts``: base parts, there already, with which a Created
        begins (a life that comes from elsewhere), or, with ``rebased``, any entry: nothing below it is read any more.

        Raises:
            EntryLost: the slot was taken, or the entry is void (J10): read again, announce again (L2, J14).
        """
        number = view.number + 1
        old = view.header
        fresh = kind in (CREATED, DELETED) or old is None or rebased
        header = Header(
            kind=kind,
            birth=number if kind == CREATED or old is None else old.birth,
            entry=number,
            entry_by=self.owner,
            base=number - 1 if fresh else old.base if old else -1,
            parts=parts if fresh or old is None else old.parts,
        )
        token = self.tokens()
        data = encode_segment(header, records, token=token, prev=view.token)
        key = keys.segment(self.prefix, number)
        self.landed = False
        try:
            await self.store.create_once(key, data, token)
        except AlreadyExists as error:
            raise EntryLost(f"{key} was taken") from error
        self.landed = True
        if await self.store.list_keys(keys.segments(self.prefix), key):  # J10
            raise EntryLost(f"{key} fell into a trimmed gap")
        self.number, self.token, self.header = number, token, header
        self._kinds[number] = kind
        self._seen = {}
        self.fenced = False
        self.in_flight = None
        self._since_base = [records] if fresh else [*view.recent, records]
        self._new_base = None
        self._dropped_parts = []
        self._trim_below = -1

    # -- appending -----------------------------------------------------------------------------------------------

    def prepare(self, records: list[r.Record]) -> Prepared:
        """Freeze the next segment. The caller sends it, then calls `committed` or `lost`."""
        assert self.in_flight is None, "J2: one append in flight"
        if self.fenced:
            raise Fenced(self.prefix)
        header = self.header
        base, parts = header.base, header.parts
        if self._new_base is not None:
            base, parts = self._new_base
            records = [*records, r.Base(base)]
        header = Header(APPEND, header.birth, header.entry, header.entry_by, base, parts)
        token = self.tokens()
        number = self.number + 1
        data = encode_segment(header, records, token=token, prev=self.token)
        self.in_flight = Prepared(keys.segment(self.prefix, number), data, token, number, header, records)
        return self.in_flight

    def committed(self) -> None:
        """The segment in flight is known to exist."""
        sent = self.in_flight
        assert sent is not None
        self.in_flight = None
        base, below = sent.header.base, self.header.base
        if base != below:
            self._since_base = self._since_base[base - below :]
            self._trim_below = max(self._trim_below, below)
            self._new_base = None
        self.number, self.token, self.header = sent.number, sent.token, sent.header
        self._since_base.append(sent.records)
        self._kinds[sent.number] = APPEND

    def lost(self) -> None:
        """Somebody else holds the slot of the segment in flight: out, for good (J3)."""
        self.in_flight = None
        self.fenced = True

    async def append(self, records: list[r.Record]) -> int:
        """Prepare, send, and learn the answer; the number of the new segment.

        Raises:
            Fenced: this owner is out.
        """
        sent = self.prepare(records)
        try:
            await self.store.create_once(sent.key, sent.data, sent.token)
        except AlreadyExists as error:
            self.lost()
            raise Fenced(sent.key) from error
        self.committed()
        return sent.number

    # -- base and trim (J6) --------------------------------------------------------------------------------------

    @property
    def wants_base(self) -> bool:
        return (
            len(self._since_base) >= BASE_EVERY * self.patience
            and self._new_base is None
            and not self._writing_base
            and not self.fenced
        )

    async def write_base(self) -> None:
        """Write all since the last base as a part, merged with smaller ones; the next segment commits it.

        Safe to be killed at any point: an uncommitted part is an orphan, swept when the life is deleted.
        """
        self._writing_base = True
        try:
            await self._write_base()
        finally:
            self._writing_base = False

    async def _write_base(self) -> None:
        upto = self.number
        base = self.header.base
        recent = self._since_base[: upto - base]
        content = self.compact(record for records in recent for record in records)
        parts = list(self.header.parts)
        dropped = []
        data = self._encode_part(content)
        # size-tiered like an LSM tree: a byte is rewritten O(log) times, and there are O(log) parts
        while parts and parts[-1][1] <= len(data) and parts[-1][1] + len(data) <= LARGEST_PART:
            name = parts.pop()[0]
            try:
                below = decode_segment(await self.store.get(keys.parts(self.prefix) + name), name).records
            except NotFound:
                return  # purged: this life has been deleted, as the next append finds out; else a reader reports it
            content = self.compact([*below, *content])
            data = self._encode_part(content)
            dropped.append(name)
        token = self.tokens()
        data = self._encode_part(content, token)
        key = keys.part(self.prefix, upto, token.hex())
        try:
            await self.store.create_once(key, data, token)
        except AlreadyExists:
            return  # mine, and gone again before it was looked at: this life has been deleted and purged
        if self.fenced:
            return
        parts.append((key.rsplit("/", 1)[-1], len(data)))
        self._dropped_parts += dropped
        self._new_base = (upto, tuple(parts))

    def _encode_part(self, content: list[r.Record], token: bytes = NO_TOKEN) -> bytes:
        header = Header("part", self.header.birth, self.header.entry, self.owner)
        return encode_segment(header, content, token=token, prev=NO_TOKEN)

    @property
    def wants_trim(self) -> bool:
        return self._trim_below >= 0 and self._new_base is None and not self._writing_base

    async def trim(self) -> None:
        """Delete what the committed base made needless: segments below the base before it that are not kept by
        J11, and parts that the committed base dropped. A trim that was cut short is done by the next one."""
        below, self._trim_below = self._trim_below, -1
        dropped, self._dropped_parts = self._dropped_parts, []
        if dropped:
            await self.store.delete_many([keys.parts(self.prefix) + name for name in dropped])
        if below < 0:
            return
        needless = await self._needless(below)
        if needless and not self.fenced:
            await self.store.delete_many(needless)
            for name in needless:
                self._kinds.pop(keys.segment_number(name) or 0, None)

    async def _needless(self, below: int) -> list[str]:
        """Segments below a number that J11 does not keep."""
        out = []
        for name in await self.store.list_keys(keys.segments(self.prefix)):
            number = keys.segment_number(name)
            if number is not None and number < below:
                kind = self._kinds.get(number) or await self._kind_of(name)
                if kind not in KEPT:
                    out.append(name)
                else:
                    self._kinds[number] = kind
        return out

    async def _kind_of(self, name: str) -> str:
        try:
            return decode_segment(await self.store.get(name), name).header.kind
        except (NotFound, CorruptedError):
            return CLAIMED  # not known to be an append: keep it

    async def remains(self, below: int) -> list[str]:
        """What is left of lives that ended before slot ``below``: their segments, but J11's, and their parts."""
        needless = await self._needless(below)
        for name in await self.store.list_keys(keys.parts(self.prefix)):
            number = keys.part_number(name)
            if number is not None and number < below:
                needless.append(name)
        return needless
