"""Perdure, plain Ray, Ray Workflows 2.43 and DBOS on the same shapes, side by side in one run.

    python benchmarks/compare.py                 everything → docs/results/benchmarks.md
    python benchmarks/compare.py --rounds 1 --only "chain 200" --no-write

Makes the environments of the others itself (a folder per system, kept between runs). In each round the systems take
turns on each shape, in a process of their own, with 2 CPUs, in another order each round; the table holds medians, the
spread between the fastest and the slowest, and the ratio to Ray Workflows. Seconds are only comparable within one run.

What a run has stored stays until all is measured. ext4 takes up to 40 times as long to make a file while it steps over
the inodes of thousands that were deleted in the last minutes, so the next system would pay for the last one's files.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "systems"))
from common import TASKS  # noqa: E402

SYSTEMS = {
    "Perdure": ("perdure_system.py", None),
    "Ray, not durable": ("ray_plain.py", None),
    "Ray Workflows 2.43": ("ray_workflows.py", ["ray==2.43.0", "pyarrow==17.*", "numpy<2", "setuptools<80"]),
    "DBOS (SQLite)": ("dbos_system.py", ["dbos==3.4.*"]),
}
TARGETS = {  # shape: how many times faster than Ray Workflows it has to be
    "fan-out 1,000": 8,
    "chain 200": 4,
    "300 workflows x 2": 10,
    "300 workflows x 2, started by 32 threads": 10,
    "fib(10)": 5,
    "256 MiB between tasks": 1 / 1.2,
    "resume 1,000, 950 done": 2,
}


def environment(name: str, needs: list[str] | None, folder: Path) -> str:
    """The interpreter of a system; its virtual environment is made where it is missing."""
    if needs is None:
        return sys.executable
    path = folder / name.replace(" ", "-").lower()
    python = path / "bin" / "python"
    if not (path / "ready").exists():
        shutil.rmtree(path, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(path)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *needs], check=True)
        (path / "ready").touch()
    return str(python)


def measure(name: str, python: str, script: str, shape: str, place: Path) -> list[dict[str, float]]:
    folder = tempfile.mkdtemp(dir=place)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PERDURE_"))}
    try:
        done = subprocess.run(
            [python, str(HERE / "systems" / script), folder, shape],
            capture_output=True,
            text=True,
            timeout=300,
            env=env,
            cwd=HERE / "systems",
        )
    except subprocess.TimeoutExpired:
        print(f"  {name}: {shape}: longer than 300 s", file=sys.stderr)
        return []
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or (not lines and "not durable" not in name and "DBOS" not in name):
        print(f"  {name}: {shape}: exit {done.returncode}\n{done.stderr[-1500:]}", file=sys.stderr)
    return lines[1:] or lines  # the first warms up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a shape; several times for several")
    parser.add_argument("--systems", action="append", help="a system; several times for several")
    parser.add_argument("--environments", default=str(Path.home() / ".cache" / "perdure-benchmarks"))
    parser.add_argument("--no-write", action="store_true")
    options = parser.parse_args()
    shapes = options.only or list(TASKS)
    chosen = {n: SYSTEMS[n] for n in options.systems or SYSTEMS}
    folder = Path(options.environments)
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {name: environment(name, needs, folder) for name, (_, needs) in chosen.items()}
    place = Path(tempfile.mkdtemp(prefix="perdure-bench-"))
    load = os.getloadavg()[0]
    seconds: dict[tuple[str, str], list[float]] = {}
    writes: list[float] = []
    for number in range(options.rounds):
        for shape in shapes:
            if shape == "1,000 sleeps of 5 s" and number:
                continue
            turn = list(chosen.items())
            for name, (script, _) in turn[number % len(turn) :] + turn[: number % len(turn)]:
                for line in measure(name, pythons[name], script, shape, place):
                    seconds.setdefault((shape, name), []).append(line["seconds"])
                    if "writes per task" in line:
                        writes.append(line["writes per task"])
                found = seconds.get((shape, name))
                if found:
                    print(f"round {number + 1}: {shape}: {name}: {statistics.median(found):.3f} s", flush=True)
    shutil.rmtree(place, ignore_errors=True)
    text = render(shapes, list(chosen), seconds, writes, load, options.rounds)
    print(text)
    if not options.no_write:
        (HERE.parent / "docs" / "results" / "benchmarks.md").write_text(text)
    return 0


def render(shapes, names, seconds, writes, load, rounds) -> str:
    out = ["# Benchmarks", "", "Made by `python benchmarks/compare.py`. Do not edit.", ""]
    out += [
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} CPUs, Python "
        f"{platform.python_version()}, load before the start {load:.2f}, {rounds} rounds in turn. "
        "Median seconds (fastest to slowest).",
        "",
        "| shape | " + " | ".join(names) + " | faster than Ray Workflows | target |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for shape in shapes:
        cells = []
        for name in names:
            found = seconds.get((shape, name))
            if not found:
                cells.append("–")
                continue
            middle = statistics.median(found)
            rate = f", {TASKS[shape] / middle:,.0f}/s" if TASKS[shape] > 60 and "sleep" not in shape else ""
            cells.append(f"{middle:.2f} ({min(found):.2f}–{max(found):.2f}){rate}")
        ours, theirs = seconds.get((shape, "Perdure")), seconds.get((shape, "Ray Workflows 2.43"))
        ratio = f"{statistics.median(theirs) / statistics.median(ours):.1f}×" if ours and theirs else "–"
        target = f"{TARGETS[shape]:.2g}×" if shape in TARGETS else "–"
        out.append(f"| {shape} | " + " | ".join(cells) + f" | {ratio} | {target} |")
    if writes:
        out += ["", f"Store writes per task in the fan-out: {statistics.median(writes):.4f} (target: at most 0.15)."]
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    sys.exit(main())
