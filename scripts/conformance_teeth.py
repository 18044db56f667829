"""Proves that the suite bites: every broken subject is failed by the cases named for it, every case fails one.

Writes the matrix case × broken subject to ``docs/results/conformance-teeth.md``. ``--wide`` also runs every
broken folder store through all quick cases, to show what else catches it. Run from the repository's root:
``python scripts/conformance_teeth.py [--kind store|serializer|codec|listener] [--wide] [--only WORD]``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "conformance"))

KINDS = ("store", "serializer", "codec", "listener")
QUICK = (
    "key-*, value-01, value-02, value-03, value-06, create-01, create-02, create-03, create-04, create-05, put-01, "
    "get-01, get-02, get-03, get-04, stat-*, list-0*, list-10, list-11, delete-01, delete-02, delete-03, many-01, "
    "many-02, many-05, stream-01, stream-02, stream-03, stream-04, stream-05, pickle-01, close-01, cap-01, cap-08"
)


def judge_one(kind: str, index: int, only: str) -> dict[str, str]:
    """In a process of its own: the statuses of some cases for one broken subject."""
    from perdure.conformance.api import run_sync

    with tempfile.TemporaryDirectory(prefix="perdure-teeth-") as folder:
        if kind == "store":
            from conformance_lab.broken import BROKEN
            from conformance_lab.subjects import FolderSubject, WireSubject

            broken = BROKEN[index]
            if broken.wire:
                subject = WireSubject(folder, broken.store, broken.sloppy).start()
                try:
                    report = run_sync(subject, level="full", only=only, seed=7, jobs=1)
                finally:
                    subject.stop()
            else:
                report = run_sync(FolderSubject(folder, broken.store), level="full", only=only, seed=7, jobs=1)
        else:
            from conformance_lab import broken_plugins

            report = run_sync(broken_plugins.bench(kind, index, folder), level="full", only=only, seed=7, jobs=1)
    return {r.case.id: str(r.status) for r in report.results}


def table(kind: str) -> list[Any]:
    """The broken subjects of a kind: objects with ``fault`` and ``caught_by``."""
    if kind == "store":
        from conformance_lab.broken import BROKEN

        return list(BROKEN)
    from conformance_lab import broken_plugins

    return list(broken_plugins.BROKEN[kind])


def run_child(kind: str, index: int, only: str) -> dict[str, str]:
    """``judge_one`` in a child: a broken store may hang or break its process."""
    command = [sys.executable, __file__, "--child", kind, str(index), only]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests" / "conformance")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, check=False)
    except subprocess.TimeoutExpired:
        return {}
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("{"):
            return json.loads(line)  # type: ignore[no-any-return]
    print(done.stderr[-2000:], file=sys.stderr)
    return {}


def case_ids(kind: str) -> list[str]:
    from perdure.conformance.register import Kind, load_cases

    return [c.id for c in load_cases(Kind(kind)) if not c.measures]


def write(results: dict[str, dict[str, dict[str, str]]], out: Path) -> int:
    """The Markdown page; the number of misses."""
    misses = 0
    lines = [
        "# Teeth of the conformance suite",
        "",
        "Each broken subject is a right one with one fault. The cases that *must* fail it are in bold, with the status",
        "where they did not. Every case id must fail at least one (speed aside, which only measures).",
        f"Made by `scripts/conformance_teeth.py` on {time.strftime('%Y-%m-%d', time.gmtime())}.",
        "",
    ]
    for kind, by_name in results.items():
        entries = table(kind)
        failed: dict[str, list[str]] = {}
        rows = []
        for entry in entries:
            statuses = by_name.get(entry.fault, {})
            named = []
            for id in entry.caught_by:
                status = statuses.get(id, "not run")
                misses += status != "FAILED"
                named.append(f"**{id}**" if status == "FAILED" else f"**{id}: {status}**")
            others = [i for i, s in statuses.items() if s == "FAILED" and i not in entry.caught_by]
            for id, status in statuses.items():
                if status == "FAILED":
                    failed.setdefault(id, []).append(entry.fault)
            also = ", ".join(others[:12]) + (f" and {len(others) - 12} more" if len(others) > 12 else "")
            rows.append(f"| {entry.fault} | {', '.join(named)} | {also} |")
        ids = case_ids(kind)
        toothless = [i for i in ids if i not in failed]
        misses += len(toothless)
        lines += [
            f"## {kind}s: {len(entries)} broken, {len(ids)} cases",
            "",
            f"Cases that fail no broken {kind}: {', '.join(toothless) or 'none'}.",
            "",
            f"| broken {kind} | must be caught by | also failed by |",
            "|---|---|---|",
            *rows,
            "",
            "| case | fails |",
            "|---|---|",
            *(f"| {i} | {'; '.join(failed.get(i, ['**nothing**']))} |" for i in ids),
            "",
        ]
    out.write_text("\n".join(lines), encoding="utf-8")
    return misses


def main() -> int:
    if len(sys.argv) == 5 and sys.argv[1] == "--child":
        print(json.dumps(judge_one(sys.argv[2], int(sys.argv[3]), sys.argv[4])), flush=True)
        os._exit(0)  # a broken subject's threads may never end
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--only", default="", help="only faults whose text has this word")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "conformance-teeth.json")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "conformance-teeth.md")
    options = parser.parse_args()
    options.state.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, dict[str, str]]] = (
        json.loads(options.state.read_text()) if options.state.exists() else {}
    )
    for kind in options.kind or KINDS:
        entries = table(kind)
        known = results.setdefault(kind, {})
        work = [(i, e) for i, e in enumerate(entries) if options.only in e.fault]
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            futures = {}
            for index, entry in work:
                only = ", ".join(entry.caught_by)
                if options.wide and not (kind == "store" and entry.wire):
                    only += f", {QUICK}" if kind == "store" else ", *"
                futures[pool.submit(run_child, kind, index, only)] = entry
            for future in concurrent.futures.as_completed(futures):
                entry = futures[future]
                known[entry.fault] = {**known.get(entry.fault, {}), **future.result()}
                missed = [i for i in entry.caught_by if known[entry.fault].get(i) != "FAILED"]
                text = (
                    "caught"
                    if not missed
                    else f"MISSED by {', '.join(f'{i} ({known[entry.fault].get(i)})' for i in missed)}"
                )
                print(f"{kind}: {entry.fault}: {text}", flush=True)
                options.state.write_text(json.dumps(results))
    names = {kind: {e.fault for e in table(kind)} for kind in results}
    results = {kind: {f: s for f, s in found.items() if f in names[kind]} for kind, found in results.items()}
    misses = write(results, options.out)
    print(f"{misses} misses; written to {options.out}")
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main())
