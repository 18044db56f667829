"""A segment of a chain: the header of the protocol and the records, as bytes.

Owns the byte layout of segments and base parts. The first 64 bytes have a fixed place and layout in all future
versions (J8, J13): whoever meets a segment of a newer format can still compare its token. Pure.

    offset  size  field
    0       4     magic "PDsg"
    4       2     format version, little-endian
    6       2     header bytes after offset 64
    8       16    token of this segment
    24      16    token of segment n-1 (zeros at the start)
    40      16    XXH3-128 of everything but this field
    56      8     length of the whole object
    64      ...   header: MessagePack array (kind, birth, entry, entry_by, base, parts, flags)
    ...     ...   records: MessagePack array, zstd-compressed where that shrinks (flag 1)
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec
import xxhash
import zstandard

from perdure.errors import CorruptedError, FormatError
from perdure.records import Record, decode_records, encode_records

MAGIC: Final = b"PDsg"
VERSION: Final = 1
TOKEN_OFFSET: Final = 8
TOKEN_SIZE: Final = 16
NO_TOKEN: Final = bytes(TOKEN_SIZE)
_FIXED = struct.Struct("<4sHH16s16s16sQ")
_COMPRESS_FROM = 4096
_COMPRESSED = 1
_LARGEST = 1 << 30


class Header(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """What a segment says of its chain.

    ``kind``: ``append`` or the entry's kind. ``birth``: number of this life's Created. ``entry``: number of the
    newest entry, ``entry_by``: the coordinator that made it. ``base``: all up to this number (-1: nothing) is
    held by ``parts``, keys with their sizes in bytes.
    """

    kind: str
    birth: int
    entry: int
    entry_by: str
    base: int = -1
    parts: tuple[tuple[str, int], ...] = ()
    flags: int = 0


class Segment(msgspec.Struct, frozen=True):
    """A decoded segment."""

    number: int
    token: bytes
    prev: bytes
    header: Header
    records: list[Record]


_encode_header = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode


def encode_segment(header: Header, records: list[Record], *, token: bytes, prev: bytes) -> bytes:
    """The bytes of a segment; they are frozen at the first attempt and kept over retries (J4)."""
    body = encode_records(records)
    return encode_body(header, body, token=token, prev=prev)


def encode_body(header: Header, body: bytes, *, token: bytes, prev: bytes) -> bytes:
    if len(body) >= _COMPRESS_FROM:
        packed = zstandard.ZstdCompressor(level=1).compress(body)
        if len(packed) < len(body):
            body = packed
            header = msgspec.structs.replace(header, flags=header.flags | _COMPRESSED)
    head = _encode_header(header)
    if len(head) > 0xFFFF:
        raise ValueError(f"a segment header of {len(head)} bytes does not fit (parts: {len(header.parts)})")
    length = _FIXED.size + len(head) + len(body)
    front = _FIXED.pack(MAGIC, VERSION, len(head), token, prev, NO_TOKEN, length)
    check = xxhash.xxh3_128(front)
    check.update(head)
    check.update(body)
    return b"".join((front[:40], check.digest(), front[56:], head, body))


def decode_body(data: bytes | memoryview, key: str) -> bytes | memoryview:
    """The body of an object that holds no records (inbox slots, bells). Errors as `decode_segment`."""
    return _open(data, key)[3]


def decode_segment(data: bytes | memoryview, key: str, number: int = -1) -> Segment:
    """The segment in these bytes.

    Raises:
        CorruptedError: damaged or cut (J7), with the key.
        FormatError: written by a newer Perdure (J8).
    """
    token, prev, header, body = _open(data, key)
    try:
        records = decode_records(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        # The checksum fits, so these are the bytes that were written, by something that is not this format.
        raise FormatError(f"{key} can't be read by this Perdure: {error}") from error
    return Segment(number, token, prev, header, records)


def _open(data: bytes | memoryview, key: str) -> tuple[bytes, bytes, Header, bytes | memoryview]:
    view = memoryview(data)
    if len(view) < _FIXED.size:
        raise CorruptedError(
            f"{key} is damaged: it has {len(view)} bytes, a segment has at least {_FIXED.size}", key=key
        )
    magic, version, head_size, token, prev, check, length = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise CorruptedError(f"{key} is damaged: it begins with {bytes(magic)!r}, not {MAGIC!r}", key=key)
    if version > VERSION:
        raise FormatError(
            f"{key} has format {version}; this Perdure reads up to {VERSION}. Nothing was changed. "
            "Upgrade Perdure (pip install -U perdure)."
        )
    if length != len(view):
        raise CorruptedError(f"{key} is damaged: it has {len(view)} bytes of {length}", key=key)
    sums = xxhash.xxh3_128(view[:40])
    sums.update(NO_TOKEN)
    sums.update(view[56:])
    if sums.digest() != check or version == 0:
        raise CorruptedError(f"{key} is damaged: its checksum does not fit its content", key=key)
    try:
        header = _decode_header(view[_FIXED.size : _FIXED.size + head_size])
        body: bytes | memoryview = view[_FIXED.size + head_size :]
        if header.flags & _COMPRESSED:
            body = zstandard.ZstdDecompressor().decompress(body, max_output_size=_LARGEST)
    except (msgspec.MsgspecError, UnicodeDecodeError, zstandard.ZstdError) as error:
        raise FormatError(f"{key} can't be read by this Perdure: {error}") from error
    return token, prev, header, body


def length_of(data: bytes | memoryview) -> int:
    """The length that the object says of itself; -1 where it is too short to say one."""
    return int.from_bytes(data[56:64], "little") if len(data) >= _FIXED.size else -1


def token_of(data: bytes | memoryview) -> bytes:
    """The token of any version's segment (J13); zeros where the object is too short to have one."""
    return bytes(memoryview(data)[TOKEN_OFFSET : TOKEN_OFFSET + TOKEN_SIZE]) or NO_TOKEN
