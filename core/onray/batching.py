"""Tiny tasks travel together: starting a Ray task costs more than a tiny one runs.

Owns which attempts share a Ray task. Only functions whose measured duration is a few milliseconds are gathered, so that
one result hardly waits for another. Nothing waits for company: while fewer Ray tasks of a kind are under way than can
run at once, an attempt begins at once; what would queue is gathered, so batches grow with the backlog, like the
journal's segments. A batch stays open for a moment: before its Ray task ends, the worker asks for more, and what has
become ready by then (the next link of a chain, the backlog) goes to it at the price of a call instead of a Ray task.
Where one member takes long after all, the worker reports the others at once (`worker_batch`). Each member is recorded,
and fails, on its own.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from perdure.runner import Job
from perdure.scheduler import NotBegun, Raised, Result, Value

TINY_SECONDS: Final = 0.005
"""Functions that take longer on average always go alone."""
BATCH_SECONDS: Final = 0.010
"""How long a round of a batch is meant to run."""
LARGEST: Final = 64
OPEN_SECONDS: Final = 0.25
"""How long one Ray task asks for more: others that wait for its CPU wait no longer."""
LINGER_SECONDS: Final = 0.010
"""How long it is kept waiting for an answer while there is nothing to do: about a commit on a local disk."""
_WARM: Final = 3
_DOWN: Final = 0.5
_UP: Final = 0.05
"""How fast the estimate follows: a busy machine makes tiny tasks look long now and then, a long one stays long."""

Member: TypeAlias = tuple[Job, asyncio.Future[Result]]
More: TypeAlias = Callable[[], Awaitable[list[Job]]]
Tell: TypeAlias = Callable[[int, Result | None], None]


@dataclass
class _Kind:
    """Attempts that may share a Ray task: one function, equal options, one environment."""

    under_way: int = 0
    queue: deque[Member] = field(default_factory=deque)
    idle: deque[_Batch] = field(default_factory=deque)
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

    def take(self, free: int) -> list[Member]:
        """The next ones for one of ``free`` Ray tasks: a fair share, no more than a batch should run."""
        size = max(1, min(LARGEST, int(BATCH_SECONDS / max(self.seconds, 1e-4)))) if self.tiny else 1
        share = -(-len(self.queue) // max(1, free))
        taken = [self.queue.popleft() for _ in range(min(size, share))]
        return [(job, future) for job, future in taken if not future.done()]


@dataclass(eq=False)
class _Batch:
    """One Ray task: its members, in the order in which it got them. ``heard``: indices of those that its worker is done
    with, one way or the other. ``waiting``: its worker asks for more."""

    members: list[Member]
    began: float
    heard: set[int] = field(default_factory=set)
    waiting: asyncio.Future[list[Member]] | None = None
    over: bool = False

    def give(self, members: list[Member]) -> None:
        """Answer the worker that waits."""
        assert self.waiting is not None
        if not self.waiting.done():
            self.waiting.set_result(members)

    @property
    def unwanted(self) -> bool:
        """Whether its worker is busy with nothing but what has been cancelled."""
        open_ = [future for i, (_, future) in enumerate(self.members) if i not in self.heard]
        return bool(open_) and all(future.done() for future in open_) and any(future.cancelled() for future in open_)


class Batches:
    """Runs jobs alone or together.

    ``alone`` runs one. ``together`` runs several of one kind, and what ``more`` gives it when it has told those; it
    calls ``tell(index, result)`` for each, counted from its first job, as it becomes known. None: it did not begin, and
    runs alone at once; what is never told runs alone in the end. ``width`` tells how many Ray tasks can run at once.
    """

    def __init__(
        self,
        alone: Callable[[Job], Awaitable[Result]],
        together: Callable[[list[Job], Tell, More], Awaitable[None]],
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
        if not kind.tiny:
            kind.under_way += 1
            try:
                result = await self.alone(job)
                kind.learn(result)
                return result
            finally:
                kind.under_way -= 1
                self._fill(kind)
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        if kind.idle:
            kind.idle.popleft().give([(job, future)])
        elif kind.under_way < self.width():
            self._begin(kind, [(job, future)])
        else:
            kind.queue.append((job, future))
        return await future

    def _fill(self, kind: _Kind) -> None:
        width = self.width()
        while kind.queue and kind.under_way < width:
            members = kind.take(width - kind.under_way)
            if not kind.tiny:
                self._go_alone(kind, members)
            elif members:
                self._begin(kind, members)

    def _begin(self, kind: _Kind, members: list[Member]) -> None:
        kind.under_way += 1
        self._spawn(self._batch(kind, _Batch(members, asyncio.get_running_loop().time())))

    async def _batch(self, kind: _Kind, batch: _Batch) -> None:
        together: asyncio.Future[None] | None = None

        def tell(index: int, result: Result | None) -> None:
            job, future = batch.members[index]
            if index in batch.heard:
                return
            batch.heard.add(index)
            if result is None:
                self._go_alone(kind, [(job, future)])
            elif not future.done():
                kind.learn(result)
                future.set_result(result)

        def ended(_: object) -> None:
            # a long member whose result nobody wants any more is ended; the others have been told by then
            if together is not None and batch.unwanted:
                together.cancel()

        async def more() -> list[Job]:
            new = await self._more(kind, batch)
            if batch.over:  # its worker died in the moment when it was given these
                self._go_alone(kind, new)
                return []
            batch.members += new
            for _, future in new:
                future.add_done_callback(ended)
            return [job for job, _ in new]

        try:
            work = self.together([job for job, _ in batch.members], tell, more)
            together = asyncio.ensure_future(work)
            for _, future in batch.members:
                future.add_done_callback(ended)
            await asyncio.wait({together})
            if not together.cancelled():
                together.result()
        finally:
            kind.under_way -= 1
            batch.over = True
            if batch.waiting is not None:
                self._stop_waiting(kind, batch)
            self._go_alone(kind, [member for i, member in enumerate(batch.members) if i not in batch.heard])
            self._fill(kind)

    def _go_alone(self, kind: _Kind, members: list[Member]) -> None:
        for job, future in members:
            if not future.done():
                kind.under_way += 1
                self._spawn(self._single(kind, job, future))

    async def _more(self, kind: _Kind, batch: _Batch) -> list[Member]:
        """What the worker of a batch does next; nothing: its Ray task ends."""
        loop = asyncio.get_running_loop()
        if batch.waiting is not None:  # Ray repeats a call; what the first one is given runs alone in the end
            return []
        if not kind.tiny or loop.time() - batch.began > OPEN_SECONDS:
            return []
        while kind.queue:
            if members := kind.take(kind.under_way):
                return members
        batch.waiting = loop.create_future()
        kind.idle.append(batch)
        timer = loop.call_later(LINGER_SECONDS, self._stop_waiting, kind, batch)
        try:
            return await batch.waiting
        finally:
            timer.cancel()
            if batch in kind.idle:  # this call itself is cancelled: nothing is given to it any more
                kind.idle.remove(batch)
            batch.waiting = None

    @staticmethod
    def _stop_waiting(kind: _Kind, batch: _Batch) -> None:
        if batch in kind.idle:
            kind.idle.remove(batch)
        batch.give([])

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
