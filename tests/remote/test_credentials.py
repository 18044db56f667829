"""Credentials that expire in the middle of a workflow: it waits for new ones, and nothing is charged to its tasks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from support import stored
from support.clusters import Scene, until
from support.program import TASKS, VALUE
from support.remote import ENVIRONMENT, LEASE
from support.stores import start

from perdure.conformance.proxy import Fault, FaultProxy

EXPIRED = Fault("status", 400, b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>")
SECONDS = 6.0


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    server = start(lambda: servers.Ministack())
    between = FaultProxy(("127.0.0.1", server.port))
    asyncio.run(between.__aenter__())
    yield between
    asyncio.run(between.__aexit__())
    server.stop()


LARGE = """
import os, time
import ray
from perdure import workflow

@ray.remote
def large(side, number):
    with open(side, "a") as file:
        file.write(f"{{number}}\\n")
    time.sleep(1)
    return os.urandom(100_000)

@ray.remote
def length(*values):
    return sum(map(len, values))

side = {side!r}
node = length.bind(*[large.options(max_retries=0).bind(side, number) for number in range(2)])
workflow.run_async(node, workflow_id="large")
"""


def test_a_workflow_waits_for_new_credentials_and_goes_on(proxy: FaultProxy, tmp_path: Path) -> None:
    url = f"s3://{servers.BUCKET}/expiring?endpoint=http://127.0.0.1:{proxy.address[1]}&region=us-east-1"
    side = tmp_path / "large"
    with Scene(tmp_path, url, ENVIRONMENT, lease_seconds=LEASE) as scene:
        scene.console.do("execute", LARGE.format(side=str(side)))
        scene.console.do("begin", "expires", str(scene.side), 0.1)
        until(lambda: len(stored.executions(scene.side, "expires")) >= 8, "the workflow runs")
        until(side.exists, "large results are on their way")
        proxy.always(lambda request: EXPIRED)
        renewed = threading.Timer(SECONDS, proxy.always, [None])
        renewed.start()
        time.sleep(SECONDS / 2)
        said = scene.console.do(
            "execute",
            "from perdure.onray import cluster\nout = cluster.connected().call('progress', 'expires')['problem']",
        )
        assert "ExpiredToken" in said
        assert scene.console.do("join", "expires") == VALUE
        source = "from perdure import workflow\nout = workflow.get_output('large')"
        assert scene.console.do("execute", source) == 200_000
        assert proxy.fired > 3
        assert set(stored.executions(scene.side, "expires").values()) == {1}
        assert stored.done(url, "expires") == set(stored.executions(scene.side, "expires"))
        assert len(stored.done(url, "expires")) == TASKS
        assert sorted(side.read_text().split()) == ["0", "1"]
        renewed.join()
