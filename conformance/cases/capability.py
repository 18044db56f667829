"""Declared capabilities against what was shown (A5)."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import threading
import time
from typing import Any

from perdure.conformance import names, resources
from perdure.conformance.cases.create import race_for_keys
from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.errors import AlreadyExists, NotFound, PluginError, StoreError

B, F = Level.BASE, Level.FULL
MIB = 2**20

FIELDS: dict[str, tuple[type, ...]] = {
    "durability": (str,), "multi_process": (bool,), "multi_host": (bool,), "max_value_bytes": (int,),
    "max_create_bytes": (int,), "max_key_bytes": (int,), "key_under_key": (bool,), "managed": (bool,),
    "latency": (str,), "retry_seconds": (int, float),
}  # fmt: skip
CHOICES = {"durability": ("memory", "process", "server", "power"), "latency": ("local", "lan", "wan")}
LATENCY = {"local": 0.005, "lan": 0.05, "wan": 10.0}


@case("cap-01", B, "A5")
async def typed(t: Trial) -> None:
    """capabilities are typed, complete, constant, without I/O, and reach the minimum of BASE."""
    store = t.open()
    first = store.capabilities
    for name, kinds in FIELDS.items():
        value = getattr(first, name, None)
        t.expect(type(value) in kinds, f"{name} is {' or '.join(k.__name__ for k in kinds)}", repr(value))
        if name in CHOICES:
            t.expect(value in CHOICES[name], f"{name} is one of {CHOICES[name]}", value)
    t.expect(first.max_create_bytes >= 8 * MIB, "max_create_bytes is at least 8 MiB", first.max_create_bytes)
    t.expect(first.max_key_bytes >= 512, "max_key_bytes is at least 512", first.max_key_bytes)
    t.expect(first.max_value_bytes >= first.max_create_bytes, "max_value_bytes is the larger limit", first)
    t.expect(first.multi_process or not first.multi_host, "multi_host implies multi_process", first)
    opened: list[str] = []
    watching = True

    def hook(event: str, args: Any) -> None:
        if watching and event.partition(".")[0] in ("open", "os", "socket", "subprocess", "sqlite3"):
            opened.append(event)

    me = threading.get_ident()
    sys.addaudithook(lambda event, args: hook(event, args) if threading.get_ident() == me else None)
    fresh = t.subject.open(t.url)
    opened.clear()
    for _ in range(100):
        again, url = fresh.capabilities, fresh.url
    watching = False
    t.expect(not opened, "capabilities and url do no I/O", opened[:3])
    await fresh.aclose()
    await store.put("k", b"x")
    for one in (again, store.capabilities, t.open().capabilities):
        t.expect(one == first, "capabilities are constant", one)
    t.expect(isinstance(url, str) and url == store.url, "url is a constant str", url)
    await store.aclose()
    t.expect(store.capabilities == first, "capabilities are readable after aclose", "")


@case("cap-02", B, "A6")
async def reopened(t: Trial) -> None:
    """open_store(store.url) is the same store; an unknown option is refused by its name."""
    await t.store.create("k", b"x")
    again = t.open(t.store.url)
    t.same(again.url, t.store.url, "url of the store opened by url")
    t.same(await t.value("k", again), b"x", "its value")
    await again.create("other", b"y")
    t.same(await t.keys(), ["k", "other"], "keys")
    if "://" not in t.url:
        t.note("the subject's places are not URLs: options can't be tried")
        return
    url = f"{t.url}{'&' if '?' in t.url else '?'}no_such_option=1"
    try:
        wrong = t.open(url)
        await wrong.get("k")
    except (ValueError, StoreError, PluginError) as error:
        t.expect("no_such_option" in str(error), "the error names the unknown option", str(error))
    else:
        t.fail("an unknown option is refused", "the store opened and read")


@case("cap-03", B, "A5", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=2)
async def multi_process(t: Trial) -> None:
    """multi_process=True is true: processes see each other's writes, and one of 6 creators wins."""
    await t.store.create("seen", b"x")
    async with t.child() as child:
        t.same(await child.call(_value, t.url, "seen"), b"x", "another process reads the write")
    await race_for_keys(t, processes=6, tasks=2, rounds=t.rounds(25, 12), folder="claim")


async def _value(c: ChildContext, url: str, key: str) -> bytes | None:
    try:
        return bytes(await c.open(url).get(key))
    except NotFound:
        return None


REMOTE = """
import asyncio, sys
from perdure.store import open_store
from perdure.errors import AlreadyExists, NotFound
async def main():
    url, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    store = open_store(url)
    await store.put("remote-ready", b"x")
    while True:
        try:
            await store.get("go")
            break
        except NotFound:
            await asyncio.sleep(0.005)
    won = []
    for n in range(count):
        try:
            await store.create(f"r/{n}", first.encode())
            won.append(n)
        except AlreadyExists:
            pass
    print("WON", *won)
    await store.aclose()
asyncio.run(main())
"""


@case("cap-04", F, "A5", Certainty.STOCHASTIC, needs=["multi_host", "remote_command"], alone=True, timeout=120, cost=5)
async def multi_host(t: Trial) -> None:
    """multi_host=True is true: a Python on another host (`remote_command`) races for the same keys."""
    command = t.subject.remote_command
    assert command is not None
    count = 200
    remote = await asyncio.create_subprocess_exec(
        *command, "-c", getattr(t.subject, "remote_code", REMOTE), t.url, "remote", str(count),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    mine: list[int] = []
    end = time.monotonic() + 60
    while await t.value("remote-ready") is None and remote.returncode is None and time.monotonic() < end:
        await asyncio.sleep(0.02)
    await t.store.put("go", b"x")
    for n in range(count):
        try:
            await t.store.create(f"r/{n}", b"here")
            mine.append(n)
        except AlreadyExists:
            await asyncio.sleep(0.001 * (n % 3))  # let the other get ahead now and then
    out, err = await t.within(90, remote.communicate(), "the remote racer ends")
    if remote.returncode != 0:
        t.cannot(f"remote_command failed ({remote.returncode}): {err.decode(errors='replace')[-500:]}")
    theirs = [int(x) for x in out.decode().split("WON", 1)[1].split()]
    t.evidence.rounds = count
    t.expect(not set(mine) & set(theirs), "S1: no key was won on two hosts", sorted(set(mine) & set(theirs))[:5])
    t.same(sorted(mine + theirs), list(range(count)), "keys won")
    for n in range(count):
        t.same(await t.value(f"r/{n}"), b"here" if n in mine else b"remote", "the winner's bytes")


async def acknowledged(c: ChildContext, url: str, folder: str) -> None:
    """Write until killed; say so after each write has returned."""
    store = c.open(url)
    for n in range(10_000):
        await store.create(f"{folder}/{n:05}", f"{folder} {n}".encode() * 50)
        await c.send(n)


@case("cap-05", F, "A5", needs=["multi_process", "durable"], cost=2)
async def durability(t: Trial) -> None:
    """The declared durability holds: acknowledged writes survive SIGKILL of the client, and of the server where
    more is declared and `kill` is offered; `power` is shown by crash-08 to -10."""
    for folder in ("a", "b", "c"):
        async with t.child() as child:
            await child.start(acknowledged, t.url, folder)
            last = -1
            while last < 20:
                last = await child.message()
            await child.kill()
        for n in range(last + 1):
            found = await t.value(f"{folder}/{n:05}")
            t.expect(
                found == f"{folder} {n}".encode() * 50,
                "S3: an acknowledged write survives SIGKILL",
                f"{folder}/{n:05}: {found!r}",
            )
    if t.capabilities.durability in ("server", "power") and t.subject.has("kill"):
        before = await t.items()
        await asyncio.to_thread(t.subject.kill)  # type: ignore[attr-defined]
        store = t.open()
        t.same(await t.items("", store), before, "S3: keys after the server was killed and restarted")


@case("cap-06", F, "A5")
async def limits(t: Trial) -> None:
    """The declared limits are sensible and hold: key length (FULL: at least 1,000 less the URL's prefix)."""
    declared = t.store.capabilities  # of this very prefix
    prefix = len(t.url.partition("://")[2].encode())
    t.expect(
        declared.max_key_bytes >= 1000 - prefix,
        "max_key_bytes is at least 1,000 less the prefix",
        declared.max_key_bytes,
    )
    for size in {declared.max_key_bytes, min(declared.max_key_bytes, 600), 512}:
        key = names.with_length(size)
        await t.store.create(key, b"x")
        t.same(await t.value(key), b"x", f"key of {size} bytes")
        t.same(await t.keys(key, limit=1), [key], "listed")
    await t.refuses(t.store.create(names.with_length(declared.max_key_bytes + 1), b"x"), ValueError, "one byte more")
    t.expect(
        0 <= declared.retry_seconds <= 3600, "retry_seconds is a sensible number of seconds", declared.retry_seconds
    )
    size = min(declared.max_create_bytes, 16 * MIB)
    await t.store.create("value", bytes(size))
    t.same(await t.size("value"), size, "value near max_create_bytes (at most 16 MiB tried)")


@case("cap-07", F, "A5", Certainty.STOCHASTIC, alone=True)
async def latency(t: Trial) -> None:
    """The latency class is right: the median of a small get is not over 10 times the declared class."""
    await t.store.put("k", b"x" * 100)
    times = []
    for _ in range(30):
        start = time.perf_counter()
        await t.store.get("k")
        times.append(time.perf_counter() - start)
        t.round()
    median = statistics.median(times)
    t.evidence.numbers["median_ms"] = round(median * 1000, 3)
    allowed = LATENCY[t.capabilities.latency]
    t.expect(median <= 10 * allowed, f"a small get takes about {allowed * 1000:g} ms", f"{median * 1000:.1f} ms")
    if median > allowed:
        t.note(f"slower than declared: {median * 1000:.1f} ms, class {t.capabilities.latency!r}")
    for slower in ("lan", "wan"):
        if t.capabilities.latency == slower and median < LATENCY[slower] / 100:
            t.note(f"faster than declared: {median * 1000:.2f} ms")


@case("cap-08", B, "S1")
async def probe(t: Trial) -> None:
    """The start-up probe of the core (create one key twice) agrees with S1: the second is refused."""
    for n in range(3):
        key = f"probe/{n}"
        await t.store.create(key, b"first")
        for store in (t.store, t.open()):
            await t.refuses(store.create(key, b"second"), AlreadyExists, "S1: the second create of the probe's key")
        t.same(await t.value(key), b"first", "the probe's value")
        await t.store.delete(key)


async def idle(c: ChildContext, url: str, seconds: float) -> dict[str, Any]:
    store = c.open(url)
    await store.put("k", b"x")
    await store.get("k")
    await asyncio.sleep(0.2)
    before = os.times()
    fds = resources.descriptors()
    await asyncio.sleep(seconds)
    after = os.times()
    return {
        "cpu": after.user + after.system - before.user - before.system,
        "descriptors": resources.descriptors() - fds,
        "value": bytes(await store.get("k")),
    }


@case("cap-09", F, "C5", needs=["multi_process"], cost=3)
async def idles(t: Trial) -> None:
    """An idle instance makes no request and uses no CPU for 3 s, and works afterwards."""
    if t.subject.has("upstream") and t.subject.has("proxied_url"):
        from perdure.conformance.cases.fault import through_proxy

        async with through_proxy(t) as (store, proxy):
            await store.put("k", b"x")
            await asyncio.sleep(0.3)
            before = proxy.requests
            await asyncio.sleep(3)
            t.expect(proxy.requests == before, "no request in 3 s", proxy.requests - before)
    async with t.child() as child:
        seen = await child.call(idle, t.url, 3.0)
    t.expect(seen["cpu"] <= 0.06, "at most 2 % of a CPU in 3 s", f"{seen['cpu']:.3f} s")
    t.expect(seen["descriptors"] <= 0, "no new descriptor", seen)
    t.same(seen["value"], b"x", "the value after the pause")
