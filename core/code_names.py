"""Code by name: functions and classes that are found by importing their module, instead of being stored.

Owns the stored form (data that every serializer keeps), who may be named, and the search for the code that a name
stands for today. Under ``trust="data"`` code is only ever named, and a name leads only to what an installed module
itself offers as a task, a listener or an exception: stored bytes can't reach other functions.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import types
from collections.abc import Callable
from typing import Any, Final

from perdure.errors import DecodeError, EncodeError

PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
"""The version of Python that runs here, as far as bytecode goes."""
_MARK: Final = "perdure:code"
_RAISED: Final = "perdure:exception"


def name_of(target: Any, what: str) -> list[str]:
    """The stored form of a function or class. EncodeError where importing its module would not find it."""
    module = getattr(target, "__module__", None) or ""
    qualname = getattr(target, "__qualname__", None) or ""
    if module != "__main__" and "<" not in qualname:
        try:
            if find(module, qualname) is target:
                return [_MARK, module, qualname]
        except DecodeError:
            pass
    raise EncodeError(
        f"{what} ({module}.{qualname}) can't be found by its name, and trust='data' stores no code. Define it at the "
        "top level of a module that workers can import (not in __main__), tasks with @ray.remote as a decorator."
    )


def is_name(stored: Any) -> bool:
    return isinstance(stored, list) and len(stored) == 3 and stored[0] == _MARK


def load_name(stored: list[str], what: str) -> Any:
    """The code that `name_of` named. DecodeError: it is not there (any more), or must not be called by name."""
    _, module, qualname = stored
    if not isinstance(module, str) or not isinstance(qualname, str):
        raise DecodeError(f"{what}: {stored!r:.200} is no name of code")
    return find(module, qualname)


def find(module: str, qualname: str) -> Any:
    """The function of a Ray task, the listener class or the exception class of this name.

    Raises DecodeError: no such module or name here, or it names something else.
    """
    name = f"{module}.{qualname}"
    try:
        found: Any = importlib.import_module(module)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise DecodeError(
            f"the code of {name} can't be found here: {type(error).__name__}: {error}. Give its module to the tasks: "
            "working_dir or py_modules in the runtime_env, or an image that has it."
        ) from error
    body = _body(found)
    if body is None:
        raise DecodeError(
            f"{name} is neither a function decorated with @ray.remote, nor a listener or exception class, so it is not "
            "called by its name"
        )
    return body


def _body(found: Any) -> Any:
    from ray.remote_function import RemoteFunction

    from perdure.event_listener import EventListener
    from perdure.onray.options import DurableFunction

    if isinstance(found, DurableFunction | RemoteFunction):
        return found._function
    if isinstance(found, type) and issubclass(found, EventListener | BaseException):
        return found
    return None


def current(task_name: str) -> Callable[..., Any] | None:
    """The function or class that a stored function's name (``module.qualname``) stands for in this process; None where
    there is none. ``__main__`` is this process's own."""
    parts = task_name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:cut])
        if module not in sys.modules:
            try:
                importlib.import_module(module)
            except Exception:
                continue
        found: Any = sys.modules[module]
        for part in parts[cut:]:
            found = getattr(found, part, None)
        if found is not None:
            body: Callable[..., Any] | None = _body(found)
            return body
    return None


def code_digest(function: Any) -> str:
    """A digest of what a function does: bytecode, constants and names, nested code too, but no file or line.

    The same in every process of one Python version; changes with the body, not with its place.
    """
    digest = hashlib.blake2b(digest_size=16)
    if inspect.isclass(function):
        codes = [v.__code__ for v in vars(function).values() if isinstance(v, types.FunctionType)]
    else:
        code = getattr(inspect.unwrap(function), "__code__", None)
        codes = [code] if code is not None else []
    while codes:
        code = codes.pop()
        digest.update(code.co_code)
        digest.update(repr((code.co_name, code.co_names, code.co_varnames, code.co_freevars)).encode())
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                codes.append(constant)
            elif isinstance(constant, frozenset):
                digest.update(repr(sorted(map(repr, constant))).encode())
            else:
                digest.update(repr(constant).encode())
    return digest.hexdigest()


def digest_here(task_name: str) -> str | None:
    """`code_digest` of what the name stands for in this process; None: nothing."""
    body = current(task_name)
    return None if body is None else code_digest(body)


def exception_as_data(error: BaseException, text: str) -> list[str]:
    """An exception where no code may be stored: its type's name and its text."""
    return [_RAISED, type(error).__qualname__, text]


def exception_from(value: Any) -> Any:
    """A stand-in for an exception that was stored as data; other values stay as they are."""
    if isinstance(value, list) and len(value) == 3 and value[0] == _RAISED:
        return RuntimeError(f"{value[1]}: {value[2]}")
    return value
