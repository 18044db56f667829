"""Store care over simulated clusters: collectors and copiers that die at a chosen write."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simulation.server import Fate
from simulation.world import Node

from perdure import keys
from perdure.care.collecting import Collector, Item, Options, Report
from perdure.care.opening import Hand
from perdure.segment import NO_TOKEN, Header, encode_body
from support.simulated import Bed
from support.virtual import Dead

WRITES = ("create", "put", "delete")


def cycle(bed: Bed, number: int) -> None:
    """A collector begins a cycle, and does nothing more."""
    data = encode_body(Header("cycle", -1, -1, ""), b"", token=bytes(16), prev=NO_TOKEN)
    bed.server._apply("collector", "create", keys.cycle(number), data)


def blobs(bed: Bed) -> list[str]:
    return bed.keys("blobs/")


def acknowledged(bed: Bed, node: Node) -> int:
    pages = [record for segment in bed.pages(node) for record in segment.records if hasattr(record, "cycle")]
    return pages[-1].cycle  # type: ignore[union-attr]


async def collect(bed: Bed, name: str = "gc", *, told: list[Item] | None = None, **options: Any) -> Report:
    """One whole collection by a process of its own."""
    node = bed.node(name)
    return await in_process(node, lambda: run_collection(node, told if told is not None else [], Options(**options)))


async def run_collection(node: Node, told: list[Item], options: Options) -> Report:
    hand = Hand(node.coordinator)
    try:
        return await Collector(hand, options, told.append).run()
    finally:
        await hand.aclose()


async def in_process(node: Node, make: Callable[[], Any]) -> Any:
    """Run in the node's process, which is gone afterwards."""
    try:
        return await node.call(make())
    finally:
        node.kill()


def dies_at(bed: Bed, node: Node, write: int, *, after: bool) -> list[str]:
    """Kill the node at its write number ``write``, before or after it takes effect. The writes it has sent."""
    sent: list[str] = []

    def rule(client: str, operation: str, key: str) -> Fate | None:
        if client != node.name or operation not in WRITES:
            return None
        sent.append(f"{operation} {key}")
        if len(sent) - 1 != write:
            return None
        if after:
            bed.server._later(0.0015, node.kill)
            return Fate(there=0.001, back=1.0)
        node.kill()
        return Fate(answered=False, lands=None)

    bed.rules.append(rule)
    return sent


__all__ = ["Dead", "acknowledged", "blobs", "collect", "cycle", "dies_at", "in_process", "run_collection"]
