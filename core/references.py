"""ObjectRefs inside values: found while a value is serialized, put back while it is loaded.

Owns the two context variables that connect a serializer, however deep in its own machinery, with the dump or
load that it works for. A stored value never holds a ref itself, only an index into the list that the engine
keeps with it. Never imports Ray: an object can only be a ref where Ray has been imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from perdure.errors import DecodeError, EncodeError


class Collector:
    """The distinct refs met by one dump, in the order of their first occurrence."""

    __slots__ = ("_index", "refs")

    def __init__(self) -> None:
        self.refs: list[Any] = []
        self._index: dict[bytes, int] = {}

    def add(self, ref: Any) -> int:
        """Index of the ref; refs of one object (equal binary ids) share one."""
        identity = _identity(ref)
        index = self._index.get(identity)
        if index is None:
            index = self._index[identity] = len(self.refs)
            self.refs.append(ref)
        return index

    def clear(self) -> None:
        """Forget everything: the serializer that collected gave up."""
        if self.refs:
            self.refs.clear()
            self._index.clear()


# Used by perdure.values directly, where a context manager would cost more than the rest.
COLLECTOR: ContextVar[Collector | None] = ContextVar("perdure-collector", default=None)
RESTORED: ContextVar[Sequence[Any] | None] = ContextVar("perdure-restored", default=None)


@contextmanager
def collecting() -> Iterator[Collector]:
    """Collect the refs of everything that is serialized inside, in this thread or task."""
    collector = Collector()
    token = COLLECTOR.set(collector)
    try:
        yield collector
    finally:
        COLLECTOR.reset(token)


@contextmanager
def restoring(refs: Sequence[Any]) -> Iterator[None]:
    """Give loads inside, in this thread or task, the refs that their values name by index."""
    token = RESTORED.set(refs)
    try:
        yield
    finally:
        RESTORED.reset(token)


def is_ref(obj: object) -> bool:
    """Whether this is a Ray ObjectRef, or a DAG node that will be one (inside the arguments of another
    node).
    """
    kind = getattr(sys.modules.get("ray"), "ObjectRef", None)
    return (kind is not None and isinstance(obj, kind)) or is_node(obj)


def is_node(obj: object) -> bool:
    """Whether this is a node of a Ray DAG."""
    kind = getattr(sys.modules.get("ray.dag.dag_node"), "DAGNode", None)
    return kind is not None and isinstance(obj, kind)


def _identity(ref: Any) -> bytes:
    # a node answers to any attribute, so the kind decides
    return ref.get_stable_uuid().encode() if is_node(ref) else ref.binary()  # type: ignore[no-any-return]


def collect(ref: Any) -> int:
    """Called by a serializer that meets a ref: the index to store in its place."""
    collector = COLLECTOR.get()
    if collector is None:
        raise EncodeError(
            f"an ObjectRef ({ref!r}) can't be stored by itself: it is lost with its cluster. Serialize "
            "through perdure.values.Values.dump, which keeps the ref's value too, or ray.get it first."
        )
    return collector.add(ref)


def restore(index: int) -> Any:
    """Called by a serializer that loads a ref: the ref in its place. DecodeError: there is none."""
    refs = RESTORED.get()
    if type(index) is not int or refs is None or not 0 <= index < len(refs):
        held = "none" if refs is None else str(len(refs))
        raise DecodeError(f"the value names ObjectRef number {index!r:.50}, but {held} came with it")
    return refs[index]
