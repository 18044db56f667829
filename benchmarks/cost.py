"""What durability costs: requests, bytes and dollars per task by store, and what a slow network adds.

    python benchmarks/cost.py                      everything → docs/results/cost.md
    python benchmarks/cost.py --only s3 --rounds 1 --no-write

Each store's server runs here, behind a proxy that counts what passes and can hold back each answer for 30 ms. The
cluster is a process of its own, the driver too. Nothing is estimated but the price: counted requests times list price.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import servers  # noqa: E402
from support.clusters import Console, Head  # noqa: E402

from perdure.conformance.proxy import Fault, FaultProxy, Request  # noqa: E402

DELAY = 0.03
IDLE_SECONDS = 20.0

# List prices in November 2026, dollars per request: S3 Standard in us-east-1 (aws.amazon.com/s3/pricing: $0.005 per
# 1,000 PUT or LIST, $0.0004 per 1,000 GET), GCS Standard in a single region (cloud.google.com/storage/pricing-examples:
# $0.005 per 1,000 class A, $0.0004 per 1,000 class B). Not looked up by this script. Deletes are free in both; so is
# traffic within the region.
PRICES = {
    "s3": {"write": 5e-6, "list": 5e-6, "read": 0.4e-6, "delete": 0.0},
    "gs": {"write": 5e-6, "list": 5e-6, "read": 0.4e-6, "delete": 0.0},
}
STORES: dict[str, tuple[str, Callable[[], servers.Server]]] = {
    "s3": ("S3 (ministack)", lambda: servers.Ministack()),
    "gs": ("GCS (fake-gcs-server)", lambda: servers.FakeGcs()),
    "redis": ("Redis (appendfsync always)", lambda: servers.Redis()),
}
EXTRA_SECONDS = {"fan-out 1,000": 2.0, "300 workflows x 2": 3.0}
RESUME_REQUESTS = 20
RESUME = "resume of 10,000 finished"
ENVIRONMENT: dict[str, str | None] = {"PERDURE_TRUST": "all"}

CODE = """
import concurrent.futures, os, time
import ray
from perdure import workflow

@ray.remote
def inc(x):
    return x + 1

@ray.remote
def total(*values):
    return sum(values)

@ray.remote(max_retries=0)
def last(count, flag):
    if not os.path.exists(flag):
        raise RuntimeError("not yet")
    return count

def fan_out(n=1000):
    assert workflow.run(total.bind(*[inc.bind(i) for i in range(n)])) == n * (n + 1) // 2

def chain(n=200):
    node = inc.bind(0)
    for _ in range(n - 1):
        node = inc.bind(node)
    assert workflow.run(node) == n

def many(n=300, threads=64):
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        refs = list(pool.map(lambda i: workflow.run_async(inc.bind(inc.bind(i))), range(n)))
    assert ray.get(refs) == [i + 2 for i in range(n)]

def build(flag, n=10_000):
    try:
        workflow.run(last.bind(total.bind(*[inc.bind(i) for i in range(n)]), flag), workflow_id="finished")
    except workflow.WorkflowExecutionError:
        pass

began = time.perf_counter()
{call}
out = time.perf_counter() - began
"""
IN_TURN = "300 workflows x 2, one thread"
CALLS = {
    "fan-out 1,000": "fan_out()",
    "chain 200": "chain()",
    "300 workflows x 2": "many()",
    IN_TURN: "many(threads=1)",
}

TASKS = {
    "fan-out 1,000": 1001,
    "chain 200": 200,
    "300 workflows x 2": 600,
    IN_TURN: 600,
    RESUME: 10_000,
}


@dataclass
class Count:
    """What passed in a stretch of time. Binary protocols have one kind of request: a round trip."""

    seconds: float = 0.0
    requests: Counter[str] = field(default_factory=Counter)
    up: int = 0
    down: int = 0

    @property
    def total(self) -> int:
        return sum(self.requests.values())

    def dollars(self, kind: str) -> float:
        return sum(PRICES[kind][name] * number for name, number in self.requests.items())


class Meter:
    """Counts requests by kind at a proxy, and holds answers back by ``delay`` seconds."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.delay = 0.0
        self.requests: Counter[str] = Counter()
        proxy.always(self._see)

    def _see(self, request: Request) -> Fault | None:
        self.requests[_kind(request)] += 1
        return Fault("delay", seconds=self.delay) if self.delay else None

    def around(self, call: Callable[[], float]) -> Count:
        """``call`` gives its own seconds."""
        before, up, down = Counter(self.requests), self.proxy.bytes_up, self.proxy.bytes_down
        seconds = call()
        return Count(seconds, self.requests - before, self.proxy.bytes_up - up, self.proxy.bytes_down - down)


def _kind(request: Request) -> str:
    path, _, query = request.target.partition("?")
    if request.method == "TCP":
        return "round trip"
    if request.method == "DELETE" or (request.method == "POST" and query == "delete"):
        return "delete"
    if request.method in ("PUT", "POST"):
        return "write"
    listing = "list-type=2" in query or (path.endswith("/o") and "/storage/v1/b/" in path)
    return "list" if listing else "read"


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Counts of one store: ``idle``, and for each shape those without and with the delay.

    Each delay has a server of its own: the stand-ins for S3 and GCS search the whole bucket at each list, so that they
    get slower with every workflow that they hold.
    """
    found: dict[str, Any] = {}
    for delay in (0.0, DELAY):
        server = STORES[name][1]().start()
        proxy = FaultProxy(("127.0.0.1", server.port))
        try:
            asyncio.run(proxy.__aenter__())
            meter = Meter(proxy)
            url = server.url("cost").replace(f":{server.port}", f":{proxy.address[1]}")
            with Head(env=ENVIRONMENT) as head, Console(head, storage=url, env=ENVIRONMENT) as console:
                _shapes_of(meter, console, delay, rounds, found)
            if delay:
                found[RESUME, delay] = _resumed(meter, url, delay)
        finally:
            asyncio.run(proxy.__aexit__())
            server.stop()
    return found


def _run(console: Console, call: str) -> float:
    return float(console.do("execute", CODE.replace("{call}", call), seconds=300))


def _shapes_of(meter: Meter, console: Console, delay: float, rounds: int, found: dict[str, Any]) -> None:
    for call in ("fan_out()", "many(30)", "fan_out()"):
        _run(console, call)
    found.setdefault("idle", meter.around(_pause))
    meter.delay = delay
    for shape, call in CALLS.items():
        times = 1 if shape == IN_TURN else rounds
        counts = [meter.around(lambda: _run(console, call)) for _ in range(times)]  # noqa: B023
        found[shape, delay] = min(counts, key=lambda c: c.seconds)
        seconds = ", ".join(f"{count.seconds:.2f}" for count in counts)
        print(f"{shape}, +{delay * 1000:g} ms: {seconds} s: {found[shape, delay]}", flush=True)


def _resumed(meter: Meter, url: str, delay: float) -> Count:
    """A cluster finishes 10,000 tasks and is killed; another resumes."""
    with tempfile.TemporaryDirectory(prefix="perdure-cost-") as folder:
        flag = Path(folder) / "flag"
        meter.delay = 0.0
        with Head(env=ENVIRONMENT) as head, Console(head, storage=url, env=ENVIRONMENT) as console:
            _run(console, f"build({str(flag)!r})")
            head.kill()
        flag.touch()
        with Head(env=ENVIRONMENT) as head, Console(head, storage=url, env=ENVIRONMENT) as console:
            time.sleep(3)  # what the coordinator does at its start is not the resume's
            meter.delay = delay
            count = meter.around(lambda: _run(console, "assert workflow.resume('finished') == 50_005_000"))
    print(f"{RESUME}: {count}", flush=True)
    return count


def _pause() -> float:
    time.sleep(IDLE_SECONDS)
    return IDLE_SECONDS


# -- the page ------------------------------------------------------------------------------------------------------


def render(results: dict[str, dict[str, Any]], rounds: int) -> str:
    out = [
        "# Cost",
        "",
        "Made by `python benchmarks/cost.py`. Do not edit.",
        "",
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPUs, "
        f"Python {platform.python_version()}, load at the end {os.getloadavg()[0]:.1f}; the fastest of {rounds} runs. "
        "Requests and bytes (heads and bodies) are counted by a proxy between the "
        "cluster and the server, with all that the coordinator does beside: its lease and its look for bells, which "
        "the last table shows alone.",
        "",
        "The 300 workflows are started by 64 threads of one driver. `run_async` returns when the workflow is stored "
        "(the announcement, the first segment and the list after it: three requests in a row), so one thread alone "
        "waits three times the network's delay for each.",
        "",
    ]
    for name, found in results.items():
        out += [f"## {STORES[name][0]}", "", *_shapes(name, found), ""]
    out += ["## A slow network", "", f"Each answer is held back by {DELAY * 1000:g} ms.", "", *_network(results), ""]
    out += ["## Doing nothing", "", *_idle(results), ""]
    out += [
        "Prices: S3 Standard in us-east-1 and GCS Standard in a single region, list prices as of November 2026 "
        "(not looked up by the script): $5 for a million writes or lists, $0.40 for a million reads, deletes and "
        "traffic within the region free.",
    ]
    return "\n".join(out) + "\n"


def _shapes(name: str, found: dict[str, Any]) -> list[str]:
    priced = name in PRICES
    head = "| shape | tasks | requests | per task | bytes up per task | down |"
    lines = [head + (" of them write, list, read, delete | $ per million tasks |" if priced else "")]
    lines += ["|---|" + "--:|" * (lines[0].count("|") - 2)]
    for shape, tasks in TASKS.items():
        count = found.get((shape, 0.0)) or found.get((shape, DELAY))
        if count is None:
            continue
        line = (
            f"| {shape} | {tasks:,} | {count.total:,} | {count.total / tasks:.4f} | {count.up / tasks:,.0f} "
            f"| {count.down / tasks:,.0f} |"
        )
        if priced:
            kinds = " / ".join(str(count.requests[kind]) for kind in ("write", "list", "read", "delete"))
            line += f" {kinds} | {count.dollars(name) / tasks * 1e6:,.3f} |"
        lines.append(line)
    return lines


def _network(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| store | shape | seconds | with the delay | more | target | |", "|---|---|--:|--:|--:|--:|---|"]
    for name, found in results.items():
        for shape in CALLS:
            plain, slow = found[shape, 0.0].seconds, found[shape, DELAY].seconds
            limit = EXTRA_SECONDS.get(shape)
            verdict = "" if limit is None else "met" if slow - plain <= limit else "**missed**"
            target = f"≤ {limit:g}" if limit is not None else "–"
            seconds = f"{plain:.2f} | {slow:.2f} | {slow - plain:.2f}"
            lines.append(f"| {STORES[name][0]} | {shape} | {seconds} | {target} | {verdict} |")
        resumed = found[RESUME, DELAY]
        verdict = "met" if resumed.total <= RESUME_REQUESTS else "**missed**"
        lines.append(
            f"| {STORES[name][0]} | resume of 10,000 finished, on another cluster | | {resumed.seconds:.2f} "
            f"| {resumed.total} requests | ≤ {RESUME_REQUESTS} requests | {verdict} |"
        )
    return lines


def _idle(results: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| store | requests per second | $ per day |", "|---|--:|--:|"]
    for name, found in results.items():
        count = found["idle"]
        dollars = f"{count.dollars(name) / count.seconds * 86_400:.2f}" if name in PRICES else "–"
        lines.append(f"| {STORES[name][0]} | {count.total / count.seconds:.2f} | {dollars} |")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=tuple(STORES))
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    servers.install_signal_handler()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": servers.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    results = {name: measure(name, options.rounds) for name in options.only or STORES}
    text = render(results, options.rounds)
    print(text)
    if not options.no_write:
        (ROOT / "docs" / "results" / "cost.md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
