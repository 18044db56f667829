"""The JSON of the commands, field by field as docs/cli.md promises it, and a failed job that is resumed.

The store is made by a coordinator in this process, whose tasks are plain functions, without Ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from support.clusters import environment
from support.doubles import GraphBuilder, PlainRunner, unpacked

from perdure.clock import SystemClock, host_facts
from perdure.coordinator import Coordinator
from perdure.entering import Submission
from perdure.graph import Graph, Payload
from perdure.guarded_store import GuardedStore
from perdure.onray.failures import failure_from
from perdure.runner import Context, Job
from perdure.scheduler import Raised, Result, Value
from perdure.store import open_store
from perdure.store_format import check_format
from perdure.values import Values

VALUE_FIELDS = {"workflow_id", "task_id", "status", "type", "value", "repr", "error"}
VALUES = Values()


class EnvelopeRunner(PlainRunner):
    """Stores values and failures as workers do, so that the command line can load them."""

    def arguments(self, job: Job) -> list[Any]:
        values = list(unpacked(job.args) or [])
        for where, payload in sorted(job.tops, key=lambda top: top[0]):
            values.insert(int(where), VALUES.load(payload.data, where="an argument"))
        return values

    async def run(self, job: Job) -> Result:
        try:
            value = self.functions[job.function.name](*self.arguments(job))
            if asyncio.iscoroutine(value):
                value = await value
        except Exception as error:
            return Raised(failure_from("raised", error), False, 1.0, 2.0)
        data = VALUES.dumps(value)
        return Value(Payload(data, None, len(data)), 1.0, 2.0)


def _fail() -> None:
    raise ValueError("no luck")


def _graph(last: str, *arguments: Any) -> Graph:
    builder = GraphBuilder()
    first = builder.task("one")
    return builder.graph(builder.task(last, first, *arguments) if last == "add" else builder.task(last))


async def _fill(url: str, *, stop: bool = True) -> None:
    async with open_store(url) as store:
        guarded = GuardedStore(store)
        await check_format(guarded)
        begun = asyncio.Event()

        async def hang() -> None:
            begun.set()
            await asyncio.Event().wait()

        functions = {"one": lambda: 1, "add": lambda a, b: a + b, "fail": _fail, "hang": hang}
        coordinator = Coordinator(
            guarded, EnvelopeRunner(functions), SystemClock(), random.Random(os.urandom(16)), host=host_facts()
        )
        await coordinator.start()
        for name, graph in (("sum", _graph("add", 2)), ("bad", _graph("fail")), ("left", _graph("hang"))):
            met = await coordinator.submit(Submission(name, f"client of {name}", graph, {"team": "data"}), Context())
            if name == "left":
                await begun.wait()
            else:
                await coordinator.outcome(met)
        if stop:
            await coordinator.stop()


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder store with ``sum`` (SUCCESSFUL, 3), ``bad`` (FAILED) and ``left`` (RESUMABLE)."""
    folder = tmp_path / "store"
    asyncio.run(_fill(f"file://{folder}"))
    return folder


def perdure(*words: str, cwd: Path | None = None, code: int = 0) -> str:
    """Its standard output; AssertionError where it ends with another code."""
    done = subprocess.run(
        [sys.executable, "-m", "perdure", *words],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=cwd, env=environment({"COLUMNS": "200"}),
        timeout=150,
    )  # fmt: skip
    assert done.returncode == code, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def data(*words: str, cwd: Path | None = None, code: int = 0) -> Any:
    return json.loads(perdure(*words, "-o", "json", cwd=cwd, code=code))


def test_list_tells_every_workflow_with_its_times(stored: Path) -> None:
    listed = data("list", "--storage", str(stored))
    assert [set(row) for row in listed] == [{"workflow_id", "status", "start_time", "end_time", "problem"}] * 3
    assert {r["workflow_id"]: r["status"] for r in listed} == {
        "sum": "SUCCESSFUL", "bad": "FAILED", "left": "RESUMABLE"
    }  # fmt: skip
    assert {r["workflow_id"]: r["end_time"] is None for r in listed} == {"sum": False, "bad": False, "left": True}
    lines = perdure("list", "--status", "failed", "--storage", str(stored)).splitlines()
    assert [line.split("\t")[:2] for line in lines] == [["WORKFLOW", "STATUS"], ["bad", "FAILED"]]


def test_describe_has_the_fields_of_the_contract(stored: Path) -> None:
    found = data("describe", "bad", "-s", str(stored))
    (failed,) = [task for task in found.pop("tasks") if task["task_id"] == "fail"]
    assert set(found) == {
        "workflow_id", "status", "start_time", "end_time", "user_metadata", "tasks_total", "tasks_done",
        "failed_task", "waiting_because", "python",
    }  # fmt: skip
    assert (found["failed_task"], found["user_metadata"]) == ("fail", {"team": "data"})
    assert set(failed) == {
        "task_id", "status", "kind", "attempts", "upstream", "start_time", "end_time", "size", "waiting_for",
        "continued_by", "error",
    }  # fmt: skip
    assert (failed["status"], failed["error"]) == ("FAILED", "ValueError: no luck")
    assert {t["task_id"]: t["upstream"] for t in data("describe", "sum", "-s", str(stored))["tasks"]}["add"] == ["one"]


def test_output_gives_values_and_failures_in_one_shape(stored: Path) -> None:
    assert perdure("output", "sum", "-s", str(stored)) == "3\n"
    found = data("output", "sum", "--task", "one", "-s", str(stored))
    assert set(found) == VALUE_FIELDS
    assert (found["task_id"], found["type"], found["value"], found["repr"]) == ("one", "int", 1, "1")
    failed = data("output", "bad", "-s", str(stored), code=1)
    assert set(failed) == VALUE_FIELDS
    assert (failed["status"], failed["value"]) == ("FAILED", None)
    assert (failed["error"]["task_id"], failed["error"]["type"]) == ("fail", "ValueError")


def test_output_of_what_is_not_finished_ends_with_4(stored: Path) -> None:
    perdure("output", "left", "-s", str(stored), code=4)
    perdure("output", "left", "--no-wait", "-s", str(stored), code=4)
    perdure("output", "left", "--task", "hang", "--no-wait", "-s", str(stored), code=4)


def test_output_without_waiting_leaves_a_task_that_somebody_runs(tmp_path: Path) -> None:
    storage = f"file://{tmp_path}/store"
    asyncio.run(_fill(storage, stop=False))  # its page says that it lives, and so does its process
    assert perdure("status", "left", "-s", storage) == "RUNNING\n"
    began = time.monotonic()
    perdure("output", "left", "--task", "hang", "--no-wait", "-s", storage, code=4)
    assert time.monotonic() - began < 20
    assert perdure("output", "sum", "--task", "one", "--no-wait", "-s", storage) == "1\n"


def test_cancel_and_delete_need_no_cluster(stored: Path) -> None:
    assert data("cancel", "left", "-s", str(stored)) == {"workflow_id": "left", "status": "CANCELED"}
    perdure("output", "left", "-s", str(stored), code=6)
    assert data("delete", "left", "bad", "-s", str(stored)) == [
        {"workflow_id": "left", "deleted": True}, {"workflow_id": "bad", "deleted": True}
    ]  # fmt: skip
    perdure("status", "left", "-s", str(stored), code=3)


def test_a_folder_that_is_no_store_ends_with_5_and_stays_empty(tmp_path: Path) -> None:
    perdure("list", "-s", str(tmp_path), code=5)
    assert list(tmp_path.iterdir()) == []


def test_damaged_bytes_end_with_7(stored: Path) -> None:
    for segment in (stored / "w" / "sum" / "j").glob("*.obj"):
        whole = bytearray(segment.read_bytes())
        whole[len(whole) // 2] ^= 0xFF
        segment.write_bytes(whole)
    perdure("output", "sum", "-s", str(stored), code=7)


def test_plugins_have_the_fields_of_the_contract() -> None:
    found = data("plugins")
    fields = {"kind", "name", "distribution", "version", "object", "health", "error"}
    assert all(set(row) == fields for row in found)
    assert {"file", "data", "zstd", "timer"} <= {row["name"] for row in found if row["health"] == "ok"}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder in which ``perdure run`` has failed once, and what it printed."""
    folder = tmp_path_factory.mktemp("ran")
    (folder / "jobs.py").write_text(
        textwrap.dedent(
            """
            import os
            import ray

            @ray.remote
            def first(n):
                with open("first", "a") as file:
                    file.write("ran\\n")
                return n

            @ray.remote
            def second(n, folder):
                if not os.path.exists(os.path.join(folder, "ready")):
                    raise ValueError("not ready")
                return {"n": n}

            def dag(n, folder):
                return second.bind(first.bind(n), folder)
            """
        ).replace('open("first"', f"open({str(folder / 'first')!r}")
    )
    return folder, data("run", "jobs.py:dag", "5", f"folder={folder}", "--id", "job", "-s", "store", cwd=folder, code=1)


def test_run_tells_a_failure_and_resume_goes_on_from_what_is_stored(ran: tuple[Path, Any]) -> None:
    folder, failed = ran
    assert set(failed) == VALUE_FIELDS
    assert (failed["status"], failed["error"]["task_id"], failed["error"]["type"]) == (
        "FAILED", "jobs.second", "ValueError"
    )  # fmt: skip
    (folder / "ready").touch()
    found = data("resume", "job", "-s", "store", cwd=folder)
    assert set(found) == VALUE_FIELDS
    assert (found["status"], found["value"], found["error"]) == ("SUCCESSFUL", {"n": 5}, None)
    assert (folder / "first").read_text() == "ran\n"


@pytest.mark.timeout(180)
def test_the_demo_loses_nothing_that_was_stored() -> None:
    pytest.importorskip("pyarrow")
    found = data("demo", "--quiet")
    assert (found["tasks_total"], found["repeated"], found["result_is_right"]) == (65, [], True)
    assert len(found["reused"]) >= 40
    assert len(found["reused"]) + len(found["ran_after_kill"]) <= 65
    assert found["processes_killed"] > 1
    assert len(set(found["clusters"])) == 2
