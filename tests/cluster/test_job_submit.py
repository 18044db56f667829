"""`ray job submit`: a job of a cluster that `perdure start` has begun, with its own working_dir.

Ray's job server needs the packages of ray[default], which are installed beside this environment, not into it: with them
every other test's cluster would start a dashboard.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from support.clusters import Process, environment, until
from support.commands import perdure

JOB = """
import ray
from helper import twice
from perdure import workflow


@ray.remote
def one():
    return 1


@ray.remote
def add(a, b):
    print("adding", a, b)
    return a + b


if __name__ == "__main__":
    dag = add.bind(100, twice.bind(one.bind()))
    print("result", workflow.run(dag, workflow_id="submitted", if_exists="resume"))
"""
HELPER = """
import ray


@ray.remote
def twice(x):
    with open(FILE, "a") as file:
        file.write("twice\\n")
    return 2 * x
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what ray[default] needs beyond ray."""
    folder = tmp_path_factory.mktemp("packages")
    wanted = []
    for text in importlib.metadata.requires("ray") or ():
        requirement = Requirement(text)
        if requirement.marker is not None and requirement.marker.evaluate({"extra": "default"}):
            requirement.marker = None
            wanted.append(str(requirement))
    assert wanted
    command = [sys.executable, "-m", "pip", "install", "-q", "--target", str(folder), *wanted]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def cluster(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str], Path]]:
    """A head with a job server: its address, the environment of its clients, and its storage's folder."""
    folder = tmp_path_factory.mktemp("submitted")
    temporary = tempfile.mkdtemp(prefix="pj", dir="/tmp")  # short: Ray puts sockets there
    dashboard = _port()
    env = environment({"RAY_TMPDIR": temporary, "PYTHONPATH": str(packages)})
    head = Process(
        [
            sys.executable, "-m", "perdure", "start", "--head", "--block", "--storage", f"file://{folder}/store",
            f"--port={_port()}", "--num-cpus=2", "--include-dashboard=true", f"--dashboard-port={dashboard}",
        ],
        env,
    )  # fmt: skip
    try:
        assert head.line(120)
        address = f"http://127.0.0.1:{dashboard}"
        until(
            lambda: _submit(address, env, folder, sys.executable, "-c", "print('up')").returncode == 0,
            "a job runs",
            120,
            1,
        )
        yield address, env, folder
    finally:
        head.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _submit(address: str, env: dict[str, str], folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    ray = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "job", "submit"]
    return subprocess.run(
        [*ray, "--address", address, "--working-dir", str(folder), "--", *command],
        env=env | {"RAY_AUTH_MODE": env.get("RAY_AUTH_MODE", "token")}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip


def test_a_submitted_job_runs_durably_with_its_own_modules_and_sees_its_prints(
    cluster: tuple[str, dict[str, str], Path], tmp_path: Path
) -> None:
    address, env, folder = cluster
    notes = tmp_path / "notes"
    source = tmp_path / "source"
    source.mkdir()
    (source / "job.py").write_text(JOB)
    (source / "helper.py").write_text(f"FILE = {str(notes)!r}\n{HELPER}")
    done = _submit(address, env, source, sys.executable, "job.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "result 102" in done.stdout
    assert "adding 100 2" in done.stdout
    again = _submit(address, env, source, sys.executable, "job.py")
    assert "result 102" in again.stdout, again.stdout[-3000:]
    assert notes.read_text() == "twice\n"
    assert perdure("status", "submitted", "--storage", f"file://{folder}/store").out == "SUCCESSFUL\n"
