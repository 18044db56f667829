"""The store contract: the interface that every place for bytes implements, and how one is opened.

Owns the public methods, their argument checks, their errors and the defaults of batches and streams; never
knows a particular store (``open_store`` finds it through the registry by URL scheme).

A store is a map from key to bytes below its URL's prefix. Correctness of everything above rests on
``create``. What another client can observe (the numbers are those of the conformance suite,
docs/writing-a-store.md):

- S1 Of any number of concurrent creators of an absent key at most one returns; the others get AlreadyExists,
  which means that a whole value is readable.
- S2 A value is visible whole or not at all, also when its writer is killed, cancelled or out of space.
- S3 When a write returns it survives what ``capabilities.durability`` says.
- S4 A read that starts after a write has returned sees it or a later one, in any process. Nothing is cached.
- S5 ``list`` has every key that exists during the whole call once, in the order of UTF-8 bytes.
- S6 After ``delete`` returns the key is gone for get, stat and list.
- W1 A write that ends by StoreUnavailable or cancellation may have happened, may not, or may happen later,
  once, whole. Every other error of a write means: not done.
- W2 AlreadyExists may be the caller's own first attempt (client libraries retry inside). Compare writer
  tokens: ``perdure.guarded_store`` does. A store never turns its own doubt into success.

What it is not: a filesystem (keys are opaque, folders don't exist), a cache, a queue or a place for secrets;
nothing is promised across keys.

To write a store, subclass ``Store`` and define ``capabilities``, ``_create``, ``_put``, ``_get``, ``_stat``,
``_delete`` and ``_list``; override ``_get_many``, ``_create_many``, ``_upload``, ``_download``,
``_delete_many``, ``_delete_prefix``, ``_leftovers``, ``_aclose`` and ``_map_error`` where it pays. Arguments are
checked before these are called.
"""

from __future__ import annotations

import asyncio
import os
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar, Literal, Self, TypeAlias, TypeVar, cast

from perdure import registry, store_errors
from perdure.errors import PluginError, StoreError, StoreUnavailable
from perdure.store_url import StoreUrl, parse, scheme_of

Data: TypeAlias = bytes | memoryview
"""What a store's methods are handed and hand back: bytes, or a read-only contiguous memoryview of bytes."""

BytesLike: TypeAlias = bytes | bytearray | memoryview
Chunks: TypeAlias = AsyncIterable[BytesLike] | Iterable[BytesLike]
Page: TypeAlias = Sequence[tuple[str, int]]
GetResults: TypeAlias = list[Data | StoreError]
CreateResults: TypeAlias = list[StoreError | None]
T = TypeVar("T")
R = TypeVar("R")

_BATCH_WIDTH = 64  # calls of one batch in flight, for stores that have no batches of their own
_CHUNK = 4 << 20
_CLOSE_WAIT = 5.0


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store declares about itself; constant and free of I/O. Claiming too much fails the suite."""

    durability: Literal["memory", "process", "server", "power"]
    """What a finished write survives: nothing, SIGKILL of the client, also of the server, also a power cut.
    """
    multi_process: bool
    multi_host: bool
    max_value_bytes: int
    max_create_bytes: int
    """Up to this size ``create`` is exclusive; larger values go to content-addressed keys by ``upload``."""
    max_key_bytes: int
    """Counts the UTF-8 bytes of the key without the URL's prefix."""
    key_under_key: bool = True
    """May ``a`` and ``a/b`` both be keys?"""
    managed: bool = False
    """Run by a provider: nobody here can restart or kill it."""
    latency: Literal["local", "lan", "wan"] = "local"
    """Median of a small get: up to 5 ms, 50 ms, or more."""
    retry_seconds: float = 30.0
    """How long the store itself retries a transient failure before StoreUnavailable."""
    complete_lists: bool = True
    """S5 holds. Where lists may lack what has just been written, the core deletes nothing (append-only)."""


class Store(ABC):
    """A map from keys to bytes. See the module's text for the guarantees and for how to write one.

    Instances are made by ``make`` (usually through ``open_store``), serve many concurrent calls, may be used
    from several event loops, after a fork, and as a pickled copy. Only StoreError and its subclasses,
    ValueError, TypeError and CancelledError leave a method.
    """

    option_names: ClassVar[Mapping[str, str]] = {}
    """URL options the store knows: name → one line of help. Others are refused by name."""

    secret_options: ClassVar[frozenset[str]] = frozenset()
    """Those of them that hold secrets (``password``, ``secret`` and ``token`` always do)."""

    def __init__(self, url: StoreUrl) -> None:
        self._url = url
        self._redacted = url.redacted
        self._closed = False
        self.trouble: StoreError | None = None
        """The newest transient failure while calls are being retried; None when the store answers."""
        self._calls: set[object] = set()
        if secrets := url.secret_values():
            _vault[self._redacted] = url
            self._secrets: tuple[str, ...] = secrets
        else:
            self._secrets = ()

    @classmethod
    def make(cls, url: str, options: Mapping[str, object] | None = None) -> Self:
        """Make a store from a URL and options, without I/O. ValueError: malformed, or an option unknown.

        Authors override ``__init__(self, url: StoreUrl)``, call ``super().__init__(url)``, and read options
        by ``url.option``, ``url.number`` and ``url.flag``.
        """
        parsed = parse(url, options, cls.secret_options)
        for name in (*parsed.options, *parsed.secrets):
            if name not in cls.option_names:
                known = ", ".join(sorted(cls.option_names)) or "none"
                raise ValueError(f"unknown option {name!r} for {parsed.scheme}:// stores; known: {known}")
        return cls(parsed)

    @property
    def url(self) -> str:
        """The store's URL without secrets, with every option: opening it opens the same store."""
        return self._redacted

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities:
        """Declared facts; constant, no I/O."""

    # --- the contract -------------------------------------------------------------------------------------

    async def create(self, key: str, data: BytesLike) -> None:
        """Store ``data`` under an absent key, durably, or raise AlreadyExists with nothing changed
        (S1, W2).
        """
        key, value = self._check_key(key), self._check_data(data, key, "create")
        with _Call(self, "create", key, write=True):
            await self._create(key, value)

    async def put(self, key: str, data: BytesLike) -> None:
        """Store ``data``, replacing what is there, whole. A late put may overwrite a newer one (W4)."""
        key, value = self._check_key(key), self._check_data(data, key, "put")
        with _Call(self, "put", key, write=True):
            await self._put(key, value)

    async def get(self, key: str, start: int | None = None, end: int | None = None) -> Data:
        """The value, or the Python slice ``[start:end]`` of it, read-only; it never changes later.
        NotFound.
        """
        key = self._check_key(key)
        first, last = _check_range(start, end)
        with _Call(self, "get", key):
            if first == last:
                await self._stat(key)
                return b""
            value = await self._get(key, first, last)
            return value if isinstance(value, bytes) else memoryview(value).toreadonly()

    async def stat(self, key: str) -> int:
        """The value's size in bytes, or NotFound."""
        key = self._check_key(key)
        with _Call(self, "stat", key):
            return await self._stat(key)

    async def delete(self, key: str) -> None:
        """Remove the key; silent if it is absent."""
        key = self._check_key(key)
        with _Call(self, "delete", key, write=True):
            await self._delete(key)

    async def list(
        self, prefix: str, start_after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[tuple[str, int]]:
        """(key, size) of every key that starts with the string ``prefix`` and comes after ``start_after``.

        Ascending by UTF-8 bytes, at most ``limit``. A caller that means a folder writes the slash.
        """
        for name, text in (("prefix", prefix), ("start_after", "" if start_after is None else start_after)):
            if not isinstance(text, str):
                raise TypeError(f"{name} is a str, not {type(text).__name__}")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool)):
            raise TypeError(f"limit is an int, not {type(limit).__name__}")
        if limit is not None and limit < 0:
            raise ValueError(f"limit must not be negative: {limit}")
        left = limit
        pages: AsyncIterator[Page] | None = None
        try:
            while left is None or left > 0:
                with _Call(self, "list", prefix):
                    if pages is None:
                        pages = aiter(self._list(prefix, start_after or None, limit))
                    page = await anext(pages, None)
                if page is None:
                    return
                if left is not None:
                    page = page[:left]
                    left -= len(page)
                for item in page:
                    yield item
            if limit == 0:
                self._check_open("list", prefix)
        finally:
            if pages is not None and hasattr(pages, "aclose"):
                await pages.aclose()

    async def get_many(self, keys: Iterable[str]) -> GetResults:
        """Values aligned with ``keys``; a StoreError instance stands in the place of one that failed."""
        checked = [self._check_key(key) for key in keys]
        with _Call(self, "get_many", None):
            return await self._get_many(checked) if checked else []

    async def create_many(self, items: Iterable[tuple[str, BytesLike]]) -> CreateResults:
        """``create`` each pair; aligned: None = created, or the error in its place. Every item is tried."""
        pairs = [(self._check_key(key), data) for key, data in items]
        checked = [(key, self._check_data(data, key, "create_many")) for key, data in pairs]
        with _Call(self, "create_many", None, write=True):
            return await self._create_many(checked) if checked else []

    async def upload(self, key: str, chunks: Chunks) -> None:
        """``put`` of the joined chunks at bounded memory; nothing is visible before the last one is stored.

        An error that ``chunks`` raises comes out as it is, and leaves the old value, or nothing.
        """
        key = self._check_key(key)
        source = _Source(chunks, self, key)
        with _Call(self, "upload", key, write=True, source=source):
            await self._upload(key, source)

    async def download(self, key: str) -> AsyncIterator[Data]:
        """Chunks of one version of the value. NotFound comes before the first chunk."""
        key = self._check_key(key)
        chunks: AsyncIterator[Data] | None = None
        try:
            while True:
                with _Call(self, "download", key):
                    if chunks is None:
                        chunks = aiter(self._download(key))
                    chunk = await anext(chunks, None)
                if chunk is None:
                    return
                yield chunk if isinstance(chunk, bytes) else memoryview(chunk).toreadonly()
        finally:
            if chunks is not None and hasattr(chunks, "aclose"):
                await chunks.aclose()

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Remove the keys; silent where they are absent. Every one is tried; the first failure is raised at the end."""
        checked = [self._check_key(key) for key in keys]
        with _Call(self, "delete_many", None, write=True):
            await self._delete_many(checked)

    async def delete_prefix(self, prefix: str) -> int:
        """Remove every key that starts with ``prefix`` and was written before the call; their number."""
        if not isinstance(prefix, str):
            raise TypeError(f"prefix is a str, not {type(prefix).__name__}")
        if not prefix:
            raise ValueError("delete_prefix of '' would empty the whole store; name a prefix")
        with _Call(self, "delete_prefix", prefix, write=True):
            return await self._delete_prefix(prefix)

    async def check(self) -> Sequence[str]:
        """Look at the server's settings before work begins; warnings that say what to do.

        Raises StoreError where the settings would lose data (S3, S8), StoreUnavailable where nothing answers.
        """
        with _Call(self, "check", None):
            return await self._check()

    async def leftovers(self, over: Callable[[str], bool], *, remove: bool) -> Sequence[tuple[str, int]]:
        """What writers that are gone left beside the values, never listed: (what, bytes). ``remove`` takes it away.

        ``over(key)``: nobody goes on with an upload of this key; a store may know better ways to tell.
        """
        with _Call(self, "leftovers", None):
            return await self._leftovers(over, remove)

    async def aclose(self) -> None:
        """Let running calls end, then free everything. Idempotent; later calls raise StoreError."""
        if not self._closed:
            self._closed = True
            deadline = asyncio.get_running_loop().time() + _CLOSE_WAIT
            # The calls may belong to several loops, so there is no one event to wait for.
            while self._calls and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await self._aclose()
            _vault.pop(self._redacted, None)

    # --- what a store defines -----------------------------------------------------------------------------

    @abstractmethod
    async def _create(self, key: str, data: Data) -> None:
        """``create``. Raise ``AlreadyExists("…")``; URL, key and operation are filled in."""

    @abstractmethod
    async def _put(self, key: str, data: Data) -> None:
        """``put``."""

    @abstractmethod
    async def _get(self, key: str, start: int, end: int | None) -> Data:
        """Exactly ``value[start:end]``; ``start >= 0``, ``end`` is None or greater than ``start``."""

    @abstractmethod
    async def _stat(self, key: str) -> int:
        """``stat``."""

    @abstractmethod
    async def _delete(self, key: str) -> None:
        """``delete``."""

    @abstractmethod
    def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        """An async generator of pages (short sequences of (key, size)); ``limit`` is a hint, it is
        cut here.
        """

    async def _get_many(self, keys: Sequence[str]) -> GetResults:
        async def one(key: str) -> Data:
            with _Call(self, "get_many", key):
                value = await self._get(key, 0, None)
                return value if isinstance(value, bytes) else memoryview(value).toreadonly()

        return await _each(keys, one)

    async def _create_many(self, items: Sequence[tuple[str, Data]]) -> CreateResults:
        async def one(item: tuple[str, Data]) -> None:
            with _Call(self, "create_many", item[0], write=True):
                await self._create(*item)

        return await _each(items, one)

    async def _upload(self, key: str, chunks: AsyncIterator[Data]) -> None:
        # Correct for stores of small values only; max_value_bytes bounds it. Override it for more.
        parts: list[Data] = []
        async for chunk in chunks:
            parts.append(bytes(chunk))
        await self._put(key, b"".join(parts))

    async def _download(self, key: str) -> AsyncIterator[Data]:
        # One get, hence one version, at the memory of one value. Override it for large values.
        value = memoryview(await self._get(key, 0, None))
        for position in range(0, len(value), _CHUNK):
            yield value[position : position + _CHUNK]

    async def _delete_many(self, keys: Sequence[str]) -> None:
        async def one(key: str) -> None:
            with _Call(self, "delete", key, write=True):
                await self._delete(key)

        for failure in await _each(keys, one):
            if failure is not None:
                raise failure

    async def _delete_prefix(self, prefix: str) -> int:
        count, last = 0, None
        while True:
            page: list[str] = []
            async for items in self._list(prefix, last, 1000):
                page.extend(key for key, _ in items)
                if len(page) >= 1000:
                    break
            if not page:
                return count
            await self._delete_many(page)
            count, last = count + len(page), page[-1]

    async def _check(self) -> Sequence[str]:
        return ()

    async def _leftovers(self, over: Callable[[str], bool], remove: bool) -> Sequence[tuple[str, int]]:
        return ()

    def server(self) -> str:
        """What answers, in words for messages, as far as it is known (``MinIO``, ``redis-server 7.0.15``)."""
        return type(self).__name__

    async def _aclose(self) -> None:  # noqa: B027 (many stores have nothing to free)
        """Free connections, threads and descriptors; called once."""

    def _map_error(self, error: Exception, *, write: bool) -> StoreError | None:
        """The store error for a foreign exception, or None for the default (by errno, else permanent).

        With ``write``, an outcome that isn't known must become StoreUnavailable.
        """
        return None

    # --- checks and errors --------------------------------------------------------------------------------

    def _check_key(self, key: str) -> str:
        if not isinstance(key, str):
            raise TypeError(f"a key is a str, not {type(key).__name__}")
        if _KEY.fullmatch(key) is None:
            raise ValueError(f"not a key: {key!r}: {_explain_key(key)}")
        size = len(key) if key.isascii() else len(key.encode())
        if size > self.capabilities.max_key_bytes:
            raise ValueError(
                f"key of {size} bytes is longer than the {self.capabilities.max_key_bytes} bytes that "
                f"{self._redacted} takes: {key[:60]!r}…"
            )
        return key

    def _check_data(self, data: BytesLike, key: str, operation: str) -> Data:
        value = _frozen(data)
        capabilities = self.capabilities
        limit = capabilities.max_value_bytes if operation == "put" else capabilities.max_create_bytes
        if len(value) > limit:
            raise StoreError(
                f"{operation} {key!r} in {self._redacted}: {len(value)} bytes is more than the {limit} "
                "it may have; use upload for large values",
                url=self._redacted,
                key=key,
                operation=operation,
            )
        return value

    def _check_open(self, operation: str, key: str | None) -> None:
        if self._closed:
            raise StoreError(
                f"{operation} in {self._redacted}: the store is closed; open it again",
                url=self._redacted,
                key=key,
                operation=operation,
            )

    def _failure(self, error: Exception, operation: str, key: str | None, write: bool) -> StoreError:
        cause: BaseException | None = error
        if isinstance(error, StoreError):
            mapped, cause = error, error.__cause__
        else:
            mapped = self._map_error(error, write=write) or self._map_default(error, write)
        return store_errors.finish(
            mapped, cause, url=self._redacted, key=key, operation=operation, secrets=self._secrets
        )

    def _map_default(self, error: Exception, write: bool) -> StoreError:
        if isinstance(error, OSError):
            return store_errors.from_os_error(error)
        text = f"unexpected {type(error).__name__}: {error}"
        return StoreUnavailable(text) if write else StoreError(text)

    # --- identity -----------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._redacted}>"

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (type(self), self._redacted)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


# Secrets of stores open in this process, so that a pickled copy made and loaded here (or in a forked child)
# works; in other processes credentials come from the environment.
_vault: dict[str, StoreUrl] = {}


def _reopen(cls: type[Store], url: str) -> Store:
    held = _vault.get(url)
    return cls(held) if held is not None else cls.make(url)


# Known schemes that live in an extra: what to install when they are missing.
_EXTRAS = {"s3": "s3", "gs": "gcs", "gcs": "gcs", "redis": "redis", "rediss": "redis"}
_ANY_FSSPEC = "fsspec+"


def open_store(url: str, **options: object) -> Store:
    """Open the store of a URL, without I/O: the first call connects.

    ``options`` (str, int, float, bool) are added to the URL's query and win over it. A plain path
    (``/data/x``, ``~/x``) means ``file://``. Raises ValueError for a malformed URL, an unknown option;
    PluginError for an unknown scheme, a missing extra, a broken plugin.
    """
    scheme = scheme_of(url)
    name = _ANY_FSSPEC if scheme.startswith(_ANY_FSSPEC) else scheme
    known = registry.names(registry.STORES)
    if name not in known:
        install = f"; try: pip install 'perdure[{_EXTRAS[name]}]'" if name in _EXTRAS else ""
        raise PluginError(f"no store for {scheme}:// URLs{install}. Schemes installed: {', '.join(known) or 'none'}")
    try:
        cls = registry.load(registry.STORES, name)
    except PluginError as e:
        if name in _EXTRAS and isinstance(e.__cause__, ImportError):
            raise PluginError(
                f"{scheme}:// needs packages that are not installed ({e.__cause__}): "
                f"pip install 'perdure[{_EXTRAS[name]}]'"
            ) from e
        raise
    return cast(type[Store], cls).make(url, options)


class _Call:
    """One running call: counted for aclose, its exceptions mapped."""

    __slots__ = ("_key", "_operation", "_source", "_store", "_write")

    def __init__(
        self,
        store: Store,
        operation: str,
        key: str | None,
        write: bool = False,
        source: _Source | None = None,
    ) -> None:
        self._store, self._operation, self._key = store, operation, key
        self._write, self._source = write, source

    def __enter__(self) -> None:
        self._store._check_open(self._operation, self._key)
        self._store._calls.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store._calls.discard(self)
        if not isinstance(error, Exception):
            return
        if self._source is not None and self._source.error is not None:
            raise self._source.error
        if isinstance(error, (ValueError, TypeError)):
            return
        mapped = self._store._failure(error, self._operation, self._key, self._write)
        if mapped is not error:
            raise mapped from mapped.__cause__


class _Source:
    """The caller's chunks as the store sees them: checked, frozen, and their own error remembered."""

    def __init__(self, chunks: Chunks, store: Store, key: str) -> None:
        if isinstance(chunks, (bytes, bytearray, memoryview, str)) or not (
            hasattr(chunks, "__aiter__") or hasattr(chunks, "__iter__")
        ):
            raise TypeError(f"chunks is an (async) iterable of bytes-like objects, not {type(chunks).__name__}")
        self._chunks = chunks
        self._left = store.capabilities.max_value_bytes
        self._store, self._key = store, key
        self._next: Callable[[], Awaitable[BytesLike]] | None = None
        self.error: BaseException | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Data:
        try:
            if self._next is None:
                if isinstance(self._chunks, AsyncIterable):
                    self._next = aiter(self._chunks).__anext__
                else:
                    self._next = _stepper(self._chunks)
            chunk = _frozen(await self._next())
        except StopAsyncIteration:
            raise
        except BaseException as e:
            self.error = e
            raise
        self._left -= len(chunk)
        if self._left < 0:
            limit = self._store.capabilities.max_value_bytes
            raise StoreError(f"more than the {limit} bytes that a value of this store may have")
        return chunk


def _stepper(chunks: Iterable[BytesLike]) -> Callable[[], Awaitable[BytesLike]]:
    iterator = iter(chunks)

    async def step() -> BytesLike:
        for chunk in iterator:
            return chunk
        raise StopAsyncIteration

    return step


async def _each(items: Sequence[T], call: Callable[[T], Awaitable[R]]) -> list[R | StoreError]:
    """``call`` of every item, a bounded number at once; results aligned, StoreErrors in their places."""
    results: list[R | StoreError] = [StoreError("not tried")] * len(items)
    positions = iter(range(len(items)))
    refused: list[Exception] = []

    async def work() -> None:
        for position in positions:
            try:
                results[position] = await call(items[position])
            except StoreError as e:
                results[position] = e
            except Exception as e:
                # A ValueError of the store's own; raised below, since a task group would wrap it.
                refused.append(e)

    if len(items) == 1:
        await work()
    else:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(_BATCH_WIDTH, len(items))):
                group.create_task(work())
    if refused:
        raise refused[0]
    return results


_SEGMENT = r"(?!\.\.?(?:/|\Z))[^/\x00-\x1f\x7f\ud800-\udfff]+"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def is_key(text: str) -> bool:
    """Has the text the form of a key (whatever its length)? For stores that meet other people's names."""
    return _KEY.fullmatch(text) is not None


def _explain_key(key: str) -> str:
    if not key:
        return "it is empty"
    for segment in key.split("/"):
        if not segment:
            return "it has an empty segment (a leading, trailing or double '/')"
        if segment in (".", ".."):
            return f"segment {segment!r} is not allowed"
    return "it holds a control character or a lone surrogate"


def _check_range(start: int | None, end: int | None) -> tuple[int, int | None]:
    for name, value in (("start", start), ("end", end)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise TypeError(f"{name} is an int, not {type(value).__name__}")
        if value is not None and value < 0:
            raise ValueError(f"{name} must not be negative: {value}")
    if end is not None and (start or 0) > end:
        raise ValueError(f"start {start or 0} is after end {end}")
    return start or 0, end


def _frozen(data: BytesLike) -> Data:
    """The data in a form that the caller can't change while a write is still running behind a
    cancelled call.
    """
    if type(data) is bytes:
        return data
    if isinstance(data, str):
        raise TypeError("data is a bytes-like object, not str; encode it")
    try:
        view = memoryview(data)
    except TypeError:
        raise TypeError(f"data is a bytes-like object, not {type(data).__name__}") from None
    if view.c_contiguous and type(view.obj) is bytes:
        return view.cast("B") if view.ndim and view.nbytes else b""
    return view.tobytes()


def running_pid() -> int:
    """The process that runs now; stores compare it with the one that opened their connections (fork)."""
    return os.getpid()
