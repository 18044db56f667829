"""Wire stores with one fault each: networks, retries, secrets, forks, loops."""

from __future__ import annotations

import asyncio
import json
import logging
import urllib.parse
from typing import Any

from conformance_lab.contract import check_data, check_key, check_list
from conformance_lab.wire import Connection, Retry, WireStore
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError


class RawErrors(WireStore):
    """What the network raises comes out as it is, without a retry."""

    async def request(
        self, operation: str, key: str | None, method: str, target: str, headers: Any = None, body: bytes = b""
    ) -> Any:
        self.check_open(operation, key)
        return await self.once(method, target, headers or {}, body)


class DoubtIsFailure(WireStore):
    """A lost answer counts as "not done"."""

    def unavailable(self, operation: str, key: str | None, error: Exception) -> Any:
        return StoreError(f"{operation} of {key!r} failed: {error}")

    async def request(
        self, operation: str, key: str | None, method: str, target: str, headers: Any = None, body: bytes = b""
    ) -> Any:
        self.check_open(operation, key)
        try:
            return await self.once(method, target, headers or {}, body)
        except (Retry, OSError, EOFError, TimeoutError) as error:
            raise StoreError(f"{operation} of {key!r} failed", url=self.url, key=key, operation=operation) from error


class DoubtIsSuccess(WireStore):
    """AlreadyExists after a retry is taken for the own first attempt."""

    tries: dict[str, int]

    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        first = not hasattr(self, "lost") or target not in self.lost
        try:
            status, data = await super().once(method, target, headers, body)
        except (OSError, EOFError):
            self.lost = getattr(self, "lost", set()) | {target}
            raise
        return (201, b"") if status == 412 and not first else (status, data)


class BusyIsSuccess(WireStore):
    """An answer of 5xx or 429 is taken for a good one."""

    def judge_status(self, status: int) -> None:
        if status in (401, 403):
            raise PermissionDenied("refused")


class RetriesForEver(WireStore):
    async def request(
        self, operation: str, key: str | None, method: str, target: str, headers: Any = None, body: bytes = b""
    ) -> Any:
        self.check_open(operation, key)
        while True:
            try:
                return await self.once(method, target, headers or {}, body)
            except (Retry, OSError, EOFError, TimeoutError):
                await asyncio.sleep(0.1)


class OneAtATime(WireStore):
    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        if not hasattr(self, "lock"):
            self.lock = asyncio.Lock()
        async with self.lock:
            return await super().once(method, target, headers, body)


class ShortBodies(WireStore):
    """Whatever came of a body is the body."""

    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        one = await self.connection()
        try:
            one.writer.write(self.head(method, target, headers | {"Content-Length": str(len(body))}) + body)
            await one.writer.drain()
            status, fields = await self.answer(one)
            size = int(fields.get("content-length", "0"))
            try:
                data = b"" if method == "HEAD" else await one.reader.readexactly(size)
            except asyncio.IncompleteReadError as error:
                data = error.partial
        except BaseException:
            one.close()
            raise
        self.give_back(one)
        self.judge_status(status)
        return status, str(size).encode() if method == "HEAD" else data


class GarbageIsEmpty(WireStore):
    """A listing that can't be read is an empty one."""

    async def page(self, operation: str, prefix: str, after: str, limit: int) -> dict[str, Any]:
        query = urllib.parse.urlencode({"prefix": prefix, "after": after, "limit": limit}, errors="surrogatepass")
        target = f"/l/{urllib.parse.quote(self.prefix, safe='')}?{query}"
        _, data = await self.request(operation, prefix, "GET", target)
        try:
            return json.loads(data)  # type: ignore[no-any-return]
        except ValueError:
            return {"items": [], "more": False}


class WaitsForEver(WireStore):
    """No limit to the wait for an answer."""

    async def answer(self, one: Connection) -> tuple[int, dict[str, str]]:
        lines = (await one.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
        return int(lines[0].split()[1]), fields


class ConflictIsExists(WireStore):
    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        try:
            return await super().once(method, target, headers, body)
        except Retry as error:
            if "409" in str(error):
                return 412, b""
            raise


class SpellsPrecondition(WireStore):
    """Knows 412 only with the body it expects."""

    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        status, data = await super().once(method, target, headers, body)
        return (201, b"") if status == 412 and data not in (b"", b"PreconditionFailed") else (status, data)


class RetriesDenials(WireStore):
    def judge_status(self, status: int) -> None:
        if status in (401, 403):
            raise Retry(f"status {status}")
        super().judge_status(status)


class NeverReconnects(WireStore):
    """One broken connection, and the instance is broken for good."""

    async def connection(self) -> Connection:
        if getattr(self, "dead", False):
            raise ConnectionError("this pool is broken")
        return await super().connection()

    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        try:
            return await super().once(method, target, headers, body)
        except OSError:
            self.dead = True
            raise
        except EOFError:
            self.dead = True
            raise


class SharesSockets(WireStore):
    """The pool is the same after a fork."""

    def here(self) -> tuple[int, int]:
        return 0, 0


class HidesCancellation(WireStore):
    """A request is shielded: its caller waits for the end."""

    async def once(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes]:
        task = asyncio.ensure_future(super().once(method, target, headers, body))
        while not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise
                await asyncio.wait([task])
                raise
            except Exception:
                break
        return task.result()


class Unbounded(WireStore):
    """A connection for every call."""

    def slots(self) -> Any:
        return None


class SecretInPickle(WireStore):
    def __reduce__(self) -> Any:
        return _open_with, (type(self), self._url, self.secret)


def _open_with(cls: type[WireStore], url: str, secret: str) -> WireStore:
    store = cls(url)
    store.secret = secret
    return store


class LogsSecret(WireStore):
    def head(self, method: str, target: str, headers: dict[str, str]) -> bytes:
        found = super().head(method, target, headers)
        logging.getLogger("wire").debug("sending %r", found)
        return found


class ShowsWrongSecret(WireStore):
    def judge_status(self, status: int) -> None:
        if status in (401, 403):
            raise PermissionDenied(f"the server does not take {self.secret!r}")
        super().judge_status(status)


class DeniedIsMissing(WireStore):
    def judge_status(self, status: int) -> None:
        if status in (401, 403):
            raise NotFound("no such key")
        super().judge_status(status)


class ChecksThenPuts(WireStore):
    """create = HEAD, then PUT without a condition; declares multi_host."""

    async def create_as(self, operation: str, key: str, data: bytes) -> None:
        check_key(key, 1000)
        status, _ = await self.request(operation, key, "HEAD", self.target(key))
        if status == 200:
            raise AlreadyExists(f"{key!r} exists", url=self.url, key=key, operation=operation)
        await asyncio.sleep(0.004)
        await self.request(operation, key, "PUT", self.target(key), {}, data)


class Heartbeats(WireStore):
    """Asks the server something every 0.2 s."""

    async def put(self, key: str, data: Any) -> None:
        await super().put(key, check_data(data))
        if not hasattr(self, "beat"):
            self.beat = asyncio.ensure_future(self.beats())

    async def beats(self) -> None:
        while not self.closed:
            await asyncio.sleep(0.2)
            async for _ in self.list("heartbeat", limit=1):
                check_list("", None, None)
