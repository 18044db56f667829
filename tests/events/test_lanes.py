"""Lanes: a wait that blocks its loop stalls nobody else. No Ray here."""

# ruff: noqa: ASYNC251 - listeners that poll files and that block are what is tested

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from support.runs import eventually

from perdure.events import lanes
from perdure.events.lanes import Lanes, Wait


class Waits:
    """Begins coroutine functions as waits, and keeps what they answered."""

    def __init__(self) -> None:
        self.warnings: list[tuple[Wait | None, str]] = []
        self.answers: list[tuple[int, Any]] = []
        self.lanes = Lanes(lambda wait, text: self.warnings.append((wait, text)))
        self.number = 0

    def begin(self, body: Callable[[], Coroutine[Any, Any, Any]], group: str = "Plain") -> Wait:
        self.number += 1
        wait = Wait(self.number, group, f"wait {self.number} of {group}", body, self._answer)
        self.lanes.begin(wait)
        return wait

    def _answer(self, wait: Wait, result: Any) -> None:
        self.answers.append((wait.number, result))

    def answered(self, wait: Wait, seconds: float = 10.0) -> Any:
        eventually(lambda: any(n == wait.number for n, _ in self.answers), f"answer of {wait.name}", seconds)
        return next(result for n, result in self.answers if n == wait.number)


@pytest.fixture
def waits() -> Waits:
    return Waits()


async def _value() -> str:
    await asyncio.sleep(0.05)
    return "event"


def _threads() -> int:
    return sum(t.name.startswith("perdure-listeners") for t in threading.enumerate())


@pytest.mark.parametrize("how", ["sleep", "busy", "child", "callback"])
def test_a_blocking_wait_stalls_no_wait_of_another_class(waits: Waits, how: str) -> None:
    release = threading.Event()

    def block() -> None:
        while not release.is_set():
            if how != "busy":
                time.sleep(0.01)

    async def blocking() -> str:
        if how == "child":

            async def child() -> None:
                block()

            await asyncio.create_task(child())
        elif how == "callback":
            done = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_soon(lambda: (block(), done.set_result(None)))
            await done
        else:
            block()
        return "late"

    begins = []

    async def patient() -> str:
        begins.append(threading.current_thread().name)
        await asyncio.sleep(0.3)
        return "event"

    other = waits.begin(patient, "Patient")
    culprit = waits.begin(blocking, "Blocking")
    began = time.monotonic()
    assert waits.answered(other) == "event"
    assert time.monotonic() - began < 5
    assert len(set(begins)) == 2, "it began again in another thread"
    named = [wait for wait, _ in waits.warnings]
    assert named == [None if how == "callback" else culprit]
    assert "test_lanes.py" in waits.warnings[0][1], "the warning shows where it blocks"
    release.set()
    # nobody's name was on the callback, so its wait has begun again too
    assert waits.answered(culprit) == "late"


def test_waits_of_the_class_that_blocks_go_on_too_and_each_answers_once(waits: Waits) -> None:
    release = threading.Event()

    async def blocking() -> str:
        while not release.is_set():
            time.sleep(0.01)
        return "late"

    async def slow() -> str:
        await asyncio.sleep(0.2)
        return "event"

    siblings = [waits.begin(slow, "Blocking") for _ in range(20)]
    culprit = waits.begin(blocking, "Blocking")
    for sibling in siblings:
        assert waits.answered(sibling) == "event"
    release.set()
    assert waits.answered(culprit) == "late"
    numbers = [n for n, _ in waits.answers]
    assert sorted(numbers) == sorted(set(numbers))


def test_a_class_that_has_blocked_keeps_lanes_of_its_own(waits: Waits) -> None:
    async def blocks_once() -> str:
        time.sleep(1.5)
        return threading.current_thread().name

    async def where() -> str:
        return threading.current_thread().name

    first = waits.answered(waits.begin(blocks_once, "Blocking"))
    own = waits.answered(waits.begin(where, "Blocking"))
    assert waits.answered(waits.begin(where, "Other")) not in (first, own)


def test_a_class_gets_a_bounded_number_of_threads(waits: Waits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "CLASS_LANES", most := 3)
    release = threading.Event()
    before = _threads()

    async def blocking() -> None:
        release.wait(20)

    for _ in range(12):
        waits.begin(blocking, "Blocking")
    # each look finds at most one more; all others must stay where they are in the end
    eventually(lambda: _threads() - before >= most, "lanes", 30)
    time.sleep(1.5)  # nothing to poll for: that there are no more
    assert _threads() - before <= most + 1
    assert waits.answered(waits.begin(_value, "Other")) == "event"
    release.set()
    eventually(lambda: len(waits.answers) == 13, "all answers", 30)


def test_a_wait_that_raises_answers_with_its_exception_also_system_exit(waits: Waits) -> None:
    async def leaves() -> None:
        raise SystemExit(3)

    async def child_leaves() -> str:
        asyncio.get_running_loop().create_task(leaves())
        await asyncio.sleep(0.1)
        return "still here"

    assert isinstance(waits.answered(waits.begin(leaves)), SystemExit)
    assert waits.answered(waits.begin(child_leaves)) == "still here"
    assert waits.answered(waits.begin(_value)) == "event"


def test_a_wait_that_cancels_itself_is_answered_too(waits: Waits) -> None:
    async def cancels_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    assert isinstance(waits.answered(waits.begin(cancels_itself)), asyncio.CancelledError)


def test_cancel_reaches_the_wait_within_a_second_and_nothing_is_answered(waits: Waits) -> None:
    seen: list[float] = []
    begun = threading.Event()

    async def hangs() -> str:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append(time.monotonic())
        return "swallowed"

    wait = waits.begin(hangs)
    assert begun.wait(5)
    asked = time.monotonic()
    waits.lanes.cancel(wait.number)
    eventually(lambda: seen, "cancellation", 5)
    assert seen[0] - asked < 1
    assert waits.answered(waits.begin(_value)) == "event"
    assert [n for n, _ in waits.answers] == [wait.number + 1]
    assert not waits.lanes.waits


def test_a_blocked_wait_that_was_cancelled_ends_when_its_loop_wakes(waits: Waits) -> None:
    release, ended = threading.Event(), threading.Event()

    async def blocking() -> None:
        try:
            release.wait(20)
            await asyncio.sleep(60)
        finally:
            ended.set()

    wait = waits.begin(blocking, "Blocking")
    eventually(lambda: waits.warnings, "warning")
    waits.lanes.cancel(wait.number)
    release.set()
    assert ended.wait(5)
    assert not waits.answers


def test_ten_thousand_waits_share_one_thread(waits: Waits) -> None:
    before = _threads()
    go = threading.Event()

    async def one() -> int:
        while not go.is_set():
            await asyncio.sleep(0.5)
        return 1

    for _ in range(10_000):
        waits.begin(one)
    assert _threads() == before
    go.set()
    eventually(lambda: len(waits.answers) == 10_000, "all answers", 30)
    assert not waits.warnings
