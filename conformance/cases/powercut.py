"""Power cuts of a store on this machine's disk, replayed from one log of each operation (S3)."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from perdure.conformance import tracer
from perdure.conformance.cases.crash import OPERATIONS, warm_up
from perdure.conformance.observed import brief
from perdure.conformance.powercut import CannotReplay, Disk
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import CaseFailed, Trial
from perdure.conformance.workload import make_value
from perdure.errors import AlreadyExists

F = Level.FULL
NEEDS = ["multi_process", "durable_power", "local_root"]


async def recorded(t: Trial, operation: str, key: str, data: bytes, root: Path) -> Disk:
    """Run one operation in a traced child; its disk before, and every step it made."""
    if tracer.strace_path() is None:
        t.cannot("power-cut replay needs strace; install it (apt install strace)")
    async with t.child() as child:
        await child.start(tracer.one_operation, t.url, warm_up, OPERATIONS[operation], (key, data))
        assert await child.message() == "ready"
        disk = await asyncio.to_thread(Disk, root, child.pid)
        try:
            trace = await tracer.attach(child, content=True)
        except RuntimeError as error:
            t.cannot(str(error))
        await child.send("go")
        kind, value = await child.message()
        await asyncio.sleep(0.3)  # whatever a store does after the return belongs to the log too
        lines = await trace.detach()
        await child.send("end")
        await child.result()
    t.expect(kind == "ok", f"{operation} works", repr(value))
    try:
        disk.read(lines)
    except CannotReplay as error:
        t.cannot(f"the replay does not know this store's way of writing: {error}")
    if not disk.steps or disk.acknowledged is None:
        t.cannot("the operation made no step below local_root: does the hook name the right folder?")
    return disk


async def replay(t: Trial, operation: str, data: bytes, judge: Any, *, key: str = "new/d/k") -> None:
    """Open the store after each possible power cut; ``judge(store, returned)`` looks at it."""
    root = t.subject.local_root(t.url)
    assert root is not None
    disk = await recorded(t, operation, key, data, root)
    states = list(disk.states())
    for lost, returned, kept in states:
        await asyncio.to_thread(disk.build, kept)
        store = t.open()
        try:
            await judge(store, returned)
        except CaseFailed as failed:
            steps = "; ".join(str(s) for s in disk.steps)
            raise CaseFailed(
                failed.expected,
                f"{failed.seen} [{operation}, {lost}; returned before the cut: {returned}; steps: {steps}]",
            ) from failed
        finally:
            await store.aclose()
        t.round()
    t.evidence.numbers[f"{operation}: power cuts"] = len(states)
    t.fault(True, len(states))
    await asyncio.to_thread(disk.build, disk.steps)


async def agrees(t: Trial, store: Any, key: str, found: bytes | None) -> None:
    """stat and list say the same as get, and the key can be written again."""
    t.same(await t.size(key, store), None if found is None else len(found), "stat agrees with get")
    listed = [i for i in await t.items("", store) if not i[0].startswith(("old/", "warm/"))]
    t.same(listed, [] if found is None else [(key, len(found))], "list agrees with get")
    t.same(await t.value("old/k", store), b"old neighbour", "an older value is untouched")
    try:
        await store.create(key, b"again")
    except AlreadyExists:
        t.expect(found is not None, "AlreadyExists only of a readable value", "it was absent")
    else:
        t.expect(found is None, "create succeeds only if the key was absent", brief(found))
    await store.put(key, b"afterwards")
    t.same(await t.value(key, store), b"afterwards", "put after the power cut")


@case("crash-08", F, "S3", Certainty.EXHAUSTIVE, needs=NEEDS, alone=True, timeout=120, cost=3)
async def create(t: Trial) -> None:
    """Power cuts at each point of create: whole or absent, and present if create had returned."""
    await t.store.create("old/k", b"old neighbour")
    data = make_value("new", 9000)

    async def judge(store: Any, returned: bool) -> None:
        found = await t.value("new/d/k", store)
        t.expect(found in (None, data), "S2: whole or absent after a power cut", brief(found))
        t.expect(not returned or found == data, "S3: present, since create had returned", brief(found))
        await agrees(t, store, "new/d/k", found)

    await replay(t, "create", data, judge)


@case("crash-09", F, "S3", Certainty.EXHAUSTIVE, needs=NEEDS, alone=True, timeout=120, cost=3)
async def put(t: Trial) -> None:
    """Power cuts at each point of put: old or new, whole; new if put had returned."""
    await t.store.create("old/k", b"old neighbour")
    old, data = make_value("old", 7000), make_value("new", 9000)
    await t.store.put("new/d/k", old)

    async def judge(store: Any, returned: bool) -> None:
        found = await t.value("new/d/k", store)
        t.expect(found in (old, data), "S2: old or new, whole, after a power cut", brief(found))
        t.expect(not returned or found == data, "S3: new, since put had returned", brief(found))
        await agrees(t, store, "new/d/k", found)

    await replay(t, "put", data, judge)


@case("crash-10", F, "S3/S6", Certainty.EXHAUSTIVE, needs=NEEDS, alone=True, timeout=120, cost=5)
async def delete_and_upload(t: Trial) -> None:
    """Power cuts at each point of delete (gone if it had returned) and of upload (old or new, whole)."""
    await t.store.create("old/k", b"old neighbour")
    old, data = make_value("old", 7000), make_value("new", 200_000)
    await t.store.put("new/d/k", old)

    async def deleted(store: Any, returned: bool) -> None:
        found = await t.value("new/d/k", store)
        t.expect(found in (old, None), "S2: there, whole, or gone", brief(found))
        t.expect(not returned or found is None, "S6: gone, since delete had returned", brief(found))
        await agrees(t, store, "new/d/k", found)

    await replay(t, "delete", b"", deleted)
    await t.store.put("new/d/k", old)

    async def uploaded(store: Any, returned: bool) -> None:
        found = await t.value("new/d/k", store)
        t.expect(found in (old, data), "S2: old or new, whole", brief(found))
        t.expect(not returned or found == data, "S3: new, since upload had returned", brief(found))
        await agrees(t, store, "new/d/k", found)

    await replay(t, "upload", data, uploaded)
