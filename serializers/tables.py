"""pyarrow tables, batches, arrays and schemas.

Owns which Arrow objects are kept. Extension types are not: their storage would come back without their class.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from perdure.errors import DecodeError
from perdure.serializers import plain
from perdure.serializers.ipc import open_stream, write_stream
from perdure.serializers.plain_reader import Reader

TABLE: Final = 34
BATCH: Final = 35
CHUNKED: Final = 36
ARROW_ARRAY: Final = 37
SCHEMA: Final = 43

_COLUMN = "perdure"


def leaf(writer: plain.Writer, obj: Any) -> Any:
    pa = sys.modules.get("pyarrow")
    if pa is None:
        return NotImplemented
    kind = type(obj)
    if kind is pa.Table:
        if not _storable_types(obj.schema):
            return NotImplemented
        return writer.nested(TABLE, [writer.buffer(write_stream(obj.schema, obj.to_batches())), obj.num_rows])
    if kind is pa.RecordBatch:
        if not _storable_types(obj.schema):
            return NotImplemented
        return writer.nested(BATCH, [writer.buffer(write_stream(obj.schema, [obj])), obj.num_rows])
    if kind is pa.Schema:
        if not _storable_types(obj):
            return NotImplemented
        return writer.nested(SCHEMA, [writer.buffer(write_stream(obj, []))])
    if kind is pa.ChunkedArray:
        schema = pa.schema([pa.field(_COLUMN, obj.type)])
        if not _storable_types(schema):
            return NotImplemented
        batches = [pa.record_batch([chunk], schema=schema) for chunk in obj.chunks]
        return writer.nested(CHUNKED, [writer.buffer(write_stream(schema, batches))])
    if isinstance(obj, pa.Array) and kind.__module__ == "pyarrow.lib":
        schema = pa.schema([pa.field(_COLUMN, obj.type)])
        if not _storable_types(schema):
            return NotImplemented
        batch = pa.record_batch([obj], schema=schema)
        return writer.nested(ARROW_ARRAY, [writer.buffer(write_stream(schema, [batch]))])
    return NotImplemented


def _storable_types(schema: Any) -> bool:
    return not any(_has_extension(field.type) for field in schema)


def _has_extension(kind: Any) -> bool:
    if hasattr(kind, "extension_name"):
        return True
    return any(_has_extension(kind.field(i).type) for i in range(kind.num_fields)) or (
        hasattr(kind, "value_type") and _has_extension(kind.value_type)
    )


def _load_table(reader: Reader, number: Any, rows: Any) -> Any:
    import pyarrow as pa

    schema, batches = open_stream(reader.buffer(number))
    table = pa.Table.from_batches(batches, schema)
    if table.num_rows != rows and not (table.num_columns == 0 and type(rows) is int):
        raise DecodeError(f"a table has {table.num_rows} rows, {rows!r:.30} were stored")
    return table


def _load_batch(reader: Reader, number: Any, rows: Any) -> Any:
    return _one(open_stream(reader.buffer(number))[1])


def _load_schema(reader: Reader, number: Any) -> Any:
    return open_stream(reader.buffer(number))[0]


def _load_chunked(reader: Reader, number: Any) -> Any:
    import pyarrow as pa

    schema, batches = open_stream(reader.buffer(number))
    return pa.chunked_array([batch.column(0) for batch in batches], type=schema.field(0).type)


def _load_arrow_array(reader: Reader, number: Any) -> Any:
    return _one(open_stream(reader.buffer(number))[1]).column(0)


def _one(batches: list[Any]) -> Any:
    if len(batches) != 1:
        raise DecodeError(f"{len(batches)} record batches where one was stored")
    return batches[0]


LOADS: Final[dict[int, Any]] = {
    TABLE: _load_table,
    BATCH: _load_batch,
    SCHEMA: _load_schema,
    CHUNKED: _load_chunked,
    ARROW_ARRAY: _load_arrow_array,
}
