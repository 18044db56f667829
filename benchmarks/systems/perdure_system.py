"""The shapes on Perdure. Run by ../compare.py: ``python perdure_system.py FOLDER SHAPE...`` prints JSON lines."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import ray
from common import MEBIBYTES, ROUNDS, at_once, report

from perdure import workflow
from perdure.onray import cluster


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


@ray.remote(max_retries=0)
def work_or_fail(i, flag):
    if i >= 950 and not os.path.exists(flag):
        raise RuntimeError("not yet")
    return i


def segments(folder, workflow_id):
    """How many segments the workflow's chain has had: the numbers never restart."""
    return 1 + max(int(name.split(".")[0]) for name in os.listdir(f"{folder}/w/{workflow_id}/j"))


def fan_out(n=1000, workflow_id=None):
    dag = total.bind(*[inc.bind(i) for i in range(n)])
    assert workflow.run(dag, workflow_id=workflow_id) == n * (n + 1) // 2


def chain(n=200):
    node = inc.bind(0)
    for _ in range(n - 1):
        node = inc.bind(node)
    assert workflow.run(node) == n


def many(n=300):
    refs = [workflow.run_async(inc.bind(inc.bind(i))) for i in range(n)]
    assert ray.get(refs) == [i + 2 for i in range(n)]


def sleeps(n=1000):
    workflow.run(total.bind(*[inc_after.bind(workflow.sleep(5)) for _ in range(n)]))


@ray.remote
def inc_after(_):
    return 1


def big():
    value = float(int(time.time()))  # other content each time: equal content would be stored once
    assert workflow.run(sum_array.bind(make_array.bind(value))) == value * (MEBIBYTES << 17)


def resume(folder):
    flag = Path(folder) / f"flag-{time.time()}"
    name = f"resume-{time.time()}"
    dag = total.bind(*[work_or_fail.bind(i, str(flag)) for i in range(1000)])
    try:
        workflow.run(dag, workflow_id=name)
    except workflow.WorkflowExecutionError:
        pass
    flag.touch()
    began = time.perf_counter()
    assert workflow.resume(name) == 999 * 1000 // 2
    return time.perf_counter() - began


def main() -> None:
    folder, shapes = sys.argv[1], sys.argv[2:]
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    workflow.init(storage=folder)
    fan_out(20)
    many(3)
    for shape in shapes:
        for _ in range(ROUNDS.get(shape, 3)):
            began = time.perf_counter()
            extra = {}
            if shape == "fan-out 1,000":
                name = f"fan-{time.time_ns()}"
                fan_out(workflow_id=name)
                extra = {"seconds": time.perf_counter() - began, "writes per task": segments(folder, name) / 1000}
            elif shape == "chain 200":
                chain()
            elif shape == "300 workflows x 2":
                many()
            elif shape == "300 workflows x 2, started by 32 threads":
                refs = at_once(lambda i: workflow.run_async(inc.bind(inc.bind(i))))
                assert ray.get(refs) == [i + 2 for i in range(300)]
            elif shape == "fib(10)":
                assert workflow.run(fib.bind(10)) == 55
            elif shape == "1,000 sleeps of 5 s":
                sleeps()
            elif shape == "256 MiB between tasks":
                big()
            elif shape == "resume 1,000, 950 done":
                extra = {"seconds": resume(folder)}
            report(shape, extra.pop("seconds", None) or time.perf_counter() - began, **extra)
    print(cluster.connected().hello["pid"], file=sys.stderr)
    ray.shutdown()


if __name__ == "__main__":
    main()
