"""The durable core on real servers: one server and one cluster a module and kind, shared by its tests."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
import servers
from support.clusters import Scene
from support.remote import ENVIRONMENT, KINDS, LEASE
from support.stores import start

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def credentials() -> Iterator[None]:
    """Made-up credentials where users have theirs: in the environment, which the clusters inherit."""
    servers.install_signal_handler()
    wanted = {
        "AWS_ACCESS_KEY_ID": servers.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    unwanted = ("AWS_PROFILE", "AWS_SESSION_TOKEN", "STORAGE_EMULATOR_HOST")
    before = {name: os.environ.get(name) for name in (*wanted, *unwanted)}
    os.environ.update(wanted)
    for name in unwanted:
        os.environ.pop(name, None)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture(scope="module", params=tuple(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def server(kind: str) -> Iterator[servers.Server]:
    running = start(KINDS[kind])
    yield running
    running.stop()


@pytest.fixture
def fresh(server: servers.Server) -> str:
    """The URL of an empty prefix."""
    return server.url(f"remote/{next(_numbers)}")


@pytest.fixture(scope="module")
def scene(server: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    url = server.url(f"remote/{next(_numbers)}")
    with Scene(tmp_path_factory.mktemp("scene"), url, ENVIRONMENT, lease_seconds=LEASE) as made:
        yield made
