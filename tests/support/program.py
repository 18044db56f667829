"""The workflow of the crash tests: 31 tasks with a continuation and an ObjectRef; each notes its executions.

While a file lies at ``held(side)``, ``product`` waits: a workflow that can't end before a test has looked at it.
"""

from __future__ import annotations

import os
import time
from typing import Any

import ray

from perdure import workflow

LEAVES = 14
DOUBLES = 10
TASKS = LEAVES + DOUBLES + 7
VALUE = sum(range(LEAVES)) + 2 * sum(range(DOUBLES)) + sum(range(5)) + (1 + 2) * 10


def held(side: str | os.PathLike[str]) -> str:
    return f"{os.fspath(side)}.held"


def note(side: str, seconds: float) -> None:
    """One line an execution; O_APPEND makes it whole."""
    task = workflow.context()
    line = f"{task.workflow_id} {task.task_id} {os.getpid()} {time.clock_gettime(time.CLOCK_BOOTTIME):.4f}\n"
    descriptor = os.open(side, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)
    time.sleep(seconds)


@ray.remote
def leaf(side: str, seconds: float, number: int) -> int:
    note(side, seconds)
    return number


@ray.remote
def double(side: str, seconds: float, value: int) -> int:
    note(side, seconds)
    return 2 * value


@ray.remote
def box(side: str, seconds: float, *values: int) -> Any:
    note(side, seconds)
    return ray.put(list(range(5)))


@ray.remote
def unbox(side: str, seconds: float, held: list[Any]) -> int:
    note(side, seconds)
    inside = ray.get(held[0])
    while isinstance(inside, ray.ObjectRef):
        inside = ray.get(inside)
    return sum(inside)


@ray.remote
def product(side: str, seconds: float, a: int, b: int) -> int:
    note(side, seconds)
    deadline = time.monotonic() + 60
    while os.path.exists(held(side)) and time.monotonic() < deadline:
        time.sleep(0.01)
    return a * b


@ray.remote
def more(side: str, seconds: float, *values: int) -> Any:
    note(side, seconds)
    return workflow.continuation(
        product.bind(side, seconds, add.bind(side, seconds, 1, leaf.bind(side, seconds, 2)), 10)
    )


@ray.remote
def add(side: str, seconds: float, *values: int) -> int:
    note(side, seconds)
    return sum(values)


def whole(side: str, seconds: float) -> Any:
    leaves = [leaf.bind(side, seconds, i) for i in range(LEAVES)]
    doubles = [double.bind(side, seconds, x) for x in leaves[:DOUBLES]]
    held = box.bind(side, seconds, *doubles[:3])
    opened = unbox.bind(side, seconds, [held])
    return add.bind(side, seconds, *leaves, *doubles, opened, more.bind(side, seconds, *leaves[:2]))
