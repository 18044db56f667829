"""Folder stores with one fault each: values, reading, streams, limits, lifetimes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import mmap
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from conformance_lab import contract
from conformance_lab.folder import CAPABILITIES, CHUNK, FolderStore, write_all
from perdure.errors import NotFound, StoreError
from perdure.store import Capabilities

MIB = 2**20


# --- values ----------------------------------------------------------------------------------------------


class Altered(FolderStore):
    """Every value is altered before it is written."""

    def alter(self, data: bytes) -> bytes:
        raise NotImplementedError

    def write_new(self, key: str, data: bytes) -> None:
        super().write_new(key, self.alter(data))

    def replace(self, key: str, parts: list[bytes]) -> None:
        super().replace(key, [self.alter(b"".join(parts))])


class LosesLastByte(Altered):
    def alter(self, data: bytes) -> bytes:
        return data[:-1] if data and len(data) % 4096 == 0 else data


class FixesLineEnds(Altered):
    def alter(self, data: bytes) -> bytes:
        return data.replace(b"\r\n", b"\n")


class CutsAt8Mib(Altered):
    def alter(self, data: bytes) -> bytes:
        return data[: 8 * MIB]


class CutsAt64Mib(Altered):
    def alter(self, data: bytes) -> bytes:
        return data[: 64 * MIB]


class EmptyIsAbsent(FolderStore):
    def open_value(self, key: str) -> int:
        fd = super().open_value(key)
        if os.fstat(fd).st_size == 0:
            os.close(fd)
            raise NotFound(f"no key {key!r}")
        return fd


class TakesText(FolderStore):
    async def create(self, key: str, data: Any) -> None:
        await super().create(key, data.encode() if isinstance(data, str) else data)

    async def put(self, key: str, data: Any) -> None:
        await super().put(key, data.encode() if isinstance(data, str) else data)


class KeepsCallersBuffer(FolderStore):
    """Keeps what was written, by reference, to answer the next read."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.kept: dict[str, Any] = {}

    async def create(self, key: str, data: Any) -> None:
        await super().create(key, data)
        self.kept = {key: data}

    async def put(self, key: str, data: Any) -> None:
        await super().put(key, data)
        self.kept = {key: data}

    async def create_many(self, items: Any) -> list[Any]:
        self.kept = {}
        return await super().create_many(items)

    async def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        found = await super().get(key, start, end)
        if key in self.kept and start is None and end is None:
            return bytes(self.kept[key])
        return found


class MappedInPlace(FolderStore):
    """get maps the file, put writes into it."""

    def read(self, key: str, start: int, end: int | None) -> Any:
        fd = self.open_value(key)
        try:
            size = os.fstat(fd).st_size
            if not size:
                return b""
            return memoryview(mmap.mmap(fd, size, access=mmap.ACCESS_READ))[start:end]
        finally:
            os.close(fd)

    def replace(self, key: str, parts: list[bytes]) -> None:
        path, data = self.path(key), b"".join(parts)
        if os.path.exists(path) and os.path.getsize(path) == len(data):
            with open(path, "r+b") as f:
                f.write(data)
        else:
            super().replace(key, parts)


class NoLimits(FolderStore):
    def sized(self, operation: str, key: str, data: bytes) -> bytes:
        return data


# --- reading ---------------------------------------------------------------------------------------------


class MissingIsEmpty(FolderStore):
    async def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        try:
            return await super().get(key, start, end)
        except NotFound:
            return b""


class EndInclusive(FolderStore):
    def read(self, key: str, start: int, end: int | None) -> bytes:
        return super().read(key, start, None if end is None else end + 1)


class PastEndRaises(FolderStore):
    def read(self, key: str, start: int, end: int | None) -> bytes:
        if start and start >= self.size(key):
            raise StoreError(f"range of {key!r} not satisfiable")
        return super().read(key, start, end)


class NegativeIsSuffix(FolderStore):
    async def get(self, key: str, start: Any = None, end: Any = None) -> bytes:
        if isinstance(start, int) and start < 0:
            return (await super().get(key))[start:end]
        return await super().get(key, start, end)


class ShortRanges(FolderStore):
    """A ranged get gives at most 64 KiB."""

    def read(self, key: str, start: int, end: int | None) -> bytes:
        return super().read(key, start, min(end, start + 65536) if end is not None else end)


class OneResult(FolderStore):
    """Concurrent gets share the place of their result."""

    async def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        self.result = await super().get(key, start, end)
        await asyncio.sleep(0)
        return self.result


class LeaksDescriptors(FolderStore):
    def read(self, key: str, start: int, end: int | None) -> bytes:
        try:
            return super().read(key, start, end)
        except NotFound:
            _leaked.append(os.open("/dev/null", os.O_RDONLY))
            raise


_leaked: list[Any] = []


class StatInBlocks(FolderStore):
    def size(self, key: str) -> int:
        return (super().size(key) + 511) // 512 * 512


class StatMissingIsZero(FolderStore):
    def size(self, key: str) -> int:
        try:
            return super().size(key)
        except NotFound:
            return 0


class CachesReads(FolderStore):
    """What an instance has read, it never reads again (until it writes that key itself)."""

    absence = False

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.known: dict[str, bytes | None] = {}

    def forget(self, key: str) -> None:
        self.known.pop(key, None)

    def read(self, key: str, start: int, end: int | None) -> bytes:
        if key not in self.known:
            try:
                self.known[key] = super().read(key, 0, None)
            except NotFound:
                if not self.absence:
                    raise
                self.known[key] = None
        found = self.known[key]
        if found is None:
            raise NotFound(f"no key {key!r}")
        return found[start:end]

    def size(self, key: str) -> int:
        return len(self.read(key, 0, None))

    def write_new(self, key: str, data: bytes) -> None:
        self.forget(key)
        super().write_new(key, data)

    def publish(self, fd: int, key: str) -> None:
        self.forget(key)
        super().publish(fd, key)

    def remove(self, key: str) -> None:
        self.forget(key)
        super().remove(key)


class CachesAbsence(CachesReads):
    absence = True

    def forget(self, key: str) -> None:
        self.known.pop(key, None)

    def read(self, key: str, start: int, end: int | None) -> bytes:
        if self.known.get(key, b"") is not None:
            self.known.pop(key, None)
        return super().read(key, start, end)


class LaggingReplica(FolderStore):
    """Every third read is answered by the version before."""

    def publish(self, fd: int, key: str) -> None:
        with contextlib.suppress(OSError, NotFound):
            data = FolderStore.read(self, key, 0, None)
            Path(self.root, "old-" + self.encode(key).replace("/", "_")).write_bytes(data)
        super().publish(fd, key)

    def read(self, key: str, start: int, end: int | None) -> bytes:
        current = super().read(key, start, end)
        if random.random() < 0.3:
            with contextlib.suppress(OSError):
                return Path(self.root, "old-" + self.encode(key).replace("/", "_")).read_bytes()[start:end]
        return current


class ReopensPerChunk(FolderStore):
    """download reads each chunk from whatever the key holds by then."""

    async def download(self, key: str) -> Any:
        contract.check_key(key, 1000)
        offset = 0
        while chunk := await self.call("download", key, self.read, key, offset, offset + CHUNK):
            offset += len(chunk)
            yield chunk
        if not offset:
            await self.stat(key)


class DownloadMissingIsEmpty(FolderStore):
    async def download(self, key: str) -> Any:
        try:
            async for chunk in super().download(key):
                yield chunk
        except NotFound:
            return


class LeaksDownloads(FolderStore):
    async def download(self, key: str) -> Any:
        _leaked.append(await self.call("download", key, self.open_value, key))
        async for chunk in super().download(key):
            yield chunk


# --- streams ---------------------------------------------------------------------------------------------


class StopsAtEmptyChunk(FolderStore):
    async def upload(self, key: str, chunks: Any) -> None:
        async def until() -> Any:
            async for chunk in chunks:
                if not len(chunk):
                    return
                yield chunk

        await super().upload(key, until())


class NoChunkNoValue(FolderStore):
    async def upload(self, key: str, chunks: Any) -> None:
        parts = [contract.check_data(c) async for c in chunks]
        if b"".join(parts):
            await self.put(key, b"".join(parts))


class PublishesPartial(FolderStore):
    """A source that fails leaves what it gave."""

    async def upload(self, key: str, chunks: Any) -> None:
        contract.check_key(key, 1000)
        parts: list[bytes] = []
        try:
            async for chunk in chunks:
                parts.append(contract.check_data(chunk))
        finally:
            await self.put(key, b"".join(parts))


class UploadsInPlace(FolderStore):
    """An upload grows under its own name."""

    async def upload(self, key: str, chunks: Any) -> None:
        contract.check_key(key, 1000)
        await self.put(key, b"")
        with open(self.path(key), "ab") as f:
            async for chunk in chunks:
                await self.run(f.write, contract.check_data(chunk))
                await self.run(f.flush)


class JoinsInMemory(FolderStore):
    async def upload(self, key: str, chunks: Any) -> None:
        await self.call("upload", key, self.replace, key, [bytes(c) async for c in chunks])


class CancelLeavesParts(FolderStore):
    """Parts of an upload have names, and only success removes them."""

    async def upload(self, key: str, chunks: Any) -> None:
        part = os.path.join(self.root, f"part-{random.getrandbits(60):x}")
        await self.call("upload", key, self.make_folder, self.root)
        with open(part, "wb") as f:
            async for chunk in chunks:
                await self.run(f.write, contract.check_data(chunk))
                f.flush()
        data = await self.run(Path(part).read_bytes)
        await self.call("upload", key, self.replace, key, [data])
        os.unlink(part)


class UploadBlocksAll(FolderStore):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.lock: asyncio.Lock | None = None

    async def upload(self, key: str, chunks: Any) -> None:
        self.lock = self.lock or asyncio.Lock()
        async with self.lock:
            await super().upload(key, chunks)

    async def create(self, key: str, data: Any) -> None:
        self.lock = self.lock or asyncio.Lock()
        async with self.lock:
            await super().create(key, data)


# --- errors and lifetimes --------------------------------------------------------------------------------


class RaisesKeyError(FolderStore):
    async def stat(self, key: str) -> int:
        try:
            return await super().stat(key)
        except NotFound:
            raise KeyError(key) from None


class OddError(StoreError):
    def __init__(self, url: str, key: str) -> None:
        super().__init__(f"trouble with {key!r}", url=url, key=key)
        self.extra = lambda: None


class UnpicklableErrors(FolderStore):
    def check_open(self, operation: str, key: str | None) -> None:
        if self.closed:
            raise OddError(self.url, key or "")


class NamelessErrors(FolderStore):
    async def call(self, operation: str, key: str | None, function: Any, *args: Any) -> Any:
        try:
            return await super().call(operation, key, function, *args)
        except NotFound:
            raise NotFound("not found") from None


class WorksAfterClose(FolderStore):
    def check_open(self, operation: str, key: str | None) -> None:
        return


class LeavesThreads(FolderStore):
    """Each instance has threads of its own and never ends them."""

    async def run(self, function: Any, *args: Any) -> Any:
        if not hasattr(self, "pool"):
            self.pool = ThreadPoolExecutor(4)
            _leaked.append(self.pool)
        return await asyncio.get_running_loop().run_in_executor(self.pool, function, *args)


class CloseBreaksCalls(FolderStore):
    async def run(self, function: Any, *args: Any) -> Any:
        result = await asyncio.to_thread(function, *args)
        if self.closed:
            raise RuntimeError("the pool was shut down")
        return result


class LeaksPerInstance(FolderStore):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        _leaked.append(os.open("/dev/null", os.O_RDONLY))


class LeaksOnCancel(FolderStore):
    async def run(self, function: Any, *args: Any) -> Any:
        try:
            return await asyncio.to_thread(function, *args)
        except asyncio.CancelledError:
            _leaked.append(os.open("/dev/null", os.O_RDONLY))
            raise


class BlocksTheLoop(FolderStore):
    async def run(self, function: Any, *args: Any) -> Any:
        time.sleep(0.12 if args and len(str(args[-1])) > 10_000 else 0)
        return function(*args)


class Crowded(FolderStore):
    """No more than 30 calls at once."""

    async def call(self, operation: str, key: str | None, function: Any, *args: Any) -> Any:
        if self.running >= 30:
            raise StoreError("too many calls at once", url=self.url, key=key, operation=operation)
        return await super().call(operation, key, function, *args)


class CopyElsewhere(FolderStore):
    def __reduce__(self) -> Any:
        return type(self), (self._url + "-copy",)


class CopyByWorkingFolder(FolderStore):
    """The pickle holds a path that is relative to the working folder."""

    def __reduce__(self) -> Any:
        return _relative, (type(self), os.path.relpath(self.root), self._url)


def _relative(cls: type[FolderStore], path: str, url: str) -> FolderStore:
    store = cls(url)
    store.root = os.path.abspath(path)
    return store


class BackgroundPoller(FolderStore):
    """A thread that is never idle."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        threading.Thread(target=self.poll, daemon=True).start()

    def poll(self) -> None:
        while not self.closed:
            end = time.monotonic() + 0.02
            while time.monotonic() < end:
                pass
            time.sleep(0.1)


class ExpiresByClock(FolderStore):
    """A value counts as gone a minute after it was written, by the wall clock."""

    def open_value(self, key: str) -> int:
        fd = super().open_value(key)
        if abs(time.time() - os.fstat(fd).st_mtime) > 60:
            os.close(fd)
            raise NotFound(f"{key!r} has expired")
        return fd

    def write_new(self, key: str, data: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            if abs(time.time() - os.stat(self.path(key)).st_mtime) > 60:
                os.unlink(self.path(key))
        super().write_new(key, data)


class UnreadableIsMissing(FolderStore):
    async def call(self, operation: str, key: str | None, function: Any, *args: Any) -> Any:
        try:
            return await super().call(operation, key, function, *args)
        except StoreError as error:
            cause = error.__cause__
            if isinstance(cause, OSError) and cause.errno in (errno.EIO, errno.EACCES) and operation in ("get", "stat"):
                raise NotFound(f"no key {key!r}", url=self.url, key=key, operation=operation) from None
            raise


class DescriptorsArePermanent(FolderStore):
    def mapped(self, error: OSError, operation: str, key: str | None) -> StoreError:
        return StoreError(f"{operation} of {key!r} failed: {error}", url=self.url, key=key, operation=operation)


class MissingPlaceIsNotFound(FolderStore):
    def mapped(self, error: OSError, operation: str, key: str | None) -> StoreError:
        if error.errno in (errno.ENOTDIR, errno.ENOENT):
            return NotFound(f"no key {key!r} in this place", url=self.url, key=key, operation=operation)
        return super().mapped(error, operation, key)

    def check_folder(self) -> None:
        return


# --- declarations ----------------------------------------------------------------------------------------


class UntypedCapabilities(FolderStore):
    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(CAPABILITIES, multi_process="yes")  # type: ignore[arg-type]


class ShortKeys(FolderStore):
    @property
    def capabilities(self) -> Capabilities:
        return dataclasses.replace(CAPABILITIES, max_key_bytes=600)


class TakesAnyOption(FolderStore):
    def __init__(self, url: str) -> None:
        super().__init__(url.partition("?")[0])


class SlowButLocal(FolderStore):
    def read(self, key: str, start: int, end: int | None) -> bytes:
        time.sleep(0.06)
        return super().read(key, start, end)


class SecretInRepr(FolderStore):
    """Takes a password in its URL and shows it."""

    def __init__(self, url: str) -> None:
        super().__init__(url.partition("?")[0])
        self._shown = url

    def __repr__(self) -> str:
        return f"SecretInRepr({self._shown!r})"


class NewlineAtEnd(Altered):
    def alter(self, data: bytes) -> bytes:
        return data + b"\n"


class SkewedStat(FolderStore):
    """stat is remembered for a key until this instance writes it."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sizes: dict[str, int] = {}

    def size(self, key: str) -> int:
        if key not in self.sizes:
            self.sizes[key] = super().size(key)
        return self.sizes[key]

    def write_new(self, key: str, data: bytes) -> None:
        self.sizes.pop(key, None)
        super().write_new(key, data)

    def publish(self, fd: int, key: str) -> None:
        self.sizes.pop(key, None)
        super().publish(fd, key)

    def remove(self, key: str) -> None:
        self.sizes.pop(key, None)
        super().remove(key)


def write_through(path: str, data: bytes, mode: int) -> None:
    """Write straight into a final name."""
    fd = os.open(path, mode, 0o644)
    try:
        for start in range(0, max(1, len(data)), 200_000):
            write_all(fd, data[start : start + 200_000])
            time.sleep(0.0005)
    finally:
        os.close(fd)
