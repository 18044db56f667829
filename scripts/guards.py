"""Removes each guard of the protocol in turn and shows which test or seed fails without it.

    python scripts/guards.py [NAME …] [--quick] [--write]

Each row: a guard's source text is replaced in a copy of its module, in a process of its own, and the tests named
for it run until one fails; then, if none did or the simulation must find it too, seeds of the simulation, which
``--quick`` leaves out where a test was found. A guard that nothing misses is a hole in the
tests: exit code 1. ``--write`` puts the table into docs/results/guards.md. The sources are not touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "results" / "guards.md"
SEEDS = 200
TIMEOUT = 100


@dataclass(frozen=True)
class Guard:
    """``module``'s ``old`` text becomes ``new``; ``tests`` are tried first."""

    name: str
    what: str
    module: str
    old: str
    new: str
    tests: tuple[str, ...] = ()
    simulation: bool = False
    """Whether the simulation must find it too."""


GUARDS = [
    Guard(
        "J1",
        "dependents start after the commit, not after the outcome",
        "perdure.drive",
        "                    self.host.journal.append(self.log, command.records)\n",
        "                    self.host.journal.append(self.log, command.records)\n"
        "                    asyncio.get_running_loop().call_soon(self.handle, s.Committed(command.records))\n",
        ("tests/core/test_journal.py", "tests/simulation/test_crashes.py"),
        True,
    ),
    Guard(
        "J2",
        "one append in flight per chain",
        "perdure.journal",
        "        if log.chain.in_flight is None:\n            self._dirty[log] = None",
        "        log.chain.in_flight = None\n        if True:\n            self._dirty[log] = None",
        ("tests/core/test_journal.py",),
    ),
    Guard(
        "J3",
        "who loses a slot is out",
        "perdure.chain",
        "        self.in_flight = None\n        self.fenced = True",
        "        self.in_flight = None\n        self.number += 1",
        ("tests/core/test_chain.py",),
    ),
    Guard(
        "J4",
        "a slot's bytes are frozen at the first attempt",
        "perdure.journal",
        "                await self.store.create_once(sent.key, sent.data, sent.token)",
        "                log.chain.in_flight = None\n                sent = log.chain.prepare(list(records))\n"
        "                await self.store.create_once(sent.key, sent.data, sent.token)",
        ("tests/core/test_journal.py", "tests/core/test_guards.py"),
    ),
    Guard(
        "J6",
        "trim only below the base before the committed one",
        "perdure.chain",
        "            self._trim_below = max(self._trim_below, below)",
        "            self._trim_below = base + 2",
        ("tests/core/test_chain.py",),
        True,
    ),
    Guard(
        "J6 commit",
        "a base counts when its segment is committed",
        "perdure.chain",
        "        self._new_base = (upto, tuple(parts))",
        "        self._new_base = (upto, tuple(parts))\n        self._trim_below = upto\n"
        "        await self._trim_early()",
        ("tests/core/test_chain.py",),
    ),
    Guard(
        "J7",
        "a damaged object is noticed by its checksum",
        "perdure.segment",
        "    if sums.digest() != check or version == 0:",
        "    if version == 0:",
        ("tests/core/test_segment.py",),
    ),
    Guard(
        "J8",
        "nothing is done to a newer format",
        "perdure.segment",
        "    if version > VERSION:",
        "    if version > VERSION + 1000:",
        ("tests/core/test_segment.py",),
    ),
    Guard(
        "J10",
        "an entry counts only if nothing higher is listed after its create",
        "perdure.chain",
        "        if await self.store.list_keys(keys.segments(self.prefix), key):  # J10",
        "        if False:",
        ("tests/core/test_chain.py",),
        True,
    ),
    Guard(
        "J11",
        "entries are never trimmed",
        "perdure.chain",
        "KEPT: Final = frozenset({CLAIMED, DELETED, RETIRED})\nENTRIES: Final = KEPT | {CREATED}",
        "KEPT: Final = frozenset()\nENTRIES: Final = frozenset({CLAIMED, DELETED, RETIRED, CREATED})",
        ("tests/core/test_chain.py",),
        True,
    ),
    Guard(
        "J12",
        "each segment continues the one before it",
        "perdure.chain",
        "            if b.prev != a.token:  # J12",
        "            if False:",
        ("tests/core/test_chain.py",),
    ),
    Guard(
        "J12 gap",
        "a missing segment is not skipped",
        "perdure.chain",
        "        gap = next((n for n in wanted if n not in listed), None)",
        "        wanted = [n for n in wanted if n in listed]\n        gap = None",
        ("tests/core/test_chain.py",),
    ),
    Guard(
        "J13 token",
        "AlreadyExists is mine only if the token is",
        "perdure.guarded_store",
        "        return bytes(stored) == token",
        "        return True",
        ("tests/core/test_guarded_store.py",),
        True,
    ),
    Guard(
        "J13 mine",
        "a retry that meets its own object has succeeded",
        "perdure.guarded_store",
        "        return bytes(stored) == token",
        "        return False",
        ("tests/core/test_journal.py",),
        True,
    ),
    Guard(
        "J13 doubt",
        "a refusal after a doubtful attempt is no answer",
        "perdure.guarded_store",
        "                doubt = doubt or isinstance(e, StoreUnavailable)\n                if not doubt:",
        "                if not isinstance(e, StoreUnavailable):",
        ("tests/core/test_guards.py",),
    ),
    Guard(
        "J14",
        "an entry that lost its slot starts again from a new list",
        "perdure.entering",
        "            try:\n                await self._enter(chain, CLAIMED, record, view, workflow_id)\n"
        "            except EntryLost:\n                continue\n            state.apply",
        "            while True:\n                try:\n"
        "                    await chain.enter(CLAIMED, [record], view)\n"
        "                    break\n                except EntryLost:\n                    view.number += 1\n"
        "            state.apply",
        ("tests/core/test_coordinator.py",),
    ),
    Guard(
        "J15",
        "a reader whose last segment is an entry lists once more",
        "perdure.chain",
        "            if view.header.kind in ENTRIES:  # J15",
        "            if False:",
        ("tests/core/test_chain.py",),
    ),
    Guard(
        "L1",
        "register before anything else",
        "perdure.coordinator",
        "        await self.lease.register()\n        await self.cycles.start()\n",
        "        await self.cycles.start()\n        await self.lease.register()\n",
        ("tests/core/test_lease.py",),
    ),
    Guard(
        "L2",
        "an entry is announced first",
        "perdure.entering",
        "            await self.lease.announce(workflow_id, view.number + 1)  # L2\n            record = r.Claimed(",
        "            record = r.Claimed(",
        ("tests/core/test_lease.py",),
    ),
    Guard(
        "L3",
        "tasks are submitted only while the lease holds",
        "perdure.lease",
        "        return self.remaining > self.seconds / 4",
        "        return True",
        ("tests/core/test_lease.py",),
    ),
    Guard(
        "L4",
        "the lease runs from before the send of the page",
        "perdure.lease",
        "        self._sent = sent\n        self.roster.apply(page)",
        "        self._sent = self.clock.boot()\n        self.roster.apply(page)",
        ("tests/core/test_lease.py",),
    ),
    Guard(
        "L5",
        "a whole lease of silence before an owner is retired",
        "perdure.lease",
        "                if self.clock.boot() - since < roster.lease:",
        "                if self.clock.boot() - since < roster.lease / 20:",
        ("tests/core/test_lease.py",),
        True,
    ),
    Guard(
        "L5 look",
        "a page that came meanwhile means that it lives",
        "perdure.lease",
        "                elif view.number > seen:\n                    return False\n",
        "",
        ("tests/core/test_lease.py",),
    ),
    Guard(
        "L5 owner",
        "the owner that is retired is the owner that the entry follows",
        "perdure.entering",
        "                retired.add(owner)\n"
        "                continue  # read again: it may have appended until now, or "
        "somebody else has entered\n",
        "                retired.add(owner)\n                view = await chain.read()\n"
        "                state = await self.reader.fold(view)\n",
        ("tests/core/test_coordinator.py",),
    ),
    Guard(
        "L6",
        "what is dropped may be announced again in the same page",
        "perdure.lease",
        "        for workflow_id, number in record.announced:\n            self.opened",
        "        for workflow_id, number in record.announced:\n            if workflow_id in record.dropped:\n"
        "                continue\n            self.opened",
        ("tests/core/test_lease.py",),
    ),
    Guard(
        "L6 append",
        "a dead coordinator's late append is fenced before blobs go",
        "perdure.care.settling",
        "            await (await hand.writing()).fence(workflow_id, number, roster.coordinator)",
        "            await hand.writing()",
        ("tests/care/test_collecting.py",),
    ),
    Guard(
        "L6 created",
        "an announced slot of an empty chain is taken, so that a late Created fails",
        "perdure.entering",
        "            if view.deleted:\n                kind, record = DELETED",
        "            if view.deleted:\n                return False\n            if view.deleted:\n"
        "                kind, record = DELETED",
        ("tests/care/test_collecting.py",),
    ),
    Guard(
        "L6 clean",
        "who ended with something on its way did not end cleanly",
        "perdure.coordinator",
        "                await self.lease.retire_myself(clean=not self._entries)",
        "                await self.lease.retire_myself(clean=True)",
        ("tests/care/test_collecting.py",),
    ),
    Guard(
        "B1",
        "what an event brings from an older cycle is copied before a record names it",
        "perdure.drive",
        "            payload = await self.host.cycles.carried(result.payload, tickets[-1].cycle)",
        "            payload = result.payload",
        ("tests/care/test_cycles.py",),
    ),
    Guard(
        "B2",
        "a cycle is acknowledged when what began before it is decided",
        "perdure.cycles",
        "if self.acknowledged < self.newest and not any(cycle < self.newest for cycle in self._held):",
        "if self.acknowledged < self.newest:",
        ("tests/care/test_cycles.py",),
    ),
    Guard(
        "B2 unknown",
        "an append whose answer is not known is not decided",
        "perdure.drive",
        "            self.log.once_decided(ticket.leave)  # B2",
        "            ticket.leave()",
        ("tests/care/test_cycles.py",),
    ),
    Guard(
        "B3",
        "a collector waits for every coordinator",
        "perdure.care.collecting",
        "            agreement = await settling.agree(self.hand, cycle, wait=self.options.wait)",
        "            agreement = settling.Agreement(cycle)",
        ("tests/care/test_collecting.py",),
    ),
    Guard(
        "B4",
        "a chain that can't be read aborts",
        "perdure.care.collecting",
        "            view = await read_chain(chain)\n            if view.header is None:",
        "            try:\n                view = await read_chain(chain)\n"
        "            except (CorruptedError, FormatError):\n                continue\n"
        "            if view.header is None:",
        ("tests/care/test_collecting.py",),
    ),
    Guard(
        "B4 graphs",
        "what a graph in a blob names is needed too",
        "perdure.care.collecting",
        "            for held in await stored_graph(store, record.graph_blob):",
        "            for held in ():",
        ("tests/care/test_collecting.py",),
    ),
    Guard(
        "copy mark",
        "an unfinished workflow is marked in the source before it is copied",
        "perdure.care.copying",
        "            if not await enter_moved(source, workflow_id, view, to):\n                continue\n",
        "",
        ("tests/care/test_copying.py",),
    ),
    Guard(
        "copy moved",
        "what has moved is not claimed",
        "perdure.entering",
        "            if state.moved_to is not None and not canceling:",
        "            if False:",
        ("tests/care/test_copying.py",),
    ),
    Guard(
        "copy proof",
        "what arrived is read back before anything names it",
        "perdure.care.arriving",
        "    if await _digest(store, new) != wanted:\n        raise",
        "    if False:\n        raise",
        ("tests/care/test_copying.py",),
    ),
    Guard(
        "copy ticket",
        "a copy holds the cycle of its blobs until Created names them",
        "perdure.care.arriving",
        "    ticket = there.cycles.begin()  # B2: until Created names the blobs\n",
        "    ticket = there.cycles.begin()\n    ticket.leave()\n",
        ("tests/care/test_copying.py",),
    ),
    Guard(
        "E2",
        "the inbox of a life stays while the life lasts",
        "perdure.entering",
        "        if birth is not None and birth < below:",
        "        if birth is not None:",
        ("tests/care/test_collecting.py",),
    ),
    Guard(
        "E3",
        "an inbox belongs to one life",
        "perdure.keys",
        '    return f"in/{encode_id(workflow_id)}/{birth}/"',
        '    return f"in/{encode_id(workflow_id)}/0/"',
        ("tests/core/test_keys.py", "tests/core/test_coordinator.py"),
    ),
    Guard(
        "E5",
        "debts to sources are paid before a terminal record",
        "perdure.scheduler",
        "        if state.owed or self.running:",
        "        if self.running:",
        ("tests/core/test_scheduler.py",),
    ),
    Guard(
        "E5 order",
        "received is committed before the source is told",
        "perdure.scheduler",
        "                self._append(commands, r.Received(task.number, result.payload, result.ended))\n",
        "                self._append(commands, r.Received(task.number, result.payload, result.ended))\n"
        "                commands.append(Acknowledge(task.number))\n",
        ("tests/core/test_scheduler.py",),
    ),
    Guard(
        "E7",
        "only the rest of a timer is waited after a takeover",
        "perdure.drive",
        "        end = clock.boot() + min(command.duration, max(0.0, command.deadline - began))",
        "        end = clock.boot() + command.duration",
        ("tests/core/test_coordinator.py",),
    ),
    Guard(
        "E7 min",
        "never longer than its duration, whatever the clock says",
        "perdure.drive",
        "        end = clock.boot() + min(command.duration, max(0.0, command.deadline - began))",
        "        end = clock.boot() + max(0.0, command.deadline - began)",
        ("tests/core/test_coordinator.py",),
    ),
    Guard(
        "G1",
        "recorded tasks are not started again",
        "perdure.state",
        "            if task.number in seen or task.status is DONE:",
        "            if task.number in seen:",
        ("tests/core/test_scheduler.py", "tests/simulation/test_crashes.py"),
    ),
]

HELPERS = {
    "J1": "\n\ndef _told(self, records, number):\n    self.number = number\n\n\nDrive._committed = _told\n",
    "J6 commit": (
        "\n\nasync def _trim_early(self):\n    new, self._new_base = self._new_base, None\n"
        "    self._writing_base = False\n    await self.trim()\n    self._new_base = new\n\n\n"
        "Chain._trim_early = _trim_early\n"
    ),
}

CHILD = """
import importlib.util, json, os, sys
guard = json.loads(sys.argv[1])
spec = importlib.util.find_spec(guard["module"])
source = open(spec.origin).read()
assert source.count(guard["old"]) >= 1, f"the guard's text is not in {spec.origin}"
broken = source.replace(guard["old"], guard["new"]) + guard["helper"]
import importlib.abc, importlib.machinery
class Broken(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name == guard["module"]:
            return importlib.machinery.ModuleSpec(name, self, origin=spec.origin)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        module.__file__ = spec.origin
        exec(compile(broken, spec.origin, "exec"), module.__dict__)
sys.meta_path.insert(0, Broken())
for name in [n for n in sys.modules if n == guard["module"]]:
    del sys.modules[name]
sys.path.insert(0, os.path.join(os.getcwd(), "tests"))
if guard["seeds"]:
    from simulation.simulate import simulate
    for seed in range(guard["seeds"]):
        try:
            simulate(seed)
        except BaseException as error:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            print("FOUND", json.dumps([f"seed {seed}", text[:110]]))
            sys.exit(0)
    sys.exit(0)
import pytest
class First:
    def pytest_runtest_logreport(self, report):
        if report.failed and not hasattr(self, "told"):
            self.told = True
            print("FOUND", json.dumps([report.nodeid, ""]))
    def pytest_collectreport(self, report):
        if report.failed:
            print("BROKEN", report.longrepr)
options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "--timeout=60"]
pytest.main([*options, *guard["tests"]], plugins=[First()])
"""


def run(guard: Guard, *, seeds: int = 0) -> tuple[str, str] | None:
    """The test (or seed) that fails without the guard, and what it says; None where all is well without it."""
    job = {
        "module": guard.module,
        "old": guard.old,
        "new": guard.new,
        "seeds": seeds,
        "helper": HELPERS.get(guard.name, ""),
        "tests": [t for t in guard.tests if (ROOT / t).exists()],
    }
    if not seeds and not job["tests"]:
        return None
    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(job)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, "PERDURE_SEEDS": "100", "PERDURE_CRASH_PAIRS": "80", "PERDURE_GUARDS": "0"},
        )
    except subprocess.TimeoutExpired:
        return "(hangs)", "no end within two minutes"
    for line in done.stdout.splitlines():
        # a test's own dots may stand before it
        if "FOUND " in line:
            name, text = json.loads(line[line.index("FOUND ") + 6 :])
            return name, text
    if done.returncode or "BROKEN" in done.stdout:
        raise RuntimeError(f"{guard.name}: {done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return None


def main(arguments: list[str]) -> int:
    names = [a for a in arguments if not a.startswith("-")]
    chosen = [g for g in GUARDS if not names or g.name in names]
    rows, missed = [], 0
    for guard in chosen:
        began = time.monotonic()
        found = [run(guard)]
        if found[0] is None or (guard.simulation and "--quick" not in arguments):
            found.append(run(guard, seeds=SEEDS))
        shown = [f for f in found if f is not None]
        missed += not shown
        text = "; ".join(f"`{name}`{': ' + said if said else ''}" for name, said in shown) or "**nothing fails**"
        rows.append(f"| {guard.name} | {guard.what} | `{guard.module}` | {text} |")
        print(rows[-1], f"({time.monotonic() - began:.1f} s)", flush=True)
    if "--write" in arguments:
        PAGE.parent.mkdir(parents=True, exist_ok=True)
        PAGE.write_text(
            "# What fails without each guard\n\nMade by `python scripts/guards.py --write`: each guard of the "
            "protocol is removed in a copy of its module, then the tests run until one fails. Where a seed of the "
            "simulation is named too, `python -m tests.simulation SEED` fails with the guard removed.\n\n"
            "| guard | what it is | where | what fails without it |\n|---|---|---|---|\n" + "\n".join(rows) + "\n"
        )
    print(f"{len(chosen)} guards removed, {missed} missed by nothing", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
