"""strace as an instrument: watch a process's system calls, kill it at one, or make one fail.

Attaches to a child that says when it is ready, so that the counters of ``when=N`` begin at the operation and
not at the interpreter's start. A wrong filter silently injects nothing, so every injection is checked in the
log afterwards.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from perdure.conformance.child import ChildContext
from perdure.conformance.processes import Child

BEGIN, END = "/perdure-conformance-begin", "/perdure-conformance-end"

# What can change a disk or another machine, or wait for one. Waits of the event loop itself are left out.
CALLS = (
    "open,openat,openat2,creat,close,read,readv,pread64,write,writev,pwrite64,pwritev,pwritev2,lseek,fsync,fdatasync,"
    "sync,syncfs,sync_file_range,truncate,ftruncate,fallocate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,"
    "unlink,unlinkat,mkdir,mkdirat,rmdir,dup,dup2,dup3,fcntl,flock,copy_file_range,sendfile,splice,msync,connect,"
    "sendto,sendmsg,recvfrom,recvmsg,socket,shutdown,utimensat,fchmod,fchmodat,chmod,statx,newfstatat,fstat,stat,lstat,"
    "getdents64,access,faccessat,faccessat2,mmap"
)
LINE = re.compile(r"^(\d+)\s+(?:<\.\.\. )?([a-z_0-9]+)(?: resumed>|\()")


def strace_path() -> str | None:
    """Where strace is, or None."""
    return shutil.which("strace")


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    """The ``when``-th call of ``name`` by any one thread after the attachment."""

    name: str
    when: int


class Trace:
    """One strace process attached to one child."""

    def __init__(self, log: Path, process: subprocess.Popen[bytes]) -> None:
        self.log = log
        self._process = process

    async def detach(self, *, ended: bool = False) -> list[str]:
        """Let go and return the log's lines. ``ended``: the traced process is dead or dying, so strace will
        end by itself and is first given the time to write that down."""
        if not (ended and await self._over(3.0)):
            for number in (signal.SIGTERM, signal.SIGKILL):
                self._process.send_signal(number)
                if await self._over(3.0):
                    break
        if self._process.stderr is not None:
            self._process.stderr.close()
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        self.log.unlink(missing_ok=True)
        return text.splitlines()

    async def _over(self, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._process.poll() is None:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.002)
        return True


def _traced(pid: int) -> bool:
    """Whether every thread of the process has a tracer."""
    found = False
    for task in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(FileNotFoundError):
            if "\nTracerPid:\t0\n" in task.read_text():
                return False
            found = True
    return found


async def attach(child: Child, *, inject: str | None = None, calls: str = CALLS, content: bool = False) -> Trace:
    """Attach to a child that is waiting. ``inject`` is strace's own expression, without ``inject=``.

    Raises ``RuntimeError`` if strace can't attach (missing, forbidden).
    """
    path = strace_path()
    if path is None:
        raise RuntimeError("strace is not installed")
    fd, name = tempfile.mkstemp(prefix="perdure-strace-")
    os.close(fd)
    argv = [path, "-f", "-q", "-o", name, "-e", f"trace={calls}", "-e", "signal=none"]
    argv += ["-xx", "-s", "8000000"] if content else ["-s", "300"]
    if inject:
        argv += ["-e", f"inject={inject}"]
    process = subprocess.Popen(
        [*argv, "-p", str(child.pid)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    trace = Trace(Path(name), process)
    for _ in range(2000):
        if await asyncio.to_thread(_traced, child.pid):
            return trace
        if process.poll() is not None:
            break
        await asyncio.sleep(0.002)
    if process.poll() is None:
        process.kill()
    _, error = process.communicate()
    Path(name).unlink(missing_ok=True)
    raise RuntimeError(f"strace can't attach: {error.decode(errors='replace').strip()[-300:]}")


def between_marks(lines: list[str]) -> tuple[list[str], bool, bool]:
    """The lines between the begin and end marks, and whether each mark was there."""
    hex_begin = "".join(f"\\x{b:02x}" for b in BEGIN.encode())
    hex_end = "".join(f"\\x{b:02x}" for b in END.encode())
    start = next((i for i, x in enumerate(lines) if BEGIN in x or hex_begin in x), None)
    if start is None:
        return [], False, False
    end = next((i for i, x in enumerate(lines) if i > start and (END in x or hex_end in x)), None)
    return lines[start + 1 : end], True, end is not None


def points(lines: list[str]) -> list[Point]:
    """Every call between the marks, as (name, ordinal in its thread since the attachment), each once.

    Kills are planned at these. Calls that finish on a later line (``resumed``) count where they began.
    """
    counts: dict[tuple[str, str], int] = collections.Counter()
    found: dict[Point, None] = {}
    inside = False
    for line in lines:
        if BEGIN in line:
            inside = True
            continue
        if END in line:
            break
        match = LINE.match(line)
        if match is None or " resumed>" in line:
            continue
        thread, name = match.group(1), match.group(2)
        counts[thread, name] += 1
        if inside:
            found[Point(name, counts[thread, name])] = None
    return list(found)


def mark(path: str) -> None:
    """A system call that does nothing but show up in the log."""
    os.access(path, os.F_OK)


def allow_tracing() -> None:
    """Let any process of this user attach (Yama's ptrace_scope=1 asks for it)."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1 & (2**64 - 1)), 0, 0, 0)


async def one_operation(c: ChildContext, url: str, warm: Any, operation: Any, args: tuple[Any, ...]) -> Any:
    """The traced child: open, warm up, wait for the word, then one operation between two marks."""
    allow_tracing()
    store = c.open(url)
    if warm is not None:
        await warm(store)
    await c.send("ready")
    await c.receive()
    mark(BEGIN)
    try:
        result = await operation(store, *args)
        outcome: tuple[str, Any] = ("ok", result)
    except Exception as error:
        from perdure.conformance.child import portable

        outcome = ("error", portable(error))
    mark(END)
    await c.send(outcome)
    return await c.receive()
