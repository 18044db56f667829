"""Drives one scheduler by hand: no loop, no store. What it is told to append waits until the test commits it."""

from __future__ import annotations

from typing import Any

from perdure import records as r
from perdure import scheduler as s
from perdure.graph import Failure, Graph
from perdure.state import State, Task, TaskStatus, fold
from support.doubles import packed, unpacked


class Bench:
    """A scheduler, the history that it has committed, and the commands that nobody has carried out yet.

    After every event the invariants are checked, and that the history alone folds to the same facts.
    """

    def __init__(self, graph: Graph, *, pending: bool = False, begin: bool = True) -> None:
        self.history: list[r.Record] = [r.Created("w", "client", 1.0, graph, pending=pending)]
        self.open([], begin=begin)

    def open(self, more: list[r.Record], *, begin: bool = True) -> None:
        """A new owner folds the history and ``more``, and begins."""
        self.history += more
        self.state = fold(self.history)
        self.state.validate()
        self.scheduler = s.Scheduler(self.state)
        self.uncommitted: list[tuple[r.Record, ...]] = []
        self.started: dict[int, s.Start | s.Poll | s.Arm] = {}
        self.clocks: list[int] = []
        self.delays: list[int] = []
        self.owed: list[int] = []
        self.stopped: list[int] = []
        self.ended: list[s.End] = []
        if begin:
            self.do(s.Begin(2.0))

    def resume(self, *, retry_failed: bool = False) -> None:
        """The owner dies with all that is not committed; another claims."""
        self.open([r.Claimed(3.0, retry_failed)])

    def do(self, event: s.Event) -> list[s.Command]:
        commands = self.scheduler.handle(event)
        for command in commands:
            match command:
                case s.Append():
                    self.uncommitted.append(command.records)
                case s.Start() | s.Poll() | s.Arm():
                    self.started[command.task] = command
                case s.ReadClock():
                    self.clocks.append(command.task)
                case s.Delay():
                    self.delays.append(command.task)
                case s.Acknowledge():
                    self.owed.append(command.task)
                case s.Stop():
                    self.stopped.extend(command.tasks)
                case s.End():
                    self.ended.append(command)
        self.scheduler.validate()
        return commands

    def commit(self, groups: int | None = None) -> None:
        """What was to be appended is in the chain: all of it (and what follows from that), or some groups."""
        left = groups if groups is not None else 1_000_000
        while self.uncommitted and left:
            left -= 1
            records = self.uncommitted.pop(0)
            self.history += records
            self.do(s.Committed(records))
            assert facts(fold(self.history), durable=True) == facts(self.state, durable=True)

    def task(self, name: str) -> Task:
        return self.state.tasks[self.state.names[name]]

    def status(self, name: str) -> TaskStatus:
        return self.task(name).status

    def outcome(self, name: str, result: s.Result) -> None:
        task = self.task(name)
        self.started.pop(task.number, None)
        self.do(s.Outcome(task.number, task.attempts, result))

    def value(self, name: str, value: Any = None, *, volatile: bool = False, commit: bool = True) -> None:
        self.outcome(name, s.Value(packed(value), 1.0, 2.0, volatile))
        if commit:
            self.commit()

    def graph(self, name: str, graph: Graph, *, commit: bool = True) -> None:
        self.outcome(name, s.Continuation(graph, 1.0, 2.0))
        if commit:
            self.commit()

    def fails(self, name: str, *, retryable: bool = False, commit: bool = True) -> None:
        failure = Failure("raised", "ValueError", "no", "", packed(ValueError("no")))
        self.outcome(name, s.Raised(failure, retryable, 1.0, 2.0))
        if commit:
            self.commit()

    def output(self) -> Any:
        return unpacked(self.state.tasks[self.state.root].payload)


def facts(state: State, *, durable: bool = False) -> dict[str, Any]:
    """What a state says, for comparing states that were reached on different ways.

    ``durable``: only what records alone must give (not what is under way, nor values that are never stored).
    """
    tasks = []
    for t in state.tasks:
        decided = t.status in (TaskStatus.DONE, TaskStatus.FAILED, TaskStatus.CONTINUED)
        status = t.status.name if decided or not durable else "open"
        if durable and t.status is TaskStatus.DONE and volatile(state, t):
            status = "CONTINUED" if t.alias >= 0 else "open"
        known = status == "DONE"
        tasks.append(
            (
                t.name,
                status,
                t.payload if known else None,
                t.parent,
                t.alias,
                t.failure if status == "FAILED" else None,
                t.owed,
                t.timer if status not in ("DONE", "FAILED") else None,
                t.attempts if status in ("open", "WAITING", "READY", "RUNNING") else 0,
            )
        )
    return {
        "phase": state.phase,
        "root": state.root,
        "owed": state.owed,
        "ended": state.ended,
        "failed": state.failed_task,
        "tasks": tasks,
        "names": dict(state.names),
    }


def volatile(state: State, task: Task) -> bool:
    """Whether a done task's value is in nobody's records. A failure that was caught is: it was recorded."""
    while task.alias >= 0:
        task = state.tasks[task.alias]
    caught = task.payload is not None and "e" in task.payload.wraps
    return task.node is not None and not caught and not state.must_persist(task)
