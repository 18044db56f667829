"""Right stores, built differently, pass; the base level of the local store fits its budget."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance_lab.broken_plugins import FolderListener, FramedCodec, subject
from conformance_lab.subjects import FolderSubject, WireSubject

from perdure.conformance import run_sync
from perdure.conformance.plugin_bench import PluginBench
from perdure.conformance.register import Kind, Level, Status
from perdure.conformance.render import failure_text
from perdure.conformance.report import Report


def assert_right(report: Report) -> None:
    bad = [failure_text(r) for r in report.results if r.status in (Status.FAILED, Status.ERROR)]
    assert not bad, "\n".join(bad)


def test_the_memory_store_reaches_base_but_for_one_process() -> None:
    report = run_sync("memory://right")
    assert_right(report)
    assert report.level is Level.BASE
    assert "multi_process" in report.gaps


def test_the_local_store_reaches_base(tmp_path: Path) -> None:
    report = run_sync(f"file://{tmp_path}/s")
    assert_right(report)
    assert report.level is Level.BASE


def test_the_laboratory_s_folder_store_reaches_base(tmp_path: Path) -> None:
    report = run_sync(FolderSubject(str(tmp_path)))
    assert_right(report)
    assert report.level is Level.BASE


def test_the_laboratory_s_wire_store_keeps_its_word_through_faults(tmp_path: Path) -> None:
    subject = WireSubject(str(tmp_path)).start()
    try:
        report = run_sync(
            subject, level="full", only="create-06, fault-02, fault-03, fault-09, fault-12, fault-14, crash-11"
        )
    finally:
        subject.stop()
    assert_right(report)
    assert all(r.status is Status.PASSED for r in report.results)
    assert sum(r.evidence.faults_fired for r in report.results) > 40


def test_the_local_store_survives_every_system_call_and_power_cut(tmp_path: Path) -> None:
    report = run_sync(f"file://{tmp_path}/s", level="full", only="crash-03, crash-08, fault-17")
    assert_right(report)


@pytest.mark.parametrize(("kind", "made"), [("codec", FramedCodec), ("listener", FolderListener)])
def test_right_plugins_reach_base(kind: str, made: type, tmp_path: Path) -> None:
    bench = PluginBench(Kind(kind), subject(kind, made, str(tmp_path)), seed=3)
    assert_right(run_sync(bench))
