"""The linearizability checker is itself judged, on recorded histories and on its bounds."""

from __future__ import annotations

import math

import pytest

from perdure.conformance import linear_histories
from perdure.conformance.linear import Op, Verdict, check_keys, check_listing, check_register, presence


def test_every_recorded_history_is_judged_rightly() -> None:
    assert linear_histories.self_test() == []


def test_there_are_at_least_40_histories_and_half_of_them_are_bad() -> None:
    assert len(linear_histories.GOOD) + len(linear_histories.BAD) >= 40
    assert len(linear_histories.BAD) >= len(linear_histories.GOOD)


def test_a_checker_that_accepts_everything_fails_the_self_test(monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.conformance.linear import Judgement

    monkeypatch.setattr(linear_histories, "check_register", lambda *a, **k: Judgement(Verdict.LINEARIZABLE))
    assert len(linear_histories.self_test()) == len(linear_histories.BAD)


def test_a_history_beyond_the_bounds_is_undecided_and_never_accepted() -> None:
    ops = [Op(i, "put", str(i), i, i + 0.5) for i in range(61)]
    assert check_register(ops).verdict is Verdict.UNDECIDED
    unknown = [Op(i, "put", str(i), 0, math.inf, "unknown") for i in range(9)]
    assert check_register(unknown).verdict is Verdict.UNDECIDED


def test_a_hard_history_ends_undecided_within_its_steps() -> None:
    ops = [Op(i, "put", str(i), 0, 100) for i in range(25)] + [Op(99, "get", "x", 50, 60)]
    assert check_register(ops, max_steps=2000).verdict is Verdict.UNDECIDED


def test_a_history_survives_its_json_form() -> None:
    for text in (*linear_histories.GOOD.values(), *linear_histories.BAD.values()):
        ops = linear_histories.parse(text)
        assert [Op.from_json(o.to_json()) for o in ops] == ops


def test_keys_are_judged_apart() -> None:
    good = [Op(1, "create", "a", 0, 1, key="x"), Op(2, "create", "b", 2, 3, key="y")]
    assert check_keys(good).verdict is Verdict.LINEARIZABLE
    bad = [*good, Op(3, "get", "a", 4, 5, key="y")]
    judged = check_keys(bad)
    assert judged.verdict is Verdict.VIOLATION
    assert "'y'" in judged.reason


def test_presence_is_only_claimed_where_it_is_certain() -> None:
    writes = [Op(1, "create", "a", 0, 1), Op(2, "delete", None, 4, 6)]
    assert presence(writes, 2, 3) is True
    assert presence(writes, 3, 5) is None
    assert presence(writes, 7, 8) is False
    assert check_listing([], [Op(1, "put", "a", 0, 1, key="k")], 2, 3).verdict is Verdict.VIOLATION
