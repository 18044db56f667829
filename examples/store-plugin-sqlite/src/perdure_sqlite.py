"""``sqlite:///folder/name``: a Perdure store in one SQLite file, ``/folder/name.sqlite``."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from typing import Any

from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Capabilities, Data
from perdure.store_url import StoreUrl
from perdure.sync_store import SyncStore

_LONGEST = 1 << 30
_PATIENCE = 30.0  # seconds
_SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL)"


class SqliteStore(SyncStore):
    """A store in one SQLite file of a local disk."""

    threads = 1

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        if url.host or not url.path.strip("/"):
            raise ValueError(f"{url.redacted}: expected sqlite:///folder/name")
        self._file = f"/{url.path.strip('/')}.sqlite"
        self._start_over()

    def _start_over(self) -> None:
        self._pid = os.getpid()
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            durability="power",
            multi_process=True,
            multi_host=False,
            max_value_bytes=12 << 20,
            max_create_bytes=12 << 20,
            max_key_bytes=1024,
        )

    def _rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with _calls:
            return self._connection().execute(query, values).fetchall()

    def _connection(self) -> sqlite3.Connection:
        if self._pid != os.getpid():
            # After a fork, SQLite's connections are the parent's: kept, never used or closed here.
            _inherited.extend(self._open)
            self._start_over()
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            os.makedirs(os.path.dirname(self._file), exist_ok=True)
            connection = sqlite3.connect(self._file, timeout=_PATIENCE, isolation_level=None, check_same_thread=False)
            self._open.append(connection)
            _use_wal(connection)
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute(_SCHEMA)
            self._local.connection = connection
        return connection

    def sync_create(self, key: str, data: Data) -> None:
        try:
            self._rows("INSERT INTO entries VALUES (?, ?)", key.encode(), data)
        except sqlite3.IntegrityError:
            raise AlreadyExists("it exists") from None

    def sync_put(self, key: str, data: Data) -> None:
        self._rows("INSERT OR REPLACE INTO entries VALUES (?, ?)", key.encode(), data)

    def sync_get(self, key: str, start: int, end: int | None) -> Data:
        # SQLite counts in 32 bits here; no value is longer than this.
        start = min(start, _LONGEST)
        length = min(_LONGEST, _LONGEST if end is None else end - start)
        rows = self._rows("SELECT substr(value, ?, ?) FROM entries WHERE key = ?", start + 1, length, key.encode())
        if not rows:
            raise NotFound("no such key")
        return rows[0][0] or b""  # SQLite gives NULL for a part of an empty blob

    def sync_stat(self, key: str) -> int:
        rows = self._rows("SELECT length(value) FROM entries WHERE key = ?", key.encode())
        if not rows:
            raise NotFound("no such key")
        return int(rows[0][0])

    def sync_delete(self, key: str) -> None:
        self._rows("DELETE FROM entries WHERE key = ?", key.encode())

    def sync_list(self, prefix: str, start_after: str | None, limit: int) -> Iterable[tuple[str, int]]:
        first = prefix.encode("utf-8", "surrogatepass")
        after = (start_after or "").encode("utf-8", "surrogatepass")
        # BLOBs are compared byte by byte, and no UTF-8 holds 0xFF: the range is exactly the prefix.
        query = "SELECT key, length(value) FROM entries WHERE key >= ? AND key < ? AND key > ? ORDER BY key LIMIT ?"
        return [(key.decode(), size) for key, size in self._rows(query, first, first + b"\xff", after, limit)]

    def sync_close(self) -> None:
        if self._pid == os.getpid():
            with _calls:
                for connection in self._open:
                    connection.close()

    def _map_error(self, error: Exception, *, write: bool) -> StoreError | None:
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        text = f"{error} ({getattr(error, 'sqlite_errorname', 'SQLite')})"
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreUnavailable(f"{text}: another process holds the file")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH):
            return PermissionDenied(f"{text}: check owner and mode of {self._file}")
        if code == sqlite3.SQLITE_FULL:
            return StoreError(f"{text}: free space; nothing was stored")
        if code == sqlite3.SQLITE_CANTOPEN:
            # Also where this process has no descriptors left, which passes.
            return StoreUnavailable(f"{text}: {self._file}; look at its folder, and at this process's open files")
        # An input/output error at a commit leaves open whether it happened.
        return StoreUnavailable(text) if write else StoreError(text)


def _use_wal(connection: sqlite3.Connection) -> None:
    """Turn a new file's write-ahead log on. SQLite waits for other locks, but refuses this one at once where another
    connection is doing the same: eight threads that open one new file meet it."""
    end = time.monotonic() + _PATIENCE
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.005)


_inherited: list[sqlite3.Connection] = []

# SQLite has locks of its own, for the whole process. A child that is forked while another thread holds one would wait
# for it for ever: so one call runs at a time, and a fork waits for its end.
_calls = threading.Lock()
os.register_at_fork(before=_calls.acquire, after_in_parent=_calls.release, after_in_child=_calls.release)
