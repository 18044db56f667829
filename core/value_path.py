"""Where inside a value is the thing that can't be stored.

Owns the search that runs after a serializer has refused a value, so that the error names the smallest part
that is refused and the path to it (``result['a'][3].lock``). Bounded, and never on the way of values that can
be stored.
"""

from __future__ import annotations

import itertools
import time
import types
from collections.abc import Callable, Iterator

_SECONDS = 1.0
_MOST_CHILDREN = 1000
_DEEPEST = 50


def find_refused(value: object, root: str, storable: Callable[[object], bool]) -> tuple[str, object]:
    """Path and object of the smallest refused part. ``storable`` says whether a part would be kept by
    itself.
    """
    deadline = time.monotonic() + _SECONDS
    path, found = root, value
    seen = {id(value)}
    for _ in range(_DEEPEST):
        for step, child in _children(found):
            if id(child) in seen:
                continue
            if time.monotonic() > deadline:
                return path, found
            if not storable(child):
                seen.add(id(child))
                path, found = path + step, child
                break
        else:
            return path, found
    return path, found


def _children(obj: object) -> Iterator[tuple[str, object]]:
    return itertools.islice(_all_children(obj), _MOST_CHILDREN)


def _all_children(obj: object) -> Iterator[tuple[str, object]]:
    if isinstance(obj, dict):
        for key, item in list(obj.items()):
            yield f"[{_short(key)}]", item
        for key in list(obj):
            yield f".keys()[{_short(key)}]", key
    elif isinstance(obj, (list, tuple)):
        names = getattr(obj, "_fields", None)
        for index, item in enumerate(obj):
            yield (f".{names[index]}" if names and index < len(names) else f"[{index}]"), item
    elif isinstance(obj, (set, frozenset)):
        for item in obj:
            yield f"{{{_short(item)}}}", item
    if isinstance(obj, types.FunctionType):
        yield from _closure(obj)
    elif isinstance(obj, types.MethodType):
        yield ".__self__", obj.__self__
    elif not isinstance(obj, (type, types.ModuleType)):
        yield from _attributes(obj)


def _closure(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f".<closure {name}>", cell.cell_contents
        except ValueError:  # the cell is empty
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f".<global {name}>", function.__globals__[name]
    for index, default in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{index}]", default


def _attributes(obj: object) -> Iterator[tuple[str, object]]:
    try:
        held = object.__getattribute__(obj, "__dict__")
    except AttributeError:
        held = {}
    if isinstance(held, dict):
        for name, item in list(held.items()):
            yield f".{name}", item
    for owner in type(obj).__mro__:
        slots = owner.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                yield f".{name}", object.__getattribute__(obj, name)
            except AttributeError:
                continue
    if isinstance(obj, BaseException):
        for index, item in enumerate(obj.args):
            yield f".args[{index}]", item


def _short(key: object) -> str:
    # Only what is surely harmless and short is shown: paths stand in errors and logs.
    if isinstance(key, (int, bool, float, type(None))):
        return repr(key)
    if isinstance(key, str):
        return repr(key) if len(key) <= 40 else repr(key[:37] + "...")
    return f"<{type(key).__name__}>"
