"""What stores behind a network share: clients per process and event loop, and retries.

Owns the life of clients (opened at first use, never shared over a fork or between loops, closed by
``aclose``) and the time limits of a call. It knows no protocol.
"""

from __future__ import annotations

import asyncio
import random
import weakref
from abc import abstractmethod
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Generic, TypeVar

from perdure.backoff import Backoff
from perdure.errors import AlreadyExists, StoreError, StoreUnavailable
from perdure.store import Store, running_pid
from perdure.store_url import StoreUrl

C = TypeVar("C")
T = TypeVar("T")

CONNECT_SECONDS = 5.0
READ_SECONDS = 9.0
"""Longest silence of a server within one attempt."""
POOL = 64
"""Connections of one client."""
_GRACE = 8.0
_SLOWEST = 1 << 20  # bytes per second that a large value may need at least


class RemoteStore(Store, Generic[C]):
    """A store with a client object ``C`` per event loop. Subclasses define ``_connect`` and
    ``_disconnect``.
    """

    retry_default: ClassVar[float] = 30.0

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self._retry_seconds = url.number("retry_seconds", self.retry_default)
        self._rng = random.Random()
        self._start_over()

    def _start_over(self) -> None:
        self._pid = running_pid()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Slot[C]] = weakref.WeakKeyDictionary()

    @abstractmethod
    async def _connect(self) -> C:
        """A new client for the running loop."""

    @abstractmethod
    async def _disconnect(self, client: C) -> None:
        """Close a client of the running loop."""

    def _abandon(self, client: C) -> None:
        """Free what can be freed of a client whose loop is closed."""

    async def _client(self) -> C:
        if self._pid != running_pid():
            # The parent's sockets are the parent's; kept referenced, so that nothing closes them from here.
            _inherited.append(self._clients)
            self._start_over()
            self._rng.seed()
        loop = asyncio.get_running_loop()
        slot = self._clients.get(loop)
        if slot is None:
            for other, old in list(self._clients.items()):
                if other.is_closed() and old.client is not None:
                    self._abandon(old.client)
                    old.client = None
            slot = self._clients.setdefault(loop, _Slot())
        if slot.client is None:
            async with slot.lock:
                if slot.client is None:
                    slot.client = await self._connect()
        return slot.client

    async def _try(self, attempt: Callable[[C], Awaitable[T]], *, size: int = 0, write: bool = False) -> T:
        """``attempt`` until it succeeds or fails for good; StoreUnavailable after retry_seconds.

        ``size`` (bytes to move) lengthens the limit of the whole call.
        """
        loop = asyncio.get_running_loop()
        begin, waits = loop.time(), Backoff(self._rng)
        limit = self._retry_seconds + _GRACE + size / _SLOWEST
        doubt = False
        try:
            async with asyncio.timeout(limit):
                while True:
                    try:
                        result = await attempt(await self._client())
                    except Exception as e:
                        error = self._translate(e, write)
                        if not isinstance(error, StoreUnavailable):
                            if doubt and not isinstance(error, AlreadyExists):
                                # An earlier attempt may have happened, so this one's refusal decides nothing.
                                raise StoreUnavailable(f"after an attempt without an answer: {error}") from e
                            raise error from (None if error is e else e)
                        doubt = write
                        self.trouble = error
                        delay = waits.next()
                        if self._closed or loop.time() + delay - begin > self._retry_seconds:
                            raise error from (e.__cause__ if error is e else e)
                        await asyncio.sleep(delay)
                    else:
                        self.trouble = None
                        return result
        except TimeoutError as e:
            self.trouble = StoreUnavailable(f"no answer within {limit:.0f} s")
            raise self.trouble from e

    def _translate(self, error: Exception, write: bool) -> StoreError:
        if isinstance(error, StoreError):
            return error
        return self._map_error(error, write=write) or self._map_default(error, write)

    async def _aclose(self) -> None:
        if self._pid != running_pid():
            return
        here = asyncio.get_running_loop()
        for loop, slot in list(self._clients.items()):
            client, slot.client = slot.client, None
            if client is None:
                continue
            if loop is here:
                await self._disconnect(client)
            elif loop.is_closed():
                self._abandon(client)
            else:
                done = asyncio.run_coroutine_threadsafe(self._disconnect(client), loop)
                await asyncio.wait([asyncio.wrap_future(done)], timeout=5)


def cut(transport: Any) -> None:
    """Close the socket under an asyncio transport whose loop is closed, so that it can't be asked to."""
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    held: Any
    for held in (transport, inner):
        socket = getattr(held, "_sock", None)
        if socket is not None:
            socket.close()
            held._sock = None
            held._closing = True
    if inner is not None:
        transport._closed = True


def cut_session(session: Any) -> None:
    """``cut`` for every connection of an aiohttp session."""
    connector = session.connector
    if connector is None:
        return
    session.detach()
    for held in connector._conns.values():
        for connection, _ in held:
            cut(connection.transport)
    connector._conns.clear()
    connector._closed = True


class _Slot(Generic[C]):
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.client: C | None = None


_inherited: list[object] = []
