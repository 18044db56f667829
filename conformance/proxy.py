"""The fault proxy: stands between a store and its server, and breaks exactly what was planned.

Runs in a thread and loop of its own, so that a store that blocks its loop can't starve it. Understands
HTTP/1.1 well enough to see requests, answers and bodies; any other protocol passes as bytes, where a
"request" is a burst from the client that comes after an answer. Every fault that fired is counted.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

METHODS = (b"GET ", b"PUT ", b"POST ", b"HEAD ", b"DELETE ", b"PATCH ", b"OPTIONS ")


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What the proxy knows of a request before it decides. Binary protocols have ``method`` ``TCP``."""

    number: int
    method: str
    target: str
    head: bytes

    @property
    def writes(self) -> bool:
        return self.method in ("PUT", "POST", "DELETE", "PATCH", "TCP")


@dataclasses.dataclass(frozen=True, slots=True)
class Fault:
    """One planned fault.

    Kinds: ``reset_before`` (the request is not passed on), ``reset_after`` (done, answer lost), ``status`` (an
    answer of our own, nothing done), ``status_after`` (done, another answer), ``delay`` (done, answer late),
    ``stall`` (done, no answer while the connection lasts), ``cut`` (the answer's body ends after ``cut``
    bytes; a float is a share of it), ``garbage`` (the body is noise of the same length), ``spell`` (the
    answer's status line and body are replaced by ``status`` and ``body``).
    """

    kind: str
    status: int = 503
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    cut: float = 0.5


Chooser = Callable[[Request], Fault | None]


class FaultProxy:
    """``async with FaultProxy((host, port)) as proxy``: ``proxy.address`` is where clients connect."""

    def __init__(self, upstream: tuple[str, int]) -> None:
        self.upstream = upstream
        self.address: tuple[str, int] = ("127.0.0.1", 0)
        self.requests = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.http = False
        self.fired = 0
        self.seen: collections.deque[str] = collections.deque(maxlen=400)
        self._plan: collections.deque[tuple[Fault, Callable[[Request], bool]]] = collections.deque()
        self._always: Chooser | None = None
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: asyncio.Server | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    # --- planning (any thread) -------------------------------------------------------------------------------
    def plan(self, fault: Fault, count: int = 1, match: Callable[[Request], bool] | None = None) -> None:
        """The next ``count`` requests (that match) get the fault, in the order of planning."""
        with self._lock:
            self._plan.extend([(fault, match or (lambda _: True))] * count)

    def always(self, chooser: Chooser | None) -> None:
        """Every request for which ``chooser`` gives a fault gets it, until this is called with None."""
        with self._lock:
            self._always = chooser

    def clear(self) -> int:
        """Forget what is planned; how many planned faults had not fired."""
        with self._lock:
            left = len(self._plan)
            self._plan.clear()
            self._always = None
            return left

    def _choose(self, request: Request) -> Fault | None:
        with self._lock:
            for i, (fault, match) in enumerate(self._plan):
                if match(request):
                    del self._plan[i]
                    self.fired += 1
                    return fault
            fault_always = self._always(request) if self._always is not None else None
            if fault_always is not None:
                self.fired += 1
            return fault_always

    async def refuse(self) -> None:
        """Close the door: new connections are refused, open ones are reset."""
        await self._in_loop(self._close_door())

    async def accept(self) -> None:
        """Open the door again, on the same port."""
        await self._in_loop(self._open_door())

    async def drop(self) -> None:
        """Reset all open connections."""
        await self._in_loop(self._reset_all())

    async def _in_loop(self, coroutine: Any) -> None:
        assert self._loop is not None
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, self._loop))

    # --- life ------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> FaultProxy:
        self._thread = threading.Thread(target=self._run, daemon=True, name="fault-proxy")
        self._thread.start()
        await asyncio.to_thread(self._ready.wait, 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._thread is not None
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join, 10)

    def _run(self) -> None:
        loop = asyncio.new_event_loop()
        self._loop = loop
        loop.run_until_complete(self._open_door())
        self._ready.set()
        loop.run_forever()
        loop.run_until_complete(self._close_door())
        loop.run_until_complete(self._cancel_all())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    @staticmethod
    async def _cancel_all() -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _open_door(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, *self.address, limit=2**20)
            self.address = self._server.sockets[0].getsockname()[:2]

    async def _close_door(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self._reset_all()

    async def _reset_all(self) -> None:
        for writer in list(self._writers):
            _reset(writer)
        await asyncio.sleep(0)

    # --- serving ---------------------------------------------------------------------------------------------
    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            first = await reader.read(65536)
            if not first:
                return
            answers, upstream = await asyncio.open_connection(*self.upstream, limit=2**20)
            self._writers.add(upstream)
            if first.startswith(METHODS):
                self.http = True
                await self._serve_http(_Buffered(reader, first), writer, _Buffered(answers), upstream)
            else:
                await self._serve_tcp(first, reader, writer, answers, upstream)
        except (ConnectionError, asyncio.IncompleteReadError, OSError, asyncio.CancelledError):
            pass
        finally:
            for one in (writer, upstream):
                if one is not None:
                    self._writers.discard(one)
                    with contextlib.suppress(Exception):
                        one.close()

    async def _serve_http(
        self, client: _Buffered, writer: asyncio.StreamWriter, server: _Buffered, upstream: asyncio.StreamWriter
    ) -> None:
        while True:
            head = await client.head()
            if not head:
                return
            method, target = head.split(b" ", 2)[:2]
            body = await client.body(head, writer)
            self.requests += 1
            self.bytes_up += len(head) + len(body)
            request = Request(self.requests, method.decode(), target.decode("latin-1"), head)
            self.seen.append(f"{request.method} {request.target}")
            fault = self._choose(request)
            if fault is not None and fault.kind == "reset_before":
                _reset(writer)
                return
            if fault is not None and fault.kind == "status":
                writer.write(_answer(fault))
                await writer.drain()
                continue
            upstream.write(
                head.replace(b"Expect: 100-continue\r\n", b"").replace(b"expect: 100-continue\r\n", b"") + body
            )
            await upstream.drain()
            answer_head = await server.head()
            if not answer_head:
                return
            answer_body = await server.body(answer_head, None, answer_to=request.method)
            if fault is not None and await self._broken(fault, writer, answer_head, answer_body, upstream):
                return
            if fault is None or fault.kind == "delay":
                self.bytes_down += len(answer_head) + len(answer_body)
                writer.write(answer_head + answer_body)
                await writer.drain()

    async def _broken(
        self, fault: Fault, writer: asyncio.StreamWriter, head: bytes, body: bytes, upstream: asyncio.StreamWriter
    ) -> bool:
        """Carry out a fault of the answer; True if the connection is over."""
        if fault.kind == "reset_after":
            _reset(writer)
            return True
        if fault.kind == "stall":
            await asyncio.sleep(fault.seconds or 3600)
            return True
        if fault.kind == "delay":
            await asyncio.sleep(fault.seconds)
            return False
        if fault.kind in ("status_after", "spell"):
            writer.write(_answer(fault))
            await writer.drain()
            return False
        if fault.kind == "garbage":
            noise = bytes((i * 131 + 7) % 256 for i in range(min(len(body), 65536)))
            writer.write(head + (noise * (len(body) // max(1, len(noise)) + 1))[: len(body)])
            await writer.drain()
            return False
        if fault.kind == "cut":
            share = int(len(body) * fault.cut) if isinstance(fault.cut, float) else int(fault.cut)
            writer.write(head + body[: share if share >= 0 else len(body) + share])
            await writer.drain()
            writer.close()
            return True
        raise ValueError(f"unknown fault {fault.kind!r}")

    async def _serve_tcp(
        self,
        first: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        answers: asyncio.StreamReader,
        upstream: asyncio.StreamWriter,
    ) -> None:
        state: dict[str, Any] = {"fault": None, "answered": True}

        async def up() -> None:
            data = first
            while data:
                if state["answered"]:
                    self.requests += 1
                    state["answered"] = False
                    state["fault"] = self._choose(Request(self.requests, "TCP", "", data[:200]))
                fault = state["fault"]
                if fault is not None and fault.kind == "reset_before":
                    _reset(writer)
                    return
                self.bytes_up += len(data)
                upstream.write(data)
                await upstream.drain()
                data = await reader.read(65536)

        async def down() -> None:
            while data := await answers.read(65536):
                fault = state["fault"]
                state["fault"] = None
                if fault is not None:
                    if fault.kind == "reset_after":
                        _reset(writer)
                        return
                    if fault.kind == "stall":
                        await asyncio.sleep(fault.seconds or 3600)
                        return
                    if fault.kind == "delay":
                        await asyncio.sleep(fault.seconds)
                    if fault.kind == "cut":
                        share = int(len(data) * fault.cut) if isinstance(fault.cut, float) else int(fault.cut)
                        writer.write(data[: share if share >= 0 else len(data) + share])
                        await writer.drain()
                        writer.close()
                        return
                state["answered"] = True
                self.bytes_down += len(data)
                writer.write(data)
                await writer.drain()

        tasks = [asyncio.ensure_future(up()), asyncio.ensure_future(down())]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Buffered:
    """HTTP messages from a stream: a head up to the empty line, then a body as the head says."""

    def __init__(self, reader: asyncio.StreamReader, first: bytes = b"") -> None:
        self._reader = reader
        self._rest = first

    async def _more(self) -> bool:
        data = await self._reader.read(65536)
        self._rest += data
        return bool(data)

    async def head(self) -> bytes:
        """The next head, its empty line included; empty at the end of the stream. Skips 100 Continue."""
        while True:
            while (end := self._rest.find(b"\r\n\r\n")) < 0:
                if not await self._more():
                    return b""
            head, self._rest = self._rest[: end + 4], self._rest[end + 4 :]
            if not head.startswith(b"HTTP/1.1 100"):
                return head

    async def _take(self, size: int) -> bytes:
        parts, left = [], size
        while left:
            if not self._rest and not await self._more():
                raise asyncio.IncompleteReadError(b"", left)
            part, self._rest = self._rest[:left], self._rest[left:]
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    async def _line(self) -> bytes:
        while (end := self._rest.find(b"\r\n")) < 0:
            if not await self._more():
                raise asyncio.IncompleteReadError(self._rest, None)
        line, self._rest = self._rest[: end + 2], self._rest[end + 2 :]
        return line

    async def body(self, head: bytes, asks: asyncio.StreamWriter | None, answer_to: str = "") -> bytes:
        """The raw body that belongs to ``head`` (chunked bodies with their framing)."""
        fields = {}
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            fields[name.strip().lower()] = value.strip().lower()
        status = head.split(b" ", 2)[1] if head.startswith(b"HTTP/") else b""
        if answer_to == "HEAD" or status in (b"204", b"304"):
            return b""
        if asks is not None and fields.get(b"expect") == b"100-continue":
            asks.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fields.get(b"transfer-encoding", b"").endswith(b"chunked"):
            parts = []
            while True:
                line = await self._line()
                size = int(line.split(b";")[0], 16)
                parts += [line, await self._take(size + 2) if size else b""]
                if not size:
                    while (tail := await self._line()) != b"\r\n":
                        parts.append(tail)
                    return b"".join([*parts, b"\r\n"])
        if b"content-length" in fields:
            return await self._take(int(fields[b"content-length"]))
        if status and fields.get(b"connection") == b"close":
            while await self._more():
                pass
            body, self._rest = self._rest, b""
            return body
        return b""


def _answer(fault: Fault) -> bytes:
    reasons = {401: "Unauthorized", 403: "Forbidden", 409: "Conflict", 412: "Precondition Failed", 429: "Too Many"}
    lines = [f"HTTP/1.1 {fault.status} {reasons.get(fault.status, 'Error')}", f"Content-Length: {len(fault.body)}"]
    lines += [f"{name}: {value}" for name, value in fault.headers]
    if fault.body.startswith(b"<?xml"):
        lines.append("Content-Type: application/xml")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + fault.body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a crashed peer or a firewall does."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.suppress(Exception):
        writer.transport.abort()
