"""The kinds of stores that tests run over, and their servers."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import servers

LOCAL_KINDS = ("file", "memory", "fsspec+file", "fsspec+memory")
SERVER_KINDS = {
    "s3-ministack": lambda: servers.Ministack(),
    "s3-seaweedfs": lambda: servers.SeaweedFS(),
    "gs": lambda: servers.FakeGcs(),
    "redis": lambda: servers.Redis(),
    "redis-everysec": lambda: servers.Redis(fsync="everysec"),
    "rediss": lambda: servers.Redis(tls="true", acl="true"),
}
KINDS = (*LOCAL_KINDS, *SERVER_KINDS)
SHARED_KINDS = ("file", *SERVER_KINDS)  # several processes may use them


class Servers:
    """Servers of a test session, started when first asked for."""

    def __init__(self) -> None:
        self._running: dict[str, servers.Server] = {}

    def get(self, kind: str) -> servers.Server:
        if kind not in self._running:
            self._running[kind] = start(SERVER_KINDS[kind])
        return self._running[kind]

    def stop(self) -> None:
        for server in self._running.values():
            server.stop()


def start(make: Callable[[], servers.Server]) -> servers.Server:
    """Start a server; without its program the test is skipped, and fails where CI is true."""
    try:
        return make().start()
    except servers.MissingServer as e:
        if os.environ.get("CI", "").lower() == "true":
            pytest.fail(str(e))
        pytest.skip(str(e))
