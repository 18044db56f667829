"""Pickled copies and forked children are the same store (C3)."""

from __future__ import annotations

import asyncio
import copy
import os
import pickle
import tempfile
import time
from typing import Any

from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.errors import AlreadyExists, NotFound, StoreError

B, F = Level.BASE, Level.FULL


@case("pickle-01", B, "C3")
async def copies(t: Trial) -> None:
    """A pickled copy has the same url and capabilities, reads the original's writes, and the reverse."""
    await t.store.create("mine", b"1")
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        other = t.adopt(pickle.loads(pickle.dumps(t.store.inner, protocol)))
        t.same(other.url, t.store.url, "url of the copy")
        t.expect(other.capabilities == t.store.capabilities, "capabilities of the copy", other.capabilities)
        t.same(await t.value("mine", other), b"1", "the copy reads the original's write")
        await other.create(f"theirs-{protocol}", b"2")
        t.same(await t.value(f"theirs-{protocol}"), b"2", "the original reads the copy's write")
        await t.refuses(other.create("mine", b"x"), AlreadyExists, "create by the copy")
    await t.store.aclose()
    again = t.adopt(pickle.loads(pickle.dumps(other.inner)))
    t.same(await t.value("mine", again), b"1", "a copy of the copy, after the original was closed")


async def use_pickled(c: ChildContext, data: bytes) -> dict[str, Any]:
    store = pickle.loads(data)
    try:
        await store.create("from-child", b"child")
        try:
            await store.create("from-parent", b"x")
            exists = False
        except AlreadyExists:
            exists = True
        return {
            "value": bytes(await store.get("from-parent")),
            "url": store.url,
            "exists": exists,
            "keys": [k async for k, _ in store.list("")],
            "cwd": os.getcwd(),
        }
    finally:
        await store.aclose()


@case("pickle-02", F, "C3", needs=["multi_process"])
async def in_another_process(t: Trial) -> None:
    """A pickle opened in a new process with another cwd, and after the original's aclose, is the same store."""
    store = t.open()
    await store.create("from-parent", b"parent")
    data = pickle.dumps(store.inner)
    with tempfile.TemporaryDirectory(prefix="perdure-cwd-") as folder:
        # Deep enough that a path relative to this process's folder leads nowhere from there.
        deep = os.path.join(os.path.realpath(folder), *"abcdefghijkl")
        os.makedirs(deep)
        for closed in (False, True):
            if closed:
                await store.aclose()
                await t.store.delete("from-child")
            await same_from(t, data, deep)


async def same_from(t: Trial, data: bytes, cwd: str) -> None:
    """The pickle, opened in a new process with this working folder, is the same store."""
    async with t.child(cwd=cwd) as child:
        seen = await child.call(use_pickled, data)
    t.same(seen["cwd"], cwd, "the child's cwd")
    t.same(seen["value"], b"parent", "the child reads the parent's write")
    t.same(seen["url"], t.store.url, "url")
    t.expect(seen["exists"], "create in the child meets the parent's key", seen)
    t.same(seen["keys"], ["from-child", "from-parent"], "keys in the child")
    t.same(await t.value("from-child"), b"child", "the parent reads the child's write")


@case("pickle-03", B, "A4")
async def errors(t: Trial) -> None:
    """Every store error survives pickling and copying: same type, text, key, url and operation."""
    await t.store.create("k", b"x")
    found: list[BaseException] = [
        await t.refuses(t.store.create("k", b"y"), AlreadyExists, "create"),
        await t.refuses(t.store.get("missing"), NotFound, "get"),
        await t.refuses(t.store.stat("missing"), NotFound, "stat"),
        (await t.store.get_many(["missing"]))[0],
        (await t.store.create_many([("k", b"y")]))[0],
    ]
    closed = t.open()
    await closed.aclose()
    found.append(await t.refuses(closed.get("k"), StoreError, "get after aclose"))
    with t.shared.lock:
        found += [seen.error for seen in t.shared.errors if isinstance(seen.error, StoreError)][:50]
    for error in found:
        try:
            twins = [pickle.loads(pickle.dumps(error)), copy.copy(error)]
        except Exception as failed:
            t.fail(f"A4: {type(error).__name__} survives pickling", f"{type(failed).__name__}: {failed}")
        for twin in twins:
            t.expect(type(twin) is type(error), f"the type {type(error).__name__}", type(twin).__name__)
            t.same(str(twin), str(error), "the text")
            for name in ("url", "key", "operation"):
                t.same(getattr(twin, name, "?"), getattr(error, name, "??"), f"attribute {name}")


# --- fork ------------------------------------------------------------------------------------------------


def in_fork(function: Any, *args: Any) -> tuple[int, int]:
    """Fork; the child runs ``function`` and writes its text to a pipe. Returns (pid, reading end)."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reading)
            text = asyncio.run(function(*args))
            os.write(writing, text.encode())
            code = 0
        except BaseException as error:
            os.write(writing, f"{type(error).__name__}: {error}"[:2000].encode())
        finally:
            os._exit(code)
    os.close(writing)
    return pid, reading


async def result_of(pid: int, reading: int, seconds: float) -> str:
    """The forked child's text, or what went wrong; the child is killed when the time is over."""

    def drain() -> str:
        with os.fdopen(reading) as stream:
            return stream.read()

    task = asyncio.get_running_loop().run_in_executor(None, drain)
    try:
        text = await asyncio.wait_for(asyncio.shield(task), seconds)
    except TimeoutError:
        os.kill(pid, 9)
        text = f"hung: not over after {seconds:g} s"
        await task
    os.waitpid(pid, 0)
    return text


async def _use(store: Any, name: str, count: int) -> str:
    for i in range(count):
        await store.create(f"{name}/{i}", f"{name} {i}".encode())
        data = bytes(await store.get(f"{name}/{i}"))
        if data != f"{name} {i}".encode():
            return f"read {data!r} at {name}/{i}"
        if bytes(await store.get("parent/0")) != b"parent 0":
            return "the parent's key holds other bytes"
    listed = [k async for k, _ in store.list(f"{name}/")]
    return "fine" if len(listed) == count else f"{len(listed)} of {count} keys listed"


async def fork_and_use(c: ChildContext, url: str, children: int, count: int) -> list[str]:
    """Use a store, fork, let all use it at the same time; the outcome of each, the parent last."""
    store = c.open(url)
    await _use(store, "parent", 1)
    forked = [in_fork(_use, store, f"child{i}", count) for i in range(children)]
    own = await _use(store, "after", count)
    return [*[await result_of(pid, fd, 20) for pid, fd in forked], own]


@case("fork-01", F, "C3", needs=["multi_process"], cost=1)
async def used_at_once(t: Trial) -> None:
    """A forked child uses the inherited instance at once, within 10 s."""
    start = time.monotonic()
    async with t.child() as child:
        results = await t.within(60, child.call(fork_and_use, t.url, 1, 3), "C3: the forked child and the parent end")
    t.expect(results == ["fine", "fine"], "C3: the child and the parent both work after the fork", results)
    t.expect(time.monotonic() - start < 10, "within 10 s", f"{time.monotonic() - start:.1f} s")


@case("fork-02", F, "C3", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=3)
async def used_together(t: Trial) -> None:
    """Parent and 4 forked children write and read 60 different keys each at once: all are right."""
    async with t.child() as child:
        results = await t.within(90, child.call(fork_and_use, t.url, 4, 60), "C3: all processes end")
    t.expect(results == ["fine"] * 5, "C3: no process sees another's answers", results)
    for name in ("child0", "child1", "child2", "child3", "after"):
        for i in range(60):
            t.same(await t.value(f"{name}/{i}"), f"{name} {i}".encode(), f"value of {name}/{i}")


async def fork_in_call(c: ChildContext, url: str, n: int) -> list[str]:
    store = c.open(url)
    await _use(store, f"parent{n}" if n else "parent", 1)
    calls = [asyncio.create_task(store.put(f"big{n}/{i}", bytes([i]) * 300_000)) for i in range(8)]
    await asyncio.sleep(0.0005 * (n % 5))
    pid, fd = in_fork(_use, store, f"forked{n}", 3)
    await asyncio.gather(*calls)
    text = await result_of(pid, fd, 20)
    for i in range(8):
        if bytes(await store.get(f"big{n}/{i}")) != bytes([i]) * 300_000:
            return [text, f"big{n}/{i} holds other bytes"]
    return [text, "fine"]


@case("fork-03", F, "C3", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=3)
async def during_a_call(t: Trial) -> None:
    """A fork while 8 calls run: they end well in the parent, and the child can use the instance."""
    for n in range(6):
        async with t.child() as child:
            results = await t.within(60, child.call(fork_in_call, t.url, n), "C3: parent and child end")
        t.expect(results == ["fine", "fine"], "C3: fork during a call harms neither side", results)
        t.round()
