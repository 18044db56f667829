"""A set of blob names of any size: digests in a temporary database, which goes to disk when it gets large."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

import blake3


class NameSet:
    """Holds 16 bytes of a hash of each name, so a name that was added is always found; one that was not is found by
    chance in no practical store."""

    def __init__(self) -> None:
        self._db = sqlite3.connect("", check_same_thread=False)  # private, and deleted when it is closed
        self._db.execute("PRAGMA synchronous=OFF")
        self._db.execute("PRAGMA journal_mode=OFF")
        self._db.execute("CREATE TABLE names (digest BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, names: Iterable[str]) -> None:
        self._db.executemany("INSERT OR IGNORE INTO names VALUES (?)", ((_digest(name),) for name in names))

    def missing(self, names: Sequence[str]) -> list[str]:
        """Those that were never added."""
        ask = "SELECT 1 FROM names WHERE digest = ?"
        return [name for name in names if self._db.execute(ask, (_digest(name),)).fetchone() is None]

    def __contains__(self, name: str) -> bool:
        return not self.missing([name])

    def close(self) -> None:
        self._db.close()


def _digest(name: str) -> bytes:
    return blake3.blake3(name.encode()).digest(16)
