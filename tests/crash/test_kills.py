"""kill -9 of each kind of process, while workflows of 31 tasks run, at moments given by their journals' lengths.

After each: the right result, and no task ran again whose record could be read before the kill.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from support import stored
from support.clusters import Console, Head, Scene, kill, until
from support.program import TASKS, VALUE


class Before:
    """What could be read of some workflows just before a kill."""

    def __init__(self, storage: Path, side: Path, workflow_ids: Iterable[str]) -> None:
        self.storage, self.side = storage, side
        self.done = {i: stored.done(storage, i) for i in workflow_ids}
        self.runs = {i: stored.executions(side, i) for i in self.done}

    def check(self) -> None:
        """Nothing that was readable ran again, and all has run."""
        for workflow_id, finished in self.done.items():
            after = stored.executions(self.side, workflow_id)
            again = {
                t: (self.runs[workflow_id][t], after[t]) for t in finished if after[t] != self.runs[workflow_id][t]
            }
            assert not again, f"{workflow_id}: tasks with readable records ran again: {again}"
            assert len(after) == TASKS
            assert stored.done(self.storage, workflow_id) == set(after)


def reach(storage: Path, workflow_id: str, segments: int) -> None:
    until(lambda: stored.segments(storage, workflow_id) >= segments, f"{workflow_id} has {segments} segments")


def newest_worker(side: Path, workflow_id: str) -> int:
    lines = [line.split() for line in side.read_text().splitlines()]
    return int([pid for found, _, pid, _ in lines if found == workflow_id][-1])


WORKER_MOMENTS = [2, 5, 8, 11, 14, 17]


@pytest.mark.parametrize("segments", WORKER_MOMENTS)
def test_a_killed_worker_costs_only_the_attempt_that_it_ran(scene: Scene, segments: int) -> None:
    name = f"worker-{segments}"
    scene.console.do("begin", name, str(scene.side))
    reach(scene.storage, name, segments)
    before = Before(scene.storage, scene.side, [name])
    kill(newest_worker(scene.side, name))
    assert scene.console.do("join", name) == VALUE
    before.check()
    total = sum(stored.executions(scene.side, name).values())
    assert total <= TASKS + 2, "a kill of one worker repeated more than its attempt"


@pytest.mark.parametrize("moments", [(1, 3), (6, 4), (9, 12), (16, 1)])
def test_a_killed_coordinator_is_restarted_and_goes_on_by_itself(scene: Scene, moments: tuple[int, int]) -> None:
    names = [f"coordinator-{moments[0]}-{n}" for n in range(2)]
    old = scene.console.do("coordinator")
    for name, segments in zip(names, moments, strict=True):
        scene.console.do("begin", name, str(scene.side))
        reach(scene.storage, name, segments)
    before = Before(scene.storage, scene.side, names)
    kill(old["pid"])
    for name in names:
        assert scene.console.do("join", name) == VALUE  # the `run` that waited when it happened
    before.check()
    new = scene.console.do("coordinator")
    assert new["pid"] != old["pid"]
    assert new["coordinator"] != old["coordinator"]
    assert stored.retired(scene.storage, old["coordinator"])


@pytest.mark.parametrize("moments", [(1, 5), (8, 2), (13, 10)])
def test_workflows_go_on_when_their_driver_is_killed(scene: Scene, moments: tuple[int, int]) -> None:
    names = [f"driver-{moments[0]}-{n}" for n in range(2)]
    with scene.connect() as driver:
        for name, segments in zip(names, moments, strict=True):
            driver.do("begin", name, str(scene.side))
            reach(scene.storage, name, segments)
        before = Before(scene.storage, scene.side, names)
        kill(driver.process.pid)
    for name in names:
        assert scene.console.do("output", name) == VALUE
        assert stored.executions(scene.side, name) == Counter(stored.done(scene.storage, name))
    before.check()


def test_another_cluster_finishes_what_killed_clusters_began(tmp_path: Path) -> None:
    _clusters(tmp_path, [(2, 4), (7, 1), (12, 9)])


@pytest.mark.nightly
def test_another_cluster_finishes_what_killed_clusters_began_at_many_moments(tmp_path: Path) -> None:
    _clusters(tmp_path, [(n, 1 + (n * 7) % 19) for n in range(1, 20)])


def _clusters(tmp_path: Path, rounds: list[tuple[int, int]]) -> None:
    """Each cluster finishes what the one before it began, begins two more and is killed."""
    storage, side = tmp_path / "store", tmp_path / "side"
    left: Before | None = None
    for number in range(len(rounds) + 1):
        with Head() as head, Console(head, storage=str(storage)) as console:
            if left is not None:
                for name in left.done:
                    assert console.do("status", name) == "RESUMABLE"
                    console.do("begin_resume", name)
                for name in left.done:
                    assert console.do("join", name) == VALUE
                left.check()
            if number == len(rounds):
                break
            names = [f"cluster-{number}-{n}" for n in range(2)]
            for name, segments in zip(names, rounds[number], strict=True):
                console.do("start", name, str(side))
                reach(storage, name, segments)
            left = Before(storage, side, names)
            head.kill()
