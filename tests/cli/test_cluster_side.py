"""Commands with a cluster: one that `perdure start` has begun, and one that a command starts for itself."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.clusters import environment, kill, processes, until
from support.commands import Done, perdure

JOBS = """
import time
import ray
from ray.dag import InputNode


@ray.remote
def add(a, b):
    print("adding", a, b)
    return a + b


@ray.remote
def fail(value):
    raise KeyError(f"no {value}")


@ray.remote
def wait_for(path):
    import os
    while not os.path.exists(path):
        time.sleep(0.02)
    return path


dag = add.bind(100, add.bind(0, 1))
bad = fail.bind(add.bind(1, 2))
with InputNode() as given:
    fed = add.bind(given[0], given.b)


def gated(path):
    return wait_for.bind(path)
"""


@dataclass
class Started:
    """A cluster that `perdure start --head --block` has begun."""

    process: subprocess.Popen[str]
    address: str
    storage: str
    folder: Path
    temporary: str

    def perdure(self, *words: str) -> Done:
        env = {"RAY_TMPDIR": self.temporary, "RAY_ADDRESS": self.address}
        return perdure(*words, env=env, cwd=self.folder)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    folder = tmp_path_factory.mktemp("started")
    (folder / "jobs.py").write_text(JOBS)
    temporary = tempfile.mkdtemp(prefix="pc", dir="/tmp")  # short: Ray puts sockets there
    storage = f"file://{folder}/store"
    words = ["start", "--head", "--block", "--storage", storage, f"--port={_port()}", "--num-cpus=2"]
    errors = (folder / "errors").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", *words, "--include-dashboard=false"],
        stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True,
        env=environment({"RAY_TMPDIR": temporary, "RAY_ADDRESS": None}),
    )  # fmt: skip
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    members: list[int] = []
    try:
        errors.seek(0)
        assert address, errors.read()[-4000:]
        yield Started(process, address, storage, folder, temporary)
    finally:
        table = processes()
        members = [process.pid]
        for pid, (parent, session) in sorted(table.items()):
            if session == process.pid or parent in members:
                members.append(pid)
        for pid in members:
            kill(pid)
        process.communicate()
        errors.close()
        shutil.rmtree(temporary, ignore_errors=True)


def test_run_prints_the_value_on_stdout_and_what_tasks_print_on_stderr(started: Started) -> None:
    done = started.perdure("run", "jobs:dag", "--id", "sum")
    assert (done.code, done.out) == (0, "101\n"), done.err
    assert "adding 100 1" in done.err
    assert "\x1b" not in done.err  # no bar where there is no terminal


def test_arguments_feed_the_input_node(started: Started) -> None:
    assert started.perdure("run", "jobs.py:fed", "5", "b=7", "-q").out == "12\n"


def test_a_failed_workflow_ends_with_1_and_json_on_stdout(started: Started) -> None:
    done = started.perdure("run", "jobs:bad", "--id", "bad", "-o", "json")
    assert done.code == 1
    assert done.json["error"]["type"] == "KeyError"
    assert done.json["error"]["task_id"] == "jobs.fail"


def test_logs_are_those_of_the_workflow_and_task_that_were_asked_for(started: Started) -> None:
    started.perdure("run", "jobs.py:fed", "1", "b=2", "--id", "one", "-q")
    started.perdure("run", "jobs.py:dag", "--id", "two", "-q")
    lines = started.perdure("logs", "two", "-o", "json").json
    assert [(line["stream"], line["line"]) for line in lines] == [("stdout", "adding 0 1"), ("stdout", "adding 100 1")]
    last = started.perdure("logs", "two", "--task", "jobs.add_1", "-o", "json").json
    assert [line["line"] for line in last] == ["adding 100 1"]


def test_a_workflow_that_was_left_runs_on_and_can_be_waited_for(started: Started) -> None:
    gate = started.folder / "gate"
    assert started.perdure("run", "jobs:gated", str(gate), "--id", "left", "--no-wait").out == "left\n"
    assert started.perdure("status", "left", "--exit-code").code == 4
    assert started.perdure("output", "left", "--no-wait").code == 4
    assert started.perdure("delete", "left").code == 4
    gate.touch()
    assert started.perdure("output", "left").out == f"{gate}\n"


def test_another_cluster_is_not_needed_to_cancel_what_this_one_drives(started: Started) -> None:
    started.perdure("run", "jobs:gated", str(started.folder / "never"), "--id", "stuck", "--no-wait")
    done = perdure("cancel", "stuck", "--storage", started.storage)  # by the store alone
    assert (done.code, done.out) == (0, "CANCELED\n"), done.err
    assert started.perdure("resume", "stuck").code == 6


def test_a_storage_that_is_not_the_clusters_is_refused(started: Started) -> None:
    done = started.perdure("run", "jobs:dag", "--storage", f"{started.folder}/other")
    assert done.code == 2
    assert "/other" in done.err
    assert "/store" in done.err


def test_stop_makes_all_resumable_and_resume_all_goes_on(started: Started) -> None:
    gate = started.folder / "second-gate"
    started.perdure("run", "jobs:gated", str(gate), "--id", "paused", "--no-wait")
    assert started.perdure("stop").code == 0
    assert perdure("status", "paused", "--storage", started.storage).out == "RESUMABLE\n"
    assert started.perdure("stop").code == 3
    gate.touch()
    done = started.perdure("resume", "--all", "--storage", started.storage, "-o", "json")
    assert done.code == 0, done.err
    assert done.json == [{"workflow_id": "paused", "status": "SUCCESSFUL", "error": None}]


def test_a_signal_to_start_ends_its_node_in_order(started: Started) -> None:
    """Last in this module: the cluster is gone afterwards."""
    assert started.perdure("stop").code == 0  # else Ray waits half a minute for the coordinator
    started.process.send_signal(signal.SIGTERM)
    assert started.process.wait(timeout=60) == 0
    until(lambda: not _of_session(started.process.pid), "all of its processes have ended", pause=0.1)


def _of_session(leader: int) -> list[int]:
    return [pid for pid, (_, session) in processes().items() if session == leader and pid != os.getpid()]


def test_without_a_cluster_run_starts_one_for_itself_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "jobs.py").write_text(JOBS)
    temporary = tempfile.mkdtemp(prefix="pc", dir="/tmp")
    try:
        done = perdure("run", "jobs.py:dag", "-s", "relative/store", cwd=tmp_path, env={"RAY_TMPDIR": temporary})
        assert (done.code, done.out) == (0, "101\n"), done.err
        listed = perdure("list", "-s", "relative/store", "-o", "json", cwd=tmp_path)
        assert [row["status"] for row in listed.json] == ["SUCCESSFUL"]
        mine = os.fsencode(temporary)
        until(lambda: not _mentioning(mine), "its cluster has ended", pause=0.1)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _mentioning(word: bytes) -> list[int]:
    found = []
    for pid in processes():
        try:
            if word in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
        except OSError:
            continue
    return found
