"""What each driver brings to its tasks: environment, working folder, import path; and nothing of another driver's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import stored
from support.clusters import Console, Head, ray_driver, until

READ = """
import ray
from perdure import workflow

@ray.remote
def look(folder):
    import os
    found = sorted(n for n in os.listdir(".") if n.endswith(".here"))
    return [os.environ.get("SECRET"), os.environ.get("OTHER"), found]

out = workflow.run(look.bind("x"))
"""


def test_two_drivers_see_only_their_own_environment_and_files(head: Head, storage: Path, tmp_path: Path) -> None:
    environments: list[dict[str, Any]] = []
    for name, variable in (("a", "SECRET"), ("b", "OTHER")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.here").write_text(name)
        environments.append({"env_vars": {variable: name}, "working_dir": str(folder)})
    with (
        Console(head, storage=str(storage), runtime_env=environments[0]) as a,
        Console(head, storage=str(storage), runtime_env=environments[1]) as b,
        Console(head, storage=str(storage)) as plain,
    ):
        for _ in range(2):
            assert a.do("execute", READ) == ["a", None, ["a.here"]]
            assert b.do("execute", READ) == [None, "b", ["b.here"]]
            assert plain.do("execute", READ) == [None, None, []]


RESUMED = """
import ray, os, time
from perdure import workflow

@ray.remote
def first():
    import helper
    return helper.WHAT

@ray.remote
def wait_for(path, value):
    import helper, os, time
    open(path + ".begun", "w").close()
    while not os.path.exists(path):
        time.sleep(0.05)
    return [value, helper.WHAT, os.environ.get("WHO")]
"""


def test_a_resume_runs_in_the_environment_of_the_driver_that_resumes(tmp_path: Path) -> None:
    """The package of the first driver's working folder is gone with its cluster."""
    storage, gate = tmp_path / "store", tmp_path / "gate"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "helper.py").write_text(f"WHAT = {name!r}\n")
    with Head() as head:
        env = {"working_dir": str(tmp_path / "old"), "env_vars": {"WHO": "first"}}
        with Console(head, storage=str(storage), runtime_env=env) as console:
            console.do(
                "execute",
                RESUMED + f"workflow.run_async(wait_for.bind({str(gate)!r}, first.bind()), workflow_id='r')",
            )
            until(gate.with_suffix(".begun").exists, "the second task has begun")
            until(lambda: len(stored.done(storage, "r")) == 1, "the first task is stored")
            head.kill()
    gate.touch()
    with Head() as head:
        env = {"working_dir": str(tmp_path / "new"), "env_vars": {"WHO": "second"}}
        with Console(head, storage=str(storage), runtime_env=env) as console:
            assert console.do("resume", "r") == ["old", "new", "second"]


def test_folders_of_the_drivers_import_path_reach_its_tasks_and_edits_are_seen(
    head: Head, storage: Path, tmp_path: Path
) -> None:
    code = "import ray\nfrom perdure import workflow\nimport mine\nout = workflow.run(mine.task.bind())"
    text = "import ray\nNUMBER = {0}\n@ray.remote\ndef task():\n    import mine\n    return [NUMBER, mine.NUMBER]\n"
    module = tmp_path / "mine.py"
    for number in (1, 2):
        module.write_text(text.format(number))
        env = {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        with Console(head, env=env, storage=str(storage)) as console:
            assert console.do("execute", code) == [number, number]


def test_code_of_a_notebook_cell_needs_no_source_file(console: Console) -> None:
    cell = """
import ray
from perdure import workflow

@ray.remote
def square(x):
    return x * x

class Box:
    def __init__(self, inside):
        self.inside = inside

@ray.remote
def pack(x):
    return Box(x)

@ray.remote
def unpack(box):
    return box.inside

out = workflow.run(unpack.bind(pack.bind(square.bind(7))))
"""
    assert console.do("execute", cell) == 49


def test_a_driver_may_exit_at_once_after_run_async(head: Head, storage: Path, console: Console) -> None:
    """Also when it gave the workflow objects that it owns."""
    with Console(head, storage=str(storage)) as brief:
        brief.do(
            "execute",
            """
import ray, time
from perdure import workflow

@ray.remote
def slow(values, big):
    import time
    time.sleep(0.5)
    return sum(ray.get(values[0])) + len(big)

workflow.run_async(slow.bind([ray.put([1, 2, 3])], ray.put(b"x" * 3_000_000)), workflow_id="brief")
""",
        )
        brief.process.popen.kill()
    assert console.do("output", "brief") == 3_000_006


def test_ray_tasks_are_named_by_their_function_only(head: Head, console: Console) -> None:
    console.do(
        "execute",
        """
import ray
from perdure import workflow

@ray.remote
def telling_name(x):
    return x

workflow.run(telling_name.bind(telling_name.bind(1)), workflow_id="named-workflow")
""",
    )
    script = """
import json
from ray._private.state import state
from ray.core.generated import gcs_pb2
events = map(gcs_pb2.TaskEvents.FromString, state._connect_and_get_accessor().get_task_events())
print(json.dumps([e.task_info.name for e in events]))
"""

    def names() -> set[str]:
        return set(json.loads(ray_driver(head, script).splitlines()[-1]))

    until(lambda: "telling_name" in names(), "Ray shows the tasks", pause=1.0)
    found = names()
    assert not any("named-workflow" in name or name.startswith("telling_name.") for name in found)


def test_the_coordinator_takes_no_cpu_and_sits_on_the_head(head: Head, console: Console) -> None:
    script = """
import json, time
end = time.time() + 20
while time.time() < end:
    total, free = ray.cluster_resources(), ray.available_resources()
    if free.get("CPU") == total["CPU"]:
        break
    time.sleep(0.2)
print(json.dumps([total["CPU"], free.get("CPU"), total["node:__internal_head__"] - free["node:__internal_head__"]]))
"""
    total, free, pinned = json.loads(ray_driver(head, script).splitlines()[-1])
    assert free == total == 2
    assert abs(pinned - 0.001) < 1e-6


def test_the_coordinator_keeps_nothing_of_the_driver_that_created_it(bare: Head, tmp_path: Path) -> None:
    env = {"env_vars": {"SECRET": "mine"}}
    with Console(bare, storage=str(tmp_path / "s"), runtime_env=env, namespace="elsewhere") as console:
        pid = console.hello["pid"]
        assert console.do("execute", READ)[0] == "mine"
    assert b"SECRET=mine" not in Path(f"/proc/{pid}/environ").read_bytes()
    with Console(bare) as other:  # a driver in another namespace finds it
        assert other.hello["pid"] == pid
        assert other.do("execute", READ)[0] is None
