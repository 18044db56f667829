"""The ways in which people start their code: Ray Client, a submitted job, a command that is submitted again."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import stored
from support.clusters import Console, Head, Process, Refused, environment, until
from support.program import TASKS, VALUE

HERE = Path(__file__).parent


@pytest.fixture
def client_address(head: Head) -> Iterator[str]:
    """A Ray Client server, as `ray start --head` has one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "ray.util.client.server", "--address", head.address, "--host", "127.0.0.1"]
    server = Process([*command, "--port", str(port), "--mode", "proxy"], head.env | {"RAY_AUTH_MODE": "token"})
    try:
        until(lambda: _listens(port), "the client server listens", pause=0.1)
        yield f"ray://127.0.0.1:{port}"
    finally:
        server.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


CLIENT = """
import ray
from perdure import workflow

@ray.remote
def one():
    return 1

@ray.remote
def add(a, b):
    return a + b

@ray.remote
def total(values):
    return sum(ray.get(values))

@ray.remote
def boom():
    raise KeyError("k")

out = [workflow.run(add.bind(100, one.bind()), workflow_id="by-client")]
out.append(ray.get(workflow.run_async(total.bind([ray.put(3), one.bind()]))))
out += [workflow.get_output("by-client"), str(workflow.get_status("by-client"))]
try:
    workflow.run(boom.bind())
except workflow.WorkflowExecutionError as error:
    out.append(repr(error.__cause__))
"""


def by_client(address: str, **init: str) -> Console:
    """Ray gives its client's server few seconds to start; a busy machine needs a second try."""
    for _ in range(3):
        try:
            return Console(address, **init)
        except Refused as error:
            if "Starting Ray client server failed" not in error.text:
                raise
            last = error
    raise last


def test_ray_client_runs_workflows_and_creates_the_coordinator(bare: Head, client_address: str, tmp_path: Path) -> None:
    with by_client(client_address, storage=str(tmp_path / "store")) as console:
        assert console.do("execute", CLIENT) == [101, 4, 101, "SUCCESSFUL", "KeyError('k')"]
        pid = console.hello["pid"]
    with Console(bare) as plain:  # it outlives the client, and others find it
        assert plain.hello["pid"] == pid
        assert plain.do("output", "by-client") == 101


JOB = """
import json, os, ray
from perdure import workflow

@ray.remote
def look():
    return [os.environ.get("OF_JOB"), os.environ.get("OF_SHELL")]

workflow.init()
print(json.dumps(workflow.run(look.bind())))
"""


def test_a_submitted_job_finds_the_cluster_and_its_tasks_its_environment(
    head: Head, console: Console, tmp_path: Path
) -> None:
    """With what Ray's job supervisor sets: the address and the job's runtime_env, in the environment."""
    script = tmp_path / "job.py"
    script.write_text(JOB)
    job = {"runtime_env": {"env_vars": {"OF_JOB": "yes"}}}
    env = head.env | {
        "RAY_ADDRESS": head.address,
        "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job),
        "RAY_AUTH_MODE": "token",
        "OF_SHELL": "no",
    }
    done = subprocess.run(
        [sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["yes", None]


def test_a_command_submitted_again_after_a_kill_repeats_no_finished_task(tmp_path: Path) -> None:
    """`perdure run … --if-exists resume`, each time with a cluster of its own."""
    storage, side = tmp_path / "store", tmp_path / "side"
    program = HERE.parent / "support" / "program.py"
    command = [
        sys.executable, "-m", "perdure", "run", f"{program}:whole", str(side), "0.1", "--id", "again",
        "--if-exists", "resume", "--storage", str(storage), "-o", "json",
    ]  # fmt: skip
    env = environment({"RAY_ADDRESS": "local"})
    first = Process(command, env)
    try:
        until(lambda: stored.segments(storage, "again") >= 5, "five segments", pause=0.02)
        done = stored.done(storage, "again")
        before = stored.executions(side, "again")
    finally:
        first.kill()
    assert done
    second = Process(command, env)
    try:
        answer = json.loads(second.line(120))
        assert second.popen.wait(60) == 0
    finally:
        second.kill()
    after = stored.executions(side, "again")
    assert all(after[task] == before[task] for task in done)
    assert len(after) == TASKS
    assert VALUE in answer.values()
