"""The state machine of one workflow: every row of its table, and what it refuses."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.bench import Bench, facts, volatile
from support.doubles import GraphBuilder, packed, unpacked

from perdure import records as r
from perdure import scheduler as s
from perdure import state as state_module
from perdure.graph import Graph
from perdure.state import TRANSITIONS, IllegalTransition, Phase, State, TaskStatus, compact, fold

SCENARIOS: list[Callable[[], None]] = []


def scenario(function: Callable[[], None]) -> Callable[[], None]:
    SCENARIOS.append(function)
    return function


def chain(*names: str, **options: Any) -> Graph:
    b = GraphBuilder()
    last = b.task(names[0], **options)
    for name in names[1:]:
        last = b.task(name, last)
    return b.graph(last)


@scenario
def test_dependents_start_only_when_their_inputs_are_committed() -> None:
    bench = Bench(chain("a", "b"))
    assert set(bench.started) == {0}
    bench.value("a", 1, commit=False)
    assert bench.status("a") is TaskStatus.RECORDING
    assert set(bench.started) == set(), "J1: b must wait for the commit"
    bench.commit()
    assert set(bench.started) == {1}
    bench.value("b", 2, commit=False)
    (last,) = bench.uncommitted
    assert [type(x) for x in last] == [r.TaskDone, r.Succeeded], "both ride in one segment"
    assert not bench.ended
    bench.commit()
    assert bench.ended == [s.End(Phase.SUCCEEDED)]
    assert bench.output() == 2


@scenario
def test_shared_nodes_run_once_and_siblings_start_together() -> None:
    b = GraphBuilder()
    one = b.task("one")
    bench = Bench(b.graph(b.task("add", b.task("l", one), b.task("r", one))))
    assert set(bench.started) == {0}
    bench.value("one", 1)
    assert set(bench.started) == {1, 2}
    bench.value("l", 1, commit=False)
    bench.value("r", 1, commit=False)
    bench.commit(1)
    assert 3 not in bench.started
    bench.commit(1)
    assert set(bench.started) == {3}


@scenario
def test_an_attempt_that_never_began_starts_again_and_costs_no_retry() -> None:
    bench = Bench(chain("a"))
    for _ in range(10):
        bench.outcome("a", s.NotBegun("no room", preempted=True))
        assert bench.status("a") is TaskStatus.RUNNING
        assert bench.task("a").attempts == 0
    assert not bench.uncommitted


@scenario
def test_a_retry_waits_for_its_record_and_its_delay() -> None:
    bench = Bench(chain("a", max_retries=2, retry_exceptions=True, backoff=(1.0, 2.0, 60.0, 0.1)))
    for attempt in (1, 2):
        bench.fails("a", retryable=True, commit=False)
        assert bench.status("a") is TaskStatus.RECORDING
        bench.commit()
        assert bench.status("a") is TaskStatus.BACKOFF
        assert bench.task("a").attempts == attempt
        bench.do(s.DelayOver(0))
        assert bench.started[0] == s.Start(0, attempt, True)
    bench.fails("a", retryable=True)
    assert bench.ended == [s.End(Phase.FAILED)]


@scenario
def test_a_retry_without_delay_starts_at_once() -> None:
    bench = Bench(chain("a", max_retries=1, retry_exceptions=True))
    bench.fails("a", retryable=True)
    assert bench.started[0] == s.Start(0, 1, True)


@scenario
def test_tries_are_counted_over_resumes() -> None:
    bench = Bench(chain("a", max_retries=2, retry_exceptions=True))
    bench.fails("a", retryable=True)
    bench.resume()
    assert bench.task("a").attempts == 1
    bench.fails("a", retryable=True)
    bench.fails("a", retryable=True)
    assert bench.ended == [s.End(Phase.FAILED)]


@scenario
def test_endless_retries_have_no_last_one() -> None:
    bench = Bench(chain("a", max_retries=-1))
    for _ in range(200):
        bench.fails("a", retryable=True)
    assert bench.status("a") is TaskStatus.RUNNING


@scenario
def test_a_continuation_gives_its_value_to_all_that_it_continues() -> None:
    bench = Bench(chain("a", "b"))
    bench.graph("a", chain("c"))
    assert bench.status("a") is TaskStatus.CONTINUED
    bench.graph("c", chain("d"))
    bench.value("d", 7)
    assert [bench.status(n) for n in "acd"] == [TaskStatus.DONE] * 3
    assert unpacked(bench.task("a").payload) == 7
    assert 1 in bench.started


@scenario
def test_tail_recursion_of_5000_continuations_does_not_grow_the_stack() -> None:
    bench = Bench(chain("a"))
    state_only = State()
    state_only.apply(bench.history[0])
    for n in range(5000):
        state_only.apply(r.Continued(n, chain("a")))
    state_only.apply(r.TaskDone(5000, packed(1)))
    state_only.apply(r.Succeeded(1.0))
    assert unpacked(state_only.tasks[0].payload) == 1
    state_only.validate()


@scenario
def test_a_failed_continuation_fails_what_it_continues() -> None:
    bench = Bench(chain("a", "b"))
    bench.graph("a", chain("c"))
    bench.fails("c")
    assert bench.status("a") is bench.status("c") is TaskStatus.FAILED
    assert bench.state.tasks[bench.state.failed_task].name == "c"
    assert bench.ended == [s.End(Phase.FAILED)]
    bench.resume(retry_failed=True)
    assert bench.status("a") is TaskStatus.CONTINUED
    assert set(bench.started) == {2}, "a itself does not run again, its continuation does"
    bench.value("c", 1)
    bench.value("b", 2)
    assert bench.output() == 2


@scenario
def test_a_caught_failure_is_an_outcome() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("b", b.task("a", catch_exceptions=True))))
    bench.fails("a")
    value, error = unpacked(bench.task("a").payload)
    assert value is None
    assert isinstance(error, ValueError)
    bench.value("b", 1)
    assert bench.output() == 1


@scenario
def test_catching_wraps_values_too_also_around_continuations() -> None:
    bench = Bench(chain("a", catch_exceptions=True))
    bench.graph("a", chain("c"))
    bench.value("c", 3)
    assert bench.output() == (3, None)
    bench = Bench(chain("a", catch_exceptions=True))
    bench.graph("a", chain("c"))
    bench.fails("c")
    assert bench.output()[0] is None
    assert bench.ended == [s.End(Phase.SUCCEEDED)]


@scenario
def test_siblings_of_a_failed_task_finish_and_stay() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("add", b.task("bad"), b.task("good"))))
    bench.fails("bad")
    assert bench.state.phase is Phase.FAILING
    assert not bench.ended
    bench.value("good", 1)
    assert bench.ended == [s.End(Phase.FAILED)]
    bench.resume(retry_failed=True)
    assert set(bench.started) == {0}, "good is not run again"


@scenario
def test_a_failing_workflow_waits_for_no_event_no_timer_and_no_retry() -> None:
    b = GraphBuilder()
    parts = [
        b.task("bad"),
        b.task("event", kind="event"),
        b.task("timer", kind="timer", seconds=5.0),
        b.task("again", max_retries=5, retry_exceptions=True, backoff=(9.0, 1.0, 9.0, 0.0)),
    ]
    bench = Bench(b.graph(b.task("all", *parts)))
    bench.fails("again", retryable=True)
    bench.do(s.ClockRead(bench.clocks[0], 100.0, 5.0))
    bench.commit()
    bench.fails("bad", commit=False)
    bench.commit(1)
    assert bench.stopped == [1, 2]
    bench.commit()
    assert bench.ended == [s.End(Phase.FAILED)]


@scenario
def test_a_timer_whose_record_comes_after_the_failure_is_not_armed() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("all", b.task("bad"), b.task("t", kind="timer", seconds=5.0))))
    bench.fails("bad", commit=False)
    bench.do(s.ClockRead(1, 100.0, 5.0))
    bench.commit()
    assert not bench.started
    assert bench.ended == [s.End(Phase.FAILED)]


@scenario
def test_a_clock_that_is_read_too_late_is_forgotten() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("all", b.task("bad"), b.task("t", kind="timer", seconds=5.0))))
    bench.fails("bad")
    assert bench.do(s.ClockRead(1, 100.0, 5.0)) == []


@scenario
def test_e7_a_timer_is_armed_after_its_record_and_kept_over_a_resume() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("t", kind="timer", seconds=5.0)))
    bench.do(s.ClockRead(0, 105.0, 5.0))
    assert not bench.started
    bench.commit()
    assert bench.started[0] == s.Arm(0, 0, 105.0, 5.0)
    bench.resume()
    assert bench.clocks == [], "the deadline stands"
    assert bench.started[0] == s.Arm(0, 0, 105.0, 5.0)
    bench.value("t")
    assert bench.ended


@scenario
def test_e5_an_event_is_received_then_acknowledged_then_noted() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("use", b.task("e", kind="event"))))
    bench.value("e", "signal", commit=False)
    assert not bench.owed, "never acknowledged before it is durable"
    assert [type(x) for x in bench.uncommitted[0]] == [r.Received]
    bench.commit()
    assert bench.owed == [0]
    bench.value("use", 1)
    assert not bench.ended, "debts are paid before a terminal record"
    bench.resume()
    assert bench.owed == [0], "a crash between repeats the acknowledgement, never the poll"
    assert not bench.started
    bench.do(s.Paid(0))
    bench.commit()
    assert bench.ended == [s.End(Phase.SUCCEEDED)]


@scenario
def test_e5_debts_are_paid_before_failing_and_before_cancelling() -> None:
    for end in ("fail", "cancel"):
        b = GraphBuilder()
        bench = Bench(b.graph(b.task("use", b.task("e", kind="event"), b.task("bad"))))
        bench.value("e", "signal")
        if end == "fail":
            bench.fails("bad")
        else:
            bench.do(s.CancelAsked(4.0))
            bench.commit()
            bench.outcome("bad", s.NotBegun("stopped"))
            bench.commit()
        assert not bench.ended
        bench.do(s.Paid(0, "refused"))
        bench.commit()
        assert bench.ended == [s.End(Phase.FAILED if end == "fail" else Phase.CANCELED)]


@scenario
def test_cancel_stops_what_runs_and_starts_nothing_more() -> None:
    b = GraphBuilder()
    parts = [b.task("a"), b.task("e", kind="event"), b.task("t", kind="timer", seconds=5.0)]
    bench = Bench(b.graph(b.task("all", *parts)))
    bench.do(s.ClockRead(2, 100.0, 5.0))
    bench.do(s.CancelAsked(4.0))
    bench.commit()
    assert sorted(bench.stopped) == [0, 1, 2]
    assert bench.do(s.CancelAsked(5.0)) == [], "twice is once"
    bench.outcome("a", s.Value(packed(1), 1.0, 2.0))
    bench.commit()
    assert bench.ended == [s.End(Phase.CANCELED)]
    assert bench.state.tasks[0].payload is None


@scenario
def test_the_first_terminal_record_wins_over_a_cancel() -> None:
    bench = Bench(chain("a"))
    bench.value("a", 1, commit=False)
    assert bench.do(s.CancelAsked(4.0)) == []
    bench.commit()
    assert bench.ended == [s.End(Phase.SUCCEEDED)]
    bench = Bench(chain("a"))
    bench.do(s.CancelAsked(4.0))
    bench.value("a", 1)
    assert bench.ended == [s.End(Phase.CANCELED)]


@scenario
def test_a_cancel_that_was_recorded_ends_after_a_resume() -> None:
    bench = Bench(chain("a", "b"))
    bench.do(s.CancelAsked(4.0))
    bench.commit(1)
    bench.resume()
    assert not bench.started
    bench.commit()
    assert bench.ended == [s.End(Phase.CANCELED)]


@scenario
def test_a_pending_workflow_starts_when_room_is_made_also_after_a_resume() -> None:
    bench = Bench(chain("a"), pending=True)
    assert not bench.started
    bench.resume()
    assert not bench.started
    bench.do(s.RoomMade(5.0))
    assert not bench.started
    bench.commit()
    assert set(bench.started) == {0}


@scenario
def test_a_pending_workflow_that_is_cancelled_never_runs() -> None:
    bench = Bench(chain("a"), pending=True)
    bench.do(s.CancelAsked(4.0))
    bench.do(s.RoomMade(5.0))
    bench.commit()
    assert not bench.started
    assert bench.ended == [s.End(Phase.CANCELED)]


@scenario
def test_volatile_values_are_not_recorded_and_come_back_when_they_are_lost() -> None:
    b = GraphBuilder()
    a = b.task("a", checkpoint=False)
    v = b.task("v", a, checkpoint=False)
    bench = Bench(b.graph(b.task("z", b.task("y", v), v)))
    bench.value("a", 1, volatile=True)
    bench.value("v", 2, volatile=True)
    assert not bench.uncommitted
    bench.value("y", 3)
    bench.do(s.ValueLost(1))
    bench.do(s.ValueLost(0))
    bench.do(s.ValueLost(1))
    assert bench.status("z") is TaskStatus.RUNNING
    bench.outcome("z", s.NotBegun("input lost"))
    assert bench.status("z") is TaskStatus.WAITING
    assert set(bench.started) == {0, 1}
    bench.outcome("v", s.NotBegun("input lost"))
    assert bench.status("v") is TaskStatus.WAITING
    bench.value("a", 1, volatile=True)
    bench.value("v", 2, volatile=True)
    bench.value("z", 4)
    assert bench.output() == 4


@scenario
def test_after_a_resume_volatile_values_that_are_still_needed_are_made_again() -> None:
    b = GraphBuilder()
    a = b.task("a", checkpoint=False)
    mid = b.task("m", a)
    bench = Bench(b.graph(b.task("z", mid, a)))
    bench.value("a", 1, volatile=True)
    bench.value("m", 2)
    bench.resume()
    assert set(bench.started) == {0}
    bench.value("a", 1, volatile=True)
    assert set(bench.started) == {2}, "m is not run again"


@scenario
def test_a_lost_continued_value_is_made_again_by_its_root() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("z", b.task("a", checkpoint=False))))
    inner = GraphBuilder()
    bench.graph("a", inner.graph(inner.task("i", checkpoint=False)))
    bench.value("i", 1, volatile=True)
    bench.do(s.ValueLost(0))
    assert bench.status("a") is TaskStatus.CONTINUED
    assert bench.status("i") is TaskStatus.RUNNING
    bench.outcome("z", s.NotBegun("input lost"))
    bench.value("i", 1, volatile=True)
    bench.value("z", 2)
    assert bench.output() == 2


@scenario
def test_a_ready_task_waits_again_when_its_input_is_lost_before_it_starts() -> None:
    b = GraphBuilder()
    v = b.task("v", checkpoint=False)
    graph = b.graph(b.task("z", v, b.task("bad")))
    bench = Bench(graph)
    bench.value("v", 1, volatile=True)
    bench.fails("bad", commit=False)
    # z can't start; whoever else consumes v tells that it is gone
    bench.do(s.ValueLost(0))
    bench.commit()
    bench.value("v", 1, volatile=True)
    assert bench.ended == [s.End(Phase.FAILED)]


@scenario
def test_an_input_that_is_lost_while_a_retry_is_recorded_is_waited_for() -> None:
    b = GraphBuilder()
    v = b.task("v", checkpoint=False)
    bench = Bench(b.graph(b.task("z", v, max_retries=3, backoff=(1.0, 1.0, 1.0, 0.0))))
    bench.value("v", 1, volatile=True)
    bench.fails("z", retryable=True, commit=False)
    bench.do(s.ValueLost(0))
    bench.commit()
    assert bench.status("z") is TaskStatus.BACKOFF
    bench.do(s.DelayOver(1))
    assert bench.status("z") is TaskStatus.WAITING
    bench.value("v", 1, volatile=True)
    assert bench.status("z") is TaskStatus.RUNNING


@scenario
def test_a_reader_folds_records_that_an_owner_wrote_in_another_order_of_readiness() -> None:
    """Values that were never stored leave gaps: a record may stand after an input that the reader never saw."""
    b = GraphBuilder()
    v = b.task("v", checkpoint=False)
    tasks = [b.task(n, v) for n in ("done", "graph", "again", "failed")]
    top = [b.task(n) for n in ("done2", "graph2", "again2", "failed2")]
    graph = b.graph(b.task("all", *tasks, *top))
    failure = state_module.Failure("raised", "E", "no")
    state = fold([r.Created("w", "c", 1.0, graph)])
    for number in range(1, 9):
        if number < 5:
            assert state.tasks[number].status is TaskStatus.WAITING
        else:
            state.tasks[number].step("inputs done")
        kind = state.tasks[number].name[:4]
        if kind == "done":
            state.apply(r.TaskDone(number, packed(1)))
        elif kind == "grap":
            state.apply(r.Continued(number, chain("x")))
        elif kind == "agai":
            state.apply(r.TaskFailed(number, failure, False))
            assert state.tasks[number].attempts == 1
        else:
            state.apply(r.TaskFailed(number, failure, True))
        state.validate()


@scenario
def test_duplicate_names_are_numbered_the_same_way_after_a_resume() -> None:
    b = GraphBuilder()
    bench = Bench(b.graph(b.task("f", b.task("f"), b.task("f_1"), b.task("f"))))
    names = [t.name for t in bench.state.tasks]
    assert len(set(names)) == 4
    bench.resume()
    assert [t.name for t in bench.state.tasks] == names


def test_every_row_of_the_transition_table_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    used: set[Any] = set()

    class Watched(dict[Any, Any]):
        def get(self, key: Any, default: Any = None) -> Any:
            if key in self:
                used.add(key)
            return super().get(key, default)

    monkeypatch.setattr(state_module, "TRANSITIONS", Watched(TRANSITIONS))
    for function in SCENARIOS:
        function()
    assert set(TRANSITIONS) - used == set()


# -- what is refused -----------------------------------------------------------------------------------------


def snapshot(bench: Bench) -> Any:
    scheduler = bench.scheduler
    return copy.deepcopy(
        (
            facts(bench.state),
            [(t.waiting, t.status, t.started, t.ended, t.attempts, t.owed) for t in bench.state.tasks],
            bench.state.done,
            bench.state.progress,
            bench.state.claims,
            sorted(bench.state.functions),
            sorted(scheduler.running),
            list(scheduler.ready),
            sorted(scheduler.backoff),
            scheduler.recording,
            scheduler.ending,
            scheduler.begun,
        )
    )


ILLEGAL: list[s.Event] = [
    s.Begin(1.0),
    s.Outcome(0, 1, s.Value(packed(1))),
    s.Outcome(1, 0, s.Value(packed(1))),
    s.Outcome(99, 0, s.NotBegun("no")),
    s.Committed((r.TaskDone(0, packed(1)),)),
    s.DelayOver(0),
    s.DelayOver(99),
    s.Paid(0),
    s.Paid(99),
    s.Paid(-1),
    s.ValueLost(99),
    s.RoomMade(1.0),
]


@pytest.mark.parametrize("event", ILLEGAL, ids=repr)
def test_an_illegal_event_raises_and_leaves_the_state_as_it_was(event: s.Event) -> None:
    bench = Bench(chain("a", "b", "c"))
    before = snapshot(bench)
    with pytest.raises(IllegalTransition):
        bench.scheduler.handle(event)
    assert snapshot(bench) == before
    bench.scheduler.validate()
    bench.value("a", 1)
    bench.value("b", 1)
    bench.value("c", 1)
    assert bench.ended


@pytest.mark.parametrize(
    "record",
    [
        r.TaskDone(0, packed(1)),
        r.TaskDone(77, packed(1)),
        r.TaskDone(-1, packed(1)),
        r.TaskFailed(0, state_module.Failure("raised", "E", "no"), True),
        r.TaskFailed(0, state_module.Failure("raised", "E", "no"), False),
        r.Continued(1, None, "blob"),
        r.Continued(1, Graph([state_module.Node("x", function=0)], 0, [state_module.Function("x", "dx")], [])),
        r.Continued(0, chain("x")),
        r.Received(0, packed(1)),
        r.Succeeded(9.0),
        r.Failed(9.0, 77),
        r.Created("w", "c", 1.0, None, "blob"),
        r.Page(1.0, 1.0, 0),
    ],
    ids=lambda record: type(record).__name__,
)
def test_an_illegal_record_raises_and_leaves_the_state_as_it_was(record: r.Record) -> None:
    bench = Bench(chain("a", "b", "c"))
    bench.value("a", 1)
    before = snapshot(bench)
    with pytest.raises(IllegalTransition) as error:
        bench.state.apply(record)
    assert snapshot(bench) == before
    assert str(error.value)


def test_nothing_begins_in_a_finished_or_missing_workflow() -> None:
    for records in ([], [r.Created("w", "c", 1.0, chain("a")), r.TaskDone(0, packed(1)), r.Succeeded(1.0)]):
        scheduler = s.Scheduler(fold(records))
        with pytest.raises(IllegalTransition):
            scheduler.handle(s.Begin(1.0))


def test_the_story_of_the_task_is_in_the_error() -> None:
    bench = Bench(chain("fetch"))
    with pytest.raises(IllegalTransition, match=r"task 0 \(fetch\) is RUNNING.*delay over.*attempts 0"):
        bench.task("fetch").step("delay over")


# -- random histories ----------------------------------------------------------------------------------------


def random_graph(rng: random.Random, prefix: str = "t") -> Graph:
    b = GraphBuilder()
    refs = []
    for n in range(rng.randint(1, 7)):
        upstream = rng.sample(refs, min(len(refs), rng.randint(0, 2)))
        kind = rng.choices(["task", "event", "timer"], [8, 1, 1])[0]
        options: dict[str, Any] = {}
        if kind == "task":
            options = {
                "checkpoint": rng.random() < 0.8,
                "catch_exceptions": rng.random() < 0.2,
                "max_retries": rng.randint(0, 3),
                "backoff": (rng.choice([0.0, 1.0]), 2.0, 60.0, 0.0),
            }
        refs.append(b.task(f"{prefix}{n}", *upstream, kind=kind, seconds=5.0 if kind == "timer" else None, **options))
    return b.graph(b.task(f"{prefix}root", *refs))


def random_walk(seed: int) -> Iterator[Bench]:
    """A run of a random workflow with every kind of event in random order; yields after each event."""
    rng = random.Random(seed)
    bench = Bench(random_graph(rng), pending=rng.random() < 0.1)
    depth = 0
    for _ in range(250):
        yield bench
        choices: list[str] = []
        choices += ["outcome"] * 4 * bool([n for n in bench.started if not isinstance(bench.started[n], s.Arm)])
        choices += ["timer"] * any(isinstance(c, s.Arm) for c in bench.started.values())
        choices += ["commit"] * 4 * bool(bench.uncommitted)
        choices += ["clock"] * bool(bench.clocks) + ["delay"] * bool(bench.delays) + ["pay"] * bool(bench.owed)
        choices += ["room"] * (bench.state.phase is Phase.PENDING)
        if rng.random() < 0.02:
            choices += ["crash", "cancel"]
        if bench.state.phase is Phase.FAILED and rng.random() < 0.8:
            bench.resume(retry_failed=True)
            continue
        if not choices:
            break
        what = rng.choice(choices)
        if what == "commit":
            bench.commit(1)
        elif what == "crash":
            if bench.state.phase not in (Phase.SUCCEEDED, Phase.CANCELED, Phase.FAILED):
                bench.resume()
        elif what == "cancel" and rng.random() < 0.3:
            bench.do(s.CancelAsked(4.0))
        elif what == "clock":
            bench.do(s.ClockRead(bench.clocks.pop(0), 100.0, 5.0))
        elif what == "delay":
            number = bench.delays.pop(0)
            if number in bench.scheduler.backoff:
                bench.do(s.DelayOver(number))
        elif what == "pay":
            bench.do(s.Paid(bench.owed.pop(0)))
        elif what == "room":
            if not any(isinstance(x, r.Started) for g in bench.uncommitted for x in g):
                bench.do(s.RoomMade(5.0))
        elif what in ("outcome", "timer"):
            number = rng.choice(sorted(bench.started))
            if number not in bench.scheduler.running:
                del bench.started[number]  # stopped meanwhile
                continue
            task, command = bench.state.tasks[number], bench.started[number]
            if not isinstance(command, s.Start):
                bench.value(task.name, number, commit=False)
                continue
            luck = rng.random()
            if luck < 0.6:
                bench.value(task.name, number, volatile=not command.persist, commit=False)
            elif luck < 0.75:
                bench.fails(task.name, retryable=rng.random() < 0.8, commit=False)
            elif luck < 0.85 and depth < 4:
                depth += 1
                bench.graph(task.name, random_graph(rng, f"{task.name}."), commit=False)
            elif luck < 0.95:
                tasks = bench.state.tasks
                lost = [
                    u for u in task.upstream() if tasks[u].status is TaskStatus.DONE and volatile(bench.state, tasks[u])
                ]
                for u in lost[:1]:
                    bench.do(s.ValueLost(u))
                bench.outcome(task.name, s.NotBegun("no room"))
    yield bench


@pytest.mark.parametrize("seed", range(300))
def test_random_events_keep_every_invariant(seed: int) -> None:
    for _ in random_walk(seed):
        pass


@pytest.mark.parametrize("seed", range(300))
def test_a_compacted_history_folds_to_the_same_state(seed: int) -> None:
    *_, bench = random_walk(seed)
    rng = random.Random(seed)
    whole = facts(fold(bench.history), durable=True)
    assert facts(fold(compact(bench.history)), durable=True) == whole
    cuts = sorted(rng.sample(range(len(bench.history) + 1), min(3, len(bench.history))))
    pieces = [bench.history[a:b] for a, b in zip([0, *cuts], [*cuts, len(bench.history)], strict=True)]
    by_parts = [record for piece in pieces for record in compact(piece)]
    assert facts(fold(by_parts), durable=True) == whole
    assert facts(fold(compact(by_parts)), durable=True) == whole
    assert fold(by_parts).claims <= fold(bench.history).claims
