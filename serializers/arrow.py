"""Arrays and tables without copies: Arrow IPC and raw numpy memory, also inside plain containers.

Owns the dispatch to ``numpy_memory``, ``tables`` and ``frames``. Large memory travels in buffers of its own,
by reference in both directions; what is loaded is read-only. Never imports a library that the value at hand
does not need; ``accepts`` imports nothing: an object of a library can exist only where that library has been
imported.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar

from perdure.errors import DecodeError
from perdure.serializer import Dump, Limits, Serializer
from perdure.serializers import frames, numpy_memory, plain, tables
from perdure.serializers.plain_reader import Reader

_LOADS = numpy_memory.LOADS | tables.LOADS | frames.LOADS
_LIBRARIES = {
    "numpy": numpy_memory.leaf,
    "pyarrow": tables.leaf,
    "pandas": frames.pandas_leaf,
    "polars": frames.polars_leaf,
}


class ArrowSerializer(Serializer):
    """Values that hold at least one array, table or frame, alone or inside plain containers."""

    id: ClassVar[str] = "arrow"
    version: ClassVar[int] = 1
    runs_code: ClassVar[bool] = False

    def accepts(self, obj: object) -> bool:
        return self.attempt(obj) is not None

    def attempt(self, obj: object) -> Dump | None:
        if sys.modules.keys().isdisjoint(_LIBRARIES):
            return None
        try:
            return plain.encode(obj, _leaf)
        except plain.NotPlain:
            return None

    def dump(self, obj: object) -> Dump:
        try:
            return plain.encode(obj, _leaf)
        except plain.NotPlain as stop:
            raise plain.plain_error(obj, stop.args[0], self.id) from None

    def load(self, buffers: Sequence[memoryview], limits: Limits) -> object:
        return Reader(buffers, limits, _foreign).decode()


def _leaf(writer: plain.Writer, obj: Any) -> Any:
    library = type(obj).__module__.partition(".")[0]
    leaf = _LIBRARIES.get(library)
    return NotImplemented if leaf is None or library not in sys.modules else leaf(writer, obj)


def _foreign(reader: Reader, code: int, body: memoryview) -> Any:
    load = _LOADS.get(code)
    if load is None:
        raise DecodeError(f"the value has the unknown extension {code}; a newer Perdure may have written it")
    fields = reader.nested(body)
    if type(fields) is not list:
        raise DecodeError(f"extension {code} holds {type(fields).__name__}, expected an array")
    try:
        return load(reader, *fields)
    except (DecodeError, RecursionError, MemoryError):
        raise
    except ImportError as error:
        raise DecodeError(
            f"the value holds an array, table or frame whose library is missing here: {error!s:.100}. "
            "Install it (pip install 'perdure[arrow]' for numpy and pyarrow)."
        ) from error
    except Exception as error:  # numpy and pyarrow raise classes of their own for bytes that don't fit
        raise DecodeError(f"an array or table can't be loaded: {type(error).__name__}: {error!s:.150}") from error
