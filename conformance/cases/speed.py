"""Numbers only: these cases can't fail a store for being slow, only for giving wrong answers."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from perdure.conformance import resources
from perdure.conformance.cases.list import fill
from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial

B, F = Level.BASE, Level.FULL
MIB = 2**20


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


@case("speed-01", B, "-", Certainty.STOCHASTIC, alone=True, measures=True, cost=2)
async def calls(t: Trial) -> None:
    """Median and 99th percentile of create, get, stat, list and delete, one and 32 at once."""
    count = t.rounds(200, 40)
    for at_once in (1, 32):
        for method in ("create", "get", "stat", "list", "delete"):
            times: list[float] = []

            async def one(i: int, method: str = method, times: list[float] = times, at_once: int = at_once) -> None:
                key = f"{at_once}/{i:04}"
                start = time.perf_counter()
                if method == "create":
                    await t.store.create(key, b"x" * 200)
                elif method == "list":
                    await t.keys(key, limit=1)
                else:
                    await getattr(t.store, method)(key)
                times.append(time.perf_counter() - start)

            begin = time.perf_counter()
            for start in range(0, count, at_once):
                await asyncio.gather(*(one(i) for i in range(start, min(start + at_once, count))))
            total = time.perf_counter() - begin
            t.evidence.numbers[f"{method} x{at_once}"] = {
                "p50_ms": round(statistics.median(times) * 1000, 3),
                "p99_ms": round(percentile(times, 0.99) * 1000, 3),
                "per_s": round(count / total),
            }
            t.expect(len(times) == count, "all calls end", len(times))
            t.round()


async def large(c: ChildContext, url: str, size: int) -> dict[str, float]:
    store = c.open(url)
    await store.put("warm", b"x")

    async def chunks() -> Any:
        for i in range(size // MIB):
            yield bytes([i]) * MIB

    resources.reset_peak()
    idle, begin = resources.memory(), time.perf_counter()
    await store.upload("large", chunks())
    up = time.perf_counter() - begin
    begin, length = time.perf_counter(), 0
    async for chunk in store.download("large"):
        length += len(chunk)
    down = time.perf_counter() - begin
    return {"up": up, "down": down, "length": length, "memory": resources.peak() - idle}


@case("speed-02", F, "-", needs=["multi_process"], alone=True, measures=True, cost=2)
async def streams(t: Trial) -> None:
    """64 MiB (or the largest value) up and down: MB/s, and the most memory over idle."""
    size = min(64 * MIB, t.capabilities.max_value_bytes or 64 * MIB)
    async with t.child() as child:
        seen = await child.call(large, t.url, size)
    t.same(seen["length"], size, "bytes downloaded")
    t.evidence.numbers.update(
        up_MB_s=round(size / 1e6 / seen["up"]),
        down_MB_s=round(size / 1e6 / seen["down"]),
        memory_MiB=round(seen["memory"] / MIB, 1),
    )


@case("speed-03", F, "-", needs=["network", "upstream", "proxied_url"], measures=True)
async def traffic(t: Trial) -> None:
    """Requests and bytes of each call, counted by the proxy."""
    from perdure.conformance.cases.fault import through_proxy

    async with through_proxy(t) as (store, proxy):
        await store.put("warm", b"x")
        for name, call in (
            ("create", lambda: store.create("k", bytes(1000))), ("put", lambda: store.put("k", bytes(1000))),
            ("get", lambda: store.get("k")), ("stat", lambda: store.stat("k")), ("list", lambda: t.keys("", store)),
            ("delete", lambda: store.delete("k")),
        ):  # fmt: skip
            before = proxy.requests, proxy.bytes_up, proxy.bytes_down
            await call()
            after = proxy.requests, proxy.bytes_up, proxy.bytes_down
            requests, up, down = (b - a for a, b in zip(before, after, strict=True))
            t.evidence.numbers[name] = {"requests": requests, "bytes_up": up, "bytes_down": down}
            t.expect(requests >= 1, f"{name} was seen by the proxy", requests)


@case("speed-04", F, "-", measures=True, alone=True, timeout=180, cost=8)
async def many_keys(t: Trial) -> None:
    """Create, list and delete_prefix of 10,000 keys: keys per second."""
    keys = [f"k/{i:05}" for i in range(10_000)]
    begin = time.perf_counter()
    await fill(t, keys)
    created = time.perf_counter() - begin
    begin = time.perf_counter()
    found = await t.keys("k/")
    listed = time.perf_counter() - begin
    t.expect(found == keys, "all keys are listed", len(found))
    begin = time.perf_counter()
    count = await t.store.delete_prefix("k/")
    deleted = time.perf_counter() - begin
    t.expect(count == 10_000, "all are deleted", count)
    t.evidence.numbers.update(
        create_per_s=round(10_000 / created), list_per_s=round(10_000 / listed), delete_per_s=round(10_000 / deleted)
    )
