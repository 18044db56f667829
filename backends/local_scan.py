"""Ordered listing of the file store.

Owns the walk from folders to keys; only reads, and holds no descriptor between two pages. A folder is read as
a whole, others are not opened before their turn, and those that can't hold a wanted key never.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from perdure.backends.local_files import Files
from perdure.backends.local_names import CONTINUES, SUFFIX, folder_names, read_file, read_folder

PAGE = 1000

# What a folder holds, in the order of keys: files (key, name), folders (key with slash, name), and values
# from continued names (key, size), told apart by the second field's type and the key's last character.
_Entry = tuple[str, str | int]


class TooMuch(Exception):
    """More entries than the caller was ready to wait for."""


class Scan:
    """One listing; ``pages`` gives short lists of (key, size), ascending."""

    def __init__(self, files: Files, prefix: str, start_after: str | None, budget: int | None = None) -> None:
        self._files, self._prefix, self._after = files, prefix, start_after or ""
        self._budget = budget

    def pages(self) -> Iterator[list[tuple[str, int]]]:
        base, slash, _ = self._prefix.rpartition("/")
        try:
            start = [name for segment in base.split("/") for name in folder_names(segment)] if slash else []
        except UnicodeEncodeError:
            return  # a lone surrogate: no key starts so
        stack = [self._folder(start, base + slash)]
        while stack:
            step = next(stack[-1], None)
            if step is None:
                stack.pop()
            elif isinstance(step, list):
                yield step
            else:
                stack.append(self._folder(*step))

    def _folder(self, path: list[str], base: str) -> Iterator[list[tuple[str, int]] | tuple[list[str], str]]:
        entries = self._read(path, base, "")
        entries.sort()
        batch: list[_Entry] = []
        for entry in entries:
            folder = entry[0].endswith("/")
            if batch and (folder or len(batch) >= PAGE):
                yield self._sizes(path, batch)
                batch = []
            if folder:
                yield [*path, str(entry[1])], entry[0]
            else:
                batch.append(entry)
        if batch:
            yield self._sizes(path, batch)

    def _read(self, path: list[str], base: str, partial: str) -> list[_Entry]:
        entries: list[_Entry] = []
        continued: list[str] = []
        prefix, after = self._prefix, self._after
        try:
            with self._files.open(path) as chain, os.scandir(chain.leaf) as found:
                for item in found:
                    name = item.name
                    if name.endswith(SUFFIX):
                        segment = read_file(partial + name[: -len(SUFFIX)])
                        if segment is not None:
                            key = base + segment
                            if key > after and key.startswith(prefix) and item.is_file(follow_symlinks=False):
                                entries.append((key, name))
                    elif not (name.startswith(".") or item.is_file() or item.is_symlink()):
                        if name.endswith(CONTINUES):
                            continued.append(name)
                        elif (segment := read_folder(partial + name)) is not None:
                            key = f"{base}{segment}/"
                            if (key.startswith(prefix) or prefix.startswith(key)) and (
                                key > after or after.startswith(key)
                            ):
                                entries.append((key, name))
                    if self._budget is not None:
                        self._budget -= 1
                        if self._budget < 0:
                            raise TooMuch
        except FileNotFoundError:
            return []
        for name in continued:
            entries.extend(self._continued([*path, name], base, partial + name[: -len(CONTINUES)]))
        return entries

    def _continued(self, path: list[str], base: str, partial: str) -> Iterator[_Entry]:
        # Keys of cut names interleave with their neighbours, so they are read at once. Such names are rare.
        for key, name in sorted(self._read(path, base, partial)):
            if isinstance(name, int):
                yield key, name
            elif key.endswith("/"):
                inner = Scan(self._files, self._prefix, self._after, self._budget)
                for step in inner._folder([*path, name], key):
                    if isinstance(step, list):
                        yield from step
                    else:
                        yield from inner._below(*step)
            else:
                yield from self._sizes(path, [(key, name)])

    def _below(self, path: list[str], base: str) -> Iterator[_Entry]:
        for step in self._folder(path, base):
            if isinstance(step, list):
                yield from step
            else:
                yield from self._below(*step)

    def _sizes(self, path: list[str], batch: list[_Entry]) -> list[tuple[str, int]]:
        page: list[tuple[str, int]] = []
        try:
            with self._files.open(path) as chain:
                for key, name in batch:
                    if isinstance(name, int):
                        page.append((key, name))
                        continue
                    try:
                        page.append((key, os.stat(name, dir_fd=chain.leaf, follow_symlinks=False).st_size))
                    except FileNotFoundError:
                        pass  # deleted since; it needn't be listed
        except FileNotFoundError:
            pass
        return page
