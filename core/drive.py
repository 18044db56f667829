"""One workflow that this coordinator drives: the scheduler's commands carried out.

Owns the life of a drive from its entry to its last record: attempts under way, delays, timers, waits for events,
debts to their sources, and who waits for the end. It decides nothing (see `scheduler`) and writes nothing
itself (see `journal`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from perdure import records as r
from perdure import scheduler as s
from perdure.chain import Chain
from perdure.clock import Clock
from perdure.cycles import Cycles, Ticket
from perdure.errors import NotFound
from perdure.graph import Failure, Function, Payload
from perdure.journal import Journal, Log
from perdure.lease import Lease
from perdure.runner import Context, Job, LostValues, Runner
from perdure.state import Phase, State, Task, TaskStatus

logger = logging.getLogger("perdure")

WINDOW = 1000
"""Attempts that one coordinator has submitted and not yet seen end, per class of equal resources."""
ACK_TRIES = 8
_ACK_TRIES_CANCELED = 4
"""Counted from the request on: who cancels waits for the end."""
_ACK_LONGEST = 30.0


class Host(Protocol):
    """What a drive needs of its coordinator."""

    clock: Clock
    lease: Lease
    cycles: Cycles
    journal: Journal
    runner: Runner
    random: random.Random
    window: Window

    def ended(self, drive: Drive) -> None: ...
    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]: ...


class Window:
    """Bounds what is submitted at once, so that leases are checked and cancels work; one queue a class."""

    def __init__(self, size: int = WINDOW) -> None:
        self.size = size
        self.running: dict[str, int] = {}
        self.queues: dict[str, deque[Callable[[], None]]] = {}
        self.held = False
        self._filling: set[str] = set()

    def enter(self, name: str, begin: Callable[[], None]) -> None:
        """Call ``begin`` when there is room in the class; it must lead to one `leave`."""
        if self.held or self.running.get(name, 0) >= self.size or self.queues.get(name):
            self.queues.setdefault(name, deque()).append(begin)
        else:
            self.running[name] = self.running.get(name, 0) + 1
            begin()

    def leave(self, name: str) -> None:
        left = self.running[name] - 1
        if left:
            self.running[name] = left
        else:
            del self.running[name]
        self._fill(name)

    def put_back(self, name: str, begin: Callable[[], None]) -> None:
        """``begin`` was called but may not begin now: first in the queue again, and `hold`."""
        self.hold()
        self.queues.setdefault(name, deque()).appendleft(begin)
        self.leave(name)

    def hold(self) -> None:
        """Begin nothing until `release` (the lease is running out, L3)."""
        self.held = True

    def release(self) -> None:
        self.held = False
        for name in list(self.queues):
            self._fill(name)

    def _fill(self, name: str) -> None:
        if name in self._filling:
            return  # a begin that leaves at once: the loop below goes on, so that the stack does not grow
        self._filling.add(name)
        try:
            while (queue := self.queues.get(name)) and not self.held and self.running.get(name, 0) < self.size:
                self.running[name] = self.running.get(name, 0) + 1
                begin = queue.popleft()
                if not queue:
                    del self.queues[name]
                begin()
        finally:
            self._filling.discard(name)


class Drive:
    """See the module. All methods run in the coordinator's loop and return at once."""

    def __init__(self, host: Host, workflow_id: str, chain: Chain, state: State, context: Context) -> None:
        self.host = host
        self.workflow_id = workflow_id
        self.state = state
        self.scheduler = s.Scheduler(state)
        self.context = context
        self.log = Log(chain, self._committed, self._lost)
        self.birth = chain.header.birth
        self.ended: asyncio.Future[Phase] = asyncio.get_running_loop().create_future()
        self.task_waiters: dict[str, list[asyncio.Future[None]]] = {}
        self.number = chain.number
        self.fenced = False
        self._attempts: dict[int, asyncio.Task[None]] = {}
        self._not_begun: dict[int, str] = {}  # spawned, but not at their first line yet, and their class
        self._timers: dict[int, asyncio.Handle] = {}
        self._delays: dict[int, asyncio.TimerHandle] = {}
        self._asked: set[int] = set()
        self._canceled = asyncio.Event()
        self.refusals: dict[int, str] = {}
        """What the sources of events said that have not taken their acknowledgement yet, by task."""
        self.inbox_next = 0

    def begin(self) -> None:
        self.handle(s.Begin(self.host.clock.wall()))

    def handle(self, event: s.Event) -> None:
        """One event through the scheduler, and its commands carried out."""
        if self.fenced or self.ended.done():
            return
        for command in self.scheduler.handle(event):
            match command:
                case s.Append():
                    self.host.journal.append(self.log, command.records)
                case s.Start():
                    self._start(command)
                case s.Poll():
                    self._spawn_attempt(command.task, self._poll(command))
                case s.ReadClock():
                    self._read_clock(command.task)
                case s.Arm():
                    self._arm(command)
                case s.Delay():
                    self._delay(command)
                case s.Acknowledge():
                    self.host.spawn(self._acknowledge(command.task))
                case s.Stop():
                    self._stop(command.tasks)
                case s.End():
                    self._end(command.phase)
        if self.state.phase is Phase.CANCELLING:
            self._canceled.set()
        if self.state.names and self.task_waiters:
            self._wake_task_waiters()

    # -- attempts ------------------------------------------------------------------------------------------------

    def job(self, task: Task, persist: bool = True, *, inputs: bool = True, cycle: int | None = None) -> Job:
        """``inputs=False``: without the values of its sources (an acknowledgement needs none). ``cycle``: one that is
        held for it."""
        state, node, scope = self.state, task.node, task.scope
        assert node is not None
        assert scope is not None

        def payload(source: int) -> Payload:
            if source < 0:
                return scope.objects[-1 - source]
            found = state.tasks[scope.first + source].payload
            assert found is not None, f"{task.name} starts before its input {source} is done"
            return found

        assert state.created is not None
        return Job(
            workflow_id=self.workflow_id,
            birth=self.birth,
            task=task.number,
            name=task.name,
            attempt=task.attempts,
            function=task.function if node.function >= 0 else Function(node.kind, ""),
            options=scope.options[node.options],
            args=node.args,
            tops=tuple((where, payload(source)) for where, source in node.tops) if inputs else (),
            nested=tuple(payload(source) for source in node.nested) if inputs else (),
            persist=persist,
            key=f"{self.workflow_id}/{self.birth if state.key_birth is None else state.key_birth}/{task.number}",
            kind=node.kind,
            context=self.context,
            metadata=state.created.metadata,
            submitted=self.host.clock.boot(),
            cycle=self.host.cycles.newest if cycle is None else cycle,
        )

    def _start(self, command: s.Start) -> None:
        task = self.state.tasks[command.task]
        name = resource_class(task.options.ray, self.context.digest)

        def begin() -> None:
            if self.fenced or self.ended.done() or command.task not in self.scheduler.running:
                self.host.window.leave(name)
                return
            if command.task in self._asked:  # stopped while it waited for room
                self._asked.discard(command.task)
                self.host.window.leave(name)
                self._outcome(command.task, command.attempt, s.NotBegun("stopped"))
                return
            if not self.host.lease.may_submit:  # L3, asked here: a process that was paused finds out only now
                self.host.window.put_back(name, begin)
                return
            self._not_begun[command.task] = name
            self._spawn_attempt(command.task, self._run(command, name))

        self.host.window.enter(name, begin)

    async def _run(self, command: s.Start, name: str) -> None:
        self._not_begun.pop(command.task, None)
        ticket = self.host.cycles.begin()
        try:
            await self._attempt(command, name, ticket.cycle)
        finally:
            self.log.once_decided(ticket.leave)  # B2

    async def _attempt(self, command: s.Start, name: str, cycle: int) -> None:
        task = self.state.tasks[command.task]
        job = self.job(task, command.persist, cycle=cycle)
        result: s.Result
        lost: tuple[str, ...] = ()
        try:
            result = await self.host.runner.run(job)
        except LostValues as error:
            lost, result = error.blobs, s.NotBegun(str(error))
        except asyncio.CancelledError:
            if self.fenced:
                raise
            result = s.NotBegun("stopped")
        except Exception as error:
            logger.exception("attempt %d of task %s of workflow %r", job.attempt, job.name, job.workflow_id)
            result = s.Raised(_broken_runner(error), True)
        finally:
            self._attempts.pop(command.task, None)
            self.host.window.leave(name)
        if lost:
            for number in sorted(u for u in task.upstream() if _names(self.state.tasks[u].payload, lost)):
                self.handle(s.ValueLost(number))
            stored = [job.args, *(task.scope.objects if task.scope is not None else ())]
            if any(_names(payload, lost) for payload in stored):
                # nobody can make these again
                text = f"values that this workflow was stored with are gone: {', '.join(lost)}"
                result = s.Raised(Failure("decode", "LostValues", text), False)
        self._outcome(command.task, command.attempt, result)

    async def _poll(self, command: s.Poll) -> None:
        """A wait may last for weeks, so it holds no GC cycle (B2); what it brings is copied into one that is held."""
        tickets: list[Ticket] = []
        try:
            await self._wait(command, tickets)
        finally:
            for ticket in tickets:
                self.log.once_decided(ticket.leave)

    async def _wait(self, command: s.Poll, tickets: list[Ticket]) -> None:
        task = self.state.tasks[command.task]
        result: s.Result | None = None
        try:
            while result is None:
                result = await self._event(await self.host.runner.poll(self.job(task)), tickets)
        except Exception as error:
            logger.exception("the wait %s of workflow %r", task.name, self.workflow_id)
            result = s.Raised(_broken_runner(error), True)
        finally:
            self._attempts.pop(command.task, None)
        self._outcome(command.task, command.attempt, result)

    async def _event(self, result: s.Result, tickets: list[Ticket]) -> s.Result | None:
        """The event, under a ticket; None where its blob has been collected: it was not acknowledged, so it comes
        again."""
        if not isinstance(result, s.Value) or not result.payload.blobs():
            return result
        tickets.append(self.host.cycles.begin())
        try:
            payload = await self.host.cycles.carried(result.payload, tickets[-1].cycle)
        except NotFound:
            logger.info("the event of %s came under a GC cycle that is over: it is polled again", self.workflow_id)
            tickets.pop().leave()
            return None
        return s.Value(payload, result.started, result.ended, result.volatile)

    def _outcome(self, number: int, attempt: int, result: s.Result) -> None:
        self._asked.discard(number)
        self.handle(s.Outcome(number, attempt, result))

    def _spawn_attempt(self, number: int, coroutine: Coroutine[Any, Any, None]) -> None:
        self._attempts[number] = self.host.spawn(coroutine)

    def _stop(self, tasks: tuple[int, ...]) -> None:
        for number in tasks:
            for handles in (self._timers, self._delays):
                handle = handles.pop(number, None)
                if handle is not None:
                    handle.cancel()
            attempt = self._attempts.get(number)
            if attempt is not None and number not in self._not_begun:
                attempt.cancel()
            elif number in self.scheduler.running:
                self._cancel_not_begun(number)
                self._asked.add(number)  # it waits for room
        if self._asked:
            self.host.spawn(self._answer_asked())

    def _cancel_not_begun(self, number: int) -> None:
        """A task that is cancelled before its first line never reaches its `finally`: this is it."""
        name = self._not_begun.pop(number, None)
        if name is not None:
            self._attempts.pop(number).cancel()
            self.host.window.leave(name)

    async def _answer_asked(self) -> None:
        for number in sorted(self._asked):
            if number in self._asked and number in self.scheduler.running:
                self._outcome(number, self.state.tasks[number].attempts, s.NotBegun("stopped"))
        self._asked.clear()

    # -- timers, delays, events ----------------------------------------------------------------------------------

    def _read_clock(self, number: int) -> None:
        node = self.state.tasks[number].node
        assert node is not None
        now = self.host.clock.wall()
        duration = node.seconds if node.seconds is not None else (node.until or 0.0) - now
        duration = max(0.0, duration)
        self.handle(s.ClockRead(number, now + duration, duration))

    def _arm(self, command: s.Arm) -> None:
        """E7. The loop's clock stands still while the machine is suspended, so long waits look at the boot clock."""
        clock, loop = self.host.clock, asyncio.get_running_loop()
        began = clock.wall()
        end = clock.boot() + min(command.duration, max(0.0, command.deadline - began))

        def look() -> None:
            left = end - clock.boot()
            if left > 0.001:
                self._timers[command.task] = loop.call_later(min(left, max(60.0, left / 10)), look)
                return
            self._timers.pop(command.task, None)
            value = s.Value(self.host.runner.none(), began, clock.wall())
            self._outcome(command.task, command.attempt, value)

        self._timers[command.task] = loop.call_soon(look)

    def _delay(self, command: s.Delay) -> None:
        seconds = command.seconds * (1 + command.jitter * self.host.random.random())

        def over() -> None:
            self._delays.pop(command.task, None)
            self.handle(s.DelayOver(command.task))

        self._delays[command.task] = asyncio.get_running_loop().call_later(seconds, over)

    async def _acknowledge(self, number: int) -> None:
        """Repeated with backoff; a source that refuses for good is noted, the event stays received."""
        task = self.state.tasks[number]
        if task.node is None or task.payload is None:
            return
        job = self.job(task, inputs=False)
        payload = task.payload
        if payload.wraps:
            payload = Payload(payload.data, payload.blob, payload.size, payload.refs)
        failures = since_canceled = 0
        while failures < ACK_TRIES and since_canceled < _ACK_TRIES_CANCELED:
            try:
                await self.host.runner.acknowledge(job, payload)
                self.refusals.pop(number, None)
                break
            except Exception as error:
                self.refusals[number] = f"{type(error).__name__}: {error}"[:500]
                if failures == 0:
                    logger.warning("%s of workflow %s: its event_checkpointed is tried again: %s",
                                   task.name, self.workflow_id, self.refusals[number])  # fmt: skip
                failures += 1
                canceled = self._canceled.is_set()
                since_canceled += canceled
                pause = min(_ACK_LONGEST, 0.2 * 2 ** ((since_canceled if canceled else failures) - 1))
                await (asyncio.sleep(pause) if canceled else self._pause_unless_canceled(pause))
            if self.fenced or self.ended.done():
                return
        self.handle(s.Paid(number, self.refusals.pop(number, "")))

    async def _pause_unless_canceled(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._canceled.wait(), seconds)

    # -- the end -------------------------------------------------------------------------------------------------

    def _committed(self, records: tuple[r.Record, ...], number: int) -> None:
        self.number = number
        self.handle(s.Committed(records))

    def _lost(self) -> None:
        """Fenced: somebody else drives this workflow (J3). Stop all, tell those who wait."""
        self.fenced = True
        self._halt()
        self.host.ended(self)

    def _end(self, phase: Phase) -> None:
        self._halt()
        if not self.ended.done():
            self.ended.set_result(phase)
        self._wake_task_waiters()
        self.host.ended(self)

    def _halt(self) -> None:
        for handle in [*self._timers.values(), *self._delays.values()]:
            handle.cancel()
        self._timers.clear()
        self._delays.clear()
        for number in list(self._not_begun):
            self._cancel_not_begun(number)
        for attempt in list(self._attempts.values()):
            attempt.cancel()

    def halt(self) -> None:
        """The coordinator itself is out."""
        self.fenced = True
        self._halt()
        if not self.ended.done():
            self.ended.cancel()
        self._wake_task_waiters()

    def task(self, name: str) -> Task | None:
        number = self.state.names.get(name)
        return self.state.tasks[number] if number is not None else None

    def wait_for_task(self, name: str) -> asyncio.Future[None]:
        """Done when this task has a value or has failed, or when the workflow has ended."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task_waiters.setdefault(name, []).append(future)
        self._wake_task_waiters()
        return future

    def _wake_task_waiters(self) -> None:
        over = self.fenced or self.ended.done()
        for name in list(self.task_waiters):
            task = self.task(name)
            decided = task is not None and (task.payload is not None or task.status is TaskStatus.FAILED)
            if over or decided:
                for future in self.task_waiters.pop(name):
                    if not future.done():
                        future.set_result(None)

    def describe_failure(self) -> tuple[str, Failure] | None:
        """Name of the task that failed the workflow, and why."""
        return failure_of(self.state)


def failure_of(state: State) -> tuple[str, Failure] | None:
    if state.failed_task < 0:
        return None
    task = state.tasks[state.failed_task]
    return (task.name, task.failure) if task.failure is not None else None


def _broken_runner(error: Exception) -> Failure:
    return Failure("crashed", type(error).__name__, f"the attempt could not be run: {error}")


def resource_class(ray_options: dict[str, Any], digest: str) -> str:
    return f"{digest}|{sorted(ray_options.items())}" if ray_options else digest


def _names(payload: Payload | None, blobs: tuple[str, ...]) -> bool:
    return payload is not None and any(name in blobs for name in payload.blobs())
