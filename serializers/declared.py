"""Types that a program declares as data: enums, dataclasses and Pydantic models.

Owns the list of declared types of this process and how they are kept: by a name and their fields. A type is
found by name in this list only, never imported, so bytes can make nothing that the program has not declared.
Fields are put back as they were; no constructor and no validator runs.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable
from typing import Any, Final, TypeVar, overload

from perdure.errors import DecodeError

T = TypeVar("T", bound=type)

CODE: Final = 18
_by_type: dict[type, tuple[str, Callable[[Any], list[Any] | None], Callable[[Any], Any]]] = {}
_by_name: dict[str, type] = {}


@overload
def declare(cls: T) -> T: ...
@overload
def declare(cls: None = None, *, name: str | None = None) -> Callable[[T], T]: ...


def declare(cls: Any = None, *, name: str | None = None) -> Any:
    """Keep this class as data, by name and fields. Use it as a decorator, where the class is defined.

    ``name`` stands in the stored values (default ``module:qualified name``): keep it when the class moves. A
    new field of a dataclass or model needs a default, which old values get; a field that is gone is refused.

    Raises:
        TypeError: not an enum, dataclass or Pydantic model, or one with state beside its fields.
        ValueError: the name belongs to another class.
    """
    if cls is None:
        return lambda found: declare(found, name=name)
    if not isinstance(cls, type):
        raise TypeError(f"declare takes a class, not {cls!r:.80}")
    spelled = name or f"{cls.__module__}:{cls.__qualname__}"
    held = _by_name.get(spelled)
    if held is not None and held is not cls and name is not None:
        raise ValueError(f"the name {spelled!r} is declared for {held!r} already")
    _by_type[cls] = (spelled, *_kind(cls))
    _by_name[spelled] = cls
    return cls


def fields_of(obj: object) -> tuple[str, list[Any]] | None:
    """Name and state of an object of a declared type; None: not declared, or not kept exactly."""
    found = _by_type.get(type(obj))
    if found is None:
        return None
    state = found[1](obj)
    return None if state is None else (found[0], state)


def rebuild(name: object, state: object) -> Any:
    """The object. DecodeError: not declared here, or its fields don't fit."""
    cls = _by_name.get(name) if isinstance(name, str) else None
    if cls is None:
        raise DecodeError(
            f"the value holds a {name!r:.120}, which is not declared in this process. Import the module that "
            "declares it (perdure.serializers.declared.declare)."
        )
    try:
        return _by_type[cls][2](state)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DecodeError(f"a stored {name!r:.120} does not fit its class: {error!s:.120}") from error


def _kind(cls: type) -> tuple[Callable[[Any], list[Any] | None], Callable[[Any], Any]]:
    if issubclass(cls, enum.Flag):
        return (lambda obj: [obj.value]), (lambda state: cls(_only(state)))
    if issubclass(cls, enum.Enum):
        return (lambda obj: [obj.name]), (lambda state: cls[_only(state)])
    if dataclasses.is_dataclass(cls):
        return _dataclass(cls)
    if hasattr(cls, "__pydantic_fields__") and hasattr(cls, "model_fields"):
        return _model(cls)
    raise TypeError(f"{cls.__qualname__} is not an enum, dataclass or Pydantic model: it can't be declared")


def _only(state: Any) -> Any:
    (value,) = state
    return value


def _dataclass(cls: Any) -> tuple[Callable[[Any], list[Any] | None], Callable[[Any], Any]]:
    fields = {field.name: field for field in dataclasses.fields(cls)}
    names = list(fields)

    def read(obj: Any) -> list[Any] | None:
        held = getattr(obj, "__dict__", None)
        if held is not None and not fields.keys() >= held.keys():
            return None  # state beside the fields would be lost
        try:
            return [{name: getattr(obj, name) for name in names}]
        except AttributeError:
            return None

    def make(state: Any) -> Any:
        values = dict(_only(state))
        obj = object.__new__(cls)
        for name, field in fields.items():
            if name in values:
                value = values.pop(name)
            elif field.default is not dataclasses.MISSING:
                value = field.default
            elif field.default_factory is not dataclasses.MISSING:
                value = field.default_factory()
            else:
                raise ValueError(f"field {name!r} is missing")
            object.__setattr__(obj, name, value)
        if values:
            raise ValueError(f"unknown field {next(iter(values))!r:.60}")
        return obj

    return read, make


def _model(cls: Any) -> tuple[Callable[[Any], list[Any] | None], Callable[[Any], Any]]:
    def read(obj: Any) -> list[Any] | None:
        if obj.__pydantic_private__:
            return None
        extra = obj.__pydantic_extra__
        return [dict(obj.__dict__), sorted(obj.__pydantic_fields_set__), extra]

    def make(state: Any) -> Any:
        held, given, extra = state
        values = dict(held)
        for name, field in cls.model_fields.items():
            if name not in values:
                if field.is_required():
                    raise ValueError(f"field {name!r} is missing")
                values[name] = field.get_default(call_default_factory=True)
        unknown = values.keys() - cls.model_fields.keys()
        if unknown:
            raise ValueError(f"unknown field {next(iter(unknown))!r:.60}")
        obj = cls.__new__(cls)
        obj.__setstate__(
            {
                "__dict__": values,
                "__pydantic_fields_set__": set(given),
                "__pydantic_extra__": None if extra is None else dict(extra),
                "__pydantic_private__": None,
            }
        )
        return obj

    return read, make
