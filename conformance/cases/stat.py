"""stat: the size of the current value, never a remembered one (S4)."""

from __future__ import annotations

from typing import Any

from perdure.conformance.cases.put import ask, seen_by_reader
from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.errors import NotFound

B, F = Level.BASE, Level.FULL
MIB = 2**20


@case("stat-01", B, "A1")
async def sizes(t: Trial) -> None:
    """Sizes 0, 1, 65,537 and 5 MiB + 1 are ints equal to those of list and to the length of get."""
    for size in (0, 1, 65_537, 5 * MIB + 1):
        key = f"s/{size}"
        await t.store.create(key, t.bytes(size))
        found = await t.store.stat(key)
        t.same(found, size, f"stat of {size} bytes")
        t.same(await t.items(key), [(key, size)], "list")
        t.same(len(await t.store.get(key)), size, "len(get)")


@case("stat-02", B, "A1")
async def missing(t: Trial) -> None:
    """stat of a missing key, and of a name that is only a folder, raises NotFound."""
    await t.store.create("a/b/c", b"x")
    for key in ("missing", "a", "a/b", "a/b/c/d", "a/b/cc", "A/b/c"):
        await t.refuses(t.store.stat(key), NotFound, f"stat({key!r})")


async def changes(t: Trial, write: Any, look: Any, what: str) -> None:
    """Change one key in each way, and look at its size after each."""
    for n in range(10):
        size = 10 + 37 * n
        for method in ("put", "upload", "recreate"):
            size += 1
            await write(method, "k", b"s" * size)
            t.same(await look("k"), size, f"S4: stat {what} after {method}")
        await write("delete", "k", b"")
        t.same(await look("k"), None, f"S4: stat {what} after delete")
        await write("create", "k", b"s" * size)
        t.same(await look("k"), size, f"S4: stat {what} after create")
        t.round()


async def apply(store: Any, method: str, key: str, data: bytes) -> None:
    async def chunks() -> Any:
        yield data[:5]
        yield data[5:]

    if method == "upload":
        await store.upload(key, chunks())
    elif method == "recreate":
        await store.delete(key)
        await store.create(key, data)
    elif method == "delete":
        await store.delete(key)
    else:
        await getattr(store, method)(key, data)


@case("stat-03", B, "S4")
async def follows(t: Trial) -> None:
    """stat shows the new size after put, upload, delete and create, by this instance and by another."""

    async def by_this(method: str, key: str, data: bytes) -> None:
        await apply(t.store, method, key, data)

    other = t.open()

    async def by_other(method: str, key: str, data: bytes) -> None:
        await apply(other, method, key, data)

    await changes(t, by_this, t.size, "(same instance)")
    await t.store.delete("k")
    await changes(t, by_other, t.size, "(other instance)")


async def writer(c: ChildContext, url: str) -> None:
    """Apply the parent's changes one by one."""
    store = c.open(url)
    while (word := await c.receive()) is not None:
        await apply(store, *word)
        await c.send("done")


@case("stat-04", F, "S4", Certainty.STOCHASTIC, needs=["multi_process"])
async def follows_elsewhere(t: Trial) -> None:
    """The same with another process writing, and with another process looking."""
    async with t.child() as child, t.child() as reader:
        await child.start(writer, t.url)
        await reader.start(seen_by_reader, t.url)

        async def by_child(method: str, key: str, data: bytes) -> None:
            await child.send((method, key, data))
            await child.message()

        async def look(key: str) -> Any:
            mine = await t.size(key)
            t.same((await ask(reader, key, "stat"))["stat"], mine, "two processes see the same size")
            return mine

        await changes(t, by_child, look, "(other process)")
        for one in (child, reader):
            await one.send(None)
            await one.result()


@case("stat-05", F, "S4", needs=["multi_process"])
async def absence_is_not_remembered(t: Trial) -> None:
    """stat misses, another process creates, stat finds; 20 keys."""
    async with t.child() as reader:
        await reader.start(seen_by_reader, t.url)
        for n in range(20):
            key = f"k/{n}"
            t.expect((await ask(reader, key, "stat"))["stat"] is None, "not there yet", "")
            await t.store.create(key, b"x" * n)
            t.same((await ask(reader, key, "stat"))["stat"], n, "S4: stat finds what it had missed")
            t.round()
        await reader.send(None)
        await reader.result()
