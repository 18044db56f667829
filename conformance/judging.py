"""Verdicts over histories, in the words of a case: VIOLATION is FAILED, UNDECIDED is ERROR."""

from __future__ import annotations

from perdure.conformance.linear import Verdict, check_keys, check_listing
from perdure.conformance.trial import Judge
from perdure.conformance.workload import History


def linearizable(t: Judge, history: History, rule: str) -> None:
    """Every key's history has an order that explains it."""
    t.evidence.history.extend(history.to_dicts())
    t.evidence.calls += history.calls
    if not history.ops:
        t.cannot("no call of the history has an outcome")
    judged = check_keys(history.ops, sizes=history.sizes)
    if judged.verdict is Verdict.UNDECIDED:
        t.cannot(judged.reason)
    t.expect(judged.verdict is Verdict.LINEARIZABLE, f"{rule}: the history of each key is linearizable", judged.reason)


def listings(t: Judge, history: History) -> None:
    """Every listing agrees with the writes around it."""
    for seen in history.listings:
        judged = check_listing(seen.keys, history.ops, seen.start, seen.end)
        t.expect(judged.verdict is Verdict.LINEARIZABLE, "S5: each listing agrees with the writes", judged.reason)
