"""What to do next for one workflow: events in, commands out.

Owns every decision of a running workflow. It never acts: `Scheduler.handle` takes one event, changes the state
by the table in `state`, and returns commands for the coordinator. No Ray, no I/O, no clock, no random: a crash
schedule of thousands of steps runs in milliseconds, and a resume is the same code on a folded state.

The model for the shape is dask.distributed's worker state machine (stimuli in, instructions out, `validate`).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TypeAlias

from perdure import records as r
from perdure.graph import EVENT, TIMER, Failure, Function, Graph, Payload
from perdure.state import TERMINAL, IllegalTransition, Phase, State, Task, TaskStatus

# -- outcomes of an attempt ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Value:
    """The attempt gave a value; ``volatile``: it is not stored (`checkpoint=False`)."""

    payload: Payload
    started: float = 0.0
    ended: float = 0.0
    volatile: bool = False


@dataclass(frozen=True, slots=True)
class Continuation:
    """The attempt gave a graph, inline or as a blob that holds it."""

    graph: Graph
    started: float = 0.0
    ended: float = 0.0
    blob: str | None = None


@dataclass(frozen=True, slots=True)
class Raised:
    """The attempt failed. ``retryable``: the task's own rules say that it may be tried again."""

    failure: Failure
    retryable: bool
    started: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class NotBegun:
    """The attempt never ran user code, or its node was taken away: it costs no retry."""

    reason: str
    preempted: bool = False


_UNDECIDED = (
    TaskStatus.WAITING,
    TaskStatus.READY,
    TaskStatus.RUNNING,
    TaskStatus.RECORDING,
    TaskStatus.BACKOFF,
)

Result: TypeAlias = Value | Continuation | Raised | NotBegun

# -- events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Begin:
    """The owner has entered and folded the chain; drive from here. ``time``: Unix seconds."""

    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    task: int
    attempt: int
    result: Result


@dataclass(frozen=True, slots=True)
class Committed:
    """These records are in the chain (J1)."""

    records: tuple[r.Record, ...]


@dataclass(frozen=True, slots=True)
class DelayOver:
    task: int


@dataclass(frozen=True, slots=True)
class ClockRead:
    """Answer to `ReadClock`: when a new timer is due (Unix seconds) and how long it waits (seconds)."""

    task: int
    deadline: float
    duration: float


@dataclass(frozen=True, slots=True)
class Paid:
    """The event's source has been told; ``problem``: or it refused for good."""

    task: int
    problem: str = ""


@dataclass(frozen=True, slots=True)
class CancelAsked:
    time: float


@dataclass(frozen=True, slots=True)
class ValueLost:
    """The only copy of a `checkpoint=False` value is gone."""

    task: int


@dataclass(frozen=True, slots=True)
class RoomMade:
    """A pending workflow may run now."""

    time: float


Event: TypeAlias = Begin | Outcome | Committed | DelayOver | ClockRead | Paid | CancelAsked | ValueLost | RoomMade

# -- commands --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Append:
    """Put these records into the next segment, together or not at all."""

    records: tuple[r.Record, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Run an attempt. ``persist``: its value must be stored."""

    task: int
    attempt: int
    persist: bool


@dataclass(frozen=True, slots=True)
class Poll:
    """Wait for the event of this task."""

    task: int
    attempt: int


@dataclass(frozen=True, slots=True)
class ReadClock:
    task: int


@dataclass(frozen=True, slots=True)
class Arm:
    """A timer is durable: report its Outcome when it is due."""

    task: int
    attempt: int
    deadline: float
    duration: float


@dataclass(frozen=True, slots=True)
class Delay:
    """Report DelayOver after so many seconds; ``jitter`` is the share that may be added at random."""

    task: int
    seconds: float
    jitter: float


@dataclass(frozen=True, slots=True)
class Acknowledge:
    task: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End these attempts by force; each reports an Outcome all the same."""

    tasks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class End:
    """The workflow's last record is committed."""

    phase: Phase


Command: TypeAlias = Append | Start | Poll | ReadClock | Arm | Delay | Acknowledge | Stop | End


class Scheduler:
    """Drives one `State`.

    ``now`` is not here: records that carry a time get it from the event that causes them.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.ready: deque[int] = deque()
        self.running: set[int] = set()
        self.backoff: set[int] = set()
        self.recording = 0
        self.ending = False
        self.begun = False
        self.last_time = state.started

    def handle(self, event: Event) -> list[Command]:
        """The one way in.

        Raises:
            IllegalTransition: the event can't happen now; the state is as it was.
        """
        commands: list[Command] = []
        match event:
            case Outcome():
                self._outcome(event, commands)
            case Committed():
                self._committed(event, commands)
            case Begin():
                self.last_time = max(self.last_time, event.time)
                self._begin(commands)
            case DelayOver():
                self._delay_over(event)
            case ClockRead():
                self._clock_read(event, commands)
            case Paid():
                self._paid(event, commands)
            case CancelAsked():
                self._cancel(event, commands)
            case ValueLost():
                self._value_lost(event)
            case RoomMade():
                if self.state.phase is not Phase.PENDING:
                    raise IllegalTransition(f"room was made for a workflow that is {self.state.phase.value}")
                self._append(commands, r.Started(event.time))
        self._start(commands)
        self._finish(commands)
        return commands

    # -- events --------------------------------------------------------------------------------------------------

    def _begin(self, commands: list[Command]) -> None:
        if self.begun or self.state.phase in TERMINAL or self.state.phase is Phase.NONE:
            raise IllegalTransition(f"can't begin a workflow that is {self.state.phase.value}")
        self.begun = True
        self.state.newly_ready.clear()
        ready = []
        for task in self.state.needed():
            if task.alias >= 0:
                continue
            task.waiting = sum(self.state.tasks[u].status is not TaskStatus.DONE for u in task.upstream())
            if task.waiting == 0:
                if task.status is TaskStatus.WAITING:
                    task.step("inputs done")
                if task.status is TaskStatus.READY:
                    ready.append(task.number)
            elif task.status is TaskStatus.READY:
                task.step("input lost")
        self.ready.extend(sorted(ready))
        commands.extend(Acknowledge(t.number) for t in self.state.tasks if t.owed)

    def _outcome(self, event: Outcome, commands: list[Command]) -> None:
        task = self._running(event.task, event.attempt)
        state, result = self.state, event.result
        if isinstance(result, Value | Continuation | Raised):
            self.last_time = max(self.last_time, result.ended)
        if state.phase is Phase.CANCELLING or state.phase in TERMINAL:
            self._drop(task)
            return
        if isinstance(result, NotBegun):
            self.running.discard(task.number)
            task.step("not begun")
            self._ready_again(task)
            return
        assert task.node is not None
        self.running.discard(task.number)
        if isinstance(result, Value) and result.volatile:
            task.started, task.ended = result.started, result.ended
            state.complete(task, result.payload, "volatile value")
            return
        task.step("outcome")
        if isinstance(result, Value):
            if task.node.kind == EVENT:
                self._append(commands, r.Received(task.number, result.payload, result.ended))
            else:
                self._append(commands, r.TaskDone(task.number, result.payload, result.started, result.ended))
        elif isinstance(result, Continuation):
            self._append(commands, self._continued(task, result))
        else:
            final = not (result.retryable and self._tries_left(task))
            self._append(commands, r.TaskFailed(task.number, result.failure, final, result.started, result.ended))

    def _continued(self, task: Task, result: Continuation) -> r.Continued:
        """Functions that the workflow knows already are named, not stored again."""
        graph, known = result.graph, self.state.functions
        if result.blob is None and any(f.digest in known for f in graph.functions):
            functions = [
                Function(f.name, f.digest, None, f.code, f.python) if f.digest in known else f for f in graph.functions
            ]
            graph = Graph(
                graph.nodes,
                graph.root,
                functions,
                graph.options,
                graph.objects,
                graph.structure,
                graph.code,
                graph.python,
            )
        return r.Continued(task.number, graph, result.blob, result.started, result.ended)

    def _tries_left(self, task: Task) -> bool:
        limit = task.options.max_retries
        return self.state.phase is Phase.RUNNING and (limit < 0 or task.attempts < limit)

    def _committed(self, event: Committed, commands: list[Command]) -> None:
        if self.recording < len(event.records):
            raise IllegalTransition(f"{len(event.records)} records were committed, {self.recording} were sent")
        cut = self.state.cut
        for record in event.records:
            self.state.apply(record)
            self.recording -= 1
            if isinstance(record, r.TaskFailed):
                if not record.final:
                    self._retry(self.state.tasks[record.task], commands)
            elif isinstance(record, r.Received):
                commands.append(Acknowledge(record.task))
            elif isinstance(record, r.TimerSet):
                task = self.state.tasks[record.task]
                if task.status is TaskStatus.RUNNING and self.state.phase is Phase.RUNNING:
                    commands.append(Arm(task.number, task.attempts, record.deadline, record.duration))
                elif task.status is TaskStatus.RUNNING:
                    self._drop(task)
            elif isinstance(record, r.CancelRequested):
                self._stop_all(commands)
            elif isinstance(record, r.TERMINAL):
                commands.append(End(self.state.phase))
        if self.state.phase is Phase.FAILING:
            self._stop_waits(commands)
        elif self.state.cut > cut:
            self._stop_waits(commands, given_up=True)

    def _retry(self, task: Task, commands: list[Command]) -> None:
        first, factor, longest, jitter = task.options.backoff
        delay = min(longest, first * factor ** min(task.attempts - 1, 64))
        self.backoff.add(task.number)
        if delay <= 0:
            self._delay_over(DelayOver(task.number))
        else:
            commands.append(Delay(task.number, delay, jitter))

    def _delay_over(self, event: DelayOver) -> None:
        if event.task not in self.backoff:
            raise IllegalTransition(f"the delay of task {event.task} is over, but it has none")
        self.backoff.discard(event.task)
        task = self.state.tasks[event.task]
        task.step("delay over")
        self._ready_again(task)

    def _clock_read(self, event: ClockRead, commands: list[Command]) -> None:
        if event.task not in self.running:
            return  # dropped meanwhile, when the workflow failed or was cancelled
        self._append(commands, r.TimerSet(event.task, event.deadline, event.duration))

    def _paid(self, event: Paid, commands: list[Command]) -> None:
        if not 0 <= event.task < len(self.state.tasks) or not self.state.tasks[event.task].owed:
            raise IllegalTransition(f"the source of task {event.task} was told, but it was owed nothing")
        self._append(commands, r.Acknowledged(event.task, event.problem))

    def _cancel(self, event: CancelAsked, commands: list[Command]) -> None:
        if self.state.phase in TERMINAL or self.state.phase is Phase.CANCELLING or self.ending:
            return
        self.last_time = max(self.last_time, event.time)
        self._append(commands, r.CancelRequested(event.time))

    def _ready_again(self, task: Task) -> None:
        if task.waiting:
            task.step("input lost")  # while it ran; it comes back when the input is there again
        else:
            self.ready.append(task.number)

    def _value_lost(self, event: ValueLost) -> None:
        state = self.state
        if not 0 <= event.task < len(state.tasks):
            raise IllegalTransition(f"the value of task {event.task} was lost, but there is no such task")
        task = state.tasks[event.task]
        while task.status is TaskStatus.DONE:  # else another consumer has told it already
            task.step("continued again" if task.alias >= 0 else "value lost")
            task.payload = None
            state.done -= 1
            for number in task.dependents or ():
                below = state.tasks[number]
                if below.status in _UNDECIDED:
                    below.waiting += 1
                    if below.status is TaskStatus.READY:
                        below.step("input lost")
            if task.alias < 0:
                task.waiting = sum(state.tasks[u].status is not TaskStatus.DONE for u in task.upstream())
                if task.waiting == 0:
                    task.step("inputs done")
                    state.newly_ready.append(task.number)
                return
            task = state.tasks[task.alias]

    # -- decisions -----------------------------------------------------------------------------------------------

    def _append(self, commands: list[Command], *records: r.Record) -> None:
        self.recording += len(records)
        commands.append(Append(records))

    def _running(self, number: int, attempt: int) -> Task:
        if number not in self.running or self.state.tasks[number].attempts != attempt:
            raise IllegalTransition(f"an outcome of attempt {attempt} of task {number}, which is not running")
        return self.state.tasks[number]

    def _start(self, commands: list[Command]) -> None:
        state = self.state
        if state.newly_ready:
            self.ready.extend(state.newly_ready)
            state.newly_ready.clear()
        if state.phase is not Phase.RUNNING or not self.begun:
            return
        while self.ready:
            task = state.tasks[self.ready.popleft()]
            if task.status is not TaskStatus.READY:
                continue  # an input was lost meanwhile; it comes back when that is there again
            if state.given_up(task):
                continue
            assert task.node is not None
            task.step("start")
            self.running.add(task.number)
            if task.node.kind == TIMER:
                if task.timer is None:
                    commands.append(ReadClock(task.number))
                else:
                    commands.append(Arm(task.number, task.attempts, *task.timer))
            elif task.node.kind == EVENT:
                commands.append(Poll(task.number, task.attempts))
            else:
                commands.append(Start(task.number, task.attempts, state.must_persist(task)))

    def _drop(self, task: Task) -> None:
        self.running.discard(task.number)
        task.step("stopped")
        if task.waiting:
            task.step("input lost")  # while it ran

    def _stop_waits(self, commands: list[Command], *, given_up: bool = False) -> None:
        """What has failed lets its running tasks finish, but waits for no event and no timer: the whole workflow, or
        (``given_up``) continuations whose failure was caught."""
        tasks = self.state.tasks
        waits = [n for n in self.running if self._is_wait(n) and (not given_up or self.state.given_up(tasks[n]))]
        for number in waits:
            self._drop(self.state.tasks[number])
        if waits:
            commands.append(Stop(tuple(sorted(waits))))

    def _is_wait(self, number: int) -> bool:
        node = self.state.tasks[number].node
        return node is not None and node.kind in (EVENT, TIMER)

    def _stop_all(self, commands: list[Command]) -> None:
        self._stop_waits(commands)
        if self.running:
            commands.append(Stop(tuple(sorted(self.running))))

    def _finish(self, commands: list[Command]) -> None:
        """The terminal record rides in the segment of the record that makes it true, where it can."""
        state = self.state
        if self.ending or not self.begun or state.phase in TERMINAL or state.phase is Phase.PENDING:
            return
        if state.owed or self.running:
            return  # debts to events' sources are paid before a terminal record (E5)
        if state.phase is Phase.CANCELLING:
            if not self.recording:
                self._end(commands, r.Canceled(self.last_time))
            return
        if state.phase is Phase.FAILING:
            if not self.recording:
                self._end(commands, r.Failed(self.last_time, state.failed_task))
        elif state.tasks[state.root].status is TaskStatus.DONE:
            if not self.recording:
                self._end(commands, r.Succeeded(self.last_time))
        elif self.recording == 1 and commands and isinstance(commands[-1], Append):
            self._end_with(commands, commands[-1])

    def _end_with(self, commands: list[Command], append: Append) -> None:
        """Nothing else is under way: if this one record ends the workflow, say so in the same segment."""
        (record,) = append.records
        if isinstance(record, r.TaskDone):
            task = self.state.tasks[record.task]
            if self.state.reaches_root(task):
                commands.pop()
                self.recording -= 1
                self.ending = True
                self._append(commands, record, r.Succeeded(self.last_time))
        elif isinstance(record, r.TaskFailed) and record.final:
            task = self.state.tasks[record.task]
            if not self.state.caught(task) and not self.backoff:
                commands.pop()
                self.recording -= 1
                self.ending = True
                self._append(commands, record, r.Failed(self.last_time, task.number))

    def _end(self, commands: list[Command], record: r.Record) -> None:
        self.ending = True
        self._append(commands, record)

    def validate(self) -> None:
        """Raise AssertionError where scheduler and state contradict each other. For tests."""
        self.state.validate()
        tasks = self.state.tasks
        assert self.recording >= 0
        running = {t.number for t in tasks if t.status is TaskStatus.RUNNING}
        assert running == self.running, f"running are {running}, known as running {self.running}"
        backoff = {t.number for t in tasks if t.status is TaskStatus.BACKOFF}
        assert backoff == self.backoff, f"in backoff are {backoff}, known {self.backoff}"
        if self.begun and self.state.phase is Phase.RUNNING and not self.ending:
            waiting = {n for n in self.ready if tasks[n].status is TaskStatus.READY}
            assert not waiting, f"ready but not started: {waiting}"
            busy = self.running or self.recording or self.backoff or self.state.owed
            assert busy, "the workflow runs, but nothing is under way"
        recording = sum(t.status is TaskStatus.RECORDING for t in tasks)
        assert recording <= self.recording, f"{recording} tasks are recording, {self.recording} records are"
