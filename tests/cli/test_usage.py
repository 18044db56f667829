"""What the command line says where nothing can be done, and what it must not cost."""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import here

from perdure import errors
from perdure.care.opening import opened
from perdure.cli import exits, show, target, terminal

CODES = {
    errors.WorkflowExecutionError: 1,
    errors.WorkflowExistsError: 2,
    errors.EncodeError: 2,
    errors.WorkflowNotFoundError: 3,
    errors.WorkflowStillActiveError: 4,
    errors.WorkflowNotResumableError: 4,
    errors.QueueFull: 4,
    errors.StoreError: 5,
    errors.StoreUnavailable: 5,
    errors.PermissionDenied: 5,
    errors.FormatError: 5,
    errors.ClusterError: 5,
    errors.PluginError: 5,
    errors.WorkflowCancellationError: 6,
    errors.CorruptedError: 7,
    errors.DecodeError: 7,
}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No store is set, and no cluster is to be found."""
    monkeypatch.delenv("PERDURE_STORAGE", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", "/nonexistent")


@pytest.mark.parametrize(("kind", "code"), CODES.items(), ids=lambda v: getattr(v, "__name__", str(v)))
def test_each_error_has_its_exit_code(kind: type[Exception], code: int) -> None:
    assert exits.code_of(pickle.loads(pickle.dumps(kind("x")))) == code


def test_every_error_of_perdure_has_some_exit_code() -> None:
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.PerdureError)]
    assert all(exits.code_of(kind("x")) is not None for kind in kinds)


def test_help_imports_no_ray_and_nothing_heavy() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['perdure', '--help']\n"
        "from perdure.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'ray', 'numpy', 'pyarrow', 's3fs', 'gcsfs', 'redis'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    names = ("run", "demo", "list", "status", "describe", "output", "resume", "cancel", "delete", "logs", "plugins")
    assert all(name in done.stdout for name in names)


def test_without_a_store_and_without_a_cluster_the_way_out_is_told(alone: None) -> None:
    found = here("list")
    assert found.code == 2
    assert "--storage" in found.err
    assert "PERDURE_STORAGE" in found.err
    assert found.out == ""


def test_an_unknown_scheme_names_what_is_installed(alone: None) -> None:
    found = here("list", "-s", "ftpx://a/b")
    assert found.code == 5
    assert "file" in found.err


def test_a_cluster_that_does_not_answer_is_told_at_once(alone: None) -> None:
    found = here("status", "x", "--address", "127.0.0.1:1")
    assert found.code == 5
    assert "127.0.0.1:1" in found.err


@pytest.mark.parametrize(
    "words",
    [
        ["list", "-o", "xml"],
        ["status"],
        ["resume"],
        ["resume", "a", "--all"],
        ["resume", "a", "--failed"],
        ["logs"],
        ["logs", "a", "--coordinator"],
        ["run", "no_colon"],
        ["run", "m:x", "--metadata", "{"],
        ["run", "m:x", "--id", ""],
        ["run", "m:x", "--no-wait"],
        ["run", "m:x", "--if-exists", "maybe"],
        ["start", "--head"],
        ["start", "--storage", "/tmp/x"],
        ["start", "--head", "--storage", "memory://x"],
        ["start", "--head", "--storage", "/tmp/x", "--lease-seconds", "0"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_code_2(alone: None, words: list[str]) -> None:
    assert here(*words).code == 2


def test_plugins_are_listed_with_their_health(alone: None) -> None:
    rows = here("plugins", "-o", "json").json
    file = next(row for row in rows if (row["kind"], row["name"]) == ("stores", "file"))
    assert file["health"] == "ok"
    assert set(file) == {"kind", "name", "distribution", "version", "object", "health", "error"}


def test_words_become_values() -> None:
    words = ["5", "[1, 2]", "abc", '"7"', "a=b=c", "n=2", "x==", "a b"]
    assert target.words_to_values(words) == ((5, [1, 2], "abc", "7", "a b"), {"a": "b=c", "n": 2, "x": "="})


def test_targets_that_are_no_dag_say_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "clitargets.py").write_text("number = 5\ndef nothing():\n    return 5\n")
    for words, said in {
        "clitargets:number": "int",
        "clitargets:nothing": "returned int",
        "clitargets:other": "it has: number, nothing",
        "climissing:x": "no module",
        "climissing.py:x": "no such file",
    }.items():
        with pytest.raises(target.TargetError, match=said):
            target.load(words, (), {})


def test_values_that_json_cannot_say_are_null_with_their_repr(capsys: pytest.CaptureFixture[str]) -> None:
    for value, said in [({1: 2}, None), (float("nan"), None), ({"a": [1]}, {"a": [1]}), ({1}, None), ((1, 2), [1, 2])]:
        show.value(terminal.Terminal(terminal.Format.json), "w", None, value)
        shown = json.loads(capsys.readouterr().out)
        assert (shown["value"], shown["repr"]) == (said, repr(value))


def test_a_bug_is_shown_whole_with_a_code_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    import typer

    with pytest.raises(typer.Exit) as end, terminal.Terminal().failures():
        json.loads("{")  # a ValueError that nobody raised on purpose
    assert end.value.exit_code == 70
    assert "Traceback" in capsys.readouterr().err


def test_arguments_that_a_target_does_not_take_are_told_with_its_signature(alone: None, tmp_path: Path) -> None:
    file = tmp_path / "takes_two.py"
    file.write_text(
        "import ray\n\n\n@ray.remote\ndef add(a, b=2):\n    return a + b\n\n\n"
        "def dag(size):\n    return add.bind(size)\n"
    )
    for word, shown in ((f"{file}:dag", "dag(size)"), (f"{file}:add", "add(a, b=2)")):
        done = here("run", word)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        assert f"{shown}: missing a required argument" in done.err
        sys.modules.pop("takes_two")
    done = here("run", f"{file}:dag", "1", "2")
    assert "too many positional arguments" in done.err


def test_resume_starts_no_cluster_where_there_is_nothing_to_resume(
    alone: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("a cluster is started")

    monkeypatch.setattr("perdure.cli.cluster_side.join", never)
    store = f"file://{tmp_path / 'store'}"
    assert here("resume", "x", "-s", store).code == 5  # there is no store
    assert here("resume", "x").code == 2  # and none is named
    assert here("import", "/nonexistent", store).code == 2
    asyncio.run(_make(store))
    assert here("resume", "x", "-s", store).code == 3
    done = here("resume", "--all", "-s", store, "-o", "json")
    assert (done.code, json.loads(done.out)) == (0, [])


async def _make(url: str) -> None:
    async with opened(url, make=True):
        pass


def test_a_key_file_that_is_missing_is_told(tmp_path: Path) -> None:
    done = here("keys", "public", str(tmp_path / "keys"), "a")
    assert done.code == 2
    assert "perdure keys new" in done.err
