"""A worker whose store fails: nothing is charged to the task whose value it reads or saves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray import exceptions as rx

from perdure.backends.memory import MemoryStore
from perdure.errors import EncodeError, PermissionDenied, StoreError, StoreUnavailable
from perdure.graph import Function, Options, Payload
from perdure.guarded_store import GuardedStore
from perdure.onray import patience, saving, worker
from perdure.onray.executor import RayRunner
from perdure.onray.loading import Loader
from perdure.onray.patience import StoreTrouble
from perdure.onray.process import PROCESS
from perdure.onray.saving import Saver
from perdure.onray.worker import Report, Spec
from perdure.runner import Context, Job
from perdure.scheduler import NotBegun

URL = "memory://a-worker-whose-store-fails"
LARGE = b"x" * 100_000


class Failing(MemoryStore):
    """Each call fails with the next of ``errors`` while there are some; ``calls`` counts them all."""

    errors: list[StoreError]
    calls = 0

    def fail(self) -> None:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)

    async def _create(self, key: str, data: Any) -> None:
        self.fail()
        await super()._create(key, data)

    async def _get(self, key: str, start: int, end: int | None) -> Any:
        self.fail()
        return await super()._get(key, start, end)


@pytest.fixture
def store() -> Iterator[Failing]:
    made = Failing.make(URL)
    made.errors = []
    PROCESS.stores[URL] = GuardedStore(made)
    yield made
    del PROCESS.stores[URL]


def large() -> bytes:
    return LARGE


def attempt(payload: Payload | None = None) -> Report:
    """One attempt of a task with a large result, or with a stored argument."""
    PROCESS.functions["large"] = large
    PROCESS.functions["identity"] = len
    function = Function("large", "large", None) if payload is None else Function("len", "identity", None)
    tops = () if payload is None else ((0, payload, ""),)
    spec = Spec(
        "w", "task", 1, "w/0/0", "task", function, None, tops, (), (), True, False, URL, 0, "c", worker.boot_id(),
        0.0, 9.9,
    )  # fmt: skip
    return worker._attempt(spec, {}, [], Saver(URL, 0), 0.0)


FAILURES: list[StoreError] = [
    StoreUnavailable("no answer"),
    PermissionDenied("expired"),
    StoreError("the disk is full"),
]


async def test_a_large_value_is_saved_once_the_store_is_back(store: Failing) -> None:
    store.errors = list(FAILURES)
    key = Saver(URL, 0).blob([LARGE])
    assert bytes(await store.get(key)) == LARGE


async def test_a_stored_value_is_read_once_the_store_is_back(store: Failing) -> None:
    await store.create("blobs/0/value", LARGE)
    store.errors = list(FAILURES)
    assert bytes(Loader(URL, {}, "here").raw(Payload(None, "blobs/0/value", len(LARGE)))) == LARGE
    assert store.errors == []


@pytest.mark.parametrize("damage", [lambda d: d[:1000], lambda d: d[:50] + b"?" + d[51:]], ids=["cut", "flipped"])
async def test_a_damaged_value_is_written_anew_by_who_stores_the_same(store: Failing, damage: Any) -> None:
    key = Saver(URL, 0).blob([LARGE])
    await store.put(key, damage(LARGE))
    assert Saver(URL, 0).blob([LARGE]) == key
    assert bytes(await store.get(key)) == LARGE


async def test_a_value_that_is_collected_while_it_is_compared_is_stored(
    store: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = Saver(URL, 0).blob([LARGE])
    holds = saving._holds

    async def collected(*arguments: Any) -> bool:
        await store.delete(key)
        return await holds(*arguments)

    monkeypatch.setattr(saving, "_holds", collected)
    assert Saver(URL, 0).blob([LARGE]) == key
    assert bytes(await store.get(key)) == LARGE


async def test_a_very_large_value_that_is_there_is_not_read(store: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    Saver(URL, 0).blob([LARGE])
    before = store.calls
    monkeypatch.setattr(saving, "_COMPARED", 1000)
    Saver(URL, 0).blob([LARGE])
    assert store.calls == before


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
def test_a_result_that_can_not_be_stored_for_long_has_not_begun(
    store: Failing, error: StoreError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "SAVE_PATIENCE", 0.3)
    monkeypatch.setattr(ray, "put", lambda value: None)  # there is no Ray here; it is put beside the upload
    store.errors = [error] * 1000
    report = attempt()
    assert report.failure is None
    assert str(error) in report.not_begun
    assert store.calls > 1


@pytest.mark.parametrize("error", FAILURES, ids=lambda e: type(e).__name__)
def test_an_argument_that_can_not_be_read_for_long_has_not_begun(
    store: Failing, error: StoreError, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LOAD_PATIENCE", 0.3)
    store.errors = [error] * 1000
    report = attempt(Payload(None, "blobs/0/value", 10))
    assert report.failure is None
    assert report.not_begun.startswith(worker.UNREAD)
    assert store.calls > 1


def test_an_argument_that_is_gone_from_memory_is_left_to_the_coordinator(
    store: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(self: Loader, payload: Payload) -> Any:
        raise rx.ObjectLostError("1234", None, "")

    monkeypatch.setattr(Loader, "value", lost)
    with pytest.raises(rx.ObjectLostError):
        attempt(Payload(None, "blobs/0/value", 10))


def test_a_ref_that_a_task_passes_on_is_neither_read_nor_stored_again(
    store: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any) -> None:
        pytest.fail("the object was read")

    monkeypatch.setattr(ray, "get", read)
    payload = Payload(None, "blobs/00000000000000000000/value", len(LARGE))
    held = ray.ObjectRef(bytes(range(28)))
    loader = Loader(URL, {payload.blob or "": held}, "here")
    assert loader.ref(payload) is held
    assert Saver(URL, 0, known=loader.known).ref(held, "the result") == payload
    assert store.calls == 0


def test_a_value_that_the_store_can_never_hold_fails_its_task_at_once(
    store: Failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "capabilities", dataclasses.replace(store.capabilities, max_value_bytes=1000))
    with pytest.raises(EncodeError, match="holds 1000 at most"):
        Saver(URL, 0).blob([LARGE])
    assert store.calls == 0


# -- in the coordinator ------------------------------------------------------------------------------------------


class Refs(RayRunner):
    """A runner whose only Ray task gives a reply, or raises."""

    def __init__(self, reply: bytes | BaseException) -> None:
        super().__init__(URL, lease_seconds=20)
        self.reply = reply

    def _submit(self, job: Job) -> Any:
        async def answer() -> bytes:
            if isinstance(self.reply, BaseException):
                raise self.reply
            return self.reply

        return answer()


@pytest.mark.parametrize("by", ["reply", "load task"])
async def test_a_failed_load_costs_no_retry_and_is_not_kept_as_the_input(by: str) -> None:
    trouble = StoreTrouble("no answer")
    load_failed = rx.RayTaskError("load_blob", "", trouble).as_instanceof_cause()
    runner = Refs(worker.not_begun(f"{worker.UNREAD}: x") if by == "reply" else load_failed)
    runner.residents.add("blobs/0/value", object(), 10)
    runner.residents.add("volatile/0", object(), 10)
    tops = ((0, Payload(None, "blobs/0/value", 10)), (1, Payload(None, "volatile/0", 10)))
    result = await runner.run(
        Job("w", 0, 0, "task", 1, Function("f", ""), Options(max_retries=0), None, tops, (), True, "w/0/0", "task",
            Context(), {})
    )  # fmt: skip
    assert isinstance(result, NotBegun)
    assert runner.residents.get("blobs/0/value") is None
    assert runner.residents.get("volatile/0") is not None  # nobody could load that one
