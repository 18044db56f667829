"""Repair: a workflow with a damaged journal goes on from what can be read of it, whenever the repairer dies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from simulation.server import Fate
from simulation.world import Node
from support.caring import WRITES, blobs, collect, dies_at, in_process
from support.doubles import GraphBuilder
from support.simulated import Bed, clusters, resume, submit, value

from perdure import keys
from perdure.care import repairing
from perdure.care.opening import Hand
from perdure.care.repairing import Salvage
from perdure.care.verifying import Finding, Verifier
from perdure.chain import CLAIMED
from perdure.errors import (
    CorruptedError,
    StoreError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.records import Repaired
from perdure.segment import decode_segment, encode_segment
from perdure.status import WorkflowStatus

LINKS = 30


async def slow(n: int) -> int:
    await asyncio.sleep(100)
    return n + 1


FUNCTIONS = {"slow": slow, "large": lambda n: f"{n}" + "x" * 1000, "length": lambda *values: sum(map(len, values))}


def chain(links: int = LINKS) -> Any:
    """Links one after the other, a segment each, and a last one that takes long."""
    b = GraphBuilder()
    last = b.task("one")
    for _ in range(links - 1):
        last = b.task("inc", last)
    return b.graph(b.task("slow", last))


async def left(bed: Bed, graph: Any = None, *, kill: bool = True) -> Node:
    """Workflow x in the middle, its cluster dead."""
    node = await bed.node("first", blob_from=500).start()
    await submit(node, "x", graph if graph is not None else chain())
    await asyncio.sleep(10)
    if kill:
        node.kill()
    return node


def flip(bed: Bed, key: str) -> None:
    data = bytearray(bed.server.data[key])
    data[-1] ^= 1
    bed.server.data[key] = bytes(data)


def lose(bed: Bed, key: str) -> None:
    bed.server._apply("vandal", "delete", key, None)


def journal(bed: Bed) -> list[str]:
    return bed.keys("w/x/j/")


async def work(bed: Bed, call: Any, name: str = "tool") -> Salvage:
    """`repair` or `forget` by a process of its own."""
    return await _by(bed.node(name), call)


async def _by(node: Node, call: Any) -> Salvage:
    async def whole() -> Salvage:
        hand = Hand(node.coordinator)
        try:
            found: Salvage = await call(hand, "x")
            return found
        finally:
            await hand.aclose()

    result: Salvage = await in_process(node, whole)
    return result


async def findings(bed: Bed) -> list[Finding]:
    found: list[Finding] = []
    node = bed.node("verifier")
    await Verifier(node.store, node.coordinator.reader, found.append, content=True).run(None)
    node.kill()
    return [f for f in found if f.problem != "orphaned"]


async def outcome(bed: Bed, name: str = "next") -> tuple[Any, int]:
    """The value after a resume, and how many attempts that took."""
    node = await bed.node(name, blob_from=500).start()
    began = runs(bed)
    return await value(node, await resume(node, "x")), runs(bed) - began


def runs(bed: Bed) -> int:
    return len([line for line in bed.server.trace if " runs " in line])


@pytest.mark.parametrize("back", [0, 1, 4])
def test_a_damaged_segment_gives_up_what_came_from_it_on(back: int) -> None:
    @clusters(False, **FUNCTIONS)
    async def test(bed: Bed) -> None:
        await left(bed)
        done = LINKS
        key = journal(bed)[-1 - back]
        flip(bed, key)
        node = bed.node("reader")
        with pytest.raises(CorruptedError):
            await node.call(node.coordinator.read("x"))
        found = await work(bed, repairing.repair)
        assert [k for k, _ in found.damaged] == [key]
        assert found.state.done == done - back - 1
        assert len(found.given_up) == back
        assert await findings(bed) == []
        listed = await node.call(node.coordinator.list_all())
        assert listed["x"][0] is WorkflowStatus.RESUMABLE
        assert await outcome(bed) == (LINKS + 1, back + 2)  # what was kept did not run again
        assert (await collect(bed)).refused == {}

    test()


@clusters(False, **FUNCTIONS)
async def test_a_missing_segment_is_a_damaged_one(bed: Bed) -> None:
    await left(bed)
    lose(bed, journal(bed)[-3])
    found = await work(bed, repairing.repair)
    assert [text for _, text in found.damaged] == ["it is missing"]
    assert (found.state.done, len(found.given_up)) == (LINKS - 3, 2)
    assert await findings(bed) == []
    assert await outcome(bed) == (LINKS + 1, 4)


@clusters(False, **FUNCTIONS)
async def test_j12_what_does_not_continue_the_history_is_given_up(bed: Bed) -> None:
    await left(bed)
    other = bed.segments("w/x/")[-3]
    data = encode_segment(other.header, other.records, token=b"another's token!", prev=other.prev)
    bed.server.data[journal(bed)[-3]] = data  # as a fail-over of a replicated store may leave it
    found = await work(bed, repairing.repair)
    assert [k for k, _ in found.damaged] == [bed.keys("w/x/j/")[-3]]
    assert (found.state.done, len(found.given_up)) == (LINKS - 2, 2)
    assert await findings(bed) == []
    assert await outcome(bed) == (LINKS + 1, 3)


@clusters(False, **FUNCTIONS)
async def test_where_a_base_part_is_damaged_the_base_before_it_serves(bed: Bed) -> None:
    await left(bed)
    header = bed.segments("w/x/")[-1].header
    assert header.base > 12, "there was a base before"
    key = keys.parts("w/x/") + header.parts[-1][0]
    flip(bed, key)
    found = await work(bed, repairing.repair)
    assert key in [k for k, _ in found.damaged]
    assert found.state.done == LINKS, "the segments of the newest base are still there"
    assert await findings(bed) == []
    assert await outcome(bed) == (LINKS + 1, 1)


@clusters(False, **FUNCTIONS)
async def test_a_lost_value_gives_up_its_record_and_what_came_after(bed: Bed) -> None:
    b = GraphBuilder()
    one = b.task("large", 1)
    two = b.task("large", 2)
    both = b.task("length", one, two)
    await left(bed, b.graph(b.task("add", both, b.task("slow", both))))
    assert len(blobs(bed)) == 2
    lose(bed, blobs(bed)[0])
    assert [f.problem for f in await findings(bed)] == ["missing"]
    found = await work(bed, repairing.repair)
    assert found.damaged[0][1] == "missing"
    assert await findings(bed) == []
    assert found.state.done < 3
    assert (await outcome(bed))[0] == 2002 + 2003
    assert len(blobs(bed)) == 2, "the lost value was made again"


@clusters(False, **FUNCTIONS)
async def test_a_finished_workflow_whose_output_is_lost_is_resumable_again(bed: Bed) -> None:
    b = GraphBuilder()
    node = await bed.node("first", blob_from=500).start()
    met = await submit(node, "x", b.graph(b.task("large", 7)))
    right = await value(node, met)
    await node.call(node.coordinator.stop())
    node.kill()
    flip(bed, blobs(bed)[0])
    found = await work(bed, repairing.repair)
    assert (found.state.done, found.given_up) == (0, {0})
    assert await outcome(bed) == (right, 1)
    assert await findings(bed) == []


@clusters(**FUNCTIONS)
async def test_a_sound_workflow_is_left_alone(bed: Bed) -> None:
    await left(bed)
    before = dict(bed.server.data)
    found = await work(bed, repairing.repair)
    assert found.sound
    assert bed.server.data == before
    assert await outcome(bed) == (LINKS + 1, 1)


@clusters(False, **FUNCTIONS)
async def test_where_the_beginning_is_lost_it_can_only_be_forgotten(bed: Bed) -> None:
    await left(bed, chain(3))
    flip(bed, journal(bed)[0])
    with pytest.raises(WorkflowNotResumableError, match=r"w/x/j/0+ from a copy.*--delete"):
        await work(bed, repairing.repair)
    with pytest.raises(CorruptedError, match="perdure repair"):
        await collect(bed)
    await work(bed, repairing.forget, "other")
    await collect(bed, "gc2")
    node = await bed.node("next").start()
    assert "x" not in await node.call(node.coordinator.list_all())
    with pytest.raises(WorkflowNotFoundError):
        await work(bed, repairing.forget, "third")
    assert await value(node, await submit(node, "x", chain(2))) == 3  # the id can be used again


@clusters(False, **FUNCTIONS)
async def test_a_workflow_that_is_driven_is_not_touched(bed: Bed) -> None:
    await left(bed, kill=False)
    flip(bed, journal(bed)[-2])
    for call in (repairing.repair, repairing.forget):
        with pytest.raises(WorkflowStillActiveError, match="perdure stop"):
            await work(bed, call, call.__name__)


@clusters(False, **FUNCTIONS)
async def test_j11_the_entry_of_a_repair_fences_whoever_was_there_for_ever(bed: Bed) -> None:
    sleeper = await left(bed, kill=False)
    flip(bed, journal(bed)[-2])
    sleeper.process.pause()
    await work(bed, repairing.repair)
    key = journal(bed)[-1]
    entry = decode_segment(bed.server.data[key], key)
    assert entry.header.kind == CLAIMED  # a kind that is never trimmed
    assert any(isinstance(record, Repaired) for record in entry.records)
    assert (await outcome(bed))[0] == LINKS + 1
    sleeper.process.go_on()
    await asyncio.sleep(200)
    assert sleeper.retired
    assert await findings(bed) == []


@clusters(False, **FUNCTIONS)
async def test_a_workflow_that_has_moved_is_not_brought_back(bed: Bed) -> None:
    from perdure.care.copying import enter_moved

    await left(bed)
    node = bed.node("mover")
    hand = Hand(node.coordinator)
    view = await node.call(hand.reading.reader.chain("x").read())
    assert await node.call(enter_moved(hand, "x", view, "s3://elsewhere/a"))
    await node.call(hand.aclose())
    node.kill()
    header = bed.segments("w/x/")[-1].header
    flip(bed, keys.parts("w/x/") + header.parts[-1][0])
    with pytest.raises(WorkflowNotResumableError, match="moved to s3://elsewhere/a"):
        await work(bed, repairing.repair)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("call", [repairing.repair, repairing.forget])
def test_a_repairer_that_dies_at_any_write_is_finished_by_the_next(call: Any, after: bool) -> None:
    writes = 0
    while True:
        sent: list[str] = []

        @clusters(False, **FUNCTIONS)
        async def test(bed: Bed, write: int = writes, sent: list[str] = sent) -> None:
            await left(bed)
            flip(bed, journal(bed)[-4])
            tool = bed.node("dies")
            told = dies_at(bed, tool, write, after=after)
            try:
                await _by(tool, call)
            except BaseException as error:
                if not tool.process.dead:
                    raise error
            sent += told
            if call is repairing.repair:
                await work(bed, call, "again")
                assert await outcome(bed) == (LINKS + 1, 5)
            else:
                try:
                    await work(bed, call, "again")
                except WorkflowNotFoundError:
                    pass  # it was over
                assert not (await collect(bed)).refused
                node = await bed.node("next").start()
                assert "x" not in await node.call(node.coordinator.list_all())
            assert await findings(bed) == []

        test()
        if len(sent) <= writes:
            break
        writes += 1
    assert writes >= 4, "a page, an announcement, the entry, and the end of the tool"


@clusters(**FUNCTIONS)
async def test_a_store_that_fails_while_it_is_looked_at_is_no_damage(bed: Bed) -> None:
    b = GraphBuilder()
    node = await bed.node("first", blob_from=500).start()
    right = await value(node, await submit(node, "x", b.graph(b.task("large", 7))))
    await node.call(node.coordinator.stop())
    node.kill()
    before = dict(bed.server.data)
    tool = bed.node("tool")
    store = tool.store.store

    async def fails(key: str, start: Any = None, end: Any = None) -> Any:
        raise StoreError("503 Slow Down", key=key)
        yield b""

    whole, store.download = store.download, fails  # type: ignore[method-assign,assignment]
    with pytest.raises(StoreError, match="503"):
        await _by(tool, repairing.repair)
    store.download = whole  # type: ignore[method-assign]
    assert bed.server.data == before
    assert (await work(bed, repairing.repair, "again")).sound
    assert await outcome(bed) == (right, 0)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_where_the_last_segments_are_lost_the_pages_do_not_outweigh_the_repair(lost: int) -> None:
    @clusters(False, **FUNCTIONS)
    async def test(bed: Bed) -> None:
        node = await bed.node("first", blob_from=500).start()
        await value(node, await submit(node, "x", chain()))
        await node.call(node.coordinator.stop())
        node.kill()
        keys_ = journal(bed)
        for key in keys_[len(keys_) - lost :]:
            lose(bed, key)
        flip(bed, journal(bed)[-1])
        await work(bed, repairing.repair)
        reader = bed.node("reader")
        listed = await reader.call(reader.coordinator.list_all())
        assert listed["x"][0] is WorkflowStatus.RESUMABLE
        assert (await collect(bed, older_than=0.0)).counts["workflow"] == 0, "it is not finished any more"
        assert (await outcome(bed))[0] == LINKS + 1
        assert await findings(bed) == []

    test()


@clusters(False, **FUNCTIONS)
async def test_gc_asks_the_chain_before_it_deletes_what_the_list_calls_finished(bed: Bed) -> None:
    node = await bed.node("first").start()
    await value(node, await submit(node, "x", chain(3)))
    await node.call(node.coordinator.stop())
    node.kill()
    lose(bed, journal(bed)[-1])  # its end: the pages still tell of it
    reader = bed.node("reader")
    assert (await reader.call(reader.coordinator.list_all()))["x"][0] is WorkflowStatus.SUCCESSFUL
    assert (await collect(bed, older_than=0.0)).counts["workflow"] == 0
    assert journal(bed)


@clusters(False, **FUNCTIONS)
async def test_a_workflow_whose_whole_journal_is_lost_can_be_forgotten(bed: Bed) -> None:
    await left(bed)
    for key in journal(bed):
        lose(bed, key)
    assert [f.problem for f in await findings(bed)] == ["missing"]
    with pytest.raises(WorkflowNotResumableError, match="--delete"):
        await work(bed, repairing.repair)
    await work(bed, repairing.forget, "other")
    assert await findings(bed) == []
    assert not bed.keys("w/x/s/")
    node = await bed.node("next").start()
    assert "x" not in await node.call(node.coordinator.list_all())
    assert await value(node, await submit(node, "x", chain(2))) == 3


@pytest.mark.parametrize("call", [repairing.repair, repairing.forget])
def test_a_repairer_that_never_learns_whether_a_write_happened_goes_on(call: Any) -> None:
    """The answer of each write in turn is lost, whether it lands or not."""
    for lands in (0.0, None):
        writes = 0
        while True:
            sent: list[str] = []

            @clusters(False, **FUNCTIONS)
            async def test(bed: Bed, write: int = writes, lands: float | None = lands, sent: list[str] = sent) -> None:
                await left(bed)
                flip(bed, journal(bed)[-4])
                tool = bed.node("tool")

                def rule(client: str, operation: str, key: str) -> Fate | None:
                    if client != tool.name or operation not in WRITES:
                        return None
                    sent.append(f"{operation} {key}")
                    return Fate(answered=False, back=0.01, lands=lands) if len(sent) - 1 == write else None

                bed.rules.append(rule)
                await _by(tool, call)
                assert await findings(bed) == []
                node = await bed.node("next").start()
                listed = await node.call(node.coordinator.list_all())
                if call is repairing.repair:
                    assert await outcome(bed, "last") == (LINKS + 1, 5)
                else:
                    assert "x" not in listed

            test()
            if len(sent) <= writes:
                break
            writes += 1
        assert writes >= 4
