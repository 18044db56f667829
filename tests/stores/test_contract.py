"""Behaviours of the contract, over every store. The conformance suite goes further; this is the
quick look.
"""

from __future__ import annotations

import asyncio
import hashlib
import pickle
import tracemalloc
from collections.abc import AsyncIterator, Callable

import pytest

from perdure.errors import AlreadyExists, NotFound, StoreError
from perdure.store import Store

OpenHere = Callable[..., Store]

ODD_KEYS = [
    " leading and trailing ",
    "%2F",
    "a%2Fb",
    "a+b",
    "q?u=1#f&x",
    "*[a]{b}",
    "back\\slash",
    "'quote\"",
    "-rf",
    "~",
    ".hidden",
    "...",
    "a..b",
    "CON",
    "x.obj",
    "x.obj/y",
    "=3D",
    "name=",
    "é",
    "e\u0301",
    "ß",
    "SS",
    "日本語/キー",
    "😀",
    "a/b/c",
    "A/b",
    "a" * 200,
    "n/" + "é" * 100,
]


async def keys_of(store: Store, prefix: str = "", **options: object) -> list[str]:
    return [key async for key, _ in store.list(prefix, **options)]  # type: ignore[arg-type]


async def test_create_stores_once_and_leaves_the_first_value(store: Store) -> None:
    await store.create("a/b", b"one")
    with pytest.raises(AlreadyExists) as caught:
        await store.create("a/b", b"one")
    assert (caught.value.key, caught.value.operation, caught.value.url) == ("a/b", "create", store.url)
    assert bytes(await store.get("a/b")) == b"one"


@pytest.mark.parametrize("by", ["put", "upload"])
async def test_create_refuses_a_key_that_was_put(store: Store, by: str) -> None:
    await (store.put("k", b"") if by == "put" else store.upload("k", [b""]))
    with pytest.raises(AlreadyExists):
        await store.create("k", b"other")
    assert bytes(await store.get("k")) == b""


async def test_exactly_one_of_many_concurrent_creators_wins(open_here: OpenHere) -> None:
    stores = [open_here() for _ in range(4)]
    for number in range(5):
        values = [b"%d-%d" % (number, n) for n in range(16)]
        answers = await asyncio.gather(
            *(stores[n % 4].create(f"race/{number}", value) for n, value in enumerate(values)),
            return_exceptions=True,
        )
        winners = [value for value, answer in zip(values, answers, strict=True) if answer is None]
        assert [type(a) for a in answers if a is not None] == [AlreadyExists] * 15
        assert winners == [bytes(await stores[0].get(f"race/{number}"))]


async def test_put_replaces_and_delete_removes(store: Store) -> None:
    await store.put("k", b"one")
    await store.put("k", b"three")
    assert (bytes(await store.get("k")), await store.stat("k")) == (b"three", 5)
    await store.delete("k")
    await store.delete("k")
    for read in (store.get, store.stat):
        with pytest.raises(NotFound) as caught:
            await read("k")
        assert caught.value.key == "k"
    with pytest.raises(NotFound):
        await anext(store.download("k"))
    await store.create("k", b"again")
    assert await keys_of(store) == ["k"]


async def test_ranges_are_python_slices(store: Store) -> None:
    data = bytes(range(256)) * 5000
    await store.put("big", data)
    await store.put("empty", b"")
    ends = (None, 0, 1, 255, 65_536, len(data) - 1, len(data), len(data) + 9)
    for start in ends:
        for end in ends:
            if end is None or (start or 0) <= end:
                assert bytes(await store.get("big", start, end)) == data[start:end]
    assert bytes(await store.get("empty", 0, 5)) == bytes(await store.get("empty", 3)) == b""
    with pytest.raises(NotFound):
        await store.get("missing", 3, 3)


async def test_values_keep_every_byte(store: Store) -> None:
    for size in (0, 1, 255, 4097, 65_537, (1 << 20) + 1, (5 << 20) + 3):
        data = (hashlib.sha256(b"%d" % size).digest() * (size // 32 + 1))[:size]
        await store.create(f"v/{size}", memoryview(data))
        got = await store.get(f"v/{size}")
        assert bytes(got) == data
        assert memoryview(got).readonly


async def test_the_callers_buffer_may_change_after_the_return(store: Store) -> None:
    buffer = bytearray(b"first" * 1000)
    await store.create("k", buffer)
    results = await store.create_many([("m", buffer)])
    buffer[:] = b"xxxxx" * 1000
    assert results == [None]
    assert bytes(await store.get("k")) == bytes(await store.get("m")) == b"first" * 1000


async def test_what_get_returned_never_changes(store: Store) -> None:
    data = b"old" * 700_000
    await store.put("k", data)
    held = await store.get("k")
    await store.put("k", b"new" * 700_000)
    await store.delete("k")
    await store.aclose()
    assert bytes(held) == data


async def test_odd_keys_are_kept_distinct_and_listed_in_utf8_order(store: Store) -> None:
    for key in ODD_KEYS:
        await store.create(key, key.encode())
    for key in ODD_KEYS:
        assert bytes(await store.get(key)) == key.encode()
    assert await keys_of(store) == sorted(ODD_KEYS, key=str.encode)


async def test_a_key_and_a_key_below_it_coexist(store: Store) -> None:
    for pair in (("a", "a/b"), ("c/d", "c")):
        for key in pair:
            await store.create(key, key.encode())
    await store.delete("a")
    assert await keys_of(store) == ["a/b", "c", "c/d"]
    await store.delete("c/d")
    assert bytes(await store.get("c")) == b"c"


async def test_list_is_ordered_by_bytes_not_folder_by_folder(store: Store) -> None:
    keys = ["a", "a-b", "a.b", "a/b", "a/b-c", "a/b/c", "a0", "n1", "n10", "n2", "\uff61", "\U0001f600"]
    assert await store.create_many([(key, key.encode()) for key in reversed(keys)]) == [None] * len(keys)
    listed = [item async for item in store.list("")]
    assert listed == [(key, len(key.encode())) for key in keys]


async def test_list_honours_prefix_start_after_and_limit(store: Store) -> None:
    keys = [*sorted(f"run/{n}" for n in range(25)), "run2/x"]
    await store.create_many([(key, b"") for key in keys])
    assert await keys_of(store, "run/1") == [k for k in keys if k.startswith("run/1")]
    assert await keys_of(store, "run/", start_after="run/20") == [
        k for k in keys if k.startswith("run/") and k > "run/20"
    ]
    assert await keys_of(store, "run/2", start_after="run/19") == [
        "run/2",
        "run/20",
        "run/21",
        "run/22",
        "run/23",
        "run/24",
    ]
    assert await keys_of(store, "", start_after="run/9", limit=2) == ["run2/x"]
    assert await keys_of(store, "", limit=0) == []
    assert await keys_of(store, "nothing/") == await keys_of(store, "x" * 3000) == []
    paged: list[str] = []
    while page := await keys_of(store, "", start_after=paged[-1] if paged else None, limit=7):
        paged += page
    assert paged == keys


async def test_a_list_left_early_leaves_the_store_usable(store: Store) -> None:
    await store.create_many([(f"k/{n:04}", b"x") for n in range(300)])
    listing = store.list("k/")
    assert [await anext(listing) for _ in range(3)] == [(f"k/{n:04}", 1) for n in range(3)]
    await listing.aclose()  # type: ignore[attr-defined]
    assert len(await keys_of(store)) == 300


async def test_batches_answer_in_the_order_of_their_input(store: Store) -> None:
    await store.create("b", b"held")
    results = await store.create_many([("a", b"1"), ("b", b"2"), ("c", b"3" * 2_000_000)])
    assert [type(r) for r in results] == [type(None), AlreadyExists, type(None)]
    assert results[1] is not None
    assert results[1].key == "b"
    values = await store.get_many(["c", "missing", "a", "b", "a"])
    assert isinstance(values[1], NotFound)
    assert [v if isinstance(v, StoreError) else bytes(v) for n, v in enumerate(values) if n != 1] == [
        b"3" * 2_000_000,
        b"1",
        b"held",
        b"1",
    ]
    assert await store.get_many([]) == await store.create_many([]) == []


async def test_delete_many_takes_present_and_absent_keys(store: Store) -> None:
    await store.create_many([(f"k/{n}", b"") for n in range(20)])
    await store.delete_many(["missing", *(f"k/{n}" for n in range(19))])
    await store.delete_many([])
    assert await keys_of(store) == ["k/19"]


async def test_delete_prefix_takes_a_string_prefix_and_counts(store: Store) -> None:
    await store.create_many([(k, b"") for k in ("run/1", "run/1/a", "run/1/b/c", "run/10/a", "run/2")])
    assert await store.delete_prefix("run/1/") == 2
    assert await keys_of(store) == ["run/1", "run/10/a", "run/2"]
    assert await store.delete_prefix("none") == 0
    with pytest.raises(ValueError):
        await store.delete_prefix("")


async def test_uploads_are_invisible_until_done_and_stream_back_whole(store: Store) -> None:
    digest, seen = hashlib.sha256(), []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(23):
            chunk = bytes([number]) * (1 << 20)
            digest.update(chunk)
            if number == 20:
                seen.extend(await keys_of(store))
            yield chunk
        yield b"end"
        digest.update(b"end")

    await store.upload("big", chunks())
    assert seen == []
    got = hashlib.sha256()
    async for chunk in store.download("big"):
        got.update(chunk)
    assert got.digest() == digest.digest()
    assert await store.stat("big") == (23 << 20) + 3
    assert bytes(await store.get("big", (9 << 20) - 1, (9 << 20) + 1)) == bytes([8, 9])
    await store.upload("big", [b"small"])
    assert bytes(await store.get("big")) == b"small"
    await store.upload("none", [])
    assert await store.stat("none") == 0


async def test_the_sources_own_error_comes_out_and_the_old_value_stays(store: Store) -> None:
    await store.put("k", b"old")

    async def chunks() -> AsyncIterator[bytes]:
        yield b"x" * (20 << 20)
        raise KeyError("mine")

    for key in ("k", "new"):
        with pytest.raises(KeyError, match="mine"):
            await store.upload(key, chunks())
    assert bytes(await store.get("k")) == b"old"
    assert await keys_of(store) == ["k"]


async def test_a_cancelled_create_is_whole_or_absent_and_the_store_goes_on(store: Store) -> None:
    data = b"c" * (2 << 20)
    for number, wait in enumerate((0.0, 0.0005, 0.002, 0.005, 0.02)):
        task = asyncio.create_task(store.create(f"k{number}", data))
        await asyncio.sleep(wait)
        task.cancel()
        await asyncio.wait([task])
        try:
            assert bytes(await store.get(f"k{number}")) == data
        except NotFound:
            pass
    await store.create("after", b"1")
    assert bytes(await store.get("after")) == b"1"


@pytest.mark.parametrize(
    "key", ["", "/a", "a/", "a//b", ".", "a/..", "a\x00", "a\n", "\x7f", "\ud800", "k" * 5000], ids=ascii
)
async def test_bad_keys_are_refused_by_every_method(store: Store, key: str) -> None:
    for call in (
        store.create(key, b""),
        store.put(key, b""),
        store.get(key),
        store.stat(key),
        store.delete(key),
        store.upload(key, []),
        store.get_many(["good", key]),
        store.create_many([("good", b""), (key, b"")]),
    ):
        with pytest.raises(ValueError):
            await call
    assert await keys_of(store) == []


async def test_wrong_types_are_refused(store: Store) -> None:
    for key in (b"k", 1, None):
        with pytest.raises(TypeError):
            await store.get(key)  # type: ignore[arg-type]
    for data in ("text", None, 5, ["a"]):
        with pytest.raises(TypeError):
            await store.create("k", data)  # type: ignore[arg-type]
    for bounds in ((-1, None), (0, -1), (5, 4)):
        with pytest.raises(ValueError):
            await store.get("k", *bounds)
    for bounds in ((1.5, None), (0, "2")):
        with pytest.raises(TypeError):
            await store.get("k", *bounds)  # type: ignore[arg-type]
    with pytest.raises(ValueError):
        await keys_of(store, limit=-1)
    with pytest.raises(StoreError):
        await store.create("k", bytes(store.capabilities.max_create_bytes + 1))
    assert await keys_of(store) == []


async def test_a_pickled_copy_is_the_same_store(store: Store) -> None:
    copy = pickle.loads(pickle.dumps(store))
    try:
        assert (copy.url, copy.capabilities) == (store.url, store.capabilities)
        await copy.create("k", b"by the copy")
        assert bytes(await store.get("k")) == b"by the copy"
    finally:
        await copy.aclose()


async def test_errors_keep_their_facts_through_pickle(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        await store.get("some/key")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (type(copy), copy.key, copy.operation, copy.url) == (NotFound, "some/key", "get", store.url)
    assert "some/key" in str(copy)


async def test_a_closed_store_says_so(open_here: OpenHere) -> None:
    first, second = open_here(), open_here()
    await first.create("k", b"v")
    await first.aclose()
    await first.aclose()
    for call in (first.get("k"), first.create("x", b""), first.delete_prefix("k")):
        with pytest.raises(StoreError, match="closed"):
            await call
    with pytest.raises(StoreError, match="closed"):
        await keys_of(first)
    assert bytes(await second.get("k")) == b"v"


def test_a_second_event_loop_works_after_the_first_is_closed(url: str) -> None:
    from perdure.store import open_store

    store = open_store(url)
    asyncio.run(store.put("k", b"v"))

    async def again() -> bytes:
        value = bytes(await store.get("k"))
        await store.aclose()
        return value

    assert asyncio.run(again()) == b"v"


async def test_no_call_blocks_the_loop_for_long(store: Store) -> None:
    data = bytes(store.capabilities.max_create_bytes if store.capabilities.max_create_bytes < 16 << 20 else 16 << 20)
    await store.create("warm", b"")
    gaps: list[float] = []

    async def ticker() -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()
        while True:
            await asyncio.sleep(0.005)
            gaps.append(loop.time() - last)
            last = loop.time()

    task = asyncio.create_task(ticker())
    await asyncio.sleep(0.02)
    await store.create("big", data)
    await store.get("big")
    await store.put("big", data)
    await store.upload("up", [data])
    task.cancel()
    # The contract says 0.1; a shared machine is given some room.
    assert max(gaps) < 0.25


async def test_an_upload_needs_little_memory(store: Store, kind: str) -> None:
    if kind.endswith("memory"):
        pytest.skip("its values are in this process's memory")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(96):
            yield bytes(1 << 20)

    await store.put("warm", b"")
    tracemalloc.start()
    try:
        await store.upload("big", chunks())
        async for _ in store.download("big"):
            pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 64 << 20
