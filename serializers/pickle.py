"""Pickle, for what no other serializer keeps: Ray's cloudpickle, protocol 5, buffers out of band.

Owns how functions, classes and objects of any type are kept. Loading runs code that the bytes choose: the
trust level of ``perdure.values`` decides whether it is called at all.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from typing import Any, ClassVar

from perdure import references
from perdure.errors import DecodeError, EncodeError
from perdure.serializer import Buffer, Dump, Limits, Serializer

_ATTACHED_FROM = 1 << 12  # smaller buffers stay inside the stream: padding would cost more than a copy

_pickler: Any = None


def _pickler_class() -> Any:
    # Made at first use: importing Ray takes long, and loading does not need it.
    global _pickler
    if _pickler is None:
        from ray.cloudpickle import CloudPickler

        class Pickler(CloudPickler):  # type: ignore[misc]
            def reducer_override(self, obj: Any) -> Any:
                if references.is_ref(obj):
                    return references.restore, (references.collect(obj),)
                return super().reducer_override(obj)

        _pickler = Pickler
    return _pickler


class PickleSerializer(Serializer):
    """Anything that can be pickled. What ``__main__`` or a notebook defines is kept by value."""

    id: ClassVar[str] = "pickle"
    version: ClassVar[int] = 1
    runs_code: ClassVar[bool] = True

    def accepts(self, obj: object) -> bool:
        return True

    def dump(self, obj: object) -> Dump:
        stream = io.BytesIO()
        attached: list[Buffer] = []

        def attach(buffer: pickle.PickleBuffer) -> bool:
            try:
                view = buffer.raw()
            except BufferError:  # not contiguous
                return True
            if view.nbytes < _ATTACHED_FROM:
                return True
            attached.append(view)
            return False

        try:
            _pickler_class()(stream, protocol=5, buffer_callback=attach).dump(obj)
        except EncodeError:
            raise
        except RecursionError as error:
            raise EncodeError(f"{type(obj).__qualname__} is nested too deeply to be pickled") from error
        except Exception as error:  # whatever __reduce__ or __getstate__ of the user's class raises
            raise EncodeError(
                f"{type(obj).__qualname__} can't be pickled: {type(error).__name__}: {error!s:.200}"
            ) from error
        return [stream.getvalue(), *attached]

    def load(self, buffers: Sequence[memoryview], limits: Limits) -> object:
        if not buffers:
            raise DecodeError("the value has no buffer")
        try:
            return pickle.loads(buffers[0], buffers=buffers[1:])
        except DecodeError:
            raise
        except ImportError as error:
            raise DecodeError(
                f"a pickled value needs {getattr(error, 'name', None) or 'a module'}, which can't be "
                f"imported here: {error!s:.200}. Make it importable (working_dir, py_modules or pip in the "
                "runtime_env)."
            ) from error
        except Exception as error:  # loading calls the user's code
            raise DecodeError(f"a pickled value can't be loaded: {type(error).__name__}: {error!s:.200}") from error
