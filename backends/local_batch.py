"""Batches of the file store: many creates or deletes with one sync of each folder.

Owns the order of steps in a batch; every single publication is that of ``local_files``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from perdure.backends import local_files
from perdure.backends.local_files import Chain, Files, drop, start_writeback, write_all
from perdure.backends.local_names import path_of
from perdure.errors import StoreError, StoreUnavailable
from perdure.store import Data
from perdure.store_errors import from_os_error

ROUND = 32  # files open at once


def create_many(files: Files, items: Sequence[tuple[str, Data]]) -> list[StoreError | None]:
    """Create each item; errors in their places. Files of a round share their commits."""
    results: list[StoreError | None] = []
    for first in range(0, len(items), ROUND):
        results.extend(_round(files, items[first : first + ROUND]))
    return results


def _round(files: Files, items: Sequence[tuple[str, Data]]) -> list[StoreError | None]:
    results: list[StoreError | None] = [None] * len(items)
    temps: dict[int, tuple[str, int]] = {}
    chains: dict[tuple[str, ...], Chain] = {}
    linked: dict[tuple[str, ...], list[int]] = {}
    try:
        for index, (_, data) in enumerate(items):
            try:
                temp = files.temp_name()
                temps[index] = temp, files.open_temp(temp)
                write_all(temps[index][1], data)
                if len(items) > 1:
                    start_writeback(temps[index][1])
            except OSError as e:
                results[index] = _mapped(e)
        for index, (_, fd) in temps.items():
            if results[index] is None:
                try:
                    local_files.sync(fd)
                except OSError as e:
                    results[index] = _mapped(e)
        for index, (temp, _) in temps.items():
            if results[index] is None:
                *folders, name = path_of(items[index][0])
                where = tuple(folders)
                try:
                    if where not in chains:
                        chains[where] = files.open(folders, make=True)
                    files.link(temp, chains[where], folders, name)
                    linked.setdefault(where, []).append(index)
                except StoreError as e:
                    results[index] = e
                except OSError as e:
                    results[index] = _mapped(e)
        for where, indexes in linked.items():
            try:
                files.sync_chain(chains[where])
            except OSError as e:
                for index in indexes:
                    results[index] = StoreUnavailable(
                        f"published, but not known to be durable: {_mapped(e).args[0]}"
                    ).with_traceback(e.__traceback__)
    finally:
        for chain in chains.values():
            chain.close()
        for temp, fd in temps.values():
            os.close(fd)
            drop(temp)
    return results


def delete_many(files: Files, keys: Sequence[str]) -> int:
    """Delete the keys; the number that were there."""
    folders: dict[tuple[str, ...], list[str]] = {}
    for key in keys:
        *path, name = path_of(key)
        folders.setdefault(tuple(path), []).append(name)
    return sum(files.delete_names(path, names) for path, names in folders.items())


def _mapped(error: OSError) -> StoreError:
    mapped = from_os_error(error)
    mapped.__cause__ = error
    return mapped
