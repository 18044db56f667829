"""How keys of the file store are spelled on disk.

Owns one bijection between keys and paths below the store's folder; never touches the disk.

- A value's file has the suffix ``.obj``, a folder never has it, so ``a`` and ``a/b`` can both be keys, and
  other people's files are never taken for values.
- Printable ASCII stays readable. ``=`` is the escape: ``=3D`` stands for ``=``, and every byte outside
  printable ASCII, a dot that begins a segment (hidden names are the store's own), and the last letter of a
  folder name that ends in ``.obj`` are written so. Filesystems that normalise Unicode therefore can't merge
  two keys.
- A spelling longer than 240 bytes has all its dots escaped and is cut into nested folders; a folder whose
  name ends in ``=+`` continues without a slash.
"""

from __future__ import annotations

import re
from collections.abc import Callable

SUFFIX = ".obj"
CONTINUES = "=+"
TEMP = ".tmp"

_WIDTH = 240
_PLAIN = re.compile(r"[ -\-0-<>-~][ -.0-<>-~]*(?:/[ -\-0-<>-~][ -.0-<>-~]*)*")
_SIMPLE = re.compile(rf"[!-\-/-<>-~ ][ -<>-~]{{0,{_WIDTH - 1}}}")
_ESCAPE = re.compile(rb"=([0-9A-F]{2})")


def path_of(key: str) -> list[str]:
    """The names from the store's folder down to the file."""
    if len(key) <= _WIDTH and SUFFIX not in key and _PLAIN.fullmatch(key):
        parts = key.split("/")
        parts[-1] += SUFFIX
        return parts
    *folders, last = key.split("/")
    pieces = cut(_spell(last))
    pieces[-1] += SUFFIX
    return [name for segment in folders for name in folder_names(segment)] + pieces


def folder_names(segment: str) -> list[str]:
    """The names of one segment that is a folder."""
    return cut(_spell_folder(segment))


def key_of(names: list[str]) -> str | None:
    """The key of the names from the store's folder down to a file; None: not written by this store."""
    segments: list[str] = []
    spelled = ""
    for name in names[:-1]:
        if name.endswith(CONTINUES):
            spelled += name[: -len(CONTINUES)]
            continue
        segment = read_folder(spelled + name)
        if segment is None:
            return None
        segments.append(segment)
        spelled = ""
    if not names[-1].endswith(SUFFIX):
        return None
    last = read_file(spelled + names[-1][: -len(SUFFIX)])
    return None if last is None else "/".join([*segments, last])


def read_file(spelled: str) -> str | None:
    """The last segment of a key from its whole spelling without suffix; None: not written by this store."""
    return _read(spelled, _spell)


def read_folder(spelled: str) -> str | None:
    """The segment of a folder from its whole spelling; None: not made by this store."""
    return None if spelled.endswith(SUFFIX) else _read(spelled, _spell_folder)


def _read(spelled: str, spell: Callable[[str], str]) -> str | None:
    if _SIMPLE.fullmatch(spelled):
        return spelled
    try:
        text = _ESCAPE.sub(lambda m: bytes.fromhex(m[1].decode()), spelled.encode("ascii")).decode()
    except UnicodeError:
        return None
    # Only the one canonical spelling counts, else a foreign name could be listed as somebody's key.
    return text if text and spelled == spell(text) else None


def _spell(segment: str) -> str:
    raw = segment.encode()
    text = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte != 0x3D and (position or byte != 0x2E) else f"={byte:02X}"
        for position, byte in enumerate(raw)
    )
    # A piece of a cut name must not become "." or "..".
    return text if len(text) <= _WIDTH else text.replace(".", "=2E")


def _spell_folder(segment: str) -> str:
    text = _spell(segment)
    return f"{text[:-1]}=6A" if text.endswith(SUFFIX) else text


def cut(spelled: str, mark: str = "=") -> list[str]:
    """A spelling as names of at most 240 bytes; those before the last end in CONTINUES. ``mark`` begins an escape."""
    pieces: list[str] = []
    while len(spelled) > _WIDTH:
        end = _WIDTH
        while mark in spelled[end - 2 : end]:
            end -= 1  # an escape stays in one piece
        pieces.append(spelled[:end] + CONTINUES)
        spelled = spelled[end:]
    return [*pieces, spelled]
