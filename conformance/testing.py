"""Pytest: subclass one of these, and each case of the suite is a test of yours.

    from perdure.conformance import StoreConformance

    class TestMine(StoreConformance):
        url = "mine://host/bucket"

Statuses map to pass, fail, skip (with the gap as reason) and error. A class attribute ``level`` picks base or
full; hooks of ``StoreSubject`` can be given as attributes or methods of the class. A case can't be overridden
in silence: a test method of its name must say ``@overrides("why")``.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from perdure.conformance.register import Case, Kind, Level, Status, load_cases
from perdure.conformance.render import failure_text
from perdure.conformance.runner import Bench, Options, Run
from perdure.conformance.store_bench import StoreBench
from perdure.conformance.subject import HOOKS, StoreSubject


class ConformanceError(Exception):
    """A case ended as ERROR: it could not judge."""


def overrides(reason: str) -> Callable[[Any], Any]:
    """Mark a test method that stands in for a case, and say why; it is reported as an expected failure."""

    def mark(function: Any) -> Any:
        function.conformance_override = reason
        return function

    return mark


def _test_of(case: Case) -> Callable[[Any], None]:
    def test(self: Any) -> None:
        result = type(self)._conformance_run()._run_one(case)
        if result.status is Status.NOT_DECLARED:
            pytest.skip(result.reason)
        if result.status is Status.FAILED:
            pytest.fail(failure_text(result), pytrace=False)
        if result.status is Status.ERROR:
            raise ConformanceError(failure_text(result))

    test.__name__ = case.method_name
    test.__doc__ = case.sentence
    return test


class _Conformance:
    """What the four classes share: one bench and one run per class, cleaned up after its last test."""

    kind: ClassVar[Kind]
    level: ClassVar[str] = "base"
    seed: ClassVar[int | None] = None
    _run: ClassVar[Run | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:  # our own four: a subclass of theirs gets the tests
            return
        for case in load_cases(cls.kind):
            if case.level is Level.FULL and cls.level != "full":
                continue
            own = cls.__dict__.get(case.method_name)
            if own is not None and not hasattr(own, "conformance_override"):
                raise TypeError(f"{cls.__name__}.{case.method_name} replaces case {case.id}: say why with @overrides")
            if own is None:
                setattr(cls, case.method_name, _test_of(case))

    @classmethod
    def make_bench(cls, seed: int) -> Bench:
        raise NotImplementedError

    @classmethod
    def _conformance_run(cls) -> Run:
        if cls.__dict__.get("_run") is None:
            import asyncio
            import time

            seed = random.SystemRandom().randrange(2**31) if cls.seed is None else cls.seed
            bench = cls.make_bench(seed)
            run = Run(bench, Options(Level(cls.level), seed=seed))
            asyncio.run(bench.prepare(run.cases, time.time() + 3600))
            cls._run = run
        assert cls._run is not None
        return cls._run

    @classmethod
    def teardown_class(cls) -> None:
        run = cls.__dict__.get("_run")
        if run is not None:
            import asyncio

            run.bench.shut_down()
            left = asyncio.run(run.bench.finish())
            cls._run = None
            if left:
                raise ConformanceError("could not be removed: " + "; ".join(left))


class StoreConformance(_Conformance):
    """Each store case as a test. Set ``url`` and plain hooks (``secret``, ``upstream``, …) here; for hooks that
    are methods, and for a store without a scheme, set ``subject`` to a ``StoreSubject`` of yours."""

    kind: ClassVar[Kind] = Kind.STORE
    url: ClassVar[str | None] = None
    subject: ClassVar[StoreSubject | None] = None

    @classmethod
    def make_subject(cls) -> StoreSubject:
        """The subject under test; override it to build one by hand."""
        if cls.subject is not None:
            return cls.subject
        subject = StoreSubject()
        for name in (*HOOKS, "url", "wrong_secret_url", "missing_url"):
            if name in _names(cls):
                value = getattr(cls, name)
                if callable(value):
                    raise TypeError(f"{cls.__name__}.{name}: hooks that are methods go into a StoreSubject of yours")
                setattr(subject, name, value)
        return subject

    @classmethod
    def make_bench(cls, seed: int) -> Bench:
        return StoreBench(cls.make_subject(), seed=seed)


def _names(cls: type) -> set[str]:
    return {name for base in cls.__mro__ for name in vars(base)}


class SerializerConformance(_Conformance):
    """Each serializer case as a test. Set ``name`` (an entry point) or override ``make`` (picklable)."""

    kind: ClassVar[Kind] = Kind.SERIALIZER
    name: ClassVar[str | None] = None
    make: ClassVar[Any] = None

    @classmethod
    def make_bench(cls, seed: int) -> Bench:
        from perdure.conformance.plugin_bench import plugin_bench

        return plugin_bench(cls.kind, cls.make or cls.name, seed=seed)


class CodecConformance(SerializerConformance):
    """Each codec case as a test."""

    kind: ClassVar[Kind] = Kind.CODEC


class ListenerConformance(SerializerConformance):
    """Each listener case as a test. Set ``make`` to a ``ListenerSubject`` class of yours."""

    kind: ClassVar[Kind] = Kind.LISTENER
