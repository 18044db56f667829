"""Collection: what nobody needs goes, what anybody needs stays, whenever whoever dies (B3, B4, L6)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from simulation.world import Node
from support.caring import acknowledged, blobs, collect, dies_at, run_collection
from support.doubles import Ref, packed
from support.simulated import Bed, Fate, GraphBuilder, chain_of, clusters, resume, submit, until, value
from support.virtual import Dead

from perdure import entering
from perdure.care.collecting import Item, Options
from perdure.errors import ClusterError, CorruptedError, FormatError, StoreError
from perdure.graph import Payload
from perdure.segment import VERSION, decode_segment
from perdure.status import WorkflowStatus

LARGE = "x" * 1000


def large(n: int = 0) -> str:
    return f"{n}" + LARGE


async def slow(n: int = 0) -> str:
    await asyncio.sleep(100)
    return large(n)


def some(*numbers: int, first: str = "large") -> Any:
    """A task with a large value for each number, and one that takes them."""
    b = GraphBuilder()
    return b.graph(b.task("length", *[b.task(first, n) for n in numbers]))


FUNCTIONS = {"slow": slow, "large": large, "length": lambda *values: sum(map(len, values))}


async def finished(bed: Bed, name: str, workflow_id: str, *numbers: int) -> Node:
    node = await bed.node(name, blob_from=500).start()
    await node.outcome(await submit(node, workflow_id, some(*numbers)))
    await node.call(node.coordinator.stop())
    node.kill()
    return node


@clusters(**FUNCTIONS)
async def test_b4_blobs_that_no_workflow_names_go_and_the_others_stay(bed: Bed) -> None:
    await finished(bed, "A", "x", 1, 2)
    await finished(bed, "B", "y", 2, 3)
    assert len(blobs(bed)) == 3
    assert (await collect(bed)).counts == {}
    assert len(blobs(bed)) == 3
    told: list[Item] = []
    report = await collect(
        bed, told=told, statuses=frozenset({WorkflowStatus.SUCCESSFUL}), older_than=0.0, dry_run=True
    )
    assert report.counts["workflow"] == 2
    node = await bed.node("D").start()
    await node.call(node.coordinator.delete("x"))
    await node.call(node.coordinator.stop())
    node.kill()
    assert len(blobs(bed)) == 3
    report = await collect(bed, told=told)
    assert report.counts["blob"] == 1
    assert report.sizes["blob"] > 1000
    assert len(blobs(bed)) == 2
    assert [item.reason for item in told if item.kind == "blob"] == ["no workflow names it"]


@clusters(**FUNCTIONS)
async def test_a_store_without_blobs_begins_no_cycle(bed: Bed) -> None:
    a = await bed.node("A").start()
    await value(a, await submit(a, "x", chain_of(3)))
    before = set(bed.server.data)
    report = await collect(bed)
    assert report.cycle == 0
    assert not bed.keys("gc/")
    assert not [k for k in set(bed.server.data) - before if not k.startswith("c/")]


@clusters(**FUNCTIONS)
async def test_b3_a_running_coordinator_is_waited_for_and_what_it_holds_back_stays(bed: Bed) -> None:
    await finished(bed, "A", "x", 1)
    a = await bed.node("B", blob_from=500).start()
    await a.call(a.coordinator.delete("x"))
    met = await submit(a, "y", some(5, first="slow"))
    await asyncio.sleep(1)
    report = await collect(bed, "gc1", wait=20.0)
    assert report.cycle == 0
    assert list(report.holding) == [a.coordinator.id]
    assert "has not acknowledged" in report.holding[a.coordinator.id]
    assert len(blobs(bed)) == 1
    await a.outcome(met)
    await asyncio.sleep(2)
    assert acknowledged(bed, a) == 1
    report = await collect(bed, "gc2", wait=20.0)
    assert report.cycle == 2
    assert not report.holding
    assert report.counts["blob"] == 1


@clusters(**FUNCTIONS)
async def test_l6_a_dead_coordinators_late_append_can_not_name_a_collected_blob(bed: Bed) -> None:
    """Its append is on the way for 300 s. Whoever collects must fence the workflow first."""
    a = await bed.node("A", blob_from=500).start()

    def rule(client: str, operation: str, key: str) -> Fate | None:
        if client == "A" and operation == "create" and key.startswith("w/x/j/") and not key.endswith("0"):
            a.kill()
            return Fate(answered=False, lands=300.0)
        return None

    bed.rules.append(rule)
    with pytest.raises(Dead):
        await a.outcome(await submit(a, "x", some(1)))
    assert len(blobs(bed)) == 1
    report = await collect(bed, wait=100.0)
    assert report.settled == [a.coordinator.id]
    assert not blobs(bed)
    await asyncio.sleep(400)
    b = await bed.node("B", blob_from=500).start()
    assert await value(b, await resume(b, "x")) == 1001


@clusters(**FUNCTIONS)
async def test_l6_a_dead_coordinators_late_created_can_not_name_a_collected_blob(bed: Bed) -> None:
    """It was announced, and its chain is empty."""
    before, entering.GRAPH_INLINE = entering.GRAPH_INLINE, 1
    try:
        a = await bed.node("A").start()

        def rule(client: str, operation: str, key: str) -> Fate | None:
            if client == "A" and operation == "create" and key.startswith("w/"):
                a.kill()
                return Fate(answered=False, lands=300.0)
            return None

        bed.rules.append(rule)
        with pytest.raises(Dead):
            await submit(a, "x", some(1))
    finally:
        entering.GRAPH_INLINE = before
    assert len(blobs(bed)) == 1
    await collect(bed, wait=100.0)
    assert not blobs(bed)
    await asyncio.sleep(400)
    listed = await (await bed.node("C").start()).coordinator.list_all()
    assert listed == {}


@clusters(**FUNCTIONS)
async def test_l6_workflows_of_a_coordinator_that_died_a_moment_ago_are_left_to_its_cluster(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    await a.outcome(await submit(a, "done", some(9)))
    await submit(a, "x", some(1, first="slow"))
    await asyncio.sleep(1)
    a.kill()
    report = await collect(bed, "gc1", wait=5.0)
    assert "left to its own cluster" in report.holding[a.coordinator.id]
    assert len(bed.keys("w/x/j/")) == 1
    report = await collect(bed, "gc2", wait=100.0)
    assert report.settled == [a.coordinator.id]
    assert len(bed.keys("w/x/j/")) == 2


@clusters(**FUNCTIONS)
async def test_l6_a_settlement_is_made_once(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    await a.outcome(await submit(a, "done", some(9)))
    await submit(a, "x", some(1, first="slow"))
    await asyncio.sleep(1)
    a.kill()
    await collect(bed, "gc1", wait=100.0)
    segments = bed.keys("w/")
    for n in range(3):
        assert not (await collect(bed, f"more{n}", wait=100.0)).holding
    assert bed.keys("w/") == segments


@clusters(**FUNCTIONS)
async def test_a_clean_end_needs_no_settlement(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    await a.outcome(await submit(a, "done", some(9)))
    await submit(a, "x", some(1, first="slow"))
    await asyncio.sleep(1)
    await a.call(a.coordinator.stop())
    a.kill()
    segments = bed.keys("w/")
    report = await collect(bed)
    assert (report.settled, report.holding) == ([], {})
    assert bed.keys("w/") == segments


@clusters(**FUNCTIONS)
async def test_b4_a_chain_that_can_not_be_read_aborts_before_any_blob_goes(bed: Bed) -> None:
    await finished(bed, "A", "x", 1)
    await finished(bed, "B", "y", 2)
    first = bed.keys("w/y/j/")[0]
    damaged = bytearray(bed.server.data[first])
    damaged[-1] ^= 1
    bed.server.data[first] = bytes(damaged)
    with pytest.raises(CorruptedError, match="perdure verify"):
        await collect(bed)
    assert len(blobs(bed)) == 2


@clusters(**FUNCTIONS)
async def test_j8_a_collector_deletes_nothing_beside_a_newer_format(bed: Bed) -> None:
    await finished(bed, "A", "x", 1)
    last = bed.keys("w/x/j/")[-1]
    newer = bytearray(bed.server.data[last])
    newer[4:6] = (VERSION + 1).to_bytes(2, "little")
    bed.server.data[last] = bytes(newer)
    with pytest.raises(FormatError, match="deletes nothing"):
        await collect(bed)
    assert len(blobs(bed)) == 1


@clusters(**FUNCTIONS)
async def test_a_dry_run_writes_nothing_and_says_what_would_go(bed: Bed) -> None:
    await finished(bed, "A", "x", 1)
    a = await bed.node("B", blob_from=500).start()
    await a.call(a.coordinator.delete("x"))
    await a.outcome(await submit(a, "y", some(2)))
    bed.server._apply("other", "put", "blobs/0/left", b"1234")
    before = dict(bed.server.data)
    told: list[Item] = []
    report = await collect(bed, told=told, dry_run=True)
    assert {k: v for k, v in bed.server.data.items() if not k.startswith("c/")} == {
        k: v for k, v in before.items() if not k.startswith("c/")
    }
    assert not any(item.certain for item in told)
    assert report.counts["blob"] == 2


async def _doomed(bed: Bed) -> None:
    """Two workflows that stay, one that is deleted; a coordinator that died with one open."""
    await finished(bed, "A", "keep", 1, 2)
    await finished(bed, "B", "drop", 2, 3)
    dead = await bed.node("dead", blob_from=500).start()
    await submit(dead, "open", some(7, first="slow"))
    await asyncio.sleep(1)
    dead.kill()
    await asyncio.sleep(500)


def _kind(bed: Bed, key: str) -> str:
    return decode_segment(bed.server.data[key], key).header.kind


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_collector_killed_at_any_write_leaves_a_store_that_the_next_one_cleans(after: bool) -> None:
    def run(write: int) -> int:
        sent: list[str] = []

        @clusters(**FUNCTIONS)
        async def one(bed: Bed) -> None:
            nonlocal sent
            await _doomed(bed)
            options = Options(older_than=0.0, statuses=frozenset({WorkflowStatus.SUCCESSFUL}), wait=100.0)
            node = bed.node("gc1")
            sent = dies_at(bed, node, write, after=after)
            with contextlib.suppress(Dead):
                await node.call(run_collection(node, [], options))
            node.kill()
            await asyncio.sleep(500)
            await collect(bed, "gc2", older_than=0.0, wait=100.0)
            assert not blobs(bed)
            for prefix in ("w/drop/", "w/keep/"):
                assert [_kind(bed, key) for key in bed.keys(prefix)] == ["deleted"]
            again = await bed.node("last", blob_from=500).start()
            assert await value(again, await resume(again, "open")) == 1001

        one()
        return len(sent)

    total = run(10_000)
    assert total > 10
    for write in range(total):
        run(write)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_delete_killed_at_any_write_is_done_or_not_begun_and_a_collection_takes_the_rest(after: bool) -> None:
    def run(write: int) -> int:
        sent: list[str] = []

        @clusters(**FUNCTIONS)
        async def one(bed: Bed) -> None:
            nonlocal sent
            await finished(bed, "A", "keep", 1, 2)
            await finished(bed, "B", "drop", 2, 3)
            node = bed.node("deleter")
            sent = dies_at(bed, node, write, after=after)

            async def delete() -> None:
                await node.coordinator.start()
                await node.coordinator.delete("drop")
                await node.coordinator.stop()

            with contextlib.suppress(Dead):
                await node.call(delete())
            node.kill()
            await asyncio.sleep(500)
            other = await bed.node("other", blob_from=500).start()
            listed = await other.call(other.coordinator.list_all())
            await collect(bed, "gc", wait=100.0)
            assert listed["keep"][0] is WorkflowStatus.SUCCESSFUL
            if "drop" in listed:
                assert len(blobs(bed)) == 3
                assert await value(other, await resume(other, "drop")) == 2002
            else:
                assert len(blobs(bed)) == 2
                assert [_kind(bed, key) for key in bed.keys("w/drop/")] == ["deleted"]
            assert await value(other, await resume(other, "keep")) == 2002

        one()
        return len(sent)

    total = run(10_000)
    assert total > 4
    for write in range(total):
        run(write)


@clusters(**FUNCTIONS)
async def test_collectors_that_compete_with_each_other_and_with_a_cluster_take_nothing_that_is_needed(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    b = await bed.node("B", blob_from=500).start()
    await a.outcome(await submit(a, "first", some(0)))
    collections = [asyncio.ensure_future(collect(bed, f"gc{n}", wait=30.0)) for n in range(3)]
    for n in range(6):
        node = (a, b)[n % 2]
        await node.outcome(await submit(node, f"w{n}", some(n, n + 1)))
        if n % 3 == 0:
            await node.call(node.coordinator.delete(f"w{n}"))
    await asyncio.gather(*collections)
    await until(lambda: acknowledged(bed, a) >= 3 and acknowledged(bed, b) >= 3, within=20)
    await collect(bed, "last", wait=30.0)
    named = {name for history in bed.oracle.histories.values() for name in history.named}
    assert set(blobs(bed)) == named


@clusters(**FUNCTIONS)
async def test_inboxes_and_events_of_lives_that_are_over_go(bed: Bed) -> None:
    await finished(bed, "A", "x", 1)
    for key in ("in/x/0/00000000000000000000", "ev/x/0/ping", "in/x/9/00000000000000000000"):
        bed.server._apply("other", "create", key, b"-")
    a = await bed.node("B").start()
    await a.call(a.coordinator.delete("x"))
    bed.server._apply("other", "create", "in/x/0/00000000000000000001", b"late")
    report = await collect(bed)
    assert report.counts["remains"] == 1
    assert bed.keys("in/") == ["in/x/9/00000000000000000000"]
    assert bed.keys("ev/") == []


@clusters(**FUNCTIONS)
async def test_a_damaged_page_hides_no_workflow_and_no_deletion(bed: Bed) -> None:
    await finished(bed, "A", "x", 1)
    await finished(bed, "B", "y", 2)
    a = await bed.node("C").start()
    await a.call(a.coordinator.delete("x"))
    await a.call(a.coordinator.stop())
    for page in bed.keys(f"c/{a.coordinator.id}/j/")[:1]:
        bed.server.data[page] = bed.server.data[page][:-1] + b"?"
    d = await bed.node("D").start()
    listed = await d.call(d.coordinator.list_all())
    assert {i: status for i, (status, *_) in listed.items()} == {"y": WorkflowStatus.SUCCESSFUL}
    report = await collect(bed, wait=10.0)
    assert "damaged" in report.holding[a.coordinator.id]
    assert report.counts["blob"] == 0


@clusters(**FUNCTIONS)
async def test_a_claim_on_a_full_disk_leaves_no_open_announcement(bed: Bed) -> None:
    a = await bed.node("A", blob_from=500).start()
    await submit(a, "x", some(1, first="slow"))
    await asyncio.sleep(1)
    a.kill()
    bed.rules.append(lambda c, o, k: Fate(refused=True) if o == "create" and k.startswith("w/") else None)
    b = await bed.node("B", blob_from=500).start()
    with pytest.raises(StoreError, match="No space"):
        await resume(b, "x")
    bed.rules.pop()
    await asyncio.sleep(10)
    assert b.coordinator.lease.roster.opened == {}
    listed = await b.call(b.coordinator.list_all())
    assert listed["x"][0] is WorkflowStatus.RESUMABLE
    assert await value(b, await resume(b, "x")) == 1001


@clusters(**FUNCTIONS)
async def test_l6_a_restarted_cluster_fences_a_created_that_may_still_land(bed: Bed) -> None:
    a = await bed.node("A").start()

    def rule(client: str, operation: str, key: str) -> Fate | None:
        if client == "A" and operation == "create" and key.startswith("w/"):
            bed.server._later(1.0, a.kill)
            return Fate(answered=False, lands=300.0, back=100.0)
        return None

    bed.rules.append(rule)
    with pytest.raises(Dead):
        await submit(a, "x", some(1))
    b = await bed.node("B").start()
    roster = await b.call(b.coordinator.watcher.roster(a.coordinator.id))
    assert "x" in roster.opened
    assert await b.call(b.coordinator.take_over(roster, lambda digest: None)) == []
    await asyncio.sleep(400)
    assert await b.call(b.coordinator.list_all()) == {}


@clusters(**FUNCTIONS)
async def test_b4_what_a_graph_in_a_blob_names_stays(bed: Bed) -> None:
    before, entering.GRAPH_INLINE = entering.GRAPH_INLINE, 1
    try:
        a = await bed.node("A", blob_from=500).start()
        bed.server._apply("driver", "put", "blobs/0/argument", packed(LARGE).data)
        b = GraphBuilder()
        b.objects.append(Payload(None, "blobs/0/argument", len(LARGE)))
        await a.outcome(await submit(a, "x", b.graph(b.task("length", Ref(-1)))))
    finally:
        entering.GRAPH_INLINE = before
    await a.call(a.coordinator.stop())
    report = await collect(bed)
    assert report.cycle == 1
    assert "blobs/0/argument" in blobs(bed)


@clusters(**FUNCTIONS)
async def test_l6_who_ends_with_a_created_on_its_way_has_not_ended_cleanly(bed: Bed) -> None:
    before, entering.GRAPH_INLINE = entering.GRAPH_INLINE, 1
    try:
        a = await bed.node("A").start()
        bed.rules.append(
            lambda c, o, k: (
                Fate(answered=False, lands=300.0, back=100.0) if (c, o, k) == ("A", "create", FIRST) else None
            )
        )
        submitting = asyncio.ensure_future(submit(a, "x", some(1)))
        await asyncio.sleep(1)
        await a.call(a.coordinator.stop())
        a.kill()
        with contextlib.suppress(Dead, ClusterError):
            await submitting
    finally:
        entering.GRAPH_INLINE = before
    report = await collect(bed, wait=100.0)
    assert report.settled == [a.coordinator.id]
    await asyncio.sleep(400)
    assert not blobs(bed)
    b = await bed.node("B").start()
    assert await b.call(b.coordinator.list_all()) == {}


FIRST = f"w/x/j/{0:020d}"
