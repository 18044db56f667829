"""A Ray cluster in the test's own process, and short scripts with clusters of their own in other processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.clusters import environment, kill, processes

SECONDS = 60.0

_HEAD = """
import os, sys, time
import ray
from perdure import workflow
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
workflow.init(storage=sys.argv[1])
"""


@contextlib.contextmanager
def cluster(storage: Path | str, **options: Any) -> Iterator[str]:
    """A Ray cluster of this process with workflows in ``storage``."""
    import ray

    from perdure import workflow
    from perdure.onray import cluster as connections

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        workflow.init(storage=str(storage), **options)
        yield str(storage)
    finally:
        ray.shutdown()
        connections.disconnect()


def eventually(condition: Callable[[], Any], what: str, seconds: float = SECONDS) -> Any:
    """The first true value of ``condition``; AssertionError after a deadline."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def busy(seconds: float) -> float:
    """A bound of time, doubled where this machine has more to do than these tests."""
    return seconds * (2 if os.getloadavg()[0] > (os.cpu_count() or 1) else 1)


def lines(path: Path | str) -> list[str]:
    """Lines that tasks have noted in a file; none where there is no file yet."""
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


class Driver:
    """A Python process. Its script is ``head`` (a cluster of its own, with the store ``storage``) and ``body``."""

    def __init__(self, storage: Path | str, body: str, *arguments: str, head: str = _HEAD) -> None:
        script = head + textwrap.dedent(body)
        self.errors = tempfile.TemporaryFile("w+")  # no pipe, Ray's processes hold it longer
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, str(storage), *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            start_new_session=True, env=environment(),
        )  # fmt: skip

    def members(self) -> list[int]:
        """Pids of its session and its descendants, itself first."""
        found = [self.process.pid]
        for pid, (parent, session) in sorted(processes().items()):
            if pid not in found and (session == found[0] or parent in found):
                found.append(pid)
        return found

    def kill(self) -> None:
        """kill -9 of the driver and its whole cluster."""
        for pid in self.members():
            kill(pid)
        self.process.communicate(timeout=SECONDS)

    def finish(self, seconds: float = SECONDS) -> str:
        """Its standard output; AssertionError with its standard error where it failed."""
        try:
            out, _ = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the driver did not end within {seconds:g} s:\n{self._said()}") from None
        assert self.process.returncode == 0, f"exit code {self.process.returncode}:\n{out}\n{self._said()}"
        return str(out)

    def _said(self) -> str:
        self.errors.seek(0)
        return self.errors.read()[-4000:]

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self.errors.close()
