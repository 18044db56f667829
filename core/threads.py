"""Threads that do blocking work for an event loop.

Owns a few daemon threads per user; differs from the standard executor in what stores need: usable from
several loops, rebuilt after fork, one loop wake-up for many results, and gone after ``aclose``.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")
_Result: TypeAlias = tuple["asyncio.Future[Any]", Any, BaseException | None]
_Job: TypeAlias = tuple["_Mailbox | None", "asyncio.Future[Any] | None", Callable[[], Any]]


class Threads:
    """At most ``width`` threads, started when there is work for them."""

    def __init__(self, width: int, name: str) -> None:
        self._width, self._name = width, name
        self._start_over()

    def _start_over(self) -> None:
        # Also in a forked child: the parent's threads don't exist there, and its queue may be locked.
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._mailboxes: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Mailbox] = weakref.WeakKeyDictionary()
        self._idle = _Count()
        self._finalizer = weakref.finalize(self, _dismiss, self._jobs, self._width)

    async def run(self, work: Callable[[], T]) -> T:
        """The result of ``work()``, called in a thread. Cancelling stops the waiting, not the work."""
        return await self.submit(work)

    def submit(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Begin ``work()`` in a thread; a future of the running loop."""
        loop = asyncio.get_running_loop()
        if self._pid != os.getpid():
            self._start_over()
        mailbox = self._mailboxes.get(loop)
        if mailbox is None:
            mailbox = self._mailboxes.setdefault(loop, _Mailbox(loop))
        future: asyncio.Future[T] = loop.create_future()
        self._submit((mailbox, future, work))
        return future

    def start(self, work: Callable[[], object]) -> None:
        """Do ``work()`` in a thread and forget it; its errors are dropped (for clean-up)."""
        if self._pid != os.getpid():
            self._start_over()
        self._submit((None, None, work))

    def _submit(self, job: _Job) -> None:
        if self._idle.value <= self._jobs.qsize() and len(self._threads) < self._width:
            thread = threading.Thread(
                target=_work,
                args=(self._jobs, self._idle),
                name=f"{self._name}-{next(_numbers)}",
                daemon=True,
            )
            self._threads.append(thread)
            thread.start()
        self._jobs.put(job)

    async def aclose(self) -> None:
        """End the threads after the work they have begun and what is queued."""
        self._finalizer.detach()
        threads, self._threads = self._threads, []
        if self._pid != os.getpid():
            return
        _dismiss(self._jobs, len(threads))
        for thread in threads:
            while thread.is_alive():  # noqa: ASYNC110 (joining would block the loop)
                await asyncio.sleep(0.001)
            thread.join()


_numbers = itertools.count()


class _Count:
    def __init__(self) -> None:
        self.value = 0
        self.lock = threading.Lock()


class _Mailbox:
    """Results on their way to one loop; the loop is woken once for all that have gathered."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._results: deque[_Result] = deque()
        self._awake = False
        self._lock = threading.Lock()

    def post(self, result: _Result) -> None:
        with self._lock:
            self._results.append(result)
            if self._awake:
                return
            self._awake = True
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            pass  # the loop was closed; nobody waits

    def _deliver(self) -> None:
        with self._lock:
            results, self._results = self._results, deque()
            self._awake = False
        for future, value, error in results:
            if future.done():
                continue
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)


def _dismiss(jobs: queue.SimpleQueue[_Job | None], count: int) -> None:
    for _ in range(count):
        jobs.put(None)


def _work(jobs: queue.SimpleQueue[_Job | None], idle: _Count) -> None:
    while True:
        with idle.lock:
            idle.value += 1
        job = jobs.get()
        with idle.lock:
            idle.value -= 1
        if job is None:
            return
        mailbox, future, work = job
        value: Any = None
        error: BaseException | None = None
        try:
            value = work()
        except StopIteration as e:
            error = RuntimeError(f"StopIteration from {work!r}")  # a future can't carry it
            error.__cause__ = e
        except BaseException as e:
            error = e
        if mailbox is not None and future is not None:
            mailbox.post((future, value, error))
        del job, work, mailbox, future, value, error
