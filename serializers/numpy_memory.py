"""numpy arrays, scalars and dtypes: raw memory, described as data.

Owns which dtypes are kept and how they are spelled. Never stores objects, never copies contiguous memory.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final

from perdure.errors import DecodeError
from perdure.serializers import plain
from perdure.serializers.plain_reader import Reader

ARRAY: Final = 32
SCALAR: Final = 33
DTYPE: Final = 42

_SIMPLE = re.compile(r"[<>|][?biufcSUV]\d{1,9}|[<>][mM]8(\[\d{0,9}[A-Za-zμ]{1,7}\])?")

_ATTACHED_FROM = 1 << 10  # smaller arrays stand in the first buffer


def leaf(writer: plain.Writer, obj: Any) -> Any:
    np = sys.modules["numpy"]
    if type(obj) is np.ndarray:
        described = _describe(obj.dtype)
        if described is None:
            return NotImplemented
        order = "C"
        if not obj.flags.c_contiguous:
            if obj.flags.f_contiguous:
                order = "F"
            else:
                obj = np.ascontiguousarray(obj)
        flat = obj.T if order == "F" else obj
        if obj.nbytes < _ATTACHED_FROM:
            memory: bytes | int = flat.tobytes()
        else:
            memory = writer.buffer(memoryview(flat.reshape(-1).view(np.uint8)))
        return writer.nested(ARRAY, [described, list(obj.shape), order, memory])
    if isinstance(obj, np.generic):
        described = _describe(obj.dtype)
        # A subclass of a scalar type would come back as its base.
        if described is None or type(obj) is not obj.dtype.type or obj.dtype.type is np.void:
            return NotImplemented
        return writer.nested(SCALAR, [described, obj.tobytes()])
    if isinstance(obj, np.dtype):
        described = _describe(obj)
        return NotImplemented if described is None else writer.nested(DTYPE, [described])
    return NotImplemented


def _describe(dtype: Any) -> Any:
    """A dtype as data, or None where it can't be kept exactly (objects, metadata, unusual structures)."""
    if dtype.hasobject or dtype.metadata:
        return None
    np = sys.modules["numpy"]
    described: Any
    if dtype.names is None:
        described = dtype.str
        if dtype.subdtype is not None or not _SIMPLE.fullmatch(described):
            return None
        # Extension dtypes (bfloat16, StringDType) share the letters of plain ones.
        return described if np.dtype(described) == dtype and np.dtype(described).type is dtype.type else None
    fields = []
    for name in dtype.names:
        part, offset, *title = dtype.fields[name]
        base, shape = part.subdtype if part.subdtype is not None else (part, ())
        inner = _describe(base)
        if inner is None or title:
            return None
        fields.append([name, inner, offset, list(shape)])
    described = [dtype.itemsize, dtype.isalignedstruct, fields]
    return described if _dtype(described) == dtype else None


def _dtype(described: Any, depth: int = 0) -> Any:
    import numpy as np

    if isinstance(described, str):
        if not _SIMPLE.fullmatch(described):
            raise DecodeError(f"{described!r:.60} is not a dtype that is stored")
        return np.dtype(described)
    if depth > 16:
        raise DecodeError("a dtype is nested too deeply")
    itemsize, aligned, fields = described
    parts = [(_dtype(inner, depth + 1), tuple(shape)) for _, inner, _, shape in fields]
    made = np.dtype(
        {
            "names": [str(name) for name, *_ in fields],
            "formats": [(part, shape) if shape else part for part, shape in parts],
            "offsets": [int(offset) for _, _, offset, _ in fields],
            "itemsize": int(itemsize),
        },
        align=bool(aligned),
    )
    if made.hasobject:
        raise DecodeError("a dtype of objects is never stored")
    return made


def _load_array(reader: Reader, described: Any, shape: Any, order: Any, memory: Any) -> Any:
    import numpy as np

    dtype = _dtype(described)
    if order not in ("C", "F") or type(shape) is not list or len(shape) > 64:
        raise DecodeError(f"an array has the shape {shape!r:.60} in the order {order!r:.20}")
    count = 1
    for length in shape:
        if type(length) is not int or not 0 <= length < 1 << 62:
            raise DecodeError(f"an array has the shape {shape!r:.60}")
        count *= length
    data = memory if type(memory) is bytes else reader.buffer(memory)
    if count * dtype.itemsize != len(data):
        raise DecodeError(f"an array of {count} times {dtype.itemsize} bytes has {len(data)}")
    if not data:
        empty = np.ndarray(tuple(shape), dtype, order=order)
        empty.flags.writeable = False
        return empty
    return np.ndarray(tuple(shape), dtype, buffer=data, order=order)


def _load_scalar(reader: Reader, described: Any, data: Any) -> Any:
    import numpy as np

    dtype = _dtype(described)
    if type(data) is not bytes or len(data) != dtype.itemsize or dtype.names is not None:
        raise DecodeError("a numpy scalar does not have the bytes of its type")
    return np.frombuffer(data, dtype, 1)[0] if data else dtype.type()


def _load_dtype(reader: Reader, described: Any) -> Any:
    return _dtype(described)


LOADS: Final[dict[int, Any]] = {ARRAY: _load_array, SCALAR: _load_scalar, DTYPE: _load_dtype}
