"""The child's side of every multi-process case: a forked process that runs functions its parent names.

``main`` is the zygote: one warm, single-threaded interpreter that forks a child for each request, so that a
child costs milliseconds. The zygote never opens a store, so its children are strangers to each other.
A child ends when its parent's socket closes; nothing outlives the run.
"""

from __future__ import annotations

import array
import asyncio
import importlib
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any

from perdure.conformance.observed import ObservedStore, Recorder, from_subject

HEADER = struct.Struct("!I")


class ChildContext:
    """What a child function gets: stores, messages and a common clock."""

    def __init__(self, subject: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.subject = subject
        self.recorder = Recorder()
        self._reader = reader
        self._writer = writer
        self._stores: list[ObservedStore] = []

    def open(self, url: str) -> ObservedStore:
        """A new instance of the store at ``url``."""
        store = ObservedStore(self.subject.open(url), self.recorder)
        self._stores.append(store)
        return store

    async def send(self, message: Any) -> None:
        """Hand a message to the parent; it is on its way when this returns."""
        await self.write(("message", message))

    async def receive(self) -> Any:
        """The parent's next message."""
        kind, message = await read_frame(self._reader)
        if kind != "message":
            raise RuntimeError(f"expected a message, got {kind}")
        return message

    async def write(self, frame: Any) -> None:
        payload = pickle.dumps(frame)
        self._writer.write(HEADER.pack(len(payload)) + payload)
        await self._writer.drain()

    @staticmethod
    async def at(instant: float) -> None:
        """Return as close as possible after ``instant`` (``time.monotonic``, one clock for all processes)."""
        while (rest := instant - time.monotonic()) > 0.0008:
            await asyncio.sleep(rest - 0.0005)
        while time.monotonic() < instant:
            pass

    async def close(self) -> None:
        for store in self._stores:
            await store.inner.aclose()


async def read_frame(reader: asyncio.StreamReader) -> Any:
    (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
    return pickle.loads(await reader.readexactly(size))


def portable(error: BaseException) -> BaseException:
    """The error itself if it survives pickling, else a plain one that says the same."""
    try:
        return pickle.loads(pickle.dumps(error))  # type: ignore[no-any-return]
    except Exception:
        return RuntimeError(f"{type(error).__module__}.{type(error).__qualname__}: {error}")


async def serve(sock: socket.socket, subject: Any) -> None:
    """Run the parent's calls, one after the other, until its end of the socket closes."""
    sock.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**26)
    context = ChildContext(subject, reader, writer)
    while True:
        try:
            kind, payload = await read_frame(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        if kind == "close":
            await context.close()
            await context.write(("result", None))
            return
        function, args = pickle.loads(payload)
        try:
            result = await function(context, *args)
        except BaseException as error:
            frame = {
                "error": portable(error),
                "type": type(error).__name__,
                "text": str(error)[:500],
                "traceback": "".join(traceback.format_exception(error))[-6000:],
                "from_store": context.recorder.came_from_store(error)
                or (not hasattr(subject, "make_url") and from_subject(error)),
                "calls": [str(c) for c in context.recorder.calls],
            }
            await context.write(("error", frame))
        else:
            await context.write(("result", result))


def run_child(sock: socket.socket, request: dict[str, Any]) -> None:
    """The body of one child, after the fork."""
    os.environ.update(request.get("environment", {}))
    for path in request["sys_path"]:
        if path not in sys.path:
            sys.path.append(path)
    if cwd := request.get("cwd"):
        os.chdir(cwd)
    setup = pickle.loads(request["setup"])
    if setup is not None:
        function, args = setup
        function(*args)
    subject = pickle.loads(request["subject"])
    asyncio.run(serve(sock, subject))


def main() -> None:
    """The zygote's loop: ``argv[1]`` is the descriptor of its control socket."""
    control = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    preloaded: set[str] = set()
    while True:
        fds = array.array("i")
        data, ancillary, _, _ = control.recvmsg(HEADER.size, socket.CMSG_LEN(fds.itemsize))
        if not data:
            return
        while len(data) < HEADER.size:
            data += control.recv(HEADER.size - len(data))
        for _, _, raw in ancillary:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
        (size,) = HEADER.unpack(data)
        payload = b""
        while len(payload) < size:
            payload += control.recv(size - len(payload))
        request = pickle.loads(payload)
        for name in request.get("preload", ()):
            if name not in preloaded:
                preloaded.add(name)
                try:
                    importlib.import_module(name)
                except Exception:  # the child will say it better, in its case
                    continue
        while True:  # reap whoever has ended, so that a killed child does not stay as a zombie
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    break
            except ChildProcessError:
                break
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                control.close()
                os.setpgid(0, 0)
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                run_child(socket.socket(fileno=fds[0]), request)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        os.close(fds[0])
        control.sendall(HEADER.pack(pid))


if __name__ == "__main__":
    main()
