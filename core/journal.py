"""Group commit: the next segments of all workflows that have something to say, in one flush (J4).

Owns when segments are sent, and what happens when that fails; what stands in them is decided elsewhere. While a
chain's segment is in flight its records gather for the next one (J2), so the slower the store, the larger the
groups. A failure that is known to have stored nothing (a full disk) is repeated with the same bytes until it
works: the records stay in memory, no dependent starts, and `problem` says why.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Protocol

from perdure import records as r
from perdure.chain import SEGMENT_CAP, Chain, ChainStore, Prepared
from perdure.errors import AlreadyExists, StoreError
from perdure.records import encode_record

_FIRST_DELAY = 0.5
_LONGEST_DELAY = 10.0


class JournalStore(ChainStore, Protocol):
    async def create_many_once(self, items: Sequence[tuple[str, bytes, bytes]]) -> list[StoreError | None]:
        """`create_once` for many (key, data, token); each succeeds or fails alone."""
        ...


class Log:
    """The records of one workflow on their way to its chain."""

    __slots__ = ("_waiting", "appended", "chain", "committed", "lost", "pending", "problem", "sizes", "upkeep")

    def __init__(
        self,
        chain: Chain,
        committed: Callable[[tuple[r.Record, ...], int], None],
        lost: Callable[[], None],
    ) -> None:
        self.chain = chain
        self.committed = committed
        self.lost = lost
        self.pending: list[tuple[r.Record, ...]] = []
        self.sizes: list[int] = []
        self.problem: str | None = None
        self.upkeep: asyncio.Task[None] | None = None
        self.appended = 0  # groups of records, ever
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()

    def once_decided(self, call: Callable[[], None]) -> None:
        """``call()`` as soon as all that was appended so far is committed, or never will be."""
        if self.chain.fenced or (self.chain.in_flight is None and not self.pending):
            call()
        else:
            self._waiting.append((self.appended, call))

    def decide(self) -> None:
        """Nothing is in flight: what is not pending is committed, or given up."""
        decided = self.appended - len(self.pending)
        while self._waiting and self._waiting[0][0] <= decided:
            self._waiting.popleft()[1]()


class Journal:
    """Sends the segments of all logs of one coordinator.

    ``on_error`` gets what failed in upkeep (bases, trims); such failures cost nothing but space.
    """

    def __init__(self, store: JournalStore, on_error: Callable[[BaseException], None]) -> None:
        self.store = store
        self.on_error = on_error
        self.segments = 0
        self._dirty: dict[Log, None] = {}
        self._wake = asyncio.Event()
        self._tasks: dict[asyncio.Task[None], None] = {}  # a set would be cancelled in no certain order
        self._closed = False

    def append(self, log: Log, records: tuple[r.Record, ...]) -> None:
        """Put these records into the log's next segment, together."""
        log.pending.append(records)
        log.appended += 1
        if log.chain.in_flight is None:
            self._dirty[log] = None
            self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            await asyncio.sleep(0)  # what arrives in the same turn of the loop rides along
            self._wake.clear()
            logs, self._dirty = list(self._dirty), {}
            batch = [(log, *self._take(log)) for log in logs if log.pending and not log.chain.fenced]
            if batch:
                self._spawn(self._flush(batch))

    def _take(self, log: Log) -> tuple[Prepared, tuple[r.Record, ...]]:
        taken: list[r.Record] = []
        size, count = 0, 0
        for group in log.pending:
            if len(log.pending) > 1 and count:
                size += sum(map(_size, group))
                if size > SEGMENT_CAP:
                    break
            taken.extend(group)
            count += 1
        del log.pending[:count]
        return log.chain.prepare(taken), tuple(taken)

    async def _flush(self, batch: list[tuple[Log, Prepared, tuple[r.Record, ...]]]) -> None:
        try:
            results = await self.store.create_many_once([(p.key, p.data, p.token) for _, p, _ in batch])
        except StoreError as error:
            results = [error] * len(batch)
        for (log, sent, records), result in zip(batch, results, strict=True):
            try:
                if result is None:
                    self._committed(log, records)
                elif isinstance(result, AlreadyExists):
                    self._lost(log)
                else:
                    self._spawn(self._insist(log, sent, records, result))
            except Exception as error:  # one workflow's trouble is not the others'
                self.on_error(error)

    def _committed(self, log: Log, records: tuple[r.Record, ...]) -> None:
        self.segments += 1
        log.problem = None
        log.chain.committed()
        log.decide()
        log.committed(records, log.chain.number)
        if log.pending:
            self._dirty[log] = None
            self._wake.set()
        if log.upkeep is None and (log.chain.wants_base or log.chain.wants_trim):
            log.upkeep = self._spawn(self._upkeep(log))

    def _lost(self, log: Log) -> None:
        log.chain.lost()
        log.pending.clear()
        log.lost()
        log.decide()

    async def _insist(self, log: Log, sent: Prepared, records: tuple[r.Record, ...], error: StoreError) -> None:
        """The same bytes again, until it is known."""
        delay = _FIRST_DELAY
        while True:
            log.problem = str(error)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)
            try:
                await self.store.create_once(sent.key, sent.data, sent.token)
            except AlreadyExists:
                self._lost(log)
                return
            except StoreError as again:
                error = again
                continue
            self._committed(log, records)
            return

    async def _upkeep(self, log: Log) -> None:
        try:
            if log.chain.wants_base:
                await log.chain.write_base()
            if log.chain.wants_trim:
                await log.chain.trim()
        except StoreError as error:
            self.on_error(error)
        finally:
            log.upkeep = None

    async def idle(self, log: Log) -> None:
        """Wait until nothing of this log is waiting to be sent, in flight or in upkeep."""
        chain = log.chain
        while chain.in_flight or log.upkeep or (log.pending and not chain.fenced):  # noqa: ASYNC110 (only at the end)
            await asyncio.sleep(0.005)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.on_error(error)

    def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()


def _size(record: r.Record) -> int:
    return len(encode_record(record))
