"""Leases: who may work, who may take over, and when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from support.simulated import (
    CONTEXT,
    Bed,
    Fate,
    GraphBuilder,
    chain_of,
    clusters,
    resume,
    sleeping,
    submit,
    until,
    value,
)

from perdure import records as r
from perdure.chain import CLAIMED, CREATED, RETIRED
from perdure.errors import ClusterError, WorkflowStillActiveError
from perdure.lease import Roster, compact_pages

LEASE = 20.0


@clusters()
async def test_l1_a_coordinator_registers_before_it_reads_the_gc_cycle(bed: Bed) -> None:
    order: list[str] = []
    bed.rules.append(lambda c, operation, key: order.append(f"{operation} {key.split('/')[0]}"))  # type: ignore[func-returns-value]
    bed.server.data["gc/" + "0" * 19 + "7"] = b"x"
    bed.server.index.append("gc/" + "0" * 19 + "7")
    node = await bed.node("A").start()
    assert order[:3] == ["create c", "list c", "list gc"]
    assert node.coordinator.lease.cycle == 7


@clusters()
async def test_l2_an_entry_is_announced_in_its_own_chain_before_anything_begins(bed: Bed) -> None:
    a = await bed.node("A").start()
    met = await submit(a, "x", sleeping(100.0))
    a.kill()
    del met
    b = await bed.node("B").start()
    created, *_ = bed.segments("w/x/")
    assert created.header.kind == CREATED
    assert any(("x", 0) in p.announced for s in bed.pages(a) for p in s.records if isinstance(p, r.Page))
    await resume(b, "x")
    claimed = bed.segments("w/x/")[-1] if bed.segments("w/x/")[-1].header.kind == CLAIMED else bed.segments("w/x/")[-2]
    assert claimed.header.kind == CLAIMED
    times = [line for line in bed.server.trace if " B create" in line]
    announced = next(i for i, line in enumerate(times) if f"c/{b.coordinator.id}/j/{1:020d}" in line)
    entered = next(i for i, line in enumerate(times) if f"w/x/j/{claimed.number:020d}" in line)
    assert announced < entered


@clusters()
async def test_l2_a_retired_coordinator_can_enter_nothing(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = await bed.node("B").start()
    await submit(a, "x", chain_of(2))
    await submit(b, "y", chain_of(2))
    assert await b.call(b.coordinator.watcher.retire(a.coordinator.id)) is False, "it lives"
    a.process.pause()
    assert await b.call(b.coordinator.watcher.retire(a.coordinator.id)) is True
    a.process.go_on()
    with pytest.raises(ClusterError):
        await submit(a, "z", chain_of(2))
    assert not any(s.header.kind == CLAIMED for s in bed.segments("w/z/"))
    assert a.retired
    assert a.coordinator.out


@clusters()
async def test_l3_no_task_begins_when_less_than_a_quarter_of_the_lease_is_left(bed: Bed) -> None:
    a = await bed.node("A").start()
    cut = {"on": False}

    def no_pages(client: str, operation: str, key: str) -> Fate | None:
        return Fate(answered=False, back=1.0, lands=None) if cut["on"] and key.startswith("c/") else None

    bed.rules.append(no_pages)
    met = await submit(a, "x", sleeping(14.0))
    cut["on"] = True
    began = bed.loop.now
    await until(lambda: bed.loop.now > began + 15)
    assert met.state.tasks[0].status.name == "DONE"
    assert bed.calls == {}, "the timer is over and the task is ready, but the lease has nearly run out"
    cut["on"] = False
    assert await value(a, met) == [None]


def once_failing() -> Callable[[], str]:
    tries: list[int] = []

    def flaky() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("not yet")
        return "done"

    return flaky


@clusters(flaky=once_failing())
async def test_l3_a_process_that_was_paused_begins_nothing_before_it_looks_at_its_lease(bed: Bed) -> None:
    """A retry whose delay is over begins with no round trip to the store that could tell that all is lost."""
    a = await bed.node("A").start()
    b = GraphBuilder()
    graph = b.graph(b.task("flaky", max_retries=3, retry_exceptions=True, backoff=(4.0, 1.0, 4.0, 0.0)))
    met = await submit(a, "x", graph)
    await asyncio.sleep(2.0)
    a.process.pause()
    await asyncio.sleep(60.0)
    other = await bed.node("B").start()
    assert await value(other, await resume(other, "x")) == "done"
    calls = dict(bed.calls)
    a.process.go_on()
    await asyncio.sleep(30.0)
    assert bed.calls == calls
    assert met.fenced


@clusters()
async def test_l4_the_lease_runs_from_before_the_send_of_the_last_confirmed_page(bed: Bed) -> None:
    a = await bed.node("A").start()
    slow = {"on": True}
    bed.rules.append(lambda c, o, key: Fate(there=0.1, back=4.0) if slow["on"] and key.startswith("c/") else None)
    landed = len(bed.pages(a))
    await until(lambda: len(bed.pages(a)) > landed)
    sent = bed.loop.now - 0.1
    await asyncio.sleep(4.01)
    left = a.coordinator.lease.remaining
    assert left == pytest.approx(LEASE * 0.9 - (bed.loop.now - sent), abs=0.05)


@clusters()
async def test_l4_a_page_that_was_refused_first_counts_from_its_first_attempt(bed: Bed) -> None:
    a = await bed.node("A").start()
    full = {"on": True}
    bed.rules.append(
        lambda c, o, key: Fate(refused=True) if full["on"] and o == "create" and key.startswith("c/") else None
    )
    await asyncio.sleep(9.0)
    assert a.coordinator.lease.remaining < LEASE * 0.9 - 8.9
    full["on"] = False
    before = a.coordinator.lease.remaining
    await asyncio.sleep(6.0)
    assert a.coordinator.lease.remaining > before, "renewed"
    assert not a.coordinator.out


@clusters()
async def test_l5_a_watcher_waits_a_whole_lease_of_silence_on_its_own_clock(bed: Bed) -> None:
    a = await bed.node("A", skew=-30.0).start()
    b = await bed.node("B", skew=30.0, rate=1.03).start()
    await submit(a, "x", sleeping(1000.0))
    a.process.pause()
    began = bed.loop.now
    await resume(b, "x")
    assert bed.loop.now - began >= LEASE / 1.03
    assert bed.loop.now - began < LEASE + 5


@clusters()
async def test_l5_a_living_owner_is_never_retired(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = await bed.node("B").start()
    await submit(a, "x", sleeping(100.0))
    for _ in range(3):
        with pytest.raises(WorkflowStillActiveError):
            await resume(b, "x")
    assert not a.retired
    with pytest.raises(WorkflowStillActiveError):
        await resume(b, "x", wait=False)


@clusters()
async def test_l5_a_watcher_that_was_paused_itself_looks_again_before_it_retires(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = await bed.node("B").start()
    await submit(a, "x", sleeping(300.0))
    watching = bed.loop.create_task(b.call(b.coordinator.watcher.retire(a.coordinator.id)))
    await asyncio.sleep(1.0)
    b.process.pause()
    await asyncio.sleep(60.0)
    b.process.go_on()
    assert await watching is False
    assert not a.retired


@clusters()
async def test_l5_who_is_provably_gone_is_not_waited_for(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = await bed.node("B").start()
    await submit(a, "x", sleeping(5.0))
    a.kill()
    began = bed.loop.now
    met = await resume(b, "x", wait=False)
    assert bed.loop.now - began < 1.0
    assert await value(b, met) == [None]


@clusters()
async def test_l5_a_page_of_very_long_ago_is_not_waited_for(bed: Bed) -> None:
    a = await bed.node("A").start()
    await submit(a, "x", sleeping(5.0))
    a.kill(workers=False)
    await asyncio.sleep(11 * LEASE)
    b = await bed.node("B").start()
    began = bed.loop.now
    await resume(b, "x", wait=False)
    assert bed.loop.now - began < 1.0


@clusters()
async def test_l6_what_a_dead_coordinator_left_open_is_taken_over_once(bed: Bed) -> None:
    a = await bed.node("A").start()
    for n in range(5):
        await submit(a, f"w{n}", sleeping(50.0))
    done = await submit(a, "done", chain_of(2))
    assert await value(a, done) == 2
    a.kill()
    others = [await bed.node(name).start() for name in "BC"]
    rosters = [await n.call(n.coordinator.watcher.roster(a.coordinator.id)) for n in others]
    taken = await asyncio.gather(
        *(n.call(n.coordinator.take_over(s, lambda _: CONTEXT)) for n, s in zip(others, rosters, strict=True))
    )
    assert sorted(taken[0] + taken[1]) == [f"w{n}" for n in range(5)]
    for node, ids in zip(others, taken, strict=True):
        assert sorted(node.coordinator.drives) == sorted(ids)


@clusters()
async def test_a_clean_end_makes_everything_resumable_at_once(bed: Bed) -> None:
    a = await bed.node("A").start()
    await submit(a, "x", sleeping(5.0))
    await a.call(a.coordinator.stop())
    assert bed.pages(a)[-1].header.kind == RETIRED
    b = await bed.node("B").start()
    began = bed.loop.now
    met = await resume(b, "x", wait=False)
    assert bed.loop.now - began < 1.0
    assert await value(b, met) == [None]


@clusters()
async def test_a_clean_end_while_the_store_is_away_ends_like_a_crash_after_a_lease(bed: Bed) -> None:
    a = await bed.node("A").start()
    await submit(a, "x", chain_of(3, first="one"))
    await submit(a, "y", sleeping(50.0))
    bed.rules.append(lambda c, o, k: Fate(answered=False, back=1.0, lands=None) if c == "A" else None)
    began = bed.loop.now
    await a.call(a.coordinator.stop())
    assert bed.loop.now - began <= LEASE + 1
    assert a.coordinator.out


@clusters()
async def test_pages_are_trimmed_and_still_say_all(bed: Bed) -> None:
    a = await bed.node("A").start()
    await submit(a, "open", sleeping(10_000.0))
    for n in range(120):
        met = await submit(a, f"w{n}", chain_of(1))
        await value(a, met)
        await asyncio.sleep(6.0)
    assert len(bed.pages(a)) < 150
    b = await bed.node("B").start()
    roster = await b.call(b.coordinator.watcher.roster(a.coordinator.id))
    assert roster.open_ids() == ["open"]
    assert {i for i, e in roster.entries.items() if e.status == "SUCCESSFUL"} == {f"w{n}" for n in range(120)}


def test_compacted_pages_say_what_the_pages_said() -> None:
    pages: list[r.Record] = [
        r.Page(1.0, 20.0, 0, (("a", 0), ("b", 0))),
        r.Page(2.0, 20.0, 1, (("a", 5),), (("a", 4, "FAILED", 1.0, 2.0),), (), {"h": "1"}),
        r.Page(3.0, 20.0, 1, (("c", 0),), (("a", 9, "SUCCESSFUL", 1.0, 3.0), ("b", 2, "CANCELED", 1.0, 2.0)), ("c",)),
        r.Page(4.0, 20.0, 2, (("b", 3),), (), ("c",)),
        r.Page(5.0, 20.0, 2, (("b", 1),)),
    ]
    whole = Roster()
    for page in pages:
        whole.apply(page)
    for cut in range(len(pages) + 1):
        short = Roster()
        for page in [*compact_pages(pages[:cut]), *pages[cut:]]:
            short.apply(page)
        assert short == whole
    assert whole.opened == {"b": 3}
    assert whole.ended["a"].status == "SUCCESSFUL"


def test_what_is_dropped_and_announced_in_one_page_is_announced() -> None:
    roster = Roster()
    roster.apply(r.Page(1.0, 20.0, 0, (("a", 3),), (), ("a",)))
    assert roster.open_ids() == ["a"]
