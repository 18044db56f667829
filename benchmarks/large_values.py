"""Large values: memory and time of one value's way through store and object store.

    python benchmarks/large_values.py [--gib 1]      → docs/results/large-values.md

1. A workflow stores a value (numpy array, Arrow table); another cluster, which has only the store, loads it into Ray's
   object store and gives it to a task. While that happens the memory of every process of that cluster is sampled every
   10 ms. Counted is what a process holds itself (RssAnon) and what it maps of the object store (RssShmem); mapped pages
   of the store's file are page cache that the kernel takes back, and are shown beside.
2. 256 MiB between two tasks: Perdure, plain Ray, and one sequential write of as much with fsync to the same disk, in
   turn.
3. One ObjectRef in 100 places: bytes in the store, and loads of it after a restart.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from perdure import workflow
from perdure.onray import cluster

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "results" / "large-values.md"
MEBI = 1 << 20


@ray.remote
def array(size, seed):
    import numpy as np

    return np.full(size // 8, seed, dtype=np.float64)


@ray.remote
def table(size, seed):
    import numpy as np
    import pyarrow as pa

    return pa.table({"x": np.full(size // 16, seed), "y": np.arange(size // 16, dtype=np.float64)})


@ray.remote
def rows(value, gate):
    if not os.path.exists(gate):
        raise RuntimeError("not yet")
    return len(value)


@ray.remote
def make_ref(size, seed):
    import numpy as np

    return [ray.put(np.full(size // 8, seed))] * 100


@ray.remote
def use_refs(refs, gate):
    if not os.path.exists(gate):
        raise RuntimeError("not yet")
    return sum(float(ray.get(ref)[0]) for ref in refs)


class Sampler:
    """Peaks of each process below this one's Ray: (anonymous + shared) and file-mapped, in bytes above its start."""

    def __init__(self, session: str) -> None:
        self.session = session
        self.first: dict[int, tuple[int, int]] = {}
        self.peaks: dict[int, list[int]] = {}
        self.names: dict[int, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.01):
            for pid in self._pids():
                with contextlib.suppress(OSError, KeyError, IndexError):
                    self._sample(pid)

    def _pids(self) -> Iterator[int]:
        for name in os.listdir("/proc"):
            if name.isdigit():
                with contextlib.suppress(OSError):
                    command = Path(f"/proc/{name}/cmdline").read_bytes().decode(errors="replace")
                    if command.startswith("ray::") or self.session in command or int(name) == os.getpid():
                        self.names[int(name)] = command.split("\0")[0][-30:]
                        yield int(name)

    def _sample(self, pid: int) -> None:
        fields = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
        )
        anonymous, shared, files = (int(fields[f].split()[0]) * 1024 for f in ("RssAnon", "RssShmem", "RssFile"))
        start = self.first.setdefault(pid, (anonymous + shared, files))
        peak = self.peaks.setdefault(pid, [0, 0])
        peak[0] = max(peak[0], anonymous + shared - start[0])
        peak[1] = max(peak[1], files - start[1])


@contextlib.contextmanager
def on_ray(storage: str) -> Iterator[None]:
    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    try:
        workflow.init(storage=storage, trust="all")
        yield
    finally:
        ray.shutdown()
        cluster.disconnect()


def way_of_one_value(folder: str, make, size: int) -> tuple[float, float, str]:
    """Peak of the worst process over the value's size, its file-mapped peak over the size, and which process."""
    gate = Path(folder) / f"gate-{time.time_ns()}"
    name = f"value-{time.time_ns()}"
    with on_ray(folder), contextlib.suppress(workflow.WorkflowExecutionError):
        workflow.run(rows.options(max_retries=0).bind(make.bind(size, time.time()), str(gate)), workflow_id=name)
    gate.touch()
    with on_ray(folder):
        workflow.run(rows.bind([1], str(gate)))  # a worker is up, its libraries are loaded
        session = ray._private.worker.global_worker.node.session_name
        with Sampler(session) as sampler:
            time.sleep(0.5)
            assert workflow.resume(name) > 0
            time.sleep(0.2)
    worst = max(sampler.peaks, key=lambda pid: sampler.peaks[pid][0])
    return sampler.peaks[worst][0] / size, sampler.peaks[worst][1] / size, sampler.names[worst]


def between_tasks(folder: str) -> dict[str, float]:
    size = 256 * MEBI
    times: dict[str, list[float]] = {"Perdure": [], "plain Ray": [], "one synced write": []}
    with on_ray(folder):
        gate = Path(folder) / "open"
        gate.touch()
        for turn in range(6):
            began = time.perf_counter()
            workflow.run(rows.bind(array.bind(size, time.time()), str(gate)))
            durable = time.perf_counter() - began
            began = time.perf_counter()
            ray.get(rows.remote(array.remote(size, time.time()), str(gate)))
            plain = time.perf_counter() - began
            data = os.urandom(MEBI) * 256
            began = time.perf_counter()
            with (Path(folder) / "written").open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            written = time.perf_counter() - began
            if turn:
                for what, seconds in zip(times, (durable, plain, written), strict=True):
                    times[what].append(seconds)
    return {what: statistics.median(seconds) for what, seconds in times.items()}


def one_ref_in_many_places(folder: str) -> tuple[float, int]:
    """Bytes of blobs over the value's size, and how many blobs."""
    size, gate = 64 * MEBI, Path(folder) / f"gate-{time.time_ns()}"
    before = {p for p in Path(folder).glob("blobs/**/*") if p.is_file()}
    name = f"refs-{time.time_ns()}"
    with on_ray(folder), contextlib.suppress(workflow.WorkflowExecutionError):
        workflow.run(
            use_refs.options(max_retries=0).bind(make_ref.bind(size, time.time()), str(gate)), workflow_id=name
        )
    gate.touch()
    made = [p for p in Path(folder).glob("blobs/**/*") if p.is_file() and p not in before]
    with on_ray(folder):
        assert workflow.resume(name) > 0
    return sum(p.stat().st_size for p in made) / size, len(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0)
    size = int(parser.parse_args().gib * 1024) * MEBI
    folder = tempfile.mkdtemp(prefix="perdure-large-")
    load = os.getloadavg()[0]
    lines = [
        "# Large values", "", "Made by `python benchmarks/large_values.py`. Do not edit.", "",
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}, Ray {ray.__version__}, "
        f"load before the start {load:.1f}.", "",
        f"Store → object store → task, {size // MEBI:,} MiB, in a cluster that has only the store:", "",
        "| value | peak of the worst process, of the value's size | target | file pages mapped beside | process |",
        "|---|--:|--:|--:|---|",
    ]  # fmt: skip
    try:
        for what, make in (("numpy array", array), ("Arrow table", table)):
            peak, mapped, name = way_of_one_value(folder, make, size)
            lines.append(f"| {what} | {peak:.2f} | ≤ 1.15 | {mapped:.2f} | {name} |")
        times = between_tasks(folder)
        bound = times["plain Ray"] + times["one synced write"]
        lines += [
            "", "256 MiB between two tasks, median of 5 in turn:", "", "| | s |", "|---|--:|",
            *[f"| {what} | {seconds:.3f} |" for what, seconds in times.items()],
            f"| Perdure over (plain Ray + one write) | {times['Perdure'] / bound:.2f} (target ≤ 2) |",
        ]  # fmt: skip
        share, count = one_ref_in_many_places(folder)
        lines += [
            "",
            f"One ObjectRef of 64 MiB in 100 places of one result: {count} blob, {share:.2f} of its size in the store.",
        ]  # fmt: skip
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.write_text(text)


if __name__ == "__main__":
    main()
