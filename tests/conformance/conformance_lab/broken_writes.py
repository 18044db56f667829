"""Folder stores with one fault each: exclusiveness, atomicity, durability, locks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from conformance_lab import contract
from conformance_lab.broken_values import write_through
from conformance_lab.folder import FolderStore, write_all
from perdure.errors import AlreadyExists, StoreError, StoreUnavailable

EXISTS = "exists"


class ExistsThenWrite(FolderStore):
    """create = exists?, then write."""

    def write_new(self, key: str, data: bytes) -> None:
        if os.path.exists(self.path(key)):
            raise AlreadyExists(f"{key!r} exists")
        self.replace(key, [data])


class ExistsThenWriteManyOnly(FolderStore):
    """The batch checks first and writes afterwards; create itself is right."""

    async def create_many(self, items: Any) -> list[Any]:
        checked = [(contract.check_key(k, 1000), contract.check_data(d)) for k, d in items]
        self.check_open("create_many", None)
        out: list[Any] = []
        for key, data in checked:
            if os.path.exists(self.path(key)):
                out.append(AlreadyExists("exists", url=self.url, key=key, operation="create_many"))
            else:
                await self.call("create_many", key, self.replace, key, [data])
                out.append(None)
        return out


class ThreadLockOnly(FolderStore):
    """A lock of this process, and multi_process=True all the same."""

    def write_new(self, key: str, data: bytes) -> None:
        with _lock:
            if os.path.exists(self.path(key)):
                raise AlreadyExists(f"{key!r} exists")
            self.replace(key, [data])


_lock = threading.Lock()


class LockInTemporaryFolder(FolderStore):
    """The lock lies in TMPDIR: whoever has another TMPDIR has another lock."""

    def write_new(self, key: str, data: bytes) -> None:
        import fcntl

        with open(os.path.join(tempfile.gettempdir(), "conformance-lab.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if os.path.exists(self.path(key)):
                raise AlreadyExists(f"{key!r} exists")
            self.replace(key, [data])


class IgnoresCondition(FolderStore):
    """create = put, as with some S3 servers."""

    def write_new(self, key: str, data: bytes) -> None:
        self.replace(key, [data])


class EqualIsCreated(FolderStore):
    def write_new(self, key: str, data: bytes) -> None:
        try:
            super().write_new(key, data)
        except AlreadyExists:
            if self.read(key, 0, None) != data:
                raise


class WritesFinalName(FolderStore):
    """create opens the final name with O_EXCL and writes into it."""

    def write_new(self, key: str, data: bytes) -> None:
        path = self.path(key)
        self.make_folder(os.path.dirname(path))
        try:
            write_through(path, data, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            raise AlreadyExists(f"{key!r} exists") from None


class Graveyard(FolderStore):
    """A deleted key can never be created again."""

    def grave(self, key: str) -> str:
        return os.path.join(self.root, "grave-" + self.encode(key).replace("/", "_")[:200])

    def remove(self, key: str) -> None:
        if os.path.exists(self.path(key)):
            Path(self.grave(key)).touch()
        super().remove(key)

    def write_new(self, key: str, data: bytes) -> None:
        if os.path.exists(self.grave(key)):
            raise AlreadyExists(f"{key!r} existed")
        super().write_new(key, data)


class TruncatesFirst(FolderStore):
    """put opens with O_TRUNC and writes."""

    def replace(self, key: str, parts: list[bytes]) -> None:
        path = self.path(key)
        self.make_folder(os.path.dirname(path))
        write_through(path, b"".join(parts), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)


class DeleteThenCreate(FolderStore):
    """replace = delete + create."""

    def publish(self, fd: int, key: str) -> None:
        self.remove(key)
        super().publish(fd, key)


class KeepsTheTail(FolderStore):
    """put writes over the old value and forgets to cut it."""

    def replace(self, key: str, parts: list[bytes]) -> None:
        path = self.path(key)
        self.make_folder(os.path.dirname(path))
        write_through(path, b"".join(parts), os.O_CREAT | os.O_WRONLY)


class OneTemporaryName(FolderStore):
    """All writers of a key share one temporary file."""

    def replace(self, key: str, parts: list[bytes]) -> None:
        path = self.path(key)
        self.make_folder(os.path.dirname(path))
        write_through(path + ".t", b"".join(parts), os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path + ".t", path)

    async def upload(self, key: str, chunks: Any) -> None:
        contract.check_key(key, 1000)
        path = self.path(key)
        self.make_folder(os.path.dirname(path))
        fd = os.open(path + ".t", os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o644)
        try:
            async for chunk in chunks:
                await self.run(write_all, fd, contract.check_data(chunk))
            with contextlib.suppress(FileNotFoundError):
                os.rename(path + ".t", path)
        finally:
            os.close(fd)


class NewestClockWins(FolderStore):
    """put is dropped if the stored value has a later wall-clock time."""

    def replace(self, key: str, parts: list[bytes]) -> None:
        stamp = Path(self.root, "time-" + self.encode(key).replace("/", "_")[:200])
        now = time.time()
        with contextlib.suppress(OSError, ValueError):
            if float(stamp.read_text()) > now:
                return
        super().replace(key, parts)
        stamp.write_text(str(now))


class KeepsOldVersions(FolderStore):
    def publish(self, fd: int, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.link(self.path(key), os.path.join(self.root, f"version-{random.getrandbits(60):x}"))
        super().publish(fd, key)


class NamedTemporaries(FolderStore):
    """Temporary files with names of their own, which nobody removes after a kill."""

    def write_new(self, key: str, data: bytes) -> None:
        self.make_folder(os.path.dirname(self.path(key)))
        part = os.path.join(self.root, f"part-{random.getrandbits(60):x}")
        write_through(part, data, os.O_CREAT | os.O_WRONLY)
        time.sleep(0.004)
        try:
            os.link(part, self.path(key))
        except FileExistsError:
            raise AlreadyExists(f"{key!r} exists") from None
        finally:
            os.unlink(part)

    def replace(self, key: str, parts: list[bytes]) -> None:
        self.make_folder(os.path.dirname(self.path(key)))
        part = os.path.join(self.root, f"part-{random.getrandbits(60):x}")
        write_through(part, b"".join(parts), os.O_CREAT | os.O_WRONLY)
        time.sleep(0.004)
        os.rename(part, self.path(key))


class LockFile(FolderStore):
    """A lock file beside the value, which stays after a kill."""

    def locked(self, key: str) -> str:
        path = self.path(key) + ".lock"
        self.make_folder(os.path.dirname(path))
        end = time.monotonic() + 1
        while True:
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL))
                return path
            except FileExistsError:
                if time.monotonic() > end:
                    raise StoreUnavailable(f"{key!r} is locked") from None
                time.sleep(0.01)

    def write_new(self, key: str, data: bytes) -> None:
        lock = self.locked(key)
        try:
            super().write_new(key, data)
        finally:
            os.unlink(lock)

    def replace(self, key: str, parts: list[bytes]) -> None:
        lock = self.locked(key)
        try:
            super().replace(key, parts)
        finally:
            os.unlink(lock)


class LeaseLock(FolderStore):
    """A lock that others break after 0.15 s; its holder never looks again."""

    def write_new(self, key: str, data: bytes) -> None:
        lock = self.path(key) + ".lock"
        self.make_folder(os.path.dirname(lock))
        while True:
            try:
                os.close(os.open(lock, os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - os.stat(lock).st_mtime > 0.15:
                        os.unlink(lock)
                time.sleep(0.005)
        try:
            if os.path.exists(self.path(key)):
                raise AlreadyExists(f"{key!r} exists")
            self.replace(key, [data])
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lock)


class TwoStepDelete(FolderStore):
    """delete empties the value, then removes its name."""

    def remove(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self.path(key), os.O_WRONLY)
            os.ftruncate(fd, 0)
            os.close(fd)
        super().remove(key)


class WriteBehind(FolderStore):
    """Values stay in memory until aclose (or the next listing)."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.waiting: dict[str, bytes] = {}

    def flush(self, key: str | None = None) -> None:
        for one in [k for k in self.waiting if key in (None, k)]:
            FolderStore.replace(self, one, [self.waiting.pop(one)])

    def write_new(self, key: str, data: bytes) -> None:
        if key in self.waiting or os.path.exists(self.path(key)):
            raise AlreadyExists(f"{key!r} exists")
        self.waiting[key] = data

    def replace(self, key: str, parts: list[bytes]) -> None:
        self.waiting[key] = b"".join(parts)

    def open_value(self, key: str) -> int:
        self.flush(key)
        return super().open_value(key)

    def remove(self, key: str) -> None:
        self.flush(key)
        super().remove(key)

    def everything(self) -> list[tuple[str, int]]:
        self.flush()
        return super().everything()

    async def aclose(self) -> None:
        self.flush()
        await super().aclose()


class NoSync(FolderStore):
    """No sync at all, and declares ``power``."""

    def sync_file(self, fd: int) -> None:
        return

    def sync_folder(self, path: str) -> None:
        return


class NoFolderSync(FolderStore):
    """Syncs content, never a name: what SIGKILL never shows."""

    def sync_folder(self, path: str) -> None:
        return


class LogsErrors(FolderStore):
    """Errors of put are logged, not raised."""

    def replace(self, key: str, parts: list[bytes]) -> None:
        try:
            super().replace(key, parts)
        except OSError:
            logging.getLogger("lab").warning("put failed")

    async def upload(self, key: str, chunks: Any) -> None:
        try:
            await super().upload(key, chunks)
        except StoreError as error:
            if not isinstance(error.__cause__, OSError):
                raise


class CreateManyInPlace(WritesFinalName):
    """create is right, the batch writes into final names."""

    def write_new(self, key: str, data: bytes) -> None:
        if self.batch:
            super().write_new(key, data)
            time.sleep(0.0005)
        else:
            FolderStore.write_new(self, key, data)

    batch = False

    async def create_many(self, items: Any) -> list[Any]:
        self.batch = True
        try:
            return await super().create_many(items)
        finally:
            self.batch = False


class ForkDisabled(FolderStore):
    """Works only in the process that opened it (a pid is kept), and hangs elsewhere."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pid = os.getpid()

    async def run(self, function: Any, *args: Any) -> Any:
        if os.getpid() != self.pid:
            await asyncio.sleep(3600)
        return await asyncio.to_thread(function, *args)


class ForkLosesExclusion(FolderStore):
    """A forked copy loses its lock and checks first, then writes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.pid = os.getpid()

    def write_new(self, key: str, data: bytes) -> None:
        if os.getpid() == self.pid:
            super().write_new(key, data)
            return
        if os.path.exists(self.path(key)):
            raise AlreadyExists(f"{key!r} exists")
        time.sleep(0.001)
        self.replace(key, [data])
