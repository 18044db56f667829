"""Retry budgets when processes really die."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.clusters import Console, Refused

CRASHING = """
import ray
from perdure import workflow

def note(path):
    with open(path, "a") as file:
        file.write("x")
    return len(open(path).read())

@ray.remote
def die(path, times):
    import os, time
    if note(path) <= times:
        time.sleep(0.1)
        os._exit(3)
    return "alive"

@ray.remote
def stay(path):
    import time
    if note(path) == 1:
        time.sleep(60)
    return "in time"

path = {path!r}
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    return CRASHING.replace("{path!r}", repr(str(tmp_path / "runs")))


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text())


def test_max_retries_bounds_the_crashes_of_a_task(console: Console, code: str, tmp_path: Path) -> None:
    with pytest.raises(Refused) as refused:
        console.do("execute", code + "workflow.run(die.options(max_retries=1).bind(path, 99), workflow_id='crash-1')")
    assert refused.value.kind == "WorkflowExecutionError"
    assert "die" in refused.value.text
    assert "WorkerCrashed" in refused.value.text
    assert runs(tmp_path) == 2
    assert console.do("status", "crash-1") == "FAILED"


def test_a_crash_within_the_budget_is_not_seen(console: Console, code: str, tmp_path: Path) -> None:
    assert console.do("execute", code + "out = workflow.run(die.bind(path, 2))") == "alive"
    assert runs(tmp_path) == 3


def test_catch_exceptions_catches_a_crash_once_retries_are_used_up(console: Console, code: str, tmp_path: Path) -> None:
    value, kind = console.do(
        "execute",
        code
        + "node = die.options(max_retries=1, **workflow.options(catch_exceptions=True)).bind(path, 99)\n"
        + "value, error = workflow.run(node)\nout = [value, type(error).__name__]",
    )
    assert (value, kind) == (None, "WorkerCrashedError")
    assert runs(tmp_path) == 2


def test_max_retries_of_minus_one_never_gives_up(console: Console, code: str, tmp_path: Path) -> None:
    assert console.do("execute", code + "out = workflow.run(die.options(max_retries=-1).bind(path, 5))") == "alive"
    assert runs(tmp_path) == 6


def test_a_timeout_ends_the_attempt_by_force_and_retries(console: Console, code: str, tmp_path: Path) -> None:
    node = "stay.options(**workflow.options(timeout=1.5)).bind(path)"
    assert console.do("execute", code + f"out = workflow.run({node})") == "in time"
    assert runs(tmp_path) == 2


def test_a_worker_ended_by_sigterm_is_a_crash_and_not_the_tasks_failure(
    console: Console, code: str, tmp_path: Path
) -> None:
    """So Ray ends workers when a node is stopped or drained, or their owner has died."""
    source = """
@ray.remote
def ended():
    import os, signal, time
    if note(path) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(30)
    return "alive"

out = workflow.run(ended.bind())
"""
    assert console.do("execute", code + source) == "alive"
    assert runs(tmp_path) == 2


def test_a_users_exit_does_not_end_the_workflow_as_a_crash_of_ray(console: Console, code: str) -> None:
    source = "@ray.remote\ndef leave():\n    import sys\n    sys.exit(4)\nworkflow.run(leave.bind())"
    with pytest.raises(Refused) as refused:
        console.do("execute", code + source)
    assert refused.value.kind == "WorkflowExecutionError"
    assert "SystemExit" in refused.value.text
