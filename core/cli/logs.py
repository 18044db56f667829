"""``perdure logs``: what tasks printed, and why they failed.

Owns reading Ray's log files of the running cluster by the marks that workers leave in them (`perdure.onray.marks`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.cli import arguments
from perdure.cli.cluster_side import ClusterSide
from perdure.cli.terminal import Format, Terminal


@dataclass(frozen=True)
class Line:
    task: str
    stream: str
    text: str


def logs(
    workflow_id: Annotated[str | None, typer.Argument(metavar="ID", help="Workflow id.", show_default=False)] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="TASK", help="Only of this task.")] = None,
    coordinator: Annotated[bool, typer.Option("--coordinator", help="The coordinator's own log.")] = False,
    storage: arguments.Storage = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Print what a workflow's tasks printed on this machine's cluster, and the tracebacks of failed tasks.

    Ray keeps what is printed as long as the cluster lives; failures come from the store and outlive it.
    """
    terminal = Terminal(output, quiet)
    with terminal.failures():
        if coordinator == (workflow_id is not None):
            raise ValueError("give either a workflow id, or --coordinator")
        from perdure.cli.sides import side

        found = side(storage, address)
        folder = _folder() if isinstance(found, ClusterSide) else None
        if coordinator:
            if folder is None or not isinstance(found, ClusterSide):
                raise ValueError("--coordinator needs a running cluster, and the command on its head node")
            lines = list(_coordinator(folder, found))
        else:
            assert workflow_id is not None
            failures = _failures(found, workflow_id, task)
            lines = [*(_printed(folder, workflow_id, task) if folder is not None else ()), *failures]
            if folder is None:
                terminal.note("no cluster is asked: only failures, as they are in the store")
        terminal.data(
            [{"task_id": line.task, "stream": line.stream, "line": line.text} for line in lines],
            lambda: _text(terminal, lines),
        )


def _text(terminal: Terminal, lines: Iterable[Line]) -> None:
    for line in lines:
        terminal.line(f"({line.task}) {line.text}" if line.task else line.text)


def _folder() -> Path | None:
    """Ray's log folder on this node."""
    import ray

    node = ray._private.worker.global_worker.node
    return Path(node.get_logs_dir_path()) if node is not None else None


def _printed(folder: Path, workflow_id: str, task: str | None) -> Iterator[Line]:
    from perdure.onray.marks import read_mark

    for path in sorted(folder.glob("worker-*.*"), key=lambda p: p.stat().st_mtime):
        stream = {".out": "stdout", ".err": "stderr"}.get(path.suffix)
        if stream is None:
            continue
        current: str | None = None
        with path.open(errors="replace") as file:
            for raw in file:
                text = raw.rstrip("\n")
                mark = read_mark(text)
                if mark is not None:
                    current = mark[1] if mark[0] == workflow_id else None
                elif (
                    current is not None
                    and task in (None, current)
                    and not text.startswith((":task_name:", ":job_id:", ":actor_name:"))
                ):
                    yield Line(current, stream, text)


def _failures(found: Any, workflow_id: str, task: str | None) -> list[Line]:
    from perdure.cli.store_side import StoreSide

    state = StoreSide(found.url).state(workflow_id)
    lines = []
    for one in state.tasks:
        if one.failure is not None and task in (None, one.name):
            text = one.failure.traceback.rstrip() or f"{one.failure.type}: {one.failure.text}"
            lines += [Line(one.name, "failure", line) for line in text.splitlines()]
    return lines


def _coordinator(folder: Path, found: ClusterSide) -> Iterator[Line]:
    pid = found.connection.hello["pid"]
    for path in sorted(folder.glob(f"worker-*-{pid}.*")):
        stream = {".out": "stdout", ".err": "stderr"}.get(path.suffix)
        if stream is not None:
            for text in path.read_text(errors="replace").splitlines():
                if not text.startswith((":task_name:", ":job_id:", ":actor_name:")):
                    yield Line("", stream, text)
