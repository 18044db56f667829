"""Signatures over journal objects: what a store of trust="signed" gives back, and what it refuses."""

from __future__ import annotations

import random

import blake3
import pytest

from perdure.errors import AlreadyExists, CorruptedError, FormatError, SignatureError
from perdure.guarded_store import GuardedStore
from perdure.keyring import Key, Keyring
from perdure.seal import Seal, split, strip
from perdure.segment import NO_TOKEN, Header, decode_segment, encode_segment, token_of
from perdure.store import open_store
from perdure.store_format import check_format

TOKEN = bytes(range(16))
KEY = "w/run_1/j/00000000000000000003"


@pytest.fixture(params=["hmac-sha256", "ed25519"])
def ring(request: pytest.FixtureRequest) -> Keyring:
    return Keyring([Key.generate("k1", request.param)])


def segment(note: str = "a") -> bytes:
    return encode_segment(Header("claimed", 0, 3, note), [], token=TOKEN, prev=NO_TOKEN)


def test_a_sealed_object_comes_back_as_it_was(ring: Keyring) -> None:
    seal = Seal(ring)
    closed = seal.close(KEY, segment())
    assert bytes(seal.open(KEY, closed)) == segment() == bytes(strip(closed))
    assert decode_segment(seal.open(KEY, closed), KEY).header.entry_by == "a"


def test_the_writer_token_of_a_sealed_object_needs_no_key(ring: Keyring) -> None:
    assert token_of(Seal(ring).close(KEY, segment())) == TOKEN


def test_no_byte_of_a_sealed_object_can_be_changed(ring: Keyring) -> None:
    seal = Seal(ring)
    closed = seal.close(KEY, segment())
    for at in range(len(closed)):
        for bit in (1, 128):
            changed = bytearray(closed)
            changed[at] ^= bit
            with pytest.raises(CorruptedError):
                decode_segment(seal.open(KEY, bytes(changed)), KEY)


def test_a_sealed_object_can_not_be_cut_or_prolonged(ring: Keyring) -> None:
    seal = Seal(ring)
    closed = seal.close(KEY, segment())
    for size in range(len(closed)):
        with pytest.raises(CorruptedError):
            decode_segment(seal.open(KEY, closed[:size]), KEY)
    with pytest.raises(CorruptedError):
        seal.open(KEY, closed + b"x")


@pytest.mark.parametrize(
    "other",
    [
        "w/run_1/j/00000000000000000004",  # another number of the chain
        "w/run_2/j/00000000000000000003",  # another workflow
        "w/run_1/s/00000000000000000003",  # a part instead of a segment
        "c/run_1/j/00000000000000000003",  # a page
        "in/run_1/0/00000000000000000003",
    ],
)
def test_a_sealed_object_is_refused_at_another_place(ring: Keyring, other: str) -> None:
    seal = Seal(ring)
    with pytest.raises(SignatureError, match="not valid for this place"):
        seal.open(other, seal.close(KEY, segment()))


def test_an_object_without_a_seal_is_refused(ring: Keyring) -> None:
    with pytest.raises(SignatureError, match="is not signed"):
        Seal(ring).open(KEY, segment())


def test_an_object_under_an_unknown_key_is_refused(ring: Keyring) -> None:
    stranger = Seal(Keyring([Key.generate("mallory")]))
    with pytest.raises(SignatureError, match="'mallory', which is not in the keyring"):
        Seal(ring).open(KEY, stranger.close(KEY, segment()))


def test_an_object_under_another_key_of_the_same_id_is_refused(ring: Keyring) -> None:
    stranger = Seal(Keyring([Key.generate("k1")]))
    with pytest.raises(SignatureError):
        Seal(ring).open(KEY, stranger.close(KEY, segment()))


def test_a_rotated_key_still_reads(ring: Keyring) -> None:
    closed = Seal(ring).close(KEY, segment())
    old = ring.find("sign", "k1")
    assert old is not None
    rotated = Seal(Keyring([Key.generate("k2"), old]))
    assert bytes(rotated.open(KEY, closed)) == segment()
    with pytest.raises(SignatureError, match="'k2'"):
        Seal(ring).open(KEY, rotated.close(KEY, segment()))


def test_a_public_key_verifies_and_can_not_sign() -> None:
    private = Key.generate("k1", "ed25519")
    reader = Seal(Keyring([private.public()]))
    assert bytes(reader.open(KEY, Seal(Keyring([private])).close(KEY, segment()))) == segment()
    with pytest.raises(ValueError, match="has no key that signs"):
        reader.close(KEY, segment())


def test_a_blob_must_have_the_hash_of_its_content_as_its_name() -> None:
    seal = Seal("there is no such file, and blobs need none")
    name = f"blobs/0/{blake3.blake3(b'value').hexdigest()}"
    assert seal.open(name, b"value") == b"value"
    with pytest.raises(CorruptedError, match="does not fit its name"):
        seal.open(name, b"other")


def test_what_looks_like_a_seal_inside_an_object_is_no_seal() -> None:
    rng = random.Random(5)
    plain = segment(rng.randbytes(20).hex() + "PDsl")
    assert split(plain) == (plain, b"")


# -- in the store ----------------------------------------------------------------------------------------------------


async def test_a_guarded_store_seals_what_it_creates_and_verifies_what_it_reads(ring: Keyring) -> None:
    store = open_store(f"memory://seal-1-{id(ring)}")
    sealed, plain = GuardedStore(store, seal=Seal(ring)), GuardedStore(store)
    await sealed.create_once(KEY, segment(), TOKEN)
    other = KEY[:-1] + "4"
    assert await sealed.create_many_once([(other, segment("b"), TOKEN)]) == [None]
    assert bytes(await store.get(KEY)) != segment()
    assert bytes(await sealed.get(KEY)) == segment() == bytes(await plain.get(KEY))
    assert [bytes(d) for d in await sealed.get_many([KEY, other])] == [segment(), segment("b")]  # type: ignore[arg-type]
    moved = bytes(await store.get(KEY))
    await store.create(KEY[:-1] + "5", moved)
    with pytest.raises(SignatureError):
        await sealed.get(KEY[:-1] + "5")
    right, wrong = await sealed.get_many([KEY, KEY[:-1] + "5"])  # it may be one that nobody needs
    assert bytes(right) == segment()  # type: ignore[arg-type]
    assert isinstance(wrong, SignatureError)
    await store.aclose()


async def test_a_repeated_create_of_a_sealed_object_is_known_as_its_own(ring: Keyring) -> None:
    store = open_store(f"memory://seal-2-{id(ring)}")
    sealed = GuardedStore(store, seal=Seal(ring))
    await sealed.create_once(KEY, segment(), TOKEN)
    await sealed.create_once(KEY, segment(), TOKEN)
    with pytest.raises(AlreadyExists):
        await sealed.create_once(KEY, segment(), bytes(16))
    await store.aclose()


async def test_a_store_is_sealed_as_a_whole_or_not_at_all(ring: Keyring) -> None:
    one, two = open_store(f"memory://seal-3-{id(ring)}"), open_store(f"memory://seal-4-{id(ring)}")
    await check_format(GuardedStore(one, seal=Seal(ring)), sealed=True)
    await check_format(GuardedStore(one), sealed=None)  # readers don't mind
    with pytest.raises(FormatError, match="is sealed.*trust='signed'"):
        await check_format(GuardedStore(one), sealed=False)
    await check_format(GuardedStore(two), sealed=False)
    with pytest.raises(FormatError, match="is not sealed.*perdure copy"):
        await check_format(GuardedStore(two, seal=Seal(ring)), sealed=True)
    await one.aclose()
    await two.aclose()
