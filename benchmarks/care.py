"""Store care: time and memory of its commands over a store with many values and a large one.

    python benchmarks/care.py [--values 5000] [--workflows 500] [--mib 1024]      → docs/results/care.md

The store is a folder. Each command runs in a process of its own; its memory is the peak of what that process holds,
above the peak of `perdure verify` of an empty store.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray

import perdure
from perdure import workflow
from perdure.onray import cluster

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "care.md"
MEBI = 1 << 20
TARGET = 128
"""MiB above an idle command, whatever the store holds."""


@ray.remote
def value(number):
    return os.urandom(20_000) + str(number).encode()


@ray.remote
def large(mebibytes):
    import numpy as np

    return np.random.default_rng(1).random(mebibytes << 17)


@ray.remote
def count(*values):
    return len(values)


def fill(folder: Path, values: int, workflows: int, mebibytes: int) -> None:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    workflow.init(storage=str(folder), trust="all")
    assert workflow.run(count.bind(*[value.bind(n) for n in range(values)]), workflow_id="values") == values
    workflow.run(count.bind(large.bind(mebibytes)), workflow_id="large")
    ray.get([workflow.run_async(count.bind(value.bind(n)), workflow_id=f"w{n}") for n in range(workflows)])
    cluster.connected().call("stop")  # a clean end: gc need not wait until it is surely dead
    ray.shutdown()


def measured(*words: str, allowed: tuple[int, ...] = (0,)) -> tuple[float, int]:
    """Seconds, and the peak of memory in bytes, of one command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "perdure", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"PERDURE_TRUST": "all"},
    )  # fmt: skip
    peak = 0
    while process.poll() is None:
        try:
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            found = {line.split(":")[0]: line.split()[1] for line in lines if ":" in line and len(line.split()) > 1}
            peak = max(peak, (int(found.get("RssAnon", 0)) + int(found.get("RssShmem", 0))) * 1024)
        except (OSError, ValueError):
            pass
        time.sleep(0.005)
    if process.returncode not in allowed:
        assert process.stderr is not None
        raise SystemExit(f"perdure {' '.join(words)}: exit code {process.returncode}: {process.stderr.read()!r}")
    return time.perf_counter() - began, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=5000)
    parser.add_argument("--workflows", type=int, default=500)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--no-write", action="store_true")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    place = Path(tempfile.mkdtemp(prefix="perdure-care-"))
    try:
        fill(place / "store", asked.values, asked.workflows, asked.mib)
        store, archive = f"file://{place / 'store'}", str(place / "all.perdure")
        subprocess.run(
            [sys.executable, "-c", f"import asyncio\nfrom perdure.care.opening import opened\n"
             f"async def make():\n async with opened('file://{place}/empty', make=True): pass\nasyncio.run(make())"],
            check=True, env=os.environ | {"PERDURE_TRUST": "all"},
        )  # fmt: skip
        _, idle = measured("verify", f"file://{place / 'empty'}")
        rows = []
        for words in (
            ("list", "--storage", store),
            ("verify", store),
            ("copy", store, f"file://{place / 'copy'}"),
            ("export", store, archive),
            ("import", archive, f"file://{place / 'imported'}"),
            ("repair", store, "values", "--dry-run"),
            ("gc", store, "--older-than", "0s", "--yes", "--wait", "60"),
        ):
            seconds, peak = measured(*words)
            rows.append((words[0], seconds, (peak - idle) / MEBI))
            print(f"{words[0]}: {seconds:.1f} s, {rows[-1][2]:.0f} MiB above {idle / MEBI:.0f}", flush=True)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    page = [
        "# Store care", "", "Made by `python benchmarks/care.py`. Do not edit.", "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}, Perdure "
        f"{perdure.__version__}, load before the start {load:.1f}.", "",
        f"A folder with {asked.workflows + 2} workflows: one of {asked.values + 1} tasks with a value of 20 kB each, "
        f"one with a value of {asked.mib} MiB, the others of two tasks with a value of 20 kB.", "",
        f"| command | s | memory above an idle command's {idle / MEBI:.0f} MiB | target |", "|---|--:|--:|--:|",
        *(f"| `{name}` | {took:.1f} | {max(0.0, extra):.0f} MiB | ≤ {TARGET} MiB |" for name, took, extra in rows),
    ]  # fmt: skip
    if not asked.no_write:
        RESULTS.write_text("\n".join(page) + "\n")
        print(RESULTS)


if __name__ == "__main__":
    main()
