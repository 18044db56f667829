"""How Ray's own failures become results: which cost a retry, which do not. With a stand-in for the Ray task."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray import exceptions as rx

from perdure.graph import Function, Options
from perdure.onray.executor import RayRunner
from perdure.onray.resources import unmet
from perdure.runner import Context, Job
from perdure.scheduler import NotBegun, Raised


class Refs(RayRunner):
    """A runner whose Ray tasks end with given errors."""

    def __init__(self, *errors: BaseException) -> None:
        super().__init__("memory://none", lease_seconds=20)
        self.errors = list(errors)

    def _submit(self, job: Job) -> Any:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_exception(self.errors.pop(0))
        return future


def job(**options: Any) -> Job:
    return Job(
        "w", 0, 0, "task", 1, Function("task", ""), Options(max_retries=0, **options), None, (), (), True, "w/0/0",
        "task", Context(), {},
    )  # fmt: skip


@pytest.mark.parametrize(
    "error",
    [rx.WorkerCrashedError(), rx.OutOfMemoryError("full"), rx.ActorDiedError()],
    ids=lambda e: type(e).__name__,
)
async def test_a_crash_of_the_worker_costs_a_retry(error: Exception) -> None:
    result = await Refs(error).run(job())
    assert isinstance(result, Raised)
    assert result.retryable
    assert (result.failure.kind, result.failure.type) == ("crashed", type(error).__name__)


@pytest.mark.parametrize("error", [rx.NodeDiedError("gone"), rx.LocalRayletDiedError()], ids=lambda e: type(e).__name__)
async def test_the_loss_of_a_node_costs_none(error: Exception) -> None:
    result = await Refs(error).run(job())
    assert isinstance(result, NotBegun)
    assert result.preempted


async def test_a_lost_input_is_loaded_again_before_anything_is_counted() -> None:
    lost = rx.ObjectLostError("00" * 28, None, "")
    result = await Refs(lost, rx.WorkerCrashedError()).run(job())
    assert isinstance(result, Raised)  # the second attempt's
    result = await Refs(lost, lost).run(job())
    assert isinstance(result, NotBegun)
    assert not result.preempted


@pytest.mark.parametrize(
    "error", [rx.RuntimeEnvSetupError("no such wheel"), rx.TaskUnschedulableError("its node is dead")],
    ids=lambda e: type(e).__name__,
)  # fmt: skip
async def test_what_no_repetition_can_help_is_not_repeated(error: Exception) -> None:
    result = await Refs(error).run(job())
    assert isinstance(result, Raised)
    assert not result.retryable


NODES = [
    {"Alive": True, "Resources": {"CPU": 2.0, "memory": 1e9}},
    {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0, "memory": 1e9}},
    {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}},
]


def test_what_a_task_waits_for_names_the_resource_and_the_most_that_there_is() -> None:
    assert unmet({}, NODES) == ""
    assert unmet({"num_cpus": 8, "num_gpus": 1}, NODES) == ""
    assert unmet({"num_gpus": 4}, NODES) == "no node of the cluster has GPU 4 (most on one node: 1)"
    assert unmet({"resources": {"far": 1}}, NODES) == "no node of the cluster has far 1 (most on one node: 0)"
    assert unmet({"num_cpus": 0}, NODES) == ""
