from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clusters import Console, Head


@pytest.fixture(scope="session")
def head() -> Iterator[Head]:
    """One cluster for all tests that don't end it; with no storage set."""
    with Head() as made:
        yield made


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cluster") / "store"


@pytest.fixture
def bare(head: Head) -> Iterator[Head]:
    """The cluster without a coordinator: the next `init` sets the storage anew."""
    forget_coordinator(head)
    yield head
    forget_coordinator(head)


def forget_coordinator(head: Head) -> None:
    from support.clusters import ray_driver

    ray_driver(
        head,
        """
        try:
            ray.kill(ray.get_actor("perdure", namespace="perdure"), no_restart=True)
        except ValueError:
            pass
        """,
    )


@pytest.fixture
def console(head: Head, storage: Path) -> Iterator[Console]:
    with Console(head, storage=str(storage)) as made:
        yield made
