"""``MODULE:DAG`` of ``perdure run``: what it names, and the arguments behind it.

Owns the import of the user's module, as ``python -m`` and ``python FILE`` would do it, and how words become values.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class TargetError(ValueError):
    """The target can't be imported, or is not a DAG; the text says what was found and what is expected."""


def words_to_values(words: list[str]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``5`` → 5, ``[1,2]`` → [1, 2], ``abc`` → "abc", ``name=5`` → a keyword. Quote JSON to keep a number a text."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for word in words:
        name, equals, rest = word.partition("=")
        if equals and name.isidentifier():
            kwargs[name] = _value(rest)
        else:
            args.append(_value(word))
    return tuple(args), kwargs


def _value(word: str) -> Any:
    try:
        return json.loads(word)
    except ValueError:
        return word


def load(target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The DAG, and the inputs that are left for its InputNode.

    ``DAG`` may be a node made by ``.bind()`` (arguments feed its InputNode), a remote function (arguments are bound),
    or a plain function that returns a node (arguments are passed).

    Raises:
        TargetError.
    """
    module_name, colon, path = target.rpartition(":")
    if not colon or not module_name or not path:
        raise TargetError(f"{target!r}: expected MODULE:DAG, for example pipelines.daily:dag or pipelines/daily.py:dag")
    found: Any = _module(module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            names = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise TargetError(f"{target}: {module_name} has no {path!r}; it has: {', '.join(names[:20])}") from None
    from ray.remote_function import RemoteFunction

    from perdure.references import is_node

    if is_node(found):
        return found, args, kwargs
    if isinstance(found, RemoteFunction):
        _check_arguments(target, found._function, args, kwargs)
        return found.bind(*args, **kwargs), (), {}
    if callable(found):
        _check_arguments(target, found, args, kwargs)
        made = found(*args, **kwargs)
        if is_node(made):
            return made, (), {}
        raise TargetError(f"{target} is a function that returned {type(made).__name__}; it must return a DAG node")
    raise TargetError(
        f"{target} is {type(found).__name__}; expected a DAG node made by .bind(), a remote function, or a function "
        "that returns a DAG node"
    )


def _check_arguments(target: str, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        name = target.rpartition(":")[2]
        raise TargetError(
            f"{name}{signature}: {error}. Arguments follow the target: perdure run {target} ARG NAME=ARG …"
        ) from None


def import_modules(names: list[str] | None) -> None:
    """Import modules or files by name, found as `load` finds them. TargetError: there is none."""
    for name in names or ():
        _module(name)


def _module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if name.endswith(".py") or os.sep in name:
        return _file(Path(name))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise TargetError(
            f"there is no module {name!r} in {os.getcwd()} or on the Python path. Run the command where it is, or "
            "name the file: path/to/file.py:dag"
        ) from None


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise TargetError(f"{path}: no such file")
    # Its folder is on the path, as for `python FILE`; so tasks can import it and its neighbours by name.
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if path.stem in sys.modules:
        raise TargetError(f"{path}: its name is that of a module already imported. Rename the file.")
    from ray import cloudpickle

    module = importlib.import_module(path.stem)
    # As for `python FILE`, where functions live in __main__: their code is stored, and a resume needs no file.
    cloudpickle.register_pickle_by_value(module)
    return module
