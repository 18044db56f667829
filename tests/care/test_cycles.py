"""The engine's side of collection: cycles are noticed, held by what is under way, and acknowledged (B1, B2)."""

from __future__ import annotations

import asyncio
from typing import Any

from support.caring import acknowledged, blobs, collect, cycle
from support.simulated import Bed, Fate, GraphBuilder, chain_of, clusters, submit, until, value

from perdure import entering
from perdure import records as r
from perdure.graph import Payload
from perdure.naming import blobs_of, renamed

LARGE = "x" * 1000


async def slow(text: str = LARGE) -> str:
    await asyncio.sleep(30)
    return text


def one(name: str, *args: Any, kind: str = "task") -> Any:
    b = GraphBuilder()
    return b.graph(b.task(name, *args, kind=kind))


@clusters(slow=slow, large=lambda: LARGE)
async def test_b2_a_cycle_is_acknowledged_when_what_began_before_it_is_committed(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    met = await submit(a, "x", one("slow"))
    await asyncio.sleep(1)
    cycle(bed, 1)
    await asyncio.sleep(12)
    assert acknowledged(bed, a) == 0
    await a.outcome(await submit(a, "y", one("large")))
    assert [name.split("/")[1] for name in blobs(bed)] == ["1"]
    assert acknowledged(bed, a) == 0
    await a.outcome(met)
    await asyncio.sleep(1)
    assert acknowledged(bed, a) == 1
    assert sorted(name.split("/")[1] for name in blobs(bed)) == ["0", "1"]


@clusters(slow=slow)
async def test_b2_an_append_whose_answer_never_came_holds_the_cycle(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    met = await submit(a, "x", one("slow"))
    await asyncio.sleep(1)
    cycle(bed, 1)
    lost: list[float] = []

    def rule(client: str, operation: str, key: str) -> Fate | None:
        if operation == "create" and key.startswith("w/x/j/") and len(lost) < 20:
            lost.append(bed.loop.now)
            return Fate(answered=False, back=1.0, lands=None)
        return None

    bed.rules.append(rule)
    await until(lambda: len(lost) >= 8, within=200)
    assert acknowledged(bed, a) == 0
    await a.outcome(met)
    await asyncio.sleep(1)
    assert acknowledged(bed, a) == 1


@clusters(slow=slow)
async def test_b2_a_fenced_workflow_holds_no_cycle(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    await submit(a, "x", one("slow"))
    await asyncio.sleep(1)
    cycle(bed, 1)
    await asyncio.sleep(8)
    assert acknowledged(bed, a) == 0
    drive = a.coordinator.drives["x"]
    drive.log.chain.lost()
    drive.log.lost()
    await until(lambda: acknowledged(bed, a) == 1, within=10)


@clusters(signal=slow)
async def test_b2_a_wait_for_an_event_holds_no_cycle_and_its_value_is_copied_into_the_new_one(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    met = await submit(a, "x", one("signal", kind="event"))
    await asyncio.sleep(1)
    cycle(bed, 1)
    await until(lambda: acknowledged(bed, a) == 1, within=12)
    cycle(bed, 2)
    answer = await a.outcome(met)
    assert answer.payload is not None
    assert answer.payload.blob is not None
    assert answer.payload.blob.startswith("blobs/2/")
    assert bed.server.data[answer.payload.blob]


@clusters(signal=slow)
async def test_b1_an_event_whose_blob_was_collected_before_it_was_named_is_polled_again(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    met = await submit(a, "x", one("signal", kind="event"))
    await asyncio.sleep(1)
    cycle(bed, 1)
    gone: list[str] = []

    def rule(client: str, operation: str, key: str) -> Fate | None:
        if operation == "put" and key.startswith("blobs/0/") and not gone:
            gone.append(key)
            bed.server._later(0.0015, lambda: bed.server._apply("collector", "delete", key, None))
        return None

    bed.rules.append(rule)
    answer = await a.outcome(met)
    assert gone
    assert answer.payload is not None
    assert answer.payload.blob is not None
    assert answer.payload.blob.startswith("blobs/1/")


@clusters(large=lambda: LARGE)
async def test_b2_what_a_submission_has_stored_is_held_until_it_is_decided(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    ticket = a.coordinator.cycles.begin()
    cycle(bed, 1)
    await asyncio.sleep(12)
    assert acknowledged(bed, a) == 0
    assert a.coordinator.cycles.newest == 1
    ticket.leave()
    ticket.leave()
    await until(lambda: acknowledged(bed, a) == 1, within=10)


@clusters()
async def test_b1_a_large_graph_is_stored_under_the_cycle_that_its_submission_holds(bed: Bed) -> None:
    before = entering.GRAPH_INLINE
    entering.GRAPH_INLINE = 100
    try:
        a = await bed.node("A").start()
        cycle(bed, 1)
        await until(lambda: acknowledged(bed, a) == 1, within=12)
        await value(a, await submit(a, "x", chain_of(5)))
    finally:
        entering.GRAPH_INLINE = before
    assert [name.split("/")[1] for name in blobs(bed)] == ["1"]
    await collect(bed)
    assert len(blobs(bed)) == 1


@clusters()
async def test_a_coordinator_that_starts_in_a_cycle_acknowledges_it(bed: Bed) -> None:
    cycle(bed, 1)
    cycle(bed, 2)
    a = await bed.node("A").start()
    await until(lambda: acknowledged(bed, a) == 2, within=10)


def test_all_blobs_of_a_record_are_found_and_renamed() -> None:
    inner = Payload(None, "blobs/3/c", 9)
    b = GraphBuilder()
    b.objects.append(Payload(None, "blobs/3/d", 9, (inner,)))
    graph = b.graph(b.task("f", 1, retry_exceptions=Payload(None, "blobs/3/e", 9)))
    records: list[r.Record] = [
        r.Created("w", "c", 0.0, graph, "blobs/3/a"),
        r.TaskDone(0, Payload(b"x", None, 1, (Payload(None, "blobs/4/b", 9, (inner,)),), "v")),
        r.TaskDone(1, Payload(None, "volatile/z", 9)),
    ]
    names = list(blobs_of(records))
    assert sorted(set(names)) == ["blobs/3/a", "blobs/3/c", "blobs/3/d", "blobs/3/e", "blobs/4/b"]
    other = renamed(records, {name: name.replace("blobs/", "blobs/1") for name in names})
    assert sorted(set(blobs_of(other))) == sorted(n.replace("blobs/", "blobs/1") for n in set(names))
    assert renamed(other, {n: n.replace("blobs/1", "blobs/") for n in blobs_of(other)}) == records
