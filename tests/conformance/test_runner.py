"""Statuses, levels and clean-up: nothing is green by accident, and nothing stays behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conformance_lab.folder import FolderStore
from conformance_lab.subjects import FolderSubject, instantly

from perdure.conformance import ListenerSubject, clean_up, register, run, run_sync
from perdure.conformance.plugin_bench import plugin_bench
from perdure.conformance.register import Case, Certainty, Kind, Level, Status, case, load_cases, select
from perdure.conformance.report import Report, Result
from perdure.conformance.runner import OutOfReach
from perdure.conformance.subject import Gap, join_url
from perdure.conformance.trial import Trial

QUICK = "key-02, create-01, create-02, delete-01, list-07"


def a_case(id: str, function: Any, level: Level = Level.BASE, **more: Any) -> Case:
    return Case(id, Kind.STORE, level, "X", Certainty.EXACT, "It does.", function, **more)


def outcome(tmp_path: Path, function: Any, monkeypatch: pytest.MonkeyPatch, **more: Any) -> Result:
    load_cases(Kind.STORE)  # or they would be loaded into the dict that goes away
    monkeypatch.setattr(register, "_cases", {"x-01": a_case("x-01", function, **more)})
    report = run_sync(f"file://{tmp_path}/s", seed=1)
    return report.of("x-01")


def test_a_case_without_an_assertion_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lazy(t: Trial) -> None:
        await t.store.create("k", b"x")

    result = outcome(tmp_path, lazy, monkeypatch)
    assert result.status is Status.ERROR
    assert "no assertion" in result.seen


def test_a_fault_that_did_not_fire_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def harmless(t: Trial) -> None:
        t.fault(False)
        t.expect(True, "", "")

    assert outcome(tmp_path, harmless, monkeypatch).status is Status.ERROR


def test_an_exception_of_the_store_is_a_failure_and_one_of_the_suite_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def of_the_store(t: Trial) -> None:
        await t.store.get("missing")

    async def of_the_suite(t: Trial) -> None:
        raise LookupError("our own mistake")

    assert outcome(tmp_path, of_the_store, monkeypatch).status is Status.FAILED
    assert outcome(tmp_path, of_the_suite, monkeypatch).status is Status.ERROR


def test_a_case_that_runs_out_of_time_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def endless(t: Trial) -> None:
        t.expect(True, "", "")
        await asyncio.sleep(3600)

    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    result = outcome(tmp_path, endless, monkeypatch, timeout=0.2)
    assert result.status is Status.ERROR
    assert "not over" in result.seen


def test_racers_that_never_meet_are_an_error_after_four_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def apart(t: Trial) -> None:
        async with t.crew(4) as crew:
            await t.race(crew, instantly, 5, lambda n, i, k: (), lambda done: t.expect(True, "", ""))

    result = outcome(tmp_path, apart, monkeypatch)
    assert result.status is Status.ERROR
    assert "the racers did not meet" in result.seen
    assert result.evidence.rounds == 20


def test_a_missing_capability_is_not_declared_with_its_name() -> None:
    report = run_sync("memory://levels", only="create-06", level="full")
    result = report.of("create-06")
    assert result.status is Status.NOT_DECLARED
    assert result.gap is not None
    assert result.gap.name == "multi_process"


class Nothing:
    """Implements nothing: every method says yes and does nothing."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.capabilities = FolderStore(f"folder-lab://{url}").capabilities

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        async def nothing(*args: Any, **kwargs: Any) -> None:
            return None

        return nothing

    async def list(self, *args: Any, **kwargs: Any) -> Any:
        return
        yield


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it never awaits anything
def test_a_class_that_implements_nothing_gets_no_level() -> None:
    report = run_sync(Nothing)
    assert report.complete
    assert report.level is None
    assert report.exit_code == 1
    assert {x.case.id for x in report.results if x.status is Status.PASSED} <= {"cap-01", "speed-01"}


class NoSerializer:
    id, version, runs_code = "nothing", 1, False

    def accepts(self, obj: object) -> bool:
        return False


class NoCodec:
    id, integrity = "nothing", "none"

    def encode(self, chunks: Any) -> Any:
        return iter(())

    def decode(self, chunks: Any, limits: Any) -> Any:
        return iter(())


class NoListener:
    async def poll_for_event(self, topic: str) -> None:
        await asyncio.Event().wait()

    async def event_checkpointed(self, event: Any) -> None: ...


class SilentSubject(ListenerSubject):
    """Offers nothing that could show that no event ever comes."""

    def make(self) -> NoListener:
        return NoListener()

    def arguments(self, topic: str) -> tuple[str]:
        return (topic,)


class TimelessSubject(SilentSubject):
    source = False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nothing is ever awaited
@pytest.mark.parametrize(
    ("kind", "made"),
    [("serializer", NoSerializer), ("codec", NoCodec), ("listener", SilentSubject), ("listener", TimelessSubject)],
)
def test_a_plugin_that_implements_nothing_gets_no_level(kind: str, made: type) -> None:
    report = run_sync(plugin_bench(Kind(kind), made, seed=1))
    assert report.complete
    assert report.level is None
    assert report.exit_code == 1
    if kind == "listener":
        assert "lis-02, lis-03 could not be asked without" in report.verdict


def results(*statuses: tuple[Level, Status, str]) -> list[Result]:
    out = []
    for n, (level, status, kind) in enumerate(statuses):
        gap = Gap(kind, f"thing{n}", "…") if status is Status.NOT_DECLARED else None
        out.append(Result(a_case(f"x-{n:02}", None, level), status, gap=gap))
    return out


def a_report(found: list[Result], asked: Level = Level.FULL, complete: bool = True) -> Report:
    return Report("store", "x://", asked, "1.0", found, complete, 1)


B, F = Level.BASE, Level.FULL
P, N = Status.PASSED, Status.NOT_DECLARED


@pytest.mark.parametrize(
    ("found", "level"),
    [
        ([(B, P, ""), (F, P, "")], Level.FULL),
        ([(B, P, ""), (F, N, "capability")], Level.FULL),
        ([(B, P, ""), (F, N, "hook")], Level.BASE),
        ([(B, P, ""), (B, N, "hook"), (F, P, "")], Level.BASE),
        ([(B, P, ""), (F, Status.FAILED, "")], None),
        ([(B, P, ""), (F, Status.ERROR, "")], None),
        ([(B, N, "capability"), (F, N, "capability")], None),
        ([], None),
    ],
)
def test_levels_follow_from_statuses(found: list[Any], level: Level | None) -> None:
    report = a_report(results(*found))
    assert report.level is level


def test_a_filtered_or_cut_run_has_no_level() -> None:
    assert a_report(results((B, P, "")), complete=False).level is None


def test_gaps_are_part_of_the_verdict() -> None:
    assert a_report(results((B, P, ""), (F, N, "capability"))).verdict == "FULL 1.0, not thing1"


def test_a_case_needs_a_sentence_and_an_id_of_its_own() -> None:
    async def mute(t: Trial) -> None: ...

    with pytest.raises(ValueError, match="docstring"):
        case("mute-01", Level.BASE, "X")(mute)
    mute.__doc__ = "It speaks."
    with pytest.raises(ValueError, match="taken"):
        case("key-01", Level.BASE, "X")(mute)


def test_the_specification_s_193_store_cases_exist() -> None:
    cases = load_cases(Kind.STORE)
    assert len(cases) == 193
    assert sum(c.level is Level.BASE for c in cases) == 79
    assert len(load_cases(Kind.SERIALIZER)) == 24
    assert len(load_cases(Kind.CODEC)) == 12
    assert len(load_cases(Kind.LISTENER)) == 34


def test_cases_are_picked_by_id_glob_and_word() -> None:
    cases = load_cases(Kind.STORE)
    assert [c.id for c in select(cases, "create-06")] == ["create-06"]
    assert {c.id for c in select(cases, "create-0*")} == {f"create-0{n}" for n in range(1, 10)}
    assert not {c.id for c in select(cases, "create, not create-06")} & {"create-06", "key-01"}


def test_paths_join_before_the_query() -> None:
    assert join_url("s3://b/p?endpoint=http://h:1", "x/y") == "s3://b/p/x/y?endpoint=http://h:1"
    assert join_url("memory://", "x") == "memory://x"


async def test_the_library_call_judges_a_store_by_url_and_leaves_nothing(tmp_path: Path) -> None:
    report = await run(f"file://{tmp_path}/s", only=QUICK)
    assert {r.status for r in report.results} == {Status.PASSED}
    assert report.leftovers == []
    assert not list((tmp_path / "s").rglob("*.obj"))
    assert not (tmp_path / "s" / clean_up.ROOT).exists()
    json.loads(report.to_json())


def test_a_callable_is_a_subject_too(tmp_path: Path) -> None:
    report = run_sync(MakeFolder(str(tmp_path)), only=QUICK)
    assert {r.status for r in report.results} == {Status.PASSED}


class MakeFolder:
    def __init__(self, root: str) -> None:
        self.root = root

    def __call__(self, prefix: str) -> FolderStore:
        return FolderStore(f"folder-lab://{self.root}/{prefix}")


def test_a_store_out_of_reach_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OutOfReach):
        run_sync(f"file://{tmp_path}/file/x", only=QUICK)


async def test_sweep_removes_only_runs_whose_deadline_is_past(tmp_path: Path) -> None:
    subject = FolderSubject(str(tmp_path))
    base = subject.make_url()
    for run_id, deadline in (("dead", time.time() - 1), ("alive", time.time() + 1000)):
        await clean_up.write_marker(subject, base, run_id, deadline, ["key-01"])
        store = subject.open(subject.at(base, f"{clean_up.ROOT}/{run_id}/key-01"))
        await store.create("k", b"x")
    other = subject.open(subject.at(base, "not-ours"))
    await other.create("k", b"precious")
    removed, left = await clean_up.sweep(subject, base)
    assert (removed, left) == (["dead"], [])
    assert await subject.open(subject.at(base, f"{clean_up.ROOT}/alive/key-01")).get("k") == b"x"
    assert await other.get("k") == b"precious"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "perdure.conformance",
            f"file://{tmp_path}/s",
            "--level",
            "full",
            "-k",
            "create-07, stream-10",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # a background job is started with SIGINT ignored, and hands that down
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    end = time.monotonic() + 60
    while not list((tmp_path / "s").rglob("*.obj")) and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(number)
    assert process.wait(60) == 130
    assert not list((tmp_path / "s").rglob("*.obj"))


def test_what_could_not_be_swept_in_time_is_swept_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, hurried = clean_up.sweep_urls, []

    async def no_time_while_cases_run(subject: Any, urls: list[str], run: str, seconds: float = 30.0) -> list[str]:
        if seconds > 30:
            return await sweep(subject, urls, run, seconds)
        hurried.extend(urls)
        return urls

    monkeypatch.setattr(clean_up, "sweep_urls", no_time_while_cases_run)
    report = run_sync(f"file://{tmp_path}/s", only=QUICK)
    assert hurried
    assert report.leftovers == []
    assert not list((tmp_path / "s").rglob("*.obj"))
