"""Workflows whose journal is damaged: the newest state that can be read whole, and going on from there (the protocol's
row "repair"); or the end of them.

Owns what can be saved: a base whose parts are all there, the segments that follow it without a gap, as far as every
value that their records name is there too. The rest is given up, and its tasks run again. The saved state becomes base
parts that a Claimed entry at the end of the chain names, so nobody reads what lies below it any more. Who was here
before is fenced by that entry as by any other claim (J11); the life, its inbox and its idempotency keys stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from perdure import keys
from perdure import records as r
from perdure.care.arriving import write_parts
from perdure.care.entry import entered
from perdure.care.lives import whole_record
from perdure.care.opening import Hand
from perdure.care.verifying import trouble_of
from perdure.chain import CLAIMED, DELETED, View
from perdure.coordinator import Coordinator
from perdure.entering import last_claim, remains
from perdure.errors import (
    CorruptedError,
    NotFound,
    SignatureError,
    StoreError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.guarded_store import GuardedStore
from perdure.naming import blobs_of
from perdure.reading import status_of, unknown
from perdure.segment import NO_TOKEN, Header, Segment, decode_segment
from perdure.state import TERMINAL, IllegalTransition, State

_TRIES: Final = 10
_RESULTS = (r.TaskDone, r.Received, r.Continued)


@dataclass
class Salvage:
    """What a damaged workflow still holds.

    ``view``: where the chain ends. ``records``: the history up to the damage; empty where nothing can be saved.
    ``damaged``: (key, what is wrong with it). ``given_up``: numbers of tasks whose results can be read but come after
    the damage; they run again, as do those whose records are lost.
    """

    workflow_id: str
    view: View
    records: list[r.Record] = field(default_factory=list)
    state: State = field(default_factory=State)
    damaged: list[tuple[str, str]] = field(default_factory=list)
    given_up: set[int] = field(default_factory=set)

    @property
    def sound(self) -> bool:
        return not self.damaged

    @property
    def savable(self) -> bool:
        return self.state.created is not None


async def salvage(store: GuardedStore, workflow_id: str, *, any_key: bool = False) -> Salvage:
    """What can be read. Writes nothing. ``any_key``: what is signed with a key that is not at hand counts as damaged.

    Raises:
        WorkflowNotFoundError: there is no such chain, or its life is over.
        FormatError: a newer Perdure's; nothing may be done to it (J8).
        SignatureError: a key is missing, so it is not known whether anything is damaged.
        StoreError: the store failed, which says nothing of what it holds.
    """
    keys.check_workflow_id(workflow_id)
    chain = keys.workflow_chain(workflow_id)
    names = await store.list_keys(keys.segments(chain))
    numbers = {n: name for name in names if (n := keys.segment_number(name)) is not None}
    if not numbers:
        return await _headless(store, chain, workflow_id)
    last = max(numbers)
    segments: dict[int, Segment] = {}
    wrong: dict[int, str] = {}
    for number, name in numbers.items():
        try:
            segments[number] = decode_segment(await store.get(name), name, number)
        except NotFound:
            continue  # trimmed meanwhile
        except CorruptedError as error:
            _check_key(error, any_key)
            wrong[number] = str(error)
    newest = segments[max(segments)] if segments else None
    if newest is not None and newest.header.kind == DELETED and newest.number == last:
        raise unknown(workflow_id)
    token = segments[last].token if last in segments else NO_TOKEN
    if newest is None or newest.header.kind == DELETED:  # of a life after it nothing is left
        found = Salvage(workflow_id, View(last, token))
        found.damaged = [(numbers[n], text) for n, text in sorted(wrong.items()) if newest is None or n > newest.number]
        return found
    found = Salvage(workflow_id, View(last, token, newest.header))
    history, after = await _longest(store, chain, segments, newest.header, last, found.damaged, any_key)
    needed = range(newest.header.base + 1, last + 1)
    for number in needed:
        if number in wrong:
            found.damaged.append((numbers[number], wrong[number]))
        elif number not in segments:
            found.damaged.append((keys.segment(chain, number), "it is missing"))
    await _cut(store, found, history)
    kept = len(found.records)
    for record in [*history[kept:], *after]:
        if isinstance(record, _RESULTS):
            found.given_up.add(record.task)
    return found


async def _headless(store: GuardedStore, chain: str, workflow_id: str) -> Salvage:
    """No segment at all: base parts that are left can't be told from those that a base had dropped."""
    parts = [n for key in await store.list_keys(keys.parts(chain)) if (n := keys.part_number(key)) is not None]
    if not parts or not max(parts):  # parts of number 0 are a copy on its way into an empty chain
        raise unknown(workflow_id)
    return Salvage(workflow_id, View(max(parts)), damaged=[(keys.segments(chain), "the journal is gone")])


def _check_key(error: CorruptedError, any_key: bool) -> None:
    if isinstance(error, SignatureError) and error.unknown_key and not any_key:
        raise error


async def _longest(
    store: GuardedStore,
    chain: str,
    segments: dict[int, Segment],
    newest: Header,
    last: int,
    damaged: list[tuple[str, str]],
    any_key: bool,
) -> tuple[list[r.Record], list[r.Record]]:
    """The records of the base that reaches farthest with the segments after it, and those of segments behind that."""
    best, reach = list[r.Record](), -2
    seen: set[tuple[int, tuple[tuple[str, int], ...]]] = set()
    for number in sorted(segments, reverse=True):
        header = segments[number].header
        base = header.base, header.parts
        if header.birth != newest.birth or header.kind == DELETED or base in seen:
            continue
        seen.add(base)
        wrong: list[tuple[str, str]] = []
        records = await _parts(store, chain, header.parts, wrong, any_key)
        if base == (newest.base, newest.parts):
            damaged += wrong
        if records is None:
            continue
        upto, token = header.base, None
        while (segment := segments.get(upto + 1)) is not None and token in (None, segment.prev):
            records += segment.records
            upto, token = upto + 1, segment.token
        if upto > reach:
            best, reach = records, upto
        if reach == last:
            break
    following = segments.get(reach + 1)
    if reach >= 0 and following is not None and not damaged:
        damaged.append((keys.segment(chain, reach + 1), "it does not continue the segment before it"))
    after = [x for n in sorted(segments) if n > reach and segments[n].header.birth == newest.birth
             for x in segments[n].records]  # fmt: skip
    return [record for record in best if not isinstance(record, r.Base)], after


async def _parts(
    store: GuardedStore, chain: str, parts: Sequence[tuple[str, int]], wrong: list[tuple[str, str]], any_key: bool
) -> list[r.Record] | None:
    out: list[r.Record] = []
    for name, _ in parts:
        key = keys.parts(chain) + name
        try:
            out += decode_segment(await store.get(key), key).records
        except NotFound:
            wrong.append((key, "it is missing"))
        except CorruptedError as error:
            _check_key(error, any_key)
            wrong.append((key, str(error)))
    return None if wrong else out


async def _cut(store: GuardedStore, found: Salvage, history: list[r.Record]) -> None:
    """Take records as long as they fit, and all that they name is there."""
    checked: set[str] = set()
    for record in history:
        try:
            whole = await whole_record(store, record)
        except CorruptedError as error:
            found.damaged.append((error.key or found.workflow_id, str(error)))
            return
        for name in dict.fromkeys(blobs_of(whole)):
            if name not in checked and (text := await trouble_of(store, name, content=True)):
                found.damaged.append((name, text))
                return
            checked.add(name)
        try:
            found.state.apply(whole)
        except (IllegalTransition, ValueError) as error:
            found.damaged.append((found.workflow_id, f"its records contradict each other: {error}"))
            return
        found.records.append(record)


async def repair(hand: Hand, workflow_id: str) -> Salvage:
    """Let a damaged workflow go on from what can be read of it. A sound one is left as it is.

    Raises:
        WorkflowNotFoundError; WorkflowStillActiveError: somebody drives it; FormatError.
        WorkflowNotResumableError: nothing of it can be saved, or it has moved to another store.
    """
    store: GuardedStore = hand.reading.store  # type: ignore[assignment]
    for _ in range(_TRIES):
        found = await salvage(store, workflow_id)
        if found.sound:
            return found
        if not found.savable:
            raise WorkflowNotResumableError(
                f"nothing of workflow {workflow_id!r} can be saved: what it began with is damaged. Restore "
                f"{found.damaged[0][0]} from a copy, or forget the workflow with --delete.",
                workflow_id=workflow_id,
            )
        context, moved_to = last_claim(found.records)
        if moved_to is not None:
            raise WorkflowNotResumableError(
                f"workflow {workflow_id!r} has moved to {moved_to}: it goes on there. Forget it here with --delete.",
                workflow_id=workflow_id,
            )
        here = await hand.writing()
        await _nobody_drives(here, found)
        chain = here.reader.chain(workflow_id)
        number, now = found.view.number + 1, here.clock.wall()
        entry: list[r.Record] = [
            r.Claimed(now, context=context),
            r.Repaired(now, tuple(key for key, _ in found.damaged[:100])),
        ]
        parts = await write_parts(store, chain, found.records, found.view.number)
        if not await entered(here, chain, workflow_id, CLAIMED, entry, found.view, parts, rebased=True):
            continue
        state = found.state
        if state.phase in TERMINAL:
            here.lease.finished(workflow_id, number, str(status_of(state.phase)), state.started, state.ended)
        return found
    raise StoreError(f"workflow {workflow_id!r} keeps changing; try again")


async def forget(hand: Hand, workflow_id: str) -> Salvage:
    """Delete a workflow, whatever is left of it. Errors as `repair`."""
    store: GuardedStore = hand.reading.store  # type: ignore[assignment]
    for _ in range(_TRIES):
        found = await salvage(store, workflow_id, any_key=True)
        here = await hand.writing()
        await _nobody_drives(here, found)
        chain = here.reader.chain(workflow_id)
        now = here.clock.wall()
        if not await entered(here, chain, workflow_id, DELETED, [r.Deleted(now)], found.view):
            continue
        here.lease.finished(workflow_id, chain.number, DELETED, 0.0, now)
        await store.delete_many(await remains(store, chain, chain.number))
        return found
    raise StoreError(f"workflow {workflow_id!r} keeps changing; try again")


async def _nobody_drives(here: Coordinator, found: Salvage) -> None:
    """Retire whoever may own it: the newest readable segment says who, and so do the pages of all coordinators, for an
    entry that can't be read. Where the chain's last segments are lost, pages may tell of higher numbers: the entry that
    is to come goes above those too, since the highest number is what a list shows.
    """
    owners = {found.view.header.entry_by} if found.view.header is not None else set()
    for name in await here.watcher.coordinators():
        try:
            roster = await here.watcher.roster(name)
        except CorruptedError as error:
            raise CorruptedError(
                f"{error}. It is not known whether its coordinator drives {found.workflow_id!r}. Nothing was changed: "
                "restore that object from a copy first (`perdure verify` tells all that are damaged)",
                key=error.key,
            ) from error
        if (entry := roster.entries.get(found.workflow_id)) is not None:
            found.view.number = max(found.view.number, entry.number)
        if not roster.retired and found.workflow_id in roster.opened:
            owners.add(name)
    for owner in sorted(owners - {here.id}):
        if not await here.watcher.retire(owner):
            raise WorkflowStillActiveError(
                f"workflow {found.workflow_id!r} is driven by a cluster (coordinator {owner[:8]}). Stop that cluster's "
                "coordinator first (`perdure stop`).",
                workflow_id=found.workflow_id,
            )
