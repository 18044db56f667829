"""The project's own serializers, codecs and listeners, each through every case of its kind."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from support.distributions import run
from support.plugin_subjects import target

from perdure.conformance import run_sync
from perdure.conformance.plugin_bench import plugin_bench
from perdure.conformance.register import Kind, Level, Status
from perdure.conformance.render import failure_text
from perdure.conformance.report import Report


def judged(kind: str, name: str, folder: Path) -> Report:
    subject = target(kind, name, folder)
    with contextlib.closing(subject) if hasattr(subject, "close") else contextlib.nullcontext():
        report = run_sync(plugin_bench(Kind(kind), subject, seed=5), level="full")
    bad = [failure_text(x) for x in report.results if x.status in (Status.FAILED, Status.ERROR)]
    assert not bad, "\n".join(bad)
    return report


@pytest.mark.parametrize(
    ("kind", "name", "gaps"),
    [
        ("serializer", "data", []),
        ("serializer", "arrow", []),
        ("serializer", "pickle", ["runs_code"]),
        ("codec", "zstd", ["integrity"]),
        ("codec", "aes-gcm", []),
        ("listener", "timer", ["source"]),
        ("listener", "http", ["queues"]),
    ],
)
def test_a_plugin_of_ours_reaches_full(kind: str, name: str, gaps: list[str], tmp_path: Path) -> None:
    report = judged(kind, name, tmp_path)
    assert (report.level, report.gaps) == (Level.FULL, gaps)


def test_the_listener_of_the_guide_reaches_base_as_its_pytest_class(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "writing-a-listener.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "test_guide.py").write_text("\n".join(blocks))
    done = run(
        ["-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_guide.py"], cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "13 passed, 1 skipped" in done.stdout
