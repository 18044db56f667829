"""A task's exception keeps its class and its attributes, however it is made."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from perdure.errors import EncodeError
from perdure.onray.failures import failure_from
from perdure.onray.outputs import load_cause
from perdure.onray.process import PROCESS
from perdure.onray.saving import Saver


class Coded(Exception):
    """Its ``__init__`` wants other arguments than those that the exception has."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"code {code}")
        self.code, self.hint = code, hint


class Holding(Exception):
    def __init__(self, what: Any) -> None:
        super().__init__("holds it")
        self.what = what


class Silent(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Picky(Exception):
    def __new__(cls, *args: Any) -> Picky:
        if not threading.current_thread().name.startswith("only here"):
            raise TypeError("can't be made")
        return super().__new__(cls, *args)


def picky() -> Picky:
    made: list[Picky] = []
    thread = threading.Thread(target=lambda: made.append(Picky("x")), name="only here")
    thread.start()
    thread.join()
    return made[0]


def stored(error: BaseException) -> BaseException:
    failure = failure_from("raised", error)
    assert failure.exception is not None
    assert failure.exception.data is not None
    found = load_cause(failure.exception.data)
    assert found is not None
    return found


def test_a_class_with_an_init_of_its_own_is_kept() -> None:
    found = stored(Coded(7, hint="do this"))
    assert type(found) is Coded
    assert (found.code, found.hint, str(found)) == (7, "do this", "code 7")


def test_notes_are_kept() -> None:
    error = Coded(7, hint="")
    error.add_note("seen by night")
    assert stored(error).__notes__ == ["seen by night"]


def raised_from(error: BaseException, *causes: BaseException | None) -> BaseException:
    at = error
    for cause in causes:
        at.__cause__ = cause
        at = cause or at
    return error


def test_what_an_exception_was_raised_from_is_kept() -> None:
    found = stored(raised_from(Coded(7, hint=""), Holding(threading.Lock()), KeyError("deep")))
    assert type(found) is Coded
    assert type(found.__cause__) is Holding
    assert isinstance(found.__cause__.__cause__, KeyError)
    assert found.__suppress_context__, "it is shown as a direct cause"


def test_a_cause_that_cant_be_stored_is_named_and_a_circle_of_causes_ends() -> None:
    found = stored(raised_from(ValueError("x"), picky()))
    assert "Picky" in str(found.__cause__)
    one, two = ValueError("one"), ValueError("two")
    raised_from(one, two, one)
    found = stored(one)
    assert (str(found), str(found.__cause__)) == ("one", "two")


def test_a_cause_that_is_too_large_does_not_cost_the_exception() -> None:
    many = [Holding("y" * 30_000) for _ in range(8)]
    found = stored(raised_from(ValueError("x"), *many))
    assert type(found) is ValueError
    assert found.__cause__ is None


@pytest.mark.parametrize("what", [threading.Lock(), bytes(1 << 20)], ids=["can't be pickled", "too large"])
def test_a_part_that_cant_be_stored_becomes_text(what: Any) -> None:
    found = stored(Holding(what))
    assert type(found) is Holding
    assert isinstance(found.what, str)
    assert found.what.startswith(repr(what)[:20])
    assert found.args == ("holds it",)


def test_an_exception_that_cant_say_what_it_is_keeps_its_class() -> None:
    failure = failure_from("raised", Silent())
    assert failure.type == "Silent"
    assert failure.text == "(its __str__ raised RuntimeError)"
    assert type(stored(Silent())) is Silent


def test_an_error_of_the_system_keeps_its_number() -> None:
    found = stored(FileNotFoundError(2, "No such file", "/x"))
    assert (type(found), found.errno, found.filename) == (FileNotFoundError, 2, "/x")  # type: ignore[attr-defined]


def test_what_cant_be_made_again_is_named() -> None:
    found = stored(picky())
    assert type(found) is RuntimeError
    assert str(found) == "Picky: x (the exception itself can't be stored)"


def test_where_only_data_is_stored_a_silent_exception_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PROCESS.values, "trust", "data")
    assert str(stored(Silent())) == "Silent: (its __str__ raised RuntimeError)"


def test_a_group_keeps_members_with_an_init_of_their_own() -> None:
    found = stored(ExceptionGroup("both", [Coded(7, hint="x"), ValueError("plain")]))
    assert isinstance(found, ExceptionGroup)
    coded, plain = found.exceptions
    assert isinstance(coded, Coded)
    assert coded.code == 7
    assert (type(plain), plain.args) == (ValueError, ("plain",))


def test_a_text_that_is_no_utf_8_is_escaped() -> None:
    failure = failure_from("raised", ValueError("bad \udc80 name"))
    assert failure.text == "bad \\udc80 name"
    assert stored(ValueError("bad \udc80 name")).args == ("bad \udc80 name",)


def test_a_result_whose_pickle_nothing_can_load_is_refused_when_it_is_stored() -> None:
    with pytest.raises(EncodeError, match="the result of t can be pickled, but not loaded again .TypeError"):
        Saver("memory://x", 0).value(Coded(7, hint="x"), "the result of t")
    assert Saver("memory://x", 0).value(ValueError("x"), "the result of t").data is not None
