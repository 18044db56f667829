"""Entering a chain: run, resume, delete - the sequences of docs/design.md that make an entry.

Owns the order of announcement, entry and verification (L2, J10, J14), and what is done with an id that exists already.
It drives nothing: what was entered is handed to ``owned``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import blake3

from perdure import keys
from perdure import records as r
from perdure.chain import CLAIMED, CREATED, DELETED, Chain, EntryLost, View
from perdure.clock import Clock
from perdure.drive import Drive
from perdure.errors import (
    AlreadyExists,
    StoreError,
    WorkflowExistsError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.graph import Function, Graph, Payload
from perdure.journal import JournalStore
from perdure.lease import Lease
from perdure.reading import Answer, Reader, answer_of, unknown
from perdure.runner import Context
from perdure.segment import NO_TOKEN, Header, encode_segment
from perdure.state import TERMINAL, Phase, State, fold

GRAPH_INLINE: Final = 256 * 1024
_TRIES: Final = 10
Code: TypeAlias = tuple[tuple[str, Function], ...]
"""(digest of a stored function, the function that takes its place)."""


@dataclass(frozen=True)
class Submission:
    """What `run` asks for. ``client``: the caller's token; the same token again attaches (idempotent)."""

    workflow_id: str
    client: str
    graph: Graph
    metadata: dict[str, Any] = field(default_factory=dict)
    if_exists: str = "return"
    versions: tuple[str, ...] = ()


class Entrance:
    """Makes the entries of one coordinator.

    ``owned`` begins to drive what was entered; ``look`` reads the inbox of what was claimed.
    """

    def __init__(
        self,
        store: JournalStore,
        lease: Lease,
        reader: Reader,
        clock: Clock,
        owned: Callable[[str, Chain, State, Context], Drive],
        look: Callable[[str], Awaitable[None]],
    ) -> None:
        self.store = store
        self.lease = lease
        self.reader = reader
        self.clock = clock
        self._owned = owned
        self.look = look

    async def submit(self, submission: Submission, context: Context, pending: bool, cycle: int) -> Drive | Answer:
        """Create the workflow, or meet the life that has this id. ``pending``: it has to wait for room. ``cycle``: the
        GC cycle that the caller holds (B2)."""
        workflow_id = submission.workflow_id
        chain = self.reader.chain(workflow_id)
        record = await self._created(submission, pending, context, cycle)
        view = View()  # optimistic: most ids are new
        for _ in range(_TRIES):
            announced = self.lease.announce(workflow_id, view.number + 1)
            try:
                if view.number >= 0 or _names_blob(record):
                    await announced  # L2
                    await self._enter(chain, CREATED, record, view, workflow_id)
                else:
                    # L2 for a first entry that names no blob: side by side, and nothing begins before both are there
                    await _both(announced, self._enter(chain, CREATED, record, view, workflow_id))
            except EntryLost:
                view = await chain.read()
                if not view.deleted:
                    try:
                        met = await self._meet_stored(view, submission, context)
                    except EntryLost:
                        met = None  # it ended or changed while we looked: look again
                    if met is not None:
                        return met
                    view = await chain.read()
                    if not view.deleted:
                        view = View()  # the next try meets it again
                continue
            state = fold([await self.reader.with_graph(record)])
            return self._owned(workflow_id, chain, state, context)
        raise StoreError(f"workflow {workflow_id!r}: others keep taking its next slot; try again", key=chain.prefix)

    async def _created(self, submission: Submission, pending: bool, context: Context, cycle: int) -> r.Created:
        graph = submission.graph
        blob = None
        if _roughly(graph) > GRAPH_INLINE:
            header = Header("graph", -1, -1, self.lease.coordinator)
            packed = encode_segment(header, [r.Continued(-1, graph)], token=NO_TOKEN, prev=NO_TOKEN)
            blob = keys.blob(cycle, blake3.blake3(packed).hexdigest())
            try:
                await self.store.create_once(blob, packed, NO_TOKEN)
            except AlreadyExists:
                pass
        return r.Created(
            submission.workflow_id,
            submission.client,
            self.clock.wall(),
            None if blob else graph,
            blob,
            graph.structure,
            graph.code,
            graph.python,
            submission.metadata,
            pending,
            context.digest,
            versions=submission.versions,
        )

    async def _meet_stored(self, view: View, submission: Submission, context: Context) -> Drive | Answer | None:
        """What to do with the life that has this id already; None: it is gone now, create."""
        workflow_id = submission.workflow_id
        state = await self.reader.fold(view)
        assert state.created is not None
        if state.created.client == submission.client:  # my own call, sent twice
            if state.phase in TERMINAL:
                return answer_of(workflow_id, state)
            return await self.claim(workflow_id, context, retry_failed=False)
        if submission.if_exists == "error":
            raise WorkflowExistsError(
                f"workflow {workflow_id!r} exists already ({state.phase.value}), and if_exists='error'. "
                "Choose another workflow_id, or delete it first.",
                workflow_id=workflow_id,
            )
        if submission.if_exists == "replace":
            await self.delete(workflow_id)
            return None
        check_same(state.created, submission)
        if state.phase is Phase.SUCCEEDED:
            return answer_of(workflow_id, state)
        if state.phase is Phase.CANCELED:
            raise _canceled(workflow_id)
        return await self.claim(workflow_id, context, retry_failed=True)

    async def claim(
        self,
        workflow_id: str,
        context: Context,
        *,
        retry_failed: bool,
        wait: bool = True,
        code: Code = (),
        canceling: bool = False,
        known: tuple[Chain, View, State] | None = None,
    ) -> Drive:
        """Enter a life that somebody else owned (or that is finished and failed); ``code`` as in `Claimed`.

        One that has moved to another store is entered to be cancelled only. ``known``: what the caller has just read.
        """
        chain = known[0] if known is not None else self.reader.chain(workflow_id)
        retired: set[str] = set()
        for _ in range(_TRIES):
            if known is not None:
                (_, view, state), known = known, None
            else:
                view = await chain.read()
                if view.deleted:
                    raise unknown(workflow_id)
                state = await self.reader.fold(view)
            assert view.header is not None
            owner = view.header.entry_by
            if state.moved_to is not None and not canceling:
                raise _moved(workflow_id, state.moved_to)
            if state.phase not in TERMINAL and owner != self.lease.coordinator and owner not in retired:
                if not await self.reader.watcher.retire(owner, wait=wait):
                    raise WorkflowStillActiveError(
                        f"workflow {workflow_id!r} is driven by another cluster (coordinator {owner[:8]}). Wait "
                        "for it there, or resume it when that cluster is gone.",
                        workflow_id=workflow_id,
                    )
                retired.add(owner)
                continue  # read again: it may have appended until now, or somebody else has entered
            if state.phase in TERMINAL and not (retry_failed and state.phase is Phase.FAILED):
                raise EntryLost(f"{workflow_id} has ended meanwhile")
            await self.lease.announce(workflow_id, view.number + 1)  # L2
            record = r.Claimed(
                self.clock.wall(),
                retry_failed and state.phase in (Phase.FAILED, Phase.FAILING),
                context=context.digest,
                code=code,
            )
            try:
                await self._enter(chain, CLAIMED, record, view, workflow_id)
            except EntryLost:
                continue
            state.apply(record)
            drive = self._owned(workflow_id, chain, state, context)
            await self.look(workflow_id)
            return drive
        raise StoreError(f"workflow {workflow_id!r}: others keep taking its next slot; try again", key=chain.prefix)

    async def resume(self, workflow_id: str, context: Context, wait: bool, code: Code = ()) -> Drive | Answer:
        """Claim the workflow; a finished one is answered."""
        for _ in range(_TRIES):
            chain = self.reader.chain(workflow_id)
            view = await chain.read()
            if view.deleted:
                raise unknown(workflow_id)
            state = await self.reader.fold(view)
            if state.phase is Phase.SUCCEEDED:
                return answer_of(workflow_id, state)
            if state.phase is Phase.CANCELED:
                raise _canceled(workflow_id)
            known = (chain, view, state)
            try:
                return await self.claim(workflow_id, context, retry_failed=True, wait=wait, code=code, known=known)
            except EntryLost:
                continue
        raise StoreError(f"workflow {workflow_id!r} keeps changing; try again")

    async def finished(self, submission: Submission) -> Answer | None:
        """The stored answer, where the submission needs nothing else: it has succeeded already, with the same DAG."""
        if submission.if_exists not in ("return", "resume"):
            return None
        view = await self.reader.chain(submission.workflow_id).read()
        state = await self.reader.fold(view) if not view.deleted else None
        if state is None or state.created is None or state.phase is not Phase.SUCCEEDED:
            return None
        check_same(state.created, submission)
        return answer_of(submission.workflow_id, state)

    async def delete(self, workflow_id: str) -> None:
        """Enter Deleted, then purge; whoever meets a half-purged life may finish."""
        chain = self.reader.chain(workflow_id)
        for _ in range(_TRIES):
            view = await chain.read()
            if view.deleted:
                raise unknown(workflow_id)
            assert view.header is not None
            state = await self.reader.fold(view)
            owner = view.header.entry_by
            if (
                state.phase not in TERMINAL
                and owner != self.lease.coordinator
                and not await self.reader.watcher.retire(owner)
            ):
                raise WorkflowStillActiveError(
                    f"workflow {workflow_id!r} is driven by another cluster. Cancel it first.",
                    workflow_id=workflow_id,
                )
            # not for ownership (L2 needs no announcement of Deleted), but so that a deleter that dies before its
            # next page leaves an open entry, which makes `list_all` look into the chain
            await self.lease.announce(workflow_id, view.number + 1)
            try:
                await self._enter(chain, DELETED, r.Deleted(self.clock.wall()), view, workflow_id)
            except EntryLost:
                continue
            self.lease.finished(workflow_id, chain.number, DELETED, 0.0, self.clock.wall())
            left = await remains(self.store, chain, chain.number)
            if left:
                await self.store.delete_many(left)
            return
        raise StoreError(f"workflow {workflow_id!r}: others keep taking its next slot; try again", key=chain.prefix)

    async def fence(self, workflow_id: str, number: int, owner: str) -> bool:
        """L6: nothing that ``owner``, which is retired, has announced up to slot ``number`` or appended can land after
        this. True where that took an entry; nobody drives the workflow then, as before.
        """
        chain = self.reader.chain(workflow_id)
        for _ in range(_TRIES):
            view = await chain.read()
            arrived = view.number >= number
            if arrived and (view.deleted or view.header is None or view.header.entry_by != owner):
                return False
            if arrived and _ended(view.records):
                return False  # it appends nothing after the end, and enters nothing that it has not announced
            record: r.Record
            if view.deleted:
                kind, record = DELETED, r.Deleted(self.clock.wall())
            else:
                context, moved_to = last_claim(view.records)
                kind, record = CLAIMED, r.Claimed(self.clock.wall(), moved_to=moved_to, context=context)
            await self.lease.announce(workflow_id, view.number + 1)  # L2
            try:
                await self._enter(chain, kind, record, view, workflow_id)
            except EntryLost:
                continue
            if kind == DELETED:
                self.lease.finished(workflow_id, chain.number, DELETED, 0.0, self.clock.wall())
            return True
        raise StoreError(f"workflow {workflow_id!r}: others keep taking its next slot; try again", key=chain.prefix)

    async def _enter(self, chain: Chain, kind: str, record: r.Record, view: View, workflow_id: str) -> None:
        """`Chain.enter`; the announcement is taken back where nothing can come of it."""
        try:
            await chain.enter(kind, [record], view)
        except EntryLost:
            self.lease.dropped(workflow_id)
            raise
        except StoreError:
            if not chain.landed:  # refused for good (a full disk)
                self.lease.dropped(workflow_id)
            raise


async def remains(store: JournalStore, chain: Chain, below: int) -> list[str]:
    """What is left of a workflow's lives that ended before slot ``below``. Whoever meets it may delete it."""
    found = await chain.remains(below)
    sent = await store.list_keys(keys.inboxes_beside(chain.prefix))
    for name in [*sent, *await store.list_keys(keys.events_beside(chain.prefix))]:
        birth = keys.inbox_birth(name)
        if birth is not None and birth < below:  # the id may have a new life already (E2, E3)
            found.append(name)
    return found


def last_claim(history: list[r.Record]) -> tuple[str, str | None]:
    """Context of a life's last claim, and where it has moved to."""
    arrived = False
    for record in reversed(history):
        if isinstance(record, r.Claimed | r.Created):
            moved_to = record.moved_to if isinstance(record, r.Claimed) and not arrived else None
            return record.context, moved_to
        arrived = arrived or isinstance(record, r.Arrived)
    return "", None


def _ended(history: list[r.Record]) -> bool:
    """Whether a life's records end in a terminal one."""
    for record in reversed(history):
        if isinstance(record, r.Succeeded | r.Failed | r.Canceled):
            return True
        if not (
            isinstance(record, r.Base | r.Arrived | r.Repaired)
            or (isinstance(record, r.Claimed) and not record.retry_failed)
        ):
            return False
    return False


def check_same(created: r.Created, submission: Submission) -> None:
    """WorkflowExistsError unless the stored DAG and its code are the submitted ones."""
    graph = submission.graph
    same_code = created.python != graph.python or created.code == graph.code
    if created.structure == graph.structure and same_code:
        return
    what = "its functions have other code" if created.structure == graph.structure else "it is another DAG"
    raise WorkflowExistsError(
        f"workflow {submission.workflow_id!r} exists already, and {what}. Choose another workflow_id, "
        f"resume the stored one with workflow.resume({submission.workflow_id!r}), or start over with "
        "if_exists='replace'.",
        workflow_id=submission.workflow_id,
    )


def _canceled(workflow_id: str) -> WorkflowNotResumableError:
    return WorkflowNotResumableError(
        f"workflow {workflow_id!r} was cancelled and can't be resumed. To start it anew: "
        f"workflow.delete({workflow_id!r}), then workflow.run(...) again (or if_exists='replace').",
        workflow_id=workflow_id,
    )


def _moved(workflow_id: str, to: str) -> WorkflowNotResumableError:
    return WorkflowNotResumableError(
        f"workflow {workflow_id!r} has moved to {to}, and only one of the two may go on. Resume it there; if it never "
        f"arrived, repeat `perdure copy` (or `export`), or take it back with `perdure copy --take-back`.",
        workflow_id=workflow_id,
    )


async def _both(announced: Awaitable[None], entered: Awaitable[None]) -> None:
    """Both, also where one fails; that we have been retired outweighs that the slot was taken."""
    for outcome in await asyncio.gather(announced, entered, return_exceptions=True):
        if outcome is not None:
            raise outcome


def _roughly(graph: Graph) -> int:
    """Bytes of a graph, estimated without encoding it."""
    held = [node.args for node in graph.nodes] + [function.payload for function in graph.functions]
    inline = sum(payload.size for payload in held if payload is not None and payload.data is not None)
    edges = sum(len(node.tops) + len(node.nested) for node in graph.nodes)
    return inline + 60 * len(graph.nodes) + 5 * edges


def _names_blob(record: r.Created) -> bool:
    graph = record.graph
    if graph is None or graph.objects:
        return True
    held = [n.args for n in graph.nodes] + [f.payload for f in graph.functions]
    held += [o.retry_exceptions for o in graph.options if isinstance(o.retry_exceptions, Payload)]
    return any(payload is not None and payload.blob is not None for payload in held)
