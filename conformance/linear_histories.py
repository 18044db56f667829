"""Recorded histories with known verdicts: the checker judges them before it may judge a store.

A line is ``process op value start-end [outcome]``; ``-`` for "absent", ``?`` as the end of a call whose
outcome is unknown. Half of them are bad. A wrong verdict stops the run: see ``self_test``.
"""

from __future__ import annotations

import math

from perdure.conformance.linear import Judgement, Op, Verdict, check_listing, check_register

GOOD = {
    "nothing happened": "",
    "read of an absent key": "1 get - 0-1",
    "create then read": "1 create a 0-1; 2 get a 2-3",
    "create lost to an earlier one": "1 create a 0-1; 2 create b 2-3 exists; 3 get a 4-5",
    "two concurrent creators, one wins": "1 create a 0-3; 2 create b 0-3 exists",
    "the loser ended first": "1 create a 0-9; 2 create b 1-2 exists; 3 get a 3-4",
    "read during a create sees nothing": "1 create a 0-9; 2 get - 1-2; 2 get a 10-11",
    "read during a create sees it": "1 create a 0-9; 2 get a 1-2; 2 get a 3-4",
    "put replaces": "1 put a 0-1; 1 put b 2-3; 2 get b 4-5",
    "two puts at once, either order": "1 put a 0-5; 2 put b 0-5; 3 get a 6-7",
    "reader sees old, then new, of a running put": "1 put a 0-1; 1 put b 2-9; 2 get a 3-4; 2 get b 5-6",
    "delete frees the key": "1 create a 0-1; 1 delete - 2-3; 2 create b 4-5; 3 get b 6-7",
    "delete of an absent key": "1 delete - 0-1; 2 get - 2-3",
    "exists, then deleted meanwhile": "1 create a 0-1; 2 create b 2-9 exists; 3 delete - 3-8; 4 get - 10-11",
    "create wins after a concurrent delete": "1 create a 0-1; 2 delete - 2-6; 3 create b 3-7; 4 get b 8-9",
    "unknown create happened": "1 create a 0-? unknown; 2 get a 5-6",
    "unknown create never happened": "1 create a 0-? unknown; 2 get - 5-6; 2 create b 7-8; 2 get b 9-10",
    "unknown put happens late": "1 put a 0-1; 2 put b 2-? unknown; 3 get a 4-5; 3 get b 6-7",
    "unknown delete happens late": "1 put a 0-1; 2 delete - 2-? unknown; 3 get a 4-5; 3 get - 6-7",
    "stat agrees with the value": "1 put a 0-1; 2 stat 1 2-3; 1 put bb 4-5; 2 stat 2 6-7",
    "stat of an absent key": "1 stat - 0-1; 2 put a 2-3; 1 stat 1 4-5",
    "retried create met itself": "1 create a 0-5 exists retried; 2 get a 6-7",
    "three writers, three readers": "1 put a 0-4; 2 put b 1-5; 3 put c 2-6; 4 get b 3-4; 5 get c 5-6; 6 get c 7-8",
    "two unknown puts, seen in turn": "1 put a 0-? unknown; 2 put b 0-? unknown; 3 get a 1-2; 3 get b 3-4",
}

BAD = {
    "value out of nothing": "1 get a 0-1",
    "two creators won": "1 create a 0-3; 2 create b 0-3",
    "two creators won one after the other": "1 create a 0-1; 2 create b 2-3",
    "nobody won": "1 create a 0-3 exists; 2 create b 0-3 exists",
    "exists before anything existed": "1 create a 0-1 exists; 2 create b 2-3",
    "winner's bytes are not there": "1 create a 0-3; 2 create b 0-3 exists; 3 get b 4-5",
    "write is not seen after its return": "1 create a 0-1; 2 get - 2-3",
    "stale read after put": "1 put a 0-1; 1 put b 2-3; 2 get a 4-5",
    "reader goes back": "1 put a 0-1; 1 put b 2-9; 2 get b 3-4; 2 get a 5-6",
    "two readers disagree on the order": "1 put a 0-9; 2 put b 0-9; 3 get a 1-2; 3 get b 3-4; 3 get a 5-6",
    "deleted, still read": "1 put a 0-1; 2 delete - 2-3; 3 get a 4-5",
    "deleted value comes back": "1 put a 0-1; 2 delete - 2-3; 3 get - 4-5; 3 get a 6-7",
    "create after delete refused": "1 put a 0-1; 2 delete - 2-3; 3 create b 4-5 exists",
    "delete forgot a later create": "1 delete - 0-1; 2 create a 2-3; 3 get - 4-5",
    "unknown create happened twice": "1 create a 0-? unknown; 2 get a 1-2; 2 delete - 3-4; 3 get - 5-6; 3 get a 7-8",
    "unknown put took effect before it began": "1 get b 0-1; 2 put b 2-? unknown",
    "unknown create replaced a value": "1 put a 0-1; 2 create b 2-? unknown; 3 get b 4-5",
    "stat shows another size": "1 put a 0-1; 2 stat 2 2-3",
    "stat shows a replaced size": "1 put a 0-1; 1 put bb 2-3; 2 stat 1 4-5",
    "stat finds what get does not": "1 delete - 0-1; 2 get - 2-3; 2 stat 1 4-5",
    "put lost between two readers": "1 put a 0-1; 2 put b 2-3; 3 get b 4-5; 4 get a 6-7",
    "create over a put that ended": "1 put a 0-1; 2 create b 2-3; 3 get b 4-5",
    "retried create met nothing": "1 create a 0-5 exists retried; 2 get - 6-7",
    "acknowledged create vanished": "1 create a 0-1; 2 create b 2-3; 2 get b 4-5",
}

LISTS = {
    "complete": (True, "1 create a 0-1 key=a; 1 create b 2-3 key=b", ["a", "b"], 4, 5),
    "running create may be missing": (True, "1 create a 0-1 key=a; 1 create b 2-6 key=b", ["a"], 4, 5),
    "running create may be there": (True, "1 create a 0-1 key=a; 1 create b 2-6 key=b", ["a", "b"], 4, 5),
    "deleted before": (True, "1 create a 0-1 key=a; 1 delete - 2-3 key=a", [], 4, 5),
    "finished create is missing": (False, "1 create a 0-1 key=a; 1 create b 2-3 key=b", ["a"], 4, 5),
    "deleted key is listed": (False, "1 create a 0-1 key=a; 1 delete - 2-3 key=a", ["a"], 4, 5),
    "twice": (False, "1 create a 0-1 key=a", ["a", "a"], 4, 5),
    "out of order": (False, "1 create a 0-1 key=a; 1 create b 2-3 key=b", ["b", "a"], 4, 5),
    "never written": (False, "1 create a 0-1 key=a", ["a", "c"], 4, 5),
}

SIZES = {"a": 1, "b": 1, "bb": 2, "c": 1}


def parse(text: str) -> list[Op]:
    """The operations of one line of the tables above."""
    ops = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        process, op, value, span, *rest = part.split()
        start, _, end = span.partition("-")
        key = next((r[4:] for r in rest if r.startswith("key=")), "")
        outcome = next((r for r in rest if r in ("exists", "unknown")), "ok")
        seen: str | int | None = None if value == "-" else int(value) if op == "stat" else value
        finish = math.inf if end == "?" else float(end)
        ops.append(Op(int(process), op, seen, float(start), finish, outcome, key, "retried" in rest))
    return ops


def self_test() -> list[str]:
    """Judge all histories; the wrong verdicts, as text. Empty: the checker may be trusted with a store."""
    wrong = []

    def check(name: str, judged: Judgement, good: bool) -> None:
        wanted = Verdict.LINEARIZABLE if good else Verdict.VIOLATION
        if judged.verdict is not wanted:
            wrong.append(f"{name}: judged {judged.verdict}, it is {wanted}")

    for good, table in ((True, GOOD), (False, BAD)):
        for name, text in table.items():
            ops = [Op.from_json(o.to_json()) for o in parse(text)]
            check(name, check_register(ops, sizes=SIZES), good)
    for name, (good, text, listed, start, end) in LISTS.items():
        check(f"list: {name}", check_listing(listed, parse(text), start, end), good)
    return wrong
