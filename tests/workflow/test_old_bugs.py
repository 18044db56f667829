"""The bugs of the former library, by the numbers of the migration guide: not inherited.

Number 19 (two workflows with one event key) stands with the HTTP listener, in tests/events/test_http_events.py.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.dag import InputNode
from ray.util import placement_group, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy
from support import stored
from support.runs import Driver, eventually, lines

from perdure import workflow
from perdure.onray import cluster
from perdure.store import open_store

pytestmark = pytest.mark.usefixtures("storage")


def note(path: str) -> None:
    with open(path, "a") as file:
        file.write("ran\n")


@ray.remote
def identity(value: Any) -> Any:
    return value


@ray.remote
def increment(value: int) -> int:
    return value + 1


@ray.remote
def gather(*values: Any) -> list[Any]:
    return list(values)


@ray.remote
def fail(text: str = "why") -> Any:
    raise LookupError(text)


@ray.remote
def wait_for_file(path: str) -> str:
    note(path + ".began")
    while not os.path.exists(path):
        time.sleep(0.01)
    return "seen"


@ray.remote
def fail_until(path: str) -> str:
    note(path + ".tries")
    if not os.path.exists(path) and len(lines(path + ".tries")) < 9:
        raise LookupError("not yet")
    return "done"


@ray.remote
def crash() -> None:
    os._exit(1)


_WAITING = """
@ray.remote
def wait_for_file(path):
    open(path + ".began", "w").close()
    while not os.path.exists(path): time.sleep(0.02)
    return "seen"
workflow.run(wait_for_file.bind(sys.argv[3]), workflow_id=sys.argv[2])
"""


def test_old_bug_01_another_dag_under_a_used_id_is_refused_unless_the_caller_decides(fresh: str) -> None:
    assert workflow.run(identity.bind(1), workflow_id=fresh) == 1
    assert workflow.run(identity.bind(1), workflow_id=fresh) == 1
    with pytest.raises(workflow.WorkflowExistsError, match="another DAG"):
        workflow.run(identity.bind(2), workflow_id=fresh)
    with pytest.raises(workflow.WorkflowExistsError):
        workflow.run(increment.bind(1), workflow_id=fresh, if_exists="return")
    with pytest.raises(workflow.WorkflowExistsError, match="if_exists='error'"):
        workflow.run(identity.bind(1), workflow_id=fresh, if_exists="error")
    assert workflow.get_output(fresh) == 1
    assert workflow.run(identity.bind(2), workflow_id=fresh, if_exists="replace") == 2
    assert workflow.get_output(fresh) == 2
    with pytest.raises(ValueError, match="'nosuch'"):
        workflow.run(identity.bind(2), workflow_id=fresh, if_exists="nosuch")


@pytest.mark.parametrize("size", [1, 100_000])
def test_old_bug_02_a_caught_outcome_and_a_root_without_checkpoint_are_stored(fresh: str, size: int) -> None:
    caught = workflow.options(catch_exceptions=True)
    unchecked = workflow.options(checkpoint=False)
    value, error = workflow.run(fail.options(**caught).bind("w" * size), workflow_id=fresh + "-a")
    again = workflow.get_output(fresh + "-a")
    assert value is again[0] is None
    assert type(error) is type(again[1])
    assert error.args == again[1].args
    for name, dag in (("b", identity), ("c", gather)):
        for_id = f"{fresh}-{name}"
        first = workflow.run(dag.options(**unchecked).bind("v" * size), workflow_id=for_id)
        assert workflow.get_output(for_id) == first
        assert ray.get(workflow.resume_async(for_id)) == first


def test_old_bug_03_a_crash_of_the_worker_is_caught_once_retries_are_used_up() -> None:
    task = crash.options(max_retries=1, **workflow.options(catch_exceptions=True))
    value, error = workflow.run(gather.bind(task.bind()))[0]
    assert value is None
    assert isinstance(error, Exception)


def test_old_bug_04_all_forms_of_retry_and_scheduling_options_work(tmp_path: Path) -> None:
    forever = fail_until.options(max_retries=-1, retry_exceptions=True)
    assert workflow.run(forever.bind(str(tmp_path / "a"))) == "done"
    listed = fail_until.options(max_retries=8, retry_exceptions=[KeyError, LookupError])
    assert workflow.run(listed.bind(str(tmp_path / "b"))) == "done"
    here = ray.get_runtime_context().get_node_id()
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    try:
        for strategy in (
            "SPREAD",
            NodeAffinitySchedulingStrategy(here, soft=False),
            NodeAffinitySchedulingStrategy("ab" * 28, soft=True),
            PlacementGroupSchedulingStrategy(group, 0),
        ):
            assert workflow.run(identity.options(scheduling_strategy=strategy).bind(1)) == 1
    finally:
        remove_placement_group(group)


@pytest.fixture
def one_at_a_time() -> Iterator[None]:
    cluster.connected().call("set_limits", 1, 5)
    yield
    cluster.connected().call("set_limits", -1, -1)


@pytest.mark.usefixtures("one_at_a_time")
def test_old_bug_05_cancel_works_on_pending_refuses_unknown_and_keeps_finished(tmp_path: Path, fresh: str) -> None:
    go = str(tmp_path / "go")
    running = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh + "-1")
    pending = workflow.run_async(identity.bind(1), workflow_id=fresh + "-2")
    workflow.cancel(fresh + "-2")
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(pending)
    Path(go).touch()
    assert ray.get(running) == "seen"
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.cancel(fresh + "-3")
    assert fresh + "-3" not in dict(workflow.list_all())
    workflow.cancel(fresh + "-1")
    assert workflow.get_output(fresh + "-1") == "seen"
    assert workflow.get_status(fresh + "-1") == "SUCCESSFUL"


class TwoArguments(Exception):
    """Its default pickle can't be loaded: it stores one argument, and takes two."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


@ray.remote
def fail_oddly() -> None:
    raise TwoArguments(7, "odd")


def test_old_bug_06_errors_unpickle_say_their_text_once_and_keep_the_cause(fresh: str) -> None:
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(fail.bind("why"), workflow_id=fresh)
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert isinstance(error.__cause__, LookupError)
        assert error.__cause__.args == ("why",)
        assert error.workflow_id == fresh
        assert error.task_id
        first_line = str(error).splitlines()[0]
        assert first_line.count("LookupError: why") == 1
        assert first_line.count(fresh) == 1
    with pytest.raises(workflow.WorkflowExecutionError, match="TwoArguments: 7: odd") as caught:
        workflow.run(fail_oddly.bind())
    for error in (caught.value, pickle.loads(pickle.dumps(caught.value))):
        assert "7: odd" in str(error)
        assert isinstance(error.__cause__, TwoArguments)
        assert error.__cause__.code == 7


def test_old_bug_07_get_output_raises_the_stored_failure_or_says_resume_it(
    storage: Path, tmp_path: Path, fresh: str
) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(fail.bind("stored"), workflow_id=fresh + "-failed")
    with pytest.raises(workflow.WorkflowExecutionError, match="LookupError: stored") as caught:
        workflow.get_output(fresh + "-failed")
    assert isinstance(caught.value.__cause__, LookupError)
    go = tmp_path / "go"
    with Driver(storage, _WAITING, fresh, str(go)) as other:
        eventually(Path(f"{go}.began").exists, "the task begins")
        other.kill()
    eventually(lambda: workflow.get_status(fresh) == "RESUMABLE", "the owner is known to be gone")
    assert (fresh, workflow.RESUMABLE) in workflow.list_all("RESUMABLE")
    with pytest.raises(workflow.WorkflowNotResumableError, match=re.escape(f"workflow.resume({fresh!r})")):
        workflow.get_output(fresh)
    go.touch()
    assert workflow.resume(fresh) == "seen"


def test_old_bug_08_metadata_and_status_agree_at_every_stage(tmp_path: Path, fresh: str) -> None:
    def agree(workflow_id: str, status: str) -> None:
        assert workflow.get_status(workflow_id) == status
        assert workflow.get_metadata(workflow_id)["status"] == status
        assert dict(workflow.list_all())[workflow_id] == status

    go = str(tmp_path / "go")
    ref = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh)
    agree(fresh, "RUNNING")
    Path(go).touch()
    ray.get(ref)
    agree(fresh, "SUCCESSFUL")
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(fail.bind(), workflow_id=fresh + "-f")
    agree(fresh + "-f", "FAILED")
    workflow.run_async(wait_for_file.bind(go + "2"), workflow_id=fresh + "-c")
    workflow.cancel(fresh + "-c")
    agree(fresh + "-c", "CANCELED")
    stats = workflow.get_metadata(fresh + "-c")["stats"]
    assert stats["start_time"] <= stats["end_time"]


def test_old_bug_09_a_bare_input_node_passes_the_value_itself() -> None:
    with InputNode() as whole:
        dag = gather.bind(whole, [whole])
    for value in (5, "text", [1], {"a": 1}, None):
        found = workflow.run(dag, value)
        assert found == [value, [value]]
        assert type(found[0]) is type(value)


@pytest.mark.parametrize("size", [1, 100_000])
def test_old_bug_10_the_output_of_a_workflow_that_returns_refs_has_one_type(fresh: str, size: int) -> None:
    @ray.remote
    def refs(size: int) -> Any:
        return {"one": ray.put("x" * size), "many": [ray.put("y" * size)]}

    @ray.remote
    def ref(size: int) -> Any:
        return ray.put("z" * size)

    first = workflow.run(ref.bind(size), workflow_id=fresh + "-ref")
    for found in (first, workflow.get_output(fresh + "-ref"), workflow.resume(fresh + "-ref")):
        assert isinstance(found, ray.ObjectRef)
        assert ray.get(found) == "z" * size
    workflow.run(refs.bind(size), workflow_id=fresh)
    for found in (workflow.get_output(fresh), ray.get(workflow.get_output_async(fresh)), workflow.resume(fresh)):
        assert isinstance(found["one"], ray.ObjectRef)
        assert ray.get(found["one"]) == "x" * size
        assert ray.get(found["many"]) == ["y" * size]


def test_old_bug_11_one_rule_for_ids_checked_at_once() -> None:
    for good in ("a/b", "a b", "ä", "x" * 200, "..", "C:\\x", "%2F"):
        assert workflow.run(identity.bind(good), workflow_id=good) == good
        assert workflow.get_output(good) == good
        assert good in dict(workflow.list_all())
        workflow.delete(good)
        assert good not in dict(workflow.list_all())
    for wrong in ("", "x" * 201, "\0", "a\nb"):
        with pytest.raises(ValueError, match="1 to 200 printable characters"):
            workflow.run(identity.bind(1), workflow_id=wrong)
    with pytest.raises(TypeError, match="str"):
        workflow.run(identity.bind(1), workflow_id=5)  # type: ignore[arg-type]


def test_old_bug_12_every_value_that_a_record_names_is_in_the_store(storage: Path, fresh: str) -> None:
    @ray.remote
    def make(size: int) -> Any:
        return [ray.put(bytes([n]) * size) for n in range(5)]

    workflow.run(gather.bind(make.bind(300_000), ray.put(b"d" * 300_000)), workflow_id=fresh)
    state, _, _ = stored.state(storage, fresh)
    named = {blob for task in state.tasks if task.payload is not None for blob in task.payload.blobs()}
    assert len(named) >= 6

    async def sizes() -> list[int]:
        async with open_store(str(storage)) as store:
            return [await store.stat(blob) for blob in sorted(named)]

    assert all(size >= 300_000 for size in asyncio.run(sizes()))


def test_old_bug_13_kill_9_in_the_middle_of_a_write_leaves_nothing_half_written(
    storage: Path, tmp_path: Path, fresh: str
) -> None:
    body = """
    @ray.remote
    def large(path):
        open(path, "a").write("ran\\n")
        return os.urandom(1 << 20) * 256
    @ray.remote
    def size(value): return len(value)
    workflow.run(size.bind(large.bind(sys.argv[3])), workflow_id=sys.argv[2])
    """

    def writing() -> bool:
        files = [f for f in storage.rglob("*") if f.is_file() and f not in before]
        return any(_size(f) > 20 << 20 for f in files)

    before = {f for f in storage.rglob("*") if f.is_file()}
    with Driver(storage, body, fresh, str(tmp_path / "ran")) as driver:
        eventually(writing, "the result is being written")
        driver.kill()
    assert eventually(lambda: workflow.get_status(fresh), "a status") in ("RESUMABLE", "RUNNING")
    assert workflow.resume(fresh) == 256 << 20
    state, _, _ = stored.state(storage, fresh)
    assert state.phase.value == "succeeded"


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def test_old_bug_14_a_second_cluster_cannot_run_what_the_first_one_drives(
    storage: Path, tmp_path: Path, fresh: str
) -> None:
    go = tmp_path / "go"
    with Driver(storage, _WAITING, fresh, str(go)) as other:
        eventually(Path(f"{go}.began").exists, "the task begins")
        assert workflow.get_status(fresh) == "RUNNING"
        for call in (workflow.resume, workflow.delete):
            with pytest.raises(workflow.WorkflowStillActiveError, match="another cluster"):
                call(fresh)
        ref = workflow.get_output_async(fresh)
        go.touch()
        other.finish()
    assert ray.get(ref) == "seen"
    assert workflow.get_status(fresh) == "SUCCESSFUL"


def test_old_bug_15_a_chain_of_700_nodes_works() -> None:
    node = identity.bind(0)
    for _ in range(700):
        node = increment.bind(node)
    assert workflow.run(node) == 700


class Never(workflow.EventListener):
    async def poll_for_event(self, path: str) -> str:
        while not os.path.exists(path):
            await asyncio.sleep(0.05)
        return "event"


def test_old_bug_16_waits_hold_no_cpu(tmp_path: Path, fresh: str) -> None:
    go = tmp_path / "go"
    waits = [workflow.wait_for_event(Never, str(go)) for _ in range(20)] + [workflow.sleep(1.0) for _ in range(20)]
    ref = workflow.run_async(gather.bind(*waits), workflow_id=fresh)
    eventually(lambda: ray.available_resources().get("CPU") == 2.0, "both CPUs are free while 40 nodes wait")
    both = identity.options(num_cpus=2)
    assert workflow.run(both.bind("meanwhile")) == "meanwhile"
    assert workflow.get_status(fresh) == "RUNNING"
    go.touch()
    assert ray.get(ref) == ["event"] * 20 + [None] * 20


def test_old_bug_17_the_work_goes_on_when_its_driver_ends(tmp_path: Path, fresh: str) -> None:
    head = """
import os, sys, time, ray
from perdure import workflow
workflow.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
"""
    body = """
    @ray.remote
    def slow(path):
        while not os.path.exists(path): time.sleep(0.02)
        return "went on"
    workflow.run_async(slow.bind(sys.argv[3]), workflow_id=sys.argv[2])
    """
    go = tmp_path / "go"
    with Driver(ray.get_runtime_context().gcs_address, body, fresh, str(go), head=head) as driver:
        driver.finish()
    assert workflow.get_status(fresh) == "RUNNING"
    go.touch()
    assert workflow.get_output(fresh) == "went on"


def test_old_bug_18_the_storage_is_set_on_a_cluster_that_runs_already(storage: Path) -> None:
    # the cluster of this module was started by ray.init, which knows nothing of storage
    assert cluster.connected().storage == f"file://{storage}"
    assert list(storage.glob("format*"))


def test_old_bug_20_a_fan_out_writes_far_less_than_once_a_task(storage: Path, fresh: str) -> None:
    workflow.run(gather.bind(*[identity.bind(n) for n in range(300)]), workflow_id=fresh)
    _, last, _ = stored.state(storage, fresh)
    parts = list((storage / "w" / fresh).glob("s/*"))
    assert (last + 1 + len(parts)) / 301 <= 0.15


def test_every_old_bug_has_a_test_that_is_named_after_it() -> None:
    folder = Path(__file__).parents[1]
    found = {n for file in folder.rglob("test_*.py") for n in re.findall(r"def test_old_bug_(\d\d)_", file.read_text())}
    assert found == {f"{n:02}" for n in range(1, 21)}
