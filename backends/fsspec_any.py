"""``fsspec+<protocol>://…``: any fsspec filesystem, with an honest account of what it can't promise.

fsspec's own "create" is check-then-write almost everywhere (local, memory, sftp, hdfs), so two processes can
both win. Here a lock makes creators of one process exclusive, and such a store declares
``multi_process=False``: the core refuses it for more than one process. Where the filesystem's service decides
(Azure, ``overwrite=False``) it declares more.

Values are written to a hidden temporary name and moved, so a reader never sees half of one as far as the
filesystem's move is atomic. Names on disk are spelled as in the file store, whose module says how. The query
of the URL goes to the filesystem as its arguments (``?host=…&port=…``).
"""

from __future__ import annotations

import inspect
import itertools
import os
import posixpath
import re
import secrets
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, Self, cast

import fsspec
from fsspec.spec import AbstractFileSystem

from perdure.backends.local_names import TEMP, key_of, path_of
from perdure.errors import AlreadyExists, NotFound, StoreError
from perdure.store import Capabilities, Data
from perdure.store_url import StoreUrl, parse
from perdure.sync_store import SyncStore

# Filesystems whose service refuses a second create itself.
_EXCLUSIVE = frozenset({"abfs", "abfss", "az"})
# Filesystems that live in the memory of one process.
_IN_PROCESS = frozenset({"memory"})
_SECRET = re.compile(r"secret|password|passphrase|token|credential|connection_string|(^|_)key$", re.IGNORECASE)
_CHUNK = 4 << 20


class FsspecStore(SyncStore):
    """A store in any fsspec filesystem; see the module's text."""

    option_names: ClassVar[Mapping[str, str]] = {"…": "arguments of the fsspec filesystem"}

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        self._protocol = url.scheme.partition("+")[2]
        if self._protocol not in fsspec.available_protocols():
            raise ValueError(
                f"{url.redacted}: fsspec knows no protocol {self._protocol!r}; some need a package of "
                "their own (sftp: paramiko, abfs: adlfs)"
            )
        host = f"{url.host}:{url.port}" if url.port else url.host
        self._root = posixpath.join(host, url.path.strip("/")) if host else f"/{url.path.strip('/')}"
        self._root = self._root.rstrip("/")
        self._exclusive = self._protocol in _EXCLUSIVE
        # One lock for all instances of this URL in this process. What lives in memory is one dict for all URLs, whose
        # files share a position: its reads take the lock too.
        in_process = self._protocol in _IN_PROCESS
        self._lock = _locks.setdefault(self._protocol if in_process else url.redacted, threading.Lock())
        self._reading: AbstractContextManager[object] = self._lock if in_process else nullcontext()
        self._local = threading.local()
        self._run_id = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._capabilities = Capabilities(
            durability="memory" if in_process else "process",
            multi_process=self._exclusive,
            multi_host=self._exclusive,
            max_value_bytes=1 << 40,
            max_create_bytes=16 << 20,
            max_key_bytes=max(512, 1024 - len(self._root.encode())),
            latency="local" if self._protocol in ("file", "local", "memory") else "wan",
            retry_seconds=0.0,
        )

    @classmethod
    def make(cls, url: str, options: Mapping[str, object] | None = None) -> Self:
        """As ``Store.make``; every option is passed on, those that look like secrets are kept out of
        sight.
        """
        names = parse(url, options).options
        return cls(parse(url, options, [name for name in names if _SECRET.search(name)]))

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def server(self) -> str:
        return f"fsspec filesystem {self._protocol!r}"

    @property
    def _fs(self) -> Any:
        # Per thread and process: few filesystems say that they may be shared.
        held = getattr(self._local, "held", None)
        if held is None or held[0] != os.getpid():
            options = {**self._url.options, **self._url.secrets}
            _check_options(self._protocol, options)
            held = (
                os.getpid(),
                fsspec.filesystem(
                    self._protocol,
                    skip_instance_cache=self._protocol not in _IN_PROCESS,
                    use_listings_cache=False,
                    **{name: _typed(value) for name, value in options.items()},
                ),
            )
            self._local.held = held
        return held[1]

    def sync_create(self, key: str, data: Data) -> None:
        if self._exclusive:
            try:
                self._fs.pipe_file(self._path(key), bytes(data), mode="create", overwrite=False)
            except FileExistsError:
                raise AlreadyExists("it exists") from None
            return
        with self._lock:
            if self._fs.exists(self._path(key)):
                raise AlreadyExists("it exists")
            self._write(key, [data])

    def sync_put(self, key: str, data: Data) -> None:
        with self._lock:
            self._write(key, [data])

    def _write(self, key: str, chunks: Iterable[Data]) -> None:
        temp, path = self._temp(), self._path(key)
        self._fs.makedirs(posixpath.dirname(temp), exist_ok=True)
        try:
            with self._fs.open(temp, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            self._publish(temp, path)
        except BaseException:
            self._remove(temp)
            raise

    def _publish(self, temp: str, path: str) -> None:
        self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
        self._fs.mv(temp, path)

    def sync_get(self, key: str, start: int, end: int | None) -> Data:
        with self._reading:
            file, size = self._open_value(self._path(key))
            with file:
                last = size if end is None else min(end, size)
                if start >= last:
                    return b""
                file.seek(start)
                data = cast(bytes, file.read(last - start))
        if len(data) != last - start:
            raise StoreError(f"read {len(data)} of {last - start} bytes: the value was replaced during the read")
        return data

    def sync_stat(self, key: str) -> int:
        try:
            with self._reading:
                return self._size(self._path(key))
        except FileNotFoundError:
            raise self._missing() from None

    def sync_delete(self, key: str) -> None:
        with self._lock:
            self._remove(self._path(key))

    def sync_list(self, prefix: str, start_after: str | None, limit: int) -> Iterable[tuple[str, int]]:
        # fsspec has no start_after: the folder that holds the prefix is read as a whole.
        folder = self._folder(prefix)
        try:
            with self._reading:
                found = self._find(folder)
        except FileNotFoundError:
            return []
        cut = len(self._fs._strip_protocol(self._root).rstrip("/")) + 1
        items: list[tuple[str, int]] = []
        for path, detail in found.items():
            key = key_of(path[cut:].split("/"))
            if key is not None and key.startswith(prefix) and key > (start_after or ""):
                items.append((key, int(detail["size"])))
        items.sort()
        return items[:limit]

    def _find(self, folder: str) -> dict[str, Any]:
        if self._protocol not in _IN_PROCESS:
            return dict(self._fs.find(folder, detail=True))
        # Its own find looks through all files of the process for each folder.
        below = self._fs._strip_protocol(folder).rstrip("/") + "/"
        return {path: {"size": file.size} for path, file in self._fs.store.items() if path.startswith(below)}

    def _folder(self, prefix: str) -> str:
        base, slash, _ = prefix.rpartition("/")
        if not slash:
            return self._root
        try:
            # The spelling of a file below it, without that file.
            return posixpath.dirname(f"{self._root}/{'/'.join(path_of(f'{base}/x'))}")
        except UnicodeEncodeError:
            return f"{self._root}/{TEMP}/none"

    async def _upload(self, key: str, chunks: AsyncIterator[Data]) -> None:
        temp = self._temp()
        file = await self._threads.run(partial(self._open_temp, temp))
        done = False
        try:
            async for chunk in chunks:
                await self._threads.run(partial(file.write, chunk))
            await self._threads.run(partial(self._finish, file, temp, key))
            done = True
        finally:
            if not done:
                self._threads.start(partial(self._give_up, file, temp))

    def _open_temp(self, temp: str) -> Any:
        with self._reading:
            self._fs.makedirs(posixpath.dirname(temp), exist_ok=True)
            return self._fs.open(temp, "wb")

    def _finish(self, file: Any, temp: str, key: str) -> None:
        file.close()
        with self._lock:
            self._publish(temp, self._path(key))

    def _give_up(self, file: Any, temp: str) -> None:
        with self._reading:
            getattr(file, "discard", file.close)()
            self._remove(temp)

    async def _download(self, key: str) -> AsyncIterator[Data]:
        if self._protocol in _IN_PROCESS:
            value = memoryview(await self._get(key, 0, None))
            for first in range(0, len(value), _CHUNK):
                yield value[first : first + _CHUNK]
            return
        # One open file for all chunks: a replacement or a delete leaves it the version that it began with.
        file, size = await self._threads.run(partial(self._open_value, self._path(key)))
        try:
            for first in range(0, size, _CHUNK):
                wanted = min(_CHUNK, size - first)
                try:
                    data = await self._threads.run(partial(file.read, wanted))
                except FileNotFoundError:
                    data = b""
                if len(data) != wanted:
                    raise StoreError("the value was replaced or deleted during the download")
                yield data
        finally:
            self._threads.start(file.close)

    def _open_value(self, path: str) -> tuple[Any, int]:
        """The open file and its size, which is that of the version it reads, whatever the path names by then."""
        try:
            self._size(path)  # is it a file?
            file = self._fs.open(path, "rb")
        except FileNotFoundError:
            raise self._missing() from None
        try:
            return file, file.seek(0, os.SEEK_END) - file.seek(0)
        except BaseException:
            file.close()
            raise

    def _path(self, key: str) -> str:
        return f"{self._root}/{'/'.join(path_of(key))}"

    def _temp(self) -> str:
        return f"{self._root}/{TEMP}/{self._run_id}-{os.getpid()}-{next(self._numbers)}"

    def _size(self, path: str) -> int:
        info = self._fs.info(path)
        if info["type"] != "file":
            raise FileNotFoundError(path)
        return int(info["size"])

    def _remove(self, path: str) -> None:
        try:
            self._fs.rm_file(path)
        except FileNotFoundError:
            pass

    def _missing(self) -> NotFound:
        return NotFound("no such key")


_locks: dict[str, threading.Lock] = {}


def _check_options(protocol: str, options: Mapping[str, object]) -> None:
    """Refuse what the filesystem does not know; most take any argument in silence.

    A filesystem that hands its other arguments on (``ssh_kwargs``) may know more names than it shows.
    """
    known: set[str] = set()
    for kind in fsspec.get_filesystem_class(protocol).__mro__:
        if "__init__" not in vars(kind) or kind in (AbstractFileSystem, object):
            continue
        for parameter in inspect.signature(kind.__init__).parameters.values():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                if parameter.name not in ("kwargs", "storage_options"):
                    return
            elif parameter.kind is not inspect.Parameter.VAR_POSITIONAL:
                known.add(parameter.name)
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"fsspec's {protocol!r} filesystem has no option {unknown[0]!r}; it knows "
            f"{', '.join(sorted(known - {'self'})) or 'none'}"
        )


def _typed(value: str) -> str | int | bool:
    """Filesystems take Python values; a URL has only text."""
    if value in ("true", "false"):
        return value == "true"
    return int(value) if re.fullmatch(r"-?\d{1,9}", value) else value
