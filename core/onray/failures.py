"""A task's exception as it is stored: its class, its text and its traceback, readable in any process."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, Final

from perdure.code_names import exception_as_data
from perdure.errors import rebuild_exception, with_cause
from perdure.graph import Failure, Payload
from perdure.onray.dag import INLINE
from perdure.onray.process import PROCESS

_TRACEBACK: Final = 20_000
_TEXT: Final = 4_000
_LARGEST: Final = 4 * INLINE
_PART: Final = 500
_DEEPEST: Final = 8
"""Causes of causes that are kept."""


def failure_from(kind: str, error: BaseException) -> Failure:
    """A failure that any process can read, with the exception itself as far as it can be stored."""
    shown = _encodable("".join(traceback.format_exception(error))[-_TRACEBACK:])
    text = text_of(error)
    return Failure(kind, type(error).__qualname__, text, shown, exception_payload(error, text))


def text_of(error: BaseException) -> str:
    """The start of what it says; an exception may fail to say it."""
    try:
        return _encodable(str(error)[:_TEXT])
    except Exception as second:
        return f"(its __str__ raised {type(second).__name__})"


def exception_payload(error: BaseException, text: str) -> Payload:
    """The exception itself; where its class won't be made from its arguments, or holds what can't be stored or is
    too large, one of the same class without; a RuntimeError that names it where not even that can be stored. What it
    was raised ``from`` comes with it, the same way."""
    if PROCESS.values.trust == "data":
        return _inline(_dumped(exception_as_data(error, text), None))
    form = _form(error, text)
    if error.__cause__ is not None:
        data = _loadable(_with_cause(error, form, 0), BaseException)
        if data is not None:
            return _inline(data)
    return _inline(_dumped(form, "pickle"))


def _form(error: BaseException, text: str) -> Any:
    """What pickles as the exception, as far as that can be."""
    for form in (error, _Parts(error, _same), _Parts(error, _storable)):
        if _loadable(form, type(error)) is not None:
            return form
    return RuntimeError(f"{type(error).__qualname__}: {text} (the exception itself can't be stored)")


def _loadable(form: Any, kind: type[BaseException]) -> bytes | None:
    """Its pickle, unless it is too large or nothing of the kind comes out of it: many can't be pickled, and many that
    can don't unpickle."""
    try:
        data = _dumped(form, "pickle")
        if len(data) <= _LARGEST and isinstance(PROCESS.values.load(data, where="the exception"), kind):
            return data
    except Exception:
        pass
    return None


def _with_cause(error: BaseException, form: Any, depth: int) -> Any:
    cause = error.__cause__
    if cause is None or depth == _DEEPEST:
        return form
    return _Caused(form, _with_cause(cause, _form(cause, text_of(cause)), depth + 1))


class _Caused:
    """Pickles as the first exception, raised from the second."""

    def __init__(self, error: Any, cause: Any) -> None:
        self._reduced = with_cause, (error, cause)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def _encodable(text: str) -> str:
    """Lone surrogates, which file names bring, escaped: records are UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


class _Parts:
    """Pickles as an exception that is made without its ``__init__``, which may want other arguments."""

    def __init__(self, error: BaseException, keep: Callable[[Any], Any]) -> None:
        args = tuple(keep(part) for part in error.args)
        state = {name: keep(part) for name, part in vars(error).items()}
        self._reduced = rebuild_exception, (type(error), args, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._reduced


def _same(part: Any) -> Any:
    """The part; exceptions in it, as a group holds them, without their ``__init__`` too."""
    return _without_init(part, _same)


def _without_init(part: Any, keep: Callable[[Any], Any]) -> Any:
    if isinstance(part, BaseException):
        return _Parts(part, keep)
    if type(part) in (list, tuple) and any(isinstance(item, BaseException) for item in part):
        return type(part)(keep(item) for item in part)
    return part


def _storable(part: Any) -> Any:
    """The part, or the start of its text."""
    try:
        whole = _without_init(part, _storable)
        if len(_dumped(whole, "pickle")) <= INLINE // 4:
            return whole
    except Exception:  # it can't be pickled: its text must do
        pass
    try:
        return repr(part)[:_PART]
    except Exception:
        return f"<{type(part).__qualname__}>"


def _dumped(value: Any, serializer: str | None) -> bytes:
    return PROCESS.values.dumps(value, serializer=serializer, where="the exception")


def _inline(data: bytes) -> Payload:
    return Payload(data, None, len(data))
