"""The parent's side of multi-process cases: start children, call functions in them, kill them.

Owns the zygote (one per runner). Every child is registered, so that an interrupted run can end them all by
their own pid; nobody else's process is ever touched.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from perdure.conformance.child import HEADER, read_frame


class ChildError(Exception):
    """A function failed in a child. ``from_store``: the exception left a method of the store."""

    def __init__(self, frame: dict[str, Any]) -> None:
        super().__init__(f"in a child process: {frame['type']}: {frame['text']}\n{frame['traceback']}")
        self.error: BaseException = frame["error"]
        self.from_store: bool = frame["from_store"]
        self.calls: list[str] = frame["calls"]


class ChildDied(Exception):
    """The child's socket closed: it was killed or crashed."""


class Child:
    """One child process."""

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, alive: set[int]) -> None:
        self.pid = pid
        self._register = alive
        self._reader = reader
        self._writer = writer
        self.alive = True

    async def start(self, function: Callable[..., Any], *args: Any) -> None:
        """Begin ``await function(context, *args)`` in the child; ``result`` or ``message`` collects."""
        await self._write(("call", pickle.dumps((function, args))))

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a module-level async function in the child and return its result."""
        await self.start(function, *args)
        return await self.result()

    async def result(self) -> Any:
        while True:
            kind, value = await self._read()
            if kind == "result":
                return value
            if kind == "error":
                raise ChildError(value)

    async def message(self) -> Any:
        """The child's next message. Raises ``ChildError`` if the function failed instead, and
        ``ChildDied`` if the process is gone."""
        kind, value = await self._read()
        if kind == "error":
            raise ChildError(value)
        if kind == "result":
            raise RuntimeError(f"the child function ended with {value!r} instead of sending a message")
        return value

    async def send(self, message: Any) -> None:
        await self._write(("message", message))

    async def _write(self, frame: Any) -> None:
        payload = pickle.dumps(frame)
        try:
            self._writer.write(HEADER.pack(len(payload)) + payload)
            await self._writer.drain()
        except (ConnectionError, RuntimeError) as error:
            self.alive = False
            raise ChildDied(f"child {self.pid} is gone") from error

    async def _read(self) -> Any:
        try:
            return await read_frame(self._reader)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.alive = False
            raise ChildDied(f"child {self.pid} is gone") from error

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        self.signal(signal.SIGKILL)
        with contextlib.suppress(ChildDied, ChildError):
            while True:
                await self._read()
        self._register.discard(self.pid)
        self._writer.close()

    async def close(self) -> None:
        """Close the child's stores and let it end; kill it if it does not within 10 s."""
        if self.alive:
            try:
                async with asyncio.timeout(10):
                    await self._write(("close", None))
                    await self.result()
            except (ChildDied, ChildError, TimeoutError):
                await self.kill()
        self._register.discard(self.pid)
        self._writer.close()


class Nursery:
    """Starts children through one zygote, from any thread."""

    def __init__(self, subject: Any, preload: Sequence[str] = ()) -> None:
        self._subject = subject
        self.preload = list(preload)
        self._lock = threading.Lock()
        self._zygote: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self.started: set[int] = set()

    def _start_zygote(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        environment = dict(os.environ)
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "perdure.conformance.child", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._control = ours
        return ours

    def _request(
        self, subject: Any, setup: Any, environment: dict[str, str], cwd: str | None
    ) -> tuple[int, socket.socket]:
        ours, theirs = socket.socketpair()
        request = {
            "subject": pickle.dumps(subject),
            "setup": pickle.dumps(setup),
            "sys_path": [p for p in sys.path if p],
            "environment": environment,
            "cwd": cwd,
            "preload": self.preload,
        }
        payload = pickle.dumps(request)
        with self._lock:
            control = self._control or self._start_zygote()
            fds = array.array("i", [theirs.fileno()])
            control.sendmsg([HEADER.pack(len(payload))], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
            control.sendall(payload)
            answer = b""
            while len(answer) < HEADER.size:
                part = control.recv(HEADER.size - len(answer))
                if not part:
                    raise ChildDied("the process that starts children has ended")
                answer += part
        theirs.close()
        (pid,) = HEADER.unpack(answer)
        self.started.add(pid)
        return pid, ours

    async def child(
        self,
        *,
        subject: Any = None,
        setup: tuple[Callable[..., None], tuple[Any, ...]] | None = None,
        environment: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> Child:
        """A new child. ``setup`` (module-level function, arguments) runs in it before anything else."""
        pid, sock = await asyncio.to_thread(self._request, subject or self._subject, setup, environment or {}, cwd)
        sock.setblocking(False)
        reader, writer = await asyncio.open_connection(sock=sock, limit=2**26)
        return Child(pid, reader, writer, self.started)

    @contextlib.asynccontextmanager
    async def crew(self, count: int, **options: Any) -> AsyncIterator[list[Child]]:
        """``count`` children, closed (or killed) at the end."""
        children = [await self.child(**options) for _ in range(count)]
        try:
            yield children
        finally:
            await asyncio.gather(*(c.close() for c in children), return_exceptions=True)

    def shut_down(self) -> None:
        """End the zygote and whatever child still runs. Safe to call twice, from a signal handler too."""
        for pid in list(self.started):
            try:
                if os.getpgid(pid) == pid:  # each of ours leads its own group
                    os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        self.started.clear()
        control, self._control = self._control, None
        if control is not None:
            control.close()
        zygote, self._zygote = self._zygote, None
        if zygote is not None:
            try:
                zygote.wait(5)
            except subprocess.TimeoutExpired:
                zygote.kill()
                zygote.wait()
