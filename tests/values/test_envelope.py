"""The envelope's bytes: layout, alignment, no copies, and what is refused."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

import pytest
from values.hostile import envelope

from perdure import segment
from perdure.envelope import (
    ALIGNMENT,
    NO_TOKEN,
    TOKEN_OFFSET,
    TOKEN_SIZE,
    content_name,
    header_token,
    pack,
    size_of,
    unpack,
)
from perdure.errors import CorruptedError, DecodeError, FormatError, PerdureError
from perdure.serializer import Buffer, Codec, Limits, Pieces

TOKEN = bytes(range(16))


def packed(*buffers: bytes) -> bytes:
    return b"".join(pack(buffers, serializer="data", token=TOKEN))


def test_buffers_serializer_and_token_come_back() -> None:
    opened = unpack(packed(b"abc", b"", b"x" * 1000, b"y"))
    assert [bytes(b) for b in opened.buffers] == [b"abc", b"", b"x" * 1000, b"y"]
    assert (opened.serializer, opened.serializer_version, opened.token) == ("data", 1, TOKEN)


def test_the_token_stands_where_segments_have_it() -> None:
    assert (TOKEN_OFFSET, TOKEN_SIZE) == (segment.TOKEN_OFFSET, segment.TOKEN_SIZE)
    assert header_token(packed(b"a")) == TOKEN == segment.token_of(packed(b"a"))
    assert header_token(b"short") == NO_TOKEN


def test_large_buffers_are_aligned_and_not_copied_in_either_direction() -> None:
    large = bytearray(b"z" * 100_000)
    parts = pack([b"a", large], serializer="data")
    assert any(isinstance(p, memoryview) and p.obj is large for p in parts)
    data = b"".join(parts)
    buffer = unpack(data).buffers[1]
    assert buffer.obj is data
    assert buffer.readonly
    assert data.index(b"zzzz") % ALIGNMENT == 0


def test_a_buffer_in_pieces_is_one_buffer() -> None:
    data = b"".join(pack([b"a", Pieces([b"b" * 70, b"c"])], serializer="data"))
    assert bytes(unpack(data).buffers[1]) == b"b" * 70 + b"c"


def test_more_buffers_than_a_header_holds_are_kept() -> None:
    buffers = [str(i).encode() for i in range(50_000)]
    opened = unpack(packed(*buffers))
    assert (opened.serializer, [bytes(b) for b in opened.buffers]) == ("data", buffers)


def test_size_and_content_name_are_those_of_the_joined_bytes() -> None:
    parts = pack([b"a", b"b" * 100], serializer="data")
    assert size_of(parts) == len(b"".join(parts))
    assert content_name(parts) == content_name([b"".join(parts)])
    assert len(content_name(parts)) == 64


def test_every_cut_and_every_appended_byte_is_refused() -> None:
    data = packed(b"abc", b"d" * 10)
    for end in range(len(data)):
        with pytest.raises((CorruptedError, FormatError)):
            unpack(data[:end])
    with pytest.raises(CorruptedError):
        unpack(data + b"\0")


def test_every_flipped_bit_is_refused() -> None:
    data = bytearray(packed(b"abc", b"d" * 10))
    for bit in range(len(data) * 8):
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises((CorruptedError, FormatError)):
            unpack(data)
        data[bit // 8] ^= 1 << bit % 8
    unpack(data)


def test_a_newer_version_is_refused_by_number() -> None:
    data = bytearray(packed(b"abc"))
    data[4] = 9
    with pytest.raises(FormatError, match="format 9"):
        unpack(data)


def test_foreign_bytes_are_refused() -> None:
    with pytest.raises(FormatError, match="PDva"):
        unpack(b"\x80\x04" * 100)


def test_more_bytes_than_the_limit_are_refused() -> None:
    with pytest.raises(DecodeError, match="limit is 10"):
        unpack(packed(b"a" * 11), limits=Limits(max_bytes=10))
    with pytest.raises(DecodeError, match="limit is 2"):
        unpack(packed(b"a", b"b", b"c"), limits=Limits(max_buffers=2))


def resealed(data: bytearray) -> bytes:
    """The same bytes with a checksum that fits."""
    import xxhash

    data[56:64] = len(data).to_bytes(8, "little")
    data[40:56] = bytes(16)
    data[40:56] = xxhash.xxh3_128(data).digest()
    return bytes(data)


def test_damage_below_a_right_checksum_is_refused_or_read_never_worse() -> None:
    rng = random.Random(5)
    good = packed(b"abc", b"d" * 100)
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(4, len(data))] = rng.randrange(256)
        if rng.random() < 0.3:
            del data[rng.randrange(64, len(data)) :]
        try:
            unpack(resealed(data))
        except PerdureError:
            pass


def test_what_was_cut_or_appended_is_told_by_both_lengths() -> None:
    data = packed(b"abc")
    with pytest.raises(CorruptedError, match=f"{len(data) - 1} bytes, {len(data)} were written"):
        unpack(data[:-1])


@pytest.mark.parametrize("sizes", [[3, -1], [-1, 4], [2, 0]])
def test_sizes_that_are_negative_or_do_not_add_up_are_refused(sizes: list[int]) -> None:
    # -1 and 4: the sum fits, and the slices would too
    with pytest.raises(FormatError):
        unpack(envelope(b"abc", header=["data", 1, sizes]))


def test_a_negative_size_can_not_lead_a_buffer_back_into_the_header() -> None:
    for back in range(1, 32):
        # Where the header has as many bytes, buffer 1 would begin at the aligned offset 64.
        with pytest.raises(FormatError):
            unpack(envelope(b"abc", header=["data", 1, [-back, 3 + back]]))


def codec_of(given: bytes) -> Codec:
    class Giving(Codec):
        id = "giving"

        def encode(self, chunks: Iterable[Buffer]) -> Iterator[Buffer]:
            yield given

        def decode(self, chunks: Iterable[Buffer], limits: Limits) -> Iterator[Buffer]:
            yield given

    return Giving()


@pytest.mark.parametrize(("given", "match"), [(b"abcd", "more than the 3"), (b"ab", "gave 2 bytes")])
def test_a_codec_that_gives_another_size_than_declared_is_refused(given: bytes, match: str) -> None:
    data = b"".join(pack([b"abc"], serializer="data", codecs=[codec_of(b"xyz")]))
    assert bytes(unpack(data, codec=lambda _: codec_of(b"abc")).buffers[0]) == b"abc"
    with pytest.raises(DecodeError, match=match):
        unpack(data, codec=lambda _: codec_of(given))


def test_a_codec_that_protects_can_not_be_left_out_of_a_buffer() -> None:
    data = envelope(b"abc", header=["data", 1, [3], ["giving"], [3], [0]])
    with pytest.raises(FormatError, match="may not be left out"):
        unpack(data, codec=lambda _: codec_of(b"abc"))


def test_codecs_without_somebody_to_find_them_are_named() -> None:
    data = b"".join(pack([b"abc"], serializer="data", codecs=[codec_of(b"xyz")]))
    with pytest.raises(DecodeError, match="giving"):
        unpack(data)
