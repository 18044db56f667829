"""Event loops for code that may block: many waits in one loop, and a watchdog that notices who stops it.

Owns lanes (a loop in a thread), which lane a wait runs in, and what happens when one stops: the other waits begin
again in another lane, and the class that blocked gets lanes of its own from then on. It knows neither Ray nor
listeners: a wait is a coroutine function and the name of its class. Results of a wait that was begun again
elsewhere are dropped.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

logger = logging.getLogger("perdure")

_LOOK_SECONDS: Final = 0.2
BLOCKED_SECONDS: Final = 0.7
"""A loop that one step of one wait has held for so long is blocked."""
CLASS_LANES: Final = 8
"""Lanes that one class of listeners can get by blocking; more of its waits share them."""
_MOST_LANES: Final = 64

_HERE: Final = os.path.dirname(__file__) + os.sep

Answer = Callable[["Wait", Any], None]


@dataclass(eq=False)
class Wait:
    """One wait. ``body`` may be begun several times; ``answer`` gets what the last begun returned or raised, once.

    ``group``: the class of listeners, ``name``: for people.
    """

    number: int
    group: str
    name: str
    body: Callable[[], Coroutine[Any, Any, Any]]
    answer: Answer
    begun: int = 0
    lane: Lane | None = None
    task: asyncio.Task[None] | None = field(default=None, repr=False)
    over: bool = False


_CURRENT: ContextVar[Wait | None] = ContextVar("perdure_wait", default=None)


class _Task(asyncio.Task[Any]):
    """A task that knows for which wait it was made, also where the listener made it."""

    wait: Wait | None = None


def _task_factory(loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any) -> _Task:
    task = _Task(coroutine, loop=loop, **options)
    task.wait = _CURRENT.get()
    return task


class Lane:
    """A loop in a daemon thread, and the waits that run there."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.waits: dict[int, Wait] = {}
        self.blocked = False
        self.loop = asyncio.new_event_loop()
        self.loop.set_task_factory(_task_factory)
        self._closing = False
        self._asked = 0.0
        self._answered = True
        self._suspect: object = None
        self._since = 0.0
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        while not self._closing:
            try:
                self.loop.run_forever()
            except BaseException:  # a listener's own task raised SystemExit or the like
                logger.exception("something of a listener stopped its loop; the loop goes on")
        self.loop.close()

    def close(self) -> None:
        self._closing = True
        self.loop.call_soon_threadsafe(self.loop.stop)

    def _pong(self) -> None:
        self._answered, self.blocked = True, False

    def look(self, now: float) -> object | None:
        """What has held this loop for `BLOCKED_SECONDS`: a task, or a frame where it is none. Called regularly."""
        if self._answered:
            self._suspect = None
            self._answered, self._asked = False, now
            self.loop.call_soon_threadsafe(self._pong)
            return None
        task = asyncio.current_task(self.loop)
        suspect: object | None = task
        if task is None:
            frame = sys._current_frames().get(self.thread.ident or 0)
            if frame is None or frame.f_code.co_filename.endswith("selectors.py"):
                return None  # it waits for events: so it will answer
            suspect = self.thread  # a callback of the loop; nobody's name is on it
        if suspect is not self._suspect:
            self._suspect, self._since = suspect, now
            return None
        held = now - max(self._since, self._asked)
        return suspect if held >= BLOCKED_SECONDS and not self.blocked else None

    def forget_doubts(self) -> None:
        """The machine stood still, not the loop."""
        self._suspect = None

    def stack(self) -> str:
        frame: FrameType | None = sys._current_frames().get(self.thread.ident or 0)
        if frame is None:
            return ""
        found = [line for line in traceback.extract_stack(frame) if not line.filename.startswith(_HERE)]
        return ", ".join(f"{line.filename}:{line.lineno} in {line.name}" for line in found[-2:])


class Lanes:
    """All lanes of one process. Thread-safe; ``warn`` gets (wait or None, text), from any thread."""

    def __init__(self, warn: Callable[[Wait | None, str], None]) -> None:
        self.warn = warn
        self.lock = threading.RLock()
        self.waits: dict[int, Wait] = {}
        self._made = 0
        self._shared = self._lane()
        self._own: dict[str, list[Lane]] = {}
        self._left: list[Lane] = []
        self._warned: dict[str, float] = {}
        self._busy = threading.Event()
        threading.Thread(target=self._watch, name="perdure-watchdog", daemon=True).start()

    def _lane(self) -> Lane:
        self._made += 1
        return Lane(f"perdure-listeners-{self._made}")

    # -- waits ---------------------------------------------------------------------------------------------------

    def begin(self, wait: Wait) -> None:
        with self.lock:
            self.waits[wait.number] = wait
            self._place(wait, self._choose(wait.group))
        self._busy.set()

    def cancel(self, number: int) -> None:
        """End a wait; nothing is answered. A loop that stands still hears of it when it goes on."""
        with self.lock:
            wait = self.waits.pop(number, None)
            if wait is not None:
                wait.over = True
                self._leave(wait)

    def _choose(self, group: str) -> Lane:
        own = self._own.get(group)
        if own is None:
            return self._shared
        free = [lane for lane in own if not lane.blocked]
        if not free and len(own) < CLASS_LANES and self._made < _MOST_LANES:
            own.append(self._lane())
            return own[-1]
        return min(free or own or [self._shared], key=lambda lane: len(lane.waits))

    def _place(self, wait: Wait, lane: Lane) -> None:
        wait.begun += 1
        wait.lane = lane
        lane.waits[wait.number] = wait
        lane.loop.call_soon_threadsafe(self._start, wait, wait.begun)

    def _leave(self, wait: Wait) -> None:
        """Out of its lane; what was begun there is cancelled."""
        lane, task = wait.lane, wait.task
        if lane is not None:
            lane.waits.pop(wait.number, None)
            wait.lane = None
            if task is not None:
                lane.loop.call_soon_threadsafe(task.cancel)
        wait.task = None

    def _start(self, wait: Wait, begun: int) -> None:
        with self.lock:
            if wait.over or wait.begun != begun:
                return
            token = _CURRENT.set(wait)
            try:
                wait.task = asyncio.get_running_loop().create_task(self._run(wait, begun))
            finally:
                _CURRENT.reset(token)

    async def _run(self, wait: Wait, begun: int) -> None:
        result: Any
        try:
            result = await wait.body()
        except BaseException as error:  # CancelledError too, where the listener has cancelled itself
            result = error
        with self.lock:
            if wait.over or wait.begun != begun:
                return
            wait.over = True
            wait.task = None
            self.waits.pop(wait.number, None)
            if wait.lane is not None:
                wait.lane.waits.pop(wait.number, None)
        wait.answer(wait, result)

    # -- the watchdog --------------------------------------------------------------------------------------------

    def _lanes(self) -> list[Lane]:
        return [self._shared, *(lane for lanes in self._own.values() for lane in lanes)]

    def _watch(self) -> None:
        last = time.monotonic()
        while True:
            if not self.waits:
                self._busy.clear()
                if not self.waits:
                    self._busy.wait()
                last = time.monotonic()
            time.sleep(_LOOK_SECONDS)
            now = time.monotonic()
            with self.lock:
                late = now - last > 3 * _LOOK_SECONDS
                for lane in self._lanes():
                    if late:
                        lane.forget_doubts()
                    elif (held_by := lane.look(now)) is not None:
                        self._blocked(lane, getattr(held_by, "wait", None))
            last = now

    def _blocked(self, lane: Lane, culprit: Wait | None) -> None:
        lane.blocked = True
        where = lane.stack()
        if lane is self._shared:
            self._shared = self._lane()
            if culprit is not None:
                self._own.setdefault(culprit.group, []).append(lane)
            else:  # nobody's name is on it: each class for itself from now on
                self._left.append(lane)
                for wait in lane.waits.values():
                    self._own.setdefault(wait.group, [])
        for wait in list(lane.waits.values()):
            if wait is culprit:
                continue
            chosen = self._choose(wait.group)
            if chosen is not lane and not chosen.blocked:
                self._leave(wait)
                self._place(wait, chosen)
        self._tell(culprit, where)

    def _tell(self, culprit: Wait | None, where: str) -> None:
        group = culprit.group if culprit is not None else ""
        now = time.monotonic()
        if now - self._warned.get(group, -60.0) < 60:
            return
        self._warned[group] = now
        who = culprit.name if culprit is not None else "a listener (in a callback of the loop)"
        self.warn(
            culprit,
            f"{who} blocks its event loop, at {where}. The other waits go on in another thread, and this class has "
            "one of its own from now on. Await instead of blocking (asyncio.sleep, an async client, "
            "asyncio.to_thread).",
        )
