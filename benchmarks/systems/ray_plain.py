"""The shapes on plain Ray tasks: nothing is durable. Run by ../compare.py."""

from __future__ import annotations

import sys
import time

import ray
from common import MEBIBYTES, ROUNDS, at_once, report


@ray.remote
def inc(x):
    return x + 1


@ray.remote
def total(*values):
    return sum(values)


@ray.remote
def fib(n):
    if n < 2:
        return n
    return ray.get(add.remote(fib.remote(n - 1), fib.remote(n - 2)))


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def make_array(value):
    import numpy as np

    return np.full(MEBIBYTES << 17, value)


@ray.remote
def sum_array(array):
    return float(array.sum())


@ray.remote(num_cpus=0)
class Sleeper:
    async def sleep(self):
        import asyncio

        await asyncio.sleep(5)
        return 1


def fan_out(n=1000):
    assert ray.get(total.remote(*[inc.remote(i) for i in range(n)])) == n * (n + 1) // 2


def main() -> None:
    shapes = sys.argv[2:]
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    fan_out(20)
    sleeper = Sleeper.options(max_concurrency=2000).remote()
    for shape in shapes:
        for _ in range(ROUNDS.get(shape, 3)):
            began = time.perf_counter()
            if shape == "fan-out 1,000":
                fan_out()
            elif shape == "chain 200":
                ref = inc.remote(0)
                for _ in range(199):
                    ref = inc.remote(ref)
                assert ray.get(ref) == 200
            elif shape == "300 workflows x 2":
                assert ray.get([inc.remote(inc.remote(i)) for i in range(300)])[0] == 2
            elif shape == "300 workflows x 2, started by 32 threads":
                assert ray.get(at_once(lambda i: inc.remote(inc.remote(i))))[0] == 2
            elif shape == "fib(10)":
                assert ray.get(fib.remote(10)) == 55
            elif shape == "1,000 sleeps of 5 s":
                ray.get([sleeper.sleep.remote() for _ in range(1000)])
            elif shape == "256 MiB between tasks":
                value = float(int(time.time()))
                assert ray.get(sum_array.remote(make_array.remote(value))) == value * (MEBIBYTES << 17)
            else:
                continue
            report(shape, time.perf_counter() - began)


if __name__ == "__main__":
    main()
