"""Events over HTTP: durable before the answer, addressed to one workflow (old bug 19), acknowledged by removal."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from support.clusters import environment
from support.runs import eventually

from perdure import workflow
from perdure.http_events import HTTPListener


@pytest.fixture(scope="module")
def receiver(storage: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "perdure.http_events", "--storage", f"file://{storage}", "--port", str(port)]
    process = subprocess.Popen(command, env=environment())
    try:
        eventually(lambda: _listens(port), "the receiver listens")
        yield f"http://127.0.0.1:{port}/event/send_event/"
    finally:
        process.kill()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def send(receiver: str, workflow_id: str, body: Any) -> int:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(receiver + workflow_id, data), timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def event(key: str, payload: Any) -> dict[str, Any]:
    return {"event_key": key, "event_payload": payload}


def events(storage: Path) -> list[Path]:
    return [file for file in storage.glob("ev/**/*") if file.is_file()]


def test_old_bug_19_two_workflows_that_wait_for_one_key_get_their_own_events(
    storage: Path, receiver: str, fresh: str
) -> None:
    results = [
        workflow.run_async(workflow.wait_for_event(HTTPListener, "go"), workflow_id=f"{fresh}/{n}") for n in (1, 2)
    ]
    assert send(receiver, f"{fresh}/2", event("go", {"for": 2})) == 200
    assert ray.get(results[1]) == ("go", {"for": 2})
    assert workflow.get_status(f"{fresh}/1") == workflow.RUNNING
    assert send(receiver, f"{fresh}/1", event("go", {"for": 1})) == 200
    assert ray.get(results[0]) == ("go", {"for": 1})
    eventually(lambda: not events(storage), "acknowledged events are removed", 10)


def test_an_event_is_stored_before_the_answer_and_waits_for_its_listener(
    storage: Path, receiver: str, fresh: str
) -> None:
    first = workflow.wait_for_event(HTTPListener, "first")

    @ray.remote
    def then(_: Any) -> Any:
        return workflow.continuation(workflow.wait_for_event(HTTPListener, "second"))

    result = workflow.run_async(then.bind(first), workflow_id=fresh)
    assert send(receiver, fresh, event("second", "early")) == 200
    assert len(events(storage)) == 1
    assert send(receiver, fresh, event("second", "early")) == 200, "a retry of the sender"
    assert send(receiver, fresh, event("second", "another")) == 409
    assert send(receiver, fresh, event("first", None)) == 200
    assert ray.get(result) == ("second", "early")
    eventually(lambda: not events(storage), "acknowledged events are removed", 10)


def test_wrong_requests_are_refused_and_store_nothing(storage: Path, receiver: str, fresh: str) -> None:
    assert send(receiver, "nobody", event("go", 1)) == 404
    workflow.run(workflow.sleep(0), workflow_id=fresh)
    assert send(receiver, fresh, event("go", 1)) == 404, "it has ended"
    for body in (b"no json", b"[]", {"event_key": "x"}, event("", 1)):
        assert send(receiver, fresh, body) == 400
    assert send(receiver, fresh, event("go", "x" * (1 << 20))) == 413
    assert not events(storage)


def test_events_of_a_deleted_life_are_removed_with_it(storage: Path, receiver: str, fresh: str) -> None:
    workflow.run_async(workflow.wait_for_event(HTTPListener, "a"), workflow_id=fresh)
    assert send(receiver, fresh, event("b", 1)) == 200
    workflow.cancel(fresh)
    assert len(events(storage)) == 1
    workflow.delete(fresh)
    assert not events(storage)
