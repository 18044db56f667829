"""A store server in virtual time, and clients of it that the product's own GuardedStore wraps.

Owns what a network and a store can do to a request: delay it, lose it, lose its answer, let it land much later,
refuse it for want of space. The server itself is right: each operation is atomic.
"""

from __future__ import annotations

import asyncio
import bisect
import contextvars
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from support.virtual import VirtualLoop

from perdure.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable
from perdure.store import Capabilities, Data, GetResults, Page, Store
from perdure.store_url import parse
from simulation.oracle import Oracle


@dataclass(frozen=True)
class Fate:
    """What happens to one request.

    ``there``, ``back``: seconds on the way. ``answered``: else the client learns StoreUnavailable after ``back``.
    ``lands``: seconds until it takes effect, instead of ``there``; None: never. ``refused``: no space left.
    """

    there: float = 0.0
    back: float = 0.0
    answered: bool = True
    lands: float | None = 0.0
    refused: bool = False


KIND = Fate()
Policy = Callable[[str, str, str], Fate]
"""(client, operation, key) → fate"""


class Server:
    """The bytes, the trace of all that was applied, and the oracle that watches."""

    def __init__(self, loop: VirtualLoop, policy: Policy) -> None:
        self.loop = loop
        self.policy = policy
        self.data: dict[str, bytes] = {}
        self.index: list[str] = []
        self.trace: list[str] = []
        self.oracle = Oracle(self.data)
        self.oracle.note = self.note
        self.context = contextvars.Context()
        self.requests = 0

    def note(self, text: str) -> None:
        self.trace.append(f"{self.loop.now:.6f} {text}")

    def send(self, client: str, operation: str, key: str, argument: Any = None) -> asyncio.Future[Any]:
        self.requests += 1
        future: asyncio.Future[Any] = self.loop.create_future()
        fate = self.policy(client, operation, key)
        if not fate.answered:
            if fate.lands is not None:
                self._later(fate.there + fate.lands, self._apply, client, operation, key, argument)
            self._later(fate.there + fate.back, self._answer, future, StoreUnavailable("no answer"))
        elif fate.refused:
            self._later(fate.there + fate.back, self._answer, future, StoreError("No space left on device"))
        else:
            self._later(fate.there, self._serve, client, operation, key, argument, future, fate.back)
        return future

    def _later(self, seconds: float, function: Callable[..., Any], *args: Any) -> None:
        if seconds <= 0:
            self.loop.call_soon(function, *args, context=self.context)
        else:
            self.loop.call_later(seconds, function, *args, context=self.context)

    def _serve(
        self, client: str, operation: str, key: str, argument: Any, future: asyncio.Future[Any], back: float
    ) -> None:
        result = self._apply(client, operation, key, argument)
        if back <= 0:
            self._answer(future, result)
        else:
            self._later(back, self._answer, future, result)

    @staticmethod
    def _answer(future: asyncio.Future[Any], result: Any) -> None:
        if future.done():
            return
        if isinstance(result, StoreError):
            future.set_exception(result)
            future.exception()  # seen: who asked may have been cancelled
        else:
            future.set_result(result)

    def _apply(self, client: str, operation: str, key: str, argument: Any) -> Any:
        if operation == "create":
            if key in self.data:
                self.note(f"{client} create {key} exists")
                return AlreadyExists("exists")
            self.note(f"{client} create {key}")
            self._store(key, argument)
            self.oracle.landed(key, argument)
            return None
        if operation == "put":
            self.note(f"{client} put {key}")
            self._store(key, argument)
            return None
        if operation == "delete":
            self.note(f"{client} delete {key}")
            if self.data.pop(key, None) is not None:
                self.oracle.removed(key)
                del self.index[bisect.bisect_left(self.index, key)]
            return None
        if operation == "get":
            return self.data.get(key) or NotFound("not found")
        assert operation == "list"
        first = bisect.bisect_left(self.index, key)
        if argument is not None:
            first = max(first, bisect.bisect_right(self.index, argument))
        found = []
        for name in self.index[first:]:
            if not name.startswith(key):
                break
            found.append((name, len(self.data[name])))
        return found

    def _store(self, key: str, data: bytes) -> None:
        if key not in self.data:
            bisect.insort(self.index, key)
        self.data[key] = bytes(data)


class SimStore(Store):
    """One process's client."""

    def __init__(self, server: Server, client: str) -> None:
        super().__init__(parse("memory://sim"))
        self.server = server
        self.client = client

    @property
    def capabilities(self) -> Capabilities:
        return _CAPABILITIES

    async def _create(self, key: str, data: Data) -> None:
        await self.server.send(self.client, "create", key, data)

    async def _put(self, key: str, data: Data) -> None:
        await self.server.send(self.client, "put", key, data)

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        value: bytes = await self.server.send(self.client, "get", key)
        return value[start:end]

    async def _stat(self, key: str) -> int:
        return len(await self._get(key, 0, None))

    async def _delete(self, key: str) -> None:
        await self.server.send(self.client, "delete", key)

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        yield await self.server.send(self.client, "list", prefix, start_after)

    async def _get_many(self, keys: Sequence[str]) -> GetResults:
        return await _all([self.server.send(self.client, "get", key) for key in keys])

    async def _create_many(self, items: Sequence[tuple[str, Data]]) -> Any:
        return await _all([self.server.send(self.client, "create", key, data) for key, data in items])


async def _all(futures: list[asyncio.Future[Any]]) -> list[Any]:
    results: list[Any] = []
    for future in futures:
        try:
            results.append(await future)
        except StoreError as error:
            results.append(error)
    return results


_CAPABILITIES = Capabilities(
    durability="server",
    multi_process=True,
    multi_host=True,
    max_value_bytes=1 << 30,
    max_create_bytes=1 << 30,
    max_key_bytes=1000,
)
