"""Loops, cancellation, closing and clocks (C1, C2, C4, C5)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
import threading
import time
import warnings
from typing import Any

from perdure.conformance import clocks, resources
from perdure.conformance.cases.list import fill
from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import identity_of, make_value
from perdure.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable

B, F = Level.BASE, Level.FULL
MIB = 2**20


# --- loops -----------------------------------------------------------------------------------------------


def in_thread(coroutine_function: Any, *args: Any, seconds: float = 20.0) -> tuple[str, Any]:
    """Run a coroutine in a loop and thread of its own: ("ok", result), ("error", e) or ("hung", None)."""
    box: list[tuple[str, Any]] = []

    def body() -> None:
        try:
            box.append(("ok", asyncio.run(coroutine_function(*args))))
        except BaseException as error:
            box.append(("error", error))

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join(seconds)
    return box[0] if box else ("hung", None)


async def _burst(store: Any, folder: str, count: int) -> list[str]:
    """``count`` puts and gets at once; what was wrong."""

    async def one(i: int) -> str:
        try:
            async with asyncio.timeout(5):
                await store.put(f"{folder}/{i}", f"{i}".encode())
                found = bytes(await store.get(f"{folder}/{i}"))
        except StoreError:
            return "refused"
        except TimeoutError:
            return "a call hung for 5 s"
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "" if found == f"{i}".encode() else f"wrong bytes at {i}"

    return [x for x in await asyncio.gather(*(one(i) for i in range(count))) if x]


def judge_loop(t: Trial, outcome: tuple[str, Any], what: str) -> None:
    kind, value = outcome
    t.expect(kind != "hung", f"C2: {what}: calls never hang", "not over after 20 s")
    t.expect(kind == "ok", f"C2: {what}: only StoreError", repr(value))
    wrong = [x for x in value if x != "refused"]
    t.expect(not wrong, f"C2: {what}: calls work, or raise StoreError", wrong[:3])
    if "refused" in value:
        t.note(f"{what}: refused with StoreError")


@case("loop-01", F, "C2", cost=1)
async def second_loop(t: Trial) -> None:
    """An instance used in a second loop after the first has closed, alone and with 32 calls at once, works or
    raises StoreError; the first loop is not harmed."""
    for n, count in enumerate((1, 32)):
        store = t.open()
        for turn in range(3):
            outcome = await asyncio.to_thread(in_thread, _burst, store, f"l{n}-{turn}", count)
            judge_loop(t, outcome, f"loop {turn + 1}, {count} calls")
        judge_loop(t, ("ok", await _burst(store, f"own{n}", count)), "one more loop")
    for n, count in enumerate((1, 32)):
        store = t.open()
        judge_loop(t, ("ok", await _burst(store, f"a{n}", count)), "first loop")
        judge_loop(t, await asyncio.to_thread(in_thread, _burst, store, f"b{n}", count), "beside the first")
        judge_loop(t, ("ok", await _burst(store, f"c{n}", count)), "first loop again")


@case("loop-02", F, "C2", Certainty.STOCHASTIC, cost=1)
async def two_threads(t: Trial) -> None:
    """Two loops in two threads use one instance at the same time."""
    store = t.open()
    for n in range(5):
        one, two = await asyncio.gather(
            asyncio.to_thread(in_thread, _burst, store, f"x{n}", 32),
            asyncio.to_thread(in_thread, _burst, store, f"y{n}", 32),
        )
        judge_loop(t, one, "first thread")
        judge_loop(t, two, "second thread")
        t.round()


class Ticker:
    """The longest gap between ticks of 5 ms in this loop, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Ticker:
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0.02)
        self.longest = 0.0
        return self

    async def _tick(self) -> None:
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.005)
            now = time.monotonic()
            self.longest = max(self.longest, now - last - 0.005)
            last = now

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()


async def gaps(c: ChildContext | None, url: str, store: Any = None) -> dict[str, float]:
    """The longest gap of the loop during each of some large calls."""
    if c is not None:
        store = c.open(url)
    size = min(16 * MIB, store.capabilities.max_create_bytes or 16 * MIB)
    data = bytes(size)

    async def chunks() -> Any:
        for _ in range(16):
            yield data[: size // 16]

    async def listing() -> None:
        async for _ in store.list("n/"):
            pass

    async def nothing() -> None:
        await asyncio.sleep(0.15)

    await store.put("warm", b"x")
    found: dict[str, float] = {}
    for name, call in (
        ("create", lambda: store.create("big", data)), ("put", lambda: store.put("big", data)),
        ("get", lambda: store.get("big")), ("upload", lambda: store.upload("up", chunks())), ("list", listing),
        ("nothing", nothing),
    ):  # fmt: skip
        gc.collect()
        async with Ticker() as ticker:
            await call()
            await asyncio.sleep(0.012)
        found[name] = ticker.longest
    await store.delete("big")
    await store.delete("up")
    return found


@case("loop-03", B, "C2", alone=True, cost=3)
async def never_blocked(t: Trial) -> None:
    """The longest gap of a 5 ms ticker is at most 100 ms during create, put, get and upload of 16 MiB and a
    list of 2,000."""
    await fill(t, [f"n/{i:04}" for i in range(2000)])
    best: dict[str, float] = {}
    for _ in range(4):
        if t.facts.gap("multi_process") is None:
            async with t.child() as child:
                seen = await child.call(gaps, t.url)
        else:
            seen = await gaps(None, t.url, t.store)
        best = {k: min(v, best.get(k, 9.0)) for k, v in seen.items()}
        if all(v <= 0.1 for v in best.values()):
            break
    t.evidence.numbers.update({f"{k}_ms": round(v * 1000, 1) for k, v in best.items()})
    if best.pop("nothing") > 0.1:
        t.cannot("the machine is overloaded: an idle loop had gaps over 100 ms too")
    worst = max(best, key=lambda k: best[k])
    t.expect(
        best[worst] <= 0.1,
        "C2: no call blocks the loop over 100 ms",
        f"{worst}: {best[worst] * 1000:.0f} ms (best of 4)",
    )


async def crowd(c: ChildContext, url: str) -> dict[str, Any]:
    store = c.open(url)
    await store.put("k", b"x")
    most, over = 0, asyncio.Event()

    async def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, resources.descriptors())
            await asyncio.sleep(0.002)

    before = resources.descriptors()
    watching = asyncio.create_task(watch())
    results = await asyncio.gather(
        *(store.put(f"c/{i}", f"{i}".encode()) if i % 2 else store.get("k") for i in range(1000)),
        return_exceptions=True,
    )
    over.set()
    await watching
    return {"errors": [repr(r) for r in results if isinstance(r, BaseException)][:3], "more": most - before}


@case("loop-04", F, "C2", needs=["multi_process"], timeout=120, cost=3)
async def thousand_calls(t: Trial) -> None:
    """1,000 calls at once on one instance all end well, with at most 256 more descriptors."""
    async with t.child() as child:
        seen = await t.within(100, child.call(crowd, t.url), "C2: 1,000 calls end")
    t.expect(not seen["errors"], "C2: all succeed", seen["errors"])
    t.expect(seen["more"] <= 256, "at most 256 descriptors", seen["more"])
    t.same(len(await t.keys("c/")), 500, "keys written")
    for i in (1, 501, 999):
        t.same(await t.value(f"c/{i}"), f"{i}".encode(), "value")


# --- cancellation ----------------------------------------------------------------------------------------


async def cancelled_after(t: Trial, call: Any, delay: float, what: str) -> str:
    """Begin, wait, cancel: "ended", "cancelled" or "failed"; FAILED if the cancellation takes over 1 s."""
    task = asyncio.ensure_future(call)
    if delay:
        await asyncio.wait([task], timeout=delay)
    else:
        await asyncio.sleep(0)
    start = time.monotonic()
    task.cancel()
    done, _ = await asyncio.wait([task], timeout=10)
    took = time.monotonic() - start
    t.expect(bool(done), f"C1: a cancelled {what} ends", "not within 10 s")
    t.expect(took <= 1.0 + 2 * t.facts.latency, f"C1: a cancelled {what} ends within 1 s", f"{took:.2f} s")
    if task.cancelled():
        return "cancelled"
    error = task.exception()
    if error is None:
        return "ended"
    t.expect(isinstance(error, StoreError), f"a cancelled {what} raises CancelledError or StoreError", repr(error))
    return "failed"


@case("cancel-01", B, "C1", Certainty.STOCHASTIC, cost=2)
async def create(t: Trial) -> None:
    """create cancelled after 0 to 100 ms: the value is whole or absent, nothing else is listed, the instance
    stays usable."""
    size = min(8 * MIB, t.capabilities.max_create_bytes or 8 * MIB)
    cut = 0
    for n, delay in enumerate((0, 0.001, 0.002, 0.005, 0.02, 0.1) * 3):
        value = make_value(f"v{n}", size)
        outcome = await cancelled_after(t, t.store.create(f"k/{n}", value), delay, "create")
        cut += outcome == "cancelled"
        found = await t.value(f"k/{n}")
        t.expect(found in (None, value), "C1: whole or absent", identity_of(found or b""))
        if outcome == "ended":
            t.expect(found == value, "a create that returned is stored", found)
        listed = await t.items("k/")
        t.expect(
            all(s == size and k in {f"k/{i}" for i in range(n + 1)} for k, s in listed), "C1: nothing else", listed
        )
        await t.store.create(f"after/{n}", b"x")
        t.same(await t.value(f"after/{n}"), b"x", "the instance stays usable")
        t.round()
    t.evidence.numbers["cancelled inside"] = cut


@case("cancel-02", B, "C1", Certainty.STOCHASTIC, cost=2)
async def others(t: Trial) -> None:
    """put, delete, get and list cancelled at several moments: old or new value, nothing in between."""
    size = min(4 * MIB, t.capabilities.max_create_bytes or 4 * MIB)
    old = make_value("old", size)
    await fill(t, [f"many/{i:03}" for i in range(300)])
    for n, delay in enumerate((0, 0.0005, 0.001, 0.003, 0.01) * 2):
        key, new = f"k/{n}", make_value(f"new{n}", size)
        await t.store.put(key, old)
        outcome = await cancelled_after(t, t.store.put(key, new), delay, "put")
        found = await t.value(key)
        t.expect(found in (old, new), "C1: old or new value, whole", identity_of(found or b"nothing"))
        t.expect(outcome != "ended" or found == new, "a put that returned is stored", identity_of(found or b""))
        key = f"d/{n}"
        await t.store.put(key, old)
        outcome = await cancelled_after(t, t.store.delete(key), delay, "delete")
        found = await t.value(key)
        t.expect(found in (old, None), "C1: there or gone", identity_of(found or b""))
        t.expect(outcome != "ended" or found is None, "a delete that returned has deleted", "still there")
        await cancelled_after(t, t.store.get(f"k/{n}"), delay, "get")
        await cancelled_after(t, t.keys("many/"), delay, "list")
        t.same(len(await t.keys("many/")), 300, "the instance stays usable")
        t.round()


STORM_MAY_LEAVE = (0, 8, 8)  # tasks, descriptors, threads


async def storm(c: ChildContext, url: str) -> dict[str, Any]:
    store = c.open(url)
    await store.put("k", bytes(200_000))

    async def timed(i: int) -> str:
        try:
            async with asyncio.timeout(0.0005 * (i % 8)):
                if i % 3 == 0:
                    await store.put(f"s/{i % 20}", bytes(100_000))
                elif i % 3 == 1:
                    await store.get("k")
                else:
                    async for _ in store.list(""):
                        pass
        except TimeoutError:
            return "timeout"
        except StoreError as error:
            return f"{type(error).__name__}: {error}"
        return "ended"

    async def settle() -> tuple[int, int, int]:
        for _ in range(50):
            await asyncio.sleep(0.02)
            if len(asyncio.all_tasks()) <= 1:
                break
        gc.collect()
        return len(asyncio.all_tasks()), resources.descriptors(), resources.threads()

    await asyncio.gather(*(timed(i) for i in range(40)))
    before = await settle()
    outcomes = await asyncio.gather(*(timed(i) for i in range(200)))
    end = time.monotonic() + 10  # what was cancelled may end in the background (C1)
    while True:
        after = await settle()
        if all(b - a <= m for a, b, m in zip(before, after, STORM_MAY_LEAVE, strict=True)) or time.monotonic() > end:
            break
    await store.put("end", b"x")
    return {
        "outcomes": {o: outcomes.count(o) for o in set(outcomes)},
        "more": [b - a for a, b in zip(before, after, strict=True)],
        "usable": bytes(await store.get("end")) == b"x",
    }


@case("cancel-04", F, "C1", Certainty.STOCHASTIC, needs=["multi_process"], cost=2)
async def storms(t: Trial) -> None:
    """200 calls with timeouts of 0 to 4 ms leave no task, descriptor or thread, and the instance usable."""
    async with t.child() as child:
        seen = await t.within(60, child.call(storm, t.url), "the storm ends")
    t.fault(seen["outcomes"].get("timeout", 0) > 0)
    wrong = {k: v for k, v in seen["outcomes"].items() if k not in ("timeout", "ended")}
    t.expect(not wrong, "C1: calls end or are cancelled", wrong)
    t.expect(seen["usable"], "C1: the instance stays usable", seen)
    leaked = [m > allowed for m, allowed in zip(seen["more"], STORM_MAY_LEAVE, strict=True)]
    t.expect(not any(leaked), "nothing leaks", f"tasks, descriptors, threads: {seen['more']}")


@case("cancel-05", F, "W1", Certainty.STOCHASTIC, cost=1)
async def again(t: Trial) -> None:
    """create cancelled, then created again with other bytes: success, or AlreadyExists with the first bytes."""
    met, size = 0, min(4 * MIB, t.capabilities.max_create_bytes or 4 * MIB)
    for n in range(30):
        first, second = make_value(f"first{n}", size), make_value(f"second{n}", size)
        await cancelled_after(t, t.store.create(f"k/{n}", first), 0.0005 * (n % 10), "create")
        try:
            await t.store.create(f"k/{n}", second)
        except AlreadyExists:
            met += 1
            found = await t.value(f"k/{n}")
            t.expect(
                found == first, "W1: AlreadyExists means that the first attempt is stored", identity_of(found or b"")
            )
        else:
            t.same(await t.value(f"k/{n}"), second, "the second attempt is stored")
        await asyncio.sleep(0.01)
        found = await t.value(f"k/{n}")
        t.expect(found in (first, second), "whole", found)
        t.round()
    t.evidence.numbers["met the first attempt"] = met


# --- closing ---------------------------------------------------------------------------------------------


@case("close-01", B, "C5")
async def twice(t: Trial) -> None:
    """aclose is idempotent; every later call raises StoreError; another instance is unaffected."""
    store, twin = t.open(), t.open()
    await store.create("k", b"x")
    await store.aclose()
    await store.aclose()

    async def chunks() -> Any:
        yield b"x"

    async def download() -> None:
        async for _ in store.download("k"):
            pass

    for name, call in (
        ("create", lambda: store.create("n", b"x")), ("put", lambda: store.put("k", b"y")),
        ("get", lambda: store.get("k")), ("stat", lambda: store.stat("k")), ("delete", lambda: store.delete("k")),
        ("list", lambda: t.keys("", store)), ("get_many", lambda: store.get_many(["k"])),
        ("create_many", lambda: store.create_many([("n", b"x")])), ("upload", lambda: store.upload("k", chunks())),
        ("download", download), ("delete_prefix", lambda: store.delete_prefix("k")),
    ):  # fmt: skip
        error = await t.refuses(call(), StoreError, f"C5: {name} after aclose")
        kind = type(error)
        t.expect(kind not in (NotFound, AlreadyExists, StoreUnavailable), f"{name}: a permanent error", kind.__name__)
        t.expect("closed" in str(error).lower(), f"{name}: the text says that it is closed", str(error))
    await t.expect_value("k", b"x", "untouched", twin)
    t.same(await t.keys("", twin), ["k"], "keys")
    never = t.open()
    await never.aclose()
    await t.refuses(never.get("k"), StoreError, "an instance closed before its first use")


async def open_use_close(c: ChildContext, url: str, count: int) -> dict[str, Any]:
    """Open, use and close ``count`` instances; what grew, what warned, what was ignored."""
    complaints: list[str] = []
    sys.unraisablehook = lambda u: complaints.append(f"unraisable: {u.exc_value!r} in {u.object!r}")
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *a, **k: complaints.append(str(message))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(str(context.get("message"))))
    keeper = c.open(url)
    await keeper.put("keep", b"x")

    async def some(n: int) -> None:
        for i in range(n):
            store = c.subject.open(url)
            await store.put(f"k{i % 5}", bytes(1000))
            await store.get(f"k{i % 5}")
            async for _ in store.list("", limit=2):
                pass
            async for _ in store.download("keep"):
                pass
            with contextlib.suppress(StoreError):
                await store.get("missing")
            with contextlib.suppress(StoreError):
                async for _ in store.download("missing"):
                    pass
            await store.aclose()

    def state() -> tuple[int, int, int]:
        gc.collect()
        return len(asyncio.all_tasks()), resources.descriptors(), resources.threads()

    await some(5)
    await asyncio.sleep(0.05)
    gc.collect()
    before = state()
    await some(count)
    await asyncio.sleep(0.1)
    after = state()
    return {
        "more": [b - a for a, b in zip(before, after, strict=True)],
        "complaints": complaints[:5],
        "twin": bytes(await keeper.get("keep")),
    }


@case("close-02", F, "C5", needs=["multi_process"])
async def nothing_left(t: Trial) -> None:
    """After aclose no task, thread or descriptor is left, and nothing warns (ResourceWarning, unraisable)."""
    async with t.child() as child:
        seen = await child.call(open_use_close, t.url, 10)
    t.expect(not seen["complaints"], "C5: no warning", seen["complaints"])
    tasks, fds, threads = seen["more"]
    t.expect(
        tasks <= 0 and fds <= 0 and threads <= 1, "C5: nothing is left", f"tasks, descriptors, threads {seen['more']}"
    )


@case("close-03", F, "C5", Certainty.STOCHASTIC, cost=2)
async def during_calls(t: Trial) -> None:
    """aclose during 32 calls: each ends within 10 s, with its result or a StoreError, and wholly or not at all."""
    for n in range(6):
        store = t.open()
        await store.put(f"r{n}", bytes(300_000))
        values = {f"c{n}/{i}": make_value(f"{i}", 300_000) for i in range(16)}
        calls = [asyncio.ensure_future(store.create(k, v)) for k, v in values.items()]
        calls += [asyncio.ensure_future(store.get(f"r{n}")) for _ in range(16)]
        await asyncio.sleep(0.0007 * n)
        start = time.monotonic()
        closing = asyncio.ensure_future(store.aclose())
        _, pending = await asyncio.wait([*calls, closing], timeout=12)
        t.expect(not pending, "C5: each call, and aclose, ends within 10 s", f"{len(pending)} had not ended")
        t.expect(time.monotonic() - start <= 10, "C5: within 10 s", f"{time.monotonic() - start:.1f} s")
        t.expect(closing.exception() is None, "aclose returns", repr(closing.exception()))
        for (key, value), call in zip(values.items(), calls, strict=False):
            if call.cancelled():
                t.fail("C5: a call ends with its result or StoreError", "CancelledError, and nobody had cancelled")
            error = call.exception()
            t.expect(error is None or isinstance(error, StoreError), "C5: result or StoreError", repr(error))
            found = await t.value(key)
            t.expect(found in (None, value), "whole or absent", identity_of(found or b""))
            t.expect(error is not None or found == value, "a create that returned is stored", identity_of(found or b""))
        for call in calls[16:]:
            error = None if call.cancelled() else call.exception()
            t.expect(
                not call.cancelled() and (error is None or isinstance(error, StoreError)),
                "C5: get likewise",
                repr(error),
            )
        t.round()


@case("close-04", F, "C5", needs=["multi_process"], timeout=120, cost=3)
async def steady(t: Trial) -> None:
    """200 times open, use, close leave descriptors and threads steady; another instance goes on working."""
    async with t.child() as child:
        seen = await child.call(open_use_close, t.url, 200)
    tasks, fds, threads = seen["more"]
    t.expect(tasks <= 0 and fds <= 2 and threads <= 2, "C5: steady", f"tasks, descriptors, threads: {seen['more']}")
    t.same(seen["twin"], b"x", "the twin still works")


# --- clocks ----------------------------------------------------------------------------------------------


SIGNED_SECONDS = 900.0
"""Further off than this, a client that signs requests with the time may be refused (C4)."""


async def step_clock(c: ChildContext, url: str, rounds: int) -> dict[str, Any]:
    """All kinds of calls while the clock is stepped by five minutes and by a year either way; what was wrong."""
    store, wrong, moved, refused = c.open(url), [], 0, 0
    kept: set[str] = set()
    offsets = (300.0, -300.0, 0.0, 86_400.0 * 400, -86_400.0 * 400)
    for n in range(rounds):
        for offset in offsets:
            value = f"{n} {offset}".encode()
            clocks.shift(0)
            await store.put("k", value)
            await store.put(f"c/{n}-{offset}", value)
            kept.add(f"c/{n}-{offset}")
            call = asyncio.ensure_future(store.put("during", value))
            clocks.shift(offset)
            moved += abs(clocks.moved() - offset) < 2
            try:
                await call
                wrong += [f"{what} after a step to {offset:+.0f} s" for what in await _changed(store, value, kept)]
            except (NotFound, AlreadyExists):
                raise
            except StoreError:
                if abs(offset) <= SIGNED_SECONDS:
                    raise
                refused += 1
    clocks.shift(0)
    wrong += [f"{what} with the right clock again" for what in await _changed(store, None, kept)]
    return {"wrong": wrong, "moved": moved, "planned": rounds * len(offsets), "refused": refused}


async def _changed(store: Any, value: bytes | None, kept: set[str]) -> list[str]:
    """What is not as it was written, whatever the clock says."""
    wrong = []
    if value is not None:
        if bytes(await store.get("k")) != value or bytes(await store.get("during")) != value:
            wrong.append("other bytes")
        if await store.stat("k") != len(value):
            wrong.append("another size")
    if {k async for k, _ in store.list("c/")} != kept:
        wrong.append("another listing")
    try:
        await store.create("k", b"again")
        wrong.append("create of a present key succeeded")
    except AlreadyExists:
        pass
    await store.delete("gone")
    await store.create("gone", b"new")
    return wrong


@case("clock-01", F, "C4", cost=1)
async def stepped(t: Trial) -> None:
    """The clock is stepped by five minutes and by a year, between and during calls: no result depends on it."""
    if t.facts.gap("multi_process") is None:
        async with t.child() as child:
            seen = await child.call(step_clock, t.url, 6)
        t.fault(seen["moved"] == seen["planned"])
        t.expect(not seen["wrong"], "C4: no result depends on a clock", seen["wrong"][:3])
        if seen["refused"]:
            t.note("with a clock that is off by a year its requests are refused, as signed ones are (C4)")
        t.note(clocks.NOTE)
        return
    # In this process the clock can't be moved without harm to others: look from far away instead.
    offset = time.time

    def moved() -> float:
        return offset() + 86_400 * 400

    await t.store.create("k", b"x")
    import unittest.mock

    with unittest.mock.patch("time.time", moved):
        t.fault(time.time() - offset() > 86_000)
        t.same(await t.value("k"), b"x", "C4: the value, a year later")
        t.same(await t.keys(), ["k"], "C4: the listing, a year later")
        await t.refuses(t.store.create("k", b"y"), AlreadyExists, "C4: create, a year later")
