"""Fixtures of tests that share one Ray cluster for each module; a `conftest.py` imports them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.runs import cluster

_numbers = itertools.count()


@pytest.fixture(scope="module")
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The store of this module's cluster, which runs while the module does."""
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(request.module)  # as what __main__ defines: workers can't import tests
    folder = tmp_path_factory.mktemp("store") / "workflows"
    with cluster(folder):
        yield folder
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def fresh(request: pytest.FixtureRequest) -> str:
    """A workflow id that no other test uses."""
    return f"{request.node.name[:60]}-{next(_numbers)}"


@pytest.fixture
def notes(tmp_path: Path) -> Callable[..., list[str]]:
    """Read the lines that tasks noted, by file name (default: ``notes``)."""
    from support.runs import lines

    return lambda name="notes": lines(tmp_path / name)
