"""Workflows from one store into another.

Owns what is entered in the source first: an unfinished workflow is claimed with the mark where it moves to, so that
only one of the two goes on. Restartable at any point: the mark, the blobs and the new life are found there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from perdure import keys
from perdure import records as r
from perdure.care.arriving import arrive
from perdure.care.entry import entered
from perdure.care.lives import Life, blobs_from, read_life
from perdure.care.opening import Hand
from perdure.chain import CLAIMED, View
from perdure.entering import last_claim
from perdure.errors import (
    CorruptedError,
    FormatError,
    StoreError,
    WorkflowError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.guarded_store import GuardedStore
from perdure.reading import unknown
from perdure.state import TERMINAL

_TRIES: Final = 10


@dataclass(frozen=True)
class Outcome:
    """``result``: ``copied``, ``present`` (it was there), ``moved`` (and deleted in the source), or ``refused``."""

    workflow_id: str
    result: str
    error: Exception | None = None


async def copy(
    source: Hand, target: Hand, ids: Sequence[str] | None, *, move: bool, tell: Callable[[Outcome], None]
) -> None:
    """Copy these workflows, or all. What one of them lacks does not stop the others.

    Raises StoreError: a store failed for good; what was told is done.
    """
    here: GuardedStore = source.reading.store  # type: ignore[assignment]
    there: GuardedStore = target.reading.store  # type: ignore[assignment]
    if here.url == there.url:
        raise ValueError(f"source and target are the same store: {here.url}")
    chosen = list(dict.fromkeys(ids)) if ids is not None else sorted(await source.reading.list_all())
    for workflow_id in chosen:
        tell(await _copy_one(source, target, workflow_id, move))


async def _copy_one(source: Hand, target: Hand, workflow_id: str, move: bool) -> Outcome:
    here: GuardedStore = source.reading.store  # type: ignore[assignment]
    try:
        keys.check_workflow_id(workflow_id)
        life = await depart(source, workflow_id, target.reading.store.url)  # type: ignore[attr-defined]
        new = await arrive(target, life, blobs_from(here), here.url)
        if move:
            await (await source.writing()).delete(workflow_id)
    except (WorkflowError, CorruptedError, FormatError) as error:
        return Outcome(workflow_id, "refused", error)
    return Outcome(workflow_id, "moved" if move else "copied" if new else "present")


async def depart(source: Hand, workflow_id: str, to: str) -> Life:
    """The life, which nobody goes on with in the source: finished, or marked as moved ``to``.

    Raises:
        WorkflowNotFoundError, WorkflowStillActiveError, WorkflowNotResumableError (it has moved elsewhere).
    """
    reader = source.reading.reader
    for _ in range(_TRIES):
        view = await reader.chain(workflow_id).read()
        if view.deleted:
            raise unknown(workflow_id)
        state = await reader.fold(view)
        if state.phase not in TERMINAL and state.moved_to != to:
            if state.moved_to is not None:
                raise WorkflowNotResumableError(
                    f"workflow {workflow_id!r} has moved to {state.moved_to} before, and only one may go on. Copy it "
                    "from there, or take it back with `perdure copy --take-back`.",
                    workflow_id=workflow_id,
                )
            if not await enter_moved(source, workflow_id, view, to):
                continue
            view = await reader.chain(workflow_id).read()
        life = await read_life(reader.store, workflow_id, view)  # type: ignore[arg-type]
        if life is not None:
            return life
    raise StoreError(f"workflow {workflow_id!r} keeps changing; try again")


async def enter_moved(source: Hand, workflow_id: str, view: View, to: str | None) -> bool:
    """Claim a workflow that nobody drives, marked as moved ``to`` (None: the mark is taken off). False: look again."""
    assert view.header is not None
    here = await source.writing()
    owner = view.header.entry_by
    if owner != here.id:
        if not await here.watcher.retire(owner):
            raise WorkflowStillActiveError(
                f"workflow {workflow_id!r} is driven by a cluster (coordinator {owner[:8]}). Let it finish, cancel it, "
                "or stop that cluster's coordinator (`perdure stop`), which leaves it to be resumed.",
                workflow_id=workflow_id,
            )
        again = await here.reader.chain(workflow_id).read()  # it may have appended until it was retired
        if again.number != view.number or again.token != view.token:
            return False
    context, _ = last_claim(view.records)
    chain = here.reader.chain(workflow_id)
    claim = r.Claimed(here.clock.wall(), moved_to=to, context=context)
    return await entered(here, chain, workflow_id, CLAIMED, [claim], view)


async def take_back(source: Hand, workflow_id: str) -> None:
    """Let a workflow go on in the source again, which was marked as moved away.

    Raises:
        WorkflowNotFoundError, WorkflowNotResumableError (it has not moved).
    """
    reader = source.reading.reader
    for _ in range(_TRIES):
        view = await reader.chain(workflow_id).read()
        if view.deleted:
            raise unknown(workflow_id)
        state = await reader.fold(view)
        if state.moved_to is None:
            raise WorkflowNotResumableError(
                f"workflow {workflow_id!r} is not marked as moved: there is nothing to take back",
                workflow_id=workflow_id,
            )
        if await enter_moved(source, workflow_id, view, None):
            return
    raise StoreError(f"workflow {workflow_id!r} keeps changing; try again")


__all__ = ["Outcome", "copy", "depart", "enter_moved", "take_back"]
