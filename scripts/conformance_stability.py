"""Shows that the suite does not fail right stores by chance: N runs in a row of two right stores, beside a CPU load.

Run from the repository's root: ``python scripts/conformance_stability.py [--runs 20] [--level base|full]``. The page
``docs/results/conformance-stability.md`` says what was run, and every result that was not PASSED or NOT_DECLARED. It is
written after each run; ``--begin N`` goes on with run N of a page that was interrupted there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "results" / "conformance-stability.md"
sys.path.insert(0, str(ROOT / "tests" / "conformance"))


def burn() -> None:
    """One core's worth of work, until killed."""
    while True:
        sum(i * i for i in range(10_000))


def one(name: str, level: str, seed: int) -> Any:
    from conformance_lab.subjects import FolderSubject, WireSubject

    from perdure.conformance import run_sync

    with tempfile.TemporaryDirectory(prefix="perdure-stability-") as folder:
        if name == "folder":
            return run_sync(FolderSubject(folder), level=level, seed=seed)
        subject = WireSubject(folder).start()
        try:
            return run_sync(subject, level=level, seed=seed)
        finally:
            subject.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--begin", type=int, default=0)
    parser.add_argument("--level", default="base")
    options = parser.parse_args()
    rows = earlier(options.begin)
    load = [multiprocessing.Process(target=burn, daemon=True) for _ in range(max(1, (os.cpu_count() or 2) // 2))]
    for process in load:
        process.start()
    try:
        for number in range(options.begin, options.runs):
            for name in STORES:
                report = one(name, options.level, seed=1000 + number)
                wrong = [r for r in report.results if r.status in ("FAILED", "ERROR")]
                print(f"{number} {name}: {report.verdict}, {report.seconds:.0f} s", flush=True)
                rows.append(f"| {number} | {name} | {report.verdict} | {report.seconds:.0f} | {report.seed} |")
                for r in wrong:
                    print(f"   {r.case.id} {r.status}: {r.expected}; {r.seen[:300]}", flush=True)
                    rows.append(f"{WRONG}{r.case.id} {r.status}: {' '.join(r.seen.split())[:200]} | | |")
                OUT.write_text(page(rows, options.level, len(load)), encoding="utf-8")
    finally:
        for process in load:
            process.kill()
    return 1 if any(row.startswith(WRONG) for row in rows) else 0


STORES = ("folder", "wire")
WRONG = "| | | "


def earlier(begin: int) -> list[str]:
    """The rows of the page before run ``begin``."""
    rows: list[str] = []
    for line in OUT.read_text(encoding="utf-8").splitlines() if begin else ():
        if line.startswith(f"| {begin} |"):
            break
        if line.startswith(WRONG) or line[2:3].isdigit():
            rows.append(line)
    return rows


def page(rows: list[str], level: str, busy: int) -> str:
    runs = [row for row in rows if not row.startswith(WRONG)]
    seconds = sum(int(row.split("|")[4]) for row in runs)
    return "\n".join(
        [
            "# Stability of the conformance suite",
            "",
            f"{len(runs) // len(STORES)} runs in a row of level {level} on each of two right stores of the laboratory,",
            f"beside {busy} busy process(es) on {os.cpu_count()} cores and whatever else ran there, in",
            f"{seconds / 60:.0f} min; made by `scripts/conformance_stability.py`.",
            f"Results that were not PASSED or NOT_DECLARED: {len(rows) - len(runs)}.",
            "",
            "| run | store | verdict | seconds | seed |",
            "|---:|---|---|---:|---:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
