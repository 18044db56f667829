"""What the scripts of all systems share. Standard library only: each runs in an environment of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

THREADS = 32

MEBIBYTES = 256
"""Size of the large value."""

ROUNDS = {"1,000 sleeps of 5 s": 1}
"""Repeats inside one process (default 3); the first of them warms up and is not counted where there are more."""

TASKS = {
    "fan-out 1,000": 1001,
    "chain 200": 200,
    "300 workflows x 2": 600,
    "300 workflows x 2, started by 32 threads": 600,
    "fib(10)": 265,
    "1,000 sleeps of 5 s": 1000,
    "256 MiB between tasks": 2,
    "resume 1,000, 950 done": 51,
}


def at_once(start: Callable[[int], object], n: int = 300) -> list:
    """What ``start`` returns for 0 to n-1, called by many threads, as a busy service would."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(start, range(n)))


def report(shape: str, seconds: float, **extra: object) -> None:
    print(json.dumps({"shape": shape, "seconds": seconds, **extra}), flush=True)
