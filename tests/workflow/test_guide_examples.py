"""The examples of the former Ray Workflows guide, with one import changed."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import ray

from perdure import workflow

pytestmark = pytest.mark.usefixtures("storage")


@ray.remote
def one() -> int:
    return 1


@ray.remote
def add(a: int, b: int) -> int:
    return a + b


@ray.remote
def read_data(count: int) -> list[int]:
    return list(range(count))


@ray.remote
def preprocessing(data: list[int]) -> list[int]:
    return [d**2 for d in data]


@ray.remote
def aggregate(data: list[int]) -> int:
    return sum(data)


@ray.remote
def fibonacci(n: int) -> Any:
    if n <= 1:
        return n
    return workflow.continuation(add.bind(fibonacci.bind(n - 1), fibonacci.bind(n - 2)))


@ray.remote
def put_refs() -> list[ray.ObjectRef]:
    return [ray.put("hello"), ray.put("world")]


@ray.remote
def concat(words: list[ray.ObjectRef]) -> str:
    return " ".join(ray.get(words))


@ray.remote
def do_nothing(ref: Any) -> Any:
    return ref


@ray.remote
def gather(*values: Any) -> tuple[Any, ...]:
    return values


def test_add_of_100_and_one_is_101_by_run() -> None:
    assert workflow.run(add.bind(100, one.bind())) == 101


def test_add_of_100_and_one_is_101_by_run_async() -> None:
    ref = workflow.run_async(add.bind(100, one.bind()))
    assert isinstance(ref, ray.ObjectRef)
    assert ray.get(ref) == 101


def test_the_data_job_of_the_first_page_gives_its_sum() -> None:
    data = read_data.bind(10)
    assert workflow.run(aggregate.bind(preprocessing.bind(data))) == 285


def test_run_1_tells_its_status_and_its_output_afterwards() -> None:
    dag = add.bind(100, one.bind())
    assert workflow.run(dag, workflow_id="run_1") == 101
    assert workflow.get_status("run_1") == workflow.WorkflowStatus.SUCCESSFUL
    assert workflow.get_status("run_1") == "SUCCESSFUL"
    assert workflow.get_output("run_1") == 101
    ref = workflow.get_output_async("run_1")
    assert isinstance(ref, ray.ObjectRef)
    assert ray.get(ref) == 101


def test_a_list_of_object_refs_out_of_a_task_becomes_hello_world() -> None:
    assert workflow.run(concat.bind(put_refs.bind())) == "hello world"


def test_object_refs_of_the_driver_become_hello_world() -> None:
    assert workflow.run(concat.bind([ray.put("hello"), ray.put("world")])) == "hello world"


def test_an_object_ref_that_is_an_argument_arrives_as_its_value() -> None:
    assert workflow.run(do_nothing.bind(ray.put("value"))) == "value"


def test_the_recursive_fibonacci_of_10_is_55() -> None:
    assert workflow.run(fibonacci.bind(10)) == 55


class Announced(workflow.EventListener):
    """The event is a word in a file, where it appears a little later."""

    async def poll_for_event(self, path: str) -> str:
        while not Path(path).exists():
            await asyncio.sleep(0.02)
        return Path(path).read_text()

    async def event_checkpointed(self, event: str) -> None:
        pass


def test_a_sleep_and_a_listeners_event_are_gathered_with_hello_world(tmp_path: Path) -> None:
    event = tmp_path / "event"
    began = time.monotonic()
    dag = gather.bind(workflow.sleep(0.5), workflow.wait_for_event(Announced, str(event)), concat.bind(put_refs.bind()))
    ref = workflow.run_async(dag)
    event.write_text("it happened")
    assert ray.get(ref) == (None, "it happened", "hello world")
    assert time.monotonic() - began >= 0.5


def test_ray_get_of_a_dag_node_is_a_clear_error() -> None:
    with pytest.raises((TypeError, ValueError), match="FunctionNode.*ObjectRef|ObjectRef.*FunctionNode"):
        ray.get(one.bind())


def test_ray_wait_of_a_dag_node_is_a_clear_error() -> None:
    with pytest.raises((TypeError, ValueError), match="FunctionNode.*ObjectRef|ObjectRef.*FunctionNode"):
        ray.wait([one.bind()])
