"""One Ray cluster for each module of these tests, and what its tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.ray_fixtures import fresh, notes, storage

__all__ = ["coordinator", "fresh", "notes", "storage"]


@pytest.fixture
def coordinator(storage: Path) -> Callable[[], int]:
    """The pid of the coordinator's process now."""
    import perdure
    from perdure.onray import actor, cluster

    def pid() -> int:
        handle = cluster.connected().handle
        return int(cluster.get(handle.hello.remote(perdure.__version__, actor.PROTOCOL), 60)["pid"])

    return pid
