"""pandas and polars, by Arrow: only what comes back the same.

Owns the comparison that decides it. Arrow maps several types of both libraries to one; a frame that would
change is left to another serializer.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from perdure.serializers import plain
from perdure.serializers.ipc import open_stream, write_stream
from perdure.serializers.plain_reader import Reader

PANDAS_FRAME: Final = 38
PANDAS_SERIES: Final = 39
POLARS_FRAME: Final = 40
POLARS_SERIES: Final = 41

_COLUMN = "perdure"


def pandas_leaf(writer: plain.Writer, obj: Any) -> Any:
    pd = sys.modules["pandas"]
    kind = type(obj)
    try:
        if kind is pd.DataFrame:
            return _pandas_frame(writer, obj, PANDAS_FRAME)
        if kind is pd.Series:
            return _pandas_frame(writer, obj.to_frame(_COLUMN), PANDAS_SERIES, obj.name)
    except (ImportError, ValueError, TypeError, NotImplementedError, ArithmeticError, KeyError):
        # Arrow has no place for it (mixed objects, odd indexes): pickle keeps it.
        return NotImplemented
    return NotImplemented


def _pandas_frame(writer: plain.Writer, frame: Any, code: int, *more: Any) -> Any:
    import pyarrow as pa

    odd = "mixed" in frame.columns.inferred_type or not frame.columns.is_unique
    if odd or frame.attrs or not frame.flags.allows_duplicate_labels:
        return NotImplemented
    table = pa.Table.from_pandas(frame)
    back = table.to_pandas()
    # Arrow maps several types to one; only what comes back the same is kept this way.
    if not (back.dtypes.equals(frame.dtypes) and back.index.equals(frame.index) and back.equals(frame)):
        return NotImplemented
    if back.index.names != frame.index.names or type(back.index) is not type(frame.index):
        return NotImplemented
    if type(back.columns) is not type(frame.columns) or back.columns.names != frame.columns.names:
        return NotImplemented
    if any(str(kind) == "object" for kind in frame.dtypes) and not _same_objects(frame, back):
        return NotImplemented
    name = [writer.plain(part) for part in more]
    return writer.nested(code, [writer.buffer(write_stream(table.schema, table.to_batches())), *name])


def _same_objects(frame: Any, back: Any) -> bool:
    for position, kind in enumerate(frame.dtypes):
        if str(kind) == "object" and not all(
            type(a) is type(b) for a, b in zip(frame.iloc[:, position], back.iloc[:, position], strict=True)
        ):
            return False
    return True


def _load_pandas_frame(reader: Reader, number: Any) -> Any:
    import pyarrow as pa

    schema, batches = open_stream(reader.buffer(number))
    return pa.Table.from_batches(batches, schema).to_pandas()


def _load_pandas_series(reader: Reader, number: Any, name: Any) -> Any:
    return _load_pandas_frame(reader, number).iloc[:, 0].rename(name)


def polars_leaf(writer: plain.Writer, obj: Any) -> Any:
    pl = sys.modules["polars"]
    kind = type(obj)
    if kind is pl.DataFrame:
        return _polars_frame(writer, obj, POLARS_FRAME)
    if kind is pl.Series:
        return _polars_frame(writer, obj.to_frame(), POLARS_SERIES)
    return NotImplemented


def _polars_frame(writer: plain.Writer, frame: Any, code: int) -> Any:
    pl = sys.modules["polars"]
    if any(kind.is_(pl.Object) if hasattr(kind, "is_") else kind == pl.Object for kind in frame.dtypes):
        return NotImplemented
    try:
        table = frame.to_arrow()
        if pl.from_arrow(table).schema != frame.schema:
            return NotImplemented
    except Exception:  # polars has its own errors for types that Arrow lacks
        return NotImplemented
    return writer.nested(code, [writer.buffer(write_stream(table.schema, table.to_batches()))])


def _load_polars_frame(reader: Reader, number: Any) -> Any:
    import polars as pl
    import pyarrow as pa

    schema, batches = open_stream(reader.buffer(number))
    return pl.from_arrow(pa.Table.from_batches(batches, schema))


def _load_polars_series(reader: Reader, number: Any) -> Any:
    return _load_polars_frame(reader, number).to_series(0)


LOADS: Final[dict[int, Any]] = {
    PANDAS_FRAME: _load_pandas_frame,
    PANDAS_SERIES: _load_pandas_series,
    POLARS_FRAME: _load_polars_frame,
    POLARS_SERIES: _load_polars_series,
}
