"""Guards whose removal no other test would notice, and a sample of the guard table itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.simulated import Bed, Fate, chain_of, clusters, submit, value

ROOT = Path(__file__).parents[2]


@clusters()
async def test_j4_a_retry_after_a_refusal_sends_the_same_bytes(bed: Bed) -> None:
    a = await bed.node("A").start()
    sent: list[bytes] = []
    whole = bed.server.send

    def watched(client: str, operation: str, key: str, argument: object = None) -> object:
        if operation == "create" and key == f"w/x/j/{1:020d}":
            sent.append(bytes(argument))  # type: ignore[call-overload]
        return whole(client, operation, key, argument)

    bed.server.send = watched  # type: ignore[method-assign, assignment]
    bed.rules.append(
        lambda c, o, k: Fate(refused=True) if o == "create" and k == f"w/x/j/{1:020d}" and len(sent) < 3 else None
    )
    assert await value(a, await submit(a, "x", chain_of(2))) == 2
    assert len(sent) >= 3
    assert len(set(sent)) == 1


@clusters()
async def test_j13_a_refusal_after_a_doubtful_attempt_is_no_answer(bed: Bed) -> None:
    """The first attempt may land yet, so the caller must not be told that nothing was stored."""
    a = await bed.node("A").start()
    tries: list[str] = []

    def rule(client: str, operation: str, key: str) -> Fate | None:
        if operation != "create" or key != f"w/x/j/{0:020d}":
            return None
        tries.append(key)
        if len(tries) == 1:
            return Fate(there=0.001, back=0.5, answered=False, lands=3.0)
        return Fate(there=0.001, back=0.001, refused=True) if len(tries) < 4 else None

    bed.rules.append(rule)
    met = await submit(a, "x", chain_of(2))
    assert await value(a, met) == 2
    assert len(tries) >= 4


SAMPLE = ["J7", "J10", "L2", "L4", "E5", "E7"]


@pytest.mark.skipif(os.environ.get("PERDURE_GUARDS") == "0", reason="runs inside the guard script itself")
def test_a_sample_of_guards_is_missed_when_it_is_removed() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "guards.py"), "--quick", *SAMPLE],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("::test_") >= len(SAMPLE)
