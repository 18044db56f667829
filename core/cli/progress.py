"""The bar that moves while a command waits for a workflow.

Owns waiting for a ref together with the coordinator's `progress` call: tasks done, running and waiting, time
elapsed. Where no bar may be drawn it only waits.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from perdure.cli.terminal import Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from perdure.onray.cluster import Connection

_EVERY = 0.2


@contextmanager
def bar(terminal: Terminal, label: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A bar; call what it gives with the counts of the `progress` call. Nothing is drawn where there is no terminal."""
    if not terminal.live:
        yield lambda counts: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.completed:.0f}/{task.total:.0f} done,"),
        TextColumn("{task.fields[running]} running, {task.fields[waiting]} waiting"),
        TimeElapsedColumn(),
        TextColumn("[yellow]{task.fields[problem]}"),
    )  # fmt: skip
    # refreshed by us: tasks' output passes through the console's own redirection of stderr
    with Progress(*columns, console=terminal.console, redirect_stdout=False, transient=True) as progress:
        task = progress.add_task(label, total=1, running=0, waiting=0, problem="")

        def update(counts: dict[str, Any]) -> None:
            total, done, running = counts.get("total"), counts.get("done", 0), counts.get("running", 0)
            if total is None:
                return
            waiting = max(0, total - done - running)
            problem = str(counts.get("problem") or "")[:60]
            progress.update(task, total=total, completed=done, running=running, waiting=waiting, problem=problem)

        yield update


def wait(terminal: Terminal, connection: Connection, workflow_id: str, ref: Any) -> Any:
    """The value behind ``ref``, with a bar meanwhile; raises the workflow's failure."""
    import ray

    from perdure.onray import cluster

    if terminal.live:
        with bar(terminal, workflow_id[:20]) as update:
            while not ray.wait([ref], timeout=_EVERY)[0]:
                update(connection.call("progress", workflow_id))
    try:
        return cluster.get(ref)
    finally:
        connection.printer.drain()
