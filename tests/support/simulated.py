"""Simulated clusters for tests of single behaviours: a world without faults, and what a test needs of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

from simulation.server import Fate
from simulation.world import CONTEXT, Functions, Node, World

from perdure import keys
from perdure.entering import Submission
from perdure.graph import Graph
from perdure.reading import Answer
from perdure.segment import Segment, decode_segment
from support.doubles import GraphBuilder, Plain, unpacked
from support.virtual import VirtualLoop, run_virtual

Rule = Callable[[str, str, str], Fate | None]


class Bed(World):
    """``rules`` decide on requests, the newest first; what none decides takes a millisecond each way."""

    def __init__(self, loop: VirtualLoop, functions: Functions) -> None:
        self.rules: list[Rule] = []
        super().__init__(loop, functions, self._decide, random.Random(1))

    def _decide(self, client: str, operation: str, key: str) -> Fate:
        for rule in reversed(self.rules):
            fate = rule(client, operation, key)
            if fate is not None:
                return fate
        return Fate(there=0.001, back=0.001)

    def keys(self, prefix: str) -> list[str]:
        return sorted(k for k in self.server.data if k.startswith(prefix))

    def segments(self, chain: str) -> list[Segment]:
        found = self.keys(keys.segments(chain))
        return [decode_segment(self.server.data[k], k, keys.segment_number(k) or 0) for k in found]

    def pages(self, node: Node) -> list[Segment]:
        return self.segments(keys.coordinator_chain(node.coordinator.id))


FUNCTIONS: Functions = {
    "one": lambda: 1,
    "add": lambda a, b: a + b,
    "inc": lambda n: n + 1,
    "list": lambda *values: list(values),
}


def clusters(
    checked: bool = True, /, **functions: Callable[..., Any]
) -> Callable[[Callable[[Bed], Awaitable[None]]], Callable[[], None]]:
    """A test over simulated clusters: ``@clusters(boom=…) async def test_…(bed): …``.

    ``checked``: the oracle has the last word; not where a test damages what it knows of.
    """

    def decorate(test: Callable[[Bed], Awaitable[None]]) -> Callable[[], None]:
        def run() -> None:
            async def main(loop: VirtualLoop) -> None:
                bed = Bed(loop, FUNCTIONS | functions)
                await test(bed)
                if checked:
                    bed.check()
                for node in bed.nodes.values():
                    node.kill()

            run_virtual(main)

        run.__name__ = test.__name__
        return run

    return decorate


def chain_of(count: int, *, first: str = "one", **options: Any) -> Graph:
    b = GraphBuilder()
    last = b.task(first, **options)
    for _ in range(count - 1):
        last = b.task("inc", last)
    return b.graph(last)


def sleeping(seconds: float) -> Graph:
    b = GraphBuilder()
    return b.graph(b.task("list", b.task("sleep", kind="timer", seconds=seconds)))


async def submit(node: Node, workflow_id: str, graph: Graph, client: str = "", **options: Any) -> Any:
    submission = Submission(workflow_id, client or f"client of {workflow_id}", graph, **options)
    return await node.call(node.coordinator.submit(submission, CONTEXT))


async def resume(node: Node, workflow_id: str, **options: Any) -> Any:
    return await node.call(node.coordinator.resume(workflow_id, CONTEXT, **options))


async def value(node: Node, met: Any) -> Any:
    answer: Answer = await node.outcome(met)
    assert answer.payload is not None, answer
    return unpacked(answer.payload)


async def until(condition: Callable[[], bool], *, within: float = 100.0) -> None:
    async with asyncio.timeout(within):
        while not condition():
            await asyncio.sleep(0.01)


__all__ = [
    "CONTEXT",
    "Bed",
    "Fate",
    "GraphBuilder",
    "Plain",
    "chain_of",
    "clusters",
    "resume",
    "sleeping",
    "submit",
    "until",
    "value",
]
