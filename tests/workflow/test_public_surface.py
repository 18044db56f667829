"""The public names, signatures and docstrings, and the one trick that rests on Ray: pinned."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest
import ray
from ray import cloudpickle
from ray.dag import DAGNode, InputNode

import perdure
from perdure import workflow
from perdure.onray.options import own_options

SIGNATURES = {
    "init": "(*, storage=None, max_running_workflows=None, max_pending_workflows=None, lease_seconds=None, "
    "trust=None, keys=None, serializers=None, codecs=None, **ray_init)",
    "run": "(dag, *args, workflow_id=None, metadata=None, if_exists='return', input_kwargs=None, **kwargs)",
    "run_async": "(dag, *args, workflow_id=None, metadata=None, if_exists='return', input_kwargs=None, **kwargs)",
    "resume": "(workflow_id, *, code='stored')",
    "resume_async": "(workflow_id, *, code='stored')",
    "explain": "(workflow_id)",
    "resume_all": "(include_failed=False)",
    "get_output": "(workflow_id, *, task_id=None)",
    "get_output_async": "(workflow_id, *, task_id=None)",
    "get_status": "(workflow_id)",
    "list_all": "(status_filter=None)",
    "get_metadata": "(workflow_id, task_id=None)",
    "cancel": "(workflow_id)",
    "delete": "(workflow_id)",
    "continuation": "(dag)",
    "sleep": "(duration)",
    "wait_for_event": "(listener, *args, **kwargs)",
    "context": "()",
    "options": "(*, task_id=None, metadata=None, catch_exceptions=None, checkpoint=None, retry_backoff=None, "
    "timeout=None, max_preemptions=None, **unknown)",
}
CONSTANTS = {"NONE", "RUNNING", "CANCELED", "SUCCESSFUL", "FAILED", "RESUMABLE", "PENDING"}
CLASSES = {
    "EventListener", "EventListenerType", "QueueFull", "TaskContext", "TimerListener", "WorkflowCancellationError",
    "WorkflowError", "WorkflowExecutionError", "WorkflowExistsError", "WorkflowNotFoundError",
    "WorkflowNotResumableError", "WorkflowStatus", "WorkflowStillActiveError",
}  # fmt: skip
MODULES = {"event_listener", "exceptions"}


def test_all_names_exactly_the_public_surface() -> None:
    assert set(workflow.__all__) == set(SIGNATURES) | CONSTANTS | CLASSES | MODULES
    assert len(workflow.__all__) == len(set(workflow.__all__))
    for name in workflow.__all__:
        assert hasattr(workflow, name)
    assert set(perdure.__all__) == {"__version__", "open_store", "workflow"}
    assert perdure.workflow is workflow


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_signatures_are_pinned(name: str) -> None:
    signature = inspect.signature(getattr(workflow, name))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    assert str(inspect.Signature(bare)) == SIGNATURES[name]


@pytest.mark.parametrize("name", sorted(set(SIGNATURES) | CLASSES | MODULES))
def test_every_public_name_says_what_it_is(name: str) -> None:
    text = inspect.getdoc(getattr(workflow, name))
    assert text
    assert text[0].isupper() or text.startswith("``")


@pytest.mark.parametrize("name", ["run", "init", "resume", "get_output", "list_all", "delete", "wait_for_event"])
def test_docstrings_say_what_is_raised(name: str) -> None:
    text = inspect.getdoc(getattr(workflow, name)) or ""
    assert "Raises" in text or "Error" in text


def test_importing_perdure_alone_imports_neither_ray_nor_any_plugin() -> None:
    code = (
        "import sys, perdure; "
        "print([m for m in ('ray', 's3fs', 'gcsfs', 'redis', 'pyarrow', 'numpy', 'fsspec') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


# -- how options ride on plain Ray functions and nodes -----------------------------------------------------------------


@ray.remote
def plain(x: Any = None) -> Any:
    return x


OPTIONS = {"task_id": "name", "metadata": {"a": [1, "é"]}, "catch_exceptions": True, "checkpoint": False}


def carried(node: DAGNode) -> dict[str, Any]:
    return own_options(node.get_options())


def test_options_ride_through_options_and_bind() -> None:
    assert carried(plain.options(**workflow.options(**OPTIONS)).bind(1)) == OPTIONS
    assert carried(plain.options(num_cpus=1, **workflow.options(**OPTIONS)).bind(1)) == OPTIONS
    assert carried(plain.bind(1)) == {}


def test_options_ride_through_the_decorator() -> None:
    decorated = workflow.options(**OPTIONS)(plain)
    assert carried(decorated.bind()) == OPTIONS
    assert carried(decorated.options(num_cpus=2).bind()) == OPTIONS
    assert decorated.options(num_cpus=2).bind().get_options()["num_cpus"] == 2
    assert carried(decorated.options(**workflow.options(task_id="other")).bind()) == OPTIONS | {"task_id": "other"}
    assert carried(plain.bind()) == {}, "the function itself stays as it was"


def test_options_ride_through_pickling_of_functions_and_nodes() -> None:
    decorated = workflow.options(**OPTIONS)(plain)
    assert carried(cloudpickle.loads(cloudpickle.dumps(decorated)).bind()) == OPTIONS
    node = decorated.bind(plain.options(**workflow.options(task_id="inner")).bind())
    copied = cloudpickle.loads(cloudpickle.dumps(node))
    assert carried(copied) == OPTIONS
    assert carried(copied.get_args()[0]) == {"task_id": "inner"}


def test_options_ride_through_rays_own_copy_of_a_dag() -> None:
    with InputNode() as whole:
        node = plain.options(**workflow.options(**OPTIONS)).bind(whole)
    copied = node.apply_recursive(lambda n: n)
    assert carried(copied) == OPTIONS


def test_options_leave_other_labels_alone() -> None:
    node = workflow.options(task_id="t")(plain).options(_labels={"team": "x"}).bind()
    assert node.get_options()["_labels"]["team"] == "x"
    assert carried(node) == {"task_id": "t"}


def test_decorated_functions_can_be_used_with_plain_ray_too() -> None:
    decorated = workflow.options(task_id="t")(plain)
    assert callable(decorated.remote)
    with pytest.raises(TypeError, match="remote"):
        decorated()
