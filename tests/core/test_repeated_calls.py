"""Calls that Ray repeats at the next coordinator, after the first one died with its answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from perdure.errors import WorkflowNotFoundError
from perdure.onray.actor import CoordinatorActor


def _actor(coordinator_id: str) -> Any:
    """An actor whose coordinator knows no workflow."""
    made: Any = CoordinatorActor.__new__(CoordinatorActor)

    async def delete(workflow_id: str) -> None:
        raise WorkflowNotFoundError(f"workflow {workflow_id!r} is not in this store", workflow_id=workflow_id)

    async def ready() -> Any:
        return SimpleNamespace(id=coordinator_id, delete=delete)

    made._ready = ready
    return made


async def test_a_repeated_delete_finds_its_own_work_done() -> None:
    await _actor("second").delete("w", seen="first")


async def test_a_delete_of_an_unknown_workflow_is_an_error() -> None:
    for seen in ("", "first"):
        with pytest.raises(WorkflowNotFoundError):
            await _actor("first").delete("w", seen=seen)
