"""What a run found out, as data: results per case, the level that follows from them, and their JSON form.

The level rules live here and nowhere else. No renderer may soften a status.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from perdure.conformance.register import Case, Level, Status
from perdure.conformance.subject import Gap
from perdure.conformance.trial import Evidence


@dataclasses.dataclass(slots=True)
class Result:
    """How one case ended, with everything needed to understand and repeat it."""

    case: Case
    status: Status
    seconds: float = 0.0
    evidence: Evidence = dataclasses.field(default_factory=Evidence)
    expected: str = ""
    seen: str = ""
    gap: Gap | None = None
    calls: list[str] = dataclasses.field(default_factory=list)
    timeline: list[dict[str, Any]] | None = None
    traceback: str = ""
    command: str = ""

    @property
    def certainty(self) -> str:
        """What the status is worth, in words."""
        if self.status is Status.PASSED and self.case.certainty == "stochastic":
            return f"no violation in {max(1, self.evidence.rounds)} rounds"
        return {"exact": "decided", "exhaustive": "all of a bounded space"}.get(self.case.certainty, "stochastic")

    @property
    def reason(self) -> str:
        if self.status is Status.NOT_DECLARED and self.gap is not None:
            return f"{self.gap.kind} {self.gap.name}: {self.gap.reason}"
        return self.seen

    def to_dict(self) -> dict[str, Any]:
        e = self.evidence
        return {
            "id": self.case.id,
            "level": self.case.level.value,
            "rule": self.case.rule,
            "sentence": self.case.sentence,
            "status": self.status.value,
            "certainty": self.certainty,
            "seconds": round(self.seconds, 3),
            "assertions": e.assertions,
            "rounds": e.rounds,
            "calls": e.calls,
            "overlap": e.overlap if e.overlap is None else round(e.overlap, 3),
            "faults": {"planned": e.faults_planned, "fired": e.faults_fired},
            "numbers": e.numbers,
            "notes": e.notes,
            "expected": self.expected,
            "seen": self.seen,
            "gap": None if self.gap is None else dataclasses.asdict(self.gap),
            "last_calls": self.calls,
            "timeline": self.timeline,
            "traceback": self.traceback,
            "command": self.command,
        }


@dataclasses.dataclass(slots=True)
class Report:
    """A whole run. ``complete``: every case of the asked level ran (no filter, no cut budget)."""

    kind: str
    subject: str
    level_asked: Level
    suite: str
    results: list[Result]
    complete: bool
    seed: int
    seconds: float = 0.0
    started: str = ""
    perdure: str = ""
    plugin: str = ""
    machine: dict[str, Any] = dataclasses.field(default_factory=dict)
    capabilities: dict[str, Any] = dataclasses.field(default_factory=dict)
    shown: dict[str, Any] = dataclasses.field(default_factory=dict)
    latency: dict[str, Any] = dataclasses.field(default_factory=dict)
    leftovers: list[str] = dataclasses.field(default_factory=list)
    stopped: str = ""
    hung: bool = False

    def count(self, status: Status | str) -> int:
        return sum(r.status == status for r in self.results)

    def of(self, id: str) -> Result:
        """The result of one case. Raises ``KeyError``."""
        for result in self.results:
            if result.case.id == id:
                return result
        raise KeyError(id)

    @property
    def level(self) -> Level | None:
        """BASE: every base case PASSED or NOT_DECLARED. FULL: every case PASSED or NOT_DECLARED by a capability.
        One FAILED or ERROR, an essential case that did not pass, a filter or a cut budget: no level at all."""
        if (
            not self.complete
            or not self.results
            or any(r.status in (Status.FAILED, Status.ERROR) for r in self.results)
        ):
            return None
        if not any(r.status is Status.PASSED for r in self.results) or self.unasked:
            return None
        if self.level_asked is Level.FULL and all(
            r.status is Status.PASSED or (r.gap is not None and r.gap.kind == "capability") for r in self.results
        ):
            return Level.FULL
        return Level.BASE

    @property
    def unasked(self) -> list[Result]:
        """The essential cases that did not apply: without them the others show nothing."""
        return [r for r in self.results if r.case.essential and r.status is Status.NOT_DECLARED]

    @property
    def gaps(self) -> list[str]:
        """What the level does not say: the capabilities and hooks that were missing."""
        relevant = [r for r in self.results if self.level is not Level.BASE or r.case.level is Level.BASE]
        names = {r.gap.name for r in relevant if r.status is Status.NOT_DECLARED and r.gap is not None}
        return sorted(names)

    @property
    def verdict(self) -> str:
        """``FULL 1.0, not multi_host``, or ``no level`` with the reason."""
        if (level := self.level) is not None:
            gaps = f", not {', '.join(self.gaps)}" if self.gaps else ""
            return f"{level.value.upper()} {self.suite}{gaps}"
        failed, errors = self.count(Status.FAILED), self.count(Status.ERROR)
        if failed or errors:
            return f"no level: {failed} FAILED, {errors} ERROR"
        if self.complete and (unasked := self.unasked):
            names = sorted({r.gap.name for r in unasked if r.gap is not None})
            return f"no level: {', '.join(r.case.id for r in unasked)} could not be asked without {', '.join(names)}"
        return f"no level: {self.stopped or 'only a part of the cases ran'}"

    @property
    def exit_code(self) -> int:
        """0 level reached (or, in a filtered run, nothing wrong), 1 FAILED, 8 only ERRORs, or cut short."""
        if self.count(Status.FAILED):
            return 1
        if self.count(Status.ERROR) or not self.results or self.stopped:
            return 8
        if self.complete and self.level is None:
            return 1
        return 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": 1,
            "kind": self.kind,
            "subject": self.subject,
            "verdict": self.verdict,
            "level": self.level.value if self.level else None,
            "level_asked": self.level_asked.value,
            "gaps": self.gaps,
            "suite": self.suite,
            "perdure": self.perdure,
            "plugin": self.plugin,
            "started": self.started,
            "seconds": round(self.seconds, 2),
            "seed": self.seed,
            "complete": self.complete,
            "stopped": self.stopped,
            "machine": self.machine,
            "capabilities": self.capabilities,
            "shown": self.shown,
            "latency": self.latency,
            "leftovers": self.leftovers,
            "counts": {s.value: self.count(s) for s in Status},
            "cases": [r.to_dict() for r in self.results],
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1, default=str)
