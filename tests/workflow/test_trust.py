"""What may be loaded from a store: the trust levels, end to end, and attacks by somebody who can write to the store."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.runs import cluster

from perdure import workflow
from perdure.errors import CorruptedError, DecodeError, EncodeError, FormatError, SignatureError
from perdure.keyring import Key
from perdure.seal import split
from perdure.value_settings import ValueSettings, chosen, is_temporary, settings_from

TASKS = """
import os

import numpy
import ray

from perdure import workflow


@ray.remote
def one():
    return 1


@ray.remote
def add(a, b):
    return a + b


@ray.remote
def fib(n):
    return n if n < 2 else workflow.continuation(add.bind(fib.bind(n - 1), fib.bind(n - 2)))


@ray.remote
def array(n):
    return numpy.arange(n)


@ray.remote
def total(values):
    return int(values.sum())


@ray.remote(max_retries=0)
def fails():
    raise KeyError("missing")


@workflow.options(catch_exceptions=True)
@ray.remote(max_retries=0)
def caught():
    raise KeyError("missing")


@ray.remote
def shown(pair):
    return repr(pair)


@ray.remote
def gives_an_object():
    return object.__new__(Opaque)


class Opaque:
    pass


@ray.remote(max_retries=3, retry_exceptions=[OSError])
def flaky(path):
    with open(path, "a") as file:
        file.write("x")
    if os.path.getsize(path) < 3:
        raise FileNotFoundError("not yet")
    return os.path.getsize(path)


def not_a_task():
    return 1
"""

Tasks = Any


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tasks]:
    """A module that workers can import, because its folder is on this driver's path."""
    folder = tmp_path_factory.mktemp("modules")
    (folder / "tasks_of_trust.py").write_text(TASKS)
    sys.path.insert(0, str(folder))
    import tasks_of_trust  # type: ignore[import-not-found]

    yield tasks_of_trust
    sys.path.remove(str(folder))
    del sys.modules["tasks_of_trust"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(Key.generate("k1").line() + "\n")
    path.chmod(0o600)
    return path


def _segments(store: Path, workflow_id: str) -> list[Path]:
    return sorted((store / "w" / workflow_id / "j").iterdir())


# -- signed ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def signed(tasks: Tasks, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("signed") / "store"
    with cluster(folder, trust="signed", keys=keys):
        for name in ("a", "b"):
            workflow.run(tasks.add.bind(100, tasks.one.bind()), workflow_id=name)
        workflow.run(tasks.total.bind(tasks.array.bind(100_000)), workflow_id="large")
        yield folder


def test_signed_workflows_run_and_are_read_back(signed: Path, tasks: Tasks) -> None:
    assert workflow.get_output("a") == 101
    assert workflow.run(tasks.fib.bind(5), workflow_id="fib") == 5
    assert workflow.get_output("large") == sum(range(100_000))
    assert workflow.run(tasks.shown.bind(tasks.caught.bind())) == "(None, KeyError('missing'))"


def test_every_journal_object_in_a_signed_store_is_signed(signed: Path) -> None:
    found = [path for part in ("w", "c", "in") for path in (signed / part).rglob("*") if path.is_file()]
    assert len(found) > 10
    assert [str(path) for path in found if not split(path.read_bytes())[1]] == []


@pytest.fixture
def copy_of(signed: Path, tmp_path: Path) -> Path:
    """What an attacker does, he does to a copy; it is read by tools, which verify as coordinators do."""
    folder = tmp_path / "store"
    shutil.copytree(signed, folder, ignore=shutil.ignore_patterns(".perdure*"))
    return folder


def _read(folder: Path, keys: Path, workflow_id: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    from perdure.cli.store_side import StoreSide

    monkeypatch.setenv("PERDURE_TRUST", "signed")
    monkeypatch.setenv("PERDURE_KEYS", str(keys))
    return StoreSide(f"file://{folder}").answer(workflow_id, None)


def test_swapped_segments_of_two_workflows_are_refused(
    copy_of: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _read(copy_of, keys, "a", monkeypatch).payload is not None
    one, two = _segments(copy_of, "a")[-1], _segments(copy_of, "b")[-1]
    one_bytes, two_bytes = one.read_bytes(), two.read_bytes()
    one.write_bytes(two_bytes)
    two.write_bytes(one_bytes)
    for workflow_id in ("a", "b"):
        with pytest.raises(SignatureError, match="not valid for this place"):
            _read(copy_of, keys, workflow_id, monkeypatch)


def test_a_segment_whose_signature_was_cut_off_is_refused(
    copy_of: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = _segments(copy_of, "a")[-1]
    last.write_bytes(bytes(split(last.read_bytes())[0]))
    with pytest.raises(SignatureError, match="is not signed"):
        _read(copy_of, keys, "a", monkeypatch)


def test_an_older_segment_at_a_newer_place_is_refused(
    copy_of: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *_, last = _segments(copy_of, "a")
    last.write_bytes(first.read_bytes())
    with pytest.raises(SignatureError, match="not valid for this place"):
        _read(copy_of, keys, "a", monkeypatch)


def test_a_changed_blob_is_refused_before_it_is_loaded(signed: Path, tasks: Tasks, tmp_path: Path) -> None:
    proof = tmp_path / "ran"

    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(proof),)

    from perdure.values import Values

    workflow.run(tasks.array.bind(50_000), workflow_id="blob")
    before = {p for p in (signed / "blobs").rglob("*") if p.is_file()}
    assert before
    for path in before:
        path.write_bytes(Values(("pickle",)).dumps(Evil()))
    # as a driver that has no live copy of the value
    import msgspec

    from perdure.graph import Payload
    from perdure.onray.outputs import load_output
    from perdure.onray.process import PROCESS

    name = str(next(iter(before)).relative_to(signed)).removesuffix(".obj")
    payload = msgspec.msgpack.encode(Payload(None, name, 1))
    answer = load_output(payload, f"file://{signed}", PROCESS.settings.encode(), "the output", [])
    with pytest.raises(CorruptedError, match="does not fit its name"):
        raise answer.as_instanceof_cause()
    assert not proof.exists()
    Values().load(next(iter(before)).read_bytes())  # the attack itself works where nothing stops it
    assert proof.exists()


def test_another_driver_inherits_the_trust_of_its_cluster_and_can_not_differ(signed: Path, keys: Path) -> None:
    workflow.init(trust="signed", keys=keys)
    with pytest.raises(ValueError, match=r"trust='data' \(is 'signed'\)"):
        workflow.init(trust="data")


def test_a_signed_store_is_not_written_to_without_signing(signed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure.cli.store_side import StoreSide

    monkeypatch.delenv("PERDURE_TRUST", raising=False)
    with pytest.raises(FormatError, match="is sealed"):
        StoreSide(f"file://{signed}").delete("b")
    assert workflow.get_output("b") == 101


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tasks: Tasks, signed: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    import ray

    from perdure.onray import cluster as connections

    ray.shutdown()  # the signed cluster's tests are over
    connections.disconnect()
    folder = tmp_path_factory.mktemp("data") / "store"
    with cluster(folder, trust="data"):
        yield folder


class TestData:
    def test_tasks_of_importable_modules_run_and_no_pickle_is_stored(self, store: Path, tasks: Tasks) -> None:
        assert workflow.run(tasks.add.bind(100, tasks.one.bind()), workflow_id="run_1") == 101
        assert workflow.run(tasks.fib.bind(5), workflow_id="fib") == 5
        assert workflow.run(tasks.total.bind(tasks.array.bind(100_000)), workflow_id="large") == sum(range(100_000))
        assert _serializers(store) <= {"data", "arrow"}

    def test_exceptions_come_back_as_type_and_text(self, store: Path, tasks: Tasks) -> None:
        assert workflow.run(tasks.shown.bind(tasks.caught.bind())) == "(None, RuntimeError(\"KeyError: 'missing'\"))"
        with pytest.raises(workflow.WorkflowExecutionError, match="KeyError: 'missing'") as caught:
            workflow.run(tasks.fails.bind())
        assert str(caught.value.__cause__) == "KeyError: 'missing'"

    def test_exception_classes_of_retries_are_named(self, store: Path, tasks: Tasks, tmp_path: Path) -> None:
        assert workflow.run(tasks.flaky.bind(str(tmp_path / "tries"))) == 3

    def test_a_function_of_main_or_of_a_function_is_refused_before_anything_is_stored(self, store: Path) -> None:
        import ray

        @ray.remote
        def local() -> int:
            return 1

        with pytest.raises(EncodeError, match=r"local.* can't be found by its name, and trust='data' stores no code"):
            workflow.run(local.bind(), workflow_id="local")
        with pytest.raises(workflow.WorkflowNotFoundError):
            workflow.get_status("local")

    def test_a_result_that_is_no_data_fails_its_task_and_says_so(self, store: Path, tasks: Tasks) -> None:
        with pytest.raises(workflow.WorkflowExecutionError, match="Opaque, which can't be stored.*'pickle' was not"):
            workflow.run(tasks.gives_an_object.bind())

    def test_a_planted_pickle_is_refused(self, store: Path, tmp_path: Path) -> None:
        from perdure.onray.process import PROCESS
        from perdure.values import Values

        planted = Values(("pickle",)).dumps(print)
        with pytest.raises(DecodeError, match="trust='data' does not allow it"):
            PROCESS.values.load(planted)

    @pytest.mark.parametrize(
        "name", ["os.system", "subprocess.run", "tasks_of_trust.not_a_task", "perdure.onray.cluster.run_bootstrap"]
    )
    def test_a_planted_name_reaches_only_tasks_listeners_and_exceptions(
        self, store: Path, tasks: Tasks, name: str
    ) -> None:
        from perdure.code_names import load_name

        module, _, qualname = name.rpartition(".")
        with pytest.raises(DecodeError, match="neither a function decorated with @ray.remote"):
            load_name(["perdure:code", module, qualname], "the code")


def _serializers(store: Path) -> set[str]:
    """Of all values in the store: they are found by the envelope's magic, wherever they stand."""
    import zstandard

    from perdure.envelope import MAGIC

    found = set()
    for path in store.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            if b"\x28\xb5\x2f\xfd" in data[:400]:  # a compressed body
                at = data.index(b"\x28\xb5\x2f\xfd")
                data = zstandard.ZstdDecompressor().decompressobj().decompress(data[at:])
            for start in range(len(data)):
                if data.startswith(MAGIC, start):
                    found |= {name for name in ("data", "arrow", "pickle") if name.encode() in data[start : start + 80]}
    return found


# -- the setting -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["s3://bucket/prefix", "gs://bucket", "redis://host/0", "file:///srv/workflows"])
def test_every_store_but_a_temporary_one_needs_a_trust_level(url: str) -> None:
    with pytest.raises(ValueError, match=r"trust is not set for .*trust='all' .*trust='signed' .*PERDURE_TRUST"):
        chosen(url, environment={})
    assert chosen(url, environment={"PERDURE_TRUST": "data"}).trust == "data"
    assert chosen(url, trust="all", environment={"PERDURE_TRUST": "data"}).trust == "all"


def test_a_temporary_folder_is_one_that_only_this_user_can_write_to(tmp_path: Path) -> None:
    assert chosen(f"file://{tmp_path}/new/store", environment={}).trust == "all"
    assert is_temporary(f"file://{tmp_path}")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    assert not is_temporary(f"file://{shared}/store")
    assert not is_temporary("file:///srv")
    assert not is_temporary("file:///tmp")
    assert not is_temporary("file:///tmp/../srv")
    (tmp_path / "link").symlink_to("/srv")
    assert not is_temporary(f"file://{tmp_path}/link/store")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"trust": "none"}, "trust='none': expected one of data, signed, all"),
        ({"trust": "signed"}, "needs keys="),
        ({"trust": "signed", "keys": "/nonexistent/keys"}, "/nonexistent/keys"),
        ({"trust": "all", "keys": "/nonexistent/keys"}, "/nonexistent/keys"),
        ({"trust": "all", "serializers": []}, "at least one name"),
        ({"trust": "all", "serializers": "data"}, "expected a list of names"),
        ({"trust": "data", "serializers": ["pickle"]}, "leaves none of the serializers"),
        ({"trust": "all", "serializers": ["nosuch"]}, "nosuch"),
        ({"trust": "all", "codecs": ["nosuch"]}, "nosuch"),
        ({"trust": "all", "codecs": ["aes-gcm"]}, "has no keys: PERDURE_KEYS is not set|encryption has no keys"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_started(given: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        chosen("s3://bucket", environment={}, **given)
    assert type(caught.value).__name__ in ("ValueError", "PluginError", "FileNotFoundError", "EncodeError")


def test_settings_travel_as_text() -> None:
    made = ValueSettings("data", ("data",), ("zstd",), "/etc/keys")
    assert settings_from(made.encode()) == made
    assert ValueSettings().encode() == ""
    assert settings_from("") == ValueSettings()


def test_values_can_be_compressed_and_encrypted_by_setting(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text(Key.generate("e1", "aes-gcm").line() + "\n")
    values = ValueSettings(codecs=("zstd", "aes-gcm"), keys=str(path)).values()
    stored = values.dumps("a secret " * 100)
    assert b"secret" not in stored
    assert len(stored) < 500
    assert values.load(stored) == "a secret " * 100
