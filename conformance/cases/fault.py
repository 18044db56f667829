"""Broken networks, servers and disks: a store may fail, but never lie (W1-W3, C6)."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import resource
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

from perdure.conformance import tracer
from perdure.conformance.cases.lifetime import cancelled_after
from perdure.conformance.child import ChildContext, portable
from perdure.conformance.observed import ObservedStore, brief
from perdure.conformance.oracle import Model, random_step
from perdure.conformance.proxy import Fault, FaultProxy, Request
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.conformance.workload import identity_of, make_value
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable

F = Level.FULL
NET = ["network", "upstream", "proxied_url"]
HTTP = ["http", "upstream", "proxied_url"]
METHODS = ("create", "put", "get", "list", "delete")


def proxied(t: Trial, proxy: FaultProxy) -> str:
    """The URL of the trial's own place, through the proxy."""
    return t.subject.at(t.subject.proxied_url(*proxy.address), t.path)  # type: ignore[attr-defined]


@contextlib.asynccontextmanager
async def through_proxy(t: Trial) -> AsyncIterator[tuple[ObservedStore, FaultProxy]]:
    """A store that reaches its server through a fault proxy, warmed up; ``t.store`` sees it directly."""
    upstream = t.subject.upstream
    assert upstream is not None
    async with FaultProxy(upstream) as proxy:
        store = t.open(proxied(t, proxy))
        await store.put("warm/up", b"x")
        if not proxy.requests:
            t.cannot("no request came through the proxy: does `proxied_url` lead there?")
        try:
            yield store, proxy
        finally:
            proxy.clear()
            with contextlib.suppress(StoreError, TimeoutError):
                async with asyncio.timeout(10):
                    await store.aclose()


class Attempts:
    """One call of each kind through a fault, and the judgement of what it said against what is there."""

    def __init__(self, t: Trial, store: Any) -> None:
        self.t = t
        self.store = store
        self.count = 0
        self.outcomes: dict[str, int] = {}

    async def one(
        self, method: str, size: int = 3000, *, allow: tuple[type[Exception], ...] = (StoreUnavailable,)
    ) -> str:
        """Returns ``done`` or the name of the error. FAILED if the store told an untruth."""
        t, n = self.t, self.count
        self.count += 1
        key = f"{method}/{n:04}/k"
        old, new = make_value(f"old{n}", size), make_value(f"new{n}", size + 7)
        if method != "create":
            await t.store.put(key, old)
        error: Exception | None = None
        found: Any = None
        try:
            if method in ("create", "put"):
                await getattr(self.store, method)(key, new)
            elif method == "delete":
                await self.store.delete(key)
            elif method == "get":
                found = bytes(await self.store.get(key))
            else:
                found = [k async for k, _ in self.store.list(f"list/{n:04}/")]
        except StoreError as raised:
            error = raised
        stored = await t.value(key)
        name = "done" if error is None else type(error).__name__
        self.outcomes[name] = self.outcomes.get(name, 0) + 1
        if error is None:
            self._done(method, key, stored, found, old, new)
        else:
            await self._failed(method, error, stored, old, new, allow)
        return name

    def _done(self, method: str, key: str, stored: bytes | None, found: Any, old: bytes, new: bytes) -> None:
        t = self.t
        if method in ("create", "put"):
            t.expect(stored == new, f"W2: {method} returned, so its bytes are stored", brief(stored))
        elif method == "delete":
            t.expect(stored is None, "delete returned, so the key is gone", brief(stored))
        elif method == "get":
            t.expect(found == old, "get returned the whole value", f"{len(found)} bytes, {identity_of(found)}")
        else:
            t.expect(found == [key], "list returned the whole listing", found)

    async def _failed(
        self,
        method: str,
        error: Exception,
        stored: bytes | None,
        old: bytes,
        new: bytes,
        allow: tuple[type[Exception], ...],
    ) -> None:
        t = self.t
        before = None if method == "create" else old
        after = {"create": new, "put": new, "delete": None}.get(method, old)
        if isinstance(error, AlreadyExists):
            t.expect(
                method == "create" and stored == new,
                "W2: AlreadyExists of an absent key means own bytes",
                brief(stored),
            )
        elif isinstance(error, StoreUnavailable):
            t.expect(stored in (before, after), "W1: before or after, whole", brief(stored))
        else:
            t.expect(isinstance(error, allow), f"{method}: one of {[a.__name__ for a in allow]}", repr(error))
            t.expect(stored == before, "W1: any other error means that nothing was done", brief(stored))

    async def again(self) -> None:
        """The fault is over: the same instance works."""
        for method in METHODS:
            t = self.t
            name = await t.within(15, self.one(method), f"C6: {method} works again")
            t.expect(name == "done", f"C6: {method} works again without reopening", name)


def patience(t: Trial) -> float:
    return float(t.capabilities.retry_seconds) + 10


@case("fault-01", F, "C6", needs=NET, timeout=120, cost=12)
async def refused(t: Trial) -> None:
    """Connections are refused for a while: calls succeed once they are not, or raise StoreUnavailable."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        for method in METHODS:
            await proxy.refuse()
            call = asyncio.ensure_future(attempts.one(method))
            await asyncio.sleep(0.4)
            t.fault(not call.done() or call.result() != "done")
            await proxy.accept()
            await t.within(patience(t), call, f"C6: {method} ends")
        await attempts.again()


@case("fault-02", F, "C6", needs=NET, cost=5)
async def reset_before(t: Trial) -> None:
    """The connection is reset before the request arrives, once and three times."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        for method in METHODS:
            for times in (1, 3):
                fired = proxy.fired
                proxy.plan(Fault("reset_before"), times)
                await t.within(patience(t), attempts.one(method), f"C6: {method} ends")
                t.fault(proxy.fired > fired)
                proxy.clear()
        await attempts.again()
        t.evidence.numbers["outcomes"] = attempts.outcomes


@case("fault-03", F, "W1/W2", needs=NET, cost=8)
async def lost_answer(t: Trial) -> None:
    """The request is done and its answer lost: success, AlreadyExists with own bytes, or StoreUnavailable."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        for method in (*METHODS, "create", "create", "put"):
            for times in (1, 2):
                fired = proxy.fired
                proxy.plan(Fault("reset_after"), times)
                await t.within(patience(t), attempts.one(method), f"C6: {method} ends")
                t.fault(proxy.fired > fired)
                proxy.clear()
                t.round()
        await attempts.again()
        t.evidence.numbers["outcomes"] = attempts.outcomes


@case("fault-04", F, "S1/W2", Certainty.STOCHASTIC, needs=NET, timeout=180, cost=15)
async def lost_answers_in_a_race(t: Trial) -> None:
    """Answers get lost while 4 creators race for a key: at most one is told success, and its bytes are there;
    AlreadyExists means a readable value."""
    async with through_proxy(t) as (first, proxy):
        stores = [first, *(t.open(proxied(t, proxy)) for _ in range(3))]
        for i, store in enumerate(stores):
            await store.put(f"warm/{i}", b"x")
        won = lost = doubt = 0
        for n in range(t.rounds(25, 12)):
            # Which of the round's writes lose their answer: up to three, one of the first four at least.
            plan = {i for i in range(8) if t.rng.random() < 0.6}
            plan = set(sorted(plan)[:3]) if plan & {0, 1, 2, 3} else {0}
            writes = itertools.count()
            chosen = 0

            def chooser(request: Request, plan: set[int] = plan, writes: itertools.count[int] = writes) -> Fault | None:
                nonlocal chosen
                if request.writes and next(writes) in plan:
                    chosen += 1
                    return Fault("reset_after")
                return None

            proxy.always(chooser)
            results = await t.within(
                patience(t) + 20,
                asyncio.gather(
                    *(s.create(f"k/{n}", f"creator {i} of {n}".encode()) for i, s in enumerate(stores)),
                    return_exceptions=True,
                ),
                "C6: the creators end",
            )
            proxy.always(None)
            t.fault(chosen > 0)
            stored = await t.value(f"k/{n}")
            winners = [i for i, r in enumerate(results) if r is None]
            t.expect(len(winners) <= 1, "S1: at most one creator is told success", f"{winners} of round {n}")
            for i in winners:
                t.same(stored, f"creator {i} of {n}".encode(), "W2: success means that this call's bytes are stored")
            for r in results:
                t.expect(
                    r is None or isinstance(r, (AlreadyExists, StoreUnavailable)),
                    "AlreadyExists or StoreUnavailable",
                    repr(r),
                )
                if isinstance(r, AlreadyExists):
                    t.expect(stored is not None, "S1: AlreadyExists means a readable value", "absent")
            won += len(winners)
            lost += sum(isinstance(r, AlreadyExists) for r in results)
            doubt += sum(isinstance(r, StoreUnavailable) for r in results)
            t.round()
        t.evidence.numbers.update(told_success=won, told_exists=lost, told_unavailable=doubt)


@case("fault-05", F, "C6", needs=HTTP, timeout=180, cost=15)
async def statuses(t: Trial) -> None:
    """500, 502, 503, 504 and 429, once and twice: the call succeeds in the end, or raises StoreUnavailable."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        for status in (500, 502, 503, 504, 429):
            for method in METHODS:
                for times in (1, 2):
                    fired = proxy.fired
                    proxy.plan(Fault("status", status=status, headers=(("Retry-After", "0"),)), times)
                    await t.within(patience(t), attempts.one(method), f"C6: {method} ends after {status}")
                    t.fault(proxy.fired > fired)
                    proxy.clear()
        t.evidence.numbers["outcomes"] = attempts.outcomes
        await attempts.again()


@case("fault-06", F, "C6", needs=NET, timeout=180, cost=40)
async def for_ever(t: Trial) -> None:
    """A server that fails for ever: StoreUnavailable within retry_seconds + 10, and the store works once it is
    back."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        kind = "status" if proxy.http else "reset_before"
        proxy.always(lambda _: Fault(kind, status=503))
        limit = patience(t)
        calls = [asyncio.ensure_future(attempts.one(m)) for m in METHODS]
        start = time.monotonic()
        done, pending = await asyncio.wait(calls, timeout=limit)
        for call in pending:
            call.cancel()
        t.expect(
            not pending,
            f"C6: StoreUnavailable within retry_seconds + 10 = {limit:g} s",
            f"{len(pending)} calls had not ended",
        )
        for call in done:
            t.same(call.result(), "StoreUnavailable", "C6: the outcome of a call to a server that fails for ever")
        t.evidence.numbers["seconds"] = round(time.monotonic() - start, 1)
        t.fault(proxy.fired > 0)
        proxy.clear()
        await attempts.again()


@case("fault-07", F, "C6", needs=NET, timeout=240, cost=30)
async def then_working(t: Trial) -> None:
    """Failing 1, 2, 3, 4, 5 and 10 times, then working: never success without the bytes."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)

        async def one(times: int, method: str) -> None:
            fired = proxy.fired
            kinds = ["reset_before", "reset_after"] + (["status"] if proxy.http else [])
            for i in range(times):
                proxy.plan(Fault(kinds[(i + times) % len(kinds)], status=(503, 500)[i % 2]))
            await t.within(patience(t) + 10, attempts.one(method), f"C6: {method} ends")
            t.fault(proxy.fired > fired)
            proxy.clear()
            t.round()

        for times in (1, 2, 3, 4, 5, 10):
            for method in ("create", "put", "get", "delete") if times < 5 else ("create", "list"):
                await one(times, method)
        t.evidence.numbers["outcomes"] = attempts.outcomes
        await attempts.again()


@case("fault-08", F, "C2", needs=NET, cost=10)
async def slow_answers(t: Trial) -> None:
    """Answers that take 2 s are right, and other calls are not held up."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        for method in METHODS:
            fired = proxy.fired
            proxy.plan(Fault("delay", seconds=2.0))
            slow = asyncio.ensure_future(attempts.one(method))
            await asyncio.sleep(0.3)
            start = time.monotonic()
            await store.put(f"other/{method}", b"x")
            took = time.monotonic() - start
            name = await t.within(patience(t), slow, f"{method} ends")
            t.fault(proxy.fired > fired)
            t.expect(name == "done", f"C2: {method} with a slow answer works", name)
            t.expect(took < 1.5, "C2: other calls go on meanwhile", f"a put took {took:.2f} s")


@case("fault-09", F, "S2", needs=HTTP, cost=10)
async def cut_bodies(t: Trial) -> None:
    """The body of a get is cut at 0, 1, half and the last byte: an error or a retry, never a short value."""
    async with through_proxy(t) as (store, proxy):
        data = make_value("whole", 300_000)
        await t.store.put("k", data)

        async def download() -> bytes:
            return b"".join([bytes(c) async for c in store.download("k")])

        for cut in (0, 1, 0.5, -1):
            for times in (1, 3):
                for name, call, wanted in (
                    ("get", lambda: store.get("k"), data),
                    ("range", lambda: store.get("k", 1000, 200_000), data[1000:200_000]),
                    ("download", download, data),
                ):
                    fired = proxy.fired
                    proxy.plan(Fault("cut", cut=cut), times, lambda r: r.method == "GET")
                    try:
                        found = bytes(await t.within(patience(t), call(), f"{name} ends"))
                    except StoreUnavailable:
                        t.expect(True, "", "")
                    else:
                        t.expect(
                            found == wanted, f"S2: {name} is whole or an error", f"{len(found)} bytes of {len(wanted)}"
                        )
                    t.fault(proxy.fired > fired)
                    proxy.clear()
        t.same(await t.value("k", store), data, "afterwards")


@case("fault-10", F, "S5", needs=HTTP, cost=10)
async def broken_listings(t: Trial) -> None:
    """A page of a listing is cut or garbage: an error or a retry, never a short listing."""
    async with through_proxy(t) as (store, proxy):
        keys = [f"k/{i:04}" for i in range(1500)]
        results = await t.store.create_many([(k, b"x") for k in keys])
        t.expect(results == [None] * 1500, "keys created", "")
        for fault in (
            Fault("cut", cut=0), Fault("cut", cut=0.5), Fault("cut", cut=-1), Fault("garbage"),
            Fault("spell", status=200, body=b""), Fault("spell", status=200, body=b"<html>busy</html>"),
        ):  # fmt: skip
            for page in (0, 1):
                fired, count = proxy.fired, 0

                def match(request: Request, page: int = page) -> bool:
                    nonlocal count
                    count += 1
                    return count > page

                proxy.plan(fault, 1, match)
                try:
                    found = await t.within(patience(t), t.keys("k/", store), "list ends")
                except StoreError as error:
                    t.expect(not isinstance(error, NotFound), "S5: an error that says so", repr(error))
                else:
                    t.expect(
                        found == keys,
                        "S5: the listing is whole or an error",
                        f"{len(found)} of 1500 keys ({fault.kind})",
                    )
                if page == 0:
                    t.fault(proxy.fired > fired)
                proxy.clear()
        t.same(len(await t.keys("k/", store)), 1500, "afterwards")


@case("fault-11", F, "C6", needs=NET, timeout=240, cost=45)
async def silent(t: Trial) -> None:
    """A connection on which no answer ever comes: calls end by StoreUnavailable (or a retry elsewhere)."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        proxy.always(lambda _: Fault("stall"))
        limit = patience(t) + 60
        calls = [asyncio.ensure_future(attempts.one(m)) for m in ("create", "get", "list")]
        done, pending = await asyncio.wait(calls, timeout=limit)
        for call in pending:
            call.cancel()
        t.fault(proxy.fired > 0)
        t.expect(not pending, f"C6: calls end, at the latest after {limit:g} s", f"{len(pending)} had not")
        for call in done:
            t.expect(call.result() in ("StoreUnavailable", "AlreadyExists"), "StoreUnavailable", call.result())
        proxy.clear()
        await proxy.drop()
        await attempts.again()


CONFLICTS = [
    b"", b"<?xml version='1.0'?><Error><Code>ConditionalRequestConflict</Code><Message>conflict</Message></Error>",
    b"<?xml version='1.0'?><Error><Code>OperationAborted</Code></Error>",
    b'{"error": {"code": 409, "message": "conflict"}}',
]  # fmt: skip


@case("fault-12", F, "W3", needs=HTTP, timeout=120, cost=10)
async def empty_conflict(t: Trial) -> None:
    """409 with nothing stored is retried or StoreUnavailable, never AlreadyExists."""
    async with through_proxy(t) as (store, proxy):
        for n, body in enumerate(CONFLICTS):
            for times in (1, 2):
                fired = proxy.fired
                proxy.plan(Fault("status", status=409, body=body), times, lambda r: r.writes)
                key = f"k/{n}-{times}"
                try:
                    await t.within(patience(t), store.create(key, b"mine"), "create ends")
                except AlreadyExists:
                    t.fail(
                        "W3: a conflict that stored nothing is never AlreadyExists",
                        f"AlreadyExists, and get says {await t.value(key)!r}",
                    )
                except StoreUnavailable:
                    t.expect(await t.value(key) in (None, b"mine"), "absent or whole", "")
                else:
                    t.same(await t.value(key), b"mine", "W2: success means that the bytes are stored")
                t.fault(proxy.fired > fired)
                proxy.clear()


PRECONDITIONS = [
    b"", b"<?xml version='1.0'?><Error><Code>PreconditionFailed</Code><Condition>If-None-Match</Condition></Error>",
    b"<html>412</html>", b'{"error": {"code": 412}}', b"Precondition Failed",
]  # fmt: skip


@case("fault-13", F, "S1", needs=HTTP, cost=5)
async def precondition(t: Trial) -> None:
    """412, with and without body and in other spellings, for a key that exists, is AlreadyExists."""
    async with through_proxy(t) as (store, proxy):
        for n, body in enumerate(PRECONDITIONS):
            await t.store.create(f"k/{n}", b"theirs")
            fired = proxy.fired
            proxy.plan(Fault("spell", status=412, body=body), 1, lambda r: r.writes)
            try:
                await t.within(patience(t), store.create(f"k/{n}", b"mine"), "create ends")
                t.fail("S1: create of a present key raises AlreadyExists", "it returned")
            except (AlreadyExists, StoreUnavailable):
                t.same(await t.value(f"k/{n}"), b"theirs", "unchanged")
            t.fault(proxy.fired > fired)
            proxy.clear()


@case("fault-14", F, "A4", needs=HTTP, cost=8)
async def denied(t: Trial) -> None:
    """401 and 403 are PermissionDenied at once: not retried (counted), nothing changed."""
    async with through_proxy(t) as (store, proxy):
        attempts = Attempts(t, store)
        for status in (401, 403):
            for method in METHODS:
                fired, before = proxy.fired, proxy.requests
                proxy.always(lambda _, status=status: Fault("status", status=status))  # type: ignore[misc]
                name = await t.within(20, attempts.one(method, allow=(PermissionDenied,)), f"{method} ends at once")
                proxy.clear()
                t.fault(proxy.fired > fired)
                t.same(name, "PermissionDenied", f"A4: {method} and {status}")
                t.expect(proxy.requests - before <= 3, "it is not retried", f"{proxy.requests - before} requests")
        if t.subject.denied_url is not None:
            other = t.open(t.subject.denied_url)
            await t.refuses(t.within(30, other.get("k"), "ends"), PermissionDenied, "A4: denied_url")
        await attempts.again()


@case("fault-15", F, "A4")
async def missing_place(t: Trial) -> None:
    """A missing bucket or folder is a StoreError that says so, not NotFound (or the store makes it)."""
    url = t.subject.missing_url
    if url is None:
        root = t.subject.local_root(t.url)
        if root is None:
            from perdure.conformance.subject import Gap
            from perdure.conformance.trial import NotDeclared

            kind = "hook" if t.facts.uses_network else "capability"
            raise NotDeclared(Gap(kind, "missing_url", "the hook `missing_url` is not offered"))
        # A folder that can't be made: its parent is a file.
        await t.store.put("k", b"x")
        blocker = next(p for p in root.rglob("*") if p.is_file())
        relative = blocker.relative_to(root)
        url = t.subject.at(t.url, str(relative) + "/below")
        if t.subject.local_root(url) is None:
            t.cannot("local_root gives no folder for a sub-folder of the trial's URL")

    async def read() -> Any:
        return await t.open(url).get("k")

    async def write() -> None:
        await t.open(url).create("k", b"x")

    for what, call in (("get", read), ("create", write)):
        error = await t.refuses(t.within(40, call(), "ends"), StoreError, f"A4: {what} in a missing place")
        if what == "create" or t.subject.missing_url is not None:
            t.expect(not isinstance(error, (NotFound, AlreadyExists)), f"{what}: not NotFound", repr(error))
        t.expect(len(str(error)) > 20, "the message says what is wrong", str(error))


# --- disks -----------------------------------------------------------------------------------------------


async def serve_faulty(c: ChildContext, url: str) -> None:
    """Answer ``(operation, key, data)`` with the outcome, until None."""
    tracer.allow_tracing()
    store = c.open(url)
    for i in range(3):
        await store.put(f"warm/{i}", b"x")
        await store.get(f"warm/{i}")
    await c.send("ready")
    while (word := await c.receive()) is not None:
        operation, key, data = word
        try:
            if operation in ("get", "stat", "delete"):
                result: Any = await getattr(store, operation)(key)
                result = bytes(result) if operation == "get" else result
            elif operation == "list":
                result = [k async for k, _ in store.list(key)]
            elif operation == "limit":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
                resource.setrlimit(resource.RLIMIT_FSIZE, (data if data else hard, hard))
                result = None
            elif operation == "upload":

                async def chunks(data: bytes = data) -> Any:
                    yield data[: len(data) // 2]
                    yield data[len(data) // 2 :]

                await store.upload(key, chunks())
                result = None
            else:
                result = await getattr(store, operation)(key, data)
            answer: tuple[str, Any] = ("ok", result)
        except Exception as error:
            answer = ("error", portable(error))
        await c.send(answer)


async def told(child: Any, operation: str, key: str, data: Any = None, seconds: float = 60) -> tuple[str, Any]:
    async with asyncio.timeout(seconds):
        await child.send((operation, key, data))
        return await child.message()  # type: ignore[no-any-return]


def judge_write(
    t: Trial, operation: str, answer: tuple[str, Any], stored: bytes | None, old: bytes | None, new: bytes, what: str
) -> None:
    kind, value = answer
    if kind == "ok":
        t.expect(stored == new, f"W1: {operation} returned ({what}), so the bytes are stored", brief(stored))
    elif isinstance(value, StoreUnavailable):
        t.expect(stored in (old, new), f"W1: old or new, whole ({what})", brief(stored))
    elif isinstance(value, StoreError) and not isinstance(value, (NotFound, AlreadyExists)):
        t.expect(
            stored == old, f"W1: a StoreError of {operation} ({what}) means: not done", f"{brief(stored)} after {value}"
        )
    else:
        t.fail(f"A4: StoreError or StoreUnavailable from {operation} ({what})", repr(value))


DISK_CALLS = (
    "write",
    "pwrite64",
    "writev",
    "fsync",
    "fdatasync",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "openat",
    "mkdir",
    "mkdirat",
)


@case(
    "fault-16", F, "W1", Certainty.EXHAUSTIVE, needs=["multi_process", "local_root"], alone=True, timeout=240, cost=25
)
async def full_disk(t: Trial) -> None:
    """ENOSPC, EFBIG and EIO at each write, sync, link and rename, once and always: a StoreError with the old
    state, or StoreUnavailable with old or new, whole; and the store works afterwards."""
    old, new = make_value("old", 4000), make_value("new", 30_000)
    n = 0
    async with t.child() as child:
        await child.start(serve_faulty, t.url)
        assert await child.message() == "ready"
        # A file size limit needs no tracer.
        for operation in ("create", "put", "upload"):
            key = f"{operation}/limit/k"
            if operation != "create":
                await t.store.put(key, old)
            await told(child, "limit", "", 10_000)
            answer = await told(child, operation, key, new, patience(t))
            await told(child, "limit", "", 0)
            t.fault(answer[0] == "error")
            judge_write(t, operation, answer, await t.value(key), None if operation == "create" else old, new, "EFBIG")
            answer = await told(child, operation, key, new)
            t.expect(answer[0] == "ok", f"{operation} works after the limit is gone", answer[1])
        if tracer.strace_path() is None:
            t.cannot("injecting ENOSPC and EIO needs strace; install it (apt install strace)")
        for operation in ("create", "put", "upload"):
            used = await calls_of(t, child, operation, new)
            for name in (c for c in DISK_CALLS if c in used):
                for error in ("ENOSPC", "EIO"):
                    if name == "openat" and error == "EIO":
                        continue
                    for when in [*(str(i + 1) for i in range(min(3, used[name]))), "1+"]:
                        n += 1
                        key = f"{operation}/{n}/k"
                        before = None if operation == "create" else old
                        if before is not None:
                            await t.store.put(key, before)
                        trace = await tracer.attach(child, inject=f"{name}:error={error}:when={when}")
                        try:
                            answer = await told(child, operation, key, new, patience(t))
                        except TimeoutError:
                            t.fail(f"C6: {operation} ends within retry_seconds + 10", f"not with {error} at {name}")
                        lines = await trace.detach()
                        if not any("(INJECTED)" in x for x in lines):
                            t.note(f"{name} number {when} did not come in {operation}")
                            continue
                        t.fault(True)
                        what = f"{error} at {name} {when}"
                        judge_write(t, operation, answer, await t.value(key), before, new, what)
                        listed = [
                            k
                            for k in await t.keys()
                            if not k.startswith(("create/", "put/", "upload/", "warm/", "used/"))
                        ]
                        t.same(listed, [], "nothing else is listed")
                        answer = await told(child, "put", key, b"afterwards")
                        t.expect(answer[0] == "ok", f"works after {what}", answer[1])
                        t.same(await t.value(key), b"afterwards", "works afterwards")
                        t.round()
        await child.send(None)
        await child.result()


async def calls_of(t: Trial, child: Any, operation: str, data: bytes) -> dict[str, int]:
    """Which of the disk's calls an operation makes, and how often."""
    trace = await tracer.attach(child)
    await told(child, operation, f"used/{operation}/k", data)
    counts: dict[str, int] = {}
    for line in await trace.detach():
        match = tracer.LINE.match(line)
        if match and match.group(2) in DISK_CALLS and " resumed>" not in line:
            counts[match.group(2)] = counts.get(match.group(2), 0) + 1
    return counts


@case("fault-17", F, "A4", Certainty.EXHAUSTIVE, needs=["multi_process", "local_root"], alone=True, timeout=120, cost=8)
async def unreadable(t: Trial) -> None:
    """EIO and EACCES while reading: never b"", never NotFound, never a short listing."""
    if tracer.strace_path() is None:
        t.cannot("injecting EIO and EACCES needs strace; install it (apt install strace)")
    data = make_value("k", 9000)
    await t.store.put("d/k", data)
    await t.store.put("d/e/k2", b"x")
    async with t.child() as child:
        await child.start(serve_faulty, t.url)
        assert await child.message() == "ready"
        for operation, key in (("get", "d/k"), ("list", "d/"), ("stat", "d/k")):
            for name in ("openat", "open", "read", "pread64", "getdents64", "newfstatat", "statx", "fstat", "mmap"):
                for error in ("EIO", "EACCES") if name in ("openat", "open", "newfstatat", "statx") else ("EIO",):
                    trace = await tracer.attach(child, inject=f"{name}:error={error}:when=1+")
                    try:
                        kind, value = await told(child, operation, key, None, patience(t))
                    except TimeoutError:
                        t.fail(f"C6: {operation} ends", f"not with {error} at {name}")
                    lines = await trace.detach()
                    if not any("(INJECTED)" in x for x in lines):
                        continue
                    t.fault(True)
                    what = f"{error} at {name} in {operation}"
                    if kind == "ok":
                        right = {"get": data, "stat": len(data), "list": ["d/e/k2", "d/k"]}[operation]
                        t.expect(value == right, f"A4: {what}: the right answer or an error", brief(value))
                    else:
                        t.expect(
                            isinstance(value, StoreError) and not isinstance(value, (NotFound, AlreadyExists)),
                            f"A4: {what} is a StoreError, not NotFound", repr(value),
                        )  # fmt: skip
                    t.round()
        kind, value = await told(child, "get", "d/k")
        t.expect(kind == "ok" and value == data, "works afterwards", value)
        await child.send(None)
        await child.result()
    if not t.evidence.faults_fired:
        t.cannot("none of the reading calls came")


async def without_descriptors(c: ChildContext, url: str) -> dict[str, Any]:
    """Use up all descriptors, call, give them back, call again."""
    store = c.open(url)
    await store.put("k", b"old")
    await store.get("k")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    used = len(os.listdir("/proc/self/fd"))
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 8, hard))
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open("/dev/null", os.O_RDONLY))
    out: dict[str, Any] = {"taken": len(taken), "wrong": []}
    fresh = c.open(url)
    for name, call in (
        ("put", lambda: store.put("k", b"new")), ("create", lambda: store.create("c", b"new")),
        ("get", lambda: store.get("k")), ("fresh get", lambda: fresh.get("k")),
        ("fresh put", lambda: fresh.put("f", b"new")),
    ):  # fmt: skip
        try:
            async with asyncio.timeout(store.capabilities.retry_seconds + 10):
                result = await call()
            if name.endswith("get") and bytes(result or b"") not in (b"old", b"new"):
                out["wrong"].append(f"{name} gave {result!r}")
        except StoreUnavailable:
            out["unavailable"] = out.get("unavailable", 0) + 1
        except TimeoutError:
            out["wrong"].append(f"{name} hung")
        except Exception as error:
            out["wrong"].append(f"{name}: {type(error).__name__}: {error}")
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    await store.put("k", b"after")
    out["after"] = bytes(await store.get("k"))
    await fresh.put("f", b"after")
    out["fresh"] = bytes(await fresh.get("f"))
    return out


@case("fault-18", F, "C6", needs=["multi_process"], timeout=240, cost=5)
async def no_descriptors(t: Trial) -> None:
    """With all descriptors used up calls work or raise StoreUnavailable, and work again afterwards."""
    async with t.child() as child:
        seen = await t.within(220, child.call(without_descriptors, t.url), "the calls end")
    t.fault(seen["taken"] > 0)
    t.expect(not seen["wrong"], "C6: the call works, or StoreUnavailable", seen["wrong"])
    t.same(seen["after"], b"after", "works afterwards")
    t.same(seen["fresh"], b"after", "a new instance works afterwards")


@case(
    "fault-19",
    F,
    "C6",
    Certainty.STOCHASTIC,
    needs=["network", "unmanaged", "restart"],
    alone=True,
    timeout=180,
    cost=15,
)
async def restarted(t: Trial) -> None:
    """The server restarts in the middle of 200 mixed calls: the same instance works again within 10 s."""
    store = t.open()
    wrong: list[str] = []
    told_ok: dict[str, bytes] = {}

    async def one(i: int) -> None:
        key, value = f"k/{i:03}", f"{i}".encode()
        await asyncio.sleep(0.005 * (i % 100))
        try:
            await store.create(key, value)
            told_ok[key] = value
            if bytes(await store.get(key)) != value:
                wrong.append(key)
        except AlreadyExists:
            told_ok[key] = value
        except StoreUnavailable:
            pass
        except StoreError as error:
            wrong.append(repr(error))

    calls = [asyncio.ensure_future(one(i)) for i in range(200)]
    await asyncio.sleep(0.1)
    running = sum(not c.done() for c in calls)
    await asyncio.to_thread(t.subject.restart)  # type: ignore[attr-defined]
    back = time.monotonic()
    while True:
        try:
            async with asyncio.timeout(10):
                await store.put("back", b"x")
            break
        except (StoreUnavailable, TimeoutError) as error:
            t.expect(time.monotonic() - back < 10, "C6: works again within 10 s after the restart", repr(error))
    await t.within(patience(t) + 20, asyncio.gather(*calls), "C6: every call ends")
    t.fault(running > 0)
    t.expect(not wrong, "no wrong answer", wrong[:3])
    if t.capabilities.durability in ("server", "power"):
        for key, value in told_ok.items():
            t.same(await t.value(key), value, "S3: acknowledged before, during or after the restart")


# --- cancellation and models under faults ------------------------------------------------------------------


@case("cancel-03", F, "C1", needs=NET, cost=4)
async def cancelled_while_stalled(t: Trial) -> None:
    """A call cancelled while the server does not answer ends within 1 s; the instance stays usable."""
    async with through_proxy(t) as (store, proxy):
        await t.store.put("k", b"x")
        for name, call in (
            ("create", lambda: store.create("c", b"x")), ("put", lambda: store.put("p", b"x")),
            ("get", lambda: store.get("k")), ("list", lambda: t.keys("", store)), ("delete", lambda: store.delete("d")),
        ):  # fmt: skip
            fired = proxy.fired
            proxy.always(lambda _: Fault("stall"))
            outcome = await cancelled_after(t, call(), 0.5, name)
            t.expect(outcome == "cancelled", f"C1: a stalled {name} is cancelled", outcome)
            t.fault(proxy.fired > fired)
            proxy.clear()
            await proxy.drop()
        await Attempts(t, store).again()


@case("model-03", F, "A1", Certainty.STOCHASTIC, needs=NET, timeout=300, cost=40)
async def model_under_faults(t: Trial) -> None:
    """Random programs through random faults (resets before and after, delays, and over HTTP 500, 503, 429)
    agree with a dict whose unknown outcomes branch."""
    async with through_proxy(t) as (store, proxy):
        programs, length = t.rounds(12, 6), 40
        for n in range(programs):
            model = Model(t, f"e{n}/", doubt=True)
            kinds = ["reset_before", "reset_after", "delay"] + (["status"] if proxy.http else [])

            def chooser(_: Request, kinds: list[str] = kinds) -> Fault | None:
                if t.rng.random() < 0.12:
                    return Fault(t.rng.choice(kinds), status=t.rng.choice((500, 503, 429)), seconds=0.05)
                return None

            for _ in range(length):
                proxy.always(chooser)
                async with asyncio.timeout(patience(t) + 20):
                    await model.step(store, *random_step(t.rng))
                t.round()
            proxy.always(None)
            await model.check_all(t.store)
        t.evidence.faults_planned += proxy.fired
        t.evidence.faults_fired += proxy.fired
        if not proxy.fired:
            t.cannot("no fault fired")
