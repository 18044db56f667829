"""Reading: what the store says of workflows, for owners, other clusters and tools alike.

Owns the fold of a chain into a state, the answers that a stored state gives, and the merge of all coordinators' pages
into a list. Changes nothing, and decides nothing about ownership: that somebody seems alive is only told to people.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from perdure import keys
from perdure import records as r
from perdure.chain import DELETED, Chain, ChainStore, View
from perdure.clock import Clock
from perdure.drive import failure_of
from perdure.errors import CorruptedError, FormatError, NotFound, PerdureError, WorkflowNotFoundError
from perdure.graph import Failure, Payload
from perdure.lease import Entry, Roster, Watcher
from perdure.segment import decode_segment
from perdure.state import TERMINAL, Phase, State, compact, fold
from perdure.status import WorkflowStatus

logger = logging.getLogger("perdure")

_STATUS: Final = {
    Phase.NONE: WorkflowStatus.NONE,
    Phase.PENDING: WorkflowStatus.PENDING,
    Phase.RUNNING: WorkflowStatus.RUNNING,
    Phase.FAILING: WorkflowStatus.RUNNING,
    Phase.CANCELLING: WorkflowStatus.RUNNING,
    Phase.SUCCEEDED: WorkflowStatus.SUCCESSFUL,
    Phase.FAILED: WorkflowStatus.FAILED,
    Phase.CANCELED: WorkflowStatus.CANCELED,
}


def status_of(phase: Phase) -> WorkflowStatus:
    return _STATUS[phase]


@dataclass(frozen=True)
class Answer:
    """The end of a workflow, or the value of a task: a payload, a failure, or only a status."""

    workflow_id: str
    status: WorkflowStatus
    payload: Payload | None = None
    failed_task: str | None = None
    failure: Failure | None = None


class Listed(NamedTuple):
    """A workflow in a list. ``start``, ``end``: Unix seconds, 0: not yet. ``problem``: why it can't be read; its status
    is then the one that it has if it is restored or repaired.
    """

    status: WorkflowStatus
    start: float
    end: float
    problem: str = ""


class Reader:
    """Reads one store. ``me`` names the coordinator that reads, "" for tools; ``gone`` tells whether the process with
    these facts is provably gone."""

    def __init__(
        self,
        store: ChainStore,
        clock: Clock,
        tokens: Callable[[], bytes],
        *,
        me: str = "",
        gone: Callable[[dict[str, str]], Awaitable[bool]],
    ) -> None:
        self.store = store
        self.clock = clock
        self.tokens = tokens
        self.me = me
        self.gone = gone
        self.watcher = Watcher(store, me, clock, tokens, gone=gone)

    def chain(self, workflow_id: str) -> Chain:
        """A hold on the workflow's chain, not read yet."""
        return Chain(self.store, keys.workflow_chain(workflow_id), self.me, self.tokens, compact)

    async def fold(self, view: View, *, keep: bool = False) -> State:
        return fold([await self.with_graph(record) for record in view.records], keep=keep)

    async def with_graph(self, record: r.Record) -> r.Record:
        if isinstance(record, r.Created | r.Continued) and record.graph is None and record.graph_blob:
            try:
                data = await self.store.get(record.graph_blob)
            except NotFound as error:
                raise CorruptedError(
                    f"{record.graph_blob}, which holds the tasks, is missing from the store", key=record.graph_blob
                ) from error
            (held,) = decode_segment(data, record.graph_blob).records
            assert isinstance(held, r.Continued)
            assert held.graph is not None
            values = {name: getattr(record, name) for name in record.__struct_fields__}
            return type(record)(**values | {"graph": held.graph})
        return record

    async def read(self, workflow_id: str, *, keep: bool = False) -> State:
        """The stored state; raises WorkflowNotFoundError where there is none."""
        return (await self._stored(workflow_id, keep=keep))[1]

    async def _stored(self, workflow_id: str, *, keep: bool = False) -> tuple[View, State]:
        view = await self.chain(workflow_id).read()
        if view.deleted:
            raise unknown(workflow_id)
        try:
            return view, await self.fold(view, keep=keep)
        except CorruptedError:
            if (await self.chain(workflow_id).read()).deleted:  # and collected, since the chain was read
                raise unknown(workflow_id) from None
            raise

    async def alive(self, coordinator: str) -> bool:
        """Whether a coordinator seems alive; advisory (its page's wall time), nothing rests on it."""
        try:
            roster = await self.watcher.roster(coordinator)
        except PerdureError:
            return False
        return await self.seems_alive(roster)

    async def seems_alive(self, roster: Roster) -> bool:
        if roster.retired or self.clock.wall() - roster.wall >= 2 * roster.lease:
            return False
        return not await self.gone(roster.host)

    async def status(self, workflow_id: str) -> WorkflowStatus:
        """The status of a workflow that is not driven by this process. WorkflowNotFoundError: there is none."""
        return await self.status_now(*await self._stored(workflow_id))

    async def status_now(self, view: View, state: State) -> WorkflowStatus:
        if state.phase in TERMINAL:
            return status_of(state.phase)
        assert view.header is not None
        if view.header.entry_by != self.me and await self.alive(view.header.entry_by):
            return status_of(state.phase)
        return WorkflowStatus.RESUMABLE

    async def list_all(
        self, mine: Roster | None = None, driven: Callable[[str], State | None] = lambda workflow_id: None
    ) -> dict[str, Listed]:
        """All workflows of the store.

        Comes from the coordinators' pages; what a silent one left open is looked up in its own chain. Where pages are
        damaged, all chains are read instead: slow, but right. ``mine`` is this process's own roster, ``driven`` its
        live states.
        """
        best: dict[str, tuple[Entry, str]] = {}
        alive: dict[str, bool] = {}
        rosters = [mine] if mine is not None else []
        for coordinator in await self.watcher.coordinators():
            if coordinator != self.me:
                try:
                    roster = await self.roster(coordinator)
                except CorruptedError as error:
                    logger.warning("the pages of a coordinator can't be read, all workflows are looked at: %s", error)
                    return await self._list_chains(driven)
                if roster is not None:
                    rosters.append(roster)
                    alive[coordinator] = await self.seems_alive(roster)
        # An open entry may be that of an attempt that lost a race or was refused: where others say something else
        # of the id, its chain decides.
        opened: dict[str, int] = {}
        ended: set[str] = set()
        for roster in rosters:
            ended.update(roster.ended)
            for workflow_id in roster.opened:
                opened[workflow_id] = opened.get(workflow_id, 0) + 1
            for workflow_id, entry in roster.entries.items():
                old = best.get(workflow_id)
                if old is None or entry.number >= old[0].number:
                    best[workflow_id] = (entry, roster.coordinator)
        out: dict[str, Listed] = {}
        for workflow_id, (entry, owner) in best.items():
            live = driven(workflow_id)
            if live is not None:
                out[workflow_id] = Listed(status_of(live.phase), live.started, 0.0)
            elif entry.status == DELETED:
                continue
            elif entry.status:
                out[workflow_id] = Listed(WorkflowStatus(entry.status), entry.start, entry.end)
            elif alive.get(owner, False) and opened[workflow_id] == 1 and workflow_id not in ended:
                out[workflow_id] = Listed(WorkflowStatus.RUNNING, entry.start, 0.0)
            else:
                try:
                    view, state = await self._stored(workflow_id)
                except WorkflowNotFoundError:
                    continue
                except (CorruptedError, FormatError) as error:  # it must not hide the others; `resume` says what it has
                    out[workflow_id] = Listed(WorkflowStatus.RESUMABLE, entry.start, 0.0, str(error))
                    continue
                out[workflow_id] = Listed(await self.status_now(view, state), state.started, state.ended)
        return out

    async def _list_chains(self, driven: Callable[[str], State | None]) -> dict[str, Listed]:
        """`list_all` without any page."""
        out: dict[str, Listed] = {}
        names = await self.store.list_keys(keys.WORKFLOWS)
        for prefix in dict.fromkeys(keys.chain_of(name) for name in names):
            try:
                view = await Chain(self.store, prefix, self.me, self.tokens, compact).read()
                state = await self.fold(view)
            except (CorruptedError, FormatError) as error:
                found = keys.id_of_chain(prefix)
                if found is None:  # its id is in what can't be read
                    logger.warning("a workflow can't be read: %s", error)
                else:
                    out[found] = Listed(WorkflowStatus.RESUMABLE, 0.0, 0.0, str(error))
                continue
            if view.deleted or state.created is None:
                continue
            workflow_id = state.created.workflow_id
            live = driven(workflow_id)
            if live is not None:
                out[workflow_id] = Listed(status_of(live.phase), live.started, 0.0)
            else:
                out[workflow_id] = Listed(await self.status_now(view, state), state.started, state.ended)
        return out

    async def roster(self, coordinator: str) -> Roster | None:
        try:
            return await self.watcher.roster(coordinator)
        except NotFound:
            return None


def unknown(workflow_id: str) -> WorkflowNotFoundError:
    return WorkflowNotFoundError(
        f"workflow {workflow_id!r} is not in this store. See `perdure list`.", workflow_id=workflow_id
    )


def answer_of(workflow_id: str, state: State) -> Answer:
    status = status_of(state.phase)
    if state.phase is Phase.SUCCEEDED:
        return Answer(workflow_id, status, state.tasks[state.root].payload)
    failed = failure_of(state)
    if failed is not None and state.phase is Phase.FAILED:
        return Answer(workflow_id, status, None, *failed)
    return Answer(workflow_id, status)


def task_answer(workflow_id: str, state: State, task_id: str) -> Answer | None:
    number = state.names.get(task_id)
    if number is None:
        if state.phase not in TERMINAL:
            return None  # a continuation may still bring it
        raise WorkflowNotFoundError(
            f"workflow {workflow_id!r} has no task {task_id!r}; it has: "
            f"{', '.join(list(state.names)[:20])}{' …' if len(state.names) > 20 else ''}",
            workflow_id=workflow_id,
        )
    task = state.tasks[number]
    if task.payload is not None:
        return Answer(workflow_id, WorkflowStatus.SUCCESSFUL, task.payload)
    if task.failure is not None and (task.status.name == "FAILED" or state.phase in TERMINAL):
        return Answer(workflow_id, WorkflowStatus.FAILED, None, task.name, task.failure)
    if state.phase is Phase.SUCCEEDED:
        raise WorkflowNotFoundError(
            f"the value of task {task_id!r} of workflow {workflow_id!r} was not stored (checkpoint=False)",
            workflow_id=workflow_id,
        )
    return None
