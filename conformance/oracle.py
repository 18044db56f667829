"""The oracle: a dict that says what a store must answer, written apart from every store.

A write with an unknown outcome puts its key into limbo: from then on the key may hold any of the candidate
values, may change between them at any time (W1: "may happen later"), and is not written again.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

from perdure.conformance.names import in_order
from perdure.conformance.observed import brief
from perdure.conformance.trial import Judge
from perdure.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable

METHODS = (
    "create", "create", "put", "put", "get", "range", "stat", "delete", "upload", "download", "list", "page",
    "get_many", "create_many", "delete_prefix",
)  # fmt: skip
KEYS = ("a", "b", "a0", "n/1", "n/10", "n/2", "\u00e9", "e\u0301", "B", "x y", "%2F")


class Model:
    """``doubt``: StoreUnavailable is an answer (faults are about); without it, it fails the case."""

    def __init__(self, t: Judge, prefix: str = "", *, doubt: bool = False) -> None:
        self.t = t
        self.prefix = prefix
        self.doubt = doubt
        self.values: dict[str, bytes] = {}
        self.limbo: dict[str, set[bytes | None]] = {}
        self.steps = 0

    def unknown(self, key: str, *values: bytes | None) -> None:
        """A write of one of ``values`` may have happened, or may yet."""
        before = self.limbo.setdefault(key, {self.values.pop(key, None)})
        before.update(values)

    def saw(self, key: str, found: bytes | None, what: str) -> None:
        if key in self.limbo:
            self.t.expect(found in self.limbo[key], f"{what} of {key!r} after an unknown outcome: one of "
                          f"{[brief(v) for v in self.limbo[key]]}", brief(found))  # fmt: skip
        else:
            wanted = self.values.get(key)
            self.t.expect(found == wanted, f"{what} of {key!r} is {brief(wanted)}", brief(found))

    async def step(self, store: Any, method: str, key: str, data: bytes, other: str, a: int, b: int) -> None:
        """One call and its judgement. ``other`` is a second key, ``a`` and ``b`` are small numbers."""
        self.steps += 1
        key, other = self.prefix + key, self.prefix + other
        if key in self.limbo and method in ("create", "put", "upload", "delete", "create_many"):
            method = "get"
        try:
            await getattr(self, "_" + method)(store, key, data, other, a, b)
        except StoreUnavailable as error:
            self.t.expect(self.doubt, f"{method}({key!r}) works (nothing is wrong with the store)", repr(error))

    async def _create(self, store: Any, key: str, data: bytes, *_: Any) -> None:
        try:
            await store.create(key, data)
        except AlreadyExists:
            if key not in self.values and self.doubt:  # W2: it met its own first attempt
                self.saw_own(key, data, await self._read(store, key))
                return
            self.t.expect(key in self.values, f"create({key!r}) stores: the key is absent", "AlreadyExists")
        except StoreUnavailable:
            # Even if the key is present now: it may be deleted before the create happens late (W1).
            self.unknown(key, data)
            raise
        else:
            self.t.expect(key not in self.values, f"create({key!r}) of a present key raises", "it returned")
            self.values[key] = data

    def saw_own(self, key: str, data: bytes, found: bytes | None) -> None:
        self.t.expect(found == data, f"AlreadyExists of an absent {key!r} is the call's own attempt", brief(found))
        self.values[key] = data

    async def _read(self, store: Any, key: str) -> bytes | None:
        try:
            return bytes(await store.get(key))
        except NotFound:
            return None

    async def _put(self, store: Any, key: str, data: bytes, *_: Any) -> None:
        try:
            await store.put(key, data)
        except StoreUnavailable:
            self.unknown(key, data)
            raise
        self.values[key] = data

    async def _upload(self, store: Any, key: str, data: bytes, *_: Any) -> None:
        async def chunks() -> Any:
            yield data[: len(data) // 2]
            yield data[len(data) // 2 :]

        try:
            await store.upload(key, chunks())
        except StoreUnavailable:
            self.unknown(key, data)
            raise
        self.values[key] = data

    async def _delete(self, store: Any, key: str, *_: Any) -> None:
        try:
            await store.delete(key)
        except StoreUnavailable:
            self.unknown(key, None)
            raise
        self.values.pop(key, None)

    async def _get(self, store: Any, key: str, *_: Any) -> None:
        self.saw(key, await self._read(store, key), "get")

    async def _range(self, store: Any, key: str, data: bytes, other: str, a: int, b: int) -> None:
        start, end = min(a, b), max(a, b)
        try:
            found: bytes | None = bytes(await store.get(key, start, end))
        except NotFound:
            found = None
        if key in self.limbo:
            allowed = {None if v is None else v[start:end] for v in self.limbo[key]}
            self.t.expect(found in allowed, f"get({key!r}, {start}, {end}) is a part of a candidate", brief(found))
        else:
            value = self.values.get(key)
            wanted = None if value is None else value[start:end]
            self.t.expect(found == wanted, f"get({key!r}, {start}, {end}) is {brief(wanted)}", brief(found))

    async def _stat(self, store: Any, key: str, *_: Any) -> None:
        try:
            found: int | None = await store.stat(key)
        except NotFound:
            found = None
        sizes = {None if v is None else len(v) for v in self.limbo.get(key, {self.values.get(key)})}
        self.t.expect(found in sizes, f"stat({key!r}) is one of {sizes}", found)

    async def _download(self, store: Any, key: str, *_: Any) -> None:
        try:
            found: bytes | None = b"".join([bytes(c) async for c in store.download(key)])
        except NotFound:
            found = None
        self.saw(key, found, "download")

    async def _list(self, store: Any, key: str, data: bytes, other: str, a: int, b: int) -> None:
        prefix = (self.prefix, self.prefix + "n/", key)[a % 3]
        await self._listing(store, prefix, None, None)

    async def _page(self, store: Any, key: str, data: bytes, other: str, a: int, b: int) -> None:
        await self._listing(store, self.prefix, other, None if a % 4 == 3 else a % 4)

    async def _listing(self, store: Any, prefix: str, after: str | None, limit: int | None) -> None:
        found = [item async for item in store.list(prefix, start_after=after, limit=limit)]
        keys = [k for k, _ in found]
        what = f"list({prefix!r}, {after!r}, {limit})"
        self.t.expect(keys == in_order(set(keys)), f"{what} is ascending", keys)

        def inside(k: str) -> bool:
            return k.startswith(prefix) and (after is None or k.encode() > after.encode())

        wanted = in_order([k for k in self.values if inside(k)])
        if limit is not None and not self.limbo:
            wanted = wanted[:limit]
        for k, size in found:
            if k in self.limbo:
                sizes = {len(v) for v in self.limbo[k] if v is not None}
                self.t.expect(size in sizes and inside(k), f"{what}: {k!r} has one of the sizes {sizes}", size)
            else:
                self.t.expect(k in self.values and inside(k), f"{what} has only keys that are there", k)
                self.t.expect(size == len(self.values[k]), f"{what}: size of {k!r}", size)
        sure = [k for k in keys if k not in self.limbo]
        if limit is None or not self.limbo:
            self.t.expect(sure == wanted, f"{what} is {wanted}", keys)
        else:
            self.t.expect(len(found) <= limit and sure == wanted[: len(sure)], f"{what} is a page of {wanted}", keys)

    async def _get_many(self, store: Any, key: str, data: bytes, other: str, a: int, b: int) -> None:
        asked = [other, key, self.prefix + "missing", key]
        found = await store.get_many(asked)
        self.t.expect(len(found) == 4, "get_many gives one result for each key", len(found))
        for name, value in zip(asked, found, strict=True):
            if isinstance(value, StoreUnavailable) and self.doubt:
                continue
            if isinstance(value, StoreError):
                self.t.expect(isinstance(value, NotFound), "a missing key is NotFound", repr(value))
                self.saw(name, None, "get_many")
            else:
                self.saw(name, bytes(value), "get_many")

    async def _create_many(self, store: Any, key: str, data: bytes, other: str, a: int, b: int) -> None:
        names = [n for n in dict.fromkeys([key, other, f"{self.prefix}m{a}"]) if n not in self.limbo]
        results = await store.create_many([(n, data + n.encode()) for n in names])
        for name, result in zip(names, results, strict=True):
            value = data + name.encode()
            if isinstance(result, StoreUnavailable) and self.doubt:
                self.unknown(name, value)
            elif isinstance(result, AlreadyExists) and name not in self.values and self.doubt:
                self.saw_own(name, value, await self._read(store, name))
            elif name in self.values:
                self.t.expect(isinstance(result, AlreadyExists), f"create_many of a present {name!r}", repr(result))
            else:
                self.t.expect(result is None, f"create_many of an absent {name!r}", repr(result))
                self.values[name] = value

    async def _delete_prefix(self, store: Any, key: str, data: bytes, other: str, a: int, b: int) -> None:
        prefix = self.prefix + "n/1"
        hit = [k for k in self.values if k.startswith(prefix)]
        try:
            count = await store.delete_prefix(prefix)
        except StoreUnavailable:
            for k in hit:
                self.unknown(k, None)
            raise
        for k in hit:
            del self.values[k]
        doubtful = [k for k in self.limbo if k.startswith(prefix)]
        for k in doubtful:
            self.limbo[k].add(None)
        # An attempt whose answer was lost deletes too, and its count is lost with it.
        least = 0 if self.doubt else len(hit)
        self.t.expect(least <= count <= len(hit) + len(doubtful), f"count of delete_prefix({prefix!r})", count)

    async def cancel(self, store: Any, method: str, key: str, data: bytes, delay: float) -> None:
        """Begin a write and cancel it; unless it had ended, its key is in limbo."""
        key = self.prefix + key
        if key in self.limbo:
            return
        self.steps += 1
        call = store.delete(key) if method == "delete" else getattr(store, method)(key, data)
        task = asyncio.ensure_future(call)
        await asyncio.sleep(delay)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            self.unknown(key, None if method == "delete" else data)
        except AlreadyExists:
            self.t.expect(key in self.values, f"create({key!r}) of an absent key stores", "AlreadyExists")
        except StoreUnavailable:
            self.t.expect(self.doubt, f"{method}({key!r}) works", "StoreUnavailable")
            self.unknown(key, None if method == "delete" else data)
        else:
            if method == "create":
                self.t.expect(key not in self.values, f"create({key!r}) of a present key raises", "it returned")
            if method == "delete":
                self.values.pop(key, None)
            else:
                self.values[key] = data

    async def check_all(self, store: Any) -> None:
        """Everything at once: all keys, and a full listing."""
        for key in [*self.values, *self.limbo]:
            self.saw(key, await self._read(store, key), "get")
        await self._listing(store, self.prefix, None, None)


def random_step(rng: random.Random, keys: tuple[str, ...] = KEYS) -> tuple[str, str, bytes, str, int, int]:
    """Arguments of one random ``Model.step`` after the store."""
    size = rng.choice((0, 1, 3, 20, 20, 300, 5000, 70_000))
    return (
        rng.choice(METHODS), rng.choice(keys), rng.randbytes(size), rng.choice(keys), rng.randrange(25),
        rng.randrange(25),
    )  # fmt: skip
