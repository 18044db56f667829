"""The rules of a chain, one by one, against another process at the worst moment."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from support.doubles import DictStore, packed
from support.virtual import run_virtual

from perdure import keys
from perdure import records as r
from perdure.chain import (
    BASE_EVERY,
    CLAIMED,
    CREATED,
    DELETED,
    KEPT,
    Chain,
    EntryLost,
    Fenced,
    View,
)
from perdure.errors import CorruptedError, FormatError
from perdure.segment import NO_TOKEN, decode_segment

TOKENS = (n.to_bytes(16, "big") for n in itertools.count(1))
CREATE = r.Canceled(0.0)  # chains know no meaning: any record stands for a Created


def same(records: Iterable[r.Record]) -> list[r.Record]:
    return [record for record in records if not isinstance(record, r.Base)]


def a_chain(store: Any, owner: str = "A") -> Chain:
    return Chain(store, "w/x/", owner, lambda: next(TOKENS), same)


def done(n: int) -> r.TaskDone:
    return r.TaskDone(n, packed(n))


def virtual(test: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(lambda loop: test())

    run.__name__ = test.__name__
    return run


async def created(store: Any, owner: str = "A", records: int = 0) -> Chain:
    chain = a_chain(store, owner)
    await chain.enter(CREATED, [CREATE], View())
    for n in range(records):
        await chain.append([done(n)])
    return chain


async def claimed(store: Any, owner: str) -> Chain:
    chain = a_chain(store, owner)
    await chain.enter(CLAIMED, [r.Claimed(0.0)], await chain.read())
    return chain


async def upkeep(chain: Chain) -> None:
    if chain.wants_base:
        await chain.write_base()
    if chain.wants_trim:
        await chain.trim()


def numbers(store: DictStore) -> list[int]:
    return [n for k in sorted(store.data) if k.startswith("w/x/j/") and (n := keys.segment_number(k)) is not None]


async def numbers_read(store: Any) -> list[int]:
    view = await a_chain(store, "reader").read()
    return [record.task for record in view.records if isinstance(record, r.TaskDone)]


@virtual
async def test_j1_a_record_counts_when_its_segment_is_in_the_chain() -> None:
    store = DictStore()
    chain = await created(store)
    sent = chain.prepare([done(0)])
    assert await numbers_read(store) == []
    await store.create_once(sent.key, sent.data, sent.token)
    assert await numbers_read(store) == [0], "it counts, though its owner does not know yet"


@virtual
async def test_j2_the_next_segment_is_not_made_while_one_is_in_flight() -> None:
    chain = await created(DictStore())
    chain.prepare([done(0)])
    with pytest.raises(AssertionError, match="J2"):
        chain.prepare([done(1)])


@virtual
async def test_j3_who_loses_a_slot_is_out_and_says_nothing_more() -> None:
    store = DictStore()
    a = await created(store)
    await claimed(store, "B")
    with pytest.raises(Fenced):
        await a.append([done(0)])
    before = dict(store.data)
    with pytest.raises(Fenced):
        await a.append([done(0)])
    assert store.data == before
    assert not a.wants_base


@virtual
async def test_j3_a_fenced_owner_trims_nothing_more() -> None:
    store = DictStore()
    a = await created(store)
    for n in range(3 * BASE_EVERY):
        await a.append([done(n)])
        if a.wants_base:
            await a.write_base()
        if a.wants_trim:
            break
    assert a.wants_trim
    a.lost()
    before = dict(store.data)
    await a.trim()
    assert {k for k in before if "/j/" in k} <= set(store.data)


@virtual
async def test_j4_a_slots_bytes_are_frozen_at_the_first_attempt() -> None:
    chain = await created(DictStore())
    sent = chain.prepare([done(0)])
    assert chain.in_flight is sent
    assert decode_segment(sent.data, sent.key).token == sent.token


@virtual
async def test_j6_a_trim_leaves_all_that_the_base_before_the_committed_one_needs() -> None:
    store = DictStore()
    chain = await created(store)
    for n in range(20 * BASE_EVERY):
        await chain.append([done(n)])
        await upkeep(chain)
        assert await numbers_read(store) == list(range(n + 1))
        header = chain.header
        assert {keys.parts("w/x/") + name for name, _ in header.parts} <= set(store.data)
        assert min(numbers(store)) <= max(0, header.base), "a trim stays below the base before"
    assert len(numbers(store)) <= 3 * BASE_EVERY
    assert len(chain.header.parts) <= 10
    written = sum(len(d) for k, d in store.data.items())
    assert written < 100_000


@virtual
async def test_j6_nothing_is_trimmed_before_the_base_is_committed() -> None:
    store = DictStore()
    chain = await created(store, records=BASE_EVERY)
    await chain.write_base()
    assert not chain.wants_trim
    await chain.trim()
    assert numbers(store) == list(range(BASE_EVERY + 1)), "an uncommitted base allows nothing"
    assert await numbers_read(store) == list(range(BASE_EVERY))


@virtual
async def test_j6_a_base_whose_owner_dies_before_its_commit_is_an_orphan() -> None:
    store = DictStore()
    chain = await created(store, records=BASE_EVERY)
    await chain.write_base()
    b = await claimed(store, "B")
    await b.append([done(99)])
    assert await numbers_read(store) == [*range(BASE_EVERY), 99]


@virtual
async def test_j6_a_successor_goes_on_with_the_bases_that_it_found() -> None:
    store = DictStore()
    chain = await created(store)
    n = 0
    for owner in "BCDEF":
        for _ in range(BASE_EVERY + 7):
            await chain.append([done(n)])
            await upkeep(chain)
            n += 1
        chain = await claimed(store, owner)
        assert await numbers_read(store) == list(range(n))


@virtual
async def test_j7_damage_is_reported_with_its_key_only_if_the_object_is_still_needed() -> None:
    store = DictStore()
    chain = await created(store, records=5)
    key = keys.segment("w/x/", 3)
    good = store.data[key]
    store.data[key] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(CorruptedError) as error:
        await numbers_read(store)
    assert error.value.key == key
    store.data[key] = good
    for n in range(5, 4 * BASE_EVERY):
        await chain.append([done(n)])
        await upkeep(chain)
    low = numbers(store)[0]
    assert low > 5
    store.data[keys.segment("w/x/", low - 1)] = b"damaged, but nobody needs it"
    assert len(await numbers_read(store)) == 4 * BASE_EVERY


@virtual
async def test_j7_a_missing_part_is_corruption_that_names_it() -> None:
    store = DictStore()
    chain = await created(store)
    for n in range(2 * BASE_EVERY):
        await chain.append([done(n)])
        await upkeep(chain)
    (part,) = [k for k in store.data if "/s/" in k][:1]
    del store.data[part]
    with pytest.raises(CorruptedError) as error:
        await numbers_read(store)
    assert error.value.key == part


@virtual
async def test_j8_nothing_is_done_to_a_chain_of_a_newer_format() -> None:
    store = DictStore()
    await created(store, records=2)
    key = keys.segment("w/x/", 2)
    data = bytearray(store.data[key])
    data[4] = 99
    store.data[key] = bytes(data)
    before = dict(store.data)
    with pytest.raises(FormatError):
        await claimed(store, "B")
    assert store.data == before


@virtual
async def test_j9_numbers_never_restart() -> None:
    store = DictStore()
    a = await created(store, records=3)
    b = a_chain(store, "B")
    await b.enter(DELETED, [r.Deleted(0.0)], await b.read())
    await b.store.delete_many(await b.remains(b.number))
    assert numbers(store) == [4]
    view = await a_chain(store, "C").read()
    assert view.deleted
    assert view.number == 4
    c = a_chain(store, "C")
    await c.enter(CREATED, [CREATE], view)
    await c.append([done(7)])
    assert c.header.birth == 5
    with pytest.raises(Fenced):
        await a.append([done(3)])
    assert await numbers_read(store) == [7]


@virtual
async def test_j10_an_entry_that_fell_into_a_trimmed_gap_is_void() -> None:
    store = DictStore()
    a = await created(store)
    late = a_chain(store, "B")
    view = await late.read()
    for n in range(6 * BASE_EVERY):
        await a.append([done(n)])
        await upkeep(a)
    assert numbers(store)[0] > view.number + 1
    with pytest.raises(EntryLost, match="gap"):
        await late.enter(CLAIMED, [r.Claimed(0.0)], view)
    await a.append([done(6 * BASE_EVERY)])
    assert await numbers_read(store) == list(range(6 * BASE_EVERY + 1))


@virtual
async def test_j10_a_created_of_an_id_that_is_thought_new_is_void_in_a_gap() -> None:
    store = DictStore()
    a = await created(store)
    for n in range(6 * BASE_EVERY):
        await a.append([done(n)])
        await upkeep(a)
    assert numbers(store)[0] > 0
    with pytest.raises(EntryLost):
        await created(store, "B")


@virtual
async def test_j11_entries_are_never_trimmed_so_a_fenced_owner_always_meets_one() -> None:
    store = DictStore()
    a = await created(store, records=3)
    b = await claimed(store, "B")
    for n in range(6 * BASE_EVERY):
        await b.append([done(n)])
        await upkeep(b)
    c = a_chain(store, "C")
    await c.enter(DELETED, [r.Deleted(0.0)], await c.read())
    await c.store.delete_many(await c.remains(c.number))
    for key in [k for k in store.data if "/j/" in k]:
        assert decode_segment(store.data[key], key).header.kind in KEPT
    for old in (a, b):
        with pytest.raises(Fenced):
            await old.append([done(0)])


@virtual
async def test_j11_a_purge_keeps_entries_that_it_has_never_read() -> None:
    store = DictStore()
    chain = await created(store)
    entries = []
    for owner in "BCDEFGH":
        chain = await claimed(store, owner)
        entries.append(chain.number)
        for n in range(BASE_EVERY):
            await chain.append([done(n)])
            await upkeep(chain)
    deleter = a_chain(store, "Z")
    await deleter.enter(DELETED, [r.Deleted(0.0)], await deleter.read())
    await deleter.store.delete_many(await deleter.remains(deleter.number))
    assert numbers(store) == [*entries, deleter.number]
    assert not [k for k in store.data if "/s/" in k]


@virtual
async def test_j12_a_broken_link_is_noticed() -> None:
    store = DictStore()
    await created(store, records=4)
    other = DictStore()
    await created(other, records=4)
    key = keys.segment("w/x/", 2)
    store.data[key] = other.data[key]
    with pytest.raises(CorruptedError, match="does not continue"):
        await numbers_read(store)


@virtual
async def test_j12_a_gap_is_corruption_after_five_lists() -> None:
    store = DictStore()
    await created(store, records=4)
    del store.data[keys.segment("w/x/", 2)]
    lists = 0
    whole = store.list_keys

    async def counted(prefix: str, start_after: str | None = None) -> list[str]:
        nonlocal lists
        lists += 1
        return await whole(prefix, start_after)

    store.list_keys = counted  # type: ignore[method-assign]
    with pytest.raises(CorruptedError, match="missing"):
        await numbers_read(store)
    assert lists == 5


class SlowReads(DictStore):
    """Something happens between a reader's list and its gets."""

    def __init__(self, meanwhile: Callable[[], Any]) -> None:
        super().__init__()
        self.meanwhile = meanwhile

    async def get_many(self, keys: Any) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, _nothing
        await meanwhile()
        return await super().get_many(keys)


async def _nothing() -> None:
    pass


@virtual
async def test_j12_a_slow_reader_starts_again_when_what_it_listed_is_trimmed() -> None:
    store = SlowReads(_nothing)
    a = await created(store, records=3)

    async def much_happens() -> None:
        for n in range(3, 6 * BASE_EVERY):
            await a.append([done(n)])
            await upkeep(a)

    store.meanwhile = much_happens
    assert await numbers_read(store) == list(range(6 * BASE_EVERY))


@virtual
async def test_j13_a_retry_meets_its_own_token_and_a_strangers_is_lost() -> None:
    store = DictStore()
    a = await created(store)
    sent = a.prepare([done(0)])
    await store.create_once(sent.key, sent.data, sent.token)  # its answer is lost
    await store.create_once(sent.key, sent.data, sent.token)
    a.committed()
    await claimed(store, "B")
    with pytest.raises(Fenced):
        await a.append([done(1)])


@virtual
async def test_j14_an_entry_that_lost_its_slot_starts_again_from_a_new_list() -> None:
    store = DictStore()
    await created(store)
    b = a_chain(store, "B")
    view = await b.read()
    await claimed(store, "C")
    with pytest.raises(EntryLost):
        await b.enter(CLAIMED, [r.Claimed(0.0)], view)
    assert b.number == -1, "it owns nothing"
    await b.enter(CLAIMED, [r.Claimed(0.0)], await b.read())
    assert b.number == 2


@virtual
async def test_j15_a_reader_whose_last_segment_is_an_entry_lists_once_more() -> None:
    """A void entry in a trimmed gap is not the end of the chain."""
    store = DictStore()
    a = await created(store)
    for n in range(6 * BASE_EVERY):
        await a.append([done(n)])
        await upkeep(a)
    lists: list[list[str]] = []
    whole = store.list_keys

    async def stale_first(prefix: str, start_after: str | None = None) -> list[str]:
        found = await whole(prefix, start_after)
        if not lists:  # as if the list had ended just before the others came
            found = [k for k in found if keys.segment_number(k) == 0]
        lists.append(found)
        return found

    with pytest.raises(EntryLost):
        await created(store, "B")
    store.list_keys = stale_first  # type: ignore[method-assign]
    assert len(await numbers_read(store)) == 6 * BASE_EVERY
    assert len(lists) >= 3


@virtual
async def test_a_life_that_was_replaced_shows_nothing_of_the_one_before() -> None:
    store = DictStore()
    a = await created(store)
    for life in range(5):
        for n in range(BASE_EVERY + life):
            await a.append([done(100 * life + n)])
            await upkeep(a)
        view = await a.read()
        await a.enter(DELETED, [r.Deleted(0.0)], view)
        await a.store.delete_many(await a.remains(a.number))
        await a.enter(CREATED, [CREATE], await a.read())
    await a.append([done(7)])
    assert await numbers_read(store) == [7]
    assert len([n for n in numbers(store) if n < a.header.birth]) == 5, "only the Deleted of each life stays"


@virtual
async def test_a_slow_deleter_does_not_touch_the_next_life() -> None:
    store = DictStore()
    await created(store, records=5)
    slow = a_chain(store, "B")
    await slow.enter(DELETED, [r.Deleted(0.0)], await slow.read())
    c = a_chain(store, "C")
    await c.enter(CREATED, [CREATE], await c.read())
    for n in range(3 * BASE_EVERY):
        await c.append([done(n)])
        if c.wants_base:
            await c.write_base()
    await slow.store.delete_many(await slow.remains(slow.number))
    assert await numbers_read(store) == list(range(3 * BASE_EVERY))


@virtual
async def test_a_resume_reads_few_objects_however_long_the_history() -> None:
    store = DictStore()
    chain = await created(store)
    for n in range(2000):
        await chain.append([done(n)])
        await upkeep(chain)
    reads = 0
    whole = store.get_many

    async def counted(names: Any) -> Any:
        nonlocal reads
        reads += len(names)
        return await whole(names)

    store.get_many = counted  # type: ignore[method-assign]
    view = await a_chain(store, "B").read()
    assert len(view.records) >= 2000
    assert reads <= 2 * BASE_EVERY + 10
    assert view.lists == 1


@virtual
async def test_a_base_that_fails_is_tried_again_later() -> None:
    store = DictStore()
    chain = await created(store, records=BASE_EVERY)
    whole = store.create_once

    async def refuse(key: str, data: bytes, token: bytes) -> None:
        from perdure.errors import StoreError

        raise StoreError("No space left on device", key=key)

    store.create_once = refuse  # type: ignore[method-assign]
    with pytest.raises(Exception, match="No space"):
        await chain.write_base()
    store.create_once = whole  # type: ignore[method-assign]
    assert chain.wants_base
    await upkeep(chain)
    await chain.append([done(99)])
    assert chain.header.base == BASE_EVERY
    assert await numbers_read(store) == [*range(BASE_EVERY), 99]


@virtual
async def test_the_owner_of_another_chain_does_not_disturb() -> None:
    store = DictStore()
    x = await created(store)
    y = Chain(store, "w/xy/", "A", lambda: next(TOKENS), same)
    await y.enter(CREATED, [CREATE], View())
    await asyncio.gather(x.append([done(1)]), y.append([done(2)]))
    assert await numbers_read(store) == [1]
    assert NO_TOKEN not in (x.token, y.token)


class Counting(DictStore):
    """Counts the objects that are asked for."""

    gets = 0

    async def get_many(self, keys: Any) -> Any:
        self.gets += len(keys)
        return await super().get_many(keys)


@virtual
async def test_a_long_chain_is_read_from_its_base_on_and_a_second_time_only_what_is_new() -> None:
    store = Counting()
    owner = await created(store)
    for n in range(7 * BASE_EVERY + 5):
        await owner.append([done(n)])
        await upkeep(owner)
    store.gets = 0
    reader = a_chain(store, "B")
    view = await reader.read()
    assert view.header is not None
    assert len(numbers(store)) > BASE_EVERY
    parts = len(view.header.parts)
    assert store.gets == view.number - view.header.base + parts
    await owner.append([done(999)])
    store.gets = 0
    assert (await reader.read()).number == view.number + 1
    assert store.gets == 1 + parts
