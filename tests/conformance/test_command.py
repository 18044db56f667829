"""The command: outputs, exit codes, hooks, and the pytest class."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from typer.testing import CliRunner

from perdure.conformance import StoreConformance
from perdure.conformance.command import app
from perdure.conformance.testing import overrides

runner = CliRunner()


def test_json_names_rule_expectation_and_command(tmp_path: Path) -> None:
    done = runner.invoke(app, [f"file://{tmp_path}/s", "-k", "create-02, key-02", "-o", "json", "-q"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert {c["id"]: c["status"] for c in report["cases"]} == {"create-02": "PASSED", "key-02": "PASSED"}
    assert report["level"] is None
    assert all(c["assertions"] > 0 for c in report["cases"])


def test_all_formats_are_written_into_a_folder_with_histories(tmp_path: Path) -> None:
    args = [f"file://{tmp_path}/s", "-k", "create-12", "--level", "full", "--out", str(tmp_path / "out"), "-q"]
    for name in ("json", "junit", "html", "md", "badge", "text"):
        args += ["-o", name]
    assert runner.invoke(app, args).exit_code == 0
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        "conformance.json", "conformance.xml", "conformance.html", "conformance.md", "conformance.svg", "conformance.txt",
        "histories",
    }  # fmt: skip
    assert ET.parse(out / "conformance.xml").getroot().attrib["failures"] == "0"
    again = runner.invoke(app, ["recheck", str(out)])
    assert again.exit_code == 0, again.output
    assert "linearizable" in again.stdout


def test_a_broken_store_fails_with_a_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_hooks.py").write_text(
        "from conformance_lab.subjects import FolderSubject\n"
        "from conformance_lab.broken_writes import ExistsThenWrite\n"
        f"class Mine(FolderSubject):\n    def __init__(self): super().__init__({str(tmp_path / 'data')!r}, ExistsThenWrite)\n"
    )
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    done = runner.invoke(
        app, ["--hooks", "my_hooks:Mine", "-k", "create-06", "--out", str(tmp_path / "o"), "-o", "html", "-q"]
    )
    assert done.exit_code == 1
    assert "exactly one of 16 concurrent creators" in done.stdout
    assert "<svg" in (tmp_path / "o" / "conformance.html").read_text()


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ([], 2), (["no-url"], 2), (["memory://x", "-k", "no-such-case"], 2), (["memory://x", "-o", "pdf"], 2),
        (["no-such-scheme://x"], 5), (["--explain", "create-06"], 0), (["--explain", "nothing-01"], 2),
        (["--list", "--level", "full"], 0), (["--suggest-hooks"], 0), (["--self-test"], 0),
        (["memory://x", "--suite", "0.9"], 2), (["memory://x", "--suite", "new"], 2),
        (["memory://x", "--budget", "0.001", "-q"], 8), (["--serializer", "no-such-thing"], 2), (["memory://x", "-k", "create-06", "--fail-on", "not-declared", "-q"], 1),
    ],
)  # fmt: skip
def test_exit_codes(args: list[str], code: int) -> None:
    assert runner.invoke(app, args).exit_code == code


def test_a_serializer_is_judged_by_its_name() -> None:
    done = runner.invoke(app, ["--serializer", "data", "-k", "ser-02, ser-06, ser-21", "-q"])
    assert done.exit_code == 0, done.output


class TestMemory(StoreConformance):
    url = "memory://pytest"


def test_the_pytest_class_has_a_test_for_each_base_case_and_no_silent_override() -> None:
    assert hasattr(TestMemory, "test_create_06")
    assert not hasattr(TestMemory, "test_create_07")
    with pytest.raises(TypeError, match="overrides"):

        class Sly(StoreConformance):
            url = "memory://sly"

            def test_create_02(self) -> None: ...

    class Open(StoreConformance):
        url = "memory://open"

        @overrides("the service forbids it")
        def test_create_02(self) -> None: ...

    assert Open.test_create_02.conformance_override == "the service forbids it"  # type: ignore[attr-defined]
