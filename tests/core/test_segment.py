from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure import records as r
from perdure.errors import CorruptedError, FormatError
from perdure.graph import Failure, Function, Graph, Node, Options, Payload
from perdure.segment import (
    NO_TOKEN,
    TOKEN_OFFSET,
    VERSION,
    Header,
    decode_body,
    decode_segment,
    encode_body,
    encode_segment,
    token_of,
)

TOKEN, PREV = bytes(range(16)), bytes(range(16, 32))
PAYLOAD = Payload(b"value", None, 5, (Payload(None, "blobs/1/ab", 7),), "ve")
GRAPH = Graph(
    [Node("one", function=0, args=PAYLOAD), Node("two", function=0, tops=((0, 0), ("k", -1)), nested=(0,))],
    1,
    [Function("f", "d", PAYLOAD, "c")],
    [Options({"num_cpus": 2}, -1, PAYLOAD, True, False, {"a": 1}, (1.0, 2.0, 3.0, 0.0), 5.0, 2)],
    [PAYLOAD],
    "s",
    "c",
    "3.11",
)
EVERY_RECORD: list[r.Record] = [
    r.Created("文/b", "client", 1.5, GRAPH, None, "s", "c", "3.11", {"a": [1, {"b": None}]}, True),
    r.Claimed(2.0, True, "s3://other"),
    r.Started(2.5),
    r.Arrived("s3://bucket/a", 7, "0a" * 16, 2, 1.5),
    r.Repaired(1.5, ("w/a/j/7",)),
    r.TaskDone(0, PAYLOAD, 1.0, 2.0),
    r.TaskFailed(1, Failure("raised", "ValueError", "text", "trace", PAYLOAD), False, 1.0, 2.0),
    r.Continued(1, GRAPH, None, 1.0, 2.0),
    r.Continued(1, None, "blobs/1/ab"),
    r.Received(0, PAYLOAD, 2.0),
    r.Acknowledged(0, "refused"),
    r.TimerSet(0, 100.0, 5.0),
    r.CancelRequested(3.0),
    r.Succeeded(4.0),
    r.Failed(4.0, 1),
    r.Canceled(4.0),
    r.Base(7, (0, 3)),
    r.Deleted(5.0),
    r.Retired(6.0, "me"),
    r.Page(1.0, 20.0, 3, (("a", 0),), (("b", 4, "FAILED", 1.0, 2.0),), ("c",), {"pid": "1"}),
]
HEADER = Header("append", 3, 9, "c0ffee", 5, (("part", 100),))


def encoded(records: list[r.Record] = EVERY_RECORD) -> bytes:
    return encode_segment(HEADER, records, token=TOKEN, prev=PREV)


def test_every_record_comes_back_as_it_was() -> None:
    assert {type(record) for record in EVERY_RECORD} == set(r.Record.__args__)
    segment = decode_segment(encoded(), "k", 7)
    assert segment.records == EVERY_RECORD
    assert (segment.number, segment.token, segment.prev) == (7, TOKEN, PREV)
    assert segment.header == HEADER


def test_tags_of_records_are_fixed_for_ever() -> None:
    tags = {t.__name__: t.__struct_config__.tag for t in r.Record.__args__}
    assert tags == {
        "Created": 1,
        "Claimed": 2,
        "Deleted": 3,
        "Retired": 4,
        "Base": 5,
        "TaskDone": 6,
        "TaskFailed": 7,
        "Continued": 8,
        "Received": 9,
        "Acknowledged": 10,
        "TimerSet": 11,
        "CancelRequested": 12,
        "Succeeded": 13,
        "Failed": 14,
        "Canceled": 15,
        "Started": 16,
        "Arrived": 17,
        "Repaired": 18,
        "Page": 32,
    }


def test_large_segments_are_compressed_and_come_back() -> None:
    many: list[r.Record] = [r.TaskDone(n, PAYLOAD) for n in range(1000)]
    data = encoded(many)
    assert len(data) < 20_000
    assert decode_segment(data, "k").records == many


@given(st.integers(0, 10_000))
def test_a_cut_segment_is_corrupted_and_names_its_key(size: int) -> None:
    data = encoded()
    with pytest.raises(CorruptedError) as error:
        decode_segment(data[: size % len(data)], "w/a/j/7")
    assert error.value.key == "w/a/j/7"
    assert "w/a/j/7" in str(error.value)


@given(st.integers(0, 1_000_000), st.integers(0, 7))
def test_a_flipped_bit_never_goes_unseen(at: int, bit: int) -> None:
    data = bytearray(encoded())
    data[at % len(data)] ^= 1 << bit
    with pytest.raises((CorruptedError, FormatError)) as error:
        decode_segment(bytes(data), "k")
    if isinstance(error.value, FormatError):
        assert at % len(data) in (4, 5), "only a version that grew may look like a newer format"


def test_each_single_flipped_bit_of_the_front_is_seen() -> None:
    good = encoded()
    for at in range(64):
        for bit in range(8):
            data = bytearray(good)
            data[at] ^= 1 << bit
            with pytest.raises((CorruptedError, FormatError)):
                decode_segment(bytes(data), "k")


def test_bytes_added_at_the_end_are_damage() -> None:
    with pytest.raises(CorruptedError):
        decode_segment(encoded() + b"\0", "k")


def test_zeros_are_damage_not_another_format() -> None:
    with pytest.raises(CorruptedError):
        decode_segment(bytes(200), "k")
    with pytest.raises(CorruptedError):
        decode_segment(b"", "k")


def test_j8_a_newer_format_is_refused_with_what_to_do_and_keeps_its_token_readable() -> None:
    data = bytearray(encoded())
    struct.pack_into("<H", data, 4, VERSION + 1)
    with pytest.raises(FormatError) as error:
        decode_segment(bytes(data), "w/a/j/7")
    assert "pip install -U perdure" in str(error.value)
    assert token_of(bytes(data)) == TOKEN


def test_a_record_of_an_unknown_kind_is_a_newer_format_not_damage() -> None:
    import msgspec

    body = msgspec.msgpack.encode([[99, 1, 2]])
    with pytest.raises(FormatError):
        decode_segment(encode_body(HEADER, body, token=TOKEN, prev=PREV), "k")


def test_a_record_with_fields_added_at_its_end_is_still_read() -> None:
    import msgspec

    body = msgspec.msgpack.encode([[13, 4.0, "added later"]])
    assert decode_segment(encode_body(HEADER, body, token=TOKEN, prev=PREV), "k").records == [r.Succeeded(4.0)]


def test_j13_the_token_stands_at_a_fixed_place() -> None:
    assert encoded()[TOKEN_OFFSET : TOKEN_OFFSET + 16] == TOKEN
    assert token_of(encoded()) == TOKEN
    assert token_of(b"short") == NO_TOKEN


def test_an_inbox_message_comes_back_from_its_body() -> None:
    data = encode_body(Header("inbox", -1, -1, ""), r.encode_message(r.Cancel(3.0)), token=TOKEN, prev=NO_TOKEN)
    assert r.decode_message(decode_body(data, "k")) == r.Cancel(3.0)


def test_a_graph_that_names_what_does_not_exist_is_refused() -> None:
    from perdure.graph import decode_graph, encode_graph

    assert decode_graph(encode_graph(GRAPH)) == GRAPH
    for bad in (
        Graph([Node("a", function=0)], 1, GRAPH.functions, GRAPH.options),
        Graph([Node("a", function=1)], 0, GRAPH.functions, GRAPH.options),
        Graph([Node("a", function=0, options=1)], 0, GRAPH.functions, GRAPH.options),
        Graph([Node("a", function=0, tops=((0, 0),))], 0, GRAPH.functions, GRAPH.options),
        Graph([Node("a", function=0, nested=(-1,))], 0, GRAPH.functions, GRAPH.options),
        Graph([Node("a", "timer")], 0, GRAPH.functions, GRAPH.options),
        Graph([Node("a", "other", function=0)], 0, GRAPH.functions, GRAPH.options),
    ):
        with pytest.raises(ValueError):
            decode_graph(encode_graph(bad))
