"""Clusters that share nothing but a store behind a network: one is killed, two others compete for what it left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import servers
from support import stored
from support.clusters import Refused, Scene, until
from support.program import TASKS, VALUE, held
from support.remote import ENVIRONMENT, LEASE

IDS = ("moved", "raced")


@dataclass
class Left:
    """What a killed cluster left: two workflows in the middle. ``done`` and ``runs`` by workflow."""

    first: Scene
    second: Scene
    done: dict[str, set[str]]
    runs: dict[str, Counter[str]]

    def check(self, workflow_id: str) -> Counter[str]:
        """Finished tasks did not run again, all others ran; how often each ran since the kill."""
        after = stored.executions(self.first.side, workflow_id)
        assert len(after) == TASKS
        since = after - self.runs[workflow_id]
        assert not self.done[workflow_id] & set(since), "tasks whose results were stored ran again"
        return since


@pytest.fixture(scope="module")
def left(server: servers.Server, kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Left]:
    folder, url = tmp_path_factory.mktemp(f"clusters-{kind}"), server.url("clusters")
    with (
        Scene(folder, url, ENVIRONMENT, lease_seconds=LEASE) as first,
        Scene(folder, url, ENVIRONMENT, lease_seconds=LEASE) as second,
    ):
        with Scene(folder, url, ENVIRONMENT, lease_seconds=LEASE) as killed:
            hold = Path(held(killed.side))
            hold.touch()
            for workflow_id in IDS:
                killed.console.do("start", workflow_id, str(killed.side), 0.1)
            for workflow_id in IDS:
                until(lambda: len(stored.done(url, workflow_id)) >= 5, "five results", pause=0.05)  # noqa: B023
            killed.head.kill()
            hold.unlink()
        done = {i: stored.done(url, i) for i in IDS}
        runs = {i: stored.executions(first.side, i) for i in IDS}
        assert all(0 < len(done[i]) < TASKS for i in IDS)
        yield Left(first, second, done, runs)


def test_g1_another_cluster_finishes_what_a_killed_one_began(left: Left) -> None:
    assert left.second.console.do("resume", "moved") == VALUE
    left.check("moved")
    assert left.first.console.do("output", "moved") == VALUE  # read by the other
    assert stored.done(left.second.storage, "moved") == set(stored.executions(left.first.side, "moved"))


def test_g3_of_two_clusters_that_resume_one_id_exactly_one_drives_it(left: Left) -> None:
    scenes = (left.first, left.second)
    for scene in scenes:
        scene.console.do("begin_resume", "raced")
    results: list[object] = []
    for scene in scenes:
        try:
            results.append(scene.console.do("join", "raced"))
        except Refused as error:
            results.append(error.kind)
    assert sorted(results, key=str) in ([VALUE, VALUE], [VALUE, "WorkflowStillActiveError"])
    since = left.check("raced")
    assert max(since.values()) == 1, "two clusters ran the same task"
    for scene in scenes:
        assert scene.console.do("status", "raced") == "SUCCESSFUL"
