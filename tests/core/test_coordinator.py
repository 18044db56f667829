"""What is asked of a coordinator: run, resume, cancel, delete, wait, list, with limits, and against others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from support.doubles import unpacked
from support.simulated import (
    CONTEXT,
    Bed,
    Fate,
    GraphBuilder,
    Plain,
    chain_of,
    clusters,
    resume,
    sleeping,
    submit,
    until,
    value,
)
from support.virtual import Dead

from perdure import keys
from perdure import records as r
from perdure.chain import DELETED
from perdure.errors import (
    ClusterError,
    CorruptedError,
    QueueFull,
    WorkflowExistsError,
    WorkflowNotFoundError,
    WorkflowNotResumableError,
    WorkflowStillActiveError,
)
from perdure.graph import Graph
from perdure.reading import Answer
from perdure.state import Phase
from perdure.status import WorkflowStatus

S = WorkflowStatus


def boom() -> None:
    raise ValueError("boom")


async def forever() -> None:
    await asyncio.sleep(1e6)


def fib(n: int) -> Any:
    if n < 2:
        return n
    b = GraphBuilder()
    return Plain(b.graph(b.task("add", b.task("fib", n - 1), b.task("fib", n - 2))))


def named(structure: str) -> Graph:
    graph = chain_of(2)
    return Graph(graph.nodes, graph.root, graph.functions, graph.options, structure=structure, code="c", python="3")


# -- run ------------------------------------------------------------------------------------------------------


@clusters(fib=fib)
async def test_a_workflow_runs_with_continuations_and_gives_its_output_again_later(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    assert await value(a, await submit(a, "x", b.graph(b.task("fib", 10)))) == 55
    answer = await a.call(a.coordinator.wait("x"))
    assert unpacked(answer.payload) == 55
    assert isinstance(await resume(a, "x"), Answer)


@clusters()
async def test_the_same_client_token_attaches_and_is_run_once(bed: Bed) -> None:
    a = await bed.node("A").start()
    first = await submit(a, "x", sleeping(5.0), "token")
    again = await submit(a, "x", sleeping(5.0), "token")
    assert again is first
    with pytest.raises(WorkflowStillActiveError):
        await submit(a, "x", sleeping(5.0), "another")
    assert await value(a, first) == [None]
    assert isinstance(await submit(a, "x", sleeping(5.0), "token"), Answer)
    assert len([s for s in bed.segments("w/x/") if s.header.kind == "created"]) == 1


@clusters()
async def test_two_clusters_that_get_the_same_call_run_it_once(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    met = await asyncio.gather(
        submit(a, "x", chain_of(5), "token"), submit(b, "x", chain_of(5), "token"), return_exceptions=True
    )
    assert sum(isinstance(m, WorkflowStillActiveError) for m in met) <= 1
    await until(lambda: bed.oracle.history("x").state.phase is Phase.SUCCEEDED)
    assert all(count == 1 for count in bed.calls.values())


@clusters()
async def test_a_finished_id_gives_its_output_for_the_same_dag_and_refuses_another(bed: Bed) -> None:
    a = await bed.node("A").start()
    assert await value(a, await submit(a, "x", named("s1"), "t1")) == 2
    calls = dict(bed.calls)
    answer = await submit(a, "x", named("s1"), "t2")
    assert unpacked(answer.payload) == 2
    assert bed.calls == calls
    with pytest.raises(WorkflowExistsError, match="another DAG"):
        await submit(a, "x", named("s2"), "t3")
    with pytest.raises(WorkflowExistsError, match="if_exists='error'"):
        await submit(a, "x", named("s1"), "t4", if_exists="error")
    assert await value(a, await submit(a, "x", named("s2"), "t5", if_exists="replace")) == 2
    assert sum(s.header.kind == DELETED for s in bed.segments("w/x/")) == 1
    with pytest.raises(ValueError, match="if_exists"):
        await submit(a, "x", named("s1"), "t6", if_exists="whatever")


@clusters(boom=boom)
async def test_a_failed_id_is_resumed_by_the_same_dag(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    graph = b.graph(b.task("list", b.task("boom"), b.task("one")))
    answer = await a.outcome(await submit(a, "x", graph, "t1"))
    assert answer.status is S.FAILED
    assert answer.failed_task == "boom"
    assert answer.failure is not None
    assert answer.failure.type == "ValueError"
    bed.functions["boom"] = lambda: 7
    assert await value(a, await submit(a, "x", graph, "t2")) == [7, 1]
    assert bed.calls["x/0/1"] == 1, "the sibling that had finished is not run again"


@clusters()
async def test_ids_of_every_form_are_kept_apart(bed: Bed) -> None:
    a = await bed.node("A").start()
    ids = [".", "..", "a/b", "a", "文" * 200, "~2E", "A"]
    for n, workflow_id in enumerate(ids):
        assert await value(a, await submit(a, workflow_id, chain_of(n + 1))) == n + 1
    assert set(await a.call(a.coordinator.list_all())) == set(ids)
    for n, workflow_id in enumerate(ids):
        assert unpacked((await a.call(a.coordinator.wait(workflow_id))).payload) == n + 1
    with pytest.raises(ValueError, match="printable"):
        await submit(a, "", chain_of(1))


@clusters()
async def test_an_entry_goes_on_though_its_caller_went_away(bed: Bed) -> None:
    a = await bed.node("A").start()
    bed.rules.append(lambda c, o, k: Fate(there=1.0, back=1.0) if k.startswith("w/") else None)
    with pytest.raises(TimeoutError):  # noqa: PT012
        async with asyncio.timeout(0.5):
            task = a.process.spawn(a.coordinator.submit(_submission("x"), CONTEXT))
            try:
                await asyncio.shield(task)
            finally:
                task.cancel()
    await until(lambda: bed.oracle.history("x").state.phase is Phase.SUCCEEDED)


def _submission(workflow_id: str) -> Any:
    from perdure.entering import Submission

    return Submission(workflow_id, "token", chain_of(2))


# -- limits ----------------------------------------------------------------------------------------------------


@clusters()
async def test_what_waits_for_room_is_pending_and_a_full_queue_changes_nothing(bed: Bed) -> None:
    a = await bed.node("A", max_running=1, max_pending=2).start()
    met = [await submit(a, f"w{n}", sleeping(5.0)) for n in range(3)]
    assert [await a.call(a.coordinator.status(f"w{n}")) for n in range(3)] == [S.RUNNING, S.PENDING, S.PENDING]
    before = bed.keys("w/")
    with pytest.raises(QueueFull, match="Nothing was stored"):
        await submit(a, "w3", sleeping(5.0))
    assert bed.keys("w/") == before
    began = bed.loop.now
    assert [await value(a, m) for m in met] == [[None]] * 3
    assert bed.loop.now - began >= 14.5, "one after the other"


@clusters()
async def test_a_finished_workflow_is_answered_where_there_is_no_room(bed: Bed) -> None:
    a = await bed.node("A", max_running=1, max_pending=0).start()
    dag = chain_of(2)
    done = await value(a, await submit(a, "done", dag))
    await submit(a, "busy", sleeping(5.0))
    assert await value(a, await submit(a, "done", dag, client="another call")) == done
    with pytest.raises(QueueFull):
        await submit(a, "new", dag)
    with pytest.raises(QueueFull):
        await submit(a, "done", dag, client="a third", if_exists="replace")


@clusters()
async def test_nothing_may_wait_where_max_pending_is_0(bed: Bed) -> None:
    a = await bed.node("A", max_running=1, max_pending=0).start()
    met = await asyncio.gather(*(submit(a, f"w{n}", sleeping(5.0)) for n in range(4)), return_exceptions=True)
    assert sum(isinstance(m, QueueFull) for m in met) == 3


@clusters()
async def test_a_pending_workflow_is_resumed_elsewhere_and_runs(bed: Bed) -> None:
    a = await bed.node("A", max_running=1).start()
    await submit(a, "first", sleeping(100.0))
    await submit(a, "second", chain_of(3))
    a.kill()
    b = await bed.node("B").start()
    assert await b.call(b.coordinator.status("second")) is S.RESUMABLE
    assert await value(b, await resume(b, "second")) == 3


@clusters()
async def test_cancel_works_on_what_is_pending_and_it_never_runs(bed: Bed) -> None:
    a = await bed.node("A", max_running=1).start()
    first = await submit(a, "first", sleeping(5.0))
    await submit(a, "second", chain_of(3))
    assert await a.call(a.coordinator.cancel("second", CONTEXT)) is S.CANCELED
    await value(a, first)
    await asyncio.sleep(5.0)
    assert not [k for k in bed.calls if k.startswith("second")]


@clusters()
async def test_room_that_is_made_while_a_pending_one_is_cancelled_goes_to_the_next(bed: Bed) -> None:
    a = await bed.node("A", max_running=1).start()
    first = await submit(a, "first", sleeping(5.0))
    await submit(a, "second", sleeping(1.0))
    third = await submit(a, "third", chain_of(2))
    bed.rules.append(lambda c, o, k: Fate(there=0.001, back=6.0) if k.startswith("w/second/j") else None)
    canceling = bed.loop.create_task(a.call(a.coordinator.cancel("second", CONTEXT)))
    await value(a, first)
    assert await value(a, third) == 2
    assert await canceling is S.CANCELED


# -- cancel ----------------------------------------------------------------------------------------------------


@clusters(forever=forever)
async def test_cancel_ends_what_runs_what_waits_and_what_is_queued(bed: Bed) -> None:
    a = await bed.node("A").start()
    a.coordinator.window.size = 3
    b = GraphBuilder()
    graph = b.graph(b.task("list", *[b.task("forever") for _ in range(3000)], b.task("t", kind="timer", seconds=1e5)))
    await submit(a, "x", graph)
    await asyncio.sleep(1.0)
    assert sum(bed.calls.values()) == 3
    assert await a.call(a.coordinator.cancel("x", CONTEXT)) is S.CANCELED
    assert sum(bed.calls.values()) == 3
    assert a.coordinator.window.running == {}
    assert a.coordinator.window.queues == {}
    assert await value(a, await submit(a, "next", chain_of(3))) == 3


@clusters(forever=forever)
async def test_cancel_in_the_same_turn_as_a_start_does_not_hang(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    graph = b.graph(b.task("list", b.task("forever"), b.task("forever")))

    async def at_once() -> Any:
        drive = await a.coordinator.submit(_named("x", graph), CONTEXT)
        assert not isinstance(drive, Answer)
        assert bed.calls == {}, "the attempts are spawned, and not at their first line"
        drive.handle(_cancel())
        drive._stop((0, 1))
        return await a.coordinator.outcome(drive)

    async with asyncio.timeout(20):
        assert (await a.call(at_once())).status is S.CANCELED
    assert a.coordinator.window.running == {}


def _named(workflow_id: str, graph: Graph) -> Any:
    from perdure.entering import Submission

    return Submission(workflow_id, "token", graph)


def _cancel() -> Any:
    from perdure.scheduler import CancelAsked

    return CancelAsked(1.0)


@clusters()
async def test_cancel_of_a_finished_one_changes_nothing_and_of_an_unknown_one_raises(bed: Bed) -> None:
    a = await bed.node("A").start()
    await value(a, await submit(a, "x", chain_of(2)))
    before = bed.keys("w/")
    assert await a.call(a.coordinator.cancel("x", CONTEXT)) is S.SUCCESSFUL
    with pytest.raises(WorkflowNotFoundError):
        await a.call(a.coordinator.cancel("unknown", CONTEXT))
    assert bed.keys("w/") == before


@clusters()
async def test_e1_a_living_owner_is_asked_to_cancel_by_its_inbox_and_a_bell(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await submit(a, "x", sleeping(1000.0))
    began = bed.loop.now
    assert await b.call(b.coordinator.cancel("x", CONTEXT)) is S.CANCELED
    assert bed.loop.now - began < 5
    assert bed.keys("bell/") == []
    assert len(bed.keys(keys.inbox("x", 0))) == 1, "E2: slots stay while the life lasts"


@clusters()
async def test_e6_a_bell_is_a_hint_the_owner_looks_into_its_inboxes_without_one_too(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await submit(a, "x", sleeping(10_000.0))
    bed.rules.append(
        lambda c, o, k: (
            Fate(answered=False, back=900.0, lands=None) if o == "create" and k.startswith("bell/") else None
        )
    )
    canceling = bed.loop.create_task(b.call(b.coordinator.cancel("x", CONTEXT)))
    await until(lambda: bed.oracle.history("x").state.phase is Phase.CANCELED, within=400)
    canceling.cancel()


@clusters()
async def test_a_cancel_that_is_waiting_in_the_inbox_is_seen_by_who_enters_next(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await submit(a, "x", sleeping(1000.0))
    a.process.pause()
    canceling = bed.loop.create_task(b.call(b.coordinator.cancel("x", CONTEXT)))
    await until(lambda: len(bed.keys("in/")) == 1)
    a.kill()
    b.kill()
    with pytest.raises(Dead):
        await canceling
    c = await bed.node("C").start()
    met = await resume(c, "x")
    assert (await c.outcome(met)).status is S.CANCELED


@clusters()
async def test_cancel_of_one_whose_owner_is_dead_claims_it_first(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await submit(a, "x", sleeping(1000.0))
    a.kill()
    assert await b.call(b.coordinator.cancel("x", CONTEXT)) is S.CANCELED
    with pytest.raises(WorkflowNotResumableError, match="cancelled"):
        await resume(b, "x")


@clusters(forever=forever)
async def test_a_cancel_during_an_append_that_is_not_answered_waits_for_it(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    bed.rules.append(
        lambda c, o, k: Fate(answered=False, back=3.0, lands=1.0) if k == f"w/x/j/{1:020d}" and o == "create" else None
    )
    await submit(a, "x", b.graph(b.task("list", b.task("one"), b.task("forever"))))
    await asyncio.sleep(0.1)
    canceling = bed.loop.create_task(a.call(a.coordinator.cancel("x", CONTEXT)))
    await asyncio.sleep(1.5)
    bed.rules.clear()
    assert await canceling is S.CANCELED
    done = [x for s in bed.segments("w/x/") for x in s.records if isinstance(x, r.TaskDone)]
    assert len(done) == 1


# -- delete ----------------------------------------------------------------------------------------------------


@clusters()
async def test_j9_a_deleted_id_begins_a_new_life_that_shows_nothing_of_the_old_one(bed: Bed) -> None:
    a = await bed.node("A").start()
    await value(a, await submit(a, "x", chain_of(40), "t1"))
    await a.call(a.coordinator.delete("x"))
    assert len(bed.keys("w/x/")) == 1, "only the Deleted entry stays"
    for call in (a.coordinator.status("x"), a.coordinator.wait("x"), a.coordinator.delete("x")):
        with pytest.raises(WorkflowNotFoundError):
            await a.call(call)
    assert "x" not in await a.call(a.coordinator.list_all())
    assert await value(a, await submit(a, "x", chain_of(3), "t2")) == 3
    birth = bed.segments("w/x/")[-1].header.birth
    assert birth > 0
    assert (await a.call(a.coordinator.list_all()))["x"][0] is S.SUCCESSFUL


@clusters()
async def test_delete_refuses_what_runs_here_or_elsewhere_and_takes_what_nobody_drives(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await submit(a, "x", sleeping(1000.0))
    for node in (a, b):
        with pytest.raises(WorkflowStillActiveError):
            await node.call(node.coordinator.delete("x"))
    a.kill()
    await b.call(b.coordinator.delete("x"))
    with pytest.raises(WorkflowNotFoundError):
        await resume(b, "x")


@clusters()
async def test_e3_a_purge_of_one_life_leaves_the_signals_of_the_next(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await value(a, await submit(a, "x", chain_of(2), "t1"))
    slow = {"on": True}
    bed.rules.append(lambda c, o, k: Fate(there=30.0, back=0.0) if slow["on"] and c == "B" and o == "delete" else None)
    deleting = bed.loop.create_task(b.call(b.coordinator.delete("x")))
    await until(lambda: bed.oracle.history("x").segments[-1].header.kind == DELETED)
    await submit(a, "x", sleeping(1000.0), "t2")
    a.process.pause()
    c = await bed.node("C").start()
    canceling = bed.loop.create_task(c.call(c.coordinator.cancel("x", CONTEXT)))
    await until(lambda: bool(bed.keys("in/")))
    slow["on"] = False
    await deleting
    assert len(bed.keys("in/")) == 1
    a.process.go_on()
    assert await canceling is S.CANCELED


# -- others ------------------------------------------------------------------------------------------------------


@clusters()
async def test_a_fenced_owner_commits_nothing_and_tells_who_waits(bed: Bed) -> None:
    a = await bed.node("A").start()
    met = await submit(a, "x", sleeping(3.0))
    waiting = bed.loop.create_task(a.outcome(met))
    await asyncio.sleep(1.0)
    a.process.pause()
    await asyncio.sleep(50.0)
    b = await bed.node("B").start()
    assert await value(b, await resume(b, "x")) == [None]
    before = bed.keys("w/x/")
    a.process.go_on()
    with pytest.raises((WorkflowStillActiveError, ClusterError)):
        await waiting
    await asyncio.sleep(30.0)
    assert bed.keys("w/x/") == before
    assert a.coordinator.drives == {}


@clusters()
async def test_who_waits_for_a_workflow_that_is_taken_over_gets_its_output_all_the_same(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await submit(a, "x", sleeping(30.0))
    waiting = bed.loop.create_task(b.call(b.coordinator.wait("x")))
    assert unpacked((await waiting).payload) == [None]


@clusters()
async def test_wait_says_to_resume_what_nobody_drives(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await submit(a, "x", sleeping(1000.0))
    a.kill()
    with pytest.raises(WorkflowNotResumableError, match=r"workflow\.resume\('x'\)"):
        await b.call(b.coordinator.wait("x"))
    with pytest.raises(WorkflowNotFoundError):
        await b.call(b.coordinator.wait("unknown"))


@clusters()
async def test_the_same_workflow_is_resumed_once_by_many_callers(bed: Bed) -> None:
    a = await bed.node("A").start()
    await submit(a, "x", sleeping(1000.0))
    a.kill()
    nodes = [await bed.node(n).start() for n in "BCD"]
    met = await asyncio.gather(*(resume(n, "x") for n in nodes * 2), return_exceptions=True)
    drives = [m for m in met if not isinstance(m, BaseException)]
    assert len(drives) == 1
    assert all(isinstance(m, WorkflowStillActiveError) for m in met if isinstance(m, BaseException))


@clusters()
async def test_a_claim_meets_a_living_owner_that_entered_while_the_dead_one_was_retired(bed: Bed) -> None:
    """Found by the simulation: the second of two claims after one retirement fenced a living owner."""
    a = await bed.node("A").start()
    await submit(a, "x", sleeping(1000.0))
    a.kill()
    b, c = [await bed.node(n).start() for n in "BC"]
    bed.rules.append(
        lambda client, o, k: (
            Fate(there=0.001, back=2.0) if client == "C" and k.startswith(f"c/{a.coordinator.id}") else None
        )
    )
    slow = bed.loop.create_task(resume(c, "x"))
    await asyncio.sleep(2.5)
    await resume(b, "x")
    with pytest.raises(WorkflowStillActiveError):
        await slow
    assert not b.coordinator.drives["x"].fenced


@clusters(boom=boom)
async def test_waiting_for_one_task_ends_when_it_is_decided(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    early = b.task("one", max_retries=0)
    retried = b.task("boom", max_retries=2, retry_exceptions=True, backoff=(5.0, 1.0, 5.0, 0.0), catch_exceptions=True)
    graph = b.graph(b.task("list", early, retried, b.task("t", kind="timer", seconds=100.0)))
    await submit(a, "x", graph)
    began = bed.loop.now
    assert unpacked((await a.call(a.coordinator.wait("x", "one"))).payload) == 1
    assert bed.loop.now - began < 1
    caught = await a.call(a.coordinator.wait("x", "boom"))
    assert unpacked(caught.payload)[0] is None
    assert 9 < bed.loop.now - began < 12, "a retry is not the end"
    with pytest.raises(WorkflowNotFoundError):
        await a.call(a.coordinator.wait("x", "no such task"))


@clusters()
async def test_a_task_value_that_is_not_stored_is_said_to_be_so_without_spinning(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    graph = b.graph(b.task("inc", b.task("one", checkpoint=False)))
    met = await submit(a, "x", graph)
    requests = bed.server.requests
    with pytest.raises(WorkflowNotFoundError, match="checkpoint=False"):
        await a.call(a.coordinator.wait("x", "one"))
    assert await value(a, met) == 2
    assert bed.server.requests - requests < 20


# -- events and timers ---------------------------------------------------------------------------------------------


@clusters(event=lambda: "signal")
async def test_e5_an_event_is_polled_once_and_acknowledged_after_it_is_durable(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    graph = b.graph(b.task("list", b.task("event", kind="event")))
    met = await submit(a, "x", graph)
    assert await value(a, met) == ["signal"]
    assert bed.acknowledged == ["x/0/0"]
    received = next(s for s in bed.segments("w/x/") if any(isinstance(x, r.Received) for x in s.records))
    acknowledged = next(s for s in bed.segments("w/x/") if any(isinstance(x, r.Acknowledged) for x in s.records))
    ended = next(s for s in bed.segments("w/x/") if any(isinstance(x, r.Succeeded) for x in s.records))
    assert received.number < acknowledged.number <= ended.number


@clusters(event=lambda: "signal")
async def test_e5_a_crash_after_the_event_is_received_repeats_the_acknowledgement_not_the_poll(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    graph = b.graph(b.task("list", b.task("event", kind="event"), b.task("t", kind="timer", seconds=50.0)))
    await submit(a, "x", graph)
    await until(lambda: bool(bed.oracle.history("x").state.owed))
    a.kill()
    bed.functions["event"] = lambda: pytest.fail("polled again")
    bed.acknowledged.clear()
    n = await bed.node("B").start()
    assert await value(n, await resume(n, "x")) == ["signal", None]
    assert bed.acknowledged == ["x/0/0"]


@clusters(event=lambda: "signal")
async def test_e5_who_cancels_does_not_wait_long_for_a_source_that_refuses(bed: Bed) -> None:
    tried: list[float] = []

    async def refuse(*_: Any) -> None:
        tried.append(bed.loop.time())
        raise OSError("not now")

    a = await bed.node("A").start()
    a.coordinator.runner.acknowledge = refuse  # type: ignore[method-assign]
    b = GraphBuilder()
    graph = b.graph(b.task("list", b.task("event", kind="event"), b.task("t", kind="timer", seconds=50.0)))
    await submit(a, "x", graph)
    await until(lambda: len(tried) == 5)
    assert a.coordinator.drives["x"].refusals == {0: "OSError: not now"}
    begin = bed.loop.time()
    assert await a.call(a.coordinator.cancel("x", CONTEXT)) is S.CANCELED
    assert bed.loop.time() - begin < 5.0
    assert len([when for when in tried if when >= begin]) == 3, "eight times in all"
    (paid,) = [r_ for s in bed.segments("w/x/") for r_ in s.records if isinstance(r_, r.Acknowledged)]
    assert paid.problem == "OSError: not now"


@clusters(event=lambda value: f"signal {value}")
async def test_e5_a_debt_whose_event_had_inputs_that_are_gone_is_paid_after_a_resume(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    event = b.task("event", b.task("one", checkpoint=False), kind="event")
    await submit(a, "x", b.graph(b.task("list", event)))
    await until(lambda: bool(bed.oracle.history("x").state.owed))
    a.kill()
    n = await bed.node("B").start()
    assert await value(n, await resume(n, "x")) == ["signal 1"]


@clusters()
async def test_e7_after_a_takeover_only_the_rest_of_a_timer_is_waited(bed: Bed) -> None:
    a = await bed.node("A").start()
    began = bed.loop.now
    await submit(a, "x", sleeping(100.0))
    await asyncio.sleep(60.0)
    a.kill()
    b = await bed.node("B").start()
    assert await value(b, await resume(b, "x")) == [None]
    assert 99.5 < bed.loop.now - began < 101


@clusters()
async def test_e7_a_clock_that_is_far_ahead_or_behind_never_waits_longer_than_the_timer_is(bed: Bed) -> None:
    a = await bed.node("A").start()
    await submit(a, "x", sleeping(100.0))
    await submit(a, "y", sleeping(100.0))
    await asyncio.sleep(60.0)
    a.kill()
    behind = await bed.node("B", skew=-5000.0).start()
    began = bed.loop.now
    assert await value(behind, await resume(behind, "x")) == [None]
    assert bed.loop.now - began < 101, "at most its duration"
    ahead = await bed.node("C", skew=5000.0).start()
    began = bed.loop.now
    assert await value(ahead, await resume(ahead, "y")) == [None]
    assert bed.loop.now - began < 2, "the deadline has passed by this clock"


@clusters()
async def test_a_thousand_sleeps_end_together_and_survive_a_crash_in_the_middle(bed: Bed) -> None:
    b = GraphBuilder()
    graph = b.graph(b.task("list", *[b.task("sleep", kind="timer", seconds=5.0) for _ in range(1000)]))
    a = await bed.node("A").start()
    began = bed.loop.now
    await submit(a, "x", graph)
    await asyncio.sleep(2.5)
    a.kill()
    n = await bed.node("B").start()
    assert await value(n, await resume(n, "x")) == [None] * 1000
    assert bed.loop.now - began < 6.5


# -- values that are not stored --------------------------------------------------------------------------------------


@clusters()
async def test_volatile_values_that_died_with_their_cluster_are_made_again(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    volatile = b.task("one", checkpoint=False)
    stored = b.task("inc", volatile)
    graph = b.graph(b.task("list", stored, volatile, b.task("t", stored, kind="timer", seconds=20.0)))
    await submit(a, "x", graph)
    await asyncio.sleep(5.0)
    a.kill()
    bed.values.clear()
    n = await bed.node("B").start()
    assert await value(n, await resume(n, "x")) == [2, 1, None]
    assert bed.calls == {"x/0/0": 2, "x/0/1": 1, "x/0/3": 1}


@clusters()
async def test_a_volatile_value_that_vanishes_under_a_running_workflow_is_made_again(bed: Bed) -> None:
    a = await bed.node("A").start()
    b = GraphBuilder()
    volatile = b.task("inc", b.task("one", checkpoint=False), checkpoint=False)
    timer = b.task("t", volatile, kind="timer", seconds=5.0)
    met = await submit(a, "x", b.graph(b.task("list", timer, volatile, b.task("inc", volatile))))
    await asyncio.sleep(2.0)
    bed.values.clear()
    assert await value(a, met) == [None, 2, 3]
    assert bed.calls["x/0/0"] == bed.calls["x/0/1"] == 2


# -- lists ---------------------------------------------------------------------------------------------------------


@clusters(boom=boom)
async def test_list_all_tells_every_status_from_any_cluster(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    g = GraphBuilder()
    await value(a, await submit(a, "done", chain_of(1)))
    await a.outcome(await submit(a, "failed", g.graph(g.task("boom"))))
    await submit(a, "canceled", sleeping(1000.0))
    await a.call(a.coordinator.cancel("canceled", CONTEXT))
    await submit(a, "running", sleeping(1000.0))
    await value(a, await submit(a, "deleted", chain_of(1)))
    await a.call(a.coordinator.delete("deleted"))
    await asyncio.sleep(6.0)
    want = {"done": S.SUCCESSFUL, "failed": S.FAILED, "canceled": S.CANCELED, "running": S.RUNNING}
    for node in (a, b):
        listed = await node.call(node.coordinator.list_all())
        assert {i: status for i, (status, *_) in listed.items()} == want
        for workflow_id, status in want.items():
            assert await node.call(node.coordinator.status(workflow_id)) is status
    a.kill()
    listed = await b.call(b.coordinator.list_all())
    assert {i: status for i, (status, *_) in listed.items()} == want | {"running": S.RESUMABLE}


@clusters()
async def test_what_is_deleted_and_collected_while_it_is_read_is_unknown_and_what_is_damaged_is_told(bed: Bed) -> None:
    a, b = [await bed.node(n).start() for n in "AB"]
    await value(a, await submit(a, "x", chain_of(1)))

    async def damaged(*_: Any, **__: Any) -> None:
        raise CorruptedError("its tasks are missing")

    b.coordinator.reader.fold = damaged  # type: ignore[method-assign]
    with pytest.raises(CorruptedError, match="its tasks are missing"):
        await b.call(b.coordinator.read("x"))

    async def collected(*_: Any, **__: Any) -> None:
        await a.call(a.coordinator.delete("x"))
        raise CorruptedError("its tasks are missing")

    b.coordinator.reader.fold = collected  # type: ignore[method-assign]
    with pytest.raises(WorkflowNotFoundError):
        await b.call(b.coordinator.read("x"))
