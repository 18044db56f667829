"""Keys: what signs and encrypts stored values.

Owns key files, the choice of the key that writes, and signatures. Keys never stand in a repr, an error, a
pickle or a stored value: values name the key's id only, and a pickled ring names its file.

A key file has one key a line, ``ID KIND BASE64``; empty lines and lines that begin with ``#`` are skipped.
Kinds:

    hmac-sha256   32 bytes or more; signs and verifies
    ed25519       32 bytes, the private seed; signs and verifies
    ed25519-pub   32 bytes, the public key; verifies
    aes-gcm       32 bytes; encrypts and decrypts

The first key of a use writes, all of them read. To rotate, put the new key above the old one everywhere;
remove the old one when nothing that it wrote is needed any more.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec

from perdure.errors import DecodeError, EncodeError

ENVIRONMENT: Final = "PERDURE_KEYS"
HMAC: Final = "hmac-sha256"
ED25519: Final = "ed25519"
ED25519_PUBLIC: Final = "ed25519-pub"
AES_GCM: Final = "aes-gcm"
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SIZES = {HMAC: (32, 1024), ED25519: (32, 32), ED25519_PUBLIC: (32, 32), AES_GCM: (32, 32)}
_DOMAIN = b"perdure-signature-v1\0"


class UnknownKey(DecodeError):
    """Signed with a key that is not in the keyring: nothing is known of what was signed."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key. ``secret`` is not shown."""

    id: str
    kind: str
    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise ValueError(f"a key id must match {_ID.pattern}: {self.id!r:.80}")
        if self.kind not in _SIZES:
            raise ValueError(f"key {self.id!r}: kind must be one of {', '.join(_SIZES)}, not {self.kind!r:.40}")
        least, most = _SIZES[self.kind]
        if not least <= len(self.secret) <= most:
            expected = f"{least}" if least == most else f"{least} to {most}"
            raise ValueError(f"key {self.id!r}: a {self.kind} key has {expected} bytes, not {len(self.secret)}")

    @staticmethod
    def generate(id: str, kind: str = HMAC) -> Key:
        """A new random key."""
        return Key(id, kind, secrets.token_bytes(32))

    def line(self) -> str:
        """The key's line in a key file. It holds the secret."""
        return f"{self.id} {self.kind} {base64.b64encode(self.secret).decode()}"

    def public(self) -> Key:
        """What verifies an ed25519 key's signatures and can't make them."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if self.kind != ED25519:
            raise ValueError(f"key {self.id!r} is {self.kind}; only ed25519 has a public part")
        key = Ed25519PrivateKey.from_private_bytes(self.secret).public_key()
        return Key(self.id, ED25519_PUBLIC, key.public_bytes_raw())

    def __reduce__(self) -> Any:
        raise TypeError(f"key {self.id!r} can't be pickled: the secret would be stored")


class _Signature(msgspec.Struct, array_like=True, frozen=True):
    kind: str
    key: str
    value: bytes


_decode_signature = msgspec.msgpack.Decoder(_Signature).decode


class Keyring:
    """Keys by use and id. Make it from a file (``load``) to be able to send it to other processes."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys: dict[tuple[str, str], Key] = {}
        self._source: str | None = None
        for key in keys:
            use = _use(key.kind)
            if (use, key.id) in self._keys:
                raise ValueError(f"two keys for {use} have the id {key.id!r}")
            self._keys[use, key.id] = key

    @classmethod
    def load(cls, path: str | os.PathLike[str] | None = None) -> Keyring:
        """The keys of a file; by default of the one that ``PERDURE_KEYS`` names.

        Raises:
            ValueError: no such file, or one that can't be read; a line that is no key (its number is named).
        """
        source = os.environ.get(ENVIRONMENT, "") if path is None else os.fspath(path)
        if not source:
            raise ValueError(f"no keys: {ENVIRONMENT} is not set. Set it to the path of a key file.")
        keys = []
        try:
            text = Path(source).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ValueError(f"key file {source} can't be read: {reason}. Make one: perdure keys new FILE") from error
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                keys.append(_parse(line, f"{source}, line {number}"))
        ring = cls(keys)
        ring._source = "" if path is None else source
        return ring

    def __repr__(self) -> str:
        return f"<Keyring of {', '.join(f'{k.id} ({k.kind})' for k in self._keys.values()) or 'nothing'}>"

    def __reduce__(self) -> Any:
        if self._source is None:
            raise TypeError(
                "a keyring made of keys in memory can't be pickled: they would be stored. Use "
                "Keyring.load with a key file that every machine has."
            )
        return Keyring.load, (self._source or None,)

    def writer(self, use: str) -> Key | None:
        """The key that writes: the first one of its use (``sign`` or ``encrypt``); None: there is none."""
        for (held, _), key in self._keys.items():
            if held == use and key.kind != ED25519_PUBLIC:
                return key
        return None

    def find(self, use: str, id: str) -> Key | None:
        return self._keys.get((use, id))

    def signer(self, context: bytes) -> Callable[[bytes], bytes] | None:
        """What signs a seal for a place; None: the ring has no key that signs."""
        key = self.writer("sign")
        if key is None:
            return None

        def sign(seal: bytes) -> bytes:
            return msgspec.msgpack.encode(_Signature(key.kind, key.id, _sign(key, _message(context, seal))))

        return sign

    def verifier(self, context: bytes, where: str) -> Callable[[bytes, bytes], None]:
        """What refuses, with DecodeError, a seal without a valid signature for this place."""

        def verify(seal: bytes, block: bytes) -> None:
            if not block:
                raise DecodeError(
                    f"{where} is not signed; trust='signed' loads only what is. It was written without a "
                    "signing key, or somebody else wrote it."
                )
            try:
                signature = _decode_signature(block)
            except (msgspec.MsgspecError, ValueError) as error:
                raise DecodeError(f"{where}: its signature can't be read") from error
            key = self.find("sign", signature.key)
            if key is None:
                raise UnknownKey(
                    f"{where} is signed with the key {signature.key!r:.80}, which is not in the keyring "
                    f"({', '.join(id for use, id in self._keys if use == 'sign') or 'no signing keys'})"
                )
            if key.kind.removesuffix("-pub") != signature.kind or not _valid(
                key, _message(context, seal), signature.value
            ):
                raise DecodeError(
                    f"{where}: its signature is not valid for this place. It was changed, moved from another "
                    "workflow or key, or signed with another key of the same id."
                )

        return verify


def place(workflow_id: str, key: str) -> bytes:
    """The context of a value: the workflow and the place in it where the value belongs."""
    return msgspec.msgpack.encode((workflow_id, key))


def missing_key(use: str, id: str | None = None) -> EncodeError | DecodeError:
    if id is None:
        return EncodeError(
            f"no key to {use} with: give keys=Keyring.load(...), or set {ENVIRONMENT} to the path of a key file"
        )
    return DecodeError(f"a value needs the key {id!r:.80} to {use}, which is not in the keyring")


def _use(kind: str) -> str:
    return "encrypt" if kind == AES_GCM else "sign"


def _parse(line: str, where: str) -> Key:
    try:
        id, kind, encoded = line.split()
        return Key(id, kind, base64.b64decode(encoded, validate=True))
    except binascii.Error:
        raise ValueError(f"{where}: the third word is not base64") from None
    except ValueError as error:
        text = str(error) if str(error).startswith(("a key id", "key ")) else "expected ID KIND BASE64"
        raise ValueError(f"{where}: {text}") from None


def _message(context: bytes, seal: bytes) -> bytes:
    return b"".join((_DOMAIN, len(context).to_bytes(8, "little"), context, seal))


def _sign(key: Key, message: bytes) -> bytes:
    if key.kind == HMAC:
        return hmac.digest(key.secret, message, "sha256")
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(key.secret).sign(message)


def _valid(key: Key, message: bytes, signature: bytes) -> bool:
    if key.kind == HMAC:
        return hmac.compare_digest(hmac.digest(key.secret, message, "sha256"), signature)
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    public = key if key.kind == ED25519_PUBLIC else key.public()
    try:
        Ed25519PublicKey.from_public_bytes(public.secret).verify(signature, message)
    except InvalidSignature:
        return False
    return True
