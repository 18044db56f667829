"""The archive file: workflows as one file, written and read from front to back.

Owns its bytes. It is a tar file, so that any tool shows what is in it:

    perdure-archive.json           what this is, its version, where and when it was made
    blobs/<hash>                   a large value, named by the hash (blake3) of its content; before it is needed
    workflows/<n>/records/<k>      records, as a segment with its own checksum
    workflows/<n>/sent/<k>         what was sent to the workflow and is not taken yet
    workflows/<n>/workflow.json    what the workflow is, and a checksum over all its members; it ends the workflow
    end.json                       counts, and a checksum over all checksums; it ends the archive

Each JSON member has a ``checksum`` over its other fields, so no damage goes unseen. Cut off anywhere, the archive lacks
its end.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any, Final

import blake3

from perdure.errors import CorruptedError, FormatError

VERSION: Final = 1
FIRST: Final = "perdure-archive.json"
LAST: Final = "end.json"
CHUNK: Final = 1 << 20
_BLOCK = 512


class Writer:
    """Writes members one after the other into ``file``, which is open for writing at its start."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.members = 0
        self._sums = blake3.blake3()
        self._padding = 0

    def begin(self, name: str, size: int) -> None:
        """A member of exactly ``size`` bytes follows, in any pieces."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self.file.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "strict"))
        self._padding = -size % _BLOCK

    def piece(self, data: bytes | bytearray | memoryview) -> None:
        self.file.write(data)

    def end(self, digest: str) -> None:
        self.file.write(bytes(self._padding))
        self._sums.update(digest.encode())
        self.members += 1

    def whole(self, name: str, data: bytes) -> str:
        """A member in one piece; its digest."""
        digest = blake3.blake3(data).hexdigest()
        self.begin(name, len(data))
        self.piece(data)
        self.end(digest)
        return digest

    def document(self, name: str, fields: dict[str, Any]) -> None:
        self.whole(name, json.dumps(fields | {"checksum": _checksum(fields)}, sort_keys=True).encode())

    def close(self, **counts: int) -> None:
        self.document(LAST, {**counts, "members": self.members, "all": self._sums.hexdigest()})
        self.file.write(bytes(2 * _BLOCK))


def _checksum(fields: dict[str, Any]) -> str:
    return blake3.blake3(json.dumps(fields, sort_keys=True).encode()).hexdigest()


@dataclass
class Member:
    """One member while it is being read; `pieces` can be had once."""

    name: str
    size: int
    reader: Reader
    file: IO[bytes]
    digest: str = ""

    def pieces(self) -> Iterator[bytes]:
        """The content. CorruptedError where the archive ends inside."""
        sums, left = blake3.blake3(), self.size
        while left:
            data = self.reader.guarded(lambda: self.file.read(min(CHUNK, self.size)))
            if not data:
                raise self.reader.cut()
            sums.update(data)
            left -= len(data)
            yield data
        self.digest = sums.hexdigest()
        self.reader.passed(self)

    def whole(self) -> bytes:
        return b"".join(self.pieces())

    def document(self) -> dict[str, Any]:
        """Raises CorruptedError: damaged."""
        try:
            fields: dict[str, Any] = json.loads(self.whole())
            said = fields.pop("checksum")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise self.reader.damaged(self.name) from None
        if said != _checksum(fields):
            raise self.reader.damaged(self.name)
        return fields


class Reader:
    """Reads an archive from front to back.

    Raises:
        FormatError: not an archive, or of a newer version.
        CorruptedError: cut off or damaged, with what is affected.
    """

    def __init__(self, file: IO[bytes], shown: str) -> None:
        self.shown = shown
        self._sums = blake3.blake3()
        self._members = 0
        try:
            self._tar = tarfile.open(fileobj=file, mode="r|", bufsize=CHUNK)  # noqa: SIM115 (the caller closes the file)
        except tarfile.TarError:
            raise self._foreign() from None
        first = self._next()
        if first is None or first.name != FIRST:
            raise self._foreign()
        self.about = first.document()
        if self.about.get("what") != "perdure archive":
            raise self._foreign()
        if self.about["version"] > VERSION:
            raise FormatError(
                f"{shown} is an archive of version {self.about['version']}; this Perdure reads up to {VERSION}. "
                "Upgrade Perdure (pip install -U perdure)."
            )

    def _foreign(self) -> FormatError:
        return FormatError(f"{self.shown} is not a Perdure archive (or its beginning is damaged)")

    def members(self) -> Iterator[Member]:
        """All members after the first, each to be read before the next; returns only behind a right end."""
        while True:
            member = self._next()
            if member is None:
                raise self.cut()
            if member.name == LAST:
                count, sums = self._members, self._sums.hexdigest()
                fields = member.document()
                if (fields.get("members"), fields.get("all")) != (count, sums):
                    raise CorruptedError(f"{self.shown} is damaged: its end does not fit what it holds")
                return
            yield member

    def _next(self) -> Member | None:
        info = self.guarded(self._tar.next)
        if info is None:
            return None
        file = self._tar.extractfile(info)
        return Member(info.name, info.size, self, file if file is not None else io.BytesIO())

    def guarded(self, call: Any) -> Any:
        try:
            return call()
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            if "unexpected end" in str(error):
                raise self.cut() from None
            raise CorruptedError(f"{self.shown} is damaged after {self._members} members: {error}") from None

    def passed(self, member: Member) -> None:
        self._sums.update(member.digest.encode())
        self._members += 1

    def cut(self) -> CorruptedError:
        return CorruptedError(
            f"{self.shown} is cut off after {self._members} whole members: its end is missing. Workflows that came "
            "before are imported; get a whole copy of the file for the rest"
        )

    def damaged(self, name: str) -> CorruptedError:
        return CorruptedError(f"{self.shown} is damaged: its member {name} does not fit its checksum", key=name)
