"""Every process of a cluster that a command has started itself, and their end.

Owns finding them: descendants of one process, and whoever carries its mark in the environment (Ray's daemons leave
the tree when their parent dies). It never looks for processes by name, so no other cluster on the machine is hurt.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Final

MARK: Final = "PERDURE_DEMO_MARK"


def descendants(root: int) -> set[int]:
    """``root`` and all below it."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        pid, parent = (int(word) for word in line.split())
        children.setdefault(parent, []).append(pid)
    found, todo = set(), [root]
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, [])
    return found


def marked(mark: str) -> set[int]:
    """Processes that were started with ``mark`` in their environment (Linux; empty elsewhere)."""
    wanted = f"{MARK}={mark}".encode()
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def kill_all(root: int, mark: str, seconds: float = 10.0) -> int:
    """kill -9 of the whole cluster; how many processes it had. Repeats until none is left."""
    killed: set[int] = set()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        alive = (descendants(root) | marked(mark)) - {os.getpid()} - _dead()
        fresh = alive - killed
        if not alive:
            break
        for pid in fresh:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed |= fresh
        time.sleep(0.02)
    return len(killed)


def _dead() -> set[int]:
    """Zombies: killed, and not yet waited for by their parent."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
    return {int(pid) for pid, stat in (line.split(None, 1) for line in listing.splitlines()) if stat.startswith("Z")}
