"""What a resume would do, told before it is done, and which code it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import lines

from perdure import registry, workflow
from perdure.cli.store_side import StoreSide
from perdure.code_names import PYTHON
from perdure.errors import DecodeError, PluginError
from perdure.explaining import Facts, explanation
from perdure.graph import Function

MODULE = "jobs_of_explain"
FIRST = """
import os

import numpy
import ray


def note(path, text):
    with open(path, "a") as file:
        file.write(text + "\\n")


@ray.remote
def load(path):
    note(path, "load")
    return numpy.arange(100_000)


@ray.remote(max_retries=0)
def total(path, values):
    note(path, "total 1")
    raise ValueError("a bug")


@ray.remote(max_retries=0)
def publish(path, value):
    note(path, "publish 1")
    if not os.path.exists(path + ".ready"):
        raise OSError("not ready")
    return f"1: {value}"
"""
SECOND = (
    FIRST.replace('raise ValueError("a bug")', "return int(values.sum())")
    .replace('"total 1"', '"total 2"')
    .replace('"publish 1"', '"publish 2"')
    .replace('f"1: {value}"', 'f"2: {value}"')
)


@pytest.fixture(scope="module")
def jobs(storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A module with the code of today; ``jobs(text)`` gives it other code."""
    folder = tmp_path_factory.mktemp("modules")
    sys.path.insert(0, str(folder))

    def with_code(text: str) -> Any:
        (folder / f"{MODULE}.py").write_text(text)
        sys.modules.pop(MODULE, None)
        importlib.invalidate_caches()
        for cached in (folder / "__pycache__").glob("*"):
            cached.unlink()  # the same second, the same size: Python would take the old code
        return importlib.import_module(MODULE)

    yield with_code
    sys.path.remove(str(folder))
    sys.modules.pop(MODULE, None)


def _run(module: Any, path: Path, workflow_id: str) -> None:
    dag = module.publish.bind(str(path), module.total.bind(str(path), module.load.bind(str(path))))
    with pytest.raises(workflow.WorkflowExecutionError, match="a bug"):
        workflow.run(dag, workflow_id=workflow_id)


def _actions(found: dict[str, Any]) -> dict[str, str]:
    return {task["task_id"].rpartition(".")[2]: task["action"] for task in found["tasks"]}


def test_explain_tells_what_is_reused_what_runs_and_why(jobs: Any, fresh: str, tmp_path: Path) -> None:
    _run(jobs(FIRST), tmp_path / "notes", fresh)
    found = workflow.explain(fresh)
    assert (found["resumable"], found["reason"], found["status"]) == (True, None, "FAILED")
    assert _actions(found) == {"load": "reuse", "total": "run", "publish": "run"}
    because = {task["task_id"].rpartition(".")[2]: task["because"] for task in found["tasks"]}
    assert because["load"] == "its result is stored"
    assert because["total"] == "it failed: ValueError: a bug"
    assert because["publish"] == f"after {MODULE}.total"
    assert (found["tasks_reused"], found["tasks_to_run"], found["problems"]) == (1, 2, [])
    assert {c["function"]: c["changed"] for c in found["code"]} == {
        f"{MODULE}.total": False,
        f"{MODULE}.publish": False,
    }
    assert [f["what"] for f in found["environment"] if f["differs"]] == []
    assert {f["what"]: f["stored"] for f in found["environment"]}["Python"] == PYTHON
    assert lines(tmp_path / "notes") == ["load", "total 1"]  # nothing ran


def test_changed_code_is_told_and_run_only_when_asked_for(jobs: Any, fresh: str, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    _run(jobs(FIRST), path, fresh)
    jobs(SECOND)
    found = workflow.explain(fresh)
    assert {c["function"].rpartition(".")[2]: c["changed"] for c in found["code"]} == {"total": True, "publish": True}
    assert "code='current' the new one" in found["code"][0]["note"]
    with pytest.raises(workflow.WorkflowExecutionError, match="a bug"):
        workflow.resume(fresh)
    with pytest.raises(workflow.WorkflowExecutionError, match="not ready"):
        workflow.resume(fresh, code="current")
    assert lines(path) == ["load", "total 1", "total 1", "total 2", "publish 2"]


def test_current_code_is_recorded_and_is_the_stored_code_from_then_on(jobs: Any, fresh: str, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    _run(jobs(FIRST), path, fresh)
    jobs(SECOND)
    with pytest.raises(workflow.WorkflowExecutionError, match="not ready"):
        workflow.resume(fresh, code="current")
    jobs(FIRST)
    (tmp_path / "notes.ready").touch()
    assert workflow.resume(fresh) == f"2: {sum(range(100_000))}"
    assert lines(path).count("load") == 1


def test_current_code_that_can_not_be_found_is_refused_and_nothing_changes(
    jobs: Any, fresh: str, tmp_path: Path
) -> None:
    _run(jobs(FIRST), tmp_path / "notes", fresh)
    jobs(FIRST.replace("def total", "def renamed"))
    with pytest.raises(workflow.WorkflowNotResumableError, match=rf"current code of {MODULE}\.total can't be found"):
        workflow.resume(fresh, code="current")
    found = workflow.explain(fresh)
    assert {c["function"].rpartition(".")[2]: c["here"] is None for c in found["code"]} == {
        "total": True,
        "publish": False,
    }
    with pytest.raises(ValueError, match="code='newest': expected 'stored' or 'current'"):
        workflow.resume(fresh, code="newest")


def test_values_that_are_missing_or_cut_are_told(jobs: Any, fresh: str, tmp_path: Path, storage: Path) -> None:
    module = jobs(FIRST)
    before = set((storage / "blobs").rglob("*.obj")) if (storage / "blobs").exists() else set()
    text = FIRST.replace("100_000", "100_001")  # a value of its own
    module = jobs(text)
    _run(module, tmp_path / "notes", fresh)
    (blob,) = set((storage / "blobs").rglob("*.obj")) - before
    data = blob.read_bytes()
    blob.write_bytes(data[:-1])
    (problem,) = workflow.explain(fresh)["problems"]
    assert problem["task_id"] == f"{MODULE}.total"
    assert f"is damaged: {len(data) - 1} bytes of {len(data)}" in problem["what"]
    blob.unlink()
    found = workflow.explain(fresh)
    (problem,) = found["problems"]
    assert "is missing from the store" in problem["what"]
    assert [t["task_id"] for t in found["tasks"] if "can't be read" in t["because"]] == [f"{MODULE}.load"]
    blob.write_bytes(data)
    assert workflow.explain(fresh)["problems"] == []


def test_a_serializer_that_is_not_installed_is_told(
    jobs: Any, fresh: str, tmp_path: Path, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(jobs(FIRST), tmp_path / "notes", fresh)
    side = StoreSide(f"file://{storage}")
    assert side.explain(fresh)["problems"] == []
    load = registry.load

    def without_arrow(group: str, name: str) -> object:
        if name == "arrow":
            raise PluginError("no serializer named 'arrow'; installed: data, pickle")
        return load(group, name)

    monkeypatch.setattr(registry, "load", without_arrow)
    problems = side.explain(fresh)["problems"]
    assert [p["task_id"] for p in problems] == [f"{MODULE}.total"]
    assert "needs the serializer 'arrow'" in problems[0]["what"]


def test_finished_and_unknown_workflows_are_explained_too(jobs: Any, fresh: str, tmp_path: Path) -> None:
    module = jobs(FIRST)
    workflow.run(module.load.bind(str(tmp_path / "notes")), workflow_id=fresh)
    found = workflow.explain(fresh)
    assert (found["resumable"], found["tasks_to_run"], found["code"]) == (False, 0, [])
    assert found["reason"] == "it has succeeded: a resume gives the stored output"
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.explain("no such workflow")


def test_a_finished_workflow_whose_output_is_gone_is_told(jobs: Any, fresh: str, tmp_path: Path, storage: Path) -> None:
    before = set((storage / "blobs").rglob("*.obj")) if (storage / "blobs").exists() else set()
    module = jobs(FIRST.replace("100_000", "100_002"))
    workflow.run(module.load.bind(str(tmp_path / "notes")), workflow_id=fresh)
    (blob,) = set((storage / "blobs").rglob("*.obj")) - before
    blob.unlink()
    found = workflow.explain(fresh)
    assert found["reason"].startswith("it has succeeded, but its output can't be read")
    assert "is missing from the store" in found["problems"][0]["what"]


# -- other versions --------------------------------------------------------------------------------------------------


def test_other_versions_and_packages_are_told() -> None:
    report: dict[str, Any] = {"tasks": []}
    facts = Facts(report, [Function("m.f", "d", None, "c1", "3.10")], ("2.47.1", "0.0.9", "abc"), "3.10")
    found = explanation(facts, python="3.11", ray="2.60.0", package="def", code={"m.f": "c2"})
    assert {f["what"]: (f["stored"], f["differs"]) for f in found["environment"]} == {
        "Python": ("3.10", True),
        "Ray": ("2.47.1", True),
        "Perdure": ("0.0.9", True),
        "code package": ("abc", True),
    }
    assert found["code"][0]["changed"] is None
    assert "stored by Python 3.10" in found["code"][0]["note"]


def test_code_of_another_python_is_refused_naming_both() -> None:
    from perdure.graph import Payload
    from perdure.onray.loading import Loader, load_function
    from perdure.values import Values

    def local() -> int:
        return 1

    data = Values(("pickle",)).dumps(local)
    function = Function("m.local", "no such digest", Payload(data, None, len(data)), "c", "3.2")
    with pytest.raises(DecodeError, match=rf"m\.local was stored by Python 3\.2, and Python {PYTHON} runs here"):
        load_function(function, Loader("memory://x", {}, "here"))
