"""Every store behind one fixture: ``open_here()`` opens a store of the kind under test at one fresh
prefix.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import servers
from support.stores import KINDS, Servers

from perdure.store import Store, open_store

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def session_servers() -> Iterator[Servers]:
    servers.install_signal_handler()
    running = Servers()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def credentials(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up credentials in the environment, where users have theirs too."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if "kind" in request.fixturenames and request.getfixturevalue("kind") == "rediss":
        monkeypatch.setenv("PERDURE_REDIS_USERNAME", "perdure")
        monkeypatch.setenv("PERDURE_REDIS_PASSWORD", servers.Redis.password)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty store of the kind."""
    name = f"t{next(_numbers)}-{os.getpid()}"
    if kind == "file":
        return f"file://{tmp_path}/store"
    if kind == "fsspec+file":
        return f"fsspec+file://{tmp_path}/store"
    if kind.endswith("memory"):
        return f"{kind}://{name}"
    running: Servers = request.getfixturevalue("session_servers")
    return running.get(kind).url(f"tests/{name}")


@pytest.fixture
async def open_here(url: str) -> AsyncIterator[Callable[..., Store]]:
    """Opens further instances of the store under test; all are closed at the end."""
    opened: list[Store] = []

    def open_again(**options: object) -> Store:
        opened.append(open_store(url, **options))
        return opened[-1]

    yield open_again
    for store in opened:
        await store.aclose()


@pytest.fixture
def store(open_here: Callable[..., Store]) -> Store:
    return open_here()
