"""Stores of any kind with workflows in them, made by the engine itself in this process, without Ray."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import blake3

from perdure import keys
from perdure.care.opening import opened
from perdure.clock import SystemClock, host_facts, provably_gone
from perdure.coordinator import Coordinator
from perdure.drive import Drive
from perdure.entering import Submission
from perdure.graph import Graph, Payload
from perdure.guarded_store import GuardedStore
from perdure.reading import Answer
from perdure.runner import Context, Job
from perdure.scheduler import Result, Value
from support.doubles import GraphBuilder, PlainRunner, unpacked

LARGE = "x" * 2000


class BlobRunner(PlainRunner):
    """Values from 500 bytes on are blobs, named as workers name them."""

    store: GuardedStore

    async def run(self, job: Job) -> Result:
        tops = tuple([(where, await self._inline(payload)) for where, payload in job.tops])
        result = await super().run(_with(job, tops))
        if isinstance(result, Value) and result.payload.data is not None and len(result.payload.data) >= 500:
            data = result.payload.data
            name = keys.blob(job.cycle, blake3.blake3(data).hexdigest())
            await self.store.put(name, data)
            return Value(Payload(None, name, len(data)), result.started, result.ended)
        return result

    async def _inline(self, payload: Payload) -> Payload:
        if payload.blob is None:
            return payload
        return Payload(bytes(await self.store.get(payload.blob)), None, payload.size, (), payload.wraps)

    async def gone(self, host: dict[str, str]) -> bool:
        return provably_gone(host)


_NOBODY = "4194305"
"""No process can have this id."""


def _with(job: Job, tops: Any) -> Job:
    values = {name: getattr(job, name) for name in job.__slots__}
    return Job(**values | {"tops": tops})


async def _never() -> None:
    await asyncio.sleep(3600)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "large": lambda n: f"{n}{LARGE}",
    "length": lambda *values: sum(map(len, values)),
    "hang": _never,
    "go": lambda: "now",
}


@asynccontextmanager
async def engine(url: str, *, hangs: bool = False) -> AsyncIterator[Coordinator]:
    """A coordinator on the store; it ends like a killed process where it hangs, else cleanly."""
    facts = host_facts() | ({"pid": _NOBODY} if hangs else {})
    async with opened(url, make=True) as store:
        runner = BlobRunner(FUNCTIONS if hangs else FUNCTIONS | {"hang": FUNCTIONS["go"]})
        runner.store = store
        rng = random.Random(os.urandom(8))
        coordinator = Coordinator(store, runner, SystemClock(), rng, lease_seconds=2.0, host=facts)
        await coordinator.start()
        try:
            yield coordinator
        finally:
            if hangs:
                coordinator._close()
                await asyncio.sleep(0)
            else:
                await coordinator.stop()


def graph(*numbers: int, last: str = "go") -> Graph:
    b = GraphBuilder()
    return b.graph(b.task("length", *[b.task("large", n) for n in numbers], b.task(last)))


async def run(coordinator: Coordinator, workflow_id: str, *numbers: int) -> Any:
    met = await coordinator.submit(Submission(workflow_id, workflow_id, graph(*numbers)), Context())
    return await value(coordinator, met)


async def value(coordinator: Coordinator, met: Drive | Answer) -> Any:
    answer = met if isinstance(met, Answer) else await coordinator.outcome(met)
    assert answer.payload is not None, answer
    return unpacked(answer.payload)


def right(*numbers: int) -> int:
    return sum(len(f"{n}{LARGE}") for n in numbers) + len("now")


async def fill(url: str) -> None:
    """``done`` and ``twin`` are finished and share a large value; ``open`` is to be resumed."""
    async with engine(url) as coordinator:
        await run(coordinator, "done", 1, 2)
        await run(coordinator, "twin", 2, 3)
    async with engine(url, hangs=True) as coordinator:
        await coordinator.submit(Submission("open", "open", graph(4, 5, last="hang")), Context())
        while coordinator.drives["open"].state.done < 2:
            await asyncio.sleep(0.02)
        await coordinator.journal.idle(coordinator.drives["open"].log)


async def go_on(url: str, workflow_id: str) -> Any:
    """What comes out where the workflow is resumed on this store."""
    async with engine(url) as coordinator:
        return await value(coordinator, await coordinator.resume(workflow_id, Context()))
