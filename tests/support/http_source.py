"""Events over HTTP as a subject of the conformance suite: a receiver in a process of its own, on a folder's store."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import servers

from perdure import keys
from perdure import records as r
from perdure.chain import CREATED, Chain, View
from perdure.conformance.plugin_subject import ListenerSubject
from perdure.errors import StoreUnavailable
from perdure.event_listener import STORE
from perdure.guarded_store import GuardedStore
from perdure.http_events import TOKEN_VARIABLE, HTTPListener
from perdure.onray.process import PROCESS
from perdure.onray.worker import CURRENT, TaskContext
from perdure.store import open_store

WORKFLOW = "conformance"
TOKEN = "conformance-token-77aa"
SECONDS = 30.0


class HttpSubject(ListenerSubject):
    """The project's HTTP listener. Its receiver is started here, children only know the address."""

    fan_out = "each"
    queues = False
    secret = TOKEN
    bad_arguments = ((), (5,), ("",), ("a", "b"), ("a\n",))

    def __init__(self, folder: Path) -> None:
        self.url = f"file://{folder}/events"
        asyncio.run(begin(self.url))
        self.port = servers.free_port()
        self.lists = 0
        self.start_source()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "process"}

    def make(self) -> Bound:
        return Bound(self.url)

    def arguments(self, topic: str) -> tuple[Any, ...]:
        return (topic,)

    def payload(self, event: Any) -> Any:
        value = event[1]
        return bytes.fromhex(value["hex"]) if isinstance(value, dict) and "hex" in value else value

    async def publish(self, topic: str, payload: Any) -> None:
        value = {"hex": payload.hex()} if isinstance(payload, bytes) else payload
        await self._send(json.dumps({"event_key": topic, "event_payload": value}).encode())

    async def publish_malformed(self, topic: str) -> None:
        """The receiver refuses it, so no listener ever sees it."""
        with contextlib.suppress(ValueError):
            await self._send(json.dumps({"event_key": topic}).encode())

    async def _send(self, body: bytes) -> None:
        end = time.monotonic() + SECONDS
        while (status := await asyncio.to_thread(self._post, body)) != 200:
            if status in (400, 413):
                raise ValueError(f"refused: {status}")
            assert time.monotonic() < end, status
            await asyncio.sleep(0.01)

    def _post(self, body: bytes) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/event/send_event/{WORKFLOW}",
            body,
            {"Authorization": f"Bearer {TOKEN}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def stop_source(self) -> None:
        self.process.kill()
        self.process.wait()

    def start_source(self) -> None:
        command = [sys.executable, "-m", "perdure.http_events", "--storage", self.url, "--port", str(self.port)]
        self.process = subprocess.Popen(command, env={**os.environ, TOKEN_VARIABLE: TOKEN})
        end = time.monotonic() + SECONDS
        while not self._listens():
            assert self.process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def requests(self) -> int:
        """Lists of this process, from the first call on: that is how an idle listener asks."""
        store = PROCESS.store(self.url).store
        if "_list" not in vars(store):
            original = store._list

            def counted(*arguments: Any) -> Any:
                self.lists += 1
                return original(*arguments)

            store._list = counted
        return self.lists

    async def lose_acknowledgement(self) -> None:
        store = PROCESS.store(self.url).store
        original = store._delete

        async def once(key: str) -> None:
            store._delete = original
            await original(key)
            raise StoreUnavailable("the answer to a delete was lost")

        store._delete = once

    close = stop_source


class Bound:
    """The listener as a coordinator's process runs it: inside the workflow's context."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.listener = HTTPListener()

    def _enter(self) -> None:
        STORE.set(self.url)
        CURRENT.set(TaskContext(WORKFLOW, "wait", 1, f"{WORKFLOW}/0/wait", {}))

    async def poll_for_event(self, *args: Any) -> Any:
        self._enter()
        return await self.listener.poll_for_event(*args)

    async def event_checkpointed(self, event: Any) -> None:
        self._enter()
        await self.listener.event_checkpointed(event)


async def begin(url: str) -> None:
    """A workflow that runs, as far as a receiver looks: its first entry."""
    tokens = (number.to_bytes(16, "big") for number in itertools.count(1))
    async with open_store(url) as store:
        chain = Chain(GuardedStore(store), keys.workflow_chain(WORKFLOW), "A", lambda: next(tokens), list)
        await chain.enter(CREATED, [r.Created(WORKFLOW, "client", 0.0)], View())
        assert (await chain.read()).birth == 0
