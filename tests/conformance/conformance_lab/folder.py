"""A right store on a folder, built differently from perdure.backends.local: anonymous temporary files, flat
percent-encoded names, no cache, no base class. Small parts are methods so that a broken store can replace one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import urllib.parse
from collections.abc import AsyncIterator, Callable
from typing import Any

from conformance_lab.contract import check_data, check_key, check_list, check_range
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Capabilities

CAPABILITIES = Capabilities(
    durability="power",
    multi_process=True,
    multi_host=False,
    max_value_bytes=1 << 31,
    max_create_bytes=32 << 20,
    max_key_bytes=1000,
    retry_seconds=2.0,
)
SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")
CHUNK = 1 << 20
WIDTH = 180


class FolderStore:
    """``folder-lab:///path``."""

    def __init__(self, url: str) -> None:
        parts = urllib.parse.urlsplit(url)
        for name, _ in urllib.parse.parse_qsl(parts.query, keep_blank_values=True):
            raise ValueError(f"unknown option {name!r}")
        self._url = url
        self.root = urllib.parse.unquote(parts.path)
        self.closed = False
        self.running = 0

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

    # --- names -----------------------------------------------------------------------------------------------
    def encode(self, key: str) -> str:
        flat = "".join(chr(b) if b in SAFE else f"%{b:02X}" for b in key.encode())
        pieces = [flat[i : i + WIDTH] for i in range(0, len(flat), WIDTH)]
        return "/".join([*(p + "+" for p in pieces[:-1]), pieces[-1] + "="])

    def decode(self, name: str) -> str:
        flat = "".join(part[:-1] for part in name.split("/"))
        return urllib.parse.unquote(flat)

    def path(self, key: str) -> str:
        return os.path.join(self.root, "d", self.encode(key))

    # --- calls -----------------------------------------------------------------------------------------------
    async def call(self, operation: str, key: str | None, function: Callable[..., Any], *args: Any) -> Any:
        self.check_open(operation, key)
        self.running += 1
        try:
            return await self.run(function, *args)
        except OSError as error:
            raise self.mapped(error, operation, key) from error
        except StoreError as error:
            error.url, error.key, error.operation = self.url, key, operation
            raise
        finally:
            self.running -= 1

    async def run(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.to_thread(function, *args)

    def check_open(self, operation: str, key: str | None) -> None:
        if self.closed:
            raise StoreError("this store is closed; open it anew", url=self.url, key=key, operation=operation)

    def mapped(self, error: OSError, operation: str, key: str | None) -> StoreError:
        where: dict[str, Any] = {"url": self.url, "key": key, "operation": operation}
        if error.errno in (errno.EACCES, errno.EPERM):
            return PermissionDenied(f"no permission for {key!r}: {error.strerror}", **where)
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.EINTR, errno.EAGAIN):
            return StoreUnavailable(f"{operation} of {key!r} can't be tried now: {error.strerror}", **where)
        return StoreError(f"{operation} of {key!r} failed: {error.strerror}; see the folder {self.root}", **where)

    # --- the contract ----------------------------------------------------------------------------------------
    async def create(self, key: str, data: Any) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        await self.call("create", key, self.write_new, key, self.sized("create", key, check_data(data)))

    async def put(self, key: str, data: Any) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        await self.call("put", key, self.replace, key, [self.sized("put", key, check_data(data))])

    def sized(self, operation: str, key: str, data: bytes) -> bytes:
        declared = self.capabilities
        limit = declared.max_create_bytes if operation == "create" else declared.max_value_bytes
        if len(data) > limit:
            raise StoreError(f"{key!r}: {len(data)} bytes, at most {limit}", url=self.url, key=key, operation=operation)
        return data

    async def get(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        check_key(key, self.capabilities.max_key_bytes)
        first, last = check_range(start, end)
        return await self.call("get", key, self.read, key, first, last)  # type: ignore[no-any-return]

    async def stat(self, key: str) -> int:
        check_key(key, self.capabilities.max_key_bytes)
        return await self.call("stat", key, self.size, key)  # type: ignore[no-any-return]

    async def delete(self, key: str) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        await self.call("delete", key, self.remove, key)

    async def list(
        self, prefix: str, start_after: str | None = None, limit: int | None = None
    ) -> AsyncIterator[tuple[str, int]]:
        check_list(prefix, start_after, limit)
        for item in await self.call("list", prefix, self.select, prefix, start_after or "", limit):
            yield item

    async def get_many(self, keys: Any) -> list[Any]:
        checked = [check_key(k, self.capabilities.max_key_bytes) for k in keys]
        self.check_open("get_many", None)
        return [await self.caught("get_many", k, self.read, k, 0, None) for k in checked]

    async def create_many(self, items: Any) -> list[Any]:
        checked = [(check_key(k, self.capabilities.max_key_bytes), check_data(d)) for k, d in items]
        self.check_open("create_many", None)
        return [await self.caught("create_many", k, self.write_new, k, d) for k, d in checked]

    async def caught(self, operation: str, key: str, function: Callable[..., Any], *args: Any) -> Any:
        try:
            return await self.call(operation, key, function, *args)
        except StoreError as error:
            return error

    async def upload(self, key: str, chunks: Any) -> None:
        check_key(key, self.capabilities.max_key_bytes)
        fd = await self.call("upload", key, self.temporary)
        try:
            async for chunk in chunks:
                await self.call("upload", key, write_all, fd, check_data(chunk))
            await self.call("upload", key, self.publish, fd, key)
        finally:
            os.close(fd)

    async def download(self, key: str) -> AsyncIterator[bytes]:
        check_key(key, self.capabilities.max_key_bytes)
        fd = await self.call("download", key, self.open_value, key)
        try:
            offset = 0
            while chunk := await self.call("download", key, os.pread, fd, CHUNK, offset):
                offset += len(chunk)
                yield chunk
        finally:
            os.close(fd)

    async def delete_prefix(self, prefix: str) -> int:
        check_list(prefix, None, None)
        if not prefix:
            raise ValueError("an empty prefix would empty the store")
        keys = [k async for k, _ in self.list(prefix)]
        for key in keys:
            await self.call("delete_prefix", key, self.remove, key)
        return len(keys)

    async def aclose(self) -> None:
        self.closed = True
        for _ in range(800):
            if not self.running:
                break
            await asyncio.sleep(0.005)

    # --- in threads ------------------------------------------------------------------------------------------
    def temporary(self) -> int:
        self.make_folder(self.root)
        return os.open(self.root, os.O_TMPFILE | os.O_RDWR, 0o644)

    def make_folder(self, path: str) -> None:
        missing = []
        while not os.path.isdir(path):
            missing.append(path)
            path = os.path.dirname(path)
        for one in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(one)
        for one in reversed(missing):
            self.sync_folder(os.path.dirname(one))

    def sync_folder(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_file(self, fd: int) -> None:
        os.fsync(fd)

    def write_new(self, key: str, data: bytes) -> None:
        path = self.path(key)
        self.make_folder(os.path.dirname(path))
        if os.path.exists(path):
            raise AlreadyExists(f"{key!r} exists")
        fd = self.temporary()
        try:
            write_all(fd, data)
            self.sync_file(fd)
            try:
                name_file(fd, path)
            except FileExistsError:
                raise AlreadyExists(f"{key!r} exists") from None
        finally:
            os.close(fd)
        self.published(path, key)

    def published(self, path: str, key: str) -> None:
        """The name is there: from here on an error leaves the outcome unknown (W1)."""
        try:
            self.sync_folder(os.path.dirname(path))
        except OSError as error:
            raise StoreUnavailable(f"{key!r} may be stored or not: {error.strerror}") from error

    def replace(self, key: str, parts: list[bytes]) -> None:
        fd = self.temporary()
        try:
            for part in parts:
                write_all(fd, part)
            self.publish(fd, key)
        finally:
            os.close(fd)

    def publish(self, fd: int, key: str) -> None:
        path = self.path(key)
        self.make_folder(os.path.dirname(path))
        self.sync_file(fd)
        # One name per process and descriptor: what a killed process leaves is overwritten by the next.
        spare = os.path.join(self.root, f"spare-{os.getpid() % 64}-{fd}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(spare)
        name_file(fd, spare)
        try:
            os.rename(spare, path)
        except OSError:
            os.unlink(spare)
            raise
        self.published(path, key)

    def open_value(self, key: str) -> int:
        try:
            return os.open(self.path(key), os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            self.check_folder()
            raise NotFound(f"no key {key!r}") from None

    def check_folder(self) -> None:
        parent = self.root
        while not os.path.isdir(parent):
            if os.path.lexists(parent) and not os.path.isdir(parent):
                raise StoreError(f"{parent} is not a folder: the store can't be there")
            parent = os.path.dirname(parent)

    def read(self, key: str, start: int, end: int | None) -> bytes:
        fd = self.open_value(key)
        try:
            size = os.fstat(fd).st_size
            last = size if end is None else min(end, size)
            parts, offset = [], min(start, size)
            while offset < last and (part := os.pread(fd, last - offset, offset)):
                parts.append(part)
                offset += len(part)
            return b"".join(parts)
        finally:
            os.close(fd)

    def size(self, key: str) -> int:
        fd = self.open_value(key)
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def remove(self, key: str) -> None:
        path = self.path(key)
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        self.published(path, key)

    def everything(self) -> list[tuple[str, int]]:
        """All keys with sizes, in no order."""
        found: list[tuple[str, int]] = []
        top = os.path.join(self.root, "d")

        def walk(folder: str, name: str) -> None:
            try:
                entries = os.scandir(folder)
            except FileNotFoundError:
                return
            with entries:
                for entry in entries:
                    if entry.name.endswith("+"):
                        walk(entry.path, f"{name}{entry.name}/")
                    elif entry.name.endswith("="):
                        with contextlib.suppress(FileNotFoundError):
                            found.append((self.decode(name + entry.name), entry.stat(follow_symlinks=False).st_size))

        walk(top, "")
        return found

    def select(self, prefix: str, after: str, limit: int | None) -> list[tuple[str, int]]:
        low = after.encode()
        found = [i for i in self.everything() if i[0].startswith(prefix) and i[0].encode() > low]
        found.sort(key=lambda i: i[0].encode())
        return found if limit is None else found[:limit]


def name_file(fd: int, path: str) -> None:
    """Give an anonymous file its name; FileExistsError if the name is taken."""
    # A dir_fd, though unused for an absolute path, makes Python call linkat, which follows the link in /proc.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
