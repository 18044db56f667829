"""What users of Ray Workflows rely on, and what was decided where the former library was silent: a test a sentence."""

from __future__ import annotations

import asyncio
import os
import queue
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.dag import InputNode, MultiOutputNode
from support.runs import Driver, eventually

from perdure import workflow
from perdure.errors import PerdureError
from perdure.onray import cluster

pytestmark = pytest.mark.usefixtures("storage")

Notes = Callable[..., list[str]]


def note(path: str, text: str = "ran") -> None:
    with open(path, "a") as file:
        file.write(text + "\n")


@ray.remote
def identity(value: Any) -> Any:
    return value


@ray.remote
def add(a: Any, b: Any) -> Any:
    return a + b


@ray.remote
def gather(*values: Any) -> list[Any]:
    return list(values)


@ray.remote
def noted(path: str, value: Any = None, *after: Any) -> Any:
    note(path)
    return value


@ray.remote
def fail(text: str = "no", *after: Any) -> Any:
    raise LookupError(text)


@ray.remote
def fail_until(path: str, value: Any = "done") -> Any:
    """Fails until the file ``path`` exists."""
    note(path + ".tries")
    if not os.path.exists(path):
        raise LookupError("not yet")
    return value


@ray.remote
def wait_for_file(path: str) -> str:
    note(path + ".began")
    while not os.path.exists(path):
        time.sleep(0.01)
    return "seen"


@ray.remote
def kind_of(value: Any) -> str:
    return type(value).__name__


@ray.remote
def kinds_in(values: Any) -> list[str]:
    parts = values.values() if isinstance(values, dict) else values
    return ["ObjectRef" if isinstance(part, ray.ObjectRef) else type(part).__name__ for part in parts]


@ray.remote
def values_in(values: Any) -> list[Any]:
    return [ray.get(part) for part in (values.values() if isinstance(values, dict) else values)]


@ray.remote
def put(value: Any) -> ray.ObjectRef:
    return ray.put(value)


@ray.remote
def continue_with_sum(n: int) -> Any:
    return workflow.continuation(add.bind(n, n))


@ray.remote
def count_down(n: int) -> Any:
    return workflow.continuation(count_down.bind(n - 1)) if n else "landed"


@ray.remote
def crash(path: str, times: int) -> str:
    note(path)
    if len(Path(path).read_text().splitlines()) <= times:
        os._exit(1)
    return "alive"


def failure_of(workflow_id: str) -> workflow.WorkflowExecutionError:
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.get_output(workflow_id)
    return caught.value


# -- behaviours to keep ----------------------------------------------------------------------------------------------


def test_shared_nodes_run_once(tmp_path: Path, notes: Notes) -> None:
    shared = noted.bind(str(tmp_path / "notes"), 3)
    assert workflow.run(add.bind(add.bind(shared, shared), identity.bind(shared))) == 9
    assert notes() == ["ran"]


def test_top_level_node_and_ref_arguments_arrive_as_values() -> None:
    assert workflow.run(kind_of.bind(identity.bind(1))) == "int"
    assert workflow.run(kind_of.bind(ray.put("text"))) == "str"
    assert workflow.run(kind_of.bind(value=identity.bind([1]))) == "list"


def test_nodes_and_refs_inside_lists_and_dicts_arrive_as_object_refs() -> None:
    node, ref = identity.bind(1), ray.put(2)
    assert workflow.run(kinds_in.bind([node, ref, 3])) == ["ObjectRef", "ObjectRef", "int"]
    assert workflow.run(kinds_in.bind({"a": node, "b": ref})) == ["ObjectRef", "ObjectRef"]
    assert workflow.run(values_in.bind([node, ref])) == [1, 2]
    assert workflow.run(values_in.bind({"a": node, "b": ref})) == [1, 2]


def test_a_task_that_returns_a_ref_gives_a_ref() -> None:
    found = workflow.run(put.bind("inside"))
    assert isinstance(found, ray.ObjectRef)
    assert ray.get(found) == "inside"
    assert workflow.run(kind_of.bind(put.bind("inside"))) == "ObjectRef"


@pytest.mark.parametrize("size", [10, 100_000])
def test_caught_exceptions_give_value_and_none_or_none_and_exception(size: int) -> None:
    caught = workflow.options(catch_exceptions=True)
    value = "x" * size
    assert workflow.run(identity.options(**caught).bind(value)) == (value, None)
    found, error = workflow.run(fail.options(**caught).bind("caught"))
    assert found is None
    assert isinstance(error, LookupError)
    assert error.args == ("caught",)


def test_exceptions_are_caught_around_continuations() -> None:
    caught = workflow.options(catch_exceptions=True)

    @ray.remote
    def go_on(inner: Any) -> Any:
        return workflow.continuation(inner)

    @ray.remote
    def go_on_failing() -> Any:
        return workflow.continuation(identity.bind(fail.bind("deep")))

    assert workflow.run(continue_with_sum.options(**caught).bind(2)) == (4, None)
    value, error = workflow.run(go_on_failing.options(**caught).bind())
    assert value is None
    assert isinstance(error, LookupError)
    assert error.args == ("deep",)
    assert workflow.run(gather.bind(go_on_failing.options(**caught).bind(), 1))[1] == 1


def test_siblings_of_a_failed_task_finish_and_stay_checkpointed(tmp_path: Path, fresh: str, notes: Notes) -> None:
    go = tmp_path / "go"

    @ray.remote
    def slow(path: str) -> str:
        note(path + ".began")
        time.sleep(0.5)
        note(path)
        return "finished"

    dag = gather.bind(fail_until.bind(str(go)), slow.bind(str(tmp_path / "notes")))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=fresh)
    assert notes() == ["ran"]
    assert workflow.get_status(fresh) == "FAILED"
    go.touch()
    assert workflow.resume(fresh) == ["done", "finished"]
    assert notes() == ["ran"]


def test_the_same_id_while_it_runs_is_an_error_and_after_success_the_stored_output(
    tmp_path: Path, fresh: str, notes: Notes
) -> None:
    go = str(tmp_path / "go")
    ref = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh)
    with pytest.raises(workflow.WorkflowStillActiveError, match=fresh):
        workflow.run(wait_for_file.bind(go), workflow_id=fresh)
    Path(go).touch()
    assert ray.get(ref) == "seen"
    assert workflow.run(wait_for_file.bind(go), workflow_id=fresh) == "seen"
    assert len(notes("go.began")) == 1


def test_duplicate_task_names_get_numbers_that_are_stable_across_resume(tmp_path: Path, fresh: str) -> None:
    go = tmp_path / "go"
    named = workflow.options(task_id="name")
    parts = [identity.options(**named).bind(i) for i in range(3)]
    dag = gather.options(**workflow.options(task_id="all")).bind(*parts, fail_until.bind(str(go)))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=fresh)
    before = [workflow.get_output(fresh, task_id=name) for name in ("name", "name_1", "name_2")]
    go.touch()
    assert workflow.resume(fresh) == [0, 1, 2, "done"]
    assert [workflow.get_output(fresh, task_id=name) for name in ("name", "name_1", "name_2")] == before == [0, 1, 2]


def test_continuations_nest() -> None:
    @ray.remote
    def outer(n: int) -> Any:
        return workflow.continuation(add.bind(continue_with_sum.bind(n), continue_with_sum.bind(n + 1)))

    assert workflow.run(add.bind(1, outer.bind(1))) == 7


def test_continuations_loop(tmp_path: Path, notes: Notes) -> None:
    @ray.remote
    def loop(path: str, count: int) -> Any:
        note(path)
        if len(Path(path).read_text().splitlines()) < count:
            return workflow.continuation(loop.bind(path, count))
        return count

    assert workflow.run(loop.bind(str(tmp_path / "notes"), 5)) == 5
    assert len(notes()) == 5


def test_a_tail_recursion_of_100_does_not_grow_the_resume_time(fresh: str) -> None:
    assert workflow.run(count_down.bind(100), workflow_id=fresh) == "landed"
    began = time.monotonic()
    assert workflow.resume(fresh) == "landed"
    assert workflow.get_output(fresh) == "landed"
    assert time.monotonic() - began < 1.0


def test_resume_needs_no_user_module_of_main(storage: Path, tmp_path: Path, fresh: str) -> None:
    go = tmp_path / "go"
    body = """
    factor = 7
    def helper(x):
        return x * factor
    class Pair:
        def __init__(self, a, b): self.a, self.b = a, b
    @ray.remote
    def begin(path):
        open(path + ".began", "w").close()
        while not os.path.exists(path): time.sleep(0.02)
        return Pair(helper(1), helper(2))
    @ray.remote
    def end(pair): return (pair.a, helper(pair.b))
    workflow.run(end.bind(begin.bind(sys.argv[2])), workflow_id=sys.argv[3])
    """
    with Driver(storage, body, str(go), fresh) as first:
        eventually((tmp_path / "go.began").exists, "the task begins")
        first.kill()
    go.touch()
    assert workflow.resume(fresh) == (7, 98)


def test_wrong_argument_counts_are_type_errors_at_run() -> None:
    for wrong in (
        lambda: workflow.run(add.bind(1)),
        lambda: workflow.run(add.bind(1, 2, 3)),
        lambda: workflow.run(identity.bind(add.bind(1, b=2, c=3))),
    ):
        with pytest.raises(TypeError, match="argument"):
            wrong()


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


def test_an_input_node_takes_attributes_keys_and_positionals() -> None:
    with InputNode() as whole:
        assert workflow.run(identity.bind(whole), 5) == 5
        assert workflow.run(add.bind(whole[0], whole[1]), 1, 2) == 3
        assert workflow.run(add.bind(whole.a, whole.b), a=1, b=2) == 3
        assert workflow.run(add.bind(whole[0], whole.b), 1, b=2) == 3
        assert workflow.run(identity.bind(whole.content), Box(6)) == 6
        assert workflow.run(gather.bind([whole[0]], {"x": whole[1]}), 1, 2) == [[1], {"x": 2}]
    with InputNode() as keyed:
        assert workflow.run(add.bind(keyed["a"], keyed["b"]), {"a": 1, "b": 2}) == 3


def test_a_missing_or_needless_input_is_a_type_error() -> None:
    with InputNode() as whole:
        with pytest.raises(TypeError, match="input"):
            workflow.run(identity.bind(whole[2]), 1, 2)
        with pytest.raises(TypeError, match="exactly one argument"):
            workflow.run(identity.bind(whole), 1, 2)
    with pytest.raises(TypeError, match="InputNode"):
        workflow.run(identity.bind(1), 2)


# -- decided where the old library was silent or unclear -------------------------------------------------------------


@pytest.fixture
def limits() -> Iterator[Callable[[int, int], None]]:
    def limit(running: int, pending: int) -> None:
        cluster.connected().call("set_limits", running, pending)

    yield limit
    limit(-1, -1)


def test_an_id_that_is_running_is_still_active_which_is_also_a_runtime_error(tmp_path: Path, fresh: str) -> None:
    go = str(tmp_path / "go")
    ref = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh)
    for again in (workflow.run, workflow.run_async):
        with pytest.raises(RuntimeError) as caught:
            again(wait_for_file.bind(go), workflow_id=fresh)
        assert isinstance(caught.value, workflow.WorkflowStillActiveError)
        assert caught.value.workflow_id == fresh
    Path(go).touch()
    assert ray.get(ref) == "seen"


def test_an_id_that_is_pending_is_still_active_and_a_full_queue_leaves_nothing_behind(
    tmp_path: Path, fresh: str, limits: Callable[[int, int], None]
) -> None:
    go = str(tmp_path / "go")
    limits(1, 1)
    first = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh + "-1")
    second = workflow.run_async(identity.bind(2), workflow_id=fresh + "-2")
    assert workflow.get_status(fresh + "-2") == "PENDING"
    assert (fresh + "-2", workflow.PENDING) in workflow.list_all("PENDING")
    with pytest.raises(workflow.WorkflowStillActiveError):
        workflow.run(identity.bind(2), workflow_id=fresh + "-2")
    with pytest.raises(queue.Full) as caught:
        workflow.run_async(identity.bind(3), workflow_id=fresh + "-3")
    assert isinstance(caught.value, workflow.QueueFull)
    assert isinstance(caught.value, workflow.WorkflowError)
    assert fresh + "-3" not in dict(workflow.list_all())
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(fresh + "-3")
    Path(go).touch()
    assert ray.get([first, second]) == ["seen", 2]


def test_with_max_pending_workflows_0_nothing_may_wait(
    tmp_path: Path, fresh: str, limits: Callable[[int, int], None]
) -> None:
    go = str(tmp_path / "go")
    limits(1, 0)
    first = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh)
    with pytest.raises(workflow.QueueFull, match="max_pending_workflows=0"):
        workflow.run(identity.bind(1))
    Path(go).touch()
    assert ray.get(first) == "seen"
    assert workflow.run(identity.bind(1)) == 1


def test_the_same_id_of_a_failed_workflow_with_the_same_dag_resumes(tmp_path: Path, fresh: str, notes: Notes) -> None:
    go = tmp_path / "go"

    def dag() -> Any:
        return add.bind(fail_until.bind(str(go)), noted.bind(str(tmp_path / "notes"), "!"))

    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag(), workflow_id=fresh)
    eventually(notes, "the sibling ran")
    go.touch()
    assert workflow.run(dag(), workflow_id=fresh) == "done!"
    assert notes() == ["ran"]


@pytest.mark.parametrize(
    "call",
    [
        lambda i: workflow.get_status(i),
        lambda i: workflow.get_output(i),
        lambda i: ray.get(workflow.get_output_async(i)),
        lambda i: workflow.get_metadata(i),
        lambda i: workflow.resume(i),
        lambda i: workflow.resume_async(i),
        lambda i: workflow.cancel(i),
        lambda i: workflow.delete(i),
    ],
)
def test_an_unknown_id_is_not_found_which_is_also_a_value_error(call: Callable[[str], Any], fresh: str) -> None:
    with pytest.raises(workflow.WorkflowNotFoundError) as caught:
        call(fresh)
    assert isinstance(caught.value, ValueError)
    assert fresh in str(caught.value)
    assert fresh not in dict(workflow.list_all())


def test_cancel_of_a_finished_workflow_changes_nothing_silently(fresh: str) -> None:
    workflow.run(identity.bind("kept"), workflow_id=fresh)
    workflow.cancel(fresh)
    assert workflow.get_status(fresh) == "SUCCESSFUL"
    assert workflow.get_output(fresh) == "kept"


def test_resume_of_a_cancelled_workflow_is_refused_and_says_how_to_start_it_anew(tmp_path: Path, fresh: str) -> None:
    go = str(tmp_path / "go")
    ref = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh)
    eventually(Path(go + ".began").exists, "the task begins")
    workflow.cancel(fresh)
    assert workflow.get_status(fresh) == "CANCELED"
    with pytest.raises(workflow.WorkflowCancellationError):
        ray.get(ref)
    with pytest.raises(workflow.WorkflowCancellationError):
        workflow.get_output(fresh)
    with pytest.raises(workflow.WorkflowNotResumableError, match="if_exists='replace'"):
        workflow.resume(fresh)
    Path(go).touch()
    with pytest.raises(workflow.WorkflowNotResumableError):
        workflow.run(wait_for_file.bind(go), workflow_id=fresh)
    assert workflow.run(wait_for_file.bind(go), workflow_id=fresh, if_exists="replace") == "seen"


def test_the_users_exception_is_the_cause_for_run_get_output_and_ray_get(fresh: str) -> None:
    ref = workflow.run_async(fail.bind("why"), workflow_id=fresh)
    with pytest.raises(workflow.WorkflowExecutionError) as through_ref:
        ray.get(ref)
    with pytest.raises(workflow.WorkflowExecutionError) as from_run:
        workflow.run(fail.bind("why"))
    wrapped = through_ref.value
    causes = [from_run.value.__cause__, failure_of(fresh).__cause__]
    inner = getattr(wrapped, "cause", wrapped)
    causes.append(inner.__cause__)
    for cause in causes:
        assert type(cause) is LookupError
        assert cause.args == ("why",)
    assert from_run.value.task_id is not None
    assert from_run.value.task_id.endswith("fail")
    assert "fail" in str(from_run.value)
    assert "LookupError: why" in str(from_run.value)


@pytest.mark.parametrize("wrong", ["", "x" * 201, "a\nb", "tab\t", "\ud800"])
def test_ids_of_wrong_form_are_value_errors_at_once(wrong: str) -> None:
    for call in (workflow.get_status, workflow.get_output, workflow.resume, workflow.cancel, workflow.delete):
        with pytest.raises(ValueError, match="expected 1 to 200 printable characters"):
            call(wrong)
    with pytest.raises(ValueError, match="expected 1 to 200 printable characters"):
        workflow.run(identity.bind(1), workflow_id=wrong)


def test_another_dag_under_a_finished_id_is_a_workflow_error_that_is_also_a_value_error(fresh: str) -> None:
    workflow.run(identity.bind(1), workflow_id=fresh)
    with pytest.raises(workflow.WorkflowExistsError, match=fresh) as caught:
        workflow.run(identity.bind(2), workflow_id=fresh)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, workflow.WorkflowError)
    assert workflow.get_output(fresh) == 1


def test_the_names_of_metadata_keys_and_default_task_ids_are_kept(fresh: str) -> None:
    options = workflow.options(task_id="sum", metadata={"who": "me"})
    workflow.run(add.options(**options).bind(identity.bind(1), 2), workflow_id=fresh, metadata={"why": "test"})
    whole = workflow.get_metadata(fresh)
    assert whole["status"] == "SUCCESSFUL"
    assert whole["user_metadata"] == {"why": "test"}
    assert whole["stats"]["start_time"] <= whole["stats"]["end_time"] <= time.time() + 1
    task = workflow.get_metadata(fresh, "sum")
    assert task["user_metadata"] == {"who": "me"}
    assert task["task_options"]["task_type"] == "FUNCTION"
    assert task["task_options"]["max_retries"] == 3
    assert task["task_options"]["catch_exceptions"] is False
    assert {"start_time", "end_time"} <= set(task["stats"])
    assert task["workflow_refs"] == []
    (upstream,) = task["upstream_dependencies"]
    assert upstream == f"{__name__}.identity"
    assert workflow.get_metadata(fresh, task_id=upstream)["name"].endswith("identity")


def test_the_former_names_of_errors_and_of_the_timer_listener_are_kept() -> None:
    assert workflow.exceptions.WorkflowExecutionError is workflow.WorkflowExecutionError
    assert workflow.exceptions.WorkflowCancellationError is workflow.WorkflowCancellationError
    assert workflow.exceptions.WorkflowNotResumableError is workflow.WorkflowNotResumableError
    assert workflow.exceptions.WorkflowStillActiveError is workflow.WorkflowStillActiveError
    assert workflow.exceptions.WorkflowNotFoundError is workflow.WorkflowNotFoundError
    assert workflow.event_listener.TimerListener is workflow.TimerListener
    assert workflow.event_listener.EventListener is workflow.EventListener


def test_options_of_the_decorator_and_of_the_call_merge_key_by_key(fresh: str) -> None:
    @workflow.options(task_id="decorated", metadata={"a": 1}, catch_exceptions=True)
    @ray.remote(num_cpus=0.5, max_retries=1)
    def task() -> Any:
        raise LookupError("caught")

    dag = task.options(num_cpus=0.25, **workflow.options(metadata={"b": 2})).bind()
    value, error = workflow.run(dag, workflow_id=fresh)
    assert value is None
    assert isinstance(error, LookupError)
    found = workflow.get_metadata(fresh, "decorated")
    assert found["user_metadata"] == {"b": 2}
    assert found["task_options"]["ray_options"]["num_cpus"] == 0.25
    assert found["task_options"]["max_retries"] == 1
    assert found["task_options"]["catch_exceptions"] is True


def test_a_bare_dag_node_that_a_task_returns_is_a_continuation() -> None:
    @ray.remote
    def bare() -> Any:
        return add.bind(1, identity.bind(2))

    assert workflow.run(bare.bind()) == 3


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_node_inside_a_list_arrives_as_a_ref_also_after_a_resume(tmp_path: Path, fresh: str, size: int) -> None:
    go = tmp_path / "go"

    @ray.remote
    def look(values: list[Any], path: str) -> Any:
        if not os.path.exists(path):
            raise LookupError("not yet")
        return [isinstance(v, ray.ObjectRef) and len(ray.get(v)) for v in values]

    dag = look.bind([identity.bind("x" * size), ray.put("y" * size)], str(go))
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(dag, workflow_id=fresh)
    go.touch()
    assert workflow.resume(fresh) == [size, size]


class Flaky(workflow.EventListener):
    """Raises until the file ``path`` exists."""

    async def poll_for_event(self, path: str) -> str:
        note(path + ".polls")
        if not os.path.exists(path):
            raise ConnectionError("the source is away")
        return "event"

    async def event_checkpointed(self, event: str) -> None:
        pass


def test_a_listener_that_raises_is_tried_again(tmp_path: Path, notes: Notes) -> None:
    ref = workflow.run_async(identity.bind(workflow.wait_for_event(Flaky, str(tmp_path / "go"))))
    eventually(lambda: len(notes("go.polls")) >= 2, "the listener is asked again")
    (tmp_path / "go").touch()
    assert ray.get(ref) == "event"


def test_a_listener_that_raises_beyond_its_limit_fails_like_a_task(tmp_path: Path, fresh: str, notes: Notes) -> None:
    node = workflow.wait_for_event(Flaky, str(tmp_path / "never")).options(max_retries=1)
    with pytest.raises(workflow.WorkflowExecutionError, match="the source is away") as caught:
        workflow.run(identity.bind(node), workflow_id=fresh)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert len(notes("never.polls")) == 2


@pytest.mark.parametrize(
    "workflow_id", ["界" * 200, "😀" * 200, "a/b", "..", ".", "~2E", "%41", " spaces  inside ", "A", "a"]
)
def test_any_printable_id_works_on_a_file_store_and_is_listed_as_it_is(workflow_id: str) -> None:
    assert workflow.run(identity.bind(workflow_id), workflow_id=workflow_id) == workflow_id
    assert workflow.get_output(workflow_id) == workflow_id
    assert dict(workflow.list_all())[workflow_id] == "SUCCESSFUL"


def test_own_keywords_of_run_never_reach_the_inputs_which_are_given_by_input_kwargs() -> None:
    with InputNode() as whole:
        dag = gather.bind(whole.if_exists, whole.metadata, whole.workflow_id, whole.plain)
        inputs = {"if_exists": 1, "metadata": 2, "workflow_id": 3}
        assert workflow.run(dag, input_kwargs=inputs, plain=4, if_exists="error") == [1, 2, 3, 4]


def test_folders_on_the_drivers_path_reach_its_tasks(tmp_path: Path) -> None:
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "only_here.py").write_text("VALUE = 'from the folder of the driver'\n")
    body = """
    sys.path.insert(0, sys.argv[2])
    @ray.remote
    def look():
        import only_here
        return only_here.VALUE
    print(workflow.run(look.bind()))
    """
    with Driver(tmp_path / "store", body, str(modules)) as driver:
        assert driver.finish() == "from the folder of the driver\n"


def test_a_resume_after_a_death_that_this_machine_can_prove_does_not_wait_for_the_lease(
    storage: Path, tmp_path: Path, fresh: str
) -> None:
    go = tmp_path / "go"
    body = """
    @ray.remote
    def hang(path):
        open(path + ".began", "w").close()
        while not os.path.exists(path): time.sleep(0.02)
        return "over"
    print(workflow.run(hang.bind(sys.argv[2]), workflow_id=sys.argv[3]))
    """
    with Driver(storage, body, str(go), fresh) as first:
        eventually((tmp_path / "go.began").exists, "the task begins")
        first.kill()
    go.touch()
    began = time.monotonic()
    assert workflow.resume(fresh) == "over"
    assert time.monotonic() - began < 10, "the lease of 20 s was waited for"


# -- the table of functions ------------------------------------------------------------------------------------------


def test_init_with_the_same_values_is_fine_and_with_others_says_which_differ(storage: Path, tmp_path: Path) -> None:
    workflow.init(storage=str(storage))
    workflow.init(storage=f"file://{storage}")
    workflow.init()
    with pytest.raises(ValueError) as caught:
        workflow.init(storage=str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert str(storage) in str(caught.value)
    with pytest.raises(ValueError, match=r"max_running_workflows=5 \(is -1\)"):
        workflow.init(max_running_workflows=5)
    with pytest.raises(ValueError, match=r"max_pending_workflows=7 \(is -1\)"):
        workflow.init(max_pending_workflows=7)
    with pytest.raises(ValueError, match="num_cpus"):
        workflow.init(num_cpus=4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_running_workflows": 0}, {"max_running_workflows": -2}, {"max_running_workflows": 1.5},
        {"max_running_workflows": True}, {"max_pending_workflows": -2}, {"max_pending_workflows": "many"},
        {"lease_seconds": 0}, {"lease_seconds": 1e9},
    ],
)  # fmt: skip
def test_init_refuses_limits_that_are_none(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        workflow.init(**wrong)


def test_run_async_outlives_its_driver_and_another_driver_gets_the_output(tmp_path: Path, storage: Path) -> None:
    address = ray.get_runtime_context().gcs_address
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
    workflow.run_async(slow.bind(sys.argv[2]), workflow_id="outlives")
    """
    go = tmp_path / "go"
    with Driver(address, body, str(go), head=head) as driver:
        driver.finish()
    assert workflow.get_status("outlives") == "RUNNING"
    ref = workflow.get_output_async("outlives")
    go.touch()
    assert ray.get(ref) == "went on"
    assert workflow.get_output("outlives") == "went on"


def test_run_async_outlives_its_driver_with_refs_that_this_driver_made(tmp_path: Path) -> None:
    address = ray.get_runtime_context().gcs_address
    head = """
import os, sys, time, ray
from perdure import workflow
workflow.init(address=sys.argv[1], log_to_driver=False, logging_level="error")
"""
    body = """
    @ray.remote
    def late(path, value, inside):
        while not os.path.exists(path): time.sleep(0.02)
        return len(value) + len(ray.get(inside[0]))
    big = ray.put("x" * 200_000)
    workflow.run_async(late.bind(sys.argv[2], big, [ray.put("yy")]), workflow_id="refs-outlive")
    """
    go = tmp_path / "go"
    with Driver(address, body, str(go), head=head) as driver:
        driver.finish()
    go.touch()
    assert workflow.get_output("refs-outlive") == 200_002


def test_resume_of_a_finished_workflow_returns_its_output(fresh: str) -> None:
    workflow.run(identity.bind("out"), workflow_id=fresh)
    assert workflow.resume(fresh) == "out"
    assert ray.get(workflow.resume_async(fresh)) == "out"


def test_resume_all_goes_on_past_one_that_fails_and_reports_it(tmp_path: Path, fresh: str) -> None:
    go = tmp_path / "go"
    for name, dag in (("a", fail.bind("again")), ("b", fail_until.bind(str(go)))):
        with pytest.raises(workflow.WorkflowExecutionError):
            workflow.run(dag, workflow_id=f"{fresh}-{name}")
    go.touch()
    assert fresh + "-a" not in dict(workflow.resume_all())
    found = dict(workflow.resume_all(include_failed=True))
    assert ray.get(found[fresh + "-b"]) == "done"
    with pytest.raises(workflow.WorkflowExecutionError):
        ray.get(found[fresh + "-a"])


def test_get_output_waits_while_the_workflow_runs_and_follows_continuations(tmp_path: Path, fresh: str) -> None:
    go = str(tmp_path / "go")

    @ray.remote
    def later(path: str) -> Any:
        return workflow.continuation(
            add.options(**workflow.options(task_id="inner")).bind(wait_for_file.bind(path), "!")
        )

    workflow.run_async(identity.bind(later.options(**workflow.options(task_id="later")).bind(go)), workflow_id=fresh)
    refs = [
        workflow.get_output_async(fresh),
        workflow.get_output_async(fresh, task_id="later"),
        workflow.get_output_async(fresh, task_id="inner"),
    ]
    ready, _ = ray.wait(refs, timeout=0.3)
    assert not ready
    Path(go).touch()
    assert ray.get(refs) == ["seen!"] * 3
    assert workflow.get_output(fresh, task_id="later") == "seen!"
    with pytest.raises(ValueError, match="later"):
        workflow.get_output(fresh, task_id="nobody")


def test_list_all_takes_a_status_its_string_or_any_iterable_of_them(fresh: str) -> None:
    workflow.run(identity.bind(1), workflow_id=fresh)
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(fail.bind(), workflow_id=fresh + "-failed")
    for one in (workflow.SUCCESSFUL, "SUCCESSFUL", ["SUCCESSFUL"], {workflow.SUCCESSFUL}, ("RUNNING", "SUCCESSFUL")):
        found = dict(workflow.list_all(one))
        assert found[fresh] == workflow.SUCCESSFUL
        assert fresh + "-failed" not in found
    assert dict(workflow.list_all(iter(["FAILED"])))[fresh + "-failed"] == "FAILED"
    assert workflow.list_all([]) == []
    with pytest.raises(ValueError, match="DONE"):
        workflow.list_all("DONE")
    with pytest.raises(ValueError, match="5"):
        workflow.list_all([5])  # type: ignore[list-item]


def test_cancel_ends_what_runs_by_force_and_works_on_pending_too(
    tmp_path: Path, fresh: str, limits: Callable[[int, int], None]
) -> None:
    @ray.remote
    def stubborn(path: str) -> None:
        Path(path).write_text(str(os.getpid()))
        while True:
            try:
                time.sleep(60)
            except BaseException:
                continue

    limits(1, 5)
    pid = tmp_path / "pid"
    ref = workflow.run_async(stubborn.bind(str(pid)), workflow_id=fresh)
    waiting = workflow.run_async(identity.bind(1), workflow_id=fresh + "-2")
    number = int(eventually(lambda: pid.exists() and pid.read_text(), "the task begins"))
    workflow.cancel(fresh + "-2")
    assert workflow.get_status(fresh + "-2") == "CANCELED"
    workflow.cancel(fresh)
    for refused in (ref, waiting):
        with pytest.raises(workflow.WorkflowCancellationError):
            ray.get(refused)
    eventually(lambda: not os.path.exists(f"/proc/{number}"), "the worker is gone")


def test_delete_forgets_a_workflow_and_refuses_a_running_one(tmp_path: Path, fresh: str) -> None:
    go = str(tmp_path / "go")
    ref = workflow.run_async(wait_for_file.bind(go), workflow_id=fresh)
    with pytest.raises(workflow.WorkflowStillActiveError, match="cancel"):
        workflow.delete(fresh)
    Path(go).touch()
    assert ray.get(ref) == "seen"
    workflow.delete(fresh)
    assert fresh not in dict(workflow.list_all())
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_output(fresh)
    assert workflow.run(identity.bind("anew"), workflow_id=fresh) == "anew"


def test_continuation_outside_a_task_executes_the_dag() -> None:
    assert workflow.continuation(add.bind(1, identity.bind(2))) == 3
    with pytest.raises(TypeError, match="bind"):
        workflow.continuation(3)


def test_sleep_takes_its_time_and_refuses_what_is_no_duration() -> None:
    began = time.monotonic()
    assert workflow.run(workflow.sleep(0.3)) is None
    assert time.monotonic() - began >= 0.3
    for wrong in (-1, "1", None, float("nan"), True):
        with pytest.raises(ValueError, match="seconds"):
            workflow.sleep(wrong)  # type: ignore[arg-type]


class Contexts(workflow.EventListener):
    async def poll_for_event(self) -> tuple[str, str]:
        context = workflow.context()
        return context.workflow_id, context.task_id


def test_a_listener_is_made_without_arguments_and_sees_its_workflow_and_task(fresh: str) -> None:
    node = workflow.wait_for_event(Contexts).options(**workflow.options(task_id="wait"))
    assert workflow.run(node, workflow_id=fresh) == (fresh, "wait")


class Told(workflow.EventListener):
    async def poll_for_event(self, path: str) -> str:
        return path

    async def event_checkpointed(self, event: str) -> None:
        note(event)


def test_a_listener_is_told_when_its_event_is_durable(tmp_path: Path, notes: Notes) -> None:
    path = str(tmp_path / "notes")
    assert workflow.run(workflow.wait_for_event(Told, path)) == path
    assert len(notes()) >= 1


def test_a_timer_listener_fires_at_its_time_by_class_and_by_name() -> None:
    for listener in (workflow.TimerListener, "timer"):
        due = time.time() + 0.3
        workflow.run(workflow.wait_for_event(listener, due))
        assert time.time() >= due


def test_wait_for_event_refuses_what_is_no_listener() -> None:
    for wrong in (Box, Contexts(), 3):
        with pytest.raises(TypeError, match="poll_for_event"):
            workflow.wait_for_event(wrong)  # type: ignore[arg-type]
    with pytest.raises(PerdureError, match="nosuch.*timer"):
        workflow.wait_for_event("nosuch")


def test_statuses_are_strings_and_constants_of_the_module() -> None:
    assert [s.value for s in workflow.WorkflowStatus] == [
        "NONE", "RUNNING", "CANCELED", "SUCCESSFUL", "FAILED", "RESUMABLE", "PENDING",
    ]  # fmt: skip
    for status in workflow.WorkflowStatus:
        assert getattr(workflow, status.value) is status
        assert status == status.value
        assert f"{status}" == status.value


@pytest.mark.parametrize(
    "wrong",
    [
        {"task_id": ""}, {"task_id": 3}, {"metadata": []}, {"metadata": {1: 2}}, {"metadata": {"a": object()}},
        {"catch_exceptions": 1}, {"checkpoint": "yes"}, {"timeout": 0}, {"timeout": "1"}, {"retry_backoff": -1},
        {"retry_backoff": (1, 0.5)}, {"nosuch": 1},
    ],
)  # fmt: skip
def test_options_checks_its_values(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        workflow.options(**wrong)


def test_options_decorates_remote_functions_only() -> None:
    with pytest.raises(ValueError, match="@ray.remote"):
        workflow.options(task_id="x")(lambda: 1)


def test_all_nodes_of_a_multi_output_dag_give_a_list() -> None:
    assert workflow.run(MultiOutputNode([identity.bind(1), add.bind(1, 1)])) == [1, 2]


def test_ray_options_of_a_task_are_honoured(fresh: str) -> None:
    @ray.remote(num_cpus=2, runtime_env={"env_vars": {"ONLY_THIS_TASK": "yes"}})
    def look() -> Any:
        context = ray.get_runtime_context()
        return context.get_assigned_resources().get("CPU"), os.environ.get("ONLY_THIS_TASK")

    assert workflow.run(look.bind(), workflow_id=fresh) == (2.0, "yes")


def test_crashed_workers_are_replaced_three_times_by_default(tmp_path: Path, notes: Notes) -> None:
    assert workflow.run(crash.bind(str(tmp_path / "notes"), 3)) == "alive"
    assert len(notes()) == 4


def test_crashes_beyond_max_retries_fail_the_workflow(tmp_path: Path, notes: Notes) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(crash.options(max_retries=1).bind(str(tmp_path / "notes"), 9))
    assert len(notes()) == 2
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(crash.options(max_retries=0).bind(str(tmp_path / "zero"), 9))
    assert len(notes("zero")) == 1


def test_exceptions_are_not_retried_by_default_and_are_when_retry_exceptions_is_true(
    tmp_path: Path, notes: Notes
) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(fail_until.bind(str(tmp_path / "a")))
    assert len(notes("a.tries")) == 1
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(fail_until.options(retry_exceptions=True, max_retries=2).bind(str(tmp_path / "b")))
    assert len(notes("b.tries")) == 3


def test_only_listed_exception_classes_are_retried(tmp_path: Path, notes: Notes) -> None:
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(fail_until.options(retry_exceptions=[KeyError, LookupError]).bind(str(tmp_path / "a")))
    assert len(notes("a.tries")) == 4
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(fail_until.options(retry_exceptions=[KeyError]).bind(str(tmp_path / "b")))
    assert len(notes("b.tries")) == 1


def test_max_retries_of_minus_1_is_no_limit(tmp_path: Path, notes: Notes) -> None:
    go = tmp_path / "go"
    ref = workflow.run_async(fail_until.options(retry_exceptions=True, max_retries=-1).bind(str(go)))
    eventually(lambda: len(notes("go.tries")) > 8, "more tries than any default")
    go.touch()
    assert ray.get(ref) == "done"


def test_retry_backoff_spaces_the_attempts(tmp_path: Path) -> None:
    @ray.remote(max_retries=2, retry_exceptions=True)
    def stamp(path: str) -> None:
        note(path, str(time.time()))
        raise LookupError("again")

    path = tmp_path / "stamps"
    with pytest.raises(workflow.WorkflowExecutionError):
        workflow.run(stamp.options(**workflow.options(retry_backoff=(0.3, 2, 10, 0))).bind(str(path)))
    first, second, third = map(float, path.read_text().split())
    assert second - first >= 0.29
    assert third - second >= 0.59


def test_timeout_ends_an_attempt_which_counts_as_a_crash(tmp_path: Path, notes: Notes) -> None:
    @ray.remote(max_retries=1)
    def slow(path: str) -> None:
        note(path)
        time.sleep(60)

    with pytest.raises(workflow.WorkflowExecutionError, match="timeout"):
        workflow.run(slow.options(**workflow.options(timeout=0.8)).bind(str(tmp_path / "notes")))
    assert len(notes()) == 2


def test_a_coroutine_that_a_task_returns_is_awaited() -> None:
    # Ray itself refuses `async def` remote functions; this is how one is wrapped
    async def late(x: int) -> int:
        await asyncio.sleep(0.01)
        return x + 1

    @ray.remote
    def task(x: int) -> Any:
        return late(x)

    assert workflow.run(task.bind(1)) == 2


def test_a_task_sees_its_ids_attempt_and_an_idempotency_key_that_attempts_share(tmp_path: Path, fresh: str) -> None:
    @ray.remote(retry_exceptions=True)
    def look(path: str) -> tuple[str, str, int]:
        context = workflow.context()
        note(path, context.idempotency_key)
        if context.attempt < 2:
            raise LookupError("again")
        return context.workflow_id, context.task_id, context.attempt

    path = tmp_path / "keys"
    dag = look.options(**workflow.options(task_id="look")).bind(str(path))
    assert workflow.run(dag, workflow_id=fresh)[:2] == (fresh, "look")
    keys = path.read_text().split()
    assert len(set(keys)) == 1
    assert len(keys) >= 2
    with pytest.raises(RuntimeError, match="outside a task"):
        workflow.context()


def test_the_time_in_a_queue_does_not_count_for_a_timeout() -> None:
    @ray.remote(num_cpus=2, max_retries=0)
    def slow(number: int) -> int:
        time.sleep(0.6)
        return number

    timed = slow.options(**workflow.options(timeout=5))
    assert workflow.run(gather.bind(*[timed.bind(n) for n in range(9)])) == list(range(9))
