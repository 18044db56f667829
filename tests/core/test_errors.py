"""Every error crosses process borders whole: class, text, attributes, cause."""

from __future__ import annotations

import copy
import pickle
import queue
from collections.abc import Iterator

import pytest
from ray import cloudpickle

from perdure import errors, exceptions
from perdure.errors import PerdureError

# Attributes that a class takes beside its text.
ATTRIBUTES = {
    errors.WorkflowError: {"workflow_id": "w"},
    errors.WorkflowExecutionError: {"workflow_id": "w", "task_id": "t"},
    errors.StoreError: {"url": "file:///x", "key": "w/a", "operation": "get"},
    errors.CorruptedError: {"key": "w/a"},
    errors.EncodeError: {"path": "result['a']"},
}


def classes(root: type[PerdureError] = PerdureError) -> Iterator[type[PerdureError]]:
    yield root
    for below in root.__subclasses__():
        yield from classes(below)


OURS = [c for c in dict.fromkeys(classes()) if c.__module__ == "perdure.errors"]


def attributes_of(cls: type[PerdureError]) -> dict[str, str]:
    return next((ATTRIBUTES[base] for base in cls.__mro__ if base in ATTRIBUTES), {})


@pytest.mark.parametrize("cls", OURS)
@pytest.mark.parametrize("through", [pickle, cloudpickle])
def test_every_error_survives_pickling_with_its_attributes_and_cause(cls: type[PerdureError], through: object) -> None:
    error = cls("what, and what to do", **attributes_of(cls))
    error.__cause__ = LookupError("why")
    error.__cause__.__cause__ = KeyError("deeper")
    copied = through.loads(through.dumps(error))  # type: ignore[attr-defined]
    assert type(copied) is cls
    assert str(copied) == "what, and what to do"
    assert {name: getattr(copied, name) for name in attributes_of(cls)} == attributes_of(cls)
    assert isinstance(copied.__cause__, LookupError)
    assert copied.__cause__.args == ("why",)


@pytest.mark.parametrize("cls", OURS)
def test_every_error_can_be_copied(cls: type[PerdureError]) -> None:
    error = cls("text", **attributes_of(cls))
    assert type(copy.copy(error)) is cls
    assert str(copy.deepcopy(error)) == "text"


def test_the_users_exception_travels_as_bytes_and_becomes_the_cause() -> None:
    from perdure.values import Values

    payload = Values().dumps(LookupError("why"), serializer="pickle")
    error = errors.WorkflowExecutionError("failed", workflow_id="w", task_id="t", cause_payload=payload)
    cause = pickle.loads(pickle.dumps(error)).__cause__
    assert type(cause) is LookupError
    assert cause.args == ("why",)
    broken = errors.WorkflowExecutionError("failed", cause_payload=b"no envelope")
    assert pickle.loads(pickle.dumps(broken)).__cause__ is None


def test_errors_are_also_the_builtin_errors_that_old_handlers_catch() -> None:
    assert issubclass(errors.WorkflowNotFoundError, ValueError)
    assert issubclass(errors.WorkflowExistsError, ValueError)
    assert issubclass(errors.WorkflowStillActiveError, RuntimeError)
    assert issubclass(errors.QueueFull, queue.Full)


def test_the_former_module_of_errors_has_every_workflow_error() -> None:
    expected = {c.__name__ for c in OURS if issubclass(c, errors.WorkflowError)}
    assert set(exceptions.__all__) == expected
    for name in expected:
        assert getattr(exceptions, name) is getattr(errors, name)


def test_the_tree_at_the_top_of_the_module_names_every_class() -> None:
    assert errors.__doc__ is not None
    for cls in OURS:
        assert cls.__name__ in errors.__doc__
        assert cls.__doc__
