"""The shapes on Ray Workflows 2.43, in its own environment. Run by ../compare.py."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ray
from common import MEBIBYTES, ROUNDS, at_once, report
from ray import workflow


@ray.remote
def inc(x):
    return x + 1


@ray.remote
def total(*values):
    return sum(values)


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def fib(n):
    return n if n < 2 else workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


@ray.remote
def make_array(value):
    import numpy as np

    return np.full(MEBIBYTES << 17, value)


@ray.remote
def sum_array(array):
    return float(array.sum())


@ray.remote
def one(_):
    return 1


@ray.remote(max_retries=0)
def work_or_fail(i, flag):
    if i >= 950 and not os.path.exists(flag):
        raise RuntimeError("not yet")
    return i


def fan_out(n=1000):
    assert workflow.run(total.bind(*[inc.bind(i) for i in range(n)])) == n * (n + 1) // 2


def resume(folder):
    flag = Path(folder) / f"flag-{time.time()}"
    name = f"resume-{time.time()}"
    dag = total.bind(*[work_or_fail.bind(i, str(flag)) for i in range(1000)])
    try:
        workflow.run(dag, workflow_id=name)
    except Exception:
        pass
    flag.touch()
    began = time.perf_counter()
    assert workflow.resume(name) == 999 * 1000 // 2
    return time.perf_counter() - began


def main() -> None:
    folder, shapes = sys.argv[1], sys.argv[2:]
    ray.init(
        address="local", num_cpus=2, storage=folder, logging_level="error", log_to_driver=False, include_dashboard=False
    )
    workflow.init()
    fan_out(20)
    for shape in shapes:
        for _ in range(ROUNDS.get(shape, 3)):
            began = time.perf_counter()
            seconds = None
            if shape == "fan-out 1,000":
                fan_out()
            elif shape == "chain 200":
                node = inc.bind(0)
                for _ in range(199):
                    node = inc.bind(node)
                assert workflow.run(node) == 200
            elif shape == "300 workflows x 2, started by 32 threads":
                refs = at_once(lambda i: workflow.run_async(inc.bind(inc.bind(i))))
                assert ray.get(refs) == [i + 2 for i in range(300)]
            elif shape == "300 workflows x 2":
                refs = [workflow.run_async(inc.bind(inc.bind(i))) for i in range(300)]
                assert ray.get(refs)[0] == 2
            elif shape == "fib(10)":
                assert workflow.run(fib.bind(10)) == 55
            elif shape == "1,000 sleeps of 5 s":
                # each wait holds a CPU slot there, so the slots are raised for this shape alone
                workflow.run(total.bind(*[one.bind(workflow.sleep(5)) for _ in range(1000)]))
            elif shape == "256 MiB between tasks":
                value = float(int(time.time()))
                assert workflow.run(sum_array.bind(make_array.bind(value))) == value * (MEBIBYTES << 17)
            elif shape == "resume 1,000, 950 done":
                seconds = resume(folder)
            report(shape, seconds or time.perf_counter() - began)


if __name__ == "__main__":
    main()
