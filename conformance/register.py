"""The vocabulary of the suite: what a case, a level and a status are, and the register of all cases.

Ids are stable for ever and never reused. This module runs nothing.
"""

from __future__ import annotations

import dataclasses
import enum
import fnmatch
import re
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

SUITE_VERSION = "1.0"


class Level(enum.StrEnum):
    """BASE is what the core needs; FULL is what the suite knows how to ask."""

    BASE = "base"
    FULL = "full"


class Status(enum.StrEnum):
    """How a case ended. Nothing else exists: in particular there is no "skipped"."""

    PASSED = "PASSED"
    FAILED = "FAILED"
    NOT_DECLARED = "NOT_DECLARED"
    ERROR = "ERROR"


class Certainty(enum.StrEnum):
    """What a pass is worth: one decided question, all of a bounded space, or no violation in n rounds."""

    EXACT = "exact"
    EXHAUSTIVE = "exhaustive"
    STOCHASTIC = "stochastic"


class Kind(enum.StrEnum):
    """What is under test."""

    STORE = "store"
    SERIALIZER = "serializer"
    CODEC = "codec"
    LISTENER = "listener"


CaseFunction = Callable[[Any], Awaitable[None]]


@dataclasses.dataclass(frozen=True, slots=True)
class Case:
    """One question to a subject.

    ``needs`` names capabilities, hooks and facts (see ``subject.Facts.gap``) without which the question has
    no meaning. ``alone`` keeps other cases from running at the same time. ``timeout`` is in seconds of a
    local store; ``cost`` (seconds) only orders the work, longest first. ``essential``: without a pass there is no
    level, whatever the reason.
    """

    id: str
    kind: Kind
    level: Level
    rule: str
    certainty: Certainty
    sentence: str
    function: CaseFunction
    needs: tuple[str, ...] = ()
    alone: bool = False
    timeout: float = 60.0
    cost: float = 0.3
    measures: bool = False
    since: str = "1.0"
    essential: bool = False

    @property
    def group(self) -> str:
        return self.id.rsplit("-", 1)[0]

    @property
    def method_name(self) -> str:
        return "test_" + re.sub(r"\W", "_", self.id)


_cases: dict[str, Case] = {}


def case(
    id: str,
    level: Level,
    rule: str,
    certainty: Certainty = Certainty.EXACT,
    *,
    kind: Kind = Kind.STORE,
    needs: Iterable[str] = (),
    alone: bool = False,
    timeout: float = 60.0,
    cost: float = 0.3,
    measures: bool = False,
    since: str = "1.0",
    essential: bool = False,
) -> Callable[[CaseFunction], CaseFunction]:
    """Register the async function below as a case; its docstring is the case's sentence.

    Raises ``ValueError`` for an id that is taken, badly spelt, or has no sentence: all three are bugs of
    whoever writes the case, and would otherwise show as a case that silently never runs.
    """

    def register(function: CaseFunction) -> CaseFunction:
        if id in _cases:
            raise ValueError(f"case id {id!r} is taken by {_cases[id].function.__module__}; ids are never reused")
        if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*-[0-9]{2,}", id):
            raise ValueError(f"case id {id!r} must look like 'group-01'")
        sentence = " ".join((function.__doc__ or "").split())
        if not sentence:
            raise ValueError(f"case {id} has no docstring: it must state what the subject has to do")
        _cases[id] = Case(
            id, kind, level, rule, certainty, sentence, function, tuple(needs), alone, timeout, cost, measures, since,
            essential,
        )  # fmt: skip
        return function

    return register


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def load_cases(kind: Kind, suite: str = SUITE_VERSION) -> list[Case]:
    """All cases of one kind in a suite version, our own first, then those of installed distributions."""
    from perdure.conformance import cases

    cases.load()
    wanted = _version(suite)
    return [c for c in _cases.values() if c.kind is kind and _version(c.since) <= wanted]


def find_case(id: str) -> Case:
    """The case with this id. Raises ``KeyError``."""
    from perdure.conformance import cases

    cases.load()
    return _cases[id]


def select(cases: Iterable[Case], expression: str | None) -> list[Case]:
    """The cases that a ``-k`` expression names: ids, globs or words of an id, joined by commas or ``or``;
    ``not WORD`` takes away."""
    if not expression:
        return list(cases)
    words = [w for w in re.split(r"\s*,\s*|\s+or\s+", expression.strip()) if w]
    wanted = [w for w in words if not w.startswith("not ")]
    unwanted = [w[4:].strip() for w in words if w.startswith("not ")]

    def matches(c: Case, word: str) -> bool:
        return c.id == word or fnmatch.fnmatchcase(c.id, word) or (word in c.id and not c.id.endswith(word + "0"))

    return [
        c
        for c in cases
        if (not wanted or any(matches(c, w) for w in wanted)) and not any(matches(c, w) for w in unwanted)
    ]
