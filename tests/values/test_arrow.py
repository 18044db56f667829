"""Arrays and tables: kept exactly, alone and inside containers, without copies."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from perdure.envelope import pack
from perdure.errors import DecodeError
from perdure.values import Values

values = Values(["data", "arrow"])

ARRAYS = [
    np.arange(10.0),
    np.arange(12, dtype=">i2").reshape(3, 4),
    np.arange(12).reshape(3, 4).T,
    np.arange(100).reshape(10, 10)[::2, ::3],
    np.array(5),
    np.zeros((0, 3)),
    np.array([True, False]),
    np.array(["a", "bcd"]),
    np.array([b"a", b"bcd"]),
    np.array(["2020-01-01"], dtype="M8[ns]"),
    np.array([5], dtype="m8[us]"),
    np.array([1 + 2j]),
    np.zeros(3, dtype=[("a", "<i4"), ("b", "<f8", (2,)), ("c", [("d", "S3")])]),
    np.zeros(3, dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    np.float16([1.5]),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}-{a.shape}")
def test_arrays_come_back_with_dtype_shape_and_content(array: np.ndarray) -> None:
    dumped = values.dump({"x": [array]})
    back = values.load(dumped.join())["x"][0]
    assert dumped.serializer == "arrow"
    assert (back.dtype, back.shape, type(back)) == (array.dtype, array.shape, np.ndarray)
    assert back.tobytes() == array.tobytes()
    assert not back.flags.writeable


@pytest.mark.parametrize("scalar", [np.float64(1.5), np.int8(-1), np.bool_(True), np.str_("ä"), np.bytes_(b"x")])
def test_numpy_scalars_keep_their_type(scalar: np.generic) -> None:
    back = values.loads(values.dumps((scalar, 1)))[0]
    assert type(back) is type(scalar)
    assert back == scalar


TABLE = pa.table(
    {
        "i": [1, 2, None],
        "s": ["a", "ä", None],
        "l": [[1], [], None],
        "d": pa.array(["x", "y", "x"]).dictionary_encode(),
        "t": pa.array([1, 2, 3], pa.timestamp("ns", "UTC")),
        "n": [{"a": 1}, {"a": 2}, None],
    }
).replace_schema_metadata({"k": "v"})


@pytest.mark.parametrize(
    "value",
    [
        TABLE,
        TABLE.slice(1, 1),
        pa.concat_tables([TABLE.select(["i"]), TABLE.select(["i"])]),
        pa.table({}),
        TABLE.schema.empty_table(),
        TABLE.to_batches()[0],
        TABLE.schema,
        pa.array([1, None]),
        pa.array([{"a": [1]}]),
        pa.chunked_array([[1], [2, 3]]),
        pa.chunked_array([], type=pa.int8()),
    ],
    ids=lambda v: type(v).__name__,
)
def test_arrow_objects_come_back_equal_and_whole(value: object) -> None:
    back = values.loads(values.dumps([value]))[0]
    assert type(back) is type(value)
    assert back.equals(value)
    if isinstance(value, pa.Table):
        assert back.schema.equals(value.schema, check_metadata=True)


def test_a_large_array_is_not_copied_by_dump_or_load() -> None:
    array = np.arange(1_000_000)
    dumped = values.dump({"a": array})
    address = array.__array_interface__["data"][0]
    assert any(
        np.frombuffer(b, np.uint8).__array_interface__["data"][0] == address
        for b in dumped.buffers
        if memoryview(b).nbytes > 1000
    )
    data = dumped.join()
    back = values.load(data)["a"]
    start = np.frombuffer(data, np.uint8).__array_interface__["data"][0]
    assert start <= back.__array_interface__["data"][0] < start + len(data)


def test_a_large_table_is_not_copied_by_dump_or_load() -> None:
    table = pa.table({"x": np.arange(1_000_000)})
    dumped = values.dump(table)
    address = table.column(0).chunk(0).buffers()[1].address
    assert any(
        np.frombuffer(b, np.uint8).__array_interface__["data"][0] == address
        for b in dumped.buffers
        if memoryview(b).nbytes > 100_000
    )
    before = pa.total_allocated_bytes()
    back = values.load(dumped.join())
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert back.equals(table)


def test_a_slice_stores_only_its_rows() -> None:
    table = pa.table({"x": np.arange(1_000_000)})
    assert values.dump(table.slice(10, 5)).size < 5000


def test_arrays_of_objects_are_left_to_pickle() -> None:
    assert Values().dump(np.array([object()], dtype=object)).serializer == "pickle"
    assert Values().dump(np.ma.masked_array([1], [True])).serializer == "pickle"


@pytest.mark.parametrize("shape", [[0], [1], [3], [-1], [2, 2], ["2"], [True], 2])
def test_an_array_whose_memory_is_not_its_shape_is_refused(shape: object) -> None:
    for memory in (b"x" * 16, 1):
        body = msgspec.msgpack.encode(msgspec.msgpack.Ext(32, msgspec.msgpack.encode(["<f8", shape, "C", memory])))
        with pytest.raises(DecodeError):
            values.load(b"".join(pack([body, b"x" * 16], serializer="arrow")))


def test_accepting_plain_values_does_not_import_pyarrow() -> None:
    code = (
        "import sys; from perdure.values import Values; v = Values()\n"
        "assert not v.serializer('arrow').accepts([1, object()]); assert 'pyarrow' not in sys.modules\n"
        "import numpy; v.loads(v.dumps([numpy.arange(3)])); assert 'pyarrow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "dtype", ["O", "|O8", "<f8,O", "f8", "<V-1", [1, 0, [["a", "|O8", 0, []]]], [8, 0, [["a", 5, 0, []]]]]
)
def test_stored_dtypes_of_objects_and_unknown_spellings_are_refused(dtype: object) -> None:
    body = msgspec.msgpack.encode(msgspec.msgpack.Ext(32, msgspec.msgpack.encode([dtype, [1], "C", 1])))
    with pytest.raises(DecodeError):
        values.load(b"".join(pack([body, b"x" * 8], serializer="arrow")))
