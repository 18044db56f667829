"""Group commit: what rides together, what waits, and what a failing store does to it."""

from __future__ import annotations

import asyncio

import pytest
from support.simulated import Bed, Fate, GraphBuilder, chain_of, clusters, sleeping, submit, until, value

from perdure import journal as journal_module
from perdure import records as r
from perdure.chain import APPEND


@clusters()
async def test_j4_what_is_ready_while_a_segment_is_in_flight_rides_in_the_next_one(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    graph = b.graph(b.task("list", *[b.task("one") for _ in range(200)]))
    assert await value(a, await submit(a, "x", graph)) == [1] * 200
    segments = bed.segments("w/x/")
    assert len(segments) <= 4
    assert sum(isinstance(x, r.TaskDone) for s in segments for x in s.records) == 201


@clusters()
async def test_j4_workflows_share_one_flush(bed: Bed) -> None:
    a = await bed.node("A").start()
    batches: list[int] = []
    whole = a.store.create_many_once

    async def counted(items: object) -> object:
        batches.append(len(items))  # type: ignore[arg-type]
        return await whole(items)  # type: ignore[arg-type]

    a.store.create_many_once = counted  # type: ignore[method-assign, assignment]
    met = await asyncio.gather(*(submit(a, f"w{n}", chain_of(1)) for n in range(50)))
    await asyncio.gather(*(value(a, m) for m in met))
    assert len(batches) < 20
    assert sum(batches) == 50


@clusters()
async def test_j2_a_slow_answer_holds_back_the_next_segment_of_its_chain_only(bed: Bed) -> None:
    a = await bed.node("A").start()
    bed.rules.append(
        lambda c, o, k: Fate(there=0.001, back=5.0) if o == "create" and k == f"w/slow/j/{1:020d}" else None
    )
    slow = await submit(a, "slow", chain_of(3))
    quick = await submit(a, "quick", chain_of(3))
    began = bed.loop.now
    # one flush waits for its slowest key; the next flush does not wait for that flush
    assert await value(a, await submit(a, "later", chain_of(3))) == 3
    assert bed.loop.now - began < 1.0
    assert len(bed.segments("w/slow/")) == 2
    assert await value(a, slow) == 3
    assert await value(a, quick) == 3


@clusters()
async def test_a_full_disk_keeps_the_records_and_starts_no_dependents(bed: Bed) -> None:
    a = await bed.node("A").start()
    full = {"on": False}
    bed.rules.append(
        lambda c, o, k: Fate(refused=True) if full["on"] and o == "create" and k.startswith("w/x/j") else None
    )
    met = await submit(a, "x", chain_of(3, first="one"))
    full["on"] = True
    await asyncio.sleep(5.0)
    assert met.log.problem is not None
    assert "No space left" in met.log.problem
    assert len(bed.calls) == 1, "the next task waits for the record of the first"
    full["on"] = False
    assert await value(a, met) == 3
    assert met.log.problem is None
    assert all(count == 1 for count in bed.calls.values())


@clusters()
async def test_j13_a_lost_answer_is_asked_for_with_the_same_bytes(bed: Bed) -> None:
    a = await bed.node("A").start()
    lost: list[str] = []

    def once(client: str, operation: str, key: str) -> Fate | None:
        if operation == "create" and key.startswith("w/x/j") and key not in lost:
            lost.append(key)
            return Fate(there=0.001, back=0.5, answered=False, lands=0.0)
        return None

    bed.rules.append(once)
    assert await value(a, await submit(a, "x", chain_of(4))) == 4
    assert len(lost) == len(bed.segments("w/x/")) >= 4
    assert all(count == 1 for count in bed.calls.values())


@clusters()
async def test_one_group_of_records_is_never_split_over_two_segments(bed: Bed) -> None:
    cap, journal_module.SEGMENT_CAP = journal_module.SEGMENT_CAP, 100
    try:
        a = await bed.node("A").start()
        b = GraphBuilder()
        met = await submit(a, "x", b.graph(b.task("list", *[b.task("one") for _ in range(30)])))
        assert await value(a, met) == [1] * 30
        segments = bed.segments("w/x/")
        assert len(segments) > 5
        assert [type(x) for x in segments[-1].records if not isinstance(x, r.Base)] == [r.TaskDone, r.Succeeded]
    finally:
        journal_module.SEGMENT_CAP = cap


@clusters()
async def test_one_workflows_trouble_does_not_stop_the_others(bed: Bed) -> None:
    a = await bed.node("A").start()
    bad = await submit(a, "bad", sleeping(1.0))
    good = await submit(a, "good", sleeping(1.0))
    errors: list[BaseException] = []
    a.coordinator.journal.on_error = errors.append

    def broken(records: object, number: int) -> None:
        raise RuntimeError("a bug in one workflow")

    bad.log.committed = broken
    assert await value(a, good) == [None]
    assert errors


@clusters()
async def test_a_long_workflow_is_trimmed_while_it_runs(bed: Bed) -> None:
    a = await bed.node("A").start()
    assert await value(a, await submit(a, "x", chain_of(200))) == 200
    await until(lambda: len(bed.keys("w/x/j/")) < 60)
    state = await a.call(a.coordinator.read("x"))
    assert state.done == 200
    assert all(s.header.kind == APPEND for s in bed.segments("w/x/"))


@pytest.mark.parametrize("count", [1, 50])
def test_a_fan_out_needs_few_writes(count: int) -> None:
    @clusters()
    async def run(bed: Bed) -> None:
        a = await bed.node("A").start()
        before = len(bed.keys(""))
        b = GraphBuilder()
        graph = b.graph(b.task("list", *[b.task("one") for _ in range(count * 20)]))
        await value(a, await submit(a, "x", graph))
        assert len(bed.keys("")) - before <= max(4, 0.15 * count * 20)

    run()
