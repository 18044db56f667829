"""Crash schedules: a coordinator dies at a chosen write, or never learns what became of it; a fresh one resumes.

`run` plays one schedule; `python -m tests.simulation.crashes "0:7:after 1:3:late30"` repeats one by hand.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass, field
from typing import Any

from support.bench import facts
from support.doubles import unpacked
from support.virtual import Dead, VirtualLoop, run_virtual

from perdure import keys
from perdure.chain import Chain
from perdure.entering import Submission
from perdure.errors import PerdureError, WorkflowNotFoundError
from perdure.reading import Answer
from perdure.state import State, compact, fold
from perdure.status import WorkflowStatus
from simulation.server import KIND, Fate
from simulation.workload import functions, thirty_tasks
from simulation.world import CONTEXT, Node, World

KINDS = ("before", "after", "late0.2", "late8", "late60", "lost-answer", "lost-request", "delayed5")
"""At the chosen write the process is killed: before it is sent; when it has taken effect; with the request on its
way, to land after so many seconds. Or it lives, and never learns: the answer is lost; the request is lost; the
request lands after so many seconds, while it is being repeated."""


@dataclass(frozen=True)
class Crash:
    """``life``: which coordinator, in the order of their starts. ``write``: which of its creates."""

    life: int
    write: int
    kind: str

    def __str__(self) -> str:
        return f"{self.life}:{self.write}:{self.kind}"


@dataclass
class Report:
    writes: list[int] = field(default_factory=list)
    """Creates that each coordinator sent."""
    trace: list[str] = field(default_factory=list)


class Schedule:
    def __init__(self, crashes: list[Crash], orphans: bool) -> None:
        self.orphans = orphans
        self.crashes = {(c.life, c.write): c.kind for c in crashes}
        self.writes: list[int] = []
        self.rng = random.Random(7)
        self.world: World | None = None

    def policy(self, client: str, operation: str, key: str) -> Fate:
        if operation == "create":
            life = int(client)
            write = self.writes[life]
            self.writes[life] += 1
            kind = self.crashes.get((life, write))
            if kind is not None:
                return self._fate(client, kind)
            return Fate(there=0.002, back=0.002)
        return KIND

    def _fate(self, client: str, kind: str) -> Fate:
        assert self.world is not None
        node = self.world.nodes[client]
        if kind == "lost-answer":
            return Fate(there=0.002, back=0.5, answered=False, lands=0.0)
        if kind == "lost-request":
            return Fate(there=0.002, back=0.5, answered=False, lands=None)
        if kind.startswith("delayed"):
            return Fate(there=0.002, back=0.5, answered=False, lands=float(kind[7:]))
        if kind == "before":
            node.kill(workers=not self.orphans)
            return Fate(answered=False, lands=None)
        if kind == "after":
            self.world.server._later(0.003, lambda: node.kill(workers=not self.orphans))
            return Fate(there=0.002, back=1.0)
        assert kind.startswith("late")
        node.kill(workers=not self.orphans)
        return Fate(answered=False, lands=float(kind[4:]))


def run(crashes: list[Crash], *, orphans: bool = False) -> Report:
    """Play a schedule. AssertionError where an invariant does not hold; its text names the schedule.

    ``orphans``: the workers of a dead coordinator go on with what they have begun, so its death is not proven and
    is found out by a lease without pages.
    """
    schedule = Schedule(crashes, orphans)
    try:
        return run_virtual(lambda loop: _play(loop, schedule))
    except BaseException as error:
        plan = " ".join([*map(str, crashes), *["orphans"] * orphans])
        error.add_note(f'schedule: python -m tests.simulation.crashes "{plan}"')
        raise


async def _play(loop: VirtualLoop, schedule: Schedule) -> Report:
    graph, right = thirty_tasks()
    world = schedule.world = World(loop, functions({}), schedule.policy, random.Random(5))
    answer: Answer | None = None
    for life in range(12):
        schedule.writes.append(0)
        node = world.node(str(life), blob_from=2000)
        try:
            await node.start()
            answer = await _finish(node, graph)
            await _check_stored(node, "w")
            await node.call(node.coordinator.stop())
            break
        except Dead:
            continue
    assert answer is not None, "no life was long enough"
    assert answer.status is WorkflowStatus.SUCCESSFUL, answer
    assert right(unpacked(answer.payload)), unpacked(answer.payload)
    world.check()
    return Report(schedule.writes, world.server.trace)


async def _finish(node: Node, graph: Any) -> Answer:
    """Resume, or run if nothing was stored; as a user would, with the same client token."""
    coordinator = node.coordinator
    try:
        met = await node.call(coordinator.resume("w", CONTEXT))
    except WorkflowNotFoundError:
        met = await node.call(coordinator.submit(Submission("w", "client", graph), CONTEXT))
    return await node.outcome(met)


async def _check_stored(node: Node, workflow_id: str) -> None:
    """No acknowledged record is lost: what is read is the history that was committed, and nothing else."""
    oracle = node.world.oracle
    history = oracle.history(workflow_id)
    chain = Chain(node.store, keys.workflow_chain(workflow_id), "reader", lambda: bytes(16), compact)
    view = await node.call(chain.read())
    assert view.number == len(history.segments) - 1
    assert view.token == history.segments[-1].token
    state = fold([oracle.whole(record) for record in view.records], keep=True)
    assert _said(state) == _said(history.state)
    state.validate()


def _said(state: State) -> dict[str, Any]:
    return facts(state, durable=True)


def main() -> int:
    words = " ".join(sys.argv[1:]).split()
    crashes = [
        Crash(int(life), int(write), kind)
        for life, write, kind in (word.split(":") for word in words if word != "orphans")
    ]
    try:
        print("\n".join(run(crashes, orphans="orphans" in words).trace))
    except (AssertionError, PerdureError) as error:
        print(f"{type(error).__name__}: {error}", *getattr(error, "__notes__", []), sep="\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
