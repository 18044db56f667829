"""Arrow streams that lie."""

from __future__ import annotations

import msgspec
import pyarrow as pa
import pytest

from perdure.envelope import pack
from perdure.errors import DecodeError
from perdure.values import Values

values = Values(trust="data")


def stored(stream: bytes, code: int = 34, *more: object) -> bytes:
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(code, msgspec.msgpack.encode([1, *more])))
    return b"".join(pack([body, stream], serializer="arrow"))


def stream(table: pa.Table, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as out:
        out.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
@pytest.mark.parametrize("column", [pa.array([0] * 100_000), pa.array(["a" * 5000]).dictionary_encode()])
def test_compressed_buffers_are_refused_before_they_are_expanded(codec: str, column: pa.Array) -> None:
    table = pa.table({"x": column})
    with pytest.raises(DecodeError, match="compressed"):
        values.loads(stored(stream(table, compression=codec), 34, table.num_rows))
    assert values.loads(stored(stream(table), 34, table.num_rows)).equals(table)


def test_offsets_that_point_outside_are_refused() -> None:
    data = bytearray(stream(pa.table({"x": ["abc", "defg"]})))
    offsets = b"\0\0\0\0\3\0\0\0\7\0\0\0"
    at = data.index(offsets)
    data[at + 8 : at + 12] = (1 << 30).to_bytes(4, "little")
    with pytest.raises(DecodeError):
        values.loads(stored(bytes(data), 34, 2))


def test_streams_cut_anywhere_are_refused() -> None:
    data = stream(pa.table({"x": ["abc", "defg"]}))
    for end in range(len(data)):
        with pytest.raises(DecodeError):
            values.loads(stored(data[:end], 34, 2))


def test_another_number_of_batches_or_rows_is_refused() -> None:
    data = stream(pa.table({"x": [1]}))
    with pytest.raises(DecodeError, match="rows"):
        values.loads(stored(data, 34, 2))
    two = stream(pa.concat_tables([pa.table({"x": [1]}), pa.table({"x": [1]})]))
    with pytest.raises(DecodeError, match="2 record batches"):
        values.loads(stored(two, 35, 2))


def test_a_stream_without_its_end_mark_or_with_more_behind_it_is_refused() -> None:
    table = pa.table({"x": [1, 2], "y": ["a", "b"]})
    whole = stream(table)
    assert values.loads(stored(whole, 34, 2)).equals(table)
    for wrong in (whole[:-8], whole[:-4], whole[:-1], whole + b"\0", whole + whole[-4:]):
        with pytest.raises(DecodeError, match="end mark"):
            values.loads(stored(wrong, 34, 2))
