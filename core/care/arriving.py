"""A life put into another store: a life of its own there, by the row "copy, import" of the protocol.

Owns the order: blobs in that store's current cycle, each proven by reading it back; base parts that name them; then one
Created, which is the commit; then what was sent to the life. Every step is found done when it is begun again, so a
crash costs only a repetition.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Final

import blake3

from perdure import entering, keys
from perdure import records as r
from perdure.care.entry import entered
from perdure.care.lives import Fetch, Life
from perdure.care.opening import Hand
from perdure.chain import CREATED, LARGEST_PART, Chain, View
from perdure.coordinator import Coordinator
from perdure.cycles import Ticket
from perdure.errors import AlreadyExists, CorruptedError, NotFound, StoreError, WorkflowExistsError
from perdure.guarded_store import GuardedStore
from perdure.naming import blobs_of, renamed
from perdure.records import encode_record
from perdure.segment import NO_TOKEN, Header, encode_segment
from perdure.store import BytesLike

_TRIES: Final = 10
_MOST_PARTS: Final = 900  # their names must fit into a header


async def arrive(hand: Hand, life: Life, fetch: Fetch, source: str) -> bool:
    """Put the life into the store of ``hand``. False: it had arrived before, and is complete now.

    Raises:
        WorkflowExistsError: another life has this id there.
        CorruptedError: a blob is missing or damaged in the source, or came damaged.
    """
    there = await hand.writing()
    ticket = there.cycles.begin()  # B2: until Created names the blobs
    try:
        return await _arrive(there, life, fetch, source, ticket)
    finally:
        ticket.leave()


async def _arrive(there: Coordinator, life: Life, fetch: Fetch, source: str, ticket: Ticket) -> bool:
    store: GuardedStore = there.store  # type: ignore[assignment]
    chain = there.reader.chain(life.workflow_id)
    records: list[r.Record] | None = None
    for _ in range(_TRIES):
        view = await chain.read()
        if not view.deleted:
            _check_same(view, life, store)
            await _send(store, life, view.birth)
            return False
        if records is None:
            records = await _with_blobs(store, life, fetch, ticket.cycle)
        number = view.number + 1
        parts = await write_parts(store, chain, records, number)
        arrived = r.Arrived(source, life.number, life.token, life.birth, there.clock.wall())
        if not await entered(there, chain, life.workflow_id, CREATED, [arrived], view, parts):
            continue
        if life.finished:
            there.lease.finished(life.workflow_id, number, str(life.status), life.start, life.end)
        await _send(store, life, number)
        return True
    raise StoreError(f"workflow {life.workflow_id!r}: others keep taking its next slot in {store.url}; try again")


def _check_same(view: View, life: Life, store: GuardedStore) -> None:
    """WorkflowExistsError unless what is there is this very life, as far as it had come."""
    for record in reversed(view.records):
        if isinstance(record, r.Arrived):
            if (record.number, record.token) == (life.number, life.token):
                return
            break
    raise WorkflowExistsError(
        f"{store.url} holds a workflow {life.workflow_id!r} already, and it is not this one as it is now. Delete it "
        "there first, or copy to another place. Nothing of it was changed.",
        workflow_id=life.workflow_id,
    )


# -- blobs -----------------------------------------------------------------------------------------------------------


async def _with_blobs(store: GuardedStore, life: Life, fetch: Fetch, cycle: int) -> list[r.Record]:
    """The records as they name blobs in the new store, after these are there."""
    names: dict[str, str] = {}
    for record in life.records:
        for name in blobs_of(record):
            names.setdefault(name, keys.in_cycle(name, cycle))
    for old, new in names.items():
        await put_proven(store, new, old, fetch)
    records = renamed(life.records, names)
    return [await _packed(store, record, cycle) for record in records]


async def _packed(store: GuardedStore, record: r.Record, cycle: int) -> r.Record:
    """Large graphs in blobs, as the engine keeps them."""
    if not isinstance(record, r.Created | r.Continued) or record.graph is None:
        return record
    if len(encode_record(record)) <= entering.GRAPH_INLINE:
        return record
    held = encode_segment(Header("graph", -1, -1, ""), [r.Continued(-1, record.graph)], token=NO_TOKEN, prev=NO_TOKEN)
    name = keys.blob(cycle, blake3.blake3(held).hexdigest())

    async def itself(_: str) -> AsyncIterator[BytesLike]:
        yield held

    await put_proven(store, name, name, itself)
    values = {field: getattr(record, field) for field in record.__struct_fields__}
    return type(record)(**values | {"graph": None, "graph_blob": name})


async def put_proven(store: GuardedStore, new: str, old: str, fetch: Fetch) -> None:
    """Store a blob and read it back: its name is the hash of its content.

    Raises CorruptedError: the source's is missing or damaged, or the target keeps other bytes than it was given.
    """
    wanted = new.rpartition("/")[2]
    if await _digest(store, new) == wanted:
        return
    seen = ""

    async def checked() -> AsyncIterator[BytesLike]:
        nonlocal seen
        digest = blake3.blake3()
        async for chunk in fetch(old):
            digest.update(chunk)
            yield chunk
        seen = digest.hexdigest()
        if seen != wanted:
            raise CorruptedError(f"{old} is damaged: its content does not fit its name. It was not copied", key=old)

    try:
        await store.upload(new, checked)
    except NotFound:
        raise CorruptedError(f"{old} is missing, but a workflow's record names it", key=old) from None
    if await _digest(store, new) != wanted:
        raise CorruptedError(f"{new} arrived damaged in {store.url}: it was written and read back otherwise", key=new)


async def _digest(store: GuardedStore, name: str) -> str:
    """Of what the store holds under this name; "" where it holds nothing."""
    digest = blake3.blake3()
    try:
        async for chunk in store.store.download(name):
            digest.update(chunk)
    except NotFound:
        return ""
    return digest.hexdigest()


# -- parts, and what was sent ----------------------------------------------------------------------------------------


async def write_parts(
    store: GuardedStore, chain: Chain, records: list[r.Record], number: int
) -> tuple[tuple[str, int], ...]:
    """Base parts with these records; their tokens come from their content, so a repetition writes the same."""
    parts = []
    for batch in batches(records):
        header = Header("part", -1, -1, "")
        token = blake3.blake3(encode_segment(header, batch, token=NO_TOKEN, prev=NO_TOKEN)).digest(16)
        data = encode_segment(header, batch, token=token, prev=NO_TOKEN)
        key = keys.part(chain.prefix, number, token.hex())
        await store.create_once(key, data, token)
        if bytes(await store.get(key)) != data:
            raise CorruptedError(f"{key} arrived damaged in {store.url}", key=key)
        parts.append((key.rpartition("/")[2], len(data)))
    return tuple(parts)


def batches(records: list[r.Record]) -> Iterator[list[r.Record]]:
    sizes = [len(encode_record(record)) for record in records]
    limit = max(LARGEST_PART, sum(sizes) // _MOST_PARTS)
    batch: list[r.Record] = []
    size = 0
    for record, length in zip(records, sizes, strict=True):
        if batch and size + length > limit:
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch


async def _send(store: GuardedStore, life: Life, birth: int) -> None:
    """After Created, since the next life with this birth could be another's (E3)."""
    prefixes = {"in": keys.inbox(life.workflow_id, birth), "ev": f"{keys.events(life.workflow_id)}{birth}/"}
    for kind, rest, data in life.sent:
        try:
            await store.create_once(prefixes[kind] + rest, data, data[8:24])
        except AlreadyExists:
            pass  # another signal has this number by now; the owner has been reached
