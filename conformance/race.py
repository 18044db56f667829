"""Races: many callers, one instant, and the proof that they met.

A race is worth nothing if its callers came one after the other, so entry and exit of every call are
recorded and the overlap is measured. This module judges no result; the cases do.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from perdure.conformance.child import ChildContext, portable
from perdure.conformance.processes import Child

LEAD = 0.004  # seconds between the word and the common instant: enough for a message to reach 8 children


@dataclasses.dataclass(slots=True)
class Attempt:
    """One racer's call. Times are ``time.monotonic`` seconds, one clock for all processes of a machine."""

    child: int
    task: int
    enter: float
    leave: float
    result: Any = None
    error: BaseException | None = None


@dataclasses.dataclass(slots=True)
class Round:
    number: int
    attempts: list[Attempt]

    @property
    def crowd(self) -> int:
        """The largest number of calls that were inside at one instant."""
        edges = sorted([(a.enter, 1) for a in self.attempts] + [(a.leave, -1) for a in self.attempts])
        inside = most = 0
        for _, step in edges:
            inside += step
            most = max(most, inside)
        return most

    @property
    def met(self) -> bool:
        """Half of the racers were inside at once (and at least two)."""
        return self.crowd >= max(2, (len(self.attempts) + 1) // 2)

    def winners(self) -> list[Attempt]:
        return [a for a in self.attempts if a.error is None]

    def timeline(self) -> list[dict[str, Any]]:
        start = min(a.enter for a in self.attempts)
        return [
            {
                "who": f"process {a.child}, task {a.task}",
                "from": round((a.enter - start) * 1e6),
                "to": round((a.leave - start) * 1e6),
                "outcome": "won" if a.error is None else type(a.error).__name__,
            }
            for a in sorted(self.attempts, key=lambda a: (a.child, a.task))
        ]


async def timed(child: int, task: int, function: Callable[..., Any], *args: Any) -> Attempt:
    """Run one call and write down when it was inside and how it ended."""
    enter = time.monotonic()
    try:
        result = await function(*args)
    except Exception as error:
        return Attempt(child, task, enter, time.monotonic(), error=portable(error))
    return Attempt(child, task, enter, time.monotonic(), result=result)


async def racer(c: ChildContext, number: int, url: str, function: Callable[..., Any], instances: int) -> int:
    """The child's side of a race: open, warm up, report ready, then one round per message."""
    stores = [c.open(url) for _ in range(instances)]
    for store in stores:
        async for _ in store.list("warm-up-of-a-racer", limit=1):
            pass
    await c.send("ready")
    while (word := await c.receive()) is not None:
        instant, arguments = word
        await c.at(instant)
        attempts = await asyncio.gather(
            *(timed(number, i, function, stores[i % instances], *args) for i, args in enumerate(arguments))
        )
        await c.send(attempts)
    return c.recorder.count


class Race:
    """A started race: call ``round`` as often as wanted, then ``finish``."""

    def __init__(self, children: list[Child]) -> None:
        self.children = children
        self.rounds: list[Round] = []
        self.calls = 0

    @classmethod
    async def start(cls, children: list[Child], url: str, function: Callable[..., Any], instances: int = 1) -> Race:
        """Every child opens its own store at ``url`` and reports ready; each round then runs
        ``await function(store, *args)`` once per task."""
        for number, child in enumerate(children):
            await child.start(racer, number, url, function, instances)
        for child in children:
            assert await child.message() == "ready"
        return cls(children)

    async def round(self, arguments: Callable[[int, int], tuple[Any, ...]], tasks: int = 1) -> Round:
        """One round; ``arguments(child, task)`` are what that racer's function gets after its store."""
        words = [[arguments(i, k) for k in range(tasks)] for i in range(len(self.children))]
        instant = time.monotonic() + LEAD
        await asyncio.gather(*(c.send((instant, w)) for c, w in zip(self.children, words, strict=True)))
        answers = await asyncio.gather(*(c.message() for c in self.children))
        done = Round(len(self.rounds), [a for answer in answers for a in answer])
        self.rounds.append(done)
        return done

    async def finish(self) -> None:
        for child in self.children:
            await child.send(None)
        for child in self.children:
            self.calls += await child.result()

    def overlap(self, last: int) -> float:
        """The share of the last rounds in which half of the racers were inside at once."""
        rounds = self.rounds[-last:] if last else []
        return sum(r.met for r in rounds) / len(rounds) if rounds else 0.0

    def outcomes(self) -> Iterator[Attempt]:
        for r in self.rounds:
            yield from r.attempts
