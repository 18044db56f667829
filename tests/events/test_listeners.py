"""Waits for users' events on a real cluster: isolation, retries, order of acknowledgement (E5), crashes."""

# ruff: noqa: ASYNC230, ASYNC251 - listeners that poll files and that block are what is tested

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from support.runs import busy, eventually, lines

from perdure import workflow
from perdure.records import Received
from perdure.segment import decode_segment


def note(path: str, text: object) -> None:
    with open(path, "a") as file:
        file.write(f"{text}\n")


@ray.remote
def collect(*values: Any) -> list[Any]:
    return list(values)


class FileListener(workflow.EventListener):
    """Its event is a file: polled until it is there, acknowledged by a line in another."""

    async def poll_for_event(self, folder: str, name: str) -> str:
        note(f"{folder}/polls", f"{name} {os.getpid()}")
        try:
            while not os.path.exists(f"{folder}/{name}"):
                await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            note(f"{folder}/cancelled", name)
            raise
        with open(f"{folder}/{name}") as file:
            return f"{folder}|{name}|{file.read()}"

    async def event_checkpointed(self, event: str) -> None:
        folder, name, _ = event.split("|")
        note(f"{folder}/acks", name)


class Sleeper(workflow.EventListener):
    async def poll_for_event(self, number: int, seconds: float, pids: str = "") -> int:
        if pids:
            note(pids, os.getpid())
        await asyncio.sleep(seconds)
        return number


class Blocker(workflow.EventListener):
    async def poll_for_event(self, seconds: float) -> str:
        time.sleep(seconds)
        return "late"


class Raiser(workflow.EventListener):
    async def poll_for_event(self, path: str, times: int) -> str:
        note(path, time.monotonic())
        if len(lines(path)) <= times:
            raise LookupError("no broker")
        return "found"


class Context(workflow.EventListener):
    async def poll_for_event(self, path: str) -> str:
        context = workflow.context()
        return f"{path}|{context.workflow_id}|{context.task_id}|{context.metadata['who']}"

    async def event_checkpointed(self, event: str) -> None:
        note(event.split("|")[0], workflow.context().workflow_id)


class Durable(workflow.EventListener):
    """Acknowledges only if the store holds the event: anything else is noted as a fault."""

    async def poll_for_event(self, path: str, store: str, mark: str) -> tuple[str, str, str]:
        return path, store, mark

    async def event_checkpointed(self, event: tuple[str, str, str]) -> None:
        path, store, mark = event
        chain = Path(store) / "w" / workflow.context().workflow_id
        files = [file for folder in ("j", "s") for file in sorted(chain.glob(f"{folder}/*"))]  # trimmed ones: in a part
        records = [r for file in files for r in decode_segment(file.read_bytes(), file.name).records]
        stored = [r.payload.data for r in records if isinstance(r, Received)]
        note(path, "durable" if any(mark.encode() in data for data in stored) else "too early")


class Forgetful(workflow.EventListener):
    """Its source refuses the first acknowledgements."""

    async def poll_for_event(self, path: str) -> str:
        note(path, "poll")
        return path

    async def event_checkpointed(self, event: str) -> None:
        note(event, "ack")
        if lines(event).count("ack") < 3:
            raise ConnectionError("try later")


class Refusing(workflow.EventListener):
    """Its source refuses until a file is there."""

    async def poll_for_event(self, path: str) -> str:
        return path

    async def event_checkpointed(self, event: str) -> None:
        if not Path(event).exists():
            raise ConnectionError("try later")


class NotAsync(workflow.EventListener):
    def poll_for_event(self) -> str:  # type: ignore[override]
        return "at once"


def test_a_thousand_waits_end_in_time_and_hold_no_cpu_and_few_threads(storage: Path, tmp_path: Path) -> None:
    workflow.run(workflow.wait_for_event(Sleeper, 0, 0))  # the host is up
    pids = str(tmp_path / "pids")
    waits = [workflow.wait_for_event(Sleeper, number, 5, pids) for number in range(1000)]
    result = workflow.run_async(collect.bind(*waits))
    eventually(lambda: len(lines(pids)) == 1000, "all polls begun")
    begun = time.monotonic()
    hosts = set(lines(pids))
    assert len(hosts) == 1
    status = Path(f"/proc/{hosts.pop()}/status").read_text()
    threads = int(next(line for line in status.splitlines() if line.startswith("Threads")).split()[1])
    assert threads < 100
    assert ray.available_resources()["CPU"] == 2
    assert ray.get(result) == list(range(1000))
    assert time.monotonic() - begun < busy(6.5)


def test_listeners_that_block_or_hang_stall_no_other_wait(storage: Path, fresh: str, tmp_path: Path) -> None:
    hanging = workflow.run_async(
        workflow.wait_for_event(FileListener, str(tmp_path), "never"), workflow_id=f"{fresh}-hang"
    )
    blocked = workflow.run_async(workflow.wait_for_event(Blocker, 6))
    began = time.monotonic()
    waits = [workflow.wait_for_event(Sleeper, number, 0.5) for number in range(20)]
    assert workflow.run(collect.bind(*waits)) == list(range(20))
    assert time.monotonic() - began < 5, "they did not wait for the one that blocks"
    assert ray.get(blocked) == "late"
    workflow.cancel(f"{fresh}-hang")
    with pytest.raises(ray.exceptions.RayTaskError):
        ray.get(hanging)


def test_cancel_reaches_the_poll_within_a_second(storage: Path, fresh: str, tmp_path: Path) -> None:
    workflow.run_async(workflow.wait_for_event(FileListener, str(tmp_path), "x"), workflow_id=fresh)
    eventually(lambda: lines(tmp_path / "polls"), "the poll")
    asked = time.monotonic()
    workflow.cancel(fresh)
    eventually(lambda: lines(tmp_path / "cancelled"), "cancellation of the poll", 5)
    assert time.monotonic() - asked < 2  # a second, and what the cancel itself writes
    assert workflow.get_status(fresh) == workflow.CANCELED


def test_a_listener_that_raises_is_tried_again_with_backoff(storage: Path, tmp_path: Path) -> None:
    path = tmp_path / "tries"
    assert workflow.run(workflow.wait_for_event(Raiser, str(path), 2)) == "found"
    first, second, third = map(float, lines(path))
    assert second - first >= 0.5
    assert third - second >= 1.0


def test_when_its_retries_are_used_up_the_wait_fails_like_a_task(storage: Path, fresh: str, tmp_path: Path) -> None:
    node = workflow.wait_for_event(Raiser, str(tmp_path / "tries"), 99).options(max_retries=1)
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(node, workflow_id=fresh)
    assert isinstance(caught.value.__cause__, LookupError)
    assert len(lines(tmp_path / "tries")) == 2
    assert workflow.get_status(fresh) == workflow.FAILED


def test_catch_exceptions_gives_the_listeners_exception_as_a_value(storage: Path, tmp_path: Path) -> None:
    options = workflow.options(catch_exceptions=True, task_id="wait")
    bad = workflow.wait_for_event(Raiser, str(tmp_path / "a"), 99).options(max_retries=0, **options)
    good = workflow.wait_for_event(Raiser, str(tmp_path / "b"), 0).options(**options)
    (no_value, error), good_pair = workflow.run(collect.bind(bad, good))
    assert no_value is None
    assert isinstance(error, LookupError)
    assert good_pair == ("found", None)


def test_a_wait_that_takes_longer_than_its_timeout_fails(storage: Path, tmp_path: Path) -> None:
    node = workflow.wait_for_event(FileListener, str(tmp_path), "never")
    node = node.options(max_retries=0, **workflow.options(timeout=0.5))
    with pytest.raises(workflow.WorkflowExecutionError, match="timeout"):
        workflow.run(node)
    eventually(lambda: lines(tmp_path / "cancelled"), "the poll was cancelled")


def test_a_listener_that_is_not_async_is_told_so(storage: Path) -> None:
    with pytest.raises(workflow.WorkflowExecutionError, match="async def poll_for_event"):
        workflow.run(workflow.wait_for_event(NotAsync).options(max_retries=0))


def test_rays_options_on_a_wait_are_refused(storage: Path) -> None:
    with pytest.raises(ValueError, match="num_cpus"):
        workflow.wait_for_event(Sleeper, 1, 1).options(num_cpus=1)


def test_listeners_know_their_workflow_and_task(storage: Path, fresh: str, tmp_path: Path) -> None:
    path = str(tmp_path / "acks")
    node = workflow.wait_for_event(Context, path).options(**workflow.options(task_id="the-wait"))
    event = workflow.run(node, workflow_id=fresh, metadata={"who": "me"})
    assert event == f"{path}|{fresh}|the-wait|me"
    assert lines(path) == [fresh]


def test_e5_an_event_is_acknowledged_once_it_is_durable_never_before(storage: Path, fresh: str, tmp_path: Path) -> None:
    path = tmp_path / "acks"
    waits = [
        workflow.wait_for_event(Durable, str(path), str(storage), f"mark-{fresh}-{number}") for number in range(30)
    ]
    workflow.run(collect.bind(*waits))
    assert lines(path) == ["durable"] * 30


def test_e5_an_acknowledgement_that_fails_is_repeated_and_the_poll_is_not(storage: Path, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert workflow.run(workflow.wait_for_event(Forgetful, str(path))) == str(path)
    assert lines(path) == ["poll", "ack", "ack", "ack"]


def test_describe_tells_which_source_refuses_its_acknowledgement(storage: Path, fresh: str, tmp_path: Path) -> None:
    from perdure.onray import cluster

    def waiting_for() -> str:
        (task,) = cluster.connected().call("describe", fresh)["tasks"]
        return task["waiting_for"] or ""

    result = workflow.run_async(workflow.wait_for_event(Refusing, str(tmp_path / "now")), workflow_id=fresh)
    eventually(lambda: "refused the acknowledgement: " in waiting_for(), "the refusal is told")
    assert "ConnectionError: try later" in waiting_for()
    (tmp_path / "now").touch()
    assert ray.get(result) == str(tmp_path / "now")


def test_waits_of_a_host_that_dies_begin_again_in_another(storage: Path, fresh: str, tmp_path: Path) -> None:
    waits = [workflow.wait_for_event(FileListener, str(tmp_path), f"e{n}") for n in range(10)]
    result = workflow.run_async(collect.bind(*waits), workflow_id=fresh)
    eventually(lambda: len(lines(tmp_path / "polls")) == 10, "all polls")
    os.kill(int(lines(tmp_path / "polls")[0].split()[1]), signal.SIGKILL)
    eventually(lambda: len(lines(tmp_path / "polls")) == 20, "all polls again")
    for n in range(10):
        (tmp_path / f"e{n}").write_text(str(n))
    assert [event.split("|")[2] for event in ray.get(result)] == [str(n) for n in range(10)]
    assert sorted(lines(tmp_path / "acks")) == sorted(f"e{n}" for n in range(10))


def test_events_received_before_a_crash_of_the_coordinator_are_not_polled_again(
    storage: Path, fresh: str, tmp_path: Path, coordinator: Callable[[], int]
) -> None:
    waits = [workflow.wait_for_event(FileListener, str(tmp_path), name) for name in ("early", "late")]
    result = workflow.run_async(collect.bind(*waits), workflow_id=fresh)
    (tmp_path / "early").write_text("1")
    eventually(lambda: lines(tmp_path / "acks") == ["early"], "the first acknowledgement")
    eventually(lambda: len(lines(tmp_path / "polls")) == 2, "both polls")
    os.kill(coordinator(), signal.SIGKILL)
    eventually(lambda: len(lines(tmp_path / "polls")) == 3, "the second poll again")
    (tmp_path / "late").write_text("2")
    assert [event.split("|")[2] for event in ray.get(result)] == ["1", "2"]
    polls = [line.split()[0] for line in lines(tmp_path / "polls")]
    assert polls.count("early") == 1
    assert polls.count("late") == 2
    assert lines(tmp_path / "acks")[-1] == "late"
    assert set(lines(tmp_path / "acks")) == {"early", "late"}
