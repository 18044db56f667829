"""The examples of the guide on S3, GCS and Redis, through drivers of a real cluster."""

from __future__ import annotations

import time

from support import stored
from support.clusters import Scene

HEAD = """
import ray
from perdure import workflow

@ray.remote
def one():
    return 1

@ray.remote
def add(a, b):
    return a + b
"""


def test_a_chain_of_tasks_gives_its_result_and_keeps_it(scene: Scene) -> None:
    source = HEAD + "out = workflow.run(add.bind(add.bind(one.bind(), 10), 100), workflow_id='add')"
    assert scene.console.do("execute", source) == 111
    assert scene.console.do("output", "add") == 111
    assert scene.console.do("status", "add") == "SUCCESSFUL"
    assert len(stored.done(scene.storage, "add")) == 3


FIB = """
@ray.remote
def fib(n):
    if n <= 1:
        return n
    return workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))

out = workflow.run(fib.bind(6), workflow_id="fib")
"""


def test_continuations_unfold(scene: Scene) -> None:
    assert scene.console.do("execute", HEAD + FIB) == 8


REFS = """
import numpy as np

@ray.remote
def refs():
    return [ray.put(np.arange(100_000)), {"inside": ray.put("small")}]

@ray.remote
def opened(held):
    return int(ray.get(held[0]).sum()) + len(ray.get(held[1]["inside"]))

out = workflow.run(opened.bind(refs.bind()), workflow_id="refs")
"""


def test_object_refs_are_stored_and_opened(scene: Scene) -> None:
    assert scene.console.do("execute", HEAD + REFS) == sum(range(100_000)) + 5


LARGE = """
@ray.remote
def large(size):
    return bytes(size)

@ray.remote
def length(*values):
    return [len(v) for v in values]

given = b"x" * (3 << 20)
node = length.bind(large.bind(20_000), large.bind(9 << 20), given)
out = workflow.run(node, workflow_id="large")
"""


def test_large_values_are_blobs_of_the_store(scene: Scene) -> None:
    before = set(stored.keys_below(scene.storage, "blobs/"))
    assert scene.console.do("execute", HEAD + LARGE) == [20_000, 9 << 20, 3 << 20]
    assert len(set(stored.keys_below(scene.storage, "blobs/")) - before) >= 3
    source = "from perdure import workflow\nout = workflow.get_output('large')"
    assert scene.console.do("execute", source) == [20_000, 9 << 20, 3 << 20]


def test_a_sleep_waits_as_long_as_it_says(scene: Scene) -> None:
    source = HEAD + "out = workflow.run(workflow.sleep(1.0))"
    began = time.monotonic()
    scene.console.do("execute", source)
    assert 1.0 <= time.monotonic() - began < 8


FAILING = """
@ray.remote
def wrong():
    raise ValueError("wrong input")

out = None
try:
    workflow.run(wrong.options(max_retries=0).bind(), workflow_id="fails")
except workflow.WorkflowExecutionError as error:
    out = [type(error.__cause__).__name__, str(error.__cause__)]
"""


def test_a_failure_is_stored_with_its_cause(scene: Scene) -> None:
    kind, text = scene.console.do("execute", HEAD + FAILING)
    assert "wrong input" in text
    assert "ValueError" in kind
    assert scene.console.do("status", "fails") == "FAILED"
