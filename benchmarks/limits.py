"""What is not a comparison: sizes that must finish, memory per finished task, an idle coordinator, import time.

    python benchmarks/limits.py              → docs/results/limits.md

Memory is the growth of the coordinator's anonymous resident set over a fan-out of 10,000 small tasks whose workflow
is still open (a timer holds it), per task; a finished fan-out of the same size before it has filled Ray's own buffers,
which don't grow with the number of tasks. CPU of the idle coordinator comes from /proc over a minute, with that of
an empty Ray actor in the same minute.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ray

from perdure import workflow
from perdure.onray import cluster

IDLE_SECONDS = 60
RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "limits.md"


@ray.remote
def inc(x):
    return x + 1


@ray.remote
def total(*values):
    return sum(v for v in values if v is not None)


@ray.remote(num_cpus=0)
class Plain:
    """An actor with an event loop and nothing to do: what Ray itself uses."""

    async def pid(self):
        return os.getpid()


def resident(pid: int) -> int:
    """Bytes of anonymous memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon")


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def import_seconds(what: str) -> float:
    """Of ``what`` in a process that has imported Ray already."""
    code = f"import time, ray; t = time.perf_counter(); import {what}; print(time.perf_counter() - t)"
    runs = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    return statistics.median(runs)


def wait_until_done(workflow_id: str, count: int) -> None:
    deadline = time.monotonic() + 300
    while cluster.connected().call("progress", workflow_id).get("done", 0) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(workflow_id)
        time.sleep(0.2)


def main() -> None:
    rows: list[tuple[str, str, str]] = []
    with tempfile.TemporaryDirectory() as folder:
        ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
        workflow.init(storage=folder)
        workflow.run(total.bind(*[inc.bind(i) for i in range(200)]))
        pid = cluster.connected().hello["pid"]

        n = 10_000
        began = time.perf_counter()
        assert workflow.run(total.bind(*[inc.bind(i) for i in range(n)])) == n * (n + 1) // 2
        rows.append(("fan-out of 10,000 tasks", f"{time.perf_counter() - began:.1f} s", "finishes"))

        time.sleep(8)
        before = resident(pid)
        dag = total.bind(workflow.sleep(3600), *[inc.bind(i) for i in range(n)])
        ref = workflow.run_async(dag, workflow_id="memory")
        wait_until_done("memory", n)
        time.sleep(8)
        per_task = (resident(pid) - before) / n
        rows.append(("coordinator memory per finished small task", f"{per_task / 1024:.2f} KiB", "≤ 1.5 KB"))
        workflow.cancel("memory")
        with contextlib.suppress(workflow.WorkflowCancellationError, ray.exceptions.RayTaskError):
            ray.get(ref)

        began = time.perf_counter()
        node = inc.bind(0)
        for _ in range(4_999):
            node = inc.bind(node)
        assert workflow.run(node) == 5_000
        rows.append(("chain of 5,000 tasks", f"{time.perf_counter() - began:.1f} s", "finishes"))

        plain = Plain.remote()
        plain_pid = ray.get(plain.pid.remote())
        time.sleep(10)
        used, used_plain = cpu(pid), cpu(plain_pid)
        time.sleep(IDLE_SECONDS)
        share, share_plain = ((cpu(p) - u) / IDLE_SECONDS for p, u in ((pid, used), (plain_pid, used_plain)))
        measured = f"{share:.2%} of one core; an empty Ray actor beside it {share_plain:.2%}"
        rows.append(("CPU of the idle coordinator", measured, "none beyond Ray's own"))
        ray.shutdown()
    rows.append(("`import perdure` after `import ray`", f"{import_seconds('perdure'):.3f} s", "≤ 0.15 s"))
    rows.append(("`from perdure import workflow` after it", f"{import_seconds('perdure.workflow'):.3f} s", "–"))

    lines = [
        "# Limits", "", "Made by `python benchmarks/limits.py`. Do not edit.", "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}, Ray {ray.__version__}.",
        "", "| what | measured | target |", "|---|---|---|",
        *[f"| {a} | {b} | {c} |" for a, b, c in rows],
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
