"""Writes docs/state-diagram.md from the transition table of `perdure.state`. ``--check``: only compare.

python scripts/state_diagram.py [--check]
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

from perdure.state import TRANSITIONS, TaskStatus

PAGE = Path(__file__).parent.parent / "docs" / "state-diagram.md"
REPLAY = "recorded "

HEAD = """# The states of a task

Made from the transition table in `core/state.py` by `scripts/state_diagram.py`; a test keeps the two equal.
An arrow is all that can happen to a task in a state; anything else is refused and leaves the state as it was.
"""

MEANING = {
    TaskStatus.WAITING: "some input is not there yet",
    TaskStatus.READY: "all inputs are durable; it may start",
    TaskStatus.RUNNING: "an attempt, or a wait for an event or a timer, is under way",
    TaskStatus.RECORDING: "its outcome is known, but not yet committed (J1)",
    TaskStatus.BACKOFF: "an attempt failed; the next one waits for its delay",
    TaskStatus.CONTINUED: "it returned a graph and waits for that graph's value",
    TaskStatus.DONE: "it has a value",
    TaskStatus.FAILED: "it failed for good, until a resume asks for it again",
}


def page() -> str:
    live: dict[tuple[TaskStatus, TaskStatus], list[str]] = defaultdict(list)
    replay: list[tuple[TaskStatus, str, TaskStatus]] = []
    for (status, trigger), new in TRANSITIONS.items():
        if status in (TaskStatus.WAITING, TaskStatus.READY) and trigger.startswith(REPLAY):
            replay.append((status, trigger, new))
        else:
            live[status, new].append(trigger)
    lines = [HEAD, "```mermaid", "stateDiagram-v2", "    [*] --> WAITING"]
    lines += [f"    {a.name} --> {b.name}: {', '.join(triggers)}" for (a, b), triggers in live.items()]
    lines += ["    DONE --> [*]", "    FAILED --> [*]", "```", "", "| state | meaning |", "|---|---|"]
    lines += [f"| {status.name} | {MEANING[status]} |" for status in TaskStatus]
    lines += [
        "",
        "A reader folds records without having started anything, so records also lead on from WAITING and READY:",
        "",
        "| from | record | to |",
        "|---|---|---|",
    ]
    lines += [f"| {a.name} | {trigger} | {b.name} |" for a, trigger, b in replay]
    return "\n".join(lines) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        if not PAGE.exists() or PAGE.read_text() != text:
            print(f"{PAGE} is not what the table says; run python scripts/state_diagram.py", file=sys.stderr)
            return 1
        return 0
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
