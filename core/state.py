"""The state of one workflow, folded from its records.

Owns what a workflow *is* after a prefix of its journal: tasks with their statuses and values, the phase of the
whole. `State.apply` folds one record; the same fold serves the owner (record by record, after each commit), a
resume and a reader. Pure: no Ray, no I/O, no clock, no random. What to do next is decided in `scheduler`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import Any, Final

from perdure import records as r
from perdure.graph import Failure, Function, Graph, Node, Options, Payload


class TaskStatus(enum.IntEnum):
    WAITING = 0
    """Some input is not there yet."""
    READY = 1
    """All inputs are durable; it may start."""
    RUNNING = 2
    """An attempt (or a wait for an event or a timer) is under way."""
    RECORDING = 3
    """Its outcome is known, but not yet committed (J1)."""
    BACKOFF = 4
    """An attempt failed; the next one waits for its delay."""
    CONTINUED = 5
    """It returned a graph and waits for that graph's value."""
    DONE = 6
    FAILED = 7


W, R, RUN, REC, BACK, CONT, DONE, FAIL = TaskStatus

# (status, trigger) → status: all that can happen to a task. The recorded triggers from WAITING and READY are
# replay: a reader folds records without having started anything. The diagram in docs/design.md is made from this.
TRANSITIONS: Final[dict[tuple[TaskStatus, str], TaskStatus]] = {
    (W, "inputs done"): R,
    (R, "start"): RUN,
    (RUN, "outcome"): REC,
    (RUN, "volatile value"): DONE,
    (RUN, "not begun"): R,
    (RUN, "stopped"): R,
    (REC, "recorded value"): DONE,
    (REC, "recorded graph"): CONT,
    (REC, "recorded retry"): BACK,
    (REC, "recorded failure"): FAIL,
    (BACK, "delay over"): R,
    (CONT, "continuation done"): DONE,
    (CONT, "continuation failed"): FAIL,
    (FAIL, "caught"): DONE,
    (FAIL, "tried again"): W,
    (FAIL, "continued again"): CONT,
    (DONE, "value lost"): W,
    (DONE, "continued again"): CONT,
    (R, "input lost"): W,
    (W, "recorded value"): DONE,
    (R, "recorded value"): DONE,
    (W, "recorded graph"): CONT,
    (R, "recorded graph"): CONT,
    (W, "recorded retry"): W,
    (R, "recorded retry"): R,
    (W, "recorded failure"): FAIL,
    (R, "recorded failure"): FAIL,
}


class Phase(enum.Enum):
    NONE = "none"
    PENDING = "pending"
    RUNNING = "running"
    FAILING = "failing"
    CANCELLING = "cancelling"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELED = "canceled"


TERMINAL: Final = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELED})


class IllegalTransition(RuntimeError):
    """The journal or an event says something that can't happen; the state was left as it was."""


class Scope:
    """What the tasks of one stored graph share; ``first`` is the task number of its node 0."""

    __slots__ = ("first", "functions", "objects", "options", "owner")

    def __init__(self, graph: Graph, first: int, owner: int) -> None:
        self.first = first
        self.owner = owner  # the task that this graph continues, -1 for the workflow's own
        self.functions = graph.functions
        self.options = graph.options
        self.objects = graph.objects


class Task:
    """One task; numbers are global in the workflow, in the order in which graphs were added."""

    __slots__ = (
        "alias",
        "attempts",
        "dependents",
        "ended",
        "failure",
        "name",
        "node",
        "number",
        "owed",
        "parent",
        "payload",
        "scope",
        "started",
        "status",
        "timer",
        "waiting",
    )

    def __init__(self, number: int, name: str, node: Node, scope: Scope) -> None:
        self.number = number
        self.name = name
        self.node: Node | None = node
        self.scope: Scope | None = scope
        self.status = TaskStatus.WAITING
        self.waiting = 0
        self.dependents: list[int] | None = None
        self.parent = -1  # the task whose continuation has this one as its root
        self.alias = -1  # the root of this task's continuation
        self.payload: Payload | None = None
        self.failure: Failure | None = None
        self.attempts = 0
        self.started = 0.0
        self.ended = 0.0
        self.owed = False  # its event's source has not been told yet
        self.timer: tuple[float, float] | None = None

    def check(self, trigger: str) -> TaskStatus:
        """The status that this trigger leads to; IllegalTransition where there is none."""
        new = TRANSITIONS.get((self.status, trigger))
        if new is None:
            raise IllegalTransition(
                f"task {self.number} ({self.name}) is {self.status.name}: {trigger!r} can't happen to it "
                f"(attempts {self.attempts}, waiting for {self.waiting}, parent {self.parent}, alias {self.alias})"
            )
        return new

    def step(self, trigger: str) -> None:
        self.status = self.check(trigger)

    @property
    def options(self) -> Options:
        assert self.node is not None
        assert self.scope is not None
        return self.scope.options[self.node.options]

    @property
    def function(self) -> Function:
        assert self.node is not None
        assert self.scope is not None
        return self.scope.functions[self.node.function]

    def source(self, source: int) -> int:
        """Global task number of a local source that is a node."""
        assert self.scope is not None
        return self.scope.first + source

    def upstream(self) -> Iterator[int]:
        assert self.node is not None
        return (self.source(s) for s in self.node.upstream())


class State:
    """A workflow after a prefix of its records.

    ``keep`` keeps the nodes of finished tasks too (for readers that show options and inputs); the owner drops
    them, since nothing will be started again from them.
    """

    def __init__(self, *, keep: bool = False) -> None:
        self.keep = keep
        self.clear()

    def clear(self) -> None:
        self.phase = Phase.NONE
        self.tasks: list[Task] = []
        self.root = -1
        self.names: dict[str, int] = {}
        self.suffixes: dict[str, int] = {}
        self.functions: dict[str, Function] = {}
        self.created: r.Created | None = None
        self.context = ""
        self.moved_to: str | None = None
        self.key_birth: int | None = None
        self.failed_task = -1
        self.started = 0.0
        self.ended = 0.0
        self.done = 0
        self.owed = 0
        self.claims = 0
        self.progress = 0
        self.newly_ready: list[int] = []
        self.cut = 0  # continuations that were given up because their failure was caught above them

    def apply(self, record: r.Record) -> None:
        """Fold one record.

        Raises:
            IllegalTransition: this record can't follow what came before; the state is as it was.
        """
        handler = _HANDLERS.get(type(record))
        if handler is None:
            raise IllegalTransition(f"a {type(record).__name__} record does not belong into a workflow's chain")
        handler(self, record)

    # -- graphs --------------------------------------------------------------------------------------------------

    def add_graph(self, graph: Graph, owner: int = -1) -> int:
        """Append a graph's nodes as tasks; returns the number of its root. ``owner``: the task it continues."""
        first = len(self.tasks)
        functions = []
        added: dict[str, Function] = {}
        for function in graph.functions:
            known = self.functions.get(function.digest) or added.get(function.digest)
            if function.payload is not None and known is None:
                added[function.digest] = known = function
            if known is None:
                raise IllegalTransition(f"function {function.name} is named, but its code was never recorded")
            # the same pickle may stand under another name here
            if known.name != function.name:
                known = Function(function.name, known.digest, known.payload, function.code, known.python)
            functions.append(known)
        self.functions |= added
        scope = Scope(graph, first, owner)
        scope.functions = functions
        for local, node in enumerate(graph.nodes):
            name = self._name(node.name)
            task = Task(first + local, name, node, scope)
            upstream = node.upstream()
            task.waiting = len(upstream)
            for source in upstream:
                above = self.tasks[first + source]
                if above.dependents is None:
                    above.dependents = []
                above.dependents.append(task.number)
            self.tasks.append(task)
            self.names[name] = task.number
        return first + graph.root

    def _name(self, base: str) -> str:
        """Duplicate names get ``_1``, ``_2``: by the order in the journal, so the same after a resume."""
        if base not in self.names:
            return base
        n = self.suffixes.get(base, 0)
        while True:
            n += 1
            name = f"{base}_{n}"
            if name not in self.names:
                self.suffixes[base] = n
                return name

    def needed(self) -> Iterator[Task]:
        """Unfinished tasks that the root's value still needs, upstream last; computed from nothing else."""
        seen: set[int] = set()
        stack = [self.root]
        while stack:
            task = self.tasks[stack.pop()]
            if task.number in seen or task.status is DONE:
                continue
            seen.add(task.number)
            yield task
            if task.alias >= 0:
                stack.append(task.alias)
            else:
                stack.extend(task.upstream())

    # -- what happens to a task ----------------------------------------------------------------------------------

    def complete(self, task: Task, payload: Payload, trigger: str) -> None:
        """The task has its value; so have the tasks that it continues. Iterative: chains may be long."""
        while True:
            task.step(trigger)
            self.done += 1
            catches = task.node is not None and task.options.catch_exceptions
            if trigger == "caught":
                payload = payload.wrapped("e")
            elif catches:
                payload = payload.wrapped("v")
            task.payload = payload
            for number in task.dependents or ():
                below = self.tasks[number]
                below.waiting -= 1
                if below.waiting == 0 and below.status is W:
                    below.step("inputs done")
                    self.newly_ready.append(number)
            volatile = task.node is not None and not task.options.checkpoint
            if not self.keep and not volatile:
                task.node = task.scope = task.dependents = None
            if task.parent < 0:
                return
            task, trigger = self.tasks[task.parent], "continuation done"
            task.ended = max(task.ended, self.tasks[task.alias].ended)

    def fail(self, task: Task, failure: Failure, trigger: str) -> None:
        """The task failed for good, and so did every task whose continuation needs it; the first that catches takes
        the exception, else the workflow fails."""
        first = task
        while True:
            task.step(trigger)
            task.failure = failure
            if task.options.catch_exceptions:
                self.cut += task is not first
                self.complete(task, failure.exception or Payload(), "caught")
                return
            owner = self._owner(task)
            if owner is None:
                break
            if owner.status is not CONT:
                return  # another task of the same continuation has failed before
            task, trigger = owner, "continuation failed"
        if self.failed_task < 0:
            self.failed_task = first.number
        if self.phase is Phase.RUNNING:
            self.phase = Phase.FAILING

    def _owner(self, task: Task) -> Task | None:
        """The task that this one's graph continues."""
        assert task.scope is not None
        return self.tasks[task.scope.owner] if task.scope.owner >= 0 else None

    def given_up(self, task: Task) -> bool:
        """Whether nobody needs this task any more: a failure beside it was caught by a task that it continues."""
        if not self.cut:
            return False
        owner = self._owner(task)
        while owner is not None:
            if owner.status is not CONT:
                return True
            owner = self._owner(owner)
        return False

    def must_persist(self, task: Task) -> bool:
        """Whether this task's value must be stored: `checkpoint` of it or of a task that it continues, or it is
        the workflow's output, which always is."""
        while task.node is not None and not task.options.checkpoint:  # else it was stored, and its node dropped
            if task.parent < 0:
                return task.number == self.root
            task = self.tasks[task.parent]
        return True

    def reaches_root(self, task: Task) -> bool:
        """Whether this task's value is the workflow's output (directly, or through continuations)."""
        while task.parent >= 0:
            task = self.tasks[task.parent]
        return task.number == self.root

    def caught(self, task: Task) -> bool:
        """Whether a failure of this task leaves the workflow running: something catches it, or has failed before."""
        while True:
            if task.options.catch_exceptions:
                return True
            owner = self._owner(task)
            if owner is None:
                return False
            if owner.status is not CONT:
                return True
            task = owner

    # -- records -------------------------------------------------------------------------------------------------

    def _task(self, number: int) -> Task:
        if not 0 <= number < len(self.tasks):
            raise IllegalTransition(f"task {number} does not exist (there are {len(self.tasks)})")
        return self.tasks[number]

    def _created(self, record: r.Created) -> None:
        if record.graph is None:
            raise IllegalTransition("a Created record without its graph: its blob was not read")
        self.clear()
        self.created = r.Created(
            record.workflow_id,
            record.client,
            record.time,
            None,
            record.graph_blob,
            record.structure,
            record.code,
            record.python,
            record.metadata,
            record.pending,
            record.context,
            record.versions,
        )
        self.context = record.context
        self.started = record.time
        self.root = self.add_graph(record.graph)
        self.phase = Phase.PENDING if record.pending else Phase.RUNNING
        self.claims = 1

    def _claimed(self, record: r.Claimed) -> None:
        self.claims = self.claims + 1 if self.progress == 0 else 1
        self.progress = 0
        self.context = record.context
        self.moved_to = record.moved_to
        if record.code:
            self._recode(dict(record.code))
        if record.retry_failed:
            for task in self.tasks:
                if task.status is FAIL:
                    task.step("continued again" if task.alias >= 0 else "tried again")
                    task.attempts = 0
                    task.failure = None
            self.failed_task = -1
            self.ended = 0.0
            self.phase = Phase.RUNNING

    def _recode(self, code: dict[str, Function]) -> None:
        """Tasks that are not done run other code from here on; what is done stays."""
        self.functions |= {function.digest: function for function in code.values()}
        for scope in {id(t.scope): t.scope for t in self.tasks if t.scope is not None}.values():
            scope.functions = [
                Function(f.name, new.digest, new.payload, new.code, new.python) if (new := code.get(f.digest)) else f
                for f in scope.functions
            ]

    def _started(self, record: r.Started) -> None:
        if self.phase is Phase.PENDING:  # else it was cancelled before this record came
            self.phase = Phase.RUNNING

    def _done(self, record: r.TaskDone) -> None:
        task = self._task(record.task)
        task.check("recorded value")
        task.started, task.ended = record.started, record.ended
        self.progress += 1
        self.complete(task, record.payload, "recorded value")

    def _failed(self, record: r.TaskFailed) -> None:
        task = self._task(record.task)
        if record.final:
            task.check("recorded failure")
            task.started, task.ended = record.started, record.ended
            self.progress += 1
            self.fail(task, record.failure, "recorded failure")
        else:
            task.step("recorded retry")
            task.attempts += 1
            task.failure = record.failure

    def _continued(self, record: r.Continued) -> None:
        task = self._task(record.task)
        if record.graph is None:
            raise IllegalTransition("a Continued record without its graph: its blob was not read")
        task.check("recorded graph")
        root = self.add_graph(record.graph, task.number)
        task.step("recorded graph")
        task.started, task.ended = record.started, record.ended
        self.progress += 1
        task.alias = root
        self.tasks[root].parent = task.number
        for number in range(root - record.graph.root, len(self.tasks)):
            below = self.tasks[number]
            if below.waiting == 0:
                below.step("inputs done")
                self.newly_ready.append(number)

    def _received(self, record: r.Received) -> None:
        task = self._task(record.task)
        task.check("recorded value")
        task.ended = record.ended
        task.owed = True
        self.owed += 1
        self.progress += 1
        node, scope = task.node, task.scope
        self.complete(task, record.payload, "recorded value")
        # the acknowledgement still needs the listener
        task.node, task.scope = node, scope

    def _acknowledged(self, record: r.Acknowledged) -> None:
        task = self._task(record.task)
        if task.owed:
            task.owed = False
            self.owed -= 1
            if not self.keep:
                task.node = task.scope = None

    def _timer(self, record: r.TimerSet) -> None:
        self._task(record.task).timer = (record.deadline, record.duration)

    def _cancel(self, record: r.CancelRequested) -> None:
        if self.phase not in TERMINAL:
            self.phase = Phase.CANCELLING

    def _end(self, record: r.Succeeded | r.Failed | r.Canceled) -> None:
        if isinstance(record, r.Succeeded):
            if self.root < 0 or self.tasks[self.root].status is not DONE:
                raise IllegalTransition("Succeeded before the root task is done")
            self.phase = Phase.SUCCEEDED
        elif isinstance(record, r.Failed):
            self.failed_task = self._task(record.task).number
            self.phase = Phase.FAILED
        else:
            self.phase = Phase.CANCELED
        self.ended = record.time

    def _deleted(self, record: r.Deleted) -> None:
        self.clear()

    def _arrived(self, record: r.Arrived) -> None:
        self.key_birth = record.birth
        self.moved_to = None  # that it moved was said where it came from

    def _nothing(self, record: r.Record) -> None:
        """Base, Retired and Repaired say nothing of the workflow itself."""

    # -- invariants ----------------------------------------------------------------------------------------------

    def validate(self) -> None:
        """Raise AssertionError where the state contradicts itself. For tests: it costs a walk over all."""
        done = sum(t.status is DONE for t in self.tasks)
        assert done == self.done, f"{done} tasks are done, {self.done} were counted"
        assert sum(t.owed for t in self.tasks) == self.owed
        for task in self.tasks:
            assert self.names[task.name] == task.number
            if task.status is DONE:
                assert task.payload is not None, f"{task.name} is done without a value"
            if task.status is CONT:
                assert task.alias >= 0, f"{task.name} is continued by nothing"
                assert self.tasks[task.alias].parent == task.number
                assert self.tasks[task.alias].status is not DONE
            if task.node is not None and task.status in (W, R, RUN, REC, BACK):
                missing = sum(self.tasks[u].status is not DONE for u in task.upstream())
                assert task.waiting == missing, f"{task.name} waits for {task.waiting}, missing are {missing}"
                if task.status is R:  # in BACK, an input may have been lost meanwhile
                    assert not missing, f"{task.name} is {task.status.name} before its inputs are done"
        if self.phase is Phase.SUCCEEDED:
            assert self.tasks[self.root].status is DONE
        if self.phase is Phase.FAILED:
            assert 0 <= self.failed_task < len(self.tasks)


_HANDLERS: dict[type, Any] = {
    r.Created: State._created,
    r.Claimed: State._claimed,
    r.Started: State._started,
    r.TaskDone: State._done,
    r.TaskFailed: State._failed,
    r.Continued: State._continued,
    r.Received: State._received,
    r.Acknowledged: State._acknowledged,
    r.TimerSet: State._timer,
    r.CancelRequested: State._cancel,
    r.Succeeded: State._end,
    r.Failed: State._end,
    r.Canceled: State._end,
    r.Deleted: State._deleted,
    r.Base: State._nothing,
    r.Retired: State._nothing,
    r.Arrived: State._arrived,
    r.Repaired: State._nothing,
}


def fold(records: Iterable[r.Record], *, keep: bool = False) -> State:
    state = State(keep=keep)
    for record in records:
        state.apply(record)
    return state


def compact(records: Iterable[r.Record]) -> list[r.Record]:
    """The same history with what later records made void left out (for base parts, J6).

    Attempts of tasks that were decided later, timers that have fired, claims but the last.
    `fold` of the result is `fold` of the input, but for the counts of claims and of a decided task's attempts.
    """
    kept = list(records)
    decided: set[int] = set()
    claimed = False
    out: list[r.Record] = []
    for record in reversed(kept):
        if isinstance(record, r.TaskDone | r.Received | r.Continued):
            decided.add(record.task)
        elif isinstance(record, r.TaskFailed):
            if not record.final and record.task in decided:
                continue
            if record.final:
                decided.add(record.task)
        elif isinstance(record, r.TimerSet):
            if record.task in decided:
                continue
        elif isinstance(record, r.Claimed) and not record.retry_failed and not record.code:
            if claimed:
                continue
            claimed = True
        elif isinstance(record, r.Base):
            continue
        out.append(record)
    out.reverse()
    return out
