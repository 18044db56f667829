"""A driver that carries out commands from its standard input, one line of JSON each, and answers the same way.

Run as a script: ``console.py '{"address": …, "storage": …}'``. Its first answer is the coordinator's hello.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any

import ray

from perdure import workflow
from perdure.onray import cluster

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import program  # the workflow that the crash tests run

RUNS: dict[str, tuple[threading.Thread, list[Any]]] = {}


def begin(workflow_id: str, side: str, seconds: float = 0.03) -> None:
    """`workflow.run` in a thread; `join` gives its result."""
    _thread(workflow_id, lambda: workflow.run(program.whole(side, seconds), workflow_id=workflow_id))


def begin_resume(workflow_id: str) -> None:
    _thread(workflow_id, lambda: workflow.resume(workflow_id))


def _thread(workflow_id: str, call: Any) -> None:
    out: list[Any] = []

    def work() -> None:
        try:
            out.append(call())
        except Exception as error:
            out.append(error)

    thread = threading.Thread(target=work, daemon=True)
    RUNS[workflow_id] = thread, out
    thread.start()


def join(workflow_id: str, seconds: float = 90.0) -> Any:
    thread, out = RUNS.pop(workflow_id)
    thread.join(seconds)
    if not out:
        raise TimeoutError(f"{workflow_id} did not end within {seconds:g} s")
    if isinstance(out[0], Exception):
        raise out[0]
    return out[0]


def start(workflow_id: str, side: str, seconds: float = 0.03) -> None:
    workflow.run_async(program.whole(side, seconds), workflow_id=workflow_id)


def resume(workflow_id: str) -> Any:
    return workflow.resume(workflow_id)


def output(workflow_id: str) -> Any:
    return workflow.get_output(workflow_id)


def status(workflow_id: str) -> str:
    return str(workflow.get_status(workflow_id))


def listed() -> dict[str, str]:
    return {workflow_id: str(status) for workflow_id, status in workflow.list_all()}


def describe(workflow_id: str) -> Any:
    return cluster.connected().call("describe", workflow_id)


def coordinator() -> dict[str, Any]:
    import perdure
    from perdure.onray import actor

    return cluster.connected().call("hello", perdure.__version__, actor.PROTOCOL)


def execute(source: str) -> Any:
    """Run code as a cell of a notebook would, without a source file; the value of its variable ``out``."""
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(source, space)
    return space.get("out")


COMMANDS = (
    begin, begin_resume, join, start, resume, output, status, listed, describe, coordinator, execute,
)  # fmt: skip


def main() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    known = {command.__name__: command for command in COMMANDS}

    def answer(call: Any) -> None:
        try:
            reply = {"value": call()}
            line = json.dumps(reply)
        except Exception as error:
            line = json.dumps({"type": type(error).__name__, "error": str(error)})
        replies.write(line + "\n")
        replies.flush()

    def connect() -> Any:
        workflow.init(**json.loads(sys.argv[1]))
        return cluster.connected().hello

    answer(connect)
    for line in sys.stdin:
        what, args, kwargs = json.loads(line)
        answer(lambda: known[what](*args, **kwargs))  # noqa: B023
    ray.shutdown()


if __name__ == "__main__":
    main()
