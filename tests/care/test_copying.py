"""Copies: a workflow goes on in another store, and only there, whenever the copier dies."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from simulation.world import Node
from support.caring import WRITES, blobs, collect
from support.simulated import FUNCTIONS as PLAIN
from support.simulated import Bed, Fate, GraphBuilder, clusters, resume, submit, value
from support.virtual import Dead

from perdure import entering
from perdure.care import copying
from perdure.care.opening import Hand
from perdure.care.verifying import Finding, Verifier
from perdure.errors import WorkflowExistsError, WorkflowNotResumableError, WorkflowStillActiveError
from perdure.status import WorkflowStatus

LARGE = "x" * 1000


def large(n: int = 0) -> str:
    return f"{n}" + LARGE


async def slow(n: int = 0) -> str:
    await asyncio.sleep(100)
    return large(n)


FUNCTIONS = {"slow": slow, "large": large, "length": lambda *values: sum(map(len, values))}


def graph(*, last: str = "large") -> Any:
    b = GraphBuilder()
    return b.graph(b.task("length", b.task("large", 1), b.task("large", 2), b.task(last, 3)))


def other(bed: Bed, url: str = "sim2") -> Bed:
    """A second store in the same virtual time."""
    found = Bed(bed.loop, PLAIN | FUNCTIONS)
    found.url = f"memory://{url}"  # type: ignore[attr-defined]
    return found


class Tool:
    """The copier's process, with a hand in each store."""

    def __init__(self, here: Bed, there: Bed, name: str = "tool") -> None:
        self.here, self.there = here, there
        self.node = here.node(name)
        far = there.node(name)
        far.process = self.node.process
        far.store.store._redacted = getattr(there, "url", "memory://sim2")  # type: ignore[attr-defined]
        self.hands = Hand(self.node.coordinator), Hand(far.coordinator)
        self.told: list[copying.Outcome] = []
        self.sent: list[str] = []

    def dies_at(self, write: int, *, after: bool) -> None:
        def rule(bed: Bed) -> None:
            def decide(client: str, operation: str, key: str) -> Fate | None:
                if client != self.node.name or operation not in WRITES or self.node.process.dead:
                    return None
                self.sent.append(f"{operation} {key}")
                if len(self.sent) - 1 != write:
                    return None
                if after:
                    bed.server._later(0.0015, self.node.kill)
                    return Fate(there=0.001, back=1.0)
                self.node.kill()
                return Fate(answered=False, lands=None)

            bed.rules.append(decide)

        rule(self.here)
        rule(self.there)

    async def copy(self, *ids: str, move: bool = False) -> list[copying.Outcome]:
        async def whole() -> None:
            try:
                await copying.copy(*self.hands, ids or None, move=move, tell=self.told.append)
            finally:
                for hand in self.hands:
                    await hand.aclose()

        try:
            await self.node.call(whole())
        finally:
            self.node.kill()
        return self.told


def result(outcomes: list[copying.Outcome]) -> dict[str, str]:
    for outcome in outcomes:
        if outcome.error is not None and outcome.result != "refused":
            raise outcome.error
    return {o.workflow_id: o.result for o in outcomes}


async def left_open(bed: Bed, workflow_id: str = "x", *, kill: bool = True) -> Node:
    """A workflow with two of three large values done, whose cluster has died."""
    node = await bed.node(f"first {workflow_id}", blob_from=500).start()
    await submit(node, workflow_id, graph(last="slow"))
    await asyncio.sleep(2)
    if kill:
        node.kill()
    return node


async def check(bed: Bed) -> None:
    """Verify finds nothing missing or damaged."""
    found: list[Finding] = []
    node = bed.node("verifier")
    report = await Verifier(node.store, node.coordinator.reader, found.append, content=True).run(None)
    assert report.sound, found


@clusters(**FUNCTIONS)
async def test_an_unfinished_workflow_goes_on_in_the_target_and_no_longer_in_the_source(bed: Bed) -> None:
    await left_open(bed)
    there = other(bed)
    assert result(await Tool(bed, there).copy("x")) == {"x": "copied"}
    await check(there)
    node = await there.node("N", blob_from=500).start()
    assert (await node.call(node.coordinator.list_all()))["x"][0] is WorkflowStatus.RESUMABLE
    began = len([line for line in there.server.trace if " runs " in line])
    assert await value(node, await resume(node, "x")) == 3003
    assert len([line for line in there.server.trace if " runs " in line]) - began == 2  # what was done is not run again
    back = await bed.node("back").start()
    with pytest.raises(WorkflowNotResumableError, match="moved to memory://sim2"):
        await resume(back, "x")
    there.check()


@clusters(**FUNCTIONS)
async def test_finished_workflows_are_copied_with_their_status_and_stay(bed: Bed) -> None:
    node = await bed.node("A", blob_from=500).start()
    await node.outcome(await submit(node, "x", graph()))
    await node.outcome(await submit(node, "bad", _failing()))
    there = other(bed)
    assert result(await Tool(bed, there).copy()) == {"bad": "copied", "x": "copied"}
    far = await there.node("N", blob_from=500).start()
    listed = await far.call(far.coordinator.list_all())
    assert {i: s for i, (s, *_) in listed.items()} == {"x": WorkflowStatus.SUCCESSFUL, "bad": WorkflowStatus.FAILED}
    assert await value(far, await resume(far, "x")) == 3003
    assert await value(node, await resume(node, "x")) == 3003
    assert listed["x"][1:] == (await node.call(node.coordinator.list_all()))["x"][1:]


def _failing() -> Any:
    b = GraphBuilder()
    return b.graph(b.task("length", 5))


@clusters(**FUNCTIONS)
async def test_a_workflow_that_is_driven_is_refused_and_goes_on(bed: Bed) -> None:
    node = await left_open(bed, kill=False)
    there = other(bed)
    (outcome,) = await Tool(bed, there).copy("x")
    assert outcome.result == "refused"
    assert isinstance(outcome.error, WorkflowStillActiveError)
    assert not there.keys("w/")
    await asyncio.sleep(120)
    assert node.coordinator.drives == {}


@clusters(**FUNCTIONS)
async def test_a_move_deletes_the_source_when_all_has_arrived(bed: Bed) -> None:
    await left_open(bed)
    there = other(bed)
    assert result(await Tool(bed, there).copy(move=True)) == {"x": "moved"}
    node = await bed.node("B").start()
    assert await node.call(node.coordinator.list_all()) == {}
    await collect(bed, wait=200.0)
    assert not blobs(bed)
    far = await there.node("N", blob_from=500).start()
    assert await value(far, await resume(far, "x")) == 3003


@clusters(**FUNCTIONS)
async def test_another_life_in_the_target_is_left_alone(bed: Bed) -> None:
    await left_open(bed)
    there = other(bed)
    far = await there.node("N", blob_from=500).start()
    await far.outcome(await submit(far, "x", graph(), client="another"))
    before = dict(there.server.data)
    (outcome,) = await Tool(bed, there).copy("x")
    assert isinstance(outcome.error, WorkflowExistsError)
    assert {k: v for k, v in there.server.data.items() if not k.startswith("c/")} == {
        k: v for k, v in before.items() if not k.startswith("c/")
    }


@clusters(**FUNCTIONS)
async def test_a_copy_that_never_arrived_can_be_taken_back_or_repeated(bed: Bed) -> None:
    await left_open(bed)
    node = bed.node("mover")
    hand = Hand(node.coordinator)
    await node.call(copying.depart(hand, "x", "memory://nowhere"))
    await node.call(hand.aclose())
    (outcome,) = await Tool(bed, other(bed)).copy("x")
    assert isinstance(outcome.error, WorkflowNotResumableError)
    taker = bed.node("taker")
    hand = Hand(taker.coordinator)
    await taker.call(copying.take_back(hand, "x"))
    await taker.call(hand.aclose())
    b = await bed.node("B", blob_from=500).start()
    assert await value(b, await resume(b, "x")) == 3003


@clusters(**FUNCTIONS)
async def test_keys_of_tasks_stay_the_same_over_copies(bed: Bed) -> None:
    """Its birth is another there, its idempotency keys are not."""
    await left_open(bed)
    there = other(bed)
    far = await there.node("N", blob_from=500).start()
    await far.outcome(await submit(far, "x", graph(), client="another"))
    await far.call(far.coordinator.delete("x"))
    await Tool(bed, there).copy("x")
    await far.outcome(await resume(far, "x"))
    runs = [line.split()[3] for line in there.server.trace if " runs " in line]
    assert runs[-2:] == ["x/0/2", "x/0/3"]
    third = other(bed, "sim3")
    await Tool(there, third, "tool2").copy("x")
    last = await third.node("L").start()
    state = await last.call(last.coordinator.read("x"))
    assert state.key_birth == 0
    assert state.moved_to is None


@clusters(**FUNCTIONS)
async def test_cancel_messages_that_were_not_read_yet_travel_too(bed: Bed) -> None:
    await left_open(bed)
    c = await bed.node("C").start()
    await c.call(c.coordinator.inboxes.send_cancel("x", 0))
    there = other(bed)
    await Tool(bed, there).copy("x")
    far = await there.node("N", blob_from=500).start()
    answer = await far.outcome(await resume(far, "x"))
    assert answer.status is WorkflowStatus.CANCELED


@clusters(**FUNCTIONS)
async def test_large_graphs_are_stored_anew_with_the_names_of_the_target(bed: Bed) -> None:
    before, entering.GRAPH_INLINE = entering.GRAPH_INLINE, 1
    try:
        await left_open(bed)
        there = other(bed)
        there.server._apply("other", "create", "gc/00000000000000000001", b"-")
        await Tool(bed, there).copy("x")
    finally:
        entering.GRAPH_INLINE = before
    assert {name.split("/")[1] for name in blobs(there)} == {"1"}
    assert len(blobs(there)) == 3
    await check(there)
    far = await there.node("N", blob_from=500).start()
    await collect(there, "gc", wait=30.0)
    assert await value(far, await resume(far, "x")) == 3003


@clusters(**FUNCTIONS)
async def test_a_missing_or_damaged_blob_refuses_its_workflow_and_no_other(bed: Bed) -> None:
    node = await bed.node("A", blob_from=500).start()
    await node.outcome(await submit(node, "x", graph()))
    b = GraphBuilder()
    await node.outcome(await submit(node, "y", b.graph(b.task("length", b.task("large", 77)))))
    victim = next(k for k, v in bed.server.data.items() if k.startswith("blobs/") and b"77xxx" in v)
    for data in (b"\0" * 1020, None):
        if data is None:
            del bed.server.data[victim]
            bed.server.index.remove(victim)
        else:
            bed.server.data[victim] = data
        there = other(bed)
        outcomes = {o.workflow_id: o for o in await Tool(bed, there, f"tool{data is None}").copy()}
        assert outcomes["x"].result == "copied"
        assert outcomes["y"].result == "refused"
        assert ("missing" if data is None else "damaged") in str(outcomes["y"].error)
        assert not there.keys("w/y/")


@pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_copier_killed_at_any_write_leaves_what_the_next_one_finishes(after: bool, move: bool) -> None:
    def run(write: int) -> int:
        tools: list[Tool] = []

        @clusters(**FUNCTIONS)
        async def one(bed: Bed) -> None:
            await left_open(bed)
            done = await bed.node("done", blob_from=500).start()
            await done.outcome(await submit(done, "y", graph()))
            await done.call(done.coordinator.stop())
            there = other(bed)
            tool = Tool(bed, there)
            tools.append(tool)
            tool.dies_at(write, after=after)
            with contextlib.suppress(Dead):
                await tool.copy(move=move)
            await asyncio.sleep(500)
            # nobody goes on in the source once the mark is there
            again = Tool(bed, there, "again")
            said = result(await again.copy(move=move))
            assert "refused" not in said.values(), again.told
            await asyncio.sleep(300)
            await collect(there, "gc", wait=200.0)
            await check(there)
            far = await there.node("N", blob_from=500).start()
            assert await value(far, await resume(far, "x")) == 3003
            assert await value(far, await resume(far, "y")) == 3003
            there.check()
            await collect(bed, "gc", wait=200.0)
            back = await bed.node("back", blob_from=500).start()
            listed = await back.call(back.coordinator.list_all())
            if move:
                assert listed == {}
                assert not blobs(bed)
            else:
                assert await value(back, await resume(back, "y")) == 3003
                with pytest.raises(WorkflowNotResumableError, match="moved"):
                    await resume(back, "x")

        one()
        return len(tools[0].sent)

    total = run(10_000)
    assert total > 10
    for write in range(total):
        run(write)


@clusters(**FUNCTIONS)
async def test_a_blob_that_arrives_damaged_is_named_by_nothing(bed: Bed) -> None:
    await left_open(bed)
    there = other(bed)
    tool = Tool(bed, there)
    store: Any = tool.hands[1].reading.store
    whole = store.store._put

    async def damaging(key: str, data: Any) -> None:
        await whole(key, bytes(data)[:-1] + b"?")

    store.store._put = damaging
    (outcome,) = await tool.copy("x")
    assert "arrived damaged" in str(outcome.error)
    assert not there.keys("w/")


@clusters(**FUNCTIONS)
async def test_b2_a_copy_holds_its_cycle_until_created_names_its_blobs(bed: Bed) -> None:
    """A collection in the target begins while the copy waits with its Created."""
    await left_open(bed)
    there = other(bed)
    far = await there.node("A", blob_from=500).start()
    await far.outcome(await submit(far, "y", graph()))

    def slow_created(client: str, operation: str, key: str) -> Fate | None:
        if client == "tool" and operation == "create" and key.startswith("w/x/s/"):
            return Fate(there=60.0, back=0.001)
        return None

    there.rules.append(slow_created)
    copying_x = asyncio.ensure_future(Tool(bed, there).copy("x"))
    await asyncio.sleep(30)
    report = await collect(there, "gc", wait=20.0)
    assert report.cycle == 0
    assert result(await copying_x) == {"x": "copied"}
    there.check()
    assert await value(far, await resume(far, "x")) == 3003
