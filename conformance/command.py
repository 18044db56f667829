"""``perdure conformance``: the suite on the command line, without a Ray cluster.

Exit codes: 0 level reached (or, with ``-k``, nothing wrong), 1 FAILED, 2 usage, 5 out of reach, 8 only ERRORs.
``app`` can be mounted in another Typer application; ``main`` is a command of its own.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from perdure.conformance import linear, linear_histories
from perdure.conformance import register as cases
from perdure.conformance.api import SuiteBroken, as_subject, run_sync
from perdure.conformance.clean_up import sweep as sweep_runs
from perdure.conformance.register import SUITE_VERSION, Kind, Level, Status
from perdure.conformance.render import RENDERERS, to_text
from perdure.conformance.report import Report, Result
from perdure.conformance.runner import Bench, OutOfReach
from perdure.conformance.store_bench import StoreBench
from perdure.conformance.subject import HOOKS, StoreSubject, load_hooks
from perdure.errors import PluginError

OUT_OF_REACH, USAGE, BROKEN = 5, 2, 8

app = typer.Typer(add_completion=False, no_args_is_help=True)


class Progress:
    """Prints each case as it ends; bare lines where the output is no terminal."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.terminal = sys.stderr.isatty()

    def __call__(self, result: Result, done: int, total: int) -> None:
        if self.quiet:
            return
        line = f"[{done:>3}/{total}] {result.status:<12} {result.case.id:<14} {result.seconds:6.2f} s"
        if result.status in (Status.FAILED, Status.ERROR):
            line += f"  {' '.join(result.seen.split())[:100]}"
        if self.terminal and result.status in (Status.PASSED, Status.NOT_DECLARED):
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(f"\r\033[K{line}" if self.terminal else line, file=sys.stderr, flush=True)


def usage(text: str) -> typer.Exit:
    print(text, file=sys.stderr)
    return typer.Exit(USAGE)


def explain(id: str) -> str:
    """What a case asks, why, and how to dispute it."""
    try:
        case = cases.find_case(id)
    except KeyError:
        raise usage(f"no case is called {id!r}; see --list") from None
    needs = f"Needs {', '.join(case.needs)}." if case.needs else "Needs nothing that a store could lack."
    return (
        f"{case.id} ({case.kind.value}, {case.level.value}, rule {case.rule}, {case.certainty.value})\n\n"
        f"  {case.sentence}\n\n{needs}\nThe case: {case.function.__module__}.{case.function.__name__}\n\n"
        "To dispute it: a case that fails a right subject is a bug of the suite. Open an issue with the report as\n"
        "JSON (-o json), the rule's text in docs/conformance.md, and why the behaviour keeps it. Ids are stable:\n"
        "a case that turns out to be wrong is withdrawn or replaced by a new id, never changed in silence.\n"
    )


def listing(kind: Kind, level: Level, suite: str) -> str:
    out = []
    for case in cases.load_cases(kind, suite):
        if level is Level.FULL or case.level is Level.BASE:
            out.append(f"{case.id:<14} {case.level.value:<5} {case.rule:<7} {case.sentence}")
    return "\n".join(out)


def suggest_hooks() -> str:
    """A subject class to fill in."""
    return (
        "from perdure.conformance import StoreSubject\n\n\nclass MySubject(StoreSubject):\n"
        '    url = "mine://host/prefix"\n'
        '    secret = "…"                       # must appear nowhere\n'
        '    upstream = ("127.0.0.1", 9000)     # the server, for the fault proxy\n'
        '    denied_url = "mine://host/denied"  # the credentials are refused here\n\n'
        "    def proxied_url(self, host: str, port: int) -> str:\n"
        '        return f"mine://{host}:{port}/prefix"\n\n'
        "    def restart(self) -> None: ...     # restart the server on the same data\n\n"
        "    def kill(self) -> None: ...        # SIGKILL the server, start it again\n\n"
        f"# All hooks: {', '.join(HOOKS)}. Run: perdure conformance --hooks module:MySubject --level full\n"
    )


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def emit(report: Report, formats: list[str], out: Path | None) -> None:
    """Print the first format, or write all of them to ``out``."""
    if out is None:
        for name in formats:
            sys.stdout.write(RENDERERS[name][1](report))
        return
    out.mkdir(parents=True, exist_ok=True)
    for name in formats:
        ending, render = RENDERERS[name]
        (out / f"conformance.{ending}").write_text(render(report), encoding="utf-8")
    histories = out / "histories"
    for result in report.results:
        if result.evidence.history:
            histories.mkdir(exist_ok=True)
            lines = [
                linear.Op(**{**h, "end": float("inf") if h["end"] is None else h["end"]}).to_json()
                for h in result.evidence.history
            ]
            (histories / f"{result.case.id}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(to_text(report))
    print(f"written to {out}", file=sys.stderr)


def recheck(folder: Path) -> int:
    """Judge the histories of an earlier run again; the exit code."""
    wrong = linear_histories.self_test()
    if wrong:
        print("the checker fails its self-test: " + "; ".join(wrong), file=sys.stderr)
        return BROKEN
    files = sorted(folder.rglob("*.jsonl"))
    if not files:
        print(f"no histories (*.jsonl) below {folder}", file=sys.stderr)
        return USAGE
    code = 0
    for path in files:
        ops = [linear.Op.from_json(line) for line in path.read_text().splitlines() if line]
        sizes = {o.value: o.size for o in ops if o.size is not None}
        judged = linear.check_keys(ops, sizes=sizes)
        print(f"{path.stem}: {judged.verdict} ({len(ops)} calls) {judged.reason}")
        if judged.verdict is linear.Verdict.VIOLATION:
            code = 1
        elif judged.verdict is linear.Verdict.UNDECIDED and code == 0:
            code = BROKEN
    return code


def estimate(bench_level: Level) -> str:
    """What a run costs at a provider's prices, before it starts."""
    writes, reads, gib = (9_000, 14_000, 1) if bench_level is Level.BASE else (110_000, 120_000, 9)
    cost = writes * 5e-6 + reads * 0.4e-6
    traffic = f"about {writes + reads:,} requests and {gib} GiB of traffic"
    return f"{traffic}; about ${cost:.2f} at S3's list prices, without egress"


def bench_for(kind: Kind, target: str, seed: int) -> Bench:
    from perdure.conformance.plugin_bench import plugin_bench

    return plugin_bench(kind, target, seed=seed, command=f"perdure conformance --{kind.value} {shlex.quote(target)}")


@app.command()
def conformance(
    url: Annotated[str | None, typer.Argument(help="The store's URL; or `recheck DIR`, or `sweep URL`.")] = None,
    rest: Annotated[str | None, typer.Argument(hidden=True)] = None,
    level: Annotated[Level, typer.Option(help="base or full")] = Level.BASE,
    only: Annotated[str | None, typer.Option("-k", help="Ids, globs or words of ids: 'create-06, list-*'.")] = None,
    output: Annotated[list[str] | None, typer.Option("-o", help=f"One of {', '.join(RENDERERS)}; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the reports (and histories) into this folder.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat a run's random choices.")] = None,
    jobs: Annotated[int, typer.Option(help="Cases at once; 0 chooses.")] = 0,
    budget: Annotated[float, typer.Option(help="Seconds for the whole run; 0 is no limit.")] = 0.0,
    suite: Annotated[str, typer.Option(help="The suite version whose cases run.")] = SUITE_VERSION,
    hooks: Annotated[str | None, typer.Option(help="MODULE:CLASS of a StoreSubject.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave what was written.")] = False,
    fail_on: Annotated[str, typer.Option(help="failed, error or not-declared: what the exit code minds.")] = "error",
    list_cases: Annotated[bool, typer.Option("--list", help="List the cases.")] = False,
    explain_id: Annotated[
        str | None, typer.Option("--explain", help="What a case asks, and how to dispute it.")
    ] = None,
    suggest: Annotated[bool, typer.Option("--suggest-hooks", help="Print a subject class to fill in.")] = False,
    self_test: Annotated[bool, typer.Option("--self-test", help="Judge the recorded histories only.")] = False,
    serializer: Annotated[str | None, typer.Option(help="Judge a serializer: its name or MODULE:CLASS.")] = None,
    codec: Annotated[str | None, typer.Option(help="Judge a codec: its name or MODULE:CLASS.")] = None,
    listener: Annotated[str | None, typer.Option(help="Judge a listener: MODULE:CLASS of a ListenerSubject.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Tell a right store (serializer, codec, listener) from a wrong one."""
    formats = output or ["text"]
    if unknown := [f for f in formats if f not in RENDERERS]:
        raise usage(f"unknown output {unknown[0]!r}; one of {', '.join(RENDERERS)}")
    if fail_on not in ("failed", "error", "not-declared"):
        raise usage("--fail-on is failed, error or not-declared")
    try:
        if not cases.load_cases(Kind.STORE, suite):
            raise usage(f"no suite has the version {suite}; this is {SUITE_VERSION}")
    except ValueError:
        raise usage(f"{suite!r} is not a suite's version; this is {SUITE_VERSION}") from None
    except PluginError as error:
        print(f"nothing was judged: {error}", file=sys.stderr)
        raise typer.Exit(BROKEN) from None
    chosen = [(k, v) for k, v in ((Kind.SERIALIZER, serializer), (Kind.CODEC, codec), (Kind.LISTENER, listener)) if v]
    if explain_id is not None:
        print(explain(explain_id))
        return
    if list_cases:
        print(listing(chosen[0][0] if chosen else Kind.STORE, Level.FULL if level is Level.FULL else Level.BASE, suite))
        return
    if suggest:
        print(suggest_hooks())
        return
    if self_test:
        wrong = linear_histories.self_test()
        count = len(linear_histories.GOOD) + len(linear_histories.BAD) + len(linear_histories.LISTS)
        print("\n".join(wrong) if wrong else f"{count} recorded histories judged rightly")
        raise typer.Exit(BROKEN if wrong else 0)
    if url == "recheck" and rest is not None:
        raise typer.Exit(recheck(Path(rest)))
    if url == "sweep" and rest is not None:
        raise typer.Exit(sweep_command(rest))
    if rest is not None:
        raise usage(f"unexpected argument {rest!r}")
    seed = int.from_bytes(os.urandom(4)) if seed is None else seed
    try:
        bench = make_bench(url, hooks, chosen, seed, keep)
    except ValueError as error:
        raise usage(str(error)) from error
    if only is not None and not cases.select(cases.load_cases(bench.kind, suite), only):
        raise usage(f"no case matches {only!r}; see --list")
    run_and_exit(bench, level, only, seed, jobs, budget, suite, formats, out, fail_on, quiet)


def make_bench(url: str | None, hooks: str | None, chosen: list[tuple[Kind, str]], seed: int, keep: bool) -> Bench:
    """The bench for the command's arguments. Raises ``ValueError`` with what is wrong."""
    if len(chosen) + (url is not None or hooks is not None) != 1:
        raise ValueError("give one of URL, --hooks, --serializer, --codec or --listener; see --help")
    if chosen:
        return bench_for(*chosen[0], seed)
    subject: StoreSubject
    if hooks is not None:
        sys.path.insert(0, os.getcwd())
        subject = load_hooks(hooks, url)
        command = f"perdure conformance --hooks {shlex.quote(hooks)} --level full"
    else:
        assert url is not None
        if "://" not in url:
            raise ValueError(f"{url!r} is not a store URL (scheme://…)")
        subject, command = as_subject(url), ""
    return StoreBench(subject, seed=seed, keep=keep, command=command)


def run_and_exit(
    bench: Bench, level: Level, only: str | None, seed: int, jobs: int, budget: float, suite: str, formats: list[str],
    out: Path | None, fail_on: str, quiet: bool,
) -> None:  # fmt: skip
    """Run, print, and leave with the exit code of section E."""
    signal.signal(signal.SIGTERM, interrupt)
    progress = Progress(quiet)
    if isinstance(bench, StoreBench) and not quiet:
        bench.announce = lambda latency: (  # type: ignore[method-assign]
            print(f"This store is far away: {estimate(level)}.", file=sys.stderr) if latency == "wan" else None
        )
    code: int
    hung = False
    try:
        report = run_sync(
            bench, level=level, only=only, seed=seed, jobs=jobs, budget=budget, suite=suite, progress=progress
        )
    except OutOfReach as error:
        print(str(error), file=sys.stderr)
        code = OUT_OF_REACH
    except SuiteBroken as error:
        print(f"the suite is broken, nothing was judged: {error}", file=sys.stderr)
        code = BROKEN
    else:
        if progress.terminal and not quiet:
            print("\r\033[K", end="", file=sys.stderr)
        emit(report, formats, out)
        code = exit_code(report, fail_on)
        hung = report.hung
    sys.stdout.flush()
    sys.stderr.flush()
    if hung:  # a thread that a store blocks for ever would keep the interpreter from ending
        os._exit(code)
    raise typer.Exit(code)


def exit_code(report: Report, fail_on: str) -> int:
    """The report's exit code, minding only what ``--fail-on`` names."""
    if report.stopped == "interrupted":
        return 130
    if fail_on == "failed":
        return 1 if report.count(Status.FAILED) else 0
    if fail_on == "not-declared" and report.exit_code == 0 and report.count(Status.NOT_DECLARED):
        return 1
    return report.exit_code


def sweep_command(url: str) -> int:
    """Remove what killed runs left; the exit code."""
    try:
        removed, left = asyncio.run(sweep_runs(as_subject(url), url))
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return OUT_OF_REACH
    print(f"removed {len(removed)} runs: {', '.join(removed)}" if removed else "no run past its deadline")
    for line in left:
        print(f"could not be removed: {line}", file=sys.stderr)
    return 1 if left else 0


def main(argv: list[str] | None = None) -> Any:
    """``python -m perdure.conformance``."""
    return app(args=argv, prog_name="perdure conformance")
