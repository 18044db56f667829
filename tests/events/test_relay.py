"""Output of tasks and listeners reaches the driver that waits, and no more than that."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clusters import Head

from perdure.onray import relay
from perdure.onray.relay import BOX_LIMIT, BOXES, LIMIT, Outbox

_DRIVER = """
import sys, threading, time
import ray
from perdure import workflow
assert not [t.name for t in threading.enumerate() if t.name.startswith("perdure")], "threads at import"
import logging, asyncio

@ray.remote
def talk(lines, pause):
    for number in range(lines):
        print("line", number)
        time.sleep(pause)
    logging.warning("a warning")
    return lines

class Chatty(workflow.EventListener):
    async def poll_for_event(self):
        print("polled")
        await asyncio.sleep(1)
        return 1
"""


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with Head() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "workflows"


def drive(head: Head, folder: Path, body: str, init: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run a driver's script to its end."""
    begin = f"ray.init({head.address!r}, logging_level='error'{init}); workflow.init(storage={str(folder)!r})\n"
    done = subprocess.run(
        [sys.executable, "-u", "-c", _DRIVER + begin + textwrap.dedent(body)],
        env=head.env | {"RAY_AUTH_MODE": head.env.get("RAY_AUTH_MODE") or "token"} | env,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def test_prints_and_logs_reach_the_driver_with_the_tasks_name(head: Head, folder: Path) -> None:
    done = drive(head, folder, "print(workflow.run(talk.bind(2, 0), workflow_id='w1'))")
    shown = [line for line in done.stderr.splitlines() if line.startswith("(talk w1 pid=")]
    assert [line.split(") ", 1)[1] for line in shown if "line" in line] == ["line 0", "line 1"]
    assert any("a warning" in line for line in shown)
    assert done.stdout.strip() == "2"


def test_output_comes_while_the_task_runs_and_the_driver_ends_cleanly(head: Head, folder: Path) -> None:
    done = drive(head, folder, "workflow.run_async(talk.bind(60, 0.25)); time.sleep(4)")
    assert "line 1" in done.stderr
    assert "line 59" not in done.stderr
    assert "core_worker" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("init", "env"), [(", log_to_driver=False", {}), ("", {"PERDURE_OUTPUT": "0"})])
def test_a_driver_that_wants_no_output_gets_none(head: Head, folder: Path, init: str, env: dict[str, str]) -> None:
    done = drive(head, folder, "print(workflow.run(talk.bind(2, 0)))", init, **env)
    assert "line 0" not in done.stderr
    assert done.stdout.strip() == "2"


def test_a_driver_that_waits_for_anothers_workflow_gets_its_output(head: Head, folder: Path) -> None:
    drive(head, folder, "workflow.run_async(talk.bind(90, 0.1), workflow_id='other')")
    done = drive(head, folder, "print(workflow.get_output('other'))")
    assert "line 89" in done.stderr
    assert done.stdout.strip() == "90"


def test_what_a_listener_prints_is_relayed_too(head: Head, folder: Path) -> None:
    done = drive(head, folder, "print(workflow.run(workflow.wait_for_event(Chatty), workflow_id='w2'))")
    assert "(Chatty w2 pid=" in done.stderr


# -- bounds, without a cluster -------------------------------------------------------------------------------


def test_a_task_relays_a_bounded_part_and_says_what_is_missing() -> None:
    sink = relay._Sink("driver", "w", "module.task")
    sink.add("x" * LIMIT + "y" * 7)
    text = sink.take(last=True)
    assert len(text) < LIMIT + 1000
    assert "7 more characters" in text
    sink.add("again\n")
    assert sink.take().endswith(") again\n")
    relay._dirty.discard(sink)


def test_an_unfinished_line_waits_for_its_end() -> None:
    sink = relay._Sink("driver", "w", "module.task")
    sink.add("whole\nhal")
    assert [line.split(") ")[1] for line in sink.take().splitlines()] == ["whole"]
    sink.add("f\n")
    assert [line.split(") ")[1] for line in sink.take().splitlines()] == ["half"]
    relay._dirty.discard(sink)


async def test_the_outbox_is_bounded_for_each_driver_and_over_all() -> None:
    outbox = Outbox()
    for number in range(200):
        outbox.add("one", f"{number:05}" * 2000)
    assert outbox.boxes["one"].size <= BOX_LIMIT
    _, text = await outbox.fetch("one", 0, 0)
    assert text.endswith("00199"), "the newest is kept"
    for number in range(3 * BOXES):
        outbox.add(f"gone {number}", "text")
    assert len(outbox.boxes) <= BOXES


async def test_what_was_fetched_is_dropped_and_numbers_outlive_a_restart() -> None:
    outbox = Outbox()
    outbox.add("d", "one\n")
    number, text = await outbox.fetch("d", 0, 0)
    assert text == "one\n"
    assert await outbox.fetch("d", number, 0) == (number, "")
    assert not outbox.boxes["d"].parts
    restarted = Outbox()
    restarted.add("d", "two\n")
    assert (await restarted.fetch("d", number, 0))[1] == "two\n"


async def test_a_driver_that_leaves_ends_its_long_poll_and_keeps_nothing() -> None:
    outbox = Outbox()
    poll = asyncio.ensure_future(outbox.fetch("d", 0, 30))
    await asyncio.sleep(0)
    outbox.leave("d")
    assert (await asyncio.wait_for(poll, 1))[1] == ""
    assert "d" not in outbox.boxes


async def test_who_waits_for_a_workflow_gets_its_output_as_long_as_it_waits() -> None:
    outbox = Outbox()
    with outbox.audience("w", "second"):
        outbox.add("first", "one\n", "w")
    outbox.add("first", "two\n", "w")
    assert (await outbox.fetch("second", 0, 0))[1] == "one\n"
    assert (await outbox.fetch("first", 0, 0))[1] == "one\ntwo\n"
