"""Runs cases and turns how they end into statuses.

Each case gets an event loop and a thread of its own, so that a store that blocks its loop costs one case and
not the run. ``alone`` cases run after the others, one by one. Nothing is ever silently passed over: a case
that asserted nothing, ran out of time or lost its fault is an ERROR.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from perdure.conformance.observed import Violation
from perdure.conformance.processes import ChildDied, ChildError
from perdure.conformance.register import SUITE_VERSION, Case, Kind, Level, Status, load_cases, select
from perdure.conformance.report import Report, Result
from perdure.conformance.subject import Gap
from perdure.conformance.trial import CannotJudge, CaseFailed, Judge, NotDeclared

WIND_DOWN_SECONDS = 60.0
"""For the cases that run when a run is interrupted: to end, and to remove what they wrote."""
Progress = Callable[[Result, int, int], None]


class OutOfReach(Exception):
    """The subject could not be opened, written or read at all: there is nothing to judge."""


class Bench(Protocol):
    """What differs between stores, serializers, codecs and listeners."""

    kind: Kind

    async def prepare(self, cases: Sequence[Case], deadline: float) -> None: ...
    def gap(self, need: str) -> Gap | None: ...
    def trial(self, case: Case) -> Judge: ...
    async def after(self, trial: Judge) -> None: ...
    async def finish(self) -> list[str]: ...
    def shut_down(self) -> None: ...
    def describe(self) -> dict[str, Any]: ...
    def command(self, case: Case) -> str: ...
    def scale(self) -> float: ...


@dataclasses.dataclass(slots=True)
class Options:
    """How to run. ``budget`` is in seconds for the whole run; 0 is no limit."""

    level: Level = Level.BASE
    expression: str | None = None
    seed: int = 0
    jobs: int = 0
    budget: float = 0.0
    suite: str = SUITE_VERSION


def judge_end(trial: Judge, result: Result, error: BaseException | None, from_store: bool) -> None:
    """Fill in the status that follows from how the case function ended."""
    evidence = trial.evidence
    if error is None:
        if evidence.assertions == 0:
            result.status, result.seen = Status.ERROR, "the case made no assertion"
        elif evidence.faults_planned > evidence.faults_fired:
            result.status = Status.ERROR
            result.seen = (
                f"{evidence.faults_planned - evidence.faults_fired} of {evidence.faults_planned} "
                "planned faults did not fire"
            )
        else:
            result.status = Status.PASSED
        return
    result.traceback = "".join(traceback.format_exception(error))[-8000:]
    if isinstance(error, CaseFailed):
        result.status, result.expected, result.seen = Status.FAILED, error.expected, error.seen
        result.timeline = error.timeline
    elif isinstance(error, NotDeclared):
        result.status, result.gap = Status.NOT_DECLARED, error.gap
        result.traceback = ""
    elif isinstance(error, CannotJudge):
        result.status, result.seen = Status.ERROR, str(error)
    elif isinstance(error, Violation) or (isinstance(error, ChildError) and isinstance(error.error, Violation)):
        broken = error.error if isinstance(error, ChildError) else error
        rule, _, seen = str(broken).partition(": ")
        result.status, result.expected, result.seen = Status.FAILED, f"rule {rule}", seen
    elif isinstance(error, ChildError) and error.from_store:
        result.status = Status.FAILED
        result.expected = "the call works"
        result.seen = f"in a child process: {type(error.error).__name__}: {error.error}"
        result.calls = error.calls
    elif isinstance(error, ChildDied):
        result.status, result.seen = Status.ERROR, f"{error}, and the case had not killed it"
    elif from_store:
        result.status = Status.FAILED
        result.expected = "the call works"
        result.seen = f"{type(error).__name__}: {error}"
    else:
        result.status, result.seen = Status.ERROR, f"{type(error).__name__}: {error}"


class Run:
    """One run of a set of cases against one subject."""

    def __init__(self, bench: Bench, options: Options, progress: Progress | None = None) -> None:
        self.bench = bench
        self.options = options
        self.progress = progress
        self.results: dict[str, Result] = {}
        self.stopped = ""
        self.hung: list[str] = []
        self._lock = threading.Lock()
        self._active: dict[str, tuple[asyncio.Task[None], asyncio.AbstractEventLoop]] = {}
        every = load_cases(bench.kind, options.suite)
        self.asked = [c for c in every if options.level is Level.FULL or c.level is Level.BASE]
        self.cases = select(self.asked, options.expression)
        if options.expression and not self.cases:
            self.cases = select(every, options.expression)

    def stop(self, why: str) -> None:
        """Let the running cases end and begin no more."""
        self.stopped = self.stopped or why

    def execute(self) -> Report:
        """Run everything and return the report. Raises ``OutOfReach`` if there is nothing to judge.

        A ``KeyboardInterrupt`` ends the run early: what was written is removed, the report has no level.
        """
        started = time.monotonic()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        leftovers: list[str] = []
        try:
            try:
                limit = sum(c.timeout for c in self.cases) * self.bench.scale() + 600
                asyncio.run(self.bench.prepare(self.cases, time.time() + limit))
                self._run_all(started)
            except KeyboardInterrupt:
                self.stop("interrupted")
        finally:
            self._wind_down()
            try:
                leftovers = asyncio.run(self.bench.finish())
            finally:
                self.bench.shut_down()
        done = [self.results[c.id] for c in self.cases if c.id in self.results]
        report = Report(
            kind=self.bench.kind.value,
            subject="",
            level_asked=self.options.level,
            suite=self.options.suite,
            results=done,
            complete=len(done) == len(self.asked) and not self.stopped and not self.options.expression,
            seed=self.options.seed,
            seconds=time.monotonic() - started,
            started=stamp,
            perdure=_version("perdure"),
            machine=machine(),
            leftovers=leftovers,
            stopped=self.stopped,
            hung=bool(self.hung),
        )
        for name, value in self.bench.describe().items():
            setattr(report, name, value)
        return report

    def _wind_down(self) -> None:
        """End the children and the cases that still run, so that nobody writes while the clean-up looks."""
        self.bench.shut_down()
        with self._lock:
            active = list(self._active.values())
        for task, loop in active:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                loop.call_soon_threadsafe(task.cancel)
        end = time.monotonic() + WIND_DOWN_SECONDS
        while set(self._active) - set(self.hung) and time.monotonic() < end:
            time.sleep(0.02)

    # --- order and threads ---------------------------------------------------------------------------------
    def _run_all(self, started: float) -> None:
        together = collections.deque(
            sorted((c for c in self.cases if not c.alone and c.group != "error"), key=lambda c: -c.cost)
        )
        alone = [c for c in self.cases if c.alone and c.group != "error"]
        last = [c for c in self.cases if c.group == "error"]  # they also judge the errors of all the others
        jobs = self.options.jobs or max(2, min(4, os.cpu_count() or 2))

        def worker() -> None:
            while not self.stopped and not self._over_budget(started):
                with self._lock:
                    if not together:
                        return
                    case = together.popleft()
                self._run_one(case)

        workers = [threading.Thread(target=worker, daemon=True, name=f"conformance-{i}") for i in range(jobs)]
        for w in workers:
            w.start()
        for w in workers:
            while w.is_alive():  # a plain join would hold back KeyboardInterrupt
                w.join(0.1)
        for case in [*alone, *last]:
            if self.stopped or self._over_budget(started):
                return
            self._run_one(case)

    def _over_budget(self, started: float) -> bool:
        if self.options.budget and time.monotonic() - started > self.options.budget:
            self.stop(f"the budget of {self.options.budget:g} s was used up")
        return bool(self.stopped)

    def _run_one(self, case: Case) -> Result:
        limit = case.timeout * self.bench.scale()
        result = Result(case, Status.ERROR, command=self.bench.command(case))
        started = time.monotonic()
        gap = next((g for need in case.needs if (g := self.bench.gap(need)) is not None), None)
        if gap is not None:
            result.status, result.gap = Status.NOT_DECLARED, gap
        else:
            finished = threading.Event()
            box: list[Result] = []

            def body() -> None:
                try:
                    asyncio.run(self._trial(case, result, limit, box, finished))
                except BaseException as error:
                    if not box:
                        result.seen = f"{type(error).__name__}: {error}"
                        result.traceback = "".join(traceback.format_exception(error))[-8000:]
                finally:
                    finished.set()

            thread = threading.Thread(target=body, daemon=True, name=case.id)
            thread.start()
            end = started + limit + 30
            while not finished.wait(0.1) and time.monotonic() < end:
                pass
            if not finished.is_set():
                result = Result(case, Status.ERROR, command=result.command)
                result.seen = f"the event loop was blocked: not over {limit + 30:.0f} s after the start"
                self.hung.append(case.id)
            else:
                thread.join(5)
                if thread.is_alive():
                    self.hung.append(case.id)
        result.seconds = time.monotonic() - started
        with self._lock:
            self.results[case.id] = result
            if self.progress is not None:
                self.progress(result, len(self.results), len(self.cases))
        return result

    async def _trial(
        self, case: Case, result: Result, limit: float, box: list[Result], finished: threading.Event
    ) -> None:
        trial = self.bench.trial(case)
        error: BaseException | None = None
        timer = asyncio.timeout(limit)
        work: asyncio.Task[None] = asyncio.ensure_future(case.function(trial))
        with self._lock:
            self._active[case.id] = work, asyncio.get_running_loop()
        try:
            async with timer:
                await work
        except Exception as raised:
            error = raised
            if timer.expired() and isinstance(raised, TimeoutError):
                error = CannotJudge(f"not over after {limit:.0f} s")
        except asyncio.CancelledError as raised:  # a store that cancels its caller, or the run's own end
            error = CannotJudge(self.stopped) if self.stopped else raised
        recorder = getattr(trial, "recorder", None)
        from_store = bool(recorder and error is not None and recorder.came_from_store(error))
        judge_end(trial, result, error, from_store)
        if recorder is not None:
            result.evidence = trial.evidence
            trial.evidence.calls += recorder.count
            if not result.calls and result.status in (Status.FAILED, Status.ERROR):
                result.calls = [str(c) for c in recorder.calls]
        result.evidence = trial.evidence
        box.append(result)
        try:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(90):
                    await self.bench.after(trial)
        finally:
            with self._lock:
                self._active.pop(case.id, None)
        finished.set()


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def machine() -> dict[str, Any]:
    """Where the run took place, without the host's name."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "implementation": sys.implementation.name,
    }
