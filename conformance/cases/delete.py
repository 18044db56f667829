"""delete: gone at once, for everyone, and nothing else with it (S6)."""

from __future__ import annotations

import asyncio
from typing import Any

from perdure.conformance.cases.create import mixed
from perdure.conformance.cases.put import ask, seen_by_reader
from perdure.conformance.child import ChildContext
from perdure.conformance.race import Round
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import identity_of, make_value
from perdure.errors import NotFound, StoreError

B, F = Level.BASE, Level.FULL
MIB = 2**20


@case("delete-01", B, "S6")
async def gone(t: Trial) -> None:
    """After delete the key is gone for get, stat, list and download, here and on another instance."""
    other = t.open()
    for size in (0, 10, 100_000):
        for method in ("create", "put"):
            await getattr(t.store, method)("d/k", t.bytes(size))
            await t.expect_value("d/k", await t.value("d/k"), "before")
            await t.store.delete("d/k")
            for store in (t.store, other):
                await t.expect_value("d/k", None, "after delete", store)
                t.same(await t.keys("", store), [], "keys listed")


@case("delete-02", B, "S6")
async def missing(t: Trial) -> None:
    """delete of a missing key, and a second delete, is silent."""
    await t.store.delete("missing")
    await t.store.delete("no/such/folder")
    await t.store.create("k", b"x")
    await t.store.delete("k")
    await t.store.delete("k")
    await t.open().delete("k")
    await t.expect_value("k", None, "after two deletes")


@case("delete-03", B, "S6")
async def nothing_else(t: Trial) -> None:
    """delete of `a` leaves `ab`, `a/b`, `A` and `a.`; delete of a folder's name deletes nothing."""
    others = ["ab", "A", "a.", "a-", "b/a", "f/x", "f/y/z"]
    if t.capabilities.key_under_key:
        others += ["a/b", "a/b/c"]
    for key in ["a", *others]:
        await t.store.create(key, key.encode())
    await t.store.delete("a")
    await t.store.delete("f")
    await t.store.delete("f/y")
    await t.expect_value("a", None, "deleted")
    for key in others:
        await t.expect_value(key, key.encode(), "untouched by delete of 'a' and 'f'")


@case("delete-04", F, "S6", Certainty.STOCHASTIC, needs=["multi_process"])
async def elsewhere(t: Trial) -> None:
    """A process that has read a key no longer finds it once another's delete has returned; 50 rounds."""
    async with t.child() as reader:
        await reader.start(seen_by_reader, t.url)
        for n in range(t.rounds(50, 20)):
            await t.store.put("k", f"{n}".encode())
            await t.store.put("k2", f"{n}".encode())
            seen = await ask(reader, "k", "get", "stat", "list", "download")
            t.same(seen["get"], f"{n}".encode(), "before the delete")
            await t.store.delete("k")
            seen = await ask(reader, "k", "get", "stat", "list", "download")
            wanted = {"get": None, "stat": None, "list": [("k2", len(f"{n}"))], "download": None}
            t.expect(seen == wanted, "S6: gone in every process", seen)
            t.round()
        await reader.send(None)
        await reader.result()


async def deleting(store: Any, key: str) -> None:
    await store.delete(key)


@case("delete-05", F, "S6", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=2)
async def together(t: Trial) -> None:
    """8 processes delete one key at once: none gets an error, and it is gone."""
    async with t.crew(8) as crew:
        rounds = t.rounds(30, 15)
        for n in range(rounds):
            await t.store.create(f"k/{n}", b"x")

        async def judge(done: Round) -> None:
            for a in done.attempts:
                t.expect(a.error is None, "S6: delete is silent", repr(a.error), done.timeline())
            t.same(await t.value(f"k/{done.number}"), None, "gone")

        await t.race(crew, deleting, rounds, lambda n, i, k: (f"k/{n}",), judge, need_overlap=False)


async def delete_and_report(c: ChildContext, url: str, key: str) -> None:
    store = c.open(url)
    await store.delete(key)
    await c.send("deleted")
    await asyncio.sleep(60)


@case("delete-06", F, "S6", needs=["multi_process", "durable"], cost=2)
async def survives_kill(t: Trial) -> None:
    """A deleter killed at once after its return: the key stays gone, for stores opened anew, twice."""
    for n in range(12):
        key = f"k/{n}"
        await t.store.create(key, b"x" * n * 1000)
        async with t.child() as child:
            await child.start(delete_and_report, t.url, key)
            assert await child.message() == "deleted"
            await child.kill()
        for _ in range(2):
            store = t.open()
            t.same(await t.value(key, store), None, "S6: gone after the deleter was killed")
            t.same(await t.keys(key, store), [], "not listed")
            await store.aclose()
        t.round()


@case("delete-07", F, "A1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=4)
async def linearizable(t: Trial) -> None:
    """delete against get, stat and create from 4 processes: each key's history is linearizable."""
    await mixed(t, ("delete", "create", "create", "get", "get", "stat"), "A1")


@case("delete-08", F, "S2", Certainty.STOCHASTIC, cost=2)
async def under_download(t: Trial) -> None:
    """A download whose key is deleted (and created anew) midway gives one version whole, or a StoreError."""
    size = min(8 * MIB, t.capabilities.max_create_bytes or 8 * MIB)
    other = t.open()
    for n in range(8):
        old, new = make_value(f"old{n}", size), make_value(f"new{n}", size - 1000)
        await t.store.put("k", old)
        chunks: list[bytes] = []
        failed: StoreError | None = None
        try:
            async for chunk in t.store.download("k"):
                if not chunks:
                    await other.delete("k")
                    if n % 2:
                        await other.create("k", new)
                chunks.append(bytes(chunk))
        except StoreError as error:
            failed = error
        joined = b"".join(chunks)
        t.expect(
            failed is not None or joined in (old, new),
            "S2: one version or a StoreError", f"{len(joined)} bytes: {identity_of(joined)[:40]}",
        )  # fmt: skip
        t.expect(not isinstance(failed, NotFound) or not chunks, "NotFound comes only before the first chunk", failed)
        await t.store.delete("k")
        t.round()
