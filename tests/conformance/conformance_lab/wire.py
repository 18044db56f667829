"""A right store over HTTP: a small server on a folder, and a client with retries. For the network cases."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from conformance_lab.contract import check_data, check_key, check_list, check_range
from conformance_lab.folder import FolderStore, write_all
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Capabilities

CAPABILITIES = Capabilities(
    durability="server",
    multi_process=True,
    multi_host=True,
    max_value_bytes=1 << 40,
    max_create_bytes=64 << 20,
    max_key_bytes=1000,
    retry_seconds=3.0,
)
SECRET = "w1re-s3cret-7f3a"
ANSWER_SECONDS = 2.5
CHUNK = 1 << 18


class Retry(Exception):
    """The request may be tried again."""


class Connection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @property
    def usable(self) -> bool:
        return not self.writer.is_closing() and not self.reader.at_eof()

    def close(self) -> None:
        self.writer.close()


class WireStore:
    """``wire-lab://host:port/prefix``; the secret comes from the environment or the default."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        self.secret = SECRET
        for name, value in urllib.parse.parse_qsl(parts.query, keep_blank_values=True):
            if name == "account" and value == "stranger":
                self.secret = "wr0ng-s3cret"
            else:
                raise ValueError(f"unknown option {name!r}")
        self._url = url
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 80
        self.prefix = parts.path.strip("/")
        self.closed = False
        self.running = 0
        self.idle: dict[tuple[int, int], list[Connection]] = {}
        self.limits: dict[tuple[int, int], asyncio.Semaphore] = {}

    def __reduce__(self) -> Any:
        return type(self), (self._url,)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @property
    def url(self) -> str:
        return self._url

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    # --- connections -----------------------------------------------------------------------------------------
    def here(self) -> tuple[int, int]:
        return os.getpid(), id(asyncio.get_running_loop())

    def slots(self) -> asyncio.Semaphore | None:
        """At most 64 requests of one loop at once."""
        return self.limits.setdefault(self.here(), asyncio.Semaphore(64))

    async def connection(self) -> Connection:
        pool = self.idle.setdefault(self.here(), [])
        while pool:
            one = pool.pop()
            if one.usable:
                return one
            one.close()
        async with asyncio.timeout(ANSWER_SECONDS):
            return Connection(*await asyncio.open_connection(self.host, self.port, limit=1 << 20))

    def give_back(self, one: Connection) -> None:
        pool = self.idle.setdefault(self.here(), [])
        if self.closed or len(pool) >= 32:
            one.close()
        else:
            pool.append(one)

    def head(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.host}", f"Authorization: Bearer {self.secret}"]
        lines += [f"{k}: {v}" for k, v in headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    async def answer(self, one: Connection) -> tuple[int, dict[str, str]]:
        async with asyncio.timeout(ANSWER_SECONDS):
            head = (await one.reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        fields = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            fields[name.strip().lower()] = value.strip()
        return int(lines[0].split()[1]), fields

    def judge_status(self, status: int) -> None:
        if status in (401, 403):
            raise PermissionDenied(f"the server refuses the credentials ({status}); check the secret")
        if status in (409, 429) or status >= 500:
            raise Retry(f"status {status}")

    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        one = await self.connection()
        try:
            one.writer.write(self.head(method, target, headers | {"Content-Length": str(len(body))}) + body)
            async with asyncio.timeout(30):
                await one.writer.drain()
            status, fields = await self.answer(one)
            size = int(fields.get("content-length", "0"))
            async with asyncio.timeout(30):
                data = b"" if method == "HEAD" else await one.reader.readexactly(size)
        except BaseException:
            one.close()
            raise
        self.give_back(one)
        self.judge_status(status)
        return status, str(size).encode() if method == "HEAD" else data

    async def request(
        self,
        operation: str,
        key: str | None,
        method: str,
        target: str,
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> tuple[int, bytes]:
        self.check_open(operation, key)
        self.running += 1
        end = time.monotonic() + self.capabilities.retry_seconds
        pause = 0.02
        try:
            while True:
                try:
                    async with self.slots() or contextlib.nullcontext():
                        return await self.once(method, target, headers or {}, body)
                except (Retry, OSError, EOFError, TimeoutError, ValueError) as error:
                    if time.monotonic() + pause > end:
                        raise self.unavailable(operation, key, error) from error
                    await asyncio.sleep(pause * (0.5 + random.random()))
                    pause = min(pause * 2, 0.5)
        except StoreError as error:
            error.url, error.key, error.operation = self.url, key, operation
            raise
        finally:
            self.running -= 1

    def unavailable(self, operation: str, key: str | None, error: Exception) -> StoreUnavailable:
        return StoreUnavailable(f"{operation} of {key!r}: the server does not answer ({error}); try again later")

    def check_open(self, operation: str, key: str | None) -> None:
        if self.closed:
            raise StoreError("this store is closed; open it anew", url=self.url, key=key, operation=operation)

    def target(self, key: str) -> str:
        return f"/v/{urllib.parse.quote(self.prefix, safe='')}/{urllib.parse.quote(key, safe='')}"

    def missing(self, operation: str, key: str) -> NotFound:
        return NotFound(f"no key {key!r}", url=self.url, key=key, operation=operation)

    def check_size(self, operation: str, key: str, data: bytes, limit: int) -> None:
        if len(data) > limit:
            raise StoreError(f"{key!r}: {len(data)} bytes are over {limit}", url=self.url, key=key, operation=operation)

    # --- the contract ----------------------------------------------------------------------------------------
    async def create(self, key: str, data: Any) -> None:
        await self.create_as("create", key, check_data(data))

    async def create_as(self, operation: str, key: str, data: bytes) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        self.check_open(operation, key)
        self.check_size(operation, key, data, self.capabilities.max_create_bytes)
        status, _ = await self.request(operation, key, "PUT", self.target(key), {"If-None-Match": "*"}, data)
        if status == 412:
            raise AlreadyExists(f"{key!r} exists", url=self.url, key=key, operation=operation)

    async def put(self, key: str, data: Any) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        await self.request("put", key, "PUT", self.target(key), {}, check_data(data))

    async def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        return await self.get_as("get", key, *check_range(start, end))

    async def get_as(self, operation: str, key: str, first: int, last: int | None) -> bytes:
        check_key(key, self.capabilities.max_key_bytes)
        headers = {"X-Range": f"{first}-{'' if last is None else last}"}
        status, data = await self.request(operation, key, "GET", self.target(key), headers)
        if status == 404:
            raise self.missing(operation, key)
        return data

    async def stat(self, key: str) -> int:
        check_key(key, self.capabilities.max_key_bytes)
        status, size = await self.request("stat", key, "HEAD", self.target(key))
        if status == 404:
            raise self.missing("stat", key)
        return int(size)

    async def delete(self, key: str) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        await self.request("delete", key, "DELETE", self.target(key))

    async def page(self, operation: str, prefix: str, after: str, limit: int) -> dict[str, Any]:
        query = urllib.parse.urlencode({"prefix": prefix, "after": after, "limit": limit}, errors="surrogatepass")
        for attempt in range(4):
            _, data = await self.request(
                operation, prefix, "GET", f"/l/{urllib.parse.quote(self.prefix, safe='')}?{query}"
            )
            try:
                page = json.loads(data)
                if page["count"] == len(page["items"]):
                    return page  # type: ignore[no-any-return]
            except (ValueError, KeyError, TypeError):
                pass
            await asyncio.sleep(0.02 * attempt)
        raise StoreUnavailable("the server's listing can't be read", url=self.url, key=prefix, operation=operation)

    async def list(
        self, prefix: str, start_after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[tuple[str, int]]:
        check_list(prefix, start_after, limit)
        self.check_open("list", prefix)
        after, left = start_after or "", limit
        while left is None or left > 0:
            page = await self.page("list", prefix, after, 1000 if left is None else min(left, 1000))
            for key, size in page["items"]:
                yield key, size
            if not page["more"]:
                return
            after = page["items"][-1][0]
            left = None if left is None else left - len(page["items"])

    async def get_many(self, keys: Any) -> list[Any]:
        checked = [check_key(k, self.capabilities.max_key_bytes) for k in keys]
        self.check_open("get_many", None)

        async def one(key: str) -> Any:
            try:
                return await self.get_as("get_many", key, 0, None)
            except StoreError as error:
                return error

        return await in_parallel(one, checked)

    async def create_many(self, items: Any) -> list[Any]:
        checked = [(check_key(k, self.capabilities.max_key_bytes), check_data(d)) for k, d in items]
        self.check_open("create_many", None)

        async def one(item: tuple[str, bytes]) -> Any:
            try:
                return await self.create_as("create_many", *item)
            except StoreError as error:
                return error

        return await in_parallel(one, checked)

    async def upload(self, key: str, chunks: Any) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        self.check_open("upload", key)
        self.running += 1
        one: Connection | None = None
        try:
            try:
                one = await self.connection()
                one.writer.write(self.head("PUT", self.target(key), {"Transfer-Encoding": "chunked"}))
                async for chunk in chunks:
                    if data := check_data(chunk):
                        one.writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                        await one.writer.drain()
                one.writer.write(b"0\r\n\r\n")
                await one.writer.drain()
                status, fields = await self.answer(one)
                await one.reader.readexactly(int(fields.get("content-length", "0")))
                self.judge_status(status)
            except (Retry, OSError, EOFError, TimeoutError) as error:
                raise self.unavailable("upload", key, error) from error
            self.give_back(one)
            one = None
        except StoreError as error:
            error.url, error.key, error.operation = self.url, key, "upload"
            raise
        finally:
            self.running -= 1
            if one is not None:
                one.close()

    async def download(self, key: str) -> AsyncIterator[bytes]:
        check_key(key, self.capabilities.max_key_bytes)
        self.check_open("download", key)
        end = time.monotonic() + self.capabilities.retry_seconds
        while True:
            begun = False
            try:
                async for chunk in self.stream(key):
                    begun = True
                    yield chunk
                return
            except (Retry, OSError, EOFError, TimeoutError) as error:
                if begun or time.monotonic() > end:
                    found = self.unavailable("download", key, error)
                    found.url, found.key, found.operation = self.url, key, "download"
                    raise found from error
                await asyncio.sleep(0.05)

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        one = await self.connection()
        done = False
        try:
            one.writer.write(self.head("GET", self.target(key), {"X-Range": "0-", "Content-Length": "0"}))
            status, fields = await self.answer(one)
            size = int(fields.get("content-length", "0"))
            self.judge_status(status)
            if status == 404:
                await one.reader.readexactly(size)
                done = True
                raise self.missing("download", key)
            while size:
                async with asyncio.timeout(30):
                    chunk = await one.reader.readexactly(min(size, CHUNK))
                size -= len(chunk)
                done = not size
                yield chunk
            done = True
        finally:
            if done:
                self.give_back(one)
            else:
                one.close()

    async def delete_prefix(self, prefix: str) -> int:
        check_list(prefix, None, None)
        if not prefix:
            raise ValueError("an empty prefix would empty the store")
        keys = [k async for k, _ in self.list(prefix)]

        async def one(key: str) -> None:
            await self.request("delete_prefix", key, "DELETE", self.target(key))

        await in_parallel(one, keys)
        return len(keys)

    async def aclose(self) -> None:
        self.closed = True
        for _ in range(800):
            if not self.running:
                break
            await asyncio.sleep(0.005)
        mine = self.idle.pop(self.here(), [])
        for one in mine:
            one.close()
            with contextlib.suppress(Exception):
                await one.writer.wait_closed()
        for pool in self.idle.values():  # of other loops and of the parent process: not ours to speak on
            for one in pool:
                with contextlib.suppress(Exception):
                    sock = one.writer.get_extra_info("socket")
                    os.close(os.dup(sock.fileno()))
        self.idle.clear()


async def in_parallel(one: Any, items: list[Any], width: int = 16) -> list[Any]:
    out: list[Any] = []
    for start in range(0, len(items), width):
        out += await asyncio.gather(*(one(i) for i in items[start : start + width]))
    return out


# --- the server ------------------------------------------------------------------------------------------


class Server:
    """One folder store per prefix, behind HTTP."""

    def __init__(self, root: str, sloppy: str = "") -> None:
        self.root = root
        self.sloppy = sloppy
        self.stores: dict[str, FolderStore] = {}
        self.waiting: dict[tuple[str, str], tuple[FolderStore, bytes]] = {}

    def store(self, prefix: str) -> FolderStore:
        if prefix not in self.stores:
            name = urllib.parse.quote(prefix, safe="")
            self.stores[prefix] = FolderStore(
                f"folder-lab://{urllib.parse.quote(self.root)}/{urllib.parse.quote(name)}"
            )
        return self.stores[prefix]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *rest = head.split("\r\n")
                method, target, _ = first.split(" ", 2)
                fields = {}
                for line in rest:
                    name, _, value = line.partition(":")
                    fields[name.strip().lower()] = value.strip()
                await self.handle(method, target, fields, reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            pass
        finally:
            writer.close()

    async def write_behind(self, store: FolderStore, key: str | None, method: str) -> None:
        """The fault "in memory": puts reach the disk only when somebody else asks for the key."""
        for (root, name), (owner, body) in list(self.waiting.items()):
            if root == store.root and method != "PUT" and name == key:
                del self.waiting[root, name]
                await asyncio.to_thread(owner.replace, name, [body])

    def say(self, writer: asyncio.StreamWriter, status: int, body: bytes = b"", size: int | None = None) -> None:
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Length: {len(body) if size is None else size}\r\n\r\n".encode() + body
        )

    async def handle(
        self,
        method: str,
        target: str,
        fields: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        path, _, query = target.partition("?")
        kind, prefix, *more = path.strip("/").split("/")
        store = self.store(urllib.parse.unquote(prefix))
        allowed = fields.get("authorization") == f"Bearer {SECRET}"
        if fields.get("transfer-encoding") == "chunked":
            await self.receive(store, urllib.parse.unquote(more[0]), allowed, reader, writer)
            return
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        if not allowed:
            self.say(writer, 401)
            return
        try:
            if kind == "l":
                ask = dict(urllib.parse.parse_qsl(query, keep_blank_values=True, errors="surrogatepass"))
                limit = int(ask["limit"])
                found = await asyncio.to_thread(store.select, ask["prefix"], ask["after"], limit + 1)
                page = {"items": found[:limit], "count": len(found[:limit]), "more": len(found) > limit}
                self.say(writer, 200, json.dumps(page).encode())
                return
            key = urllib.parse.unquote(more[0])
            if self.sloppy == "in memory":
                await self.write_behind(store, key if method in ("PUT", "DELETE", "GET", "HEAD") else None, method)
            if method == "PUT" and self.sloppy == "in memory" and "if-none-match" not in fields:
                self.waiting[store.root, key] = (store, body)
                self.say(writer, 201)
            elif method == "PUT":
                if fields.get("if-none-match") == "*" and self.sloppy != "ignores the condition":
                    await asyncio.to_thread(store.write_new, key, body)
                else:
                    await asyncio.to_thread(store.replace, key, [body])
                self.say(writer, 201)
            elif method == "GET":
                await self.send(store, key, fields, writer)
            elif method == "HEAD":
                self.say(writer, 200, size=await asyncio.to_thread(store.size, key))
            else:
                await asyncio.to_thread(store.remove, key)
                self.say(writer, 204)
        except AlreadyExists:
            self.say(writer, 412)
        except NotFound:
            self.say(writer, 404)
        except (OSError, StoreError):
            self.say(writer, 500)

    async def send(self, store: FolderStore, key: str, fields: dict[str, str], writer: asyncio.StreamWriter) -> None:
        first, _, last = fields["x-range"].partition("-")
        fd = await asyncio.to_thread(store.open_value, key)
        try:
            size = os.fstat(fd).st_size
            start, end = min(int(first), size), min(int(last), size) if last else size
            writer.write(f"HTTP/1.1 200 X\r\nContent-Length: {end - start}\r\n\r\n".encode())
            while start < end:
                part = await asyncio.to_thread(os.pread, fd, min(CHUNK, end - start), start)
                start += len(part)
                writer.write(part)
                await writer.drain()
        finally:
            os.close(fd)

    async def receive(
        self, store: FolderStore, key: str, allowed: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        fd = await asyncio.to_thread(store.temporary)
        try:
            while size := int((await reader.readline()).strip() or b"-1", 16):
                if size < 0:
                    raise ConnectionError("cut off")
                data = await reader.readexactly(size + 2)
                await asyncio.to_thread(write_all, fd, data[:-2])
            await reader.readexactly(2)
            if allowed:
                await asyncio.to_thread(store.publish, fd, key)
            self.say(writer, 201 if allowed else 401)
        finally:
            os.close(fd)


async def serve_for_ever(root: str, port: int, sloppy: str) -> None:
    server = Server(root, sloppy)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", port, limit=1 << 20, reuse_address=True)
    async with listening:
        await listening.serve_forever()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_server(root: Path, port: int, sloppy: str = "") -> int:
    """Start the server, wait until it answers, return its pid (also kept in ``root/pid``)."""
    process = subprocess.Popen(
        [sys.executable, "-m", "conformance_lab.wire", str(root / "data"), str(port), sloppy],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,
    )
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 0.5).close()
            break
        except OSError:
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError("the wire server does not start") from None
            time.sleep(0.02)
    (root / "pid").write_text(str(process.pid))
    _children[process.pid] = process
    return process.pid


_children: dict[int, subprocess.Popen[bytes]] = {}


def stop_server(root: Path, number: int = signal.SIGKILL) -> None:
    pid = int((root / "pid").read_text())
    process = _children.pop(pid, None)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    if process is not None:
        process.wait(10)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve_for_ever(sys.argv[1], int(sys.argv[2]), sys.argv[3] if len(sys.argv) > 3 else ""))
