"""The coordinator: one process that drives workflows, and what is asked of it.

Owns which workflows this process drives, the limits on them, and this process's life: start, lease, retirement, end.
Entries are made by `entering`, stored states are read by `reading`, inboxes are kept by `inbox`. It knows neither Ray
nor any store by name: it gets a guarded store, a clock, a runner and a source of random numbers, so that the
simulation drives the same code. `actor` wraps it for Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final, TypeVar

from perdure import keys
from perdure import scheduler as s
from perdure.chain import Chain, EntryLost, Fenced
from perdure.clock import Clock
from perdure.cycles import Cycles, Ticket
from perdure.drive import Drive, Window
from perdure.entering import Code, Entrance, Submission, check_same
from perdure.errors import (
    ClusterError,
    PerdureError,
    QueueFull,
    StoreError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.inbox import BELL_SECONDS, Inboxes
from perdure.journal import Journal, JournalStore
from perdure.lease import Lease, Roster
from perdure.reading import Answer, Listed, Reader, answer_of, status_of, task_answer, unknown
from perdure.runner import Context, Runner
from perdure.state import TERMINAL, Phase, State
from perdure.status import WorkflowStatus

T = TypeVar("T")

logger = logging.getLogger("perdure")

POISON_CLAIMS: Final = 5
"""A workflow claimed more often without progress is not taken over by itself any more."""
_TRIES: Final = 10

IF_EXISTS: Final = ("return", "error", "replace", "resume")


class Coordinator:
    """One process that drives workflows of one store. `start` first; `stop` or being retired ends it.

    Limits of -1 mean none. ``on_retired`` is called once when somebody else has retired this coordinator.
    """

    def __init__(
        self,
        store: JournalStore,
        runner: Runner,
        clock: Clock,
        rng: random.Random,
        *,
        lease_seconds: float = 20.0,
        max_running: int = -1,
        max_pending: int = -1,
        host: dict[str, str] | None = None,
        on_retired: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.runner = runner
        self.clock = clock
        self.random = rng
        self.max_running = max_running
        self.max_pending = max_pending
        self.id = self._token().hex()
        self.journal = Journal(store, self._on_error)
        self.window = Window()
        self.drives: dict[str, Drive] = {}
        self.pending: dict[str, None] = {}
        self._reserved = 0
        self._entries = 0  # under way: a create of theirs may still land
        self._entering: dict[str, tuple[asyncio.Lock, int]] = {}
        self._on_retired_outside = on_retired
        self.lease = Lease(
            store, self.id, clock, self._token, seconds=lease_seconds, host=host or {}, on_retired=self._out
        )
        self.cycles = Cycles(store, self.lease.acknowledge)
        self.reader = Reader(store, clock, self._token, me=self.id, gone=runner.gone)
        self.watcher = self.reader.watcher
        self._tasks: dict[asyncio.Task[Any], None] = {}  # a set would be cancelled in no certain order
        self.inboxes = Inboxes(store, clock, self._token, self.drives)
        self.entrance = Entrance(store, self.lease, self.reader, clock, self._drive, self.inboxes.look)
        self.out = False
        self.on_committed: Callable[[Drive], None] = lambda drive: None

    def _token(self) -> bytes:
        return self.random.getrandbits(128).to_bytes(16, "big")

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register (L1), read the GC cycle, begin to work."""
        await self.lease.register()
        await self.cycles.start()
        self.spawn(self.lease.run())
        self.spawn(self.journal.run())
        self.spawn(self._watch_lease())
        self.spawn(self.cycles.watch(self.lease.seconds / 4))
        self.spawn(self.inboxes.watch())

    async def stop(self) -> None:
        """A clean end: commits what is under way, then everything is resumable at once.

        A store that does not answer is waited for at most a lease; then it ends like a crash.
        """
        self.out = True
        drives = list(self.drives.values())
        for drive in drives:
            drive.halt()
        try:
            async with asyncio.timeout(self.lease.seconds):
                for drive in drives:
                    await self.journal.idle(drive.log)
                await self.lease.retire_myself(clean=not self._entries)
        except (TimeoutError, StoreError) as error:
            logger.warning("this coordinator ends without having said so in the store: %s", error or "timeout")
        self._close()

    def _out(self) -> None:
        """Retired by somebody else, or stopped: nothing more is started or written."""
        was_out, self.out = self.out, True
        for drive in list(self.drives.values()):
            drive.halt()
        self.drives.clear()
        if not was_out:
            self._close()
            self._on_retired_outside()

    def _close(self) -> None:
        current = asyncio.current_task()
        self.journal.close()
        for task in list(self._tasks):
            if task is not current:
                task.cancel()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._ended_task)
        return task

    async def _whole(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run to its end even where the caller is cancelled: an entry that is under way will be driven (J13)."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        self._entries += 1

        def over(done: asyncio.Task[T]) -> None:
            self._entries -= 1
            self._tasks.pop(done, None)

        task.add_done_callback(over)
        try:
            return await asyncio.shield(task)
        except Fenced as error:
            raise self._retired() from error
        except asyncio.CancelledError:
            if task.cancelled() and self.out:
                raise self._retired() from None
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise

    def _retired(self) -> ClusterError:
        return ClusterError("this coordinator has been retired by another one and does nothing more; call again")

    def _ended_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_error(error)

    def _on_error(self, error: BaseException) -> None:
        logger.error("%s: %s", type(error).__name__, error, exc_info=error)

    def _check(self) -> None:
        if self.out or self.lease.retired:
            raise self._retired()

    async def _watch_lease(self) -> None:
        """L3: submit only while more than a quarter of the lease is left."""
        while True:
            left = self.lease.remaining - self.lease.seconds / 4
            if left <= 0:
                self.window.hold()
                await self.lease.renewed()
            else:
                self.window.release()
                await asyncio.sleep(min(left, self.lease.seconds / 4))

    # -- run -----------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _alone(self, workflow_id: str) -> AsyncIterator[None]:
        """One call at a time enters or deletes an id; ids that nobody is busy with cost nothing."""
        lock, users = self._entering.get(workflow_id) or (asyncio.Lock(), 0)
        self._entering[workflow_id] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._entering[workflow_id]
            if users > 1:
                self._entering[workflow_id] = lock, users - 1
            else:
                del self._entering[workflow_id]

    async def submit(self, submission: Submission, context: Context, ticket: Ticket | None = None) -> Drive | Answer:
        """Create the workflow durably, or meet the one that has this id. ``ticket``: what the graph's blobs were
        stored under, still held by the caller.

        Returns the drive, or the answer where it is finished already.

        Raises:
            WorkflowStillActiveError, WorkflowExistsError, WorkflowNotResumableError, QueueFull: nothing changed.
        """
        self._check()
        keys.check_workflow_id(submission.workflow_id)
        if submission.if_exists not in IF_EXISTS:
            raise ValueError(f"if_exists={submission.if_exists!r}: expected one of {', '.join(IF_EXISTS)}")
        return await self._whole(self._submit_alone(submission, context, self._hold(ticket)))

    def _hold(self, ticket: Ticket | None) -> Ticket:
        """A ticket of this call's own: it goes on where its caller is cancelled."""
        return self.cycles.begin() if ticket is None else ticket.again()

    async def _submit_alone(self, submission: Submission, context: Context, ticket: Ticket) -> Drive | Answer:
        try:
            async with self._alone(submission.workflow_id):
                drive = self.drives.get(submission.workflow_id)
                if drive is not None:
                    return self._meet_active(drive, submission)
                try:
                    pending = self._reserve(submission.workflow_id)
                except QueueFull:
                    answer = await self.entrance.finished(submission)  # needs no room
                    if answer is None:
                        raise
                    return answer
                try:
                    return await self.entrance.submit(submission, context, pending, ticket.cycle)
                finally:
                    self._reserved -= 1
        finally:
            ticket.leave()

    def _meet_active(self, drive: Drive, submission: Submission) -> Drive:
        created = drive.state.created
        if created is not None and created.client == submission.client:
            return drive
        if submission.if_exists == "resume" and created is not None:
            check_same(created, submission)
            return drive
        raise WorkflowStillActiveError(
            f"workflow {drive.workflow_id!r} is running on this cluster. Wait for it with "
            f"workflow.get_output({drive.workflow_id!r}), or choose another workflow_id.",
            workflow_id=drive.workflow_id,
        )

    def _reserve(self, workflow_id: str) -> bool:
        """Whether it has to wait for room; QueueFull where it can't even wait. Decided before any write (Q1)."""
        running = len(self.drives) - len(self.pending)
        waiting = len(self.pending)
        if self.max_running >= 0:
            free = self.max_running - running - self._reserved
            if free <= 0:
                if self.max_pending >= 0 and waiting + max(0, -free) >= self.max_pending:
                    raise QueueFull(
                        f"workflow {workflow_id!r} was not accepted: {running} run (max_running_workflows="
                        f"{self.max_running}) and {waiting} wait (max_pending_workflows={self.max_pending}). "
                        "Nothing was stored. Try again later, or raise a limit in workflow.init().",
                        workflow_id=workflow_id,
                    )
                self._reserved += 1
                return True
        self._reserved += 1
        return False

    # -- entering and driving ------------------------------------------------------------------------------------

    def _drive(self, workflow_id: str, chain: Chain, state: State, context: Context) -> Drive:
        drive = Drive(self, workflow_id, chain, state, context)
        self.drives[workflow_id] = drive
        if state.phase is Phase.PENDING:
            self.pending[workflow_id] = None
        drive.begin()
        if state.phase is Phase.PENDING:
            asyncio.get_running_loop().call_soon(self._make_room)
        return drive

    def ended(self, drive: Drive) -> None:
        """Called by the drive at its last record, or when it has been fenced."""
        if self.drives.get(drive.workflow_id) is drive:
            del self.drives[drive.workflow_id]
        self.pending.pop(drive.workflow_id, None)
        state = drive.state
        if drive.fenced:
            if not drive.ended.done():
                drive.ended.set_exception(
                    WorkflowStillActiveError(
                        f"workflow {drive.workflow_id!r} has been taken over by another cluster; "
                        f"wait for it there, or with workflow.get_output({drive.workflow_id!r}) later",
                        workflow_id=drive.workflow_id,
                    )
                )
                drive.ended.exception()
            self.lease.dropped(drive.workflow_id)
        else:
            status = str(status_of(state.phase))
            self.lease.finished(drive.workflow_id, drive.number, status, state.started, state.ended)
        self.runner.forget(drive.workflow_id)
        self._make_room()

    def _make_room(self) -> None:
        while self.pending and not self.out:
            running = len(self.drives) - len(self.pending)
            if 0 <= self.max_running <= running:
                return
            workflow_id = next(iter(self.pending))
            del self.pending[workflow_id]
            drive = self.drives[workflow_id]
            if drive.state.phase is Phase.PENDING:  # else it is being cancelled
                drive.handle(s.RoomMade(self.clock.wall()))

    async def resume(
        self,
        workflow_id: str,
        context: Context,
        *,
        wait: bool = True,
        code: Code = (),
        ticket: Ticket | None = None,
    ) -> Drive | Answer:
        """Go on with a workflow that nobody drives; a finished one is answered. ``code`` replaces stored functions;
        ``ticket``: what its blobs were stored under.

        Raises:
            WorkflowNotFoundError, WorkflowStillActiveError, WorkflowNotResumableError.
        """
        self._check()
        keys.check_workflow_id(workflow_id)
        return await self._whole(self._resume_alone(workflow_id, context, wait, code, self._hold(ticket)))

    async def _resume_alone(
        self, workflow_id: str, context: Context, wait: bool, code: Code, ticket: Ticket
    ) -> Drive | Answer:
        try:
            async with self._alone(workflow_id):
                if workflow_id in self.drives:
                    raise WorkflowStillActiveError(
                        f"workflow {workflow_id!r} is running on this cluster already. Wait for it with "
                        f"workflow.get_output({workflow_id!r}).",
                        workflow_id=workflow_id,
                    )
                return await self.entrance.resume(workflow_id, context, wait, code)
        finally:
            ticket.leave()

    async def take_over(self, roster: Roster, context_of: Callable[[str], Context | None]) -> list[str]:
        """Claim what a dead coordinator left open (L6), as far as the code's context is known here."""
        if not await self.watcher.retire(roster.coordinator, wait=False):
            return []
        taken = []
        for workflow_id, number in roster.opened.items():
            try:
                view = await self.reader.chain(workflow_id).read()
                if view.deleted and view.number < number:  # its Created may still be on the way
                    await self.entrance.fence(workflow_id, number, roster.coordinator)
                if view.deleted or view.header is None or view.header.entry_by != roster.coordinator:
                    logger.debug("workflow %r is gone, or somebody else's", workflow_id)
                    continue
                state = await self.reader.fold(view)
                if state.phase in TERMINAL or state.created is None:
                    continue
                if state.claims > POISON_CLAIMS:
                    logger.warning(
                        "workflow %r is not taken over again: the last %d owners died without progress. Resume it with "
                        "workflow.resume(%r).", workflow_id, state.claims, workflow_id,
                    )  # fmt: skip
                    continue
                context = context_of(state.context)
                if context is None:
                    logger.warning(
                        "workflow %r is not taken over: the environment of its driver is not known here. Resume it "
                        "with workflow.resume(%r).", workflow_id, workflow_id,
                    )  # fmt: skip
                    continue
                async with self._alone(workflow_id):
                    if workflow_id in self.drives:
                        continue
                    await self.entrance.claim(workflow_id, context, retry_failed=False, wait=False)
                taken.append(workflow_id)
            except (PerdureError, EntryLost, Fenced) as error:
                logger.warning("workflow %r was not taken over: %s", workflow_id, error)
        return taken

    async def fence(self, workflow_id: str, number: int, owner: str) -> bool:
        """`Entrance.fence`."""
        self._check()
        return await self._whole(self.entrance.fence(workflow_id, number, owner))

    # -- reading -------------------------------------------------------------------------------------------------

    async def wait(self, workflow_id: str, task_id: str | None = None) -> Answer:
        """The workflow's (or the task's) value, once there is one.

        Raises:
            WorkflowNotFoundError, WorkflowNotResumableError (nobody drives it).
        """
        keys.check_workflow_id(workflow_id)
        while True:
            self._check()
            drive = self.drives.get(workflow_id)
            if drive is None:
                answer = await self._stored_answer(workflow_id, task_id)
                if answer is not None:
                    return answer
            elif task_id is None:
                try:
                    return await self.outcome(drive)
                except WorkflowStillActiveError:
                    continue  # another cluster has taken it over: wait for its end in the store
            else:
                await drive.wait_for_task(task_id)
                task = drive.task(task_id)
                if task is not None and task.payload is not None and drive.state.must_persist(task):
                    return Answer(workflow_id, WorkflowStatus.SUCCESSFUL, task.payload)
                if not drive.fenced:  # it failed, does not exist, or its value is not stored: the end decides
                    await self.outcome(drive)

    async def outcome(self, drive: Drive) -> Answer:
        """Wait for the end of a workflow that is driven here."""
        try:
            await asyncio.shield(drive.ended)
        except asyncio.CancelledError:
            if drive.ended.cancelled():
                raise self._retired() from None
            raise
        return answer_of(drive.workflow_id, drive.state)

    async def _stored_answer(self, workflow_id: str, task_id: str | None) -> Answer | None:
        """What the store says once it says something; None when the workflow is driven here meanwhile."""
        while True:
            view = await self.reader.chain(workflow_id).read()
            if view.deleted:
                raise unknown(workflow_id)
            state = await self.reader.fold(view, keep=True)
            if task_id is not None:
                answer = task_answer(workflow_id, state, task_id)
                if answer is not None:
                    return answer
            elif state.phase in TERMINAL:
                return answer_of(workflow_id, state)
            if workflow_id in self.drives:
                return None
            if state.phase in TERMINAL:
                return answer_of(workflow_id, state)
            assert view.header is not None
            if not await self.reader.alive(view.header.entry_by):
                raise WorkflowNotResumableError(
                    f"workflow {workflow_id!r} is not running (RESUMABLE): nobody drives it. Resume it with "
                    f"workflow.resume({workflow_id!r}) and wait for that.",
                    workflow_id=workflow_id,
                )
            await asyncio.sleep(BELL_SECONDS)  # another cluster drives it

    async def status(self, workflow_id: str) -> WorkflowStatus:
        keys.check_workflow_id(workflow_id)
        drive = self.drives.get(workflow_id)
        if drive is not None:
            return status_of(drive.state.phase)
        return await self.reader.status(workflow_id)

    async def read(self, workflow_id: str, *, keep: bool = False) -> State:
        """The stored state; raises WorkflowNotFoundError where there is none."""
        return await self.reader.read(workflow_id, keep=keep)

    async def list_all(self) -> dict[str, Listed]:
        """All workflows of the store, from whichever cluster."""

        def driven(workflow_id: str) -> State | None:
            drive = self.drives.get(workflow_id)
            return drive.state if drive is not None else None

        return await self.reader.list_all(self.lease.roster, driven)

    # -- cancel, delete ------------------------------------------------------------------------------------------

    async def cancel(self, workflow_id: str, context: Context) -> WorkflowStatus:
        """Cancel for good; on return the workflow has ended, one way or another: its status.

        A finished workflow stays as it is. Raises WorkflowNotFoundError.
        """
        self._check()
        keys.check_workflow_id(workflow_id)
        for _ in range(_TRIES):
            try:
                met: Drive | WorkflowStatus | None = self.drives.get(workflow_id)
                if met is None:
                    met = await self._whole(self._enter_to_cancel(workflow_id, context))
                if not isinstance(met, Drive):
                    return met
                met.handle(s.CancelAsked(self.clock.wall()))
                self.pending.pop(workflow_id, None)
                return (await self.outcome(met)).status
            except (EntryLost, WorkflowStillActiveError, WorkflowNotResumableError):
                continue  # it has another owner now, or none any more
        raise StoreError(f"workflow {workflow_id!r} keeps changing; try again")

    async def _enter_to_cancel(self, workflow_id: str, context: Context) -> Drive | WorkflowStatus:
        """Claim the workflow, or have its living owner cancel it and wait for that: the status then."""
        async with self._alone(workflow_id):
            if workflow_id in self.drives:
                return self.drives[workflow_id]
            view = await self.reader.chain(workflow_id).read()
            if view.deleted:
                raise unknown(workflow_id)
            state = await self.reader.fold(view)
            if state.phase in TERMINAL:
                return status_of(state.phase)
            assert view.header is not None
            owner = view.header.entry_by
            if owner == self.id or not await self.reader.alive(owner):
                try:
                    return await self.entrance.claim(workflow_id, context, retry_failed=False, canceling=True)
                except WorkflowStillActiveError:
                    pass  # it only seemed dead
        await self.inboxes.send_cancel(workflow_id, view.birth)
        answer = await self._stored_answer(workflow_id, None)
        return answer.status if answer is not None else self.drives[workflow_id]

    async def delete(self, workflow_id: str) -> None:
        """Forget a workflow that is not running.

        Raises:
            WorkflowNotFoundError, WorkflowStillActiveError.
        """
        self._check()
        keys.check_workflow_id(workflow_id)
        await self._whole(self._delete_alone(workflow_id))

    async def _delete_alone(self, workflow_id: str) -> None:
        async with self._alone(workflow_id):
            if workflow_id in self.drives:
                raise WorkflowStillActiveError(
                    f"workflow {workflow_id!r} is running. Cancel it first: workflow.cancel({workflow_id!r}).",
                    workflow_id=workflow_id,
                )
            await self.entrance.delete(workflow_id)
