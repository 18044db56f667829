"""A failure anywhere inside a continuation: who is failed by it, who catches it, and what is given up."""

from __future__ import annotations

from support.bench import Bench
from support.doubles import GraphBuilder, unpacked

from perdure import scheduler as s
from perdure.graph import Graph
from perdure.state import Phase, TaskStatus


def catcher() -> Graph:
    b = GraphBuilder()
    return b.graph(b.task("after", b.task("catcher", catch_exceptions=True)))


def inside(*, event: bool = False) -> Graph:
    """bad and good (or a wait) in parallel, good's dependent, and a root that needs them all."""
    b = GraphBuilder()
    good = b.task("good", kind="event") if event else b.task("good")
    return b.graph(b.task("join", b.task("bad"), b.task("later", good)))


def test_a_failure_below_the_root_of_a_continuation_is_caught_by_the_task_that_it_continues() -> None:
    bench = Bench(catcher())
    bench.graph("catcher", inside())
    bench.fails("bad")
    value, error = unpacked(bench.task("catcher").payload)
    assert value is None
    assert isinstance(error, ValueError)
    assert bench.state.phase is Phase.RUNNING
    assert bench.task("after").number in bench.started


def test_it_fails_the_workflow_where_nobody_catches_it_and_a_resume_tries_only_it_again() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("outer")))
    bench.graph("outer", inside())
    bench.value("good", 1)
    bench.fails("bad")
    bench.value("later", 2)
    assert bench.ended == [s.End(Phase.FAILED)]
    assert bench.state.tasks[bench.state.failed_task].name == "bad"
    assert bench.status("outer") is TaskStatus.FAILED
    bench.resume(retry_failed=True)
    assert set(bench.started) == {bench.task("bad").number}
    bench.value("bad", 3)
    bench.value("join", 4)
    assert bench.output() == 4


def test_siblings_of_a_caught_failure_finish_but_nothing_more_of_the_continuation_begins() -> None:
    bench = Bench(catcher())
    bench.graph("catcher", inside())
    bench.fails("bad")
    bench.value("good", 1)
    assert bench.status("good") is TaskStatus.DONE
    assert bench.task("later").number not in bench.started
    bench.value("after", 5)
    assert bench.output() == 5
    assert bench.ended == [s.End(Phase.SUCCEEDED)]


def test_waits_of_a_continuation_that_was_given_up_do_not_hold_the_workflow() -> None:
    bench = Bench(catcher())
    bench.graph("catcher", inside(event=True))
    bench.fails("bad")
    assert bench.stopped == [bench.task("good").number]
    bench.value("after", 5)
    assert bench.ended == [s.End(Phase.SUCCEEDED)]


def test_a_second_failure_beside_a_caught_one_changes_nothing() -> None:
    b = GraphBuilder()
    bench = Bench(catcher())
    bench.graph("catcher", b.graph(b.task("join", b.task("bad"), b.task("worse"))))
    bench.fails("bad", commit=False)
    bench.fails("worse", commit=False)
    bench.commit()
    assert bench.state.phase is Phase.RUNNING
    bench.value("after", 5)
    assert bench.output() == 5


def test_a_second_failure_as_the_last_record_does_not_end_a_workflow_that_goes_on() -> None:
    b = GraphBuilder()
    bench = Bench(catcher())
    bench.graph("catcher", b.graph(b.task("join", b.task("bad"), b.task("worse"))))
    bench.fails("bad")
    bench.value("after", 5)
    assert not bench.ended, "worse still runs"
    bench.fails("worse")
    assert bench.ended == [s.End(Phase.SUCCEEDED)]


def test_a_failure_climbs_through_nested_continuations_to_the_first_that_catches() -> None:
    bench = Bench(catcher())
    bench.graph("catcher", inside())
    b = GraphBuilder()
    bench.graph("bad", b.graph(b.task("top", b.task("deep"))))
    bench.fails("deep")
    assert bench.status("bad") is TaskStatus.FAILED
    assert bench.status("catcher") is TaskStatus.DONE
    bench.resume()
    assert set(bench.started) == {bench.task("after").number}, "nobody needs the rest"
    bench.value("after", 1)
    assert bench.output() == 1


def test_whether_a_value_must_be_stored_can_be_asked_of_finished_tasks_too() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("outer", b.task("first"))))
    bench.value("first", 1)
    assert bench.task("first").node is None
    assert bench.state.must_persist(bench.task("first"))
