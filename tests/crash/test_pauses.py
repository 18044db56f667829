"""Clusters that compete: a coordinator that sleeps (SIGSTOP) while another cluster takes over, and a race to resume."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import stored
from support.clusters import Refused, Scene, kill, until
from support.program import TASKS, VALUE

LEASE = 3.0


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Scene, Scene]]:
    """Two clusters with one store."""
    folder = tmp_path_factory.mktemp("two")
    first = Scene(folder, lease_seconds=LEASE)
    try:
        second = Scene(folder, lease_seconds=LEASE)
        try:
            yield first, second
        finally:
            second.close()
    finally:
        first.close()


def test_of_two_clusters_that_resume_one_id_exactly_one_drives_it(two: tuple[Scene, Scene]) -> None:
    first, second = two
    with Scene(first.storage.parent, lease_seconds=LEASE) as third:
        third.console.do("start", "raced", str(first.side))
        until(lambda: stored.segments(first.storage, "raced") >= 4, "raced has 4 segments")
        third.head.kill()
    done = stored.done(first.storage, "raced")
    before = stored.executions(first.side, "raced")
    for scene in two:
        scene.console.do("begin_resume", "raced")
    results: list[object] = []
    for scene in two:
        try:
            results.append(scene.console.do("join", "raced"))
        except Refused as error:
            results.append(error.kind)
    assert sorted(results, key=str) in ([VALUE, VALUE], [VALUE, "WorkflowStillActiveError"])
    after = stored.executions(first.side, "raced")
    assert all(after[task] == before[task] for task in done)
    assert all(after[task] - before[task] <= 1 for task in after), "two clusters ran the same task"
    assert len(after) == TASKS
    assert second.console.do("status", "raced") == "SUCCESSFUL"


def test_a_coordinator_that_slept_through_a_takeover_commits_nothing_and_begins_nothing(
    two: tuple[Scene, Scene],
) -> None:
    sleeper, other = two
    name = "slept"
    hello = sleeper.console.do("coordinator")
    sleeper.console.do("begin", name, str(sleeper.side), 0.2)
    until(lambda: stored.segments(sleeper.storage, name) >= 4, "four segments")
    kill(hello["pid"], signal.SIGSTOP)
    try:
        done = stored.done(sleeper.storage, name)
        before = stored.executions(sleeper.side, name)
        assert other.console.do("resume", name) == VALUE  # waits for a lease of silence, then takes over
        assert stored.retired(sleeper.storage, hello["coordinator"])
        taken = lines(sleeper.side, name)
        _, last, owner = stored.state(sleeper.storage, name)
        assert owner != hello["coordinator"]
    finally:
        woken = time.clock_gettime(time.CLOCK_BOOTTIME)
        kill(hello["pid"], signal.SIGCONT)
    # the `run` that waited at the sleeper's cluster gets the result from the store
    assert sleeper.console.do("join", name) == VALUE
    # it has found out, ended its process, and Ray has started another
    until(lambda: not os.path.exists(f"/proc/{hello['pid']}"), "the retired coordinator has ended")
    again = sleeper.console.do("coordinator")
    assert again["coordinator"] != hello["coordinator"]
    assert stored.state(sleeper.storage, name)[1:] == (last, owner), "the woken coordinator wrote to the chain"
    late = [line for line in lines(sleeper.side, name)[len(taken) :] if float(line[3]) > woken]
    assert not late, "tasks began after the takeover"
    after = stored.executions(sleeper.side, name)
    assert all(after[task] == before[task] for task in done)


def lines(side: Path, workflow_id: str) -> list[list[str]]:
    return [line.split() for line in side.read_text().splitlines() if line.split()[0] == workflow_id]
