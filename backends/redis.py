"""``redis://host:port/db/prefix`` and ``rediss://`` (TLS): a single Redis or Valkey server.

Owns the layout in Redis: each key is a string ``{prefix}:v:<key>`` and a member of the sorted set
``{prefix}:i``, whose members of one score Redis orders bytewise. Both change in one Lua script, so every
method acts at one instant. A stored string begins with one byte: ``v`` and the value, or ``m`` and ``token
size pieces``, the manifest of a large value, whose pieces ``{prefix}:p:<token>:<n>`` were stored before it.
Pieces expire a week after an interrupted upload; the manifest makes them permanent. With ``durability=server``,
``{prefix}:n`` counts the writes and ``{prefix}:r:<run_id>`` is the count at a server's start, for `redis_recent`.

The braces keep all keys of a store in one slot. A Redis that may lose acknowledged writes (replicas with
failover, eviction, no append-only file) is refused by ``check`` unless an option accepts the loss.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, cast, get_args

import redis.asyncio as redis
from redis import exceptions as redis_errors
from redis.backoff import NoBackoff
from redis.retry import Retry

from perdure.backends import redis_check, redis_scripts
from perdure.backends.redis_check import Durability
from perdure.backends.redis_recent import Recent
from perdure.backends.remote import CONNECT_SECONDS, POOL, READ_SECONDS, RemoteStore, cut
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Capabilities, Data, Page
from perdure.store_url import StoreUrl

_PIECE = 4 << 20
_PAGE = 500
_TLS_POOL = 16  # handshakes cost some milliseconds each, in the event loop


class RedisStore(RemoteStore["_Client"]):
    """A store in a Redis server; see the module's text."""

    option_names: ClassVar[Mapping[str, str]] = {
        "password": "password; better in PERDURE_REDIS_PASSWORD",
        "durability": "power (default: appendfsync always), server (everysec), process (no file)",
        "accept_loss": "true accepts replicas, cluster, eviction: a failover may lose acknowledged work",
        "ca_file": "certificates that a rediss:// server's is checked against (default: the system's)",
        "insecure": "true accepts any certificate",
        "retry_seconds": "how long a failing call is retried (default 30)",
    }

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        first, _, rest = url.path.strip("/").partition("/")
        if first.isdigit():
            self._db, inner = int(first), rest
        else:
            self._db, inner = 0, url.path.strip("/")
        # Only the outer braces may mark the part that is hashed to a slot.
        tag = inner.replace("{", "%7B").replace("}", "%7D")
        self._base = f"{{perdure/{tag}}}".encode()
        self._index = self._base + b":i"
        durability = url.option("durability", "power")
        if durability not in get_args(Durability):
            raise ValueError(f"option durability={durability!r} of {url.redacted}: expected power, server or process")
        self._durability = cast(Durability, durability)
        self._accept_loss = url.flag("accept_loss", False)
        self._server = ""
        self._capabilities = Capabilities(
            durability=self._durability,
            multi_process=True,
            multi_host=True,
            max_value_bytes=64 << 30,
            # TLS encrypts a command as a whole, in the event loop.
            max_create_bytes=8 << 20 if url.scheme == "rediss" else 16 << 20,
            max_key_bytes=1024,
            latency="lan",
            retry_seconds=self._retry_seconds,
        )
        url.flag("insecure", False)

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def server(self) -> str:
        return f"{self._server or 'Redis'} at {self._url.host or 'localhost'}:{self._url.port or 6379}"

    # --- clients ------------------------------------------------------------------------------------------

    async def _connect(self) -> _Client:
        url = self._url
        password = url.password or url.option("password") or os.environ.get("PERDURE_REDIS_PASSWORD")
        settings: dict[str, Any] = {
            "host": url.host or "localhost",
            "port": url.port or 6379,
            "db": self._db,
            "username": url.username or os.environ.get("PERDURE_REDIS_USERNAME"),
            "password": password,
            "socket_connect_timeout": CONNECT_SECONDS,
            "socket_timeout": READ_SECONDS,
            # Retries are ours: they have one time limit.
            "retry": Retry(NoBackoff(), 0),
        }
        if url.scheme == "rediss":
            insecure = url.flag("insecure", False)
            settings |= {
                "connection_class": _SharedTls,
                "shared": [],
                "ssl_ca_certs": url.option("ca_file"),
                "ssl_cert_reqs": "none" if insecure else "required",
                "ssl_check_hostname": not insecure,
                "ssl_min_version": ssl.TLSVersion.TLSv1_2,
            }
        # With appendfsync always nothing is lost, and without a file all is.
        recent = Recent(self._redacted, self._base + b":n") if self._durability == "server" else None
        if recent is not None:
            settings["redis_connect_func"] = recent.greet
        connections = _TLS_POOL if url.scheme == "rediss" else POOL
        pool = redis.BlockingConnectionPool(max_connections=connections, timeout=None, **settings)
        return _Client(redis.Redis(connection_pool=pool), recent)

    async def _disconnect(self, client: _Client) -> None:
        await client.redis.aclose()
        await client.redis.connection_pool.aclose()

    def _abandon(self, client: _Client) -> None:
        pool = client.redis.connection_pool
        for connection in (*pool._available_connections, *pool._in_use_connections):
            writer = getattr(connection, "_writer", None)
            if writer is not None:
                cut(writer.transport)
                connection._writer = connection._reader = None

    # --- the contract -------------------------------------------------------------------------------------

    async def _create(self, key: str, data: Data) -> None:
        created = await self._script("create", self._named(key), [key.encode(), b"v" + data], size=len(data))
        if not created:
            raise AlreadyExists("it exists")

    async def _put(self, key: str, data: Data) -> None:
        if len(data) > self._capabilities.max_create_bytes:
            await self._upload(key, _slices(data))
        else:
            arguments = [key.encode(), b"v" + data, self._pieces(b"")]
            await self._script("put", self._named(key), arguments, size=len(data))

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        name = self._name(key)
        if start == 0 and end is None:
            stored = await self._try(lambda client: client.redis.get(name))
        else:
            # GETRANGE's end is inclusive, and the first byte is the mark.
            last = -1 if end is None else end
            stored = await self._script("get_range", [name], [start + 1, last], write=False)
        if stored is None:
            raise NotFound("no such key")
        if stored[:1] == b"v":
            return memoryview(stored)[1:]
        token, size, _ = stored[1:].split(b" ")
        return b"".join([p async for p in self._read_pieces(token, start, min(int(size), end or int(size)))])

    async def _read_pieces(self, token: bytes, start: int, end: int) -> AsyncIterator[bytes]:
        while start < end:
            number, offset = divmod(start, _PIECE)
            wanted = min(_PIECE - offset, end - start)
            name = self._pieces(token) + b"%d" % number

            async def attempt(client: _Client, name: bytes = name, offset: int = offset, wanted: int = wanted) -> bytes:
                return cast(bytes, await client.redis.getrange(name, offset, offset + wanted - 1))

            piece = await self._try(attempt, size=wanted)
            if len(piece) != wanted:
                raise StoreError("the value was replaced or deleted while it was read")
            start += wanted
            yield piece

    async def _stat(self, key: str) -> int:
        size = await self._script("stat", [self._name(key)], [], write=False)
        if size is None:
            raise NotFound("no such key")
        return int(size)

    async def _delete(self, key: str) -> None:
        await self._script("delete", self._named(key), [key.encode(), self._pieces(b"")])

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        try:
            first, after = prefix.encode(), (start_after or "").encode()
        except UnicodeEncodeError:
            # Lone surrogates: no key starts so; as a bound they are ordered as if they could be encoded.
            first, after = (
                prefix.encode("utf-8", "surrogatepass"),
                (start_after or "").encode("utf-8", "surrogatepass"),
            )
        wanted = _PAGE if limit is None else min(limit, _PAGE)
        low = b"(" + after if after >= first and after else b"[" + first
        while True:
            answer = await self._script("list", [self._index], [low, first, wanted, self._base + b":v:"], write=False)
            page = [(k.decode(), int(size)) for k, size in zip(answer[::2], answer[1::2], strict=True)]
            if page:
                yield page
            if len(page) < wanted:
                return
            low = b"(" + answer[-2]

    async def _get_many(self, keys: Sequence[str]) -> list[Data | StoreError]:
        results: list[Data | StoreError] = []
        for first in range(0, len(keys), 64):
            some = keys[first : first + 64]
            names = [self._name(key) for key in some]
            sizes = await self._pipelined("stat", [[[name], []] for name in names], write=False)
            if sum(int(size or 0) for size in sizes) > 32 << 20:
                results += await super()._get_many(some)
                continue
            stored = await self._try(partial(_get_all, names), size=32 << 20)
            for key, value in zip(some, stored, strict=True):
                if value is None:
                    results.append(self._failure(NotFound("no such key"), "get_many", key, False))
                elif value[:1] == b"v":
                    results.append(memoryview(value)[1:])
                else:
                    results += await super()._get_many([key])
        return results

    async def _create_many(self, items: Sequence[tuple[str, Data]]) -> list[StoreError | None]:
        results: list[StoreError | None] = []
        batch: list[tuple[str, Data]] = []
        size = 0
        for item in (*items, None):
            if batch and (item is None or len(batch) == 128 or size + len(item[1]) > 8 << 20):
                results += await self._create_batch(batch, size)
                batch, size = [], 0
            if item is not None:
                batch.append(item)
                size += len(item[1])
        return results

    async def _create_batch(self, batch: Sequence[tuple[str, Data]], size: int) -> list[StoreError | None]:
        calls = [[self._named(key), [key.encode(), b"v" + data]] for key, data in batch]
        try:
            answers = await self._pipelined("create", calls, size=size)
        except StoreError as e:
            answers = [type(e)(str(e.args[0]))] * len(batch)
        return [
            None
            if answer == 1
            else self._failure(
                answer if isinstance(answer, Exception) else AlreadyExists("it exists"),
                "create_many",
                key,
                True,
            )
            for (key, _), answer in zip(batch, answers, strict=True)
        ]

    async def _upload(self, key: str, chunks: AsyncIterator[Data]) -> None:
        token = secrets.token_hex(16).encode()
        held = bytearray()
        number = size = 0
        stored = False

        async def send(data: bytes) -> None:
            nonlocal number
            name = self._pieces(token) + b"%d" % number
            number += 1
            await self._try(
                lambda client: client.redis.set(name, data, ex=redis_scripts.PIECES_EXPIRE),
                size=len(data),
                write=True,
            )

        try:
            async for chunk in chunks:
                view = memoryview(chunk)
                size += len(view)
                while len(view):
                    take = _PIECE - len(held)
                    held += view[:take]
                    view = view[take:]
                    if len(held) == _PIECE:
                        await send(bytes(held))
                        held.clear()
            if not number:
                await self._script(
                    "put", self._named(key), [key.encode(), b"v" + bytes(held), self._pieces(b"")], size=size
                )
            else:
                if held:
                    await send(bytes(held))
                manifest = b"m%b %d %d" % (token, size, number)
                answer = await self._script(
                    "commit", self._named(key), [key.encode(), manifest, self._pieces(b""), token, number]
                )
                if not answer:
                    raise StoreError("pieces of the upload have expired; it took longer than a week")
            stored = True
        finally:
            if not stored and number:
                await asyncio.shield(self._drop_pieces(token, number))

    async def _drop_pieces(self, token: bytes, number: int) -> None:
        try:
            # Unless the commit happened and only its answer was lost: then the pieces no longer expire.
            await (await self._client()).run("drop", [], [self._pieces(token), number])
        except (redis_errors.RedisError, OSError, StoreError):
            pass  # they expire

    async def _download(self, key: str) -> AsyncIterator[Data]:
        name = self._name(key)
        # A manifest is short; of a plain value this is the first piece.
        stored = await self._try(lambda client: client.redis.get(name))
        if stored is None:
            raise NotFound("no such key")
        if stored[:1] == b"v":
            view = memoryview(stored)[1:]
            for first in range(0, len(view), _PIECE):
                yield view[first : first + _PIECE]
            return
        token, size, _ = stored[1:].split(b" ")
        async for piece in self._read_pieces(token, 0, int(size)):
            yield piece

    async def _delete_prefix(self, prefix: str) -> int:
        count = 0
        async for page in self._list(prefix, None, None):
            count += await self._delete_some([key for key, _ in page])
        return count

    async def _delete_many(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), _PAGE):
            await self._delete_some(keys[first : first + _PAGE])

    async def _delete_some(self, keys: Sequence[str]) -> int:
        count = 0
        calls = [[self._named(key), [key.encode(), self._pieces(b"")]] for key in keys]
        for answer in await self._pipelined("delete", calls):
            if isinstance(answer, Exception):
                raise answer
            count += int(answer)
        return count

    async def _check(self) -> Sequence[str]:
        async def attempt(client: _Client) -> list[str]:
            self._server, warnings = await redis_check.check(client.redis, self._durability, self._accept_loss)
            return warnings

        return await self._try(attempt)

    # --- names and scripts --------------------------------------------------------------------------------

    def _name(self, key: str) -> bytes:
        return self._base + b":v:" + key.encode()

    def _named(self, key: str) -> list[bytes]:
        return [self._name(key), self._index]

    def _pieces(self, token: bytes) -> bytes:
        return self._base + b":p:" + (token + b":" if token else b"")

    async def _script(
        self, name: str, keys: Sequence[bytes], arguments: Sequence[Any], *, size: int = 0, write: bool = True
    ) -> Any:
        return await self._try(lambda client: client.run(name, keys, arguments), size=size, write=write)

    async def _pipelined(
        self, name: str, calls: Sequence[Sequence[Sequence[Any]]], *, size: int = 0, write: bool = True
    ) -> list[Any]:
        async def attempt(client: _Client) -> list[Any]:
            answers = await client.run_many(name, calls)
            if not write:
                for answer in answers:
                    if isinstance(answer, Exception):
                        raise answer
            return answers

        return await self._try(attempt, size=size, write=write)

    def _map_error(self, error: Exception, *, write: bool) -> StoreError | None:
        text = str(error)
        if isinstance(error, redis_errors.AuthenticationError | redis_errors.NoPermissionError) or text.startswith(
            ("NOAUTH", "WRONGPASS", "NOPERM")
        ):
            return PermissionDenied(f"{text}: check user and PERDURE_REDIS_PASSWORD, and the user's ACL")
        if isinstance(error, redis_errors.ConnectionError | redis_errors.TimeoutError):
            # Also a server that is loading its file (BusyLoadingError).
            return StoreUnavailable(f"{type(error).__name__}: {text}")
        if isinstance(error, redis_errors.OutOfMemoryError) or text.startswith("OOM"):
            return StoreError(f"{text}: raise maxmemory or free space; nothing was stored")
        if text.startswith(("MASTERDOWN", "READONLY", "CLUSTERDOWN", "TRYAGAIN", "LOADING", "BUSY")):
            return StoreUnavailable(text)
        if text.startswith("MISCONF"):
            return StoreError(f"{text}: the server can't write its file (disk full?); nothing was stored")
        if isinstance(error, redis_errors.RedisError):
            return StoreError(text)
        return None


class _SharedTls(redis.SSLConnection):  # type: ignore[misc]
    """A TLS connection whose context is made once for a pool: making one reads all certificates anew."""

    def __init__(self, shared: list[Any], **settings: Any) -> None:
        super().__init__(**settings)
        if shared:
            self.ssl_context = shared[0]
        else:
            shared.append(self.ssl_context)


class _Client:
    """A connection pool and the scripts it has loaded."""

    def __init__(self, client: redis.Redis, recent: Recent | None) -> None:
        self.redis = client
        self._recent = recent

    def _script(self, name: str) -> tuple[str, str]:
        return redis_scripts.COUNTED[name] if self._is_counted(name) else redis_scripts.SCRIPTS[name]

    def _is_counted(self, name: str) -> bool:
        return self._recent is not None and name in redis_scripts.COUNTED

    async def run(self, name: str, keys: Sequence[bytes], arguments: Sequence[Any]) -> Any:
        source, digest = self._script(name)
        try:
            answer = await self.redis.evalsha(digest, len(keys), *keys, *arguments)
        except redis_errors.NoScriptError:
            answer = await self.redis.eval(source, len(keys), *keys, *arguments)
        return self._note(name, keys, arguments, answer)

    def _note(self, name: str, keys: Sequence[bytes], arguments: Sequence[Any], answer: Any) -> Any:
        """The script's own answer; a write is remembered with its number where the server may lose it."""
        if self._recent is None or not self._is_counted(name):
            return answer
        answer, number = answer
        if number:
            self._recent.note(name, keys, arguments, number)
        return answer

    async def run_many(self, name: str, calls: Sequence[Sequence[Sequence[Any]]]) -> list[Any]:
        """One round trip for many calls; answers aligned, errors of single calls in their places."""
        source, digest = self._script(name)
        for _ in range(2):
            async with self.redis.pipeline(transaction=False) as pipeline:
                for keys, arguments in calls:
                    pipeline.evalsha(digest, len(keys), *keys, *arguments)
                answers: list[Any] = await pipeline.execute(raise_on_error=False)
            if not any(isinstance(answer, redis_errors.NoScriptError) for answer in answers):
                return [
                    answer if isinstance(answer, Exception) else self._note(name, keys, arguments, answer)
                    for (keys, arguments), answer in zip(calls, answers, strict=True)
                ]
            await self.redis.script_load(source)
        return answers


async def _get_all(names: Sequence[bytes], client: _Client) -> list[bytes | None]:
    return cast(list[bytes | None], await client.redis.mget(names))


async def _slices(data: Data) -> AsyncIterator[Data]:
    view = memoryview(data)
    for first in range(0, len(view), _PIECE):
        yield view[first : first + _PIECE]
