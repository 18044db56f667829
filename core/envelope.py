"""The envelope: the one format of all stored values.

Owns the bytes around a serializer's buffers: who wrote them, with what, how large they are and whether they
are whole. Never looks into a value. docs/format.md describes every byte. The first 64 bytes have one place
and layout in all future versions; magic, version and token stand where segments of a chain have them (J8,
J13).

    offset  size  field
    0       4     magic "PDva"
    4       2     format version, little-endian like all numbers here
    6       2     header bytes after offset 64
    8       16    writer token (zeros where the key is named by content)
    24      1     kind: 1 value
    25      1     flags: 1 signed
    26      2     zeros
    28      4     bytes of the signature block at the end
    32      8     zeros
    40      16    XXH3-128 of everything, with this field as zeros
    56      8     length of the whole object
    64      ...   header: MessagePack array (serializer, its version, sizes, codecs, stored sizes, applied)
    ...     ...   buffers: the first follows the header, the others begin at multiples of 64
    ...     ...   signature block
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import xxhash

from perdure.codec_chain import Place, apply, undo
from perdure.errors import CorruptedError, DecodeError, FormatError
from perdure.serializer import DEFAULT_LIMITS, Buffer, Codec, Dump, Limits, Pieces

MAGIC: Final = b"PDva"
VERSION: Final = 1
TOKEN_OFFSET: Final = 8
TOKEN_SIZE: Final = 16
NO_TOKEN: Final = bytes(TOKEN_SIZE)
KIND_VALUE: Final = 1
SIGNED: Final = 1
ALIGNMENT: Final = 64
FIXED_SIZE: Final = 64
_FIXED = struct.Struct("<4sHH16sBBHIQ16sQ")
_SUM_AT = 40
_SUM_END = 56
_PADDING = bytes(ALIGNMENT)
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_JOINED = "+joined"  # more buffers than a header can list; not possible in an id
_LARGEST_SIGNATURE = 4096


class _Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    serializer: str
    version: int
    sizes: tuple[int, ...]
    codecs: tuple[str, ...] = ()
    stored: tuple[int, ...] = ()
    applied: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Envelope:
    """An opened envelope. ``buffers`` are read-only; those that no codec changed are parts of the stored
    bytes.

    ``signature`` is the signature block; empty: not signed.
    """

    serializer: str
    serializer_version: int
    buffers: list[memoryview]
    token: bytes
    codecs: tuple[str, ...]
    kind: int
    signature: bytes


_encode_head = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(_Head).decode


def pack(
    buffers: Dump,
    *,
    serializer: str,
    serializer_version: int = 1,
    token: bytes = NO_TOKEN,
    codecs: Sequence[Codec] = (),
    context: bytes = b"",
    sign: Callable[[bytes], bytes] | None = None,
) -> list[Buffer]:
    """The envelope as buffers to be written one after the other; large ones are passed on, not copied.

    ``codecs`` are applied in order, to each buffer by itself, bound to ``context``, the place where the value
    belongs. ``sign`` gets the digest of what the signature covers (``seal``) and returns the signature block.
    """
    if len(token) != TOKEN_SIZE:
        raise ValueError(f"a writer token has {TOKEN_SIZE} bytes, not {len(token)}")
    contents, sizes = _measure(buffers)
    if codecs:
        place = Place(context, serializer, serializer_version, sizes)
        contents, stored, applied = apply(contents, place, codecs)
        head = _Head(serializer, serializer_version, sizes, tuple(c.id for c in codecs), stored, applied)
    else:
        stored = sizes
        head = _Head(serializer, serializer_version, sizes)
    header = _encode_head(head)
    if len(header) > 0xFFFF:
        # Only a value of very many buffers comes here: they travel as one.
        return pack(
            _joined(buffers, sizes),
            serializer=serializer + _JOINED,
            serializer_version=serializer_version,
            token=token,
            codecs=codecs,
            context=context,
            sign=sign,
        )
    body: list[Buffer] = [header]
    position = FIXED_SIZE + len(header)
    for number, pieces in enumerate(contents):
        if number and position % ALIGNMENT:
            gap = ALIGNMENT - position % ALIGNMENT
            body.append(_PADDING[:gap])
            position += gap
        body += pieces
        position += stored[number]
    if sign is None:
        signature = b""
    else:
        front = _FIXED.pack(MAGIC, VERSION, len(header), token, KIND_VALUE, SIGNED, 0, 0, 0, NO_TOKEN, position)
        signature = sign(_seal(front, body))
        if not 0 < len(signature) <= _LARGEST_SIGNATURE:
            raise ValueError(f"a signature block has 1 to {_LARGEST_SIGNATURE} bytes, not {len(signature)}")
        body.append(signature)
    front = _FIXED.pack(
        MAGIC,
        VERSION,
        len(header),
        token,
        KIND_VALUE,
        SIGNED if signature else 0,
        0,
        len(signature),
        0,
        NO_TOKEN,
        position + len(signature),
    )
    total = xxhash.xxh3_128(front)
    for piece in body:
        total.update(piece)
    body[0] = b"".join((front[:_SUM_AT], total.digest(), front[_SUM_END:], header))
    return body


def unpack(
    data: Buffer,
    *,
    limits: Limits = DEFAULT_LIMITS,
    key: str = "the stored value",
    codec: Callable[[str], Codec] | None = None,
    context: bytes = b"",
    verify: Callable[[bytes, bytes], None] | None = None,
) -> Envelope:
    """Open an envelope. Buffers that no codec changed are views of ``data``.

    ``codec`` finds the codec of an id. ``verify(seal, signature block)`` is called, before any codec, for
    signed and unsigned envelopes alike (an empty block: not signed); it raises to refuse.

    Raises:
        CorruptedError: cut, flipped or appended to; ``key`` names it.
        FormatError: written by a newer Perdure, or not an envelope.
        DecodeError: over the limits, or a codec refuses.
    """
    view = memoryview(data).toreadonly()
    if view.itemsize != 1 or view.ndim != 1:
        view = view.cast("B")
    total = len(view)
    if total < FIXED_SIZE:
        raise CorruptedError(f"{key} is damaged: it has {total} bytes, an envelope at least {FIXED_SIZE}", key=key)
    magic, version, head_size, token, kind, flags, zero, signature_size, zeros, check, length = _FIXED.unpack_from(view)
    if magic != MAGIC:
        raise FormatError(f"{key} is not a value of Perdure: it begins with {magic!r}, expected {MAGIC!r}")
    if version > VERSION:
        raise FormatError(
            f"{key} has envelope format {version}; this Perdure reads up to {VERSION}. Nothing was changed. "
            "Upgrade Perdure (pip install -U perdure)."
        )
    if length != total:
        raise CorruptedError(f"{key} is damaged: it has {total} bytes, {length} were written", key=key)
    sums = xxhash.xxh3_128(view[:_SUM_AT])
    sums.update(NO_TOKEN)
    sums.update(view[_SUM_END:])
    if sums.digest() != check:
        raise CorruptedError(
            f"{key} is damaged: the checksum of its {total} bytes is {sums.hexdigest()}, expected {check.hex()}",
            key=key,
        )
    if version == 0 or kind != KIND_VALUE or flags & ~SIGNED or zero or zeros:
        raise FormatError(f"{key}: unknown envelope (version {version}, kind {kind}, flags {flags:#x})")
    end = total - signature_size
    if bool(flags & SIGNED) != bool(signature_size) or end < FIXED_SIZE + head_size:
        raise FormatError(f"{key}: sizes in the envelope don't fit its {total} bytes")
    try:
        head = _decode_head(view[FIXED_SIZE : FIXED_SIZE + head_size])
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        # ValueError: msgspec lets UnicodeDecodeError through.
        raise FormatError(f"{key}: the envelope's header can't be read: {error!s:.200}") from error
    if not _ID.fullmatch(head.serializer.removesuffix(_JOINED)) or not all(map(_ID.fullmatch, head.codecs)):
        raise FormatError(f"{key}: the envelope's header names no valid serializer or codec")
    buffers = _cut(view, FIXED_SIZE + head_size, end, head, limits, key)
    signature = bytes(view[end:])
    if verify is not None:
        verify(seal(view), signature)
    if head.codecs:
        place = Place(context, head.serializer, head.version, head.sizes)
        buffers = undo(buffers, head.codecs, head.applied, place, limits, key, codec)
    serializer = head.serializer
    if serializer.endswith(_JOINED):
        serializer = serializer[: -len(_JOINED)]
        buffers = _split(buffers, limits, key)
    return Envelope(serializer, head.version, buffers, token, head.codecs, kind, signature)


def header_token(data: Buffer) -> bytes:
    """The writer token of an envelope or segment of any version; zeros where the object is too short for
    one.
    """
    token = bytes(memoryview(data)[TOKEN_OFFSET : TOKEN_OFFSET + TOKEN_SIZE])
    return token if len(token) == TOKEN_SIZE else NO_TOKEN


def size_of(buffers: Iterable[Buffer]) -> int:
    """Bytes of a packed envelope."""
    return sum(memoryview(b).nbytes for b in buffers)


def content_name(buffers: Iterable[Buffer]) -> str:
    """Name of these bytes for a key by content: 64 hex digits of blake3."""
    import blake3

    digest = blake3.blake3()
    for buffer in buffers:
        digest.update(buffer)
    return str(digest.hexdigest())


def seal(data: Buffer) -> bytes:
    """The digest that a signature covers: everything but the checksum, the signature block and what counts
    it.
    """
    view = memoryview(data)
    signature_size = int.from_bytes(view[28:32], "little")
    end = len(view) - signature_size
    front = b"".join((view[:28], bytes(4), view[32:_SUM_AT], NO_TOKEN, end.to_bytes(8, "little")))
    return _seal(front, [view[FIXED_SIZE:end]])


def _seal(front: bytes, body: Iterable[Buffer]) -> bytes:
    import hashlib

    digest = hashlib.sha256(front)
    for piece in body:
        digest.update(piece)
    return digest.digest()


def _measure(buffers: Dump) -> tuple[list[list[Buffer]], tuple[int, ...]]:
    contents: list[list[Buffer]] = []
    sizes: list[int] = []
    for buffer in buffers:
        if type(buffer) is bytes:
            contents.append([buffer])
            sizes.append(len(buffer))
            continue
        pieces: list[Buffer] = []
        for piece in buffer if isinstance(buffer, Pieces) else (buffer,):
            view = memoryview(piece)
            pieces.append(view if view.itemsize == 1 and view.ndim == 1 else view.cast("B"))
        contents.append(pieces)
        sizes.append(sum(len(piece) for piece in pieces))
    return contents, tuple(sizes)


def _cut(view: memoryview, start: int, end: int, head: _Head, limits: Limits, key: str) -> list[memoryview]:
    stored = head.stored if head.codecs else head.sizes
    if len(head.sizes) > limits.max_buffers:
        raise DecodeError(f"{key} has {len(head.sizes)} buffers; the limit is {limits.max_buffers}")
    if head.codecs and not len(head.sizes) == len(stored) == len(head.applied):
        raise FormatError(f"{key}: the envelope's header lists {len(head.sizes)} buffers and {len(stored)} sizes")
    if min(head.sizes, default=0) < 0 or min(stored, default=0) < 0:
        raise FormatError(f"{key}: the envelope's header has a negative size")
    if sum(head.sizes) > limits.max_bytes:
        raise DecodeError(f"{key} declares {sum(head.sizes)} bytes; the limit is {limits.max_bytes}")
    buffers: list[memoryview] = []
    position = start
    for number, size in enumerate(stored):
        if number and position % ALIGNMENT:
            gap = ALIGNMENT - position % ALIGNMENT
            if any(view[position : position + gap]):
                raise FormatError(f"{key}: bytes between the envelope's buffers are not zeros")
            position += gap
        if position + size > end:
            raise FormatError(f"{key}: the envelope's buffers need {position + size} bytes, it has {end}")
        buffers.append(view[position : position + size])
        position += size
    if position != end:
        raise FormatError(f"{key}: {end - position} bytes after the envelope's last buffer")
    return buffers


def _joined(buffers: Dump, sizes: tuple[int, ...]) -> list[Buffer | Pieces]:
    table = msgspec.msgpack.encode(sizes)
    pieces: list[Buffer] = []
    position = 0
    for buffer, size in zip(buffers, sizes, strict=True):
        pieces += buffer if isinstance(buffer, Pieces) else (buffer,)
        position += size
        if position % ALIGNMENT:
            pieces.append(_PADDING[: ALIGNMENT - position % ALIGNMENT])
            position += ALIGNMENT - position % ALIGNMENT
    return [table, Pieces(pieces)]


_decode_table = msgspec.msgpack.Decoder(tuple[int, ...]).decode


def _split(buffers: list[memoryview], limits: Limits, key: str) -> list[memoryview]:
    try:
        table, joined = buffers
        sizes = _decode_table(table)
    except (ValueError, msgspec.MsgspecError) as error:
        raise FormatError(f"{key}: the table of its buffers can't be read: {error!s:.200}") from error
    if len(sizes) > limits.max_buffers:
        raise DecodeError(f"{key} has {len(sizes)} buffers; the limit is {limits.max_buffers}")
    results: list[memoryview] = []
    position = 0
    for size in sizes:
        if size < 0 or position + size > len(joined):
            raise FormatError(f"{key}: the table of its buffers doesn't fit their bytes")
        results.append(joined[position : position + size])
        position += -(-size // ALIGNMENT) * ALIGNMENT
    return results


def serializer_of(data: Buffer) -> str | None:
    """The serializer's id in the first bytes of an envelope, unverified; None where they are none or too few."""
    view = memoryview(data)
    if len(view) < FIXED_SIZE or bytes(view[:4]) != MAGIC:
        return None
    size = int.from_bytes(view[6:8], "little")
    try:
        return _decode_head(view[FIXED_SIZE : FIXED_SIZE + size]).serializer.removesuffix(_JOINED)
    except (msgspec.MsgspecError, ValueError):
        return None
