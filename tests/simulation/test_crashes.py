"""A crash before, after and with unknown outcome at every write of a workflow of 30 tasks, alone and in pairs.

What must hold is checked while a schedule is played (see `crashes` and `oracle`): the result is right; no task
whose record was readable begins again; no acknowledged record is lost; no record names a missing blob.
"""

from __future__ import annotations

import itertools
import os
import random

import pytest

from simulation.crashes import KINDS, Crash, run

WRITES = run([]).writes[0]
DEADLY = [kind for kind in KINDS if kind in ("before", "after") or kind.startswith("late")]
PAIRS = int(os.environ.get("PERDURE_CRASH_PAIRS", "1100"))


def test_the_workflow_has_a_journal_worth_crashing() -> None:
    assert WRITES >= 25


@pytest.mark.parametrize("orphans", [False, True], ids=["cluster-dies", "workers-go-on"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_crash_at_every_write_loses_nothing_and_repeats_nothing(kind: str, orphans: bool) -> None:
    for write in range(WRITES):
        run([Crash(0, write, kind)], orphans=orphans)


@pytest.mark.parametrize("part", range(8))
def test_a_second_crash_while_the_first_is_recovered_from_changes_nothing(part: int) -> None:
    rng = random.Random(part)
    every = list(itertools.product(range(WRITES), DEADLY, range(WRITES), KINDS))
    for first, kind, second, other in rng.sample(every, PAIRS // 8):
        run([Crash(0, first, kind), Crash(1, second, other)], orphans=rng.random() < 0.3)


@pytest.mark.parametrize("part", range(2))
def test_crash_after_crash_is_survived(part: int) -> None:
    rng = random.Random(part)
    for _ in range(40):
        run([Crash(life, rng.randrange(12), rng.choice(KINDS)) for life in range(8)], orphans=rng.random() < 0.3)


def test_the_same_schedule_gives_the_same_trace() -> None:
    crashes = [Crash(0, 9, "late8"), Crash(1, 5, "lost-answer"), Crash(1, 8, "after")]
    assert run(crashes).trace == run(crashes).trace
