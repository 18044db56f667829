"""``file:///folder``: a store in a local folder, safe for all processes of one host.

Owns the asynchronous face: what runs in the event loop and what in threads. Anything that may wait for the
disk runs in threads (a hop costs about 60 µs, a durable write 400 and more). Small reads are served from the
page cache in 10–30 µs, so they run in the loop, until one takes longer than 20 ms: a disk that slow, or a
network filesystem, gets threads for the rest of the instance's life.

The folder is made at first use, unless ``create=false``. A write is durable against a power cut when it
returns.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar, TypeVar

from perdure.backends import local_batch, local_files
from perdure.backends.local_files import Files, NeedsSync, drop, start_writeback, write_all
from perdure.backends.local_mount import lagging
from perdure.backends.local_scan import PAGE, Scan, TooMuch
from perdure.errors import StoreError
from perdure.store import Capabilities, Data, Page, Store, running_pid
from perdure.store_url import StoreUrl
from perdure.threads import Threads

T = TypeVar("T")

_WIDTH = 8  # threads: raw creates/s are 2,300 with one, 5,300 with 4, 7,600 with 8, 8,300 with 16
_SLOW = 0.02
_INLINE_ENTRIES = 1500
_INLINE_BYTES = 1 << 20
_MAP_FROM = 1 << 20
_CHUNK = 4 << 20
_BATCH_PARTS = 4


class LocalStore(Store):
    """A store in a folder; see the module's text."""

    option_names: ClassVar[Mapping[str, str]] = {
        "create": "make the folder at first use (default true)",
        "multi_host": "true declares a cluster filesystem with coherent link() and listings (default false)",
        "append_only": "true: names may show late (NFS with its caches), so nothing is ever deleted (default false)",
    }

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        if url.host not in ("", "localhost"):
            raise ValueError(f"{url.redacted}: a file URL has three slashes: file:///{url.host}{url.path}")
        if not url.path.startswith("/") or "\0" in url.path:
            raise ValueError(f"{url.redacted}: expected an absolute path, as in file:///data/perdure")
        self._root = os.path.normpath(url.path)
        self._create_root = url.flag("create", True)
        self._files = Files(self._root, self._create_root)
        self._threads = Threads(_WIDTH, "perdure-file")
        self._inline = True
        self._capabilities = Capabilities(
            durability="power",
            multi_process=True,
            multi_host=url.flag("multi_host", False),
            max_value_bytes=1 << 42,
            max_create_bytes=256 << 20,
            max_key_bytes=1024,
            retry_seconds=0.0,
            complete_lists=not url.flag("append_only", False),
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    async def _check(self) -> Sequence[str]:
        mount = await self._run(partial(lagging, self._root))
        if mount and self._capabilities.complete_lists:
            raise StoreError(
                f"{mount}: names of other hosts show late, and what a list lacks could be deleted wrongly. Mount it "
                "with noac,lookupcache=none, or open the store with ?append_only=true: then nothing is ever deleted"
            )
        return ()

    async def _create(self, key: str, data: Data) -> None:
        await self._run(partial(self._here().create, key, data))

    async def _put(self, key: str, data: Data) -> None:
        await self._run(partial(self._here().put, key, data))

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        files = self._here()
        try:
            return await self._read(partial(_get, files, key, start, end, False))
        except NeedsSync:
            return await self._run(partial(_get, files, key, start, end, True))

    async def _stat(self, key: str) -> int:
        return await self._read(partial(self._here().size, key))

    async def _delete(self, key: str) -> None:
        await self._run(partial(self._here().delete, key))

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        files = self._here()
        if self._inline:
            scan = Scan(files, prefix, start_after, _INLINE_ENTRIES)
            try:
                page = self._timed(partial(_gather, scan.pages(), None))
            except TooMuch:
                pass
            else:
                yield page
                return
        pages = Scan(files, prefix, start_after).pages()
        wanted = PAGE if limit is None else min(limit, PAGE)
        while True:
            page = await self._run(partial(_gather, pages, wanted))
            if not page:
                return
            yield page

    async def _get_many(self, keys: Sequence[str]) -> list[Data | StoreError]:
        if self._inline and len(keys) <= _BATCH_PARTS:
            return await super()._get_many(keys)
        results: list[Data | StoreError] = []
        for first in range(0, len(keys), 256):
            results += await self._run(partial(self._get_some, self._here(), keys[first : first + 256]))
        return results

    def _get_some(self, files: Files, keys: Sequence[str]) -> list[Data | StoreError]:
        results: list[Data | StoreError] = []
        for key in keys:
            try:
                results.append(_get(files, key, 0, None, True))
            except (StoreError, OSError) as e:
                results.append(self._failure(e, "get_many", key, False))
        return results

    async def _create_many(self, items: Sequence[tuple[str, Data]]) -> list[StoreError | None]:
        size = -(-len(items) // _BATCH_PARTS)
        parts = [items[first : first + size] for first in range(0, len(items), size)]
        waiting = [self._threads.submit(partial(local_batch.create_many, self._here(), part)) for part in parts]
        results = [result for future in waiting for result in await future]
        return [r and self._failure(r, "create_many", key, True) for r, (key, _) in zip(results, items, strict=True)]

    async def _upload(self, key: str, chunks: AsyncIterator[Data]) -> None:
        writer = await self._run(partial(_Writer, self._here()))
        try:
            held: list[Data] = []
            size = 0
            async for chunk in chunks:
                held.append(chunk)
                size += len(chunk)
                if size >= _CHUNK:
                    await self._run(partial(writer.write, held))
                    held, size = [], 0
            await self._run(partial(writer.finish, held, key))
        except BaseException:
            self._threads.start(writer.abandon)
            raise

    async def _download(self, key: str) -> AsyncIterator[Data]:
        reader = await self._run(partial(_Reader, self._here(), key))
        try:
            while chunk := await self._run(reader.read):
                yield chunk
        finally:
            reader.close()

    async def _delete_many(self, keys: Sequence[str]) -> None:
        await self._run(partial(local_batch.delete_many, self._here(), keys))

    async def _delete_prefix(self, prefix: str) -> int:
        return await self._run(partial(_delete_prefix, self._here(), prefix))

    async def _leftovers(self, over: Callable[[str], bool], remove: bool) -> Sequence[tuple[str, int]]:
        return await self._run(partial(local_files.leftovers, self._root, remove))  # their locks tell, not their keys

    async def _aclose(self) -> None:
        await self._threads.aclose()
        self._files.close()

    # --- where things run ---------------------------------------------------------------------------------

    def _here(self) -> Files:
        if self._files.pid != running_pid():
            self._files.forget_parent()
            self._files = Files(self._root, self._create_root)
        return self._files

    async def _run(self, work: Callable[[], T]) -> T:
        return await self._threads.run(work)

    async def _read(self, work: Callable[[], T]) -> T:
        return self._timed(work) if self._inline else await self._run(work)

    def _timed(self, work: Callable[[], T]) -> T:
        begin = time.perf_counter()
        try:
            return work()
        finally:
            if time.perf_counter() - begin > _SLOW:
                self._inline = False


def _get(files: Files, key: str, start: int, end: int | None, patient: bool) -> Data:
    fd, status = files.open_value(key, sync=patient)
    try:
        size = status.st_size
        last = size if end is None else min(end, size)
        length = last - start
        if length <= 0:
            return b""
        if length >= _MAP_FROM:
            # The file never changes in place, so the mapping stays what it is after put and delete.
            skip = start % mmap.ALLOCATIONGRANULARITY
            mapped = mmap.mmap(fd, length + skip, access=mmap.ACCESS_READ, offset=start - skip)
            return memoryview(mapped)[skip:]
        data = os.pread(fd, length, start)
        if len(data) != length:
            raise StoreError(f"read {len(data)} of {length} bytes: the file was cut by somebody else")
        return data
    finally:
        os.close(fd)


def _gather(pages: Iterator[list[tuple[str, int]]], wanted: int | None) -> list[tuple[str, int]]:
    gathered: list[tuple[str, int]] = []
    for page in pages:
        gathered += page
        if wanted is not None and len(gathered) >= wanted:
            break
    return gathered


def _delete_prefix(files: Files, prefix: str) -> int:
    count = 0
    pages = Scan(files, prefix, None).pages()
    while page := _gather(pages, PAGE):
        count += local_batch.delete_many(files, [key for key, _ in page])
    return count


class _Writer:
    """A temporary file that grows; the lock keeps a cancelled upload's clean-up behind its running write."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._temp = files.temp_name()
        self._fd: int | None = files.open_temp(self._temp)

    def write(self, chunks: Sequence[Data]) -> None:
        with self._lock:
            self._write(chunks)

    def _write(self, chunks: Sequence[Data]) -> None:
        if self._fd is None:
            raise StoreError("the upload was given up")
        for chunk in chunks:
            write_all(self._fd, chunk)
        start_writeback(self._fd)  # so that the disk works while more comes

    def finish(self, chunks: Sequence[Data], key: str) -> None:
        with self._lock:
            self._write(chunks)
            assert self._fd is not None
            local_files.sync(self._fd)
            os.close(self._fd)
            self._fd = None
            self._files.replace(key, self._temp)

    def abandon(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None
                drop(self._temp)


class _Reader:
    """An open value, read piece by piece; a replaced or deleted file stays readable, hence one version."""

    def __init__(self, files: Files, key: str) -> None:
        self._lock = threading.Lock()
        self._fd: int | None = None
        self._fd = files.open_value(key, sync=True)[0]
        self._position = 0

    def read(self) -> bytes:
        with self._lock:
            if self._fd is None:
                return b""
            data = os.pread(self._fd, _CHUNK, self._position)
            self._position += len(data)
            return data

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
                self._fd = None

    def __del__(self) -> None:
        self.close()
