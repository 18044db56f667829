"""From stored bytes to values and functions, where user code may be loaded: in workers and drivers."""

from __future__ import annotations

import sys
from typing import Any, Final, TypeAlias

import ray

from perdure.code_names import PYTHON, exception_from, is_name, load_name
from perdure.errors import DecodeError, NotFound
from perdure.graph import Function, Payload
from perdure.onray.process import PROCESS


def wrap(value: Any, wraps: str) -> Any:
    for mark in wraps:
        value = (value, None) if mark == "v" else (None, exception_from(value))
    return value


KnownRefs: TypeAlias = dict[bytes, tuple[ray.ObjectRef, Payload]]
"""Refs that an attempt was given or made, with what is stored of them: returned again, they need no upload. Only for
as long as the attempt lasts: an ObjectRef that is held keeps its object in memory."""


class Loader:
    """Loads payloads; ``live`` maps blob names to ObjectRefs that hold their values already."""

    def __init__(self, store: str, live: dict[str, ray.ObjectRef], where: str) -> None:
        self.store = store
        self.live = live
        self.where = where
        self.known: KnownRefs = {}

    def value(self, payload: Payload) -> Any:
        """The value itself; blobs that no ref holds are read from the store."""
        if payload.data is None and payload.blob is None:
            return wrap(None, payload.wraps)
        if payload.blob is not None and payload.blob in self.live:
            return wrap(ray.get(self.live[payload.blob]), payload.wraps)
        return wrap(self._load(self._bytes(payload), payload.refs), payload.wraps)

    def _bytes(self, payload: Payload) -> Any:
        if payload.data is not None:
            return payload.data
        assert payload.blob is not None
        try:
            return PROCESS.get(self.store, payload.blob)
        except NotFound as error:
            raise DecodeError(f"{self.where}: its value {payload.blob} is missing from the store") from error

    def _load(self, data: Any, refs: tuple[Payload, ...]) -> Any:
        return PROCESS.values.load(data, refs=[self.ref(p) for p in refs], where=self.where)

    def ref(self, payload: Payload) -> ray.ObjectRef:
        """An ObjectRef of the value: the one that exists, or a new one."""
        if payload.blob is not None and payload.blob in self.live and not payload.wraps:
            held = self.live[payload.blob]
            self.known[held.binary()] = (held, payload)
            return held
        value = self.value(payload)
        if isinstance(value, ray.ObjectRef):  # Ray can't put a ref, but a task can return one
            ref = ray.remote(only).options(num_cpus=0, name="perdure.ref").remote([value])
        else:
            ref = ray.put(value)
        self.known[ref.binary()] = (ref, payload)
        return ref

    def raw(self, payload: Payload) -> Any:
        return self._bytes(payload)


def only(values: list[Any]) -> Any:
    (value,) = values
    return value


_BY_VALUE: Final = b"_make_function"
"""Stands in pickles that hold bytecode, which no other version of Python can run."""


def load_function(function: Function, loader: Loader) -> Any:
    """The function (or class) behind a digest, unpickled once a process."""
    found = PROCESS.functions.get(function.digest)
    if found is None:
        if function.payload is None:
            raise DecodeError(f"the code of {function.name} is not stored")
        data = loader.raw(function.payload)
        if function.python not in ("", PYTHON) and _BY_VALUE in bytes(data):
            raise DecodeError(
                f"the code of {function.name} was stored by Python {function.python}, and Python {PYTHON} runs here, "
                "which can't run its bytecode. Resume it where that version runs, or with the code of today: "
                "workflow.resume(..., code='current')."
            )
        try:
            found = PROCESS.values.load(data, where=f"the code of {function.name}")
            if is_name(found):
                found = load_name(found, f"the code of {function.name}")
        except DecodeError:
            raise
        except Exception as error:
            raise DecodeError(
                f"the code of {function.name} can't be loaded here (Python {sys.version.split()[0]}, it was stored by "
                f"{function.python or 'an unknown version'}): "
                f"{type(error).__name__}: {error}. Give its modules to the tasks: working_dir or py_modules in the "
                "runtime_env, or an image that has them."
            ) from error
        if len(PROCESS.functions) > 2000:
            PROCESS.functions.clear()
        PROCESS.functions[function.digest] = found
        PROCESS.cache.put(
            found, Function(function.name, function.digest, None, function.code, function.python), bytes(data)
        )
    return found
