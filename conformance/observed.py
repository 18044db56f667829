"""A store as the suite calls it: the subject's own, with every call written down.

The recorder answers three questions afterwards: what were the last calls, which errors left the store, and
did an exception come from the store or from the suite. It must never change what the store does.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import os
import sysconfig
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable

ALLOWED = (StoreError, ValueError, TypeError, asyncio.CancelledError, TimeoutError)
NAMED = (StoreError, NotFound, AlreadyExists, PermissionDenied, StoreUnavailable)


class Violation(Exception):
    """A rule is broken, said from where no judge is at hand (a child process, a wrapper): FAILED."""


def brief(value: Any, limit: int = 60) -> str:
    """A short text of any value, with the length of bytes instead of their content."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        data = bytes(value[:16]) if not isinstance(value, memoryview) or value.contiguous else b"(strided)"
        return repr(data) if len(value) <= 16 else f"<{len(value)} bytes, first {data[:8]!r}>"
    if isinstance(value, (list, tuple)) and len(value) > 4:
        part = max(24, limit // 3)
        return f"<{type(value).__name__} of {len(value)}: {', '.join(brief(v, part) for v in value[:3])}, …>"
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 12]}…<{len(text)} long>"


@dataclasses.dataclass(slots=True)
class Call:
    """One call: monotonic start and end in seconds, and how it ended."""

    operation: str
    arguments: str
    start: float
    end: float = 0.0
    outcome: str = "…"

    def __str__(self) -> str:
        return f"{self.operation}({self.arguments}) → {self.outcome}  [{(self.end - self.start) * 1000:.1f} ms]"


@dataclasses.dataclass(slots=True)
class Seen:
    """An error that left a method."""

    operation: str
    key: str | None
    error: BaseException


class Recorder:
    """What the stores of one case did. Kept small: the last 20 calls, a few errors of each kind."""

    def __init__(self) -> None:
        self.calls: collections.deque[Call] = collections.deque(maxlen=20)
        self.count = 0
        self.errors: list[Seen] = []
        self._kinds: collections.Counter[tuple[str, type]] = collections.Counter()
        self._recent: collections.deque[BaseException] = collections.deque(maxlen=300)

    def begin(self, operation: str, arguments: Iterable[Any]) -> Call:
        self.count += 1
        call = Call(operation, ", ".join(brief(a) for a in arguments), time.monotonic())
        self.calls.append(call)
        return call

    def raised(self, call: Call, operation: str, key: Any, error: BaseException) -> None:
        call.end = time.monotonic()
        call.outcome = f"{type(error).__name__}: {str(error)[:120]}"
        self._recent.append(error)
        kind = (operation, type(error))
        self._kinds[kind] += 1
        if self._kinds[kind] <= 3:
            self.errors.append(Seen(operation, key if isinstance(key, str) else None, error))

    def came_from_store(self, error: BaseException | None) -> bool:
        """Whether this very exception (or one it was raised from) left a method of the store."""
        while error is not None:
            if any(error is known for known in self._recent):
                return True
            if isinstance(error, BaseExceptionGroup):
                return any(self.came_from_store(e) for e in error.exceptions)
            error = error.__cause__ or error.__context__
        return False


class _Source:
    """The chunks of an upload, remembering what they raised: the source's own error is not the store's."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = aiter(chunks)
        self.raised: BaseException | None = None

    def __aiter__(self) -> _Source:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._chunks)
        except (StopAsyncIteration, asyncio.CancelledError):
            raise
        except BaseException as error:
            self.raised = error
            raise


_SUITE = os.path.dirname(os.path.abspath(__file__))
_STDLIB = sysconfig.get_paths()["stdlib"]


def from_subject(error: BaseException | None) -> bool:
    """Whether code that is neither the suite's nor Python's own raised it: a plugin's unforeseen exception."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            ours = name.startswith((_SUITE, "<")) or "hypothesis" in name
            if not ours and not (name.startswith(_STDLIB) and "site-packages" not in name):
                return True
            trace = trace.tb_next
        error = error.__cause__
    return False


class ObservedStore:
    """The store's eleven methods, each passed on unchanged and written down."""

    def __init__(self, inner: Any, recorder: Recorder) -> None:
        self.inner = inner
        self.recorder = recorder

    def __reduce__(self) -> tuple[Any, ...]:
        return _observe, (self.inner,)

    async def _call(self, operation: str, method: Callable[..., Awaitable[Any]], *args: Any, **kw: Any) -> Any:
        call = self.recorder.begin(operation, [*args, *(v for v in kw.values() if v is not None)])
        try:
            result = await method(*args, **kw)
        except BaseException as error:
            self.recorder.raised(call, operation, args[0] if args else None, error)
            raise
        call.end = time.monotonic()
        call.outcome = brief(result)
        return result

    async def create(self, key: Any, data: Any) -> None:
        await self._returns_none("create", self.inner.create, key, data)

    async def put(self, key: Any, data: Any) -> None:
        await self._returns_none("put", self.inner.put, key, data)

    async def _returns_none(self, operation: str, method: Callable[..., Awaitable[Any]], *args: Any) -> None:
        result = await self._call(operation, method, *args)
        if result is not None:
            raise Violation(f"A1: {operation} must return None, it returned {brief(result)}")

    async def get(self, key: Any, start: Any = None, end: Any = None) -> Any:
        if start is None and end is None:
            return await self._call("get", self.inner.get, key)
        return await self._call("get", self.inner.get, key, start=start, end=end)

    async def stat(self, key: Any) -> int:
        return await self._call("stat", self.inner.stat, key)  # type: ignore[no-any-return]

    async def delete(self, key: Any) -> None:
        await self._returns_none("delete", self.inner.delete, key)

    async def list(
        self, prefix: Any = "", start_after: Any = None, limit: Any = None
    ) -> AsyncIterator[tuple[str, int]]:
        call = self.recorder.begin("list", [prefix, *(a for a in (start_after, limit) if a is not None)])
        count = 0
        extra: dict[str, Any] = {}
        if start_after is not None:
            extra["start_after"] = start_after
        if limit is not None:
            extra["limit"] = limit
        inner: Any = None
        try:
            inner = self.inner.list(prefix, **extra)
            async for item in inner:
                count += 1
                yield item
        except GeneratorExit:
            call.end = time.monotonic()
            call.outcome = f"stopped after {count}"
            await inner.aclose()
            raise
        except BaseException as error:
            self.recorder.raised(call, "list", None, error)
            raise
        call.end = time.monotonic()
        call.outcome = f"{count} keys"

    async def get_many(self, keys: Any) -> Any:
        return await self._call("get_many", self.inner.get_many, keys)

    async def create_many(self, items: Any) -> Any:
        return await self._call("create_many", self.inner.create_many, items)

    async def upload(self, key: Any, chunks: Any) -> None:
        source = _Source(chunks) if hasattr(chunks, "__aiter__") else None
        call = self.recorder.begin("upload", [key])
        try:
            result = await self.inner.upload(key, source or chunks)
        except BaseException as error:
            if source is not None and error is source.raised:
                call.outcome = f"the source raised {type(error).__name__}"
                raise
            self.recorder.raised(call, "upload", key, error)
            raise
        call.end = time.monotonic()
        call.outcome = brief(result)
        if result is not None:
            raise Violation(f"A1: upload must return None, it returned {brief(result)}")

    async def download(self, key: Any) -> AsyncIterator[Any]:
        call = self.recorder.begin("download", [key])
        count = 0
        inner: Any = None
        try:
            inner = self.inner.download(key)
            async for chunk in inner:
                count += len(chunk)
                yield chunk
        except GeneratorExit:
            call.end = time.monotonic()
            call.outcome = f"dropped after {count} bytes"
            await inner.aclose()
            raise
        except BaseException as error:
            self.recorder.raised(call, "download", key, error)
            raise
        call.end = time.monotonic()
        call.outcome = f"{count} bytes"

    async def delete_prefix(self, prefix: Any) -> int:
        return await self._call("delete_prefix", self.inner.delete_prefix, prefix)  # type: ignore[no-any-return]

    @property
    def capabilities(self) -> Any:
        return self.inner.capabilities

    @property
    def url(self) -> str:
        return self.inner.url  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        await self._call("aclose", self.inner.aclose)

    def __repr__(self) -> str:
        return repr(self.inner)


def _observe(inner: Any) -> ObservedStore:
    return ObservedStore(inner, Recorder())
