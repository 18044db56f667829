"""What the suite wrote to a server is gone: after a run, an interruption, and the next start after a hard kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as client
import servers
from support.stores import SERVER_KINDS, start

from perdure.conformance import clean_up
from perdure.conformance.subject import UrlSubject

CASES = "create-07, stream-10, list-15"


@pytest.fixture
def redis() -> Iterator[servers.Server]:
    server = start(SERVER_KINDS["redis"])
    yield server
    server.stop()


def entries(server: servers.Server) -> int:
    """Everything in the server, whoever's it is: the fixture's is ours alone."""
    with client.Redis(port=server.port) as connection:
        return int(connection.dbsize())


def begin(server: servers.Server, url: str) -> subprocess.Popen[bytes]:
    """A run that is in the middle of its cases."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure.conformance", url, "--level", "full", "-k", CASES],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # a background job is started with SIGINT ignored, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while entries(server) < 30:
        assert time.monotonic() < end
        assert process.poll() is None
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_on_a_server(redis: servers.Server, number: int) -> None:
    url = redis.url("interrupted")
    process = begin(redis, url)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert entries(redis) == 0


def test_a_killed_run_is_swept_once_its_deadline_is_past_and_its_children_are_gone(
    redis: servers.Server, tmp_path: Path
) -> None:
    url = redis.url("killed")
    process = begin(redis, url)
    children = _children(process.pid)
    process.kill()
    process.wait()
    assert entries(redis)
    subject = UrlSubject(url)
    assert asyncio.run(clean_up.sweep(subject, url))[0] == []  # not yet: it may be alive elsewhere
    removed, left = asyncio.run(clean_up.sweep(subject, url, now=time.time() + 10**6))
    assert len(removed) == 1
    assert left == []
    end = time.monotonic() + 20
    while alive := [pid for pid in children if os.path.exists(f"/proc/{pid}")]:
        assert time.monotonic() < end, alive
        time.sleep(0.05)
    assert entries(redis) == 0


def _children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *_children(child)]
    return found
