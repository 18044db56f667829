"""SIGKILL at every point of every write, of clients and servers: whole or not at all, and durable (S2, S3)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

from perdure.conformance import judging, tracer, workload
from perdure.conformance.cases.put import folder_size
from perdure.conformance.child import ChildContext
from perdure.conformance.linear import Op
from perdure.conformance.observed import brief
from perdure.conformance.processes import ChildDied
from perdure.conformance.race import LEAD
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import HEAD, identity_of, make_value
from perdure.errors import AlreadyExists, NotFound, StoreUnavailable

B, F = Level.BASE, Level.FULL
MIB = 2**20


# --- random instants -------------------------------------------------------------------------------------


async def write_one(c: ChildContext, url: str, method: str, key: str, size: int, identity: str) -> None:
    """Ready, go, one write, done; then wait to be killed."""
    store = c.open(url)
    async for _ in store.list("warm", limit=1):
        pass
    await c.send("ready")
    await c.at(await c.receive())
    await getattr(store, method)(key, make_value(identity, size))
    await c.send("done")
    await asyncio.sleep(30)


@case("crash-01", B, "S2", Certainty.STOCHASTIC, needs=["multi_process"], cost=4)
async def killed_writers(t: Trial) -> None:
    """40 SIGKILLs spread over create and put of 4 MiB: absent or whole, old or new, and listed accordingly."""
    size = min(4 * MIB, t.capabilities.max_create_bytes or 4 * MIB)
    start = time.monotonic()
    await t.store.create("measure", make_value("m", size))
    duration = max(0.003, time.monotonic() - start)
    unfinished = 0
    for n in range(40):
        method, key = ("create", f"c/{n}") if n % 2 else ("put", f"p/{n}")
        old = None if method == "create" else make_value("old", size - 5)
        if old is not None:
            await t.store.put(key, old)
        async with t.child() as child:
            await child.start(write_one, t.url, method, key, size, f"new{n}")
            assert await child.message() == "ready"
            await child.send(time.monotonic() + LEAD)
            await asyncio.sleep(LEAD + duration * 1.3 * (n + 0.5) / 40)
            await child.kill()
        await t.settle()
        new = make_value(f"new{n}", size)
        found = await t.value(key)
        t.expect(found in (old, new), "S2: whole or as before", identity_of(found or b"nothing"))
        unfinished += found == old
        listed = [s for k, s in await t.items(key) if k == key]
        t.same(listed, [] if found is None else [len(found)], "list agrees with get")
        t.round()
    t.evidence.numbers["killed before the new value was visible"] = unfinished
    if not unfinished > 0:
        t.note("no kill came before the write was visible: kills at random instants only")


async def write_and_report(c: ChildContext, url: str, sizes: list[int], folder: str) -> None:
    store = c.open(url)
    for n, size in enumerate(sizes):
        method = ("create", "put", "upload", "create_many")[n % 4]
        value = make_value(f"{folder}.{n}", size) if size >= HEAD else bytes([n]) * size
        if method == "upload":

            async def chunks(value: bytes = value) -> Any:
                yield value

            await store.upload(f"{folder}/{n}", chunks())
        elif method == "create_many":
            assert await store.create_many([(f"{folder}/{n}", value)]) == [None]
        else:
            await getattr(store, method)(f"{folder}/{n}", value)
    await c.send("acknowledged")
    await asyncio.sleep(30)


@case("crash-02", B, "S3", Certainty.STOCHASTIC, needs=["multi_process", "durable"], cost=3)
async def acknowledged(t: Trial) -> None:
    """What a write acknowledged (create, put, upload, create_many; 1 byte to 1 MiB) is there after SIGKILL at
    once, for another process."""
    sizes = [1, 100, 5000, 70_000, MIB, 0, 300_000, 17]
    for n in range(8):
        folder = f"f{n}"
        some = sizes[n:] + sizes[:n]
        async with t.child() as child:
            await child.start(write_and_report, t.url, some[: n % 8 + 1], folder)
            assert await child.message() == "acknowledged"
            await child.kill()
        async with t.child() as reader:
            found = await reader.call(read_all, t.url, [f"{folder}/{i}" for i in range(n % 8 + 1)])
        for i, size in enumerate(some[: n % 8 + 1]):
            wanted = make_value(f"{folder}.{i}", size) if size >= HEAD else bytes([i]) * size
            t.expect(found[i] == wanted, "S3: an acknowledged write survives SIGKILL", brief(found[i]))
        t.round()


async def read_all(c: ChildContext, url: str, keys: list[str]) -> list[bytes | None]:
    store = c.open(url)
    out: list[bytes | None] = []
    for key in keys:
        try:
            out.append(bytes(await store.get(key)))
        except NotFound:
            out.append(None)
    return out


# --- every system call -----------------------------------------------------------------------------------


async def op_create(store: Any, key: str, data: bytes) -> None:
    await store.create(key, data)


async def op_put(store: Any, key: str, data: bytes) -> None:
    await store.put(key, data)


async def op_delete(store: Any, key: str, data: bytes) -> None:
    await store.delete(key)


async def op_upload(store: Any, key: str, data: bytes) -> None:
    async def chunks() -> Any:
        third = len(data) // 3
        for start in range(0, len(data), third):
            yield data[start : start + third]

    await store.upload(key, chunks())


async def op_create_many(store: Any, key: str, data: bytes) -> Any:
    return await store.create_many([(f"{key}-{i}", data) for i in range(3)])


async def warm_up(store: Any) -> None:
    """Make threads, connections and folders that every operation after the first finds there."""
    for i in range(2):
        await store.put(f"warm/{os.getpid()}-{i}", b"w")
    await store.get(f"warm/{os.getpid()}-0")
    for i in range(2):
        await store.delete(f"warm/{os.getpid()}-{i}")


OPERATIONS = {
    "create": op_create, "put": op_put, "delete": op_delete, "upload": op_upload, "create_many": op_create_many,
}  # fmt: skip


async def exit_at(store: Any, key: str, data: bytes, operation: str, point: int) -> int:
    """Without strace: end this process at the ``point``-th audited system operation; else count them."""
    count = 0
    watched = ("open", "os.", "socket.", "sqlite3.", "fcntl.", "tempfile.", "shutil.")

    def hook(event: str, args: Any) -> None:
        nonlocal count
        if event.startswith(watched):
            count += 1
            if count == point:
                os._exit(137)

    sys.addaudithook(hook)
    await OPERATIONS[operation](store, key, data)
    return count


class KillPoints:
    """Kills a child at each point of one operation and lets ``judge`` look at what is left."""

    def __init__(self, t: Trial, operation: str, size: int) -> None:
        self.t = t
        self.operation = operation
        self.data = make_value("new", size)
        self.old = make_value("old", size + 11)

    async def run(self, before: Any, judge: Any) -> None:
        """``before(key)`` prepares a key, ``judge(key, returned)`` asserts what may be there afterwards."""
        if tracer.strace_path() is not None:
            try:
                await self._by_strace(before, judge)
                return
            except RuntimeError as error:
                self.t.note(f"{error}; the kills are at Python's audit events instead")
        else:
            self.t.note("strace was not found: the kills are at Python's audit events, not at system calls")
        await self._by_audit(before, judge)

    async def _by_strace(self, before: Any, judge: Any) -> None:
        t = self.t
        async with t.child() as child:
            await before("profile/k")
            await self._ready(child, "profile/k")
            trace = await tracer.attach(child)
            await child.send("go")
            await child.message()
            lines = await trace.detach()
            await child.send("end")
            await child.result()
        _, begun, ended = tracer.between_marks(lines)
        points = tracer.points(lines)
        if not (begun and ended and points):
            raise RuntimeError("strace shows no system call of the operation")
        t.evidence.numbers[f"{self.operation}: system calls"] = len(points)
        missed = 0
        for n, point in enumerate(points):
            for attempt in range(3):
                key = f"{self.operation}{n}-{attempt}/d/k"
                if await self._kill_at(point, key, before, judge):
                    t.fault(True)
                    break
            else:
                # The same call did not come again in this thread: the run had another interleaving.
                missed += 1
        t.evidence.numbers[f"{self.operation}: not met again"] = missed
        t.fault(missed <= len(points) // 3)

    async def _ready(self, child: Any, key: str) -> None:
        args = (self.t.url, warm_up, OPERATIONS[self.operation], (key, self.data))
        await child.start(tracer.one_operation, *args)
        assert await child.message() == "ready"

    async def _kill_at(self, point: tracer.Point, key: str, before: Any, judge: Any) -> bool:
        t = self.t
        await before(key)
        async with t.child() as child:
            await self._ready(child, key)
            trace = await tracer.attach(child, inject=f"{point.name}:signal=SIGKILL:when={point.when}")
            returned = died = False
            try:
                async with asyncio.timeout(20):
                    await child.send("go")
                    kind, _ = await child.message()
                    returned = kind == "ok"
            except ChildDied:
                died = True
            except TimeoutError:
                t.note(f"an operation hung in a killed thread's place ({point.name} {point.when})")
            lines = await trace.detach(ended=died)
            killed = died and any(f" {point.name}(" in x and x.endswith("= ?") for x in lines)
            _, begun, _ = tracer.between_marks(lines)
            await child.kill()
        await t.settle()
        await judge(key, returned)
        t.round()
        return killed and begun

    async def _by_audit(self, before: Any, judge: Any) -> None:
        t = self.t
        await before("profile/k")
        async with t.child() as child:
            count = await child.call(_audited, t.url, "profile/k", self.data, self.operation, 0)
        for point in range(1, count + 1):
            key = f"{self.operation}{point}/d/k"
            await before(key)
            died = False
            async with t.child() as child:
                try:
                    await child.call(_audited, t.url, key, self.data, self.operation, point)
                except ChildDied:
                    died = True
            await judge(key, not died)
            t.round()
        t.fault(count > 0)


async def _audited(c: ChildContext, url: str, key: str, data: bytes, operation: str, point: int) -> int:
    store = c.open(url)
    await warm_up(store)
    return await exit_at(store, key, data, operation, point)


async def usable(t: Trial, key: str, present: bytes | None) -> None:
    """After a kill: the same key can be written within 5 s, no lock stays, and create tells the truth."""
    end = time.monotonic() + 5
    store = t.open()
    while True:
        try:
            await store.create(key, b"next")
        except AlreadyExists:
            t.expect(present is not None, "AlreadyExists only of a readable value", f"{key!r} was absent")
            break
        except StoreUnavailable as error:
            t.expect(time.monotonic() < end, "the key can be written within 5 s after a kill", repr(error))
            await asyncio.sleep(0.05)
        else:
            t.expect(present is None, "create succeeds only if the key was absent", f"{key!r} was there")
            break
    async with asyncio.timeout(10):
        await store.put(key, b"afterwards")
    t.same(await t.value(key, store), b"afterwards", "put after a kill")
    await store.delete(key)
    t.same(await t.value(key, store), None, "delete after a kill")
    await store.aclose()


@case("crash-03", F, "S2/S3", Certainty.EXHAUSTIVE, needs=["multi_process"], alone=True, timeout=180, cost=8)
async def create_killed_everywhere(t: Trial) -> None:
    """SIGKILL at every system call of create: absent or whole, listed accordingly, and there if it returned."""
    points = KillPoints(t, "create", 20_000)

    async def before(key: str) -> None:
        await t.store.put("neighbour/k", b"untouched")

    async def judge(key: str, returned: bool) -> None:
        found = await t.value(key)
        t.expect(found in (None, points.data), "S2: absent or whole", brief(found))
        t.expect(not returned or found is not None, "S3: it had returned", "absent")
        t.same(await t.items(key), [] if found is None else [(key, len(points.data))], "list agrees")
        t.same(
            [k for k in await t.keys() if not k.startswith(("create", "profile", "warm"))], ["neighbour/k"], "others"
        )
        await usable(t, key, found)

    await points.run(before, judge)


@case("crash-04", F, "S2/S3", Certainty.EXHAUSTIVE, needs=["multi_process"], alone=True, timeout=180, cost=8)
async def put_killed_everywhere(t: Trial) -> None:
    """SIGKILL at every system call of put over an old value: old or new, whole, new if it returned."""
    points = KillPoints(t, "put", 20_000)

    async def before(key: str) -> None:
        await t.store.put(key, points.old)

    async def judge(key: str, returned: bool) -> None:
        found = await t.value(key)
        t.expect(found in (points.old, points.data), "S2: old or new, whole", brief(found))
        t.expect(not returned or found == points.data, "S3: it had returned", brief(found))
        t.same(await t.items(key), [(key, len(found or b""))], "list agrees")
        await usable(t, key, found)

    await points.run(before, judge)


@case("crash-05", F, "S6", Certainty.EXHAUSTIVE, needs=["multi_process"], alone=True, timeout=180, cost=6)
async def delete_killed_everywhere(t: Trial) -> None:
    """SIGKILL at every system call of delete: there, whole, or gone; gone if it returned; neighbours stay."""
    points = KillPoints(t, "delete", 20_000)

    async def before(key: str) -> None:
        await t.store.put(key, points.old)
        await t.store.put(key + "2", b"neighbour")

    async def judge(key: str, returned: bool) -> None:
        found = await t.value(key)
        t.expect(found in (points.old, None), "S2: there, whole, or gone", brief(found))
        t.expect(not returned or found is None, "S6: it had returned", brief(found))
        t.same(await t.value(key + "2"), b"neighbour", "the neighbour")
        listed = await t.keys(key)
        t.same(listed, [key, key + "2"] if found is not None else [key + "2"], "list agrees")
        await usable(t, key, found)

    await points.run(before, judge)


@case("crash-06", F, "S2/S3", Certainty.EXHAUSTIVE, needs=["multi_process"], alone=True, timeout=240, cost=12)
async def batches_killed_everywhere(t: Trial) -> None:
    """SIGKILL at every system call of upload and create_many: each key absent (or old) or whole."""
    upload = KillPoints(t, "upload", 60_000)

    async def before(key: str) -> None:
        await t.store.put(key, upload.old)

    async def judge(key: str, returned: bool) -> None:
        found = await t.value(key)
        t.expect(found in (upload.old, upload.data), "S2: old or new, whole", brief(found))
        t.expect(not returned or found == upload.data, "S3: it had returned", brief(found))
        t.same(await t.items(key), [(key, len(found or b""))], "list agrees")
        await usable(t, key, found)

    await upload.run(before, judge)
    many = KillPoints(t, "create_many", 5_000)

    async def nothing(key: str) -> None:
        return

    async def judge_many(key: str, returned: bool) -> None:
        for i in range(3):
            found = await t.value(f"{key}-{i}")
            t.expect(found in (None, many.data), "S2: absent or whole", brief(found))
            t.expect(not returned or found is not None, "S3: it had returned", "absent")
            await usable(t, f"{key}-{i}", found)

    await many.run(nothing, judge_many)


@case("crash-07", F, "S2", Certainty.STOCHASTIC, needs=["multi_process"], cost=4)
async def no_lock_stays(t: Trial) -> None:
    """After each of 24 kills inside create, put and delete the same key is writable within 5 s."""
    size = min(2 * MIB, t.capabilities.max_create_bytes or 2 * MIB)
    start = time.monotonic()
    await t.store.create("measure", make_value("m", size))
    duration = max(0.003, time.monotonic() - start)
    for n in range(24):
        key = f"k/{n}"
        method = ("create", "put")[n % 2]
        async with t.child() as child:
            await child.start(write_one, t.url, method, key, size, "killed")
            assert await child.message() == "ready"
            await child.send(time.monotonic() + LEAD)
            await asyncio.sleep(LEAD + duration * (n + 0.5) / 24)
            await child.kill()
        await t.settle()
        found = await t.value(key)
        await t.within(8, usable(t, key, found), "writable within 5 s after a kill")
        t.round()


# --- servers ---------------------------------------------------------------------------------------------


@case("crash-11", F, "S3", needs=["durable_server", "unmanaged", "kill"], alone=True, timeout=120, cost=5)
async def server_killed(t: Trial) -> None:
    """The server is killed and restarted: every acknowledged write is there, every deleted key is gone."""
    for n in range(3):
        await t.store.create(f"c/{n}", make_value(f"c{n}", 5000))
        await t.store.put(f"p/{n}", make_value(f"p{n}", 300_000))
        await t.store.put("again", make_value(f"{n}", 100))
        await t.store.create(f"d/{n}", b"x")
        await t.store.delete(f"d/{n}")
        before = await t.items()
        await asyncio.to_thread(t.subject.kill)  # type: ignore[attr-defined]
        store = t.open()
        t.same(await t.items("", store), before, "S3: keys and sizes after the restart")
        for i in range(n + 1):
            t.same(identity_of(await t.value(f"c/{i}", store) or b""), f"c{i}", "S3: created")
            t.same(identity_of(await t.value(f"p/{i}", store) or b""), f"p{i}", "S3: put")
            t.same(await t.value(f"d/{i}", store), None, "S6: deleted")
        t.same(identity_of(await t.value("again", store) or b""), f"{n}", "S3: the last put")
        t.fault(True)
        t.round()


@case(
    "crash-12",
    F,
    "S1/S2",
    Certainty.STOCHASTIC,
    needs=["durable_server", "unmanaged", "kill"],
    alone=True,
    timeout=180,
    cost=8,
)
async def server_killed_under_load(t: Trial) -> None:
    """The server is killed under load: the history, with unknown outcomes, is linearizable."""
    history = workload.History()
    kills = 0
    for phase in range(3):
        plan = workload.Plan(
            tuple(f"p{phase}/{i}" for i in range(16)), ("create", "put", "delete", "get", "get"), 60,
            t.seed % 100_000 + phase, retried=True,
        )  # fmt: skip
        async with t.crew(3) as crew:
            started = asyncio.Event()
            running = asyncio.create_task(
                workload.run_plan(crew, t.url, plan, history, offset=3 * phase, started=started)
            )
            await asyncio.wait([running, asyncio.ensure_future(started.wait())], return_when="FIRST_COMPLETED")
            await asyncio.sleep(0.02)
            kills += not running.done()
            await asyncio.to_thread(t.subject.kill)  # type: ignore[attr-defined]
            await running
        store = t.open()
        for key in plan.keys:
            start = time.monotonic()
            found = await t.value(key, store)
            seen = None if found is None else identity_of(found)
            history.ops.append(Op(99, "get", seen, start, time.monotonic(), "ok", key))
        t.round()
    t.fault(kills > 0)
    judging.linearizable(t, history, "S1/S2")


@case("crash-13", F, "S5", Certainty.STOCHASTIC, needs=["multi_process"], cost=5)
async def residue(t: Trial) -> None:
    """What 50 kills leave is invisible to list, and bounded on disk after the store was opened anew."""
    size = min(MIB, t.capabilities.max_create_bytes or MIB)
    root = t.subject.local_root(t.url)
    await t.store.create("other", b"x")
    before = folder_size(root)[1] if root else 0
    start = time.monotonic()
    await t.store.put("measure", make_value("m", size))
    duration = max(0.002, time.monotonic() - start)
    await t.store.delete("measure")
    for n in range(50):
        async with t.child() as child:
            await child.start(write_one, t.url, ("create", "put")[n % 2], f"k/{n}", size, "x")
            assert await child.message() == "ready"
            await child.send(time.monotonic() + LEAD)
            await asyncio.sleep(LEAD + duration * (n % 10 + 0.5) / 10)
            await child.kill()
        t.round()
    await t.settle()
    store = t.open()
    listed = await t.items("", store)
    t.expect(
        {k for k, _ in listed} <= {"other", *(f"k/{n}" for n in range(50))},
        "S5: nothing of the residue is listed",
        listed,
    )
    for key, length in listed:
        t.expect(key == "other" or length == size, "S2: listed values are whole", (key, length))
    await store.delete_prefix("k/")
    await store.put("after", b"x")
    if root is not None:

        async def bounded() -> bool:
            return folder_size(root)[1] - before <= 10 * size

        await t.eventually(5, bounded, f"the residue of 50 kills is at most {10 * size // MIB} MiB on disk")
        t.evidence.numbers["residue bytes"] = folder_size(root)[1] - before


@case("crash-14", F, "S1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, timeout=120, cost=10)
async def stopped_writer(t: Trial) -> None:
    """A creator stopped (SIGSTOP) inside create while others go on, then continued: no second winner, nothing
    is overwritten."""
    size = min(4 * MIB, t.capabilities.max_create_bytes or 4 * MIB)
    start = time.monotonic()
    await t.store.create("measure", make_value("m", size))
    duration = max(0.003, time.monotonic() - start)
    rounds, inside = 10, 0
    pauses = [3.0] + [0.4] * (rounds - 1)
    for n in range(rounds):
        key = f"k/{n}"
        async with t.child() as child:
            await child.start(create_outcome, t.url, key, size, f"stopped{n}")
            assert await child.message() == "ready"
            await child.send(time.monotonic() + LEAD)
            await asyncio.sleep(LEAD + duration * (n + 1) / (rounds + 2))
            child.signal(signal.SIGSTOP)
            other = make_value(f"other{n}", HEAD)
            won = False
            try:
                async with asyncio.timeout(pauses[n]):
                    await t.store.create(key, other)
                won = True
            except AlreadyExists:
                t.expect(await t.value(key) is not None, "AlreadyExists means a readable value", "absent")
            except (TimeoutError, StoreUnavailable):
                t.note("others wait for a stopped writer (or get StoreUnavailable)")
            inside += won
            await asyncio.sleep(pauses[n] if not n else 0.05)
            child.signal(signal.SIGCONT)
            outcome = await t.within(30, child.result(), "the continued writer ends")
        found = identity_of(await t.value(key) or b"nothing")
        t.expect(not (won and outcome == "won"), "S1: no second winner", f"both won {key}")
        if won:
            t.same(found, f"other{n}", "the winner's value is not overwritten")
        elif outcome == "won":
            t.same(found, f"stopped{n}", "the winner's value")
        await asyncio.sleep(0.05)
        t.same(identity_of(await t.value(key) or b"nothing"), found, "and it stays")
        t.round()
    t.evidence.numbers["stopped before the value was visible"] = inside


async def create_outcome(c: ChildContext, url: str, key: str, size: int, identity: str) -> str:
    store = c.open(url)
    async for _ in store.list("warm", limit=1):
        pass
    await c.send("ready")
    await c.at(await c.receive())
    try:
        await store.create(key, make_value(identity, size))
    except AlreadyExists:
        return "lost"
    except StoreUnavailable:
        return "unknown"
    return "won"
