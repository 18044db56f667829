"""Tiny tasks travel together: starting a Ray task costs more than a tiny one runs.

Owns which attempts share a Ray task. Nothing waits for company: while fewer Ray tasks of a kind are under way than can
run at once, an attempt goes alone; only what would queue is gathered, so batches grow with the backlog, like the
journal's segments. Only functions whose measured duration is a few milliseconds are gathered, so that one result
hardly waits for another; and where one member takes long after all, the worker reports the others at once
(`worker_batch`). Each member is recorded, and fails, on its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from perdure.runner import Job
from perdure.scheduler import NotBegun, Raised, Result, Value

TINY_SECONDS: Final = 0.005
"""Functions that take longer on average always go alone."""
BATCH_SECONDS: Final = 0.010
"""How long a batch is meant to run."""
LARGEST: Final = 64
_WARM: Final = 3
_DOWN: Final = 0.5
_UP: Final = 0.05
"""How fast the estimate follows: a busy machine makes tiny tasks look long now and then, a long one stays long."""


@dataclass
class _Kind:
    """Attempts that may share a Ray task: one function, equal options, one environment."""

    under_way: int = 0
    queue: deque[tuple[Job, asyncio.Future[Result]]] = field(default_factory=deque)
    measured: int = 0
    seconds: float = 0.0

    def learn(self, result: Result) -> None:
        if isinstance(result, Value | Raised) and result.ended:
            took = max(0.0, result.ended - result.started)
            weight = 1.0 if not self.measured else _DOWN if took < self.seconds else _UP
            self.seconds += (took - self.seconds) * weight
            self.measured += 1

    @property
    def tiny(self) -> bool:
        return self.measured >= _WARM and self.seconds <= TINY_SECONDS

    @property
    def size(self) -> int:
        return max(1, min(LARGEST, int(BATCH_SECONDS / max(self.seconds, 1e-4))))


class Batches:
    """Runs jobs alone or together.

    ``alone`` runs one; ``together`` runs several of one kind and calls ``tell(index, result)`` for each as it becomes
    known; what it never tells runs alone. ``width`` tells how many Ray tasks can run at once.
    """

    def __init__(
        self,
        alone: Callable[[Job], Awaitable[Result]],
        together: Callable[[list[Job], Callable[[int, Result], None]], Awaitable[None]],
        width: Callable[[], int],
    ) -> None:
        self.alone = alone
        self.together = together
        self.width = width
        self.kinds: dict[str, _Kind] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, kind_name: str, job: Job) -> Result:
        kind = self.kinds.get(kind_name)
        if kind is None:
            if len(self.kinds) > 10_000:
                self.kinds = {n: k for n, k in self.kinds.items() if k.under_way or k.queue}
            kind = self.kinds[kind_name] = _Kind()
        if not kind.tiny or kind.under_way < self.width():
            kind.under_way += 1
            try:
                result = await self.alone(job)
                kind.learn(result)
                return result
            finally:
                kind.under_way -= 1
                self._fill(kind)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        kind.queue.append((job, future))
        return await future

    def _fill(self, kind: _Kind) -> None:
        width = self.width()
        while kind.queue and kind.under_way < width:
            share = -(-len(kind.queue) // max(1, width - kind.under_way))
            count = min(kind.size, share) if kind.tiny else 1
            taken = [kind.queue.popleft() for _ in range(min(count, len(kind.queue)))]
            members = [(job, future) for job, future in taken if not future.done()]
            if members:
                kind.under_way += 1
                self._spawn(self._batch(kind, members))

    async def _batch(self, kind: _Kind, members: list[tuple[Job, asyncio.Future[Result]]]) -> None:
        def tell(index: int, result: Result) -> None:
            future = members[index][1]
            if not future.done():
                kind.learn(result)
                future.set_result(result)

        together: asyncio.Future[None] | None = None

        def ended(future: asyncio.Future[Result]) -> None:
            # a long member whose result nobody wants any more is ended; the others have been told by then
            if future.cancelled() and together is not None and all(f.done() for _, f in members):
                together.cancel()

        try:
            if len(members) > 1:
                work = self.together([job for job, _ in members], tell)
                together = asyncio.ensure_future(work)
                for _, future in members:
                    future.add_done_callback(ended)
                await asyncio.wait({together})
                if not together.cancelled():
                    together.result()
        finally:
            kind.under_way -= 1
            for job, future in members:
                if not future.done():
                    kind.under_way += 1
                    self._spawn(self._single(kind, job, future))
            self._fill(kind)

    async def _single(self, kind: _Kind, job: Job, future: asyncio.Future[Result]) -> None:
        attempt = asyncio.ensure_future(self.alone(job))
        future.add_done_callback(lambda done: attempt.cancel() if done.cancelled() else None)
        try:
            result = await attempt
        except asyncio.CancelledError:
            result = NotBegun("stopped")
        except Exception as error:
            if not future.done():
                future.set_exception(error)
            return
        finally:
            kind.under_way -= 1
            self._fill(kind)
        if not future.done():
            kind.learn(result)
            future.set_result(result)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
