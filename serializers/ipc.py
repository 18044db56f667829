"""Arrow IPC streams without copies, and refused where they lie.

Owns writing and opening of streams. What is written is Arrow's own memory, by reference; what is opened is
views of the stored bytes. Arrow takes offsets, counts and compressed sizes in a stream on trust: here they
are checked first, so that hostile bytes give an error and never read foreign memory or take more than they
have.
"""

from __future__ import annotations

import struct
from typing import Any

from perdure.errors import DecodeError
from perdure.serializer import Buffer, Pieces

_END = b"\xff\xff\xff\xff\0\0\0\0"
_DICTIONARY_BATCH = 2
_RECORD_BATCH = 3
_CODEC_FIELD = 3  # of RecordBatch


class _Sink:
    """Collects what the IPC writer writes: Arrow's own buffers, by reference."""

    closed = False

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if view.nbytes:
            # The writer may reuse memory that is not an Arrow buffer.
            self.pieces.append(view.cast("B") if view.nbytes >= 4096 else bytes(view))
        return view.nbytes

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def flush(self) -> None: ...

    def close(self) -> None: ...


def write_stream(schema: Any, batches: Any) -> Pieces:
    import pyarrow as pa

    sink = _Sink()
    with pa.ipc.new_stream(pa.PythonFile(sink, mode="w"), schema) as out:
        for batch in batches:
            out.write_batch(batch)
    return Pieces(sink.pieces)


def open_stream(data: memoryview) -> tuple[Any, list[Any]]:
    import pyarrow as pa

    # Arrow takes a stream that just stops for a whole one.
    if bytes(data[-len(_END) :]) != _END:
        raise DecodeError("an Arrow stream is cut, or followed by something: it does not end in its end mark")
    _refuse_compressed(pa.py_buffer(data))
    with pa.ipc.open_stream(pa.py_buffer(data)) as source:
        schema = source.schema
        batches = list(source)
    for batch in batches:
        # IPC takes offsets and counts on trust; a wrong one would read foreign memory later.
        batch.validate(full=True)
    return schema, batches


def _refuse_compressed(stream: Any) -> None:
    import pyarrow as pa

    reader = pa.ipc.MessageReader.open_stream(stream)
    while True:
        try:
            message = reader.read_next_message()
        except StopIteration:
            return
        try:
            if _is_compressed(message.metadata):
                raise DecodeError("an Arrow stream has compressed buffers, which are never stored")
        except struct.error as error:
            raise DecodeError("an Arrow stream has a message that can't be read") from error


def _is_compressed(metadata: Any) -> bool:
    # The only part of Arrow's flatbuffers that is read by hand: pyarrow shows it nowhere.
    flat = memoryview(metadata)
    message = _u32(flat, 0)
    kind_at, header_at = _field(flat, message, 1), _field(flat, message, 2)
    if kind_at is None or header_at is None:
        return False
    kind = struct.unpack_from("<B", flat, kind_at)[0]
    table = header_at + _u32(flat, header_at)
    if kind == _DICTIONARY_BATCH:
        data_at = _field(flat, table, 1)
        if data_at is None:
            return False
        table = data_at + _u32(flat, data_at)
    elif kind != _RECORD_BATCH:
        return False
    return _field(flat, table, _CODEC_FIELD) is not None


def _field(flat: memoryview, table: int, number: int) -> int | None:
    """Where a field of a flatbuffer's table stands; None: it has its default."""
    (back,) = struct.unpack_from("<i", flat, table)
    vtable = table - back
    if vtable < 0:
        raise struct.error("a table before its buffer")
    (size,) = struct.unpack_from("<H", flat, vtable)
    if 4 + 2 * number + 2 > size:
        return None
    (offset,) = struct.unpack_from("<H", flat, vtable + 4 + 2 * number)
    return table + offset if offset else None


def _u32(flat: memoryview, at: int) -> int:
    return int(struct.unpack_from("<I", flat, at)[0])
