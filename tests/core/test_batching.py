"""Which attempts share a Ray task (perdure.onray.batching)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from support.doubles import packed

from perdure.onray.batching import BATCH_SECONDS, LARGEST, LINGER_SECONDS, OPEN_SECONDS, Batches, More, Tell
from perdure.scheduler import NotBegun, Result, Value


class Lab:
    """Counts Ray tasks; ``seconds`` is what each attempt reports as its duration. ``stays``: a worker asks for more."""

    def __init__(self, seconds: float, width: int = 2, *, stays: bool = False) -> None:
        self.seconds = seconds
        self.stays = stays
        self.rounds: list[list[Any]] = []
        self.dies_after: int | None = None
        self.alone: list[Any] = []
        self.batches: list[list[Any]] = []
        self.hold: asyncio.Event | None = None
        self.untold: set[Any] = set()
        self.fail = False
        self.batching = Batches(self._alone, self._together, lambda: width)

    def value(self, job: Any) -> Value:
        return Value(packed(job), 1.0, 1.0 + self.seconds)

    async def _alone(self, job: Any) -> Result:
        self.alone.append(job)
        if self.hold is not None:
            await self.hold.wait()
        await asyncio.sleep(0)
        return self.value(job)

    async def _together(self, jobs: list[Any], tell: Callable[[int, Result], None], more: More) -> None:
        whole = list(jobs)
        self.batches.append(whole)
        first = 0
        while jobs:
            self.rounds.append(jobs)
            if self.hold is not None:
                await self.hold.wait()
            await asyncio.sleep(0)
            if self.fail or len(self.rounds) == self.dies_after:
                return
            for index, job in enumerate(jobs):
                if job not in self.untold:
                    tell(first + index, self.value(job))
            first += len(jobs)
            jobs = await more() if self.stays else []  # type: ignore[assignment]
            whole += jobs

    async def run(self, count: int) -> list[Result]:
        return await asyncio.gather(*[self.batching.run("kind", n) for n in range(count)])  # type: ignore[arg-type]

    async def warm(self) -> None:
        for n in range(3):
            await self.batching.run("kind", n)  # type: ignore[arg-type]
        self.alone.clear()


async def test_functions_that_take_long_never_share() -> None:
    lab = Lab(seconds=0.05)
    await lab.warm()
    await lab.run(50)
    assert not lab.batches
    assert len(lab.alone) == 50


async def test_unknown_functions_go_alone_until_they_are_measured() -> None:
    lab = Lab(seconds=0.0001)
    await lab.run(2)
    assert not lab.batches


async def test_tiny_functions_share_what_would_queue_and_each_gets_its_own_result() -> None:
    lab = Lab(seconds=0.0001)
    await lab.warm()
    results = await lab.run(200)
    assert results == [lab.value(n) for n in range(200)]
    assert len(lab.batches) < 40
    assert sum(map(len, lab.batches)) == 200
    assert max(map(len, lab.batches)) <= LARGEST


async def test_nothing_waits_for_company_while_there_is_room() -> None:
    lab = Lab(seconds=0.0001, width=4)
    await lab.warm()
    lab.hold = asyncio.Event()
    running = asyncio.ensure_future(lab.run(4))
    async with asyncio.timeout(10):
        while len(lab.batches) < 4:
            await asyncio.sleep(0)
    assert lab.batches == [[0], [1], [2], [3]]
    lab.hold.set()
    await running


async def test_a_batch_is_as_long_as_it_is_meant_to_run() -> None:
    lab = Lab(seconds=0.004)
    await lab.warm()
    await lab.run(100)
    assert max(map(len, lab.batches)) <= BATCH_SECONDS / 0.004


async def test_what_a_batch_does_not_tell_runs_alone() -> None:
    lab = Lab(seconds=0.0001)
    await lab.warm()
    lab.untold = set(range(10, 190, 7))
    results = await lab.run(200)
    assert results == [lab.value(n) for n in range(200)]
    assert lab.untold <= set(lab.alone)


async def test_the_members_of_a_failed_batch_run_alone() -> None:
    lab = Lab(seconds=0.0001)
    await lab.warm()
    lab.fail = True
    results = await lab.run(50)
    assert results == [lab.value(n) for n in range(50)]
    assert len(lab.alone) == 50


async def test_a_batch_whose_last_wanted_member_is_cancelled_is_ended() -> None:
    lab = Lab(seconds=0.0001)
    await lab.warm()
    stuck: list[Any] = []
    ended: list[bool] = []

    async def together(jobs: list[Any], tell: Callable[[int, Result], None], more: More) -> None:
        for index, job in enumerate(jobs[1:], 1):
            tell(index, lab.value(job))
        stuck.append(jobs[0])
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append(True)
            raise

    lab.batching.together = together
    tasks = {n: asyncio.ensure_future(lab.batching.run("kind", n)) for n in range(40)}  # type: ignore[arg-type]
    async with asyncio.timeout(10):
        while not stuck:
            await asyncio.sleep(0)
        tasks[stuck[0]].cancel()
        while not ended:
            await asyncio.sleep(0)
    for task in tasks.values():
        task.cancel()


async def test_a_cancelled_member_is_left_out_and_the_others_go_on() -> None:
    lab = Lab(seconds=0.0001)
    await lab.warm()
    lab.hold = asyncio.Event()
    tasks = [asyncio.ensure_future(lab.batching.run("kind", n)) for n in range(20)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    tasks[10].cancel()
    lab.hold.set()
    with pytest.raises(asyncio.CancelledError):
        await tasks[10]
    done = await asyncio.gather(*tasks[:10], *tasks[11:])
    assert not any(isinstance(result, NotBegun) for result in done)
    assert not any(10 in batch for batch in lab.batches)
    assert 10 not in lab.alone


# -- batches that stay open ------------------------------------------------------------------------------------------


async def test_what_follows_at_once_goes_to_the_worker_that_is_there() -> None:
    lab = Lab(seconds=0.0001, stays=True)
    await lab.warm()
    for n in range(50):
        assert await lab.batching.run("kind", n) == lab.value(n)  # type: ignore[arg-type]
    assert len(lab.rounds) == 50
    assert len(lab.batches) <= 2, "links of a chain share a Ray task"
    assert not lab.alone


async def test_a_backlog_is_worked_off_by_those_that_ask_for_more() -> None:
    lab = Lab(seconds=0.0001, stays=True)
    await lab.warm()
    assert await lab.run(2000) == [lab.value(n) for n in range(2000)]
    assert len(lab.batches) == 2
    assert max(map(len, lab.rounds)) <= LARGEST


async def test_a_worker_that_nothing_is_left_for_is_let_go() -> None:
    lab = Lab(seconds=0.0001, stays=True)
    await lab.warm()
    await lab.run(3)
    kind = lab.batching.kinds["kind"]
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(10):
        while kind.under_way:
            await asyncio.sleep(0)
    assert not kind.idle
    assert loop.time() - began < 50 * LINGER_SECONDS
    assert await lab.run(3) == [lab.value(n) for n in range(3)]


async def test_a_worker_is_not_kept_for_ever_however_much_there_is_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(seconds=0.0001, width=1, stays=True)
    await lab.warm()
    clock = asyncio.get_running_loop().time
    late = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock() + late)
    for n in range(20):
        assert await lab.batching.run("kind", n) == lab.value(n)  # type: ignore[arg-type]
        late += OPEN_SECONDS / 4
    assert 3 <= len(lab.batches) <= 8, "others wait for its CPU"


async def test_what_a_worker_was_given_before_it_died_runs_alone() -> None:
    lab = Lab(seconds=0.0001, width=1, stays=True)
    await lab.warm()
    lab.dies_after = 3
    for n in range(6):
        assert await lab.batching.run("kind", n) == lab.value(n)  # type: ignore[arg-type]
    assert lab.alone == [2]


@pytest.mark.parametrize("turns", range(6))
async def test_what_is_given_in_the_moment_in_which_a_worker_dies_is_not_lost(turns: int) -> None:
    lab = Lab(seconds=0.0001, width=1)
    await lab.warm()
    asked, over = asyncio.Event(), asyncio.Event()
    asking: list[asyncio.Future[Any]] = []

    async def together(jobs: list[Any], tell: Callable[[int, Result], None], more: More) -> None:
        for index, job in enumerate(jobs):
            tell(index, lab.value(job))
        asking.append(asyncio.ensure_future(more()))
        await asyncio.sleep(0)
        asked.set()
        await over.wait()  # and then its Ray task fails

    lab.batching.together = together
    assert await lab.batching.run("kind", 0) == lab.value(0)  # type: ignore[arg-type]
    await asked.wait()
    over.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert await lab.batching.run("kind", 1) == lab.value(1)  # type: ignore[arg-type]
        while lab.batching.kinds["kind"].under_way:
            await asyncio.sleep(0)
    await asyncio.gather(*asking)


@pytest.mark.parametrize("cancelled_first", [False, True])
async def test_what_a_long_member_holds_up_begins_at_once_and_the_long_one_can_be_ended(cancelled_first: bool) -> None:
    lab = Lab(seconds=0.0001, width=1)
    await lab.warm()
    begun, hand_back, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def together(jobs: list[Any], tell: Tell, more: More) -> None:
        begun.set()
        await hand_back.wait()
        for index in range(1, len(jobs)):
            tell(index, None)  # the watchdog: these have not begun
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.set()
            raise

    first = asyncio.ensure_future(lab.batching.run("kind", 100))  # type: ignore[arg-type]  # makes the others queue
    await asyncio.sleep(0)
    await first
    kind = lab.batching.kinds["kind"]
    lab.batching.together = together
    kind.under_way += 1
    running = [asyncio.ensure_future(lab.batching.run("kind", n)) for n in range(8)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    kind.under_way -= 1
    lab.batching._fill(kind)
    async with asyncio.timeout(5):
        await begun.wait()
        if cancelled_first:
            running[0].cancel()
            await asyncio.sleep(0)
        hand_back.set()
        assert await asyncio.gather(*running[1:]) == [lab.value(n) for n in range(1, 8)]
        assert sorted(lab.alone) == list(range(1, 8))
        running[0].cancel()
        await ended.wait()
        while kind.under_way:
            await asyncio.sleep(0)


async def test_a_question_for_more_that_is_given_up_leaves_nobody_waiting() -> None:
    lab = Lab(seconds=0.0001, width=1)
    await lab.warm()
    asking: list[asyncio.Future[Any]] = []
    over = asyncio.Event()

    async def together(jobs: list[Any], tell: Tell, more: More) -> None:
        for index, job in enumerate(jobs):
            tell(index, lab.value(job))
        if not asking:
            asking.append(asyncio.ensure_future(more()))
            await over.wait()

    lab.batching.together = together
    assert await lab.batching.run("kind", 0) == lab.value(0)  # type: ignore[arg-type]
    kind = lab.batching.kinds["kind"]
    async with asyncio.timeout(5):
        while not kind.idle:
            await asyncio.sleep(0)
        asking[0].cancel()
        await asyncio.sleep(0)
        assert not kind.idle
        second = asyncio.ensure_future(lab.batching.run("kind", 1))  # type: ignore[arg-type]
        over.set()
        assert await second == lab.value(1)


async def test_what_is_given_to_a_question_that_ray_repeats_is_not_lost() -> None:
    lab = Lab(seconds=0.0001, width=1)
    await lab.warm()
    asked, over = asyncio.Event(), asyncio.Event()
    asking: list[asyncio.Future[Any]] = []

    async def together(jobs: list[Any], tell: Tell, more: More) -> None:
        for index, job in enumerate(jobs):
            tell(index, lab.value(job))
        if not asking:
            asking.extend(asyncio.ensure_future(more()) for _ in range(2))  # nobody hears the answers
            await asyncio.sleep(0)
            asked.set()
            await over.wait()

    lab.batching.together = together
    assert await lab.batching.run("kind", 0) == lab.value(0)  # type: ignore[arg-type]
    await asked.wait()
    running = [asyncio.ensure_future(lab.batching.run("kind", n)) for n in (1, 2)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    over.set()
    async with asyncio.timeout(5):
        assert await asyncio.gather(*running) == [lab.value(1), lab.value(2)]
        await asyncio.gather(*asking)
