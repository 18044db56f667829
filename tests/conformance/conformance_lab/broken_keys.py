"""Folder stores with one fault each: keys, listing, deleting."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import os
import posixpath
import re
import threading
import time
import unicodedata
import urllib.parse
from pathlib import Path
from typing import Any

from conformance_lab import contract
from conformance_lab.folder import FolderStore
from perdure.errors import NotFound, StoreError

Item = tuple[str, int]


class Renamed(FolderStore):
    """Every key becomes another one before anything else happens."""

    def alter(self, key: str) -> str:
        raise NotImplementedError

    def encode(self, key: str) -> str:
        return super().encode(self.alter(key))


class FoldsCase(Renamed):
    def alter(self, key: str) -> str:
        return key.lower()


class NormalisesNfc(Renamed):
    def alter(self, key: str) -> str:
        return unicodedata.normalize("NFC", key)


class DropsJoiners(Renamed):
    def alter(self, key: str) -> str:
        return re.sub("[\u200b\u200d\u202e\ufeff\u00ad]", "", key)


class PercentDecodes(Renamed):
    def alter(self, key: str) -> str:
        return urllib.parse.unquote(key)


class CutsLongKeys(Renamed):
    def alter(self, key: str) -> str:
        return key.encode()[:500].decode(errors="ignore")


class CutsSegments(Renamed):
    def alter(self, key: str) -> str:
        return "/".join(s.encode()[:128].decode(errors="ignore") for s in key.split("/"))


class Unchecked(FolderStore):
    """Checks keys less strictly: ``tidy`` makes them valid instead."""

    def tidy(self, key: str) -> str:
        raise NotImplementedError

    def _tidied(self, key: Any) -> Any:
        return self.tidy(key) if isinstance(key, str) and key else key

    async def create(self, key: Any, data: Any) -> None:
        await super().create(self._tidied(key), data)

    async def put(self, key: Any, data: Any) -> None:
        await super().put(self._tidied(key), data)

    async def get(self, key: Any, start: Any = None, end: Any = None) -> bytes:
        return await super().get(self._tidied(key), start, end)


class StripsSlashes(Unchecked):
    def tidy(self, key: str) -> str:
        return re.sub("/+", "/", key).strip("/") or key


class ResolvesDots(Unchecked):
    def tidy(self, key: str) -> str:
        return posixpath.normpath(key).lstrip("./") or key


class DropsControls(Unchecked):
    def tidy(self, key: str) -> str:
        return "".join(c for c in key if ord(c) >= 32 and c != "\x7f") or key


class RawPaths(FolderStore):
    """Keys are paths, escapes and all."""

    def encode(self, key: str) -> str:
        return urllib.parse.unquote(key).lstrip("/") + "="

    def decode(self, name: str) -> str:
        return name[:-1]


class HidesKeysAboveKeys(FolderStore):
    def everything(self) -> list[Item]:
        found = super().everything()
        names = {k for k, _ in found}
        return [i for i in found if not any(n.startswith(i[0] + "/") for n in names)]


class SeesSiblings(FolderStore):
    """Its prefix is a string prefix: ``…/1`` holds what ``…/10`` holds."""

    def everything(self) -> list[Item]:
        found = super().everything()
        top = Path(self.root)
        with contextlib.suppress(FileNotFoundError):
            for other in top.parent.iterdir():
                if other.name.startswith(top.name) and other != top and (other / "d").is_dir():
                    found += FolderStore(f"folder-lab://{other}").everything()
        return found


# --- listing ---------------------------------------------------------------------------------------------


class Listing(FolderStore):
    """``order`` is the key of the sort."""

    def order(self, key: str) -> Any:
        return key.encode()

    def select(self, prefix: str, after: str, limit: int | None) -> list[Item]:
        low = after.encode()
        found = [i for i in self.everything() if i[0].startswith(prefix) and i[0].encode() > low]
        found.sort(key=lambda i: self.order(i[0]))
        return found if limit is None else found[:limit]


class Unsorted(Listing):
    def order(self, key: str) -> Any:
        return hash(("salt", key))


class SortsWithoutCase(Listing):
    def order(self, key: str) -> Any:
        return key.lower()


class SortsAsUtf16(Listing):
    def order(self, key: str) -> Any:
        return key.encode("utf-16-be")


class SortsByFolder(Listing):
    def order(self, key: str) -> Any:
        return [s.encode() for s in key.split("/")]


class StartAfterInclusive(FolderStore):
    def select(self, prefix: str, after: str, limit: int | None) -> list[Item]:
        found = [i for i in self.everything() if i[0].startswith(prefix) and i[0].encode() >= after.encode()]
        return sorted(found, key=lambda i: i[0].encode())[:limit]


class StartAfterSkipsPrefix(FolderStore):
    def select(self, prefix: str, after: str, limit: int | None) -> list[Item]:
        found = super().select(prefix, after, None)
        return [i for i in found if not (after and i[0].startswith(after))][:limit]


class LimitBeforeFilter(FolderStore):
    def select(self, prefix: str, after: str, limit: int | None) -> list[Item]:
        found = super().select("", "", limit)
        return [i for i in found if i[0].startswith(prefix) and i[0].encode() > after.encode()]


class GlobPrefix(FolderStore):
    def select(self, prefix: str, after: str, limit: int | None) -> list[Item]:
        found = super().select("", after, None)
        return [i for i in found if fnmatch.fnmatchcase(i[0], prefix + "*")][:limit]


class FolderPrefix(FolderStore):
    """A prefix is a folder's name."""

    def select(self, prefix: str, after: str, limit: int | None) -> list[Item]:
        found = super().select("", after, None)
        folder = prefix if prefix.endswith("/") or not prefix else prefix + "/"
        return [i for i in found if i[0].startswith(folder) or i[0] == prefix][:limit]


class SizesOfCreation(FolderStore):
    """The index keeps the size that a key had when it was first written."""

    def everything(self) -> list[Item]:
        found = []
        for key, size in super().everything():
            note = Path(self.root, "sizes-" + self.encode(key).replace("/", "_"))
            with contextlib.suppress(OSError):
                if not note.exists():
                    note.write_text(str(size))
                size = int(note.read_text())
            found.append((key, size))
        return found

    def write_new(self, key: str, data: bytes) -> None:
        super().write_new(key, data)
        Path(self.root, "sizes-" + self.encode(key).replace("/", "_")).write_text(str(len(data)))


class LateIndex(FolderStore):
    """A key is listed only 30 ms after it was written."""

    def everything(self) -> list[Item]:
        now = time.time()
        found = []
        for key, size in super().everything():
            with contextlib.suppress(FileNotFoundError):
                if now - os.stat(self.path(key)).st_ctime > 0.03:
                    found.append((key, size))
        return found


class StopsAt5000(FolderStore):
    def everything(self) -> list[Item]:
        return sorted(super().everything())[:5000]


class BorderTwice(FolderStore):
    """The last key of a page of 1,000 begins the next page too."""

    def select(self, prefix: str, after: str, limit: int | None) -> list[Item]:
        found = super().select(prefix, after, limit)
        return [*found[:1000], *found[999:]] if len(found) > 1000 else found


class OffsetPages(FolderStore):
    """Pages by position: whatever comes or goes meanwhile moves the rest."""

    async def list(self, prefix: str, start_after: str | None = None, limit: int | None = None) -> Any:
        contract.check_list(prefix, start_after, limit)
        offset = 0
        while limit is None or offset < limit:
            found = await self.call("list", prefix, self.select, prefix, start_after or "", limit)
            page = found[offset : offset + 100]
            if not page:
                return
            for item in page:
                yield item
            offset += len(page)


class ListsTemporary(FolderStore):
    """Uploads are written beside the values and listed."""

    async def upload(self, key: str, chunks: Any) -> None:
        parts = []
        async for chunk in chunks:
            parts.append(contract.check_data(chunk))
            await self.put(key + ".part", b"".join(parts))
        await self.delete(key + ".part")
        await self.put(key, b"".join(parts))


class CachesListing(FolderStore):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.seen: list[Item] | None = None

    def everything(self) -> list[Item]:
        if self.seen is None:
            self.seen = super().everything()
        return self.seen

    def write_new(self, key: str, data: bytes) -> None:
        self.seen = None
        super().write_new(key, data)

    def replace(self, key: str, parts: list[bytes]) -> None:
        self.seen = None
        super().replace(key, parts)

    def publish(self, fd: int, key: str) -> None:
        self.seen = None
        super().publish(fd, key)

    def remove(self, key: str) -> None:
        self.seen = None
        super().remove(key)


class LeavesListingTasks(FolderStore):
    """Each listing starts a prefetching task that nobody ends."""

    async def list(self, prefix: str, start_after: str | None = None, limit: int | None = None) -> Any:
        _tasks.append(asyncio.ensure_future(asyncio.sleep(600)))
        async for item in super().list(prefix, start_after, limit):
            yield item


_tasks: list[asyncio.Future[None]] = []


class OneCursor(FolderStore):
    """The position of a listing is kept on the instance."""

    async def list(self, prefix: str, start_after: str | None = None, limit: int | None = None) -> Any:
        contract.check_list(prefix, start_after, limit)
        self.cursor = start_after or ""
        count = 0
        while limit is None or count < limit:
            page = await self.call("list", prefix, self.select, prefix, self.cursor, 1)
            if not page:
                return
            self.cursor = page[0][0]
            count += 1
            yield page[0]


class Tombstones(FolderStore):
    """Deleted keys stay as empty marks that every listing reads."""

    def remove(self, key: str) -> None:
        path = self.path(key)
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, path[:-1] + "-dead+")

    def everything(self) -> list[Item]:
        for folder, _, files in os.walk(os.path.join(self.root, "d")):
            for name in files:
                if name.endswith("-dead+"):
                    with contextlib.suppress(FileNotFoundError):
                        Path(folder, name).read_bytes()
        found = []
        for folder, _, files in os.walk(os.path.join(self.root, "d")):
            for name in files:
                if name.endswith("="):
                    relative = os.path.relpath(os.path.join(folder, name), os.path.join(self.root, "d"))
                    with contextlib.suppress(FileNotFoundError):
                        found.append((self.decode(relative), os.stat(os.path.join(folder, name)).st_size))
        return found


# --- deleting --------------------------------------------------------------------------------------------


class DeleteRaises(FolderStore):
    def remove(self, key: str) -> None:
        if not os.path.exists(self.path(key)):
            raise NotFound(f"no key {key!r}")
        try:
            os.unlink(self.path(key))
        except FileNotFoundError:
            raise NotFound(f"no key {key!r}") from None


class DeletesSubtree(FolderStore):
    def remove(self, key: str) -> None:
        for name, _ in self.everything():
            if name.startswith(key + "/"):
                super().remove(name)
        super().remove(key)


class LazyDelete(FolderStore):
    """The key goes 0.5 s after the return."""

    def remove(self, key: str) -> None:
        timer = threading.Timer(0.5, super().remove, (key,))
        timer.daemon = True
        timer.start()


class DeleteInMemory(FolderStore):
    """Deletes are kept in memory and written at aclose."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.dead: set[str] = set()

    def remove(self, key: str) -> None:
        self.dead.add(key)

    def open_value(self, key: str) -> int:
        if key in self.dead:
            raise NotFound(f"no key {key!r}")
        return super().open_value(key)

    def everything(self) -> list[Item]:
        return [i for i in super().everything() if i[0] not in self.dead]

    def write_new(self, key: str, data: bytes) -> None:
        if key in self.dead:
            super().remove(key)
            self.dead.discard(key)
        super().write_new(key, data)

    def publish(self, fd: int, key: str) -> None:
        self.dead.discard(key)
        super().publish(fd, key)

    async def aclose(self) -> None:
        for key in self.dead:
            super().remove(key)
        await super().aclose()


class DeletePrefixStops(FolderStore):
    async def delete_prefix(self, prefix: str) -> int:
        if not prefix:
            raise ValueError("an empty prefix")
        keys = [k async for k, _ in self.list(prefix, limit=1000)]
        for key in keys:
            await self.delete(key)
        return len(keys)


class DeletePrefixOfFolder(FolderStore):
    async def delete_prefix(self, prefix: str) -> int:
        if not prefix:
            raise ValueError("an empty prefix")
        return await super().delete_prefix(prefix.rstrip("/"))


class GetManySorted(FolderStore):
    async def get_many(self, keys: Any) -> list[Any]:
        return await super().get_many(sorted(keys))


class CreateManyStops(FolderStore):
    """The first refusal ends the batch."""

    async def create_many(self, items: Any) -> list[Any]:
        results: list[Any] = []
        failed: StoreError | None = None
        for key, _ in items:
            contract.check_key(key, 1000)
        for key, data in items:
            results.append(failed or (await super().create_many([(key, data)]))[0])
            failed = failed or results[-1]
        return results


class CreateMany500(FolderStore):
    """No more than 500 items of a batch are stored."""

    async def create_many(self, items: Any) -> list[Any]:
        results = await super().create_many(list(items)[:400])
        return results + [None] * (len(items) - len(results))
