"""Which blobs a record names, and the same record with other names.

Owns the walk through records, graphs and payloads. Pure: it knows their shapes and no store.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import msgspec

from perdure import keys
from perdure.graph import Payload
from perdure.records import Continued, Created, Page, TaskDone

T = TypeVar("T")


def blobs_of(value: Any) -> Iterator[str]:
    """Keys of all blobs that a record (or graph, payload, list of them) names itself, repeats included.

    What stands inside a graph that is a blob (``graph_blob``) is named by that blob, not here.
    """
    if isinstance(value, Payload):
        if value.blob is not None and keys.blob_cycle(value.blob) is not None:
            yield value.blob
        for inner in value.refs:
            yield from blobs_of(inner)
    elif isinstance(value, TaskDone):  # most records
        yield from blobs_of(value.payload)
    elif isinstance(value, Page):
        return
    elif isinstance(value, msgspec.Struct):
        if isinstance(value, Created | Continued) and value.graph_blob:
            yield value.graph_blob
        for name in value.__struct_fields__:
            yield from blobs_of(getattr(value, name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from blobs_of(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from blobs_of(item)


def renamed(value: T, names: Mapping[str, str]) -> T:
    """The same with blobs renamed; names that are not in the mapping stay."""
    return cast(T, _renamed(value, names))


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Payload):
        if value.blob is None and not value.refs:
            return value
        refs = tuple(_renamed(inner, names) for inner in value.refs)
        blob = names.get(value.blob, value.blob) if value.blob is not None else None
        return Payload(value.data, blob, value.size, refs, value.wraps)
    if isinstance(value, msgspec.Struct):
        changes = {name: _renamed(getattr(value, name), names) for name in value.__struct_fields__}
        if isinstance(value, Created | Continued) and value.graph_blob:
            changes["graph_blob"] = names.get(value.graph_blob, value.graph_blob)
        return type(value)(**changes)
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    if isinstance(value, tuple):
        return tuple(_renamed(item, names) for item in value)
    if isinstance(value, dict):
        return {key: _renamed(item, names) for key, item in value.items()}
    return value
