"""Compression, encryption and signatures, alone and in the envelope."""

from __future__ import annotations

import os
import pickle
import random
import traceback
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from perdure.envelope import pack, unpack
from perdure.errors import DecodeError, EncodeError, PerdureError
from perdure.keyring import Key, Keyring
from perdure.serializer import Codec, Limits
from perdure.serializers.crypto import AesGcmCodec
from perdure.serializers.zstd import ZstdCodec
from perdure.values import Values

SIGNING = Key.generate("sign-1")
CIPHER = Key.generate("cipher-1", "aes-gcm")
RING = Keyring([SIGNING, CIPHER])
ROOM = Limits(max_bytes=1 << 30)
PLACE = ("workflow 1", "1/task 3")

CODECS = [ZstdCodec(), AesGcmCodec(RING, context=b"place")]
codecs = pytest.mark.parametrize("codec", CODECS, ids=lambda c: c.id)


def cut(data: bytes, *sizes: int) -> Iterable[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size
    yield data[at:]


def through(codec: Codec, data: bytes, *sizes: int) -> bytes:
    return b"".join(codec.decode(cut(b"".join(codec.encode(cut(data, *sizes))), *sizes), ROOM))


@codecs
@pytest.mark.parametrize("size", [0, 1, 255, 65_536, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, (2 << 20) + 1])
@pytest.mark.parametrize("sizes", [(), (0, 1, 0, 7), (1 << 20,)], ids=["whole", "empty-and-tiny", "mib"])
def test_bytes_come_back_from_all_chunkings(codec: Codec, size: int, sizes: tuple[int, ...]) -> None:
    data = random.Random(size).randbytes(size // 2) + bytes(size - size // 2)
    assert through(codec, data, *sizes) == data


@codecs
def test_one_byte_chunks_come_back(codec: Codec) -> None:
    data = os.urandom(3000)
    assert through(codec, data, *[1] * 3100) == data


@codecs
def test_every_cut_and_every_addition_is_refused(codec: Codec) -> None:
    encoded = b"".join(codec.encode([b"hello " * 100]))
    for end in range(len(encoded)):
        with pytest.raises(DecodeError):
            list(codec.decode([encoded[:end]], ROOM))
    for more in (b"\0", b"x" * 8, b"y" * 100, encoded):
        with pytest.raises(DecodeError):
            list(codec.decode([encoded + more], ROOM))


@codecs
def test_flipped_bits_are_refused_or_read_as_declared(codec: Codec) -> None:
    encoded = bytearray(b"".join(codec.encode([b"hello " * 20])))
    for bit in range(len(encoded) * 8):
        encoded[bit // 8] ^= 1 << bit % 8
        try:
            list(codec.decode([bytes(encoded)], ROOM))
        except DecodeError:
            pass
        else:
            assert codec.integrity == "none"
        encoded[bit // 8] ^= 1 << bit % 8


@codecs
def test_random_bytes_grow_little(codec: Codec) -> None:
    data = os.urandom(1_000_000)
    assert len(b"".join(codec.encode([data]))) <= len(data) * 1.01 + 1024


def test_a_bomb_stops_at_the_limit_in_bounded_memory() -> None:
    bomb = b"".join(ZstdCodec().encode(bytes(1 << 20) for _ in range(512)))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="limit"):
            for _ in ZstdCodec().decode([bomb], Limits(max_bytes=8 << 20)):
                pass
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_encrypted_segments_can_not_be_dropped_repeated_or_swapped_at_their_borders() -> None:
    codec = AesGcmCodec(RING)
    encoded = b"".join(codec.encode([bytes(2 << 20), b"end"]))
    head = 2 + len(CIPHER.id) + 32
    segment = (1 << 20) + 16
    first, second, last = (encoded[head + n * segment : head + (n + 1) * segment] for n in range(3))
    assert b"".join(codec.decode([encoded], ROOM)) == bytes(2 << 20) + b"end"
    for parts in ([first], [first, second], [second, first, last], [first, last], [first, first, second, last]):
        with pytest.raises(DecodeError):
            list(codec.decode([encoded[:head], *parts], ROOM))


@codecs
def test_decoding_stops_at_the_limit(codec: Codec) -> None:
    encoded = b"".join(codec.encode([b"x" * 5000]))
    assert b"".join(codec.decode([encoded], Limits(max_bytes=5000))) == b"x" * 5000
    with pytest.raises(DecodeError, match="limit"):
        list(codec.decode([encoded], Limits(max_bytes=4999)))


def test_zstd_is_left_out_where_it_does_not_shrink() -> None:
    values = Values(codecs=["zstd"])
    noise, zeros = np.frombuffer(os.urandom(1_000_000), np.uint8), np.zeros(1_000_000, np.uint8)
    dumped = values.dump([noise, zeros])
    assert 1_000_000 < dumped.size < 1_010_000
    data = dumped.join()
    back = values.load(data)
    assert (back[0] == noise).all()
    assert (back[1] == zeros).all()
    opened = unpack(data, codec=values.codec)
    assert opened.buffers[1].obj is data
    assert opened.buffers[2].obj is not data


def test_codecs_are_applied_in_order_and_undone_in_reverse() -> None:
    values = Values(codecs=["zstd", "aes-gcm"], keys=RING)
    data = values.dumps("hello " * 1000, context=PLACE)
    assert len(data) < 1000
    assert b"hello" not in data
    assert values.loads(data, context=PLACE) == "hello " * 1000


def test_encryption_refuses_another_key_place_header_and_buffer_order() -> None:
    values = Values(codecs=["aes-gcm"], keys=Keyring([CIPHER]))
    data = values.dumps([b"a" * 70_000, b"b" * 70_000], context=PLACE)
    for context in (None, ("workflow 2", PLACE[1]), (PLACE[0], "1/task 4")):
        with pytest.raises(DecodeError, match="not authentic"):
            values.loads(data, context=context)
    other = Values(codecs=["aes-gcm"], keys=Keyring([Key.generate("cipher-1", "aes-gcm")]))
    with pytest.raises(DecodeError, match="not authentic"):
        other.loads(data, context=PLACE)
    with pytest.raises(DecodeError, match="cipher-1"):
        Values(keys=Keyring([SIGNING])).loads(data, context=PLACE)
    codec = AesGcmCodec(RING)
    first = b"".join(pack([b"x"], serializer="data", codecs=[codec]))
    opened = unpack(first, codec=lambda _: codec)
    assert bytes(opened.buffers[0]) == b"x"
    import xxhash

    changed = bytearray(first.replace(b"data", b"dat2"))
    changed[40:56] = bytes(16)
    changed[40:56] = xxhash.xxh3_128(changed).digest()
    with pytest.raises(DecodeError, match="not authentic"):
        unpack(changed, codec=lambda _: codec)


def test_encrypting_the_same_twice_differs_and_an_old_key_still_reads() -> None:
    old = Values(codecs=["aes-gcm"], keys=Keyring([CIPHER]))
    data = old.dumps("x", context=PLACE)
    assert data != old.dumps("x", context=PLACE)
    new = Key.generate("cipher-2", "aes-gcm")
    rotated = Values(codecs=["aes-gcm"], keys=Keyring([new, CIPHER]))
    assert rotated.loads(data, context=PLACE) == "x"
    with pytest.raises(DecodeError, match="cipher-2"):
        old.loads(rotated.dumps("x", context=PLACE), context=PLACE)


ED = Key.generate("ed-1", "ed25519")


@pytest.mark.parametrize("key", [SIGNING, ED], ids=lambda k: k.kind)
def test_a_signed_value_loads_in_its_place_only(key: Key) -> None:
    values = Values(keys=Keyring([key]), trust="signed")
    data = values.dumps([object, 1], context=PLACE)
    assert values.loads(data, context=PLACE) == [object, 1]
    for context in (("workflow 2", PLACE[1]), (PLACE[0], "2/task 3"), ("workflow 11", "/task 3")):
        with pytest.raises(DecodeError, match="not valid for this place"):
            values.loads(data, context=context)
    with pytest.raises(ValueError, match="context"):
        values.loads(data)


def test_the_public_part_verifies_and_cannot_sign() -> None:
    data = Values(keys=Keyring([ED])).dumps("x", context=PLACE)
    reader = Values(keys=Keyring([ED.public()]), trust="signed")
    assert reader.loads(data, context=PLACE) == "x"
    with pytest.raises(DecodeError, match="not signed"):
        reader.loads(reader.dumps("x"), context=PLACE)


def test_trust_signed_refuses_unsigned_foreign_swapped_and_stripped_values_before_loading() -> None:
    values = Values(keys=Keyring([SIGNING]), trust="signed")
    good = values.dumps("x", context=PLACE)
    with pytest.raises(DecodeError, match="not signed"):
        values.loads(Values().dumps("x"), context=PLACE)
    with pytest.raises(DecodeError, match="not in the keyring"):
        values.loads(Values(keys=Keyring([Key.generate("mine")])).dumps("x", context=PLACE), context=PLACE)
    forged = Values(keys=Keyring([Key.generate("sign-1")])).dumps("x", context=PLACE)
    with pytest.raises(DecodeError, match="not valid"):
        values.loads(forged, context=PLACE)
    with pytest.raises(ValueError, match="keys"):
        Values(trust="signed")
    import xxhash

    size = int.from_bytes(good[28:32], "little")
    stripped = bytearray(good[:-size])
    stripped[25], stripped[28:32], stripped[56:64] = 0, bytes(4), len(stripped).to_bytes(8, "little")
    stripped[40:56] = bytes(16)
    stripped[40:56] = xxhash.xxh3_128(stripped).digest()
    with pytest.raises(DecodeError, match="not signed"):
        values.loads(stripped, context=PLACE)


def test_every_byte_of_a_signed_value_is_covered_even_under_a_right_checksum() -> None:
    import xxhash

    class Evil:
        def __reduce__(self) -> object:
            return (exec, ("raise SystemExit('ran')",))

    values = Values(keys=Keyring([SIGNING]), trust="signed")
    good = values.dumps({"a": [1, (2,)]}, context=PLACE)
    for at in [*range(4, 40), *range(64, len(good))]:
        data = bytearray(good)
        data[at] ^= 0x15
        data[40:56] = bytes(16)
        data[40:56] = xxhash.xxh3_128(data).digest()
        with pytest.raises(PerdureError):
            values.loads(data, context=PLACE)
    with pytest.raises(DecodeError):
        values.loads(Values().dumps(Evil()), context=PLACE)


def test_a_rotated_signing_key_writes_and_the_old_one_still_reads() -> None:
    old = Values(keys=Keyring([SIGNING]), trust="signed").dumps("x", context=PLACE)
    ring = Keyring([Key.generate("sign-2"), SIGNING])
    values = Values(keys=ring, trust="signed")
    assert values.loads(old, context=PLACE) == "x"
    assert b"sign-2" in values.dumps("x", context=PLACE)


def test_key_files_are_read_and_wrong_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# ours\n\n{SIGNING.line()}\n{CIPHER.line()}\n")
    ring = Keyring.load(path)
    assert ring.find("sign", "sign-1") == SIGNING
    again = pickle.loads(pickle.dumps(Values(codecs=["aes-gcm"], keys=ring, trust="signed")))
    data = again.dumps(1, context=PLACE)
    assert again.loads(data, context=PLACE) == 1
    for text, match in [
        ("a hmac-sha256", "line 1"),
        ("a hmac-sha256 !!!!", "base64"),
        ("a hmac-sha256 AAAA", "32 to 1024"),
        ("a rot13 AAAA", "kind"),
        ("/ aes-gcm AAAA", "key id"),
    ]:
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            Keyring.load(path)
    path.write_text(f"{SIGNING.line()}\n{SIGNING.line()}\n")
    with pytest.raises(ValueError, match="two keys"):
        Keyring.load(path)


def test_the_environment_names_the_key_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_KEYS", raising=False)
    with pytest.raises(EncodeError, match="PERDURE_KEYS"):
        Values(codecs=["aes-gcm"]).dumps(1)
    path = tmp_path / "keys"
    path.write_text(CIPHER.line())
    monkeypatch.setenv("PERDURE_KEYS", str(path))
    values = Values(codecs=["aes-gcm"])
    assert values.loads(values.dumps(1)) == 1


def test_keys_show_in_no_repr_error_or_pickle() -> None:
    values = Values(codecs=["zstd", "aes-gcm"], keys=RING, trust="signed")
    shown = [repr(RING), repr(CIPHER), repr(values), repr(AesGcmCodec(RING)), str(RING)]
    for action in (
        lambda: pickle.dumps(RING),
        lambda: pickle.dumps(CIPHER),
        lambda: pickle.dumps(values),
        lambda: values.loads(values.dumps(1, context=PLACE), context=("x", "y")),
    ):
        with pytest.raises((TypeError, PerdureError)) as caught:
            action()
        shown.append("".join(traceback.format_exception(caught.value)))
    for secret in (SIGNING.secret, CIPHER.secret):
        for form in (secret.hex(), repr(secret)[2:-1], SIGNING.line().split()[2]):
            assert not any(form in text for text in shown)
