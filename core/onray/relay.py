"""The output of tasks and listeners, brought to the driver that waits.

Owns both ends and the way between. Where user code runs: what it prints (and logs to stderr) goes to Ray's log files
as ever, and a bounded copy to the coordinator: while it runs each half second, its last part with the task's report.
In the coordinator: an `Outbox`, bounded for each driver and over all. In a driver: a thread that fetches and prints,
with the task's name before each line, as Ray does.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import io
import logging
import os
import queue
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Final, TextIO

from perdure.onray.marks import mark

logger = logging.getLogger("perdure")

LIMIT: Final = 64 * 1024
"""Characters that one task can relay in each `_FLUSH_SECONDS`; what is more is in Ray's log files only."""
_FLUSH_SECONDS: Final = 0.5
_CONFIRM_SECONDS: Final = 5.0

BOX_LIMIT: Final = 1 << 20
"""Characters that wait for one driver in the coordinator; the oldest go first."""
BOXES: Final = 64
"""Drivers for which output is kept; those that have not asked for longest go first."""
_GONE_SECONDS: Final = 60.0

OUTPUT_VARIABLE: Final = "PERDURE_OUTPUT"

# -- where user code runs --------------------------------------------------------------------------------------------


class _Tee(io.TextIOBase):
    """Writes through to the real stream, and to the sink of the code that runs now."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._marked: _Sink | None = None
        self._inside_line = False

    def write(self, text: str) -> int:
        sink = _of_wait.get() or _of_task
        if not text or sink is None:
            return self.stream.write(text)
        if sink is not self._marked:  # so that `perdure logs` finds these lines in Ray's files
            self._marked = sink
            self.stream.write("\n" * self._inside_line + mark(sink.workflow_id, sink.task))
        written = self.stream.write(text)
        self._inside_line = not text.endswith("\n")
        sink.add(text)
        return written

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self.stream.fileno()

    @property
    def buffer(self) -> Any:  # bytes written there are not relayed
        return self.stream.buffer

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.stream.encoding


class _Sink:
    """What one task or wait has printed and nobody has sent yet."""

    def __init__(self, driver: str, workflow_id: str, task: str) -> None:
        self.driver = driver
        self.workflow_id = workflow_id
        self.task = task
        self.label = f"({task.rsplit('.', 1)[-1]} {workflow_id} pid={os.getpid()})"
        self.lock = threading.Lock()
        self.sending = threading.Lock()
        self.parts: list[str] = []
        self.size = 0
        self.dropped = 0
        self.confirmed = True

    def add(self, text: str) -> None:
        if not self.driver:
            return
        with self.lock:
            room = LIMIT - self.size
            if room > 0:
                self.parts.append(text[:room])
                self.size += min(room, len(text))
            self.dropped += max(0, len(text) - room)
        if self not in _dirty:
            _dirty.add(self)
            _wake.set()

    def take(self, *, last: bool = False) -> str:
        """Whole lines, each with its label; the rest of an unfinished line too, if it is the ``last`` time."""
        with self.lock:
            text, dropped = "".join(self.parts), self.dropped
            rest = ""
            if not last and not dropped and not text.endswith("\n"):
                text, end, rest = text.rpartition("\n")
                text += end
            self.parts = [rest] if rest else []
            self.size, self.dropped = len(rest), 0
        lines = [f"{self.label} {line}\n" for line in text.splitlines()]
        if dropped:
            lines.append(f"{self.label} … {dropped} more characters are in Ray's logs of this task\n")
        return "".join(lines)


_of_task: _Sink | None = None  # a worker runs one attempt at a time, and its threads print too
_of_wait: ContextVar[_Sink | None] = ContextVar("perdure_output", default=None)
_dirty: set[_Sink] = set()
_wake = threading.Event()
_flusher: threading.Thread | None = None


def install() -> None:
    """Listen to what this process prints from now on."""
    global _flusher
    if not isinstance(sys.stdout, _Tee):
        sys.stdout = _Tee(sys.stdout)
    if not isinstance(sys.stderr, _Tee):
        sys.stderr = _Tee(sys.stderr)
    if _flusher is None:
        _flusher = threading.Thread(target=_flush_for_ever, name="perdure-output", daemon=True)
        _flusher.start()


class Rest:
    """What is left to relay when a task has ended."""

    text = ""


@contextlib.contextmanager
def task_output(driver: str, workflow_id: str, task: str) -> Iterator[Rest]:
    """Relay what is printed inside to ``driver`` ("": to nobody). The last part is left for the task's report."""
    global _of_task
    rest = Rest()
    install()
    sink = _of_task = _Sink(driver, workflow_id, task)
    try:
        yield rest
    finally:
        _of_task = None
        _dirty.discard(sink)
        if sink.sending.acquire(timeout=_CONFIRM_SECONDS):  # what is under way arrives before the report
            sink.sending.release()
        rest.text = sink.take(last=True)


def wait_output(driver: str, workflow_id: str, task: str) -> None:
    """Relay what is printed in this context from now on (`install` first)."""
    sink = _Sink(driver, workflow_id, task)
    sink.confirmed = False  # there is no report that it could be late for
    _of_wait.set(sink)


def _flush_for_ever() -> None:
    while True:
        _wake.wait()
        time.sleep(_FLUSH_SECONDS)  # gathers what a chatty task prints
        _wake.clear()
        for sink in list(_dirty):
            _dirty.discard(sink)
            _send(sink)


def _send(sink: _Sink) -> None:
    import ray

    from perdure.onray import actor

    try:
        with sink.sending:
            text = sink.take()
            if text:
                handle = ray.get_actor(actor.NAME, namespace=actor.NAMESPACE)
                sent = handle.relay.remote(sink.driver, text, sink.workflow_id)
                if sink.confirmed:
                    ray.get(sent, timeout=_CONFIRM_SECONDS)
    except Exception as error:
        logger.debug("task output was not relayed: %s", error)


# -- in the coordinator ----------------------------------------------------------------------------------------------


class _Box:
    def __init__(self) -> None:
        self.parts: deque[tuple[int, str]] = deque()
        self.size = 0
        self.asked = time.monotonic()
        self.left = False
        self.news = asyncio.Event()

    def add(self, number: int, text: str) -> None:
        text = text[-BOX_LIMIT:]
        self.parts.append((number, text))
        self.size += len(text)
        while self.size > BOX_LIMIT:
            self.size -= len(self.parts.popleft()[1])
        self.news.set()

    def take(self, after: int) -> tuple[int, str]:
        while self.parts and self.parts[0][0] <= after:
            self.size -= len(self.parts.popleft()[1])
        return (self.parts[-1][0] if self.parts else after), "".join(text for _, text in self.parts)


class Outbox:
    """Output that waits to be fetched, bounded for each driver and over all, also when drivers never come back."""

    def __init__(self) -> None:
        self.boxes: dict[str, _Box] = {}
        self._audience: dict[str, list[str]] = {}
        # greater than what a driver has seen of an earlier process of this actor
        self._number = time.time_ns()

    def add(self, driver: str, text: str, workflow_id: str = "") -> None:
        """For ``driver``, and for all who wait for the workflow."""
        self._number += 1
        for name in {driver, *self._audience.get(workflow_id, ())} - {""}:
            self._box(name).add(self._number, text)

    def _box(self, driver: str) -> _Box:
        box = self.boxes.get(driver)
        if box is None:
            if len(self.boxes) >= BOXES:
                self._drop_gone()
            box = self.boxes[driver] = _Box()
        return box

    def _drop_gone(self) -> None:
        now = time.monotonic()
        oldest = min(self.boxes, key=lambda name: self.boxes[name].asked)
        for name in list(self.boxes):
            if name == oldest or now - self.boxes[name].asked > _GONE_SECONDS:
                del self.boxes[name]

    async def fetch(self, driver: str, after: int, seconds: float) -> tuple[int, str]:
        """A driver's output after a number, and the newest number; waits up to ``seconds`` for some.

        What was fetched is dropped at the next call.
        """
        deadline = time.monotonic() + seconds
        box = self._box(driver)
        while True:
            box.asked = time.monotonic()
            number, text = box.take(after)
            left = deadline - time.monotonic()
            if text or left <= 0 or box.left:
                return number, text
            box.news.clear()
            try:
                await asyncio.wait_for(box.news.wait(), left)
            except TimeoutError:
                pass

    @contextlib.contextmanager
    def audience(self, workflow_id: str, driver: str) -> Iterator[None]:
        """While it waits for a workflow that another driver may have started, a driver gets its output too."""
        if not driver:
            yield
            return
        waiting = self._audience.setdefault(workflow_id, [])
        waiting.append(driver)
        try:
            yield
        finally:
            waiting.remove(driver)
            if not waiting:
                del self._audience[workflow_id]

    def leave(self, driver: str) -> None:
        """This driver is going: answer what it asks, keep nothing for it."""
        box = self.boxes.pop(driver, None)
        if box is not None:
            box.left = True
            box.news.set()


# -- in a driver -----------------------------------------------------------------------------------------------------


def wanted() -> bool:
    """Whether this driver shows its tasks' output: as ``ray.init(log_to_driver=...)`` and PERDURE_OUTPUT say."""
    import ray
    from ray._private.worker import SCRIPT_MODE, global_worker

    if os.environ.get(OUTPUT_VARIABLE, "").lower() in ("0", "false", "no"):
        return False
    if ray.util.client.ray.is_connected():
        return True
    if getattr(global_worker, "mode", None) != SCRIPT_MODE:
        return True  # a task or an actor that is a driver of workflows: its own output is seen by others
    thread = getattr(global_worker, "logger_thread", None)
    return thread is not None and thread.is_alive()


class Printer:
    """Fetches and prints: in a thread from `watch` on, and at once by `drain`. Silent where nobody wants output."""

    def __init__(self, handle: Any, driver: str) -> None:
        self.handle = handle
        self.driver = driver
        self.wanted = wanted()
        self.after = 0
        self.lock = threading.Lock()
        self.thread: threading.Thread | None = None
        self.audience = driver if self.wanted else ""
        self._replies: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._closed = False

    def watch(self) -> None:
        if not self.wanted or self._closed or (self.thread is not None and self.thread.is_alive()):
            return
        _open.add(self)
        _close_at_exit()
        self.thread = threading.Thread(target=self._watch, name="perdure-output", daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        """The thread waits in a queue, never inside Ray: so it can leave before Ray goes down."""
        while not self._closed:
            try:
                asked = self.handle.output.remote(self.driver, self.after, _POLL_SECONDS).future()
                asked.add_done_callback(self._replies.put)
                reply = self._replies.get(timeout=2 * _POLL_SECONDS)
                if reply is None:
                    return
                self._print(reply.result())
            except Exception:  # Ray is down, or the coordinator gone: whoever asks next watches again
                return

    def drain(self) -> None:
        """Print what has come until now."""
        if not self.wanted or self._closed:
            return
        import ray

        try:
            self._print(ray.get(self.handle.output.remote(self.driver, self.after, 0.0), timeout=5))
        except Exception as error:
            logger.debug("output of tasks was not fetched: %s", error)

    def close(self) -> None:
        """Before Ray shuts down: no call of this driver is left waiting, the thread is gone."""
        import ray

        if self._closed:
            return
        if ray.is_initialized():
            self.drain()
        self._closed = True
        thread = self.thread
        if thread is None or not thread.is_alive():
            return
        if ray.is_initialized():
            try:
                self.handle.leave.remote(self.driver)
            except Exception as error:
                logger.debug("the coordinator was not told that this driver ends: %s", error)
            thread.join(1.0)  # the long poll is answered at once
        self._replies.put(None)
        thread.join(1.0)

    def _print(self, reply: tuple[int, str]) -> None:
        number, text = reply
        with self.lock:
            if number > self.after and text:
                self.after = number
                sys.stderr.write(text)
                sys.stderr.flush()


_POLL_SECONDS: Final = 20.0
_open: weakref.WeakSet[Printer] = weakref.WeakSet()
_registered = False


def _close_at_exit() -> None:
    """Registered after Ray's own hook, so it is called before Ray goes down."""
    global _registered
    if not _registered:
        _registered = True
        atexit.register(_close_all)


def _close_all() -> None:
    for printer in list(_open):
        printer.close()
