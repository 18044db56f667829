"""Seeds of the simulation. PERDURE_SEEDS sets how many, PERDURE_FIRST_SEED where they begin (nightly: others)."""

from __future__ import annotations

import os
import random

import pytest

from simulation.graphs import expected, random_graph
from simulation.simulate import simulate

SEEDS = int(os.environ.get("PERDURE_SEEDS", "2000"))
FIRST = int(os.environ.get("PERDURE_FIRST_SEED", "0"))
PARTS = 40


@pytest.mark.parametrize("part", range(PARTS))
def test_every_seed_keeps_every_promise(part: int) -> None:
    failures = []
    for seed in range(FIRST + part, FIRST + SEEDS, PARTS):
        try:
            simulate(seed)
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}\n" + "\n".join(getattr(error, "__notes__", [])))
    assert not failures, "\n\n".join(failures[:3])


def test_the_same_seed_gives_the_same_trace() -> None:
    for seed in (1, 2, 3):
        first, second = simulate(seed), simulate(seed)
        assert len(first.trace) > 50
        assert first.trace == second.trace
    assert simulate(1).digest != simulate(2).digest


def test_the_seeds_reach_the_faults_that_they_are_made_for() -> None:
    counts: dict[str, int] = {}
    deletes = 0
    for seed in range(20):
        result = simulate(seed)
        for what, times in result.counts.items():
            counts[what] = counts.get(what, 0) + times
        deletes += sum(" delete w/" in line for line in result.trace)
    assert deletes > 100, "chains are trimmed"
    for what in ("pause", "freeze", "cut", "kill", "stop", "taken over", "cancel", "delete", "replace", "reads"):
        assert counts.get(what), f"no {what} in 20 seeds"


def test_the_oracle_of_outputs_knows_every_random_graph() -> None:
    for seed in range(200):
        graph = random_graph(random.Random(seed), "tag", 30)
        assert expected(graph) == expected(graph)
        assert expected(graph)[0] == "tag"
