"""Signatures over the journal, for ``trust="signed"``.

Owns the bytes that follow a sealed object and what is refused. Every object of a chain, page or inbox ends with a
signature over its key and all its bytes. Keys never get a second meaning, and a key names the workflow and the place
in it, so an object that was changed, moved or swapped is refused. Values inside records are covered by the record's
seal; larger ones by their name, which is the hash of their content and stands in a sealed record.

    offset  size  field
    0       n     the object, as it is without a seal (its own length field says n)
    n       m     signature: MessagePack array (kind, key id, signature)
    n + m   2     m, little-endian
    n + m+2 4     magic "PDsl"

The first bytes stay where they are, so a writer token can be compared without keys (J13).
"""

from __future__ import annotations

from typing import Final

import blake3

from perdure.errors import CorruptedError, DecodeError, SignatureError
from perdure.keyring import Keyring, UnknownKey, place
from perdure.segment import MAGIC as SEGMENT
from perdure.segment import length_of

MAGIC: Final = b"PDsl"
_TAIL: Final = 6
_BLOBS: Final = "blobs/"


class Seal:
    """Signs and verifies with the keys of a file, which is read when the first journal object comes.

    A process that reads only blobs (a worker) needs no key.
    """

    def __init__(self, keys: str | Keyring) -> None:
        self._keys = keys

    @property
    def keys(self) -> Keyring:
        if isinstance(self._keys, str):
            self._keys = Keyring.load(self._keys)
        return self._keys

    def close(self, key: str, data: bytes | bytearray | memoryview) -> bytes:
        """The object with its signature. Others than journal objects stay as they are."""
        if bytes(data[:4]) != SEGMENT:
            return bytes(data)
        sign = self.keys.signer(_place(key))
        if sign is None:
            raise ValueError(f"{self.keys!r} has no key that signs, so nothing can be written to a sealed store")
        block = sign(_digest(data))
        return b"".join((data, block, len(block).to_bytes(2, "little"), MAGIC))

    def open(self, key: str, data: bytes | memoryview) -> bytes | memoryview:
        """The object without its signature, which has been verified; blobs are verified by their name.

        Raises:
            SignatureError: not signed, or not by one of the keys for this place, or changed since.
        """
        if key.startswith(_BLOBS):
            check_blob(key, data)
            return data
        if bytes(data[:4]) != SEGMENT:
            return data
        inner, block = split(data)
        try:
            self.keys.verifier(_place(key), key)(_digest(inner), bytes(block))
        except DecodeError as error:
            raise SignatureError(str(error), key=key, unknown_key=isinstance(error, UnknownKey)) from None
        return inner


def split(data: bytes | memoryview) -> tuple[bytes | memoryview, bytes | memoryview]:
    """An object and its signature block, which is empty where it has none; nothing is verified."""
    if bytes(data[-4:]) != MAGIC or len(data) < 64 + _TAIL:
        return data, b""
    size = int.from_bytes(data[-_TAIL:-4], "little")
    end = len(data) - _TAIL - size
    return (data[:end], data[end:-_TAIL]) if end == length_of(data) else (data, b"")


def strip(data: bytes | memoryview) -> bytes | memoryview:
    """An object without its signature, for readers that trust the store."""
    return split(data)[0] if bytes(data[:4]) == SEGMENT else data


def check_blob(key: str, data: bytes | memoryview) -> None:
    """CorruptedError unless the blob's name is the hash of its content."""
    name = key.rpartition("/")[2]
    if name != blake3.blake3(data, max_threads=blake3.blake3.AUTO).hexdigest():
        raise CorruptedError(f"{key} is damaged or was changed: its content does not fit its name", key=key)


def _place(key: str) -> bytes:
    workflow, _, rest = key.removeprefix("w/").partition("/") if key.startswith("w/") else ("", "", key)
    return place(workflow, rest)


def _digest(data: bytes | bytearray | memoryview) -> bytes:
    """What is signed: cryptographic, so that no other object has it."""
    return blake3.blake3(data).digest()
