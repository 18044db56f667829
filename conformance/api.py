"""The library call: run the suite without pytest and without a command line."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

from perdure.conformance import linear_histories
from perdure.conformance.register import SUITE_VERSION, Level
from perdure.conformance.report import Report
from perdure.conformance.runner import Bench, Options, Progress, Run
from perdure.conformance.store_bench import StoreBench
from perdure.conformance.subject import CallableSubject, StoreSubject, UrlSubject


class SuiteBroken(Exception):
    """The checker judged a recorded history wrongly: no verdict of this suite may be trusted."""


def as_subject(store: str | StoreSubject | type[StoreSubject] | Callable[[str], Any]) -> StoreSubject:
    """A URL, a ``StoreSubject`` (or its class) or a picklable callable ``make_store(prefix)`` as a subject."""
    if isinstance(store, str):
        return UrlSubject(store)
    if isinstance(store, StoreSubject):
        return store
    if isinstance(store, type) and issubclass(store, StoreSubject):
        return store()
    if callable(store):
        return CallableSubject(store)
    raise TypeError(f"expected a URL, a StoreSubject or make_store(prefix), got {type(store).__name__}")


def run_sync(
    store: str | StoreSubject | type[StoreSubject] | Callable[[str], Any] | Bench,
    *,
    level: Level | str = Level.BASE,
    only: str | None = None,
    seed: int | None = None,
    jobs: int = 0,
    budget: float = 0.0,
    suite: str = SUITE_VERSION,
    keep: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Judge a store and return the report. ``budget`` is in seconds.

    ``store`` is a URL, a ``StoreSubject``, a picklable callable that takes a prefix (a string) and opens a
    store there, or a prepared bench. Raises ``OutOfReach`` if the store can't be opened, written and read,
    and ``SuiteBroken`` if the linearizability checker fails its own test.
    """
    wrong = linear_histories.self_test()
    if wrong:
        raise SuiteBroken("; ".join(wrong))
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    options = Options(Level(level), only, seed, jobs, budget, suite)
    bench: Bench
    if isinstance(store, (str, StoreSubject)) or (isinstance(store, type) and issubclass(store, StoreSubject)):
        bench = StoreBench(as_subject(store), seed=seed, keep=keep)
    elif hasattr(store, "prepare"):
        bench = store  # type: ignore[assignment]
    else:
        bench = StoreBench(as_subject(store), seed=seed, keep=keep)
    return Run(bench, options, progress).execute()


async def run(
    make_store: str | StoreSubject | type[StoreSubject] | Callable[[str], Any] | Bench, **options: Any
) -> Report:
    """``run_sync`` for async callers: the cases have event loops of their own."""
    return await asyncio.to_thread(run_sync, make_store, **options)
