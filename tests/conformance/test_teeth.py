"""A sample of the broken stores is caught by the case named for each; the whole matrix is the script's."""

from __future__ import annotations

from pathlib import Path

import pytest
from conformance_lab.broken import BROKEN, Broken
from conformance_lab.broken_plugins import BROKEN as PLUGINS
from conformance_lab.broken_plugins import BrokenPlugin, subject
from conformance_lab.subjects import FolderSubject, WireSubject

from perdure.conformance import Report, run_sync
from perdure.conformance.plugin_bench import PluginBench
from perdure.conformance.register import Kind, Status, load_cases

TRIES = (7, 8, 9, 10, 11)
"""Seeds: a case that looks for a race needs luck on a busy machine, but not five times."""
SAMPLE = (
    "create = exists, then write", "create writes into the final name", "create ignores the condition",
    "equal content counts as created", "unsorted list", "start_after inclusive", "temporary files are listed",
    "delete of a missing key raises", "range end inclusive", 'missing key gives b""', "folds case", "NFC-normalises keys",
    "percent-decodes keys", "cuts long keys", "keeps values in memory until aclose", "no sync at all, claims power",
    "never syncs a folder", "secret in repr", "raises KeyError", "error can't be unpickled", "blocks the loop",
    "threading.Lock only, claims multi_process", "get_many sorted, not aligned", "delete is lazy",
    "409 reported as AlreadyExists", "takes short bodies", "server ignores the condition",
)  # fmt: skip
PLUGIN_SAMPLE = (
    "TupleIsList",
    "PickleFallback",
    "DamageIsValueError",
    "NoChecksum",
    "NoLimit",
    "AcknowledgesAtPoll",
    "SwallowsCancel",
)


@pytest.mark.parametrize("broken", [b for b in BROKEN if b.fault in SAMPLE], ids=lambda b: b.fault)
def test_a_broken_store_is_caught_by_its_case(broken: Broken, tmp_path: Path) -> None:
    due = list(broken.caught_by[:2])
    for seed in TRIES:
        report = judged(broken, str(tmp_path / str(seed)), ", ".join(due), seed)
        failed = [result for result in report.results if result.status is Status.FAILED]
        for result in failed:
            assert result.expected
            assert result.command
        due = [case for case in due if case not in {result.case.id for result in failed}]
        if not due:
            return
    pytest.fail(f"{due} found nothing in {len(TRIES)} runs")


def judged(broken: Broken, folder: str, only: str, seed: int) -> Report:
    Path(folder).mkdir()
    if not broken.wire:
        return run_sync(FolderSubject(folder, broken.store), level="full", only=only, seed=seed)
    wire = WireSubject(folder, broken.store, broken.sloppy).start()
    try:
        return run_sync(wire, level="full", only=only, seed=seed)
    finally:
        wire.stop()


@pytest.mark.parametrize(
    ("kind", "broken"),
    [(k, b) for k, table in PLUGINS.items() for b in table if b.make.__name__ in PLUGIN_SAMPLE],
    ids=lambda x: getattr(x, "fault", x),
)
def test_a_broken_plugin_is_caught_by_its_case(kind: str, broken: BrokenPlugin, tmp_path: Path) -> None:
    bench = PluginBench(Kind(kind), subject(kind, broken.make, str(tmp_path)), seed=7)
    report = run_sync(bench, level="full", only=broken.caught_by[0], seed=7)
    assert [r.status for r in report.results] == [Status.FAILED]


@pytest.mark.parametrize("kind", ["store", "serializer", "codec", "listener"])
def test_every_case_has_a_broken_subject_that_it_must_fail(kind: str) -> None:
    table = BROKEN if kind == "store" else PLUGINS[kind]
    named = {i for b in table for i in b.caught_by}
    assert {c.id for c in load_cases(Kind(kind)) if not c.measures} == named
