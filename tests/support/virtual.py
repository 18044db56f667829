"""An event loop in virtual time, and simulated processes in it that can be paused and killed.

Owns determinism: no selector, no threads, no real clock. When nothing is ready, time jumps to the next timer.
A `Process` is a tag that every callback inherits through its context, so that a whole process (its store calls,
timers and attempts) freezes like under SIGSTOP, or is gone from one callback to the next like under SIGKILL,
while the clocks and the store go on.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("PROCESS", default=None)


LAST = 30_000.0
TURNS = 300_000


class Stuck(AssertionError):
    """Nothing is ready and no timer is set, or only timers that set each other: whoever waits would wait for ever."""


class Process:
    """One simulated process. ``paused``: its callbacks are held; ``dead``: they never run."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.paused = False
        self.dead = False
        self.held: list[asyncio.Handle] = []
        self.tasks: list[asyncio.Task[Any]] = []
        self.calls: dict[asyncio.Future[None], None] = {}
        loop.processes.append(self)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run a coroutine in this process."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, self)
        return self.loop.create_task(coroutine, context=context)

    async def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this process and wait for it from outside; Dead when the process dies first."""
        if self.dead:
            coroutine.close()
            raise Dead(self.name)
        task = self.spawn(coroutine)
        over: asyncio.Future[None] = self.loop.create_future()
        self.calls[over] = None
        task.add_done_callback(lambda _: over.done() or over.set_result(None))
        try:
            await over
        finally:
            self.calls.pop(over, None)
            if not task.done():
                task.add_done_callback(lambda t: t.cancelled() or t.exception())  # nobody asks any more
        return task.result()

    def pause(self) -> None:
        self.paused = True

    def go_on(self) -> None:
        self.paused = False
        held, self.held = self.held, []
        for handle in held:
            self.loop._ready.append(handle)

    def kill(self) -> None:
        """Nothing of it runs any more. Requests that it has sent are on their way all the same."""
        self.dead = True
        self.held.clear()
        for over in list(self.calls):
            if not over.done():
                over.set_exception(Dead(self.name))


class Dead(Exception):
    """The process that was asked has died."""


class _NoSelector:
    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        pass


class VirtualLoop(asyncio.BaseEventLoop):
    """``time`` starts at 1000 s and moves only when nothing is ready."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self._selector = _NoSelector()
        self._scheduled: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers = 0
        self._turns = 0
        self._clock_resolution = 1e-9
        self.processes: list[Process] = []
        self.problems: list[str] = []
        self.set_exception_handler(self._problem)

    def _problem(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.problems.append(f"{context.get('message')}: {context.get('exception')!r}")

    def time(self) -> float:
        return self.now

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    def create_task(self, coro: Any, *, name: str | None = None, context: Any = None) -> asyncio.Task[Any]:
        process = PROCESS.get() if context is None else context.get(PROCESS)
        task: asyncio.Task[Any] = super().create_task(coro, name=name, context=context)
        if process is not None:
            tasks = process.tasks
            tasks.append(task)
            if len(tasks) > 256 and len(tasks) & 0xFF == 0:
                tasks[:] = [t for t in tasks if not t.done()]
        return task

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        self._check_closed()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._timers += 1  # timers of the same moment go in the order in which they were set
        heapq.heappush(self._scheduled, (when, self._timers, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def _run_once(self) -> None:
        ready, scheduled = self._ready, self._scheduled
        while scheduled and scheduled[0][2]._cancelled:
            heapq.heappop(scheduled)
        if not ready and not self._stopping:
            if not scheduled:
                raise Stuck("nothing is ready and no timer is set")
            self.now = max(self.now, scheduled[0][0])
            if self.now > LAST:
                raise Stuck(f"not over after {LAST:.0f} virtual seconds")
        while scheduled and scheduled[0][0] <= self.now:
            handle = heapq.heappop(scheduled)[2]
            if not handle._cancelled:
                ready.append(handle)
        self._turns += 1
        if self._turns > TURNS:
            raise Stuck(f"not over after {TURNS} turns of the loop, at {self.now - 1000:.0f} virtual seconds")
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)
            if process is not None:
                if process.dead:
                    continue
                if process.paused:
                    process.held.append(handle)
                    continue
            handle._run()


def run_virtual(main: Callable[[VirtualLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main(loop)`` to its end in a loop of its own, in virtual time."""
    loop = VirtualLoop()
    try:
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(loop.create_task(main(loop)))
    finally:
        leftovers = [t for t in asyncio.all_tasks(loop) if not t.done()]
        asyncio.set_event_loop(None)
        loop.close()
        bury(leftovers)


def bury(tasks: list[asyncio.Task[Any]]) -> None:
    """End what the dead left behind; what their `finally` blocks still try, finds no loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            coroutine: Any = task.get_coro()
            try:
                coroutine.close()
            except BaseException:
                pass
        tasks.clear()
