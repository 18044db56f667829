"""What a task raises that is no Exception: it ends the attempt, and counts."""

from __future__ import annotations

import pytest

from perdure.errors import EncodeError
from perdure.graph import Function
from perdure.onray import worker
from perdure.onray.cluster import storage_url
from perdure.onray.process import PROCESS
from perdure.onray.saving import Saver
from perdure.onray.worker import Report, Spec

URL = "memory://a-worker-that-is-interrupted"


def attempt(error: BaseException) -> Report:
    def task() -> None:
        raise error

    PROCESS.functions["interrupted"] = task
    spec = Spec(
        "w", "task", 1, "w/0/0", "task", Function("task", "interrupted", None), None, (), (), (), True, False, URL, 0,
        "c", worker.boot_id(), 0.0, 9.9,
    )  # fmt: skip
    return worker._attempt(spec, {}, [], Saver(URL, 0), 0.0)


def test_a_keyboard_interrupt_of_the_task_is_a_failure_that_retries_count() -> None:
    report = attempt(KeyboardInterrupt())
    assert report.failure is not None
    assert (report.failure.type, report.retryable) == ("KeyboardInterrupt", True)


def test_the_end_of_the_worker_is_not_the_tasks_failure() -> None:
    ended = SystemExit(1)
    ended.ray_terminate_msg = "SIGTERM"  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        attempt(ended)


@pytest.mark.parametrize("storage", ["", "  "])
def test_an_empty_storage_is_refused(storage: str) -> None:
    with pytest.raises(ValueError, match="expected a URL or a folder"):
        storage_url(storage)


def test_a_captured_object_ref_is_refused_by_the_name_of_its_function() -> None:
    import ray

    ref = ray.ObjectRef(b"\x01" * 28)

    def task() -> object:
        return ref

    with pytest.raises(EncodeError, match="the code of task holds 1 ObjectRefs.*Pass them as arguments"):
        PROCESS.values.dumps(task, serializer="pickle", where="the code of task")
