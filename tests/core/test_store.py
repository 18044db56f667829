"""What the base class does for every store: errors, buffers, closing, batches; and the adapter for blocking authors."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import ClassVar

import pytest

from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Capabilities, Data, Page, Store
from perdure.sync_store import SyncStore


class Scripted(Store):
    """Does what a test puts into ``answer``; keeps what it was handed."""

    option_names: ClassVar[Mapping[str, str]] = {}
    handed: Data | None = None
    answer: object = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("memory", False, False, 1000, 100, 50)

    async def _do(self) -> None:
        if isinstance(self.answer, BaseException):
            raise self.answer
        if isinstance(self.answer, asyncio.Event):
            await self.answer.wait()

    async def _create(self, key: str, data: Data) -> None:
        self.handed = data
        await self._do()

    async def _put(self, key: str, data: Data) -> None:
        self.handed = data
        await self._do()

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        await self._do()
        return bytearray(b"0123456789")[start:end]  # type: ignore[return-value]

    async def _stat(self, key: str) -> int:
        await self._do()
        return 10

    async def _delete(self, key: str) -> None:
        await self._do()

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        yield [("a", 1), ("b", 2)]
        await self._do()
        yield [("c", 3)]


@pytest.fixture
async def store() -> AsyncIterator[Scripted]:
    async with Scripted.make("scripted://x") as opened:
        yield opened


class Foreign(Exception):
    """Of a client library; it can't be pickled."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("foreign trouble")


@pytest.mark.parametrize(
    ("raised", "read", "write"),
    [
        (OSError(28, "full"), StoreError, StoreError),
        (PermissionError(13, "denied"), PermissionDenied, PermissionDenied),
        (OSError(30, "read-only"), PermissionDenied, PermissionDenied),
        (ConnectionResetError(104, "reset"), StoreUnavailable, StoreUnavailable),
        (TimeoutError(), StoreUnavailable, StoreUnavailable),
        (OSError(24, "too many files"), StoreUnavailable, StoreUnavailable),
        (KeyError("bug"), StoreError, StoreUnavailable),
        (Foreign(1, 2), StoreError, StoreUnavailable),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value.__name__,
)
async def test_w1_foreign_errors_become_store_errors_and_unknown_ones_of_a_write_leave_it_open(
    store: Scripted, raised: Exception, read: type, write: type
) -> None:
    store.answer = raised
    for call, expected, operation in ((store.get("k"), read, "get"), (store.create("k", b""), write, "create")):
        with pytest.raises(StoreError) as caught:
            await call
        error = caught.value
        assert type(error) is expected
        assert (error.key, error.operation, error.url) == ("k", operation, "scripted://x")
        assert error.__cause__ is not None
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), copy.key, str(copy)) == (expected, "k", str(error))
        assert copy.__cause__ is not None


async def test_a_stores_own_refusals_and_cancellation_pass_through(store: Scripted) -> None:
    for refusal in (ValueError("segment too long"), TypeError("no")):
        store.answer = refusal
        for call in (store.create("k", b""), store.create_many([("k", b""), ("l", b"")]), store.delete_prefix("a")):
            with pytest.raises(type(refusal)):
                await call
    store.answer = asyncio.Event()
    task = asyncio.create_task(store.get("k"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_buffers_that_the_caller_may_change_are_copied_before_the_store_sees_them(store: Scripted) -> None:
    buffer = bytearray(b"first")
    for data in (buffer, memoryview(buffer), memoryview(buffer).toreadonly()):
        store.answer = asyncio.Event()
        task = asyncio.create_task(store.create("k", data))
        await asyncio.sleep(0)
        buffer[:] = b"later"
        assert store.handed == b"first"
        task.cancel()
        await asyncio.wait([task])
        buffer[:] = b"first"
    fixed = memoryview(b"fixed")
    store.answer = None
    await store.create("k", fixed)
    assert isinstance(store.handed, memoryview)
    await store.create("k", memoryview(b"a-b-c-")[::2])
    assert store.handed == b"abc"


async def test_what_comes_back_is_read_only(store: Scripted) -> None:
    value = await store.get("k", 2, 5)
    assert memoryview(value).readonly
    assert bytes(value) == b"234"


async def test_sizes_and_keys_over_the_declared_limits_are_refused_before_the_store(store: Scripted) -> None:
    for call in (store.create("k", bytes(101)), store.put("k", bytes(1001)), store.upload("k", [bytes(600)] * 2)):
        with pytest.raises(StoreError):
            await call
    with pytest.raises(ValueError, match="51 bytes"):
        await store.get("k" * 51)
    assert store.handed is None


async def test_a_list_that_fails_midway_is_an_error_not_a_short_list(store: Scripted) -> None:
    store.answer = ConnectionError("cut")
    listing = store.list("")
    assert [await anext(listing), await anext(listing)] == [("a", 1), ("b", 2)]
    with pytest.raises(StoreUnavailable):
        await anext(listing)


async def test_close_waits_for_running_calls(store: Scripted) -> None:
    event = store.answer = asyncio.Event()
    call = asyncio.create_task(store.get("k"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0.02)
    assert not closing.done()
    with pytest.raises(StoreError, match="closed"):
        await store.get("k")
    event.set()
    assert bytes(await call) == b"0123456789"
    await closing


class Blocking(SyncStore):
    """A store of a blocking author."""

    def __init__(self, url: object) -> None:
        super().__init__(url)  # type: ignore[arg-type]
        self.values: dict[str, bytes] = {}
        self.threads_seen: set[str] = set()

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities("memory", False, False, 1 << 20, 1 << 20, 100)

    def sync_create(self, key: str, data: Data) -> None:
        self.threads_seen.add(threading.current_thread().name)
        value = bytes(data)
        if self.values.setdefault(key, value) is not value:
            raise AlreadyExists("it exists")

    def sync_put(self, key: str, data: Data) -> None:
        self.values[key] = bytes(data)

    def sync_get(self, key: str, start: int, end: int | None) -> Data:
        if key not in self.values:
            raise NotFound("no such key")
        return self.values[key][start:end]

    def sync_stat(self, key: str) -> int:
        return len(self.sync_get(key, 0, None))

    def sync_delete(self, key: str) -> None:
        if key == "stop":
            raise StopIteration
        self.values.pop(key, None)

    def sync_list(self, prefix: str, start_after: str | None, limit: int) -> Iterable[tuple[str, int]]:
        keys = sorted(k for k in self.values if k.startswith(prefix) and k > (start_after or ""))
        return ((key, len(self.values[key])) for key in keys[:limit])


async def test_a_blocking_authors_methods_run_in_threads_that_end_with_the_store() -> None:
    async with Blocking.make("blocking://x") as store:
        assert await store.create_many([(f"k{n:04}", b"v") for n in range(2500)]) == [None] * 2500
        assert [key async for key, _ in store.list("k")] == [f"k{n:04}" for n in range(2500)]
        with pytest.raises(AlreadyExists):
            await store.create("k0001", b"")
        with pytest.raises(StoreUnavailable, match="StopIteration"):
            await store.delete("stop")
        assert await store.delete_prefix("k") == 2500
        assert all(name.startswith("perdure-blocking") for name in store.threads_seen)
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("perdure-blocking")]
