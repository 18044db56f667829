"""The store goes away in the middle of workflows, and comes back: they wait, and go on by themselves."""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from support import stored
from support.clusters import Scene, kill, processes, until
from support.program import TASKS, VALUE, held
from support.remote import ENVIRONMENT, KINDS, LEASE
from support.stores import start

SHORT, LONG = 8.0, 60.0
SIZES = [pytest.param(SHORT, id="short"), pytest.param(LONG, id="long", marks=pytest.mark.nightly)]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(kind: str) -> Iterator[servers.Server]:
    """fake-gcs-server keeps its objects on disk here, so that it can be killed."""
    running = start(KINDS[kind] if kind != "gs" else lambda: servers.FakeGcs(backend="filesystem"))
    yield running
    running.stop()


@pytest.fixture(scope="module", params=SIZES)
def seconds(request: pytest.FixtureRequest) -> float:
    return float(request.param)


@pytest.fixture(scope="module")
def scene(server: servers.Server, seconds: float, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """In the short size its store gives up after a second, so that it shows what the long one would."""
    url = server.url(f"outages-{seconds:g}")
    if seconds == SHORT:
        url += ("&" if "?" in url else "?") + "retry_seconds=1"
    with Scene(tmp_path_factory.mktemp("outages"), url, ENVIRONMENT, lease_seconds=LEASE) as made:
        yield made


@contextlib.contextmanager
def stopped(server: servers.Server) -> Iterator[None]:
    """The server answers nothing, and keeps its connections open."""
    assert server.process is not None
    pids = [server.process.pid]
    for pid, (parent, _) in sorted(processes().items()):
        if parent in pids:
            pids.append(pid)
    for pid in pids:
        kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def down(server: servers.Server) -> Iterator[None]:
    """Killed: connections are refused. It comes back on the same port and data."""
    server.kill()
    try:
        yield
    finally:
        server.restart()


def begun(scene: Scene, workflow_id: str) -> tuple[set[str], Counter[str]]:
    """Start a workflow; what is stored of it and has run once it is in the middle. It ends after `release`."""
    Path(held(scene.side)).touch()
    scene.console.do("begin", workflow_id, str(scene.side), 0.1)
    until(lambda: stored.segments(scene.storage, workflow_id) >= 4, "four segments")
    return stored.done(scene.storage, workflow_id), stored.executions(scene.side, workflow_id)


def release(scene: Scene) -> None:
    Path(held(scene.side)).unlink()


def check(scene: Scene, workflow_id: str, done: set[str], before: Counter[str]) -> None:
    assert scene.console.do("join", workflow_id) == VALUE
    after = stored.executions(scene.side, workflow_id)
    assert len(after) == TASKS
    assert all(after[task] == before[task] for task in done), "tasks whose results were stored ran again"
    assert stored.done(scene.storage, workflow_id) == set(after), "what was acknowledged is lost"


@pytest.mark.parametrize("share", [0.0, 1.0], ids=["at once", "later"])
def test_s3_a_workflow_goes_on_when_its_killed_server_is_back(
    scene: Scene, server: servers.Server, seconds: float, share: float
) -> None:
    name = f"killed-{share:g}"
    done, before = begun(scene, name)
    with down(server):
        release(scene)
        time.sleep(share * seconds)  # the outage itself
        if share:
            asked = f"cluster.connected().call('progress', {name!r})['problem']"
            described = f"cluster.connected().call('describe', {name!r})['waiting_because']"
            for question in (asked, described):
                said = scene.console.do("execute", f"from perdure.onray import cluster\nout = {question}")
                assert re.search(r"[a-z]+ '.+' in \w+://", said), "what it waits for is said"
    check(scene, name, done, before)


def test_l3_a_workflow_waits_for_a_server_that_does_not_answer_and_goes_on(
    scene: Scene, server: servers.Server, seconds: float
) -> None:
    name = "stopped"
    done, before = begun(scene, name)
    coordinator = scene.console.do("coordinator")["coordinator"]
    with stopped(server):
        release(scene)
        time.sleep(LEASE)
        ran = stored.executions(scene.side, name)
        time.sleep(max(0.0, seconds - LEASE))
        assert stored.executions(scene.side, name) == ran, "a task began without a lease"
        assert sum(ran.values()) < TASKS
    check(scene, name, done, before)
    assert scene.console.do("coordinator")["coordinator"] == coordinator


LARGE = """
import os, time
import ray
from perdure import workflow

side = {side!r}

@ray.remote
def grow(value, number):
    with open(side, "a") as file:
        file.write(f"{{number}}\\n")
    time.sleep(0.5)
    return value + os.urandom(100_000)

node = b""
for number in range(6):
    node = grow.options(max_retries=0).bind(node, number)
workflow.run_async(node, workflow_id={name!r})
"""


@pytest.mark.parametrize("how", [stopped, down], ids=["no answer", "refused"])
def test_large_results_outlive_an_outage_in_the_worker_and_cost_no_retry(
    scene: Scene, server: servers.Server, seconds: float, how: type, tmp_path: Path
) -> None:
    name, side = f"large-{how.__name__}", tmp_path / "side"
    scene.console.do("execute", LARGE.format(side=str(side), name=name))
    until(lambda: side.exists() and len(side.read_text().split()) >= 3, "two large results")
    with how(server):
        time.sleep(seconds)
    source = f"from perdure import workflow\nout = len(workflow.get_output({name!r}))"
    assert scene.console.do("execute", source) == 600_000
    assert side.read_text().split() == [str(number) for number in range(6)], "a task ran again"
