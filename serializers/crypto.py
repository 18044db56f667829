"""Encryption with AES-256-GCM, in segments, so that values of any size stream.

Owns the encrypted form (docs/format.md, "aes-gcm"): each value has a key of its own, derived from the ring's
key and a random salt by HKDF-SHA256; segments are numbered and the last one is marked, so that a cut, a swap
and an addition show; the place that the codec is bound to is authenticated with each. The construction is
that of Tink's streaming AES-GCM-HKDF and of age.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from perdure.errors import DecodeError, EncodeError, PluginError
from perdure.keyring import Keyring, missing_key
from perdure.serializer import Buffer, Codec, Limits
from perdure.serializers.chunks import ChunkReader

_VERSION = 1
_SEGMENT = 1 << 20
_TAG = 16
_SALT = 32
_INFO = b"perdure aes-gcm v1"


class AesGcmCodec(Codec):
    """``keys``: by default those of the file that PERDURE_KEYS names."""

    id: ClassVar[str] = "aes-gcm"
    integrity: ClassVar[Literal["none", "checksum", "authenticated"]] = "authenticated"
    keyed: ClassVar[bool] = True

    def __init__(self, keys: Keyring | None = None, *, context: bytes = b"") -> None:
        self._keys = keys
        self._context = context

    def __repr__(self) -> str:
        return f"<AesGcmCodec with {self._keys!r}>"

    def bind(self, context: bytes) -> AesGcmCodec:
        return AesGcmCodec(self._ring(), context=context)

    def encode(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
        key = self._ring().writer("encrypt")
        if key is None:
            raise missing_key("encrypt")
        salt = os.urandom(_SALT)
        name = key.id.encode()
        head = bytes((_VERSION, len(name))) + name + salt
        cipher = _cipher(key.secret, salt)
        seal = head + self._context
        yield head
        number = 0
        held = bytearray()
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                # A full segment waits until more follows: only then it is known not to be the last.
                if len(held) == _SEGMENT:
                    yield cipher.encrypt(_nonce(number, last=False), bytes(held), seal)
                    number += 1
                    held.clear()
                room = _SEGMENT - len(held)
                held += view[:room]
                view = view[room:]
        yield cipher.encrypt(_nonce(number, last=True), bytes(held), seal)

    def decode(self, chunks: Iterable[Buffer], limits: Limits) -> Iterator[Buffer]:
        from cryptography.exceptions import InvalidTag

        source = ChunkReader(chunks)
        version, name_size = _exactly(source, 2)
        if version != _VERSION:
            raise DecodeError(f"encrypted bytes have version {version}; this Perdure reads {_VERSION}")
        name = _exactly(source, name_size)
        salt = _exactly(source, _SALT)
        id = name.decode("utf-8", "replace")
        key = self._ring().find("encrypt", id)
        if key is None:
            raise missing_key("decrypt", id)
        cipher = _cipher(key.secret, salt)
        seal = bytes((version, name_size)) + name + salt + self._context
        number = total = 0
        while True:
            # One byte more than a segment tells whether another follows.
            size = source.fill(_SEGMENT + _TAG + 1)
            last = size <= _SEGMENT + _TAG
            segment = source.take(min(size, _SEGMENT + _TAG))
            if len(segment) < _TAG:
                raise DecodeError("encrypted bytes are cut")
            try:
                out = cipher.decrypt(_nonce(number, last=last), segment, seal)
            except (InvalidTag, ValueError) as error:
                raise DecodeError(
                    "encrypted bytes are not authentic: they were changed, moved from another place, or "
                    f"encrypted with another key of the id {id!r:.80}"
                ) from error
            total += len(out)
            if total > limits.max_bytes:
                raise DecodeError(f"encrypted bytes give more than the limit of {limits.max_bytes} bytes")
            if out:
                yield out
            if last:
                return
            number += 1

    def _ring(self) -> Keyring:
        if self._keys is None:
            try:
                self._keys = Keyring.load()
            except (OSError, ValueError) as error:
                raise EncodeError(f"encryption has no keys: {error}") from error
        return self._keys


def _cipher(secret: bytes, salt: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError as error:
        raise PluginError("encryption needs the package cryptography: pip install 'perdure[crypto]'") from error
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=salt, info=_INFO).derive(secret))


def _nonce(number: int, *, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes((last,))


def _exactly(source: ChunkReader, size: int) -> bytes:
    if source.fill(size) < size:
        raise DecodeError("encrypted bytes are cut")
    return source.take(size)
