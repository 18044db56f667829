"""``perdure demo``: a job of 65 tasks whose cluster is killed in the middle, and goes on in another.

Owns the play: two drivers in processes and clusters of their own, the kill between them, and the count of what ran,
taken from a side file in which every task notes that it began.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from perdure.cli import arguments, process_tree, progress
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal
from perdure.errors import ClusterError

SECONDS: Final = 180.0
"""After so long a driver that says nothing more is given up."""


def demo(
    storage: Annotated[
        str | None,
        typer.Option("--storage", "-s", metavar="URL", help="Store, kept afterwards. Default: a temporary folder."),
    ] = None,
    kill_at: Annotated[int, typer.Option(min=1, max=60, help="Kill the cluster when so many tasks are done.")] = 40,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Run a job of 65 tasks, kill its whole Ray cluster in the middle, go on in a new one.

    Uses only processes and files of its own. Takes about half a minute on two cores.
    """
    terminal = Terminal(output, quiet)
    with terminal.failures():
        try:
            import numpy  # noqa: F401
            import pyarrow  # noqa: F401
        except ImportError as error:
            terminal.stop(f"the demo works on Arrow tables: pip install 'perdure[arrow]' ({error})", Exit.USAGE)
        folder = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
        try:
            found = _play(terminal, storage or f"file://{folder}/store", folder / "executions", kill_at)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        terminal.data(found.facts(), lambda: _report(terminal, found))
        if storage is not None:
            terminal.note(f"look at it: perdure describe demo --storage {storage}")
        if not found.right:
            terminal.stop("the demo did not go as it must; see above", Exit.FAILED)


@dataclass
class Found:
    """What the play has shown. Names of tasks, in the order of the DAG."""

    tasks: list[str] = field(default_factory=list)
    stored: list[str] = field(default_factory=list)
    first: Counter[str] = field(default_factory=Counter)
    second: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    clusters: list[str] = field(default_factory=list)
    result: dict[str, Any] = field(default_factory=dict)
    expected: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def reused(self) -> list[str]:
        """Stored before the kill, and not begun again after it."""
        return [task for task in self.stored if not self.second[task]]

    @property
    def repeated(self) -> list[str]:
        """Stored before the kill, and begun again: must be none."""
        return [task for task in self.stored if self.second[task]]

    @property
    def interrupted(self) -> list[str]:
        """Began before the kill, were not stored, and began again."""
        return [task for task in self.tasks if task not in self.stored and self.first[task] and self.second[task]]

    @property
    def right(self) -> bool:
        return not self.repeated and self.result == self.expected and 0 < len(self.stored) < len(self.tasks)

    def facts(self) -> dict[str, Any]:
        return {
            "workflow_id": "demo",
            "tasks_total": len(self.tasks),
            "processes_killed": self.killed,
            "clusters": self.clusters,
            "reused": self.reused,
            "ran_after_kill": [task for task in self.tasks if self.second[task]],
            "interrupted": self.interrupted,
            "repeated": self.repeated,
            "result": self.result,
            "result_is_right": self.result == self.expected,
            "seconds": round(self.seconds, 1),
        }


def _play(terminal: Terminal, storage: str, executions: Path, kill_at: int) -> Found:
    from perdure.cli.store_side import StoreSide

    found, began = Found(), time.monotonic()
    terminal.note(f"1. a Ray cluster starts and runs the job; its results are kept in {storage}")
    with Driver(storage, "start", executions.with_suffix(".1")) as driver:
        for event in _watched(terminal, driver, "first cluster"):
            if event["event"] == "ready":
                found.clusters.append(event["cluster"])
            if event["event"] == "result" or event.get("done", 0) >= kill_at:
                break
        found.killed = driver.kill()
    described = StoreSide(storage).describe("demo")
    found.stored = [t["task_id"] for t in described["tasks"] if t["status"] == "DONE"]
    terminal.note(
        f"2. kill -9 of the whole cluster, {found.killed} processes; "
        f"{len(found.stored)} of {len(described['tasks'])} tasks known so far are in the store"
    )
    terminal.note("3. a new process and a new Ray cluster resume the job")
    with Driver(storage, "resume", executions.with_suffix(".2")) as driver:
        expecting = threading.Thread(target=lambda: found.expected.update(_expected()))
        expecting.start()
        for event in _watched(terminal, driver, "second cluster"):
            if event["event"] == "ready":
                found.clusters.append(event["cluster"])
            if event["event"] == "result":
                found.result = event["value"]
        expecting.join()
    found.tasks = [t["task_id"] for t in StoreSide(storage).describe("demo")["tasks"]]
    found.first, found.second = (_noted(executions.with_suffix(end)) for end in (".1", ".2"))
    found.seconds = time.monotonic() - began
    return found


def _expected() -> dict[str, Any]:
    from perdure.cli import demo_job

    return dict(json.loads(json.dumps(demo_job.expected())))


def _noted(path: Path) -> Counter[str]:
    return Counter(path.read_text().split()) if path.exists() else Counter()


def _watched(terminal: Terminal, driver: Driver, label: str) -> Iterator[dict[str, Any]]:
    with progress.bar(terminal, label) as update:
        for event in driver.events():
            if event["event"] == "progress":
                update(event)
            yield event


class Driver:
    """`perdure.cli.demo_driver` in a process of its own, with everything that it starts."""

    def __init__(self, storage: str, action: str, executions: Path) -> None:
        self.mark = secrets.token_hex(8)
        self.temporary = tempfile.mkdtemp(prefix="perdure-")
        env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PERDURE_STORAGE")}
        env |= {
            process_tree.MARK: self.mark,
            "PERDURE_DEMO_EXECUTIONS": str(executions),
            "TMPDIR": self.temporary,
        }
        self.errors = open(Path(self.temporary) / "stderr", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "perdure.cli.demo_driver", storage, action],
            stdout=subprocess.PIPE, stderr=self.errors, env=env, text=True, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.wait()
        self.errors.close()
        shutil.rmtree(self.temporary, ignore_errors=True)

    def kill(self) -> int:
        return process_tree.kill_all(self.process.pid, self.mark)

    def events(self) -> Iterator[dict[str, Any]]:
        """What it tells, until its result. ClusterError where it ends without one, or takes too long."""
        timer = threading.Timer(SECONDS, self.kill)
        timer.start()
        assert self.process.stdout is not None
        try:
            for line in self.process.stdout:
                if not line.startswith("{"):
                    continue
                event = dict(json.loads(line))
                yield event
                if event["event"] == "result":
                    return
            self.errors.seek(0)
            raise ClusterError(f"a process of the demo ended too early:\n{self.errors.read()[-3000:]}")
        finally:
            timer.cancel()


def _report(terminal: Terminal, found: Found) -> None:
    stages = list(dict.fromkeys(_stage(task) for task in found.tasks))
    rows = []
    for stage in stages:
        mine = [task for task in found.tasks if _stage(task) == stage]
        reused = [task for task in mine if task in found.reused]
        ran = [task for task in mine if task not in found.reused]
        rows.append((stage, len(mine), len(reused), _short(reused), len(ran), _short(ran)))
    terminal.table(("STAGE", "TASKS", "REUSED", "WHICH", "RAN AFTER THE KILL", "WHICH"), rows)
    terminal.line("")
    terminal.line(
        f"{len(found.tasks)} tasks: {len(found.reused)} reused from the store, "
        f"{len(found.tasks) - len(found.reused)} ran after the kill ({len(found.interrupted)} of them had been "
        f"interrupted by it), {len(found.repeated)} ran again although stored"
    )
    same = "the same as without Perdure" if found.result == found.expected else "NOT the same as without Perdure"
    cents = found.result.get("cents", 0)
    terminal.line(f"result: {cents / 100:,.2f} in sales, best regions {found.result.get('best')}, {same}")
    terminal.line(f"took {found.seconds:.1f} s")


def _stage(task: str) -> str:
    return "timer" if task.startswith("workflow.sleep") else task.split(".", 1)[0]


def _short(tasks: list[str]) -> str:
    """``generate.0``, ``generate.1``, ``generate.2`` as ``0-2``."""
    ends = [task.split(".", 1)[1] if "." in task else "" for task in tasks]
    if not all(end.isdigit() for end in ends):
        return ", ".join(end for end in ends if end != "sleep")
    runs: list[list[int]] = []
    for number in sorted(int(end) for end in ends):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
