"""Timers on a real cluster: many at once, big ones, and through a crash (E7)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from support.runs import busy, eventually

from perdure import workflow


@ray.remote
def count(*values: Any) -> int:
    return len(values)


@pytest.fixture
def running(storage: Path) -> Callable[[], int]:
    """How many workflows run now."""
    return lambda: len(workflow.list_all(workflow.RUNNING))


def test_a_thousand_sleeps_of_one_workflow_end_together(storage: Path) -> None:
    began = time.monotonic()
    assert workflow.run(count.bind(*[workflow.sleep(5) for _ in range(1000)])) == 1000
    # the start of the workflow is in it too
    assert time.monotonic() - began < busy(8.0)


def test_a_thousand_workflows_that_sleep_end_in_time(storage: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda _: workflow.run_async(workflow.sleep(5)), range(1000)))
    started = time.monotonic()
    assert ray.available_resources()["CPU"] == 2
    assert ray.get(results) == [None] * 1000
    assert time.monotonic() - started < busy(6.5)


def test_a_sleep_survives_kill_9_of_the_coordinator_and_only_the_rest_is_waited(
    storage: Path, fresh: str, coordinator: Callable[[], int]
) -> None:
    result = workflow.run_async(workflow.sleep(6), workflow_id=fresh)
    began = time.monotonic()
    time.sleep(3)  # half of it is over
    before = coordinator()
    os.kill(before, signal.SIGKILL)
    assert ray.get(result) is None
    assert 5.5 < time.monotonic() - began < busy(9), "not from the beginning again"
    assert coordinator() != before


def test_a_timer_of_a_thousand_years_waits_and_can_be_cancelled(storage: Path, fresh: str) -> None:
    workflow.run_async(workflow.sleep(3e10), workflow_id=fresh)
    workflow.run(workflow.sleep(0.1))
    assert workflow.get_status(fresh) == workflow.RUNNING
    workflow.cancel(fresh)
    assert workflow.get_status(fresh) == workflow.CANCELED


def test_a_timer_by_wall_time_fires_then_and_at_once_where_it_is_past(storage: Path) -> None:
    due = time.time() + 1
    assert workflow.run(workflow.wait_for_event(workflow.TimerListener, due)) is None
    assert time.time() >= due
    began = time.monotonic()
    workflow.run(workflow.wait_for_event(workflow.TimerListener, 0.0))
    assert time.monotonic() - began < 5


def test_a_timer_whose_time_comes_from_a_task_is_waited_for_too(storage: Path) -> None:
    @ray.remote
    def soon() -> float:
        return time.time() + 0.5

    began = time.time()
    workflow.run(workflow.wait_for_event(workflow.TimerListener, soon.bind()))
    assert time.time() - began >= 0.5


def test_a_timer_takes_options(storage: Path, fresh: str) -> None:
    node = workflow.sleep(0.1).options(**workflow.options(task_id="pause", metadata={"why": "test"}))
    workflow.run(count.bind(node), workflow_id=fresh)
    assert workflow.get_metadata(fresh, "pause")["user_metadata"] == {"why": "test"}


def test_nothing_runs_in_the_end(storage: Path, running: Callable[[], int]) -> None:
    eventually(lambda: running() == 0, "all workflows have ended")
