"""Is a recorded history of one key linearizable? And does a listing agree with a history?

The key is a register that may be absent. The search is that of Wing & Gong with Lowe's memoisation of
(linearized set, state), with unknown outcomes as operations that may take effect at any later time, once,
or never (Jepsen's ``:info``). It is exponential in the worst case, hence the bound: a history that is not
decided within it is *undecided*, never accepted.

Histories are JSON lines, so that a later checker can judge an old run:
``{"process": 1, "op": "create", "key": "k", "value": "a1", "start": 0.1, "end": 0.2, "outcome": "ok"}``
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

MAX_CALLS = 60
MAX_UNKNOWN = 8
MAX_STEPS = 400_000


@dataclasses.dataclass(frozen=True, slots=True)
class Op:
    """One call. Writes (``create``, ``put``, ``delete``) end ``ok``, ``exists`` or ``unknown``; a write that
    certainly did nothing is left out. Reads (``get``, ``stat``) carry what they saw in ``value``: an
    identity of the bytes, a size for ``stat``, None for NotFound. ``end`` is infinite if unknown. ``size`` is the
    length of what a write wrote, where ``stat`` takes part.

    ``retried`` marks a create through a faulty path: its AlreadyExists may be its own first attempt (W2).
    """

    process: int
    op: str
    value: Any
    start: float
    end: float
    outcome: str = "ok"
    key: str = ""
    retried: bool = False
    size: int | None = None

    def to_json(self) -> str:
        record = dataclasses.asdict(self)
        if math.isinf(self.end):
            record["end"] = None
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Op:
        record = json.loads(line)
        if record.get("end") is None:
            record["end"] = math.inf
        return cls(**record)


class Verdict(enum.StrEnum):
    LINEARIZABLE = "linearizable"
    VIOLATION = "violation"
    UNDECIDED = "undecided"


@dataclasses.dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    reason: str = ""


def _apply(op: Op, state: Any, sizes: dict[Any, int]) -> list[Any]:
    """The states after ``op`` took effect in ``state``; empty if its outcome is impossible there."""
    if op.op == "get":
        return [state] if op.value == state else []
    if op.op == "stat":
        seen = None if state is None else sizes.get(state, state)
        return [state] if op.value == seen else []
    if op.op == "put":
        return [op.value]
    if op.op == "delete":
        return [None]
    if op.op == "create":
        if op.outcome == "ok":
            return [op.value] if state is None else []
        if op.outcome == "exists":
            if state is not None:
                return [state]
            return [op.value] if op.retried else []
        return [op.value] if state is None else [state]
    raise ValueError(f"unknown operation {op.op!r}")


def check_register(
    history: Sequence[Op],
    *,
    initial: Any = None,
    sizes: dict[Any, int] | None = None,
    max_steps: int = MAX_STEPS,
) -> Judgement:
    """Judge one key's history. Raises ``ValueError`` for a history beyond the bounds or not understood."""
    ops = sorted(history, key=lambda o: (o.start, o.end))
    for op in ops:
        if op.end < op.start:
            raise ValueError(f"{op} ends before it starts")
        if op.outcome == "unknown" and op.op in ("get", "stat"):
            raise ValueError(f"{op}: a read without an answer says nothing; leave it out")
    unknown = sum(o.outcome == "unknown" for o in ops)
    if len(ops) > MAX_CALLS or unknown > MAX_UNKNOWN:
        return Judgement(Verdict.UNDECIDED, f"{len(ops)} calls, {unknown} unknown: over {MAX_CALLS} or {MAX_UNKNOWN}")
    sizes = sizes or {}
    definite = 0
    for i, op in enumerate(ops):
        if op.outcome != "unknown":
            definite |= 1 << i
    seen: set[tuple[int, Any]] = set()
    stack: list[tuple[int, Any]] = [(0, initial)]
    steps = 0
    furthest = 0
    stuck: tuple[int, Any] = (0, initial)
    while stack:
        done, state = stack.pop()
        if done & definite == definite:
            return Judgement(Verdict.LINEARIZABLE)
        if (done, state) in seen:
            continue
        seen.add((done, state))
        steps += 1
        if steps > max_steps:
            return Judgement(Verdict.UNDECIDED, f"not decided in {max_steps} steps")
        reached = (done & definite).bit_count()
        if reached >= furthest:
            furthest, stuck = reached, (done, state)
        horizon = min(o.end for i, o in enumerate(ops) if not done >> i & 1 and o.outcome != "unknown")
        # Unknown operations first on the stack, so that definite ones are tried first.
        for i in sorted(range(len(ops)), key=lambda i: ops[i].outcome != "unknown"):
            if done >> i & 1 or ops[i].start > horizon:
                continue
            for after in _apply(ops[i], state, sizes):
                stack.append((done | 1 << i, after))
    done, state = stuck
    rest = [o for i, o in enumerate(ops) if not done >> i & 1 and o.outcome != "unknown"]
    shown = "; ".join(f"{o.op}({o.value!r})→{o.outcome} by {o.process} [{o.start:.4f}, {o.end:.4f}]" for o in rest[:4])
    return Judgement(
        Verdict.VIOLATION, f"no order explains the history: with the key at {state!r} none of these fits: {shown}"
    )


def check_keys(
    history: Iterable[Op], *, sizes: dict[Any, int] | None = None, initial: dict[str, Any] | None = None
) -> Judgement:
    """Judge every key of a history on its own; the first violation wins, then the first undecided."""
    by_key: dict[str, list[Op]] = {}
    for op in history:
        by_key.setdefault(op.key, []).append(op)
    undecided: Judgement | None = None
    for key, ops in sorted(by_key.items()):
        judged = check_register(ops, sizes=sizes, initial=(initial or {}).get(key))
        if judged.verdict is Verdict.VIOLATION:
            return Judgement(judged.verdict, f"key {key!r}: {judged.reason}")
        if judged.verdict is Verdict.UNDECIDED and undecided is None:
            undecided = Judgement(judged.verdict, f"key {key!r}: {judged.reason}")
    return undecided or Judgement(Verdict.LINEARIZABLE)


def presence(writes: Sequence[Op], start: float, end: float) -> bool | None:
    """Whether a key existed during the whole of [start, end] (True), was absent during all of it (False), or
    neither can be said (None). Reads don't matter; nothing was there before the first write."""
    inside = [w for w in writes if w.start <= end and w.end >= start]
    before = [w for w in writes if w.end < start]
    if any(w.outcome == "unknown" for w in writes if w.start <= end) or inside:
        return None
    if not before:
        return False
    # Several writes may have been last: the candidates that overlap the latest start.
    latest = max(w.start for w in before)
    last = [w for w in before if w.end >= latest]
    outcomes = {w.op != "delete" for w in last}
    return outcomes.pop() if len(outcomes) == 1 else None


def check_listing(
    listed: Sequence[str], history: Iterable[Op], start: float, end: float, prefix: str = ""
) -> Judgement:
    """S5: every key that existed during the whole call, none that was absent throughout, once, in order."""
    if list(listed) != sorted(set(listed), key=lambda k: k.encode()):
        return Judgement(Verdict.VIOLATION, f"the listing is not strictly ascending: {list(listed)[:8]}")
    writes: dict[str, list[Op]] = {}
    for op in history:
        if op.op in ("create", "put", "delete") and op.outcome != "exists":
            writes.setdefault(op.key, []).append(op)
    present = set(listed)
    for key, ops in writes.items():
        if not key.startswith(prefix):
            continue
        there = presence(ops, start, end)
        if there is True and key not in present:
            return Judgement(Verdict.VIOLATION, f"{key!r} existed during the whole call and was not listed")
        if there is False and key in present:
            return Judgement(Verdict.VIOLATION, f"{key!r} was absent during the whole call and was listed")
    for key in present - set(writes):
        return Judgement(Verdict.VIOLATION, f"{key!r} was never written and was listed")
    return Judgement(Verdict.LINEARIZABLE)
