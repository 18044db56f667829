"""The default serializer: data only, in MessagePack.

Owns nothing but the choice: a value made of plain types is kept here, exactly; anything else is for another
serializer. Loading runs no code, whatever the bytes say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from perdure.serializer import Dump, Limits, Serializer
from perdure.serializers import plain
from perdure.serializers.plain_reader import Reader


class DataSerializer(Serializer):
    """None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset, range,
    datetime, date, time, timedelta, Decimal, UUID and ObjectRefs, in any nesting; no subclasses of them.
    """

    id: ClassVar[str] = "data"
    version: ClassVar[int] = 1
    runs_code: ClassVar[bool] = False

    def accepts(self, obj: object) -> bool:
        return self._try(obj) is not None

    def attempt(self, obj: object) -> Dump | None:
        return self._try(obj)

    def dump(self, obj: object) -> Dump:
        try:
            return plain.encode(obj)
        except plain.NotPlain as stop:
            raise plain.plain_error(obj, stop.args[0], self.id) from None

    def load(self, buffers: Sequence[memoryview], limits: Limits) -> object:
        return Reader(buffers, limits).decode()

    @staticmethod
    def _try(obj: object) -> Dump | None:
        try:
            return plain.encode(obj)
        except plain.NotPlain:
            return None
