"""Known answers for creates (W1, W2, J13) and the start-up probe."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable

import pytest

from perdure.backends.memory import MemoryStore
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.guarded_store import GuardedStore, probe
from perdure.store import Data

_numbers = itertools.count()
MINE, OTHER = b"m" * 16, b"o" * 16


def an_object(token: bytes) -> bytes:
    return b"headhead" + token + b"rest"


class Faulty(MemoryStore):
    """Fails as planned: each entry of ``plan`` is for one create, before or after its effect."""

    plan: list[str]
    reads: list[str]

    async def _create(self, key: str, data: Data) -> None:
        fault = self.plan.pop(0) if self.plan else ""
        if fault == "denied":
            raise PermissionDenied("no")
        if fault == "before":
            raise StoreUnavailable("request lost")
        await super()._create(key, data)
        if fault == "after":
            raise StoreUnavailable("answer lost")
        if fault == "retried inside":
            raise AlreadyExists("met its own first attempt")

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        if self.reads and self.reads.pop(0) == "fail":
            raise StoreUnavailable("read failed")
        return await super()._get(key, start, end)


class Sleeps:
    def __init__(self) -> None:
        self.waits: list[float] = []
        self.before: Callable[[], None] = lambda: None

    async def __call__(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.before()
        await asyncio.sleep(0)


@pytest.fixture
async def faulty() -> AsyncIterator[Faulty]:
    name = f"faulty-{next(_numbers)}"
    store = Faulty.make(f"memory://{name}")
    store.plan, store.reads = [], []
    yield store
    await store.aclose()
    MemoryStore.forget(name)


def guard(store: Faulty, sleeps: Sleeps | None = None) -> GuardedStore:
    return GuardedStore(store, sleep=sleeps or Sleeps(), rng=random.Random(1))


@pytest.mark.parametrize("plan", [["after"], ["before"], ["before", "after"], ["after", "before"], ["retried inside"]])
async def test_j13_a_lost_answer_ends_in_success_with_one_object(faulty: Faulty, plan: list[str]) -> None:
    faulty.plan = list(plan)
    await guard(faulty).create_once("k", an_object(MINE), MINE)
    assert bytes(await faulty.get("k")) == an_object(MINE)
    assert faulty.plan == []


async def test_w2_somebody_elses_object_is_lost_at_the_first_call_too(faulty: Faulty) -> None:
    await faulty.create("k", an_object(OTHER))
    with pytest.raises(AlreadyExists):
        await guard(faulty).create_once("k", an_object(MINE), MINE)


async def test_j13_an_object_gone_at_the_comparison_is_lost(faulty: Faulty) -> None:
    await faulty.create("k", an_object(MINE))

    async def gone(key: str, start: int, end: int | None) -> Data:
        raise NotFound("trimmed")

    faulty._get = gone  # type: ignore[method-assign]
    with pytest.raises(AlreadyExists):
        await guard(faulty).create_once("k", an_object(MINE), MINE)


async def test_an_object_too_short_for_a_token_is_foreign(faulty: Faulty) -> None:
    await faulty.create("k", b"short")
    with pytest.raises(AlreadyExists):
        await guard(faulty).create_once("k", an_object(MINE), MINE)


async def test_w1_the_comparison_waits_out_a_failing_read(faulty: Faulty) -> None:
    await faulty.create("k", an_object(MINE))
    faulty.reads = ["fail", "fail"]
    sleeps = Sleeps()
    await guard(faulty, sleeps).create_once("k", an_object(MINE), MINE)
    assert len(sleeps.waits) == 2


async def test_a_definite_refusal_comes_out_at_once(faulty: Faulty) -> None:
    faulty.plan = ["denied"]
    sleeps = Sleeps()
    with pytest.raises(PermissionDenied):
        await guard(faulty, sleeps).create_once("k", an_object(MINE), MINE)
    assert sleeps.waits == []


async def test_j13_a_refusal_after_a_doubtful_attempt_does_not_end_the_matter(faulty: Faulty) -> None:
    faulty.plan = ["after", "denied"]
    await guard(faulty).create_once("k", an_object(MINE), MINE)
    assert bytes(await faulty.get("k")) == an_object(MINE)


async def test_retries_go_on_until_cancelled_with_capped_jittered_waits(faulty: Faulty) -> None:
    faulty.plan = ["before"] * 40
    sleeps = Sleeps()
    guarded = guard(faulty, sleeps)
    task = asyncio.create_task(guarded.create_once("k", an_object(MINE), MINE))

    def stop_after_30() -> None:
        assert isinstance(guarded.trouble, StoreUnavailable)
        if len(sleeps.waits) == 30:
            task.cancel()

    sleeps.before = stop_after_30
    with pytest.raises(asyncio.CancelledError):
        await task
    assert max(sleeps.waits) <= 5.0
    assert sleeps.waits[0] <= 0.05
    assert len(set(sleeps.waits)) == 30
    faulty.plan = []
    await guarded.create_once("k", an_object(MINE), MINE)
    assert guarded.trouble is None


async def test_a_batch_settles_each_item_by_itself(faulty: Faulty) -> None:
    await faulty.create("held", an_object(OTHER))
    await faulty.create("own", an_object(MINE))
    faulty.plan = ["", "", "", "after", "before", "denied"]
    keys = ["fresh", "held", "own", "answer lost", "request lost", "denied"]
    results = await guard(faulty).create_many_once([(key, an_object(MINE), MINE) for key in keys])
    assert [type(result) for result in results] == [
        type(None),
        AlreadyExists,
        type(None),
        type(None),
        type(None),
        PermissionDenied,
    ]
    assert await guard(faulty).list_keys("") == sorted(["fresh", "held", "own", "answer lost", "request lost"])


async def test_reads_and_lists_wait_out_failures_and_stay_complete(faulty: Faulty) -> None:
    await faulty.create_many([(f"k{n}", b"v") for n in range(5)])
    faulty.reads = ["fail", "", "fail", "", "", "", "fail", "", ""]
    guarded = guard(faulty)
    assert bytes(await guarded.get("k0")) == b"v"
    assert [bytes(v) for v in await guarded.get_many([f"k{n}" for n in range(5)]) if not isinstance(v, StoreError)] == [
        b"v"
    ] * 5
    assert await guarded.list_keys("k", start_after="k1", limit=2) == ["k2", "k3"]
    assert await guarded.delete_prefix("k") == 5


async def test_the_probe_leaves_nothing_behind(faulty: Faulty) -> None:
    report = await probe(faulty)
    assert (report.server, report.warnings) == ("Faulty", ())
    assert [key async for key, _ in faulty.list("")] == []


class Overwrites(MemoryStore):
    """Like servers that ignore the condition."""

    async def _create(self, key: str, data: Data) -> None:
        await self._put(key, data)


class ChecksThenWrites(MemoryStore):
    async def _create(self, key: str, data: Data) -> None:
        try:
            await self._stat(key)
        except NotFound:
            await asyncio.sleep(0)
            await self._put(key, data)
        else:
            raise AlreadyExists("it exists")


class Silent(MemoryStore):
    async def _create(self, key: str, data: Data) -> None:
        self.trouble = StoreUnavailable("connection refused")
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("cls", "why"),
    [(Overwrites, "a second create of one key succeeded"), (ChecksThenWrites, "8 of 8 concurrent creators")],
)
async def test_the_probe_refuses_stores_that_let_two_creators_win(cls: type[MemoryStore], why: str) -> None:
    async with cls.make(f"memory://liar-{next(_numbers)}") as store:
        with pytest.raises(StoreError, match=why) as caught:
            await probe(store)
        assert cls.__name__ in str(caught.value)
        assert [key async for key, _ in store.list("")] == []


async def test_the_probe_gives_up_in_time_and_says_what_went_wrong() -> None:
    async with Silent.make(f"memory://silent-{next(_numbers)}") as store:
        with pytest.raises(StoreUnavailable, match=r"within 0\.1 s: connection refused"):
            await probe(store, timeout=0.1)
