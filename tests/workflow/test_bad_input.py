"""What can't work is refused with an error that names the value, what was expected, and the next step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.dag import InputNode
from support import stored
from support.runs import Driver

from perdure import workflow
from perdure.errors import CorruptedError, DecodeError, EncodeError, FormatError, PluginError
from perdure.graph import Payload
from perdure.guarded_store import GuardedStore
from perdure.onray.loading import Loader
from perdure.onray.outputs import Output
from perdure.onray.process import PROCESS
from perdure.store import open_store
from perdure.store_format import check_format

pytestmark = pytest.mark.usefixtures("storage")


@ray.remote
def identity(value: Any) -> Any:
    return value


@ray.remote
def increment(value: int) -> int:
    return value + 1


class Holder:
    """Holds something that can't be stored."""

    def __init__(self) -> None:
        self.inner = {"lock": threading.Lock()}


# -- what is run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [3, None, "dag", [1], identity, lambda: 1])
def test_what_is_no_dag_is_a_type_error_that_says_bind(wrong: Any) -> None:
    for call in (workflow.run, workflow.run_async, workflow.continuation):
        with pytest.raises(TypeError, match=r"expects a DAG made with \.bind\(\), got ") as caught:
            call(wrong)
        assert type(wrong).__name__ in str(caught.value)


def test_nodes_that_are_no_functions_are_refused_with_a_way_out() -> None:
    @ray.remote
    class Counter:
        def add(self) -> int:
            return 1

    with pytest.raises(TypeError, match="actor"):
        workflow.run(Counter.bind().add.bind())
    with InputNode() as whole, pytest.raises(TypeError, match="bind a function"):
        workflow.run(whole, 1)

    @ray.remote
    def several() -> Iterator[int]:
        yield 1

    with pytest.raises(TypeError, match="Return a list"):
        workflow.run(several.bind())
    with pytest.raises(ValueError, match="num_returns=2"):
        workflow.run(identity.options(num_returns=2).bind(1))


def test_wrong_arguments_of_a_function_name_the_function_and_its_signature() -> None:
    with pytest.raises(TypeError, match=r"increment\(value: .int.\).*missing a required argument"):
        workflow.run(increment.bind())
    with pytest.raises(TypeError, match="unexpected keyword argument 'nosuch'"):
        workflow.run(increment.bind(1, nosuch=2))


@pytest.mark.parametrize("wrong", [[], {1: 2}, {"a": object()}, "text", {"a": "\ud800"}])
def test_metadata_that_json_cannot_hold_is_refused(wrong: Any) -> None:
    with pytest.raises(ValueError, match="metadata"):
        workflow.run(identity.bind(1), metadata=wrong)


def test_ids_of_wrong_form_say_the_rule_and_unknown_ones_where_to_look(fresh: str) -> None:
    with pytest.raises(ValueError, match="expected 1 to 200 printable characters"):
        workflow.run(identity.bind(1), workflow_id="x" * 201)
    with pytest.raises(TypeError, match="workflow_id must be a str, not int"):
        workflow.get_status(7)  # type: ignore[arg-type]
    with pytest.raises(workflow.WorkflowNotFoundError, match="perdure list"):
        workflow.get_output(fresh)


# -- storage settings ------------------------------------------------------------------------------------------------


def test_an_unknown_scheme_names_the_schemes_that_are_installed() -> None:
    with pytest.raises(PluginError, match=r"no store for nosuch:// .*file.*memory.*redis.*s3"):
        workflow.init(storage="nosuch://bucket/prefix")


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    code = """
import asyncio, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("s3fs", "gcsfs", "redis"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from perdure import open_store
from perdure.errors import PluginError
for url in ("s3://bucket/x", "gs://bucket/x", "redis://localhost"):
    try:
        asyncio.run(open_store(url).stat("key"))
    except PluginError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    said = done.stdout.splitlines()
    assert len(said) == 3, done.stdout + done.stderr
    for line, extra in zip(said, ("s3", "gcs", "redis"), strict=True):
        assert f"pip install 'perdure[{extra}]'" in line


def test_a_store_of_one_process_is_refused_for_a_cluster() -> None:
    with pytest.raises(ValueError, match="only be used within one process"):
        workflow.init(storage="memory://x")


_HEAD = """
import json, os, sys
import ray
from perdure import workflow
from perdure.onray import cluster
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
"""

_TRY_ALL = """
for storage in sys.argv[2:]:
    try:
        workflow.init(storage=storage, trust="all")
        print(json.dumps(["nothing", storage]))
    except Exception as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def read_only(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("read-only")
    with mounted(folder, "size=1m,ro"):
        yield folder


class mounted:
    """A small filesystem of its own at ``folder``; skips the test where that is not allowed."""

    def __init__(self, folder: Path, options: str) -> None:
        self.folder, self.options = folder, options

    def __enter__(self) -> None:
        command = ["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.folder)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("mounting a filesystem is not allowed here")

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)


def test_storage_that_cannot_be_used_is_refused_each_with_its_reason(tmp_path: Path, read_only: Path) -> None:
    others, newer, file = tmp_path / "others", tmp_path / "newer", tmp_path / "file"
    others.mkdir()
    (others / "photo.jpg").write_text("not ours")
    (others / "photos.obj").write_text("not ours")
    newer.mkdir()
    (newer / "format.obj").write_text(json.dumps({"what": "perdure store", "layout": 99}))
    file.write_text("a file")
    wrong = [others, newer, file, read_only]
    with Driver("", _TRY_ALL, *map(str, wrong), head=_HEAD) as driver:
        said = [json.loads(line) for line in driver.finish(120).splitlines()]
    expected = [
        ("FormatError", "is not a Perdure store", "empty folder"),
        ("FormatError", "layout 99", "pip install -U perdure"),
        ("StoreError", "not a folder"),
        ("PermissionDenied", "read-only"),
    ]
    for folder, (kind, text), (wanted, *parts) in zip(wrong, said, expected, strict=True):
        assert kind == wanted, text
        for part in (*parts, str(folder)):
            assert part in text
    assert sorted(f.name for f in others.iterdir()) == ["photo.jpg", "photos.obj"]
    assert [f.name for f in newer.iterdir()] == ["format.obj"]


@pytest.mark.parametrize("content", [b"", b"{", b"something else", b'{"what": "perdure st', b'{"what": 1}'])
async def test_a_store_with_a_damaged_or_foreign_format_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "format.obj").write_bytes(content)
    async with open_store(str(tmp_path)) as store:
        with pytest.raises(FormatError, match="not a Perdure store, or its mark is damaged: its object 'format'"):
            await check_format(GuardedStore(store))


_FULL = """
import time
workflow.init(storage=sys.argv[1], trust="all")
folder, notes = sys.argv[1:3]
filler = os.path.join(folder, "filler")

@ray.remote
def small(n):
    open(notes, "a").write("ran\\n")
    return n

@ray.remote(max_retries=0)
def large(*n):
    open(notes, "a").write("made\\n")
    return os.urandom(1 << 20)

@ray.remote
def size(value):
    return len(value)

def fill():
    with open(filler, "wb", buffering=0) as file:
        try:
            while True: file.write(bytes(1 << 12))
        except OSError: pass

# a value that does not fit: its worker keeps it and waits for room
with open(filler, "wb") as file: file.write(bytes(5 << 19))
ref = workflow.run_async(size.bind(large.bind(*[small.bind(n) for n in range(5)])), workflow_id="value")
deadline = time.time() + 30
while not (os.path.exists(notes) and "made" in open(notes).read()) and time.time() < deadline:
    time.sleep(0.05)
print(json.dumps(["waits", ray.wait([ref], timeout=2)[0] == [], workflow.get_status("value")]))
os.remove(filler)
print(json.dumps(["value", ray.get(ref)]))

# no room for a single record: it waits, and goes on by itself
@ray.remote
def fill_disk():
    fill()
    return 1
ref = workflow.run_async(size.bind([fill_disk.bind()] * 3), workflow_id="records")
deadline = time.time() + 30
problem = None
while not problem and time.time() < deadline:
    problem = cluster.connected().call("describe", "records")["waiting_because"]
    time.sleep(0.05)
print(json.dumps(["problem", problem, workflow.get_status("records")]))
os.remove(filler)
print(json.dumps(["went on", ray.get(ref)]))
"""


def test_values_and_records_wait_where_the_disk_is_full(tmp_path: Path) -> None:
    disk, notes = tmp_path / "disk", tmp_path / "notes"
    disk.mkdir()
    with mounted(disk, "size=3m"), Driver(disk / "store", _FULL, str(notes), head=_HEAD) as driver:
        said = [json.loads(line) for line in driver.finish(120).splitlines()]
        waits, value, problem, went_on = said
        assert waits == ["waits", True, "RUNNING"]
        assert value == ["value", 1 << 20]
        assert notes.read_text().split() == ["ran"] * 5 + ["made"]
        assert "the disk is full" in problem[1]
        assert problem[2] == "RUNNING"
        assert went_on == ["went on", 3]


# -- damaged objects -------------------------------------------------------------------------------------------------


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def nothing(data: bytes) -> bytes:
    return b""


def one_byte_less(data: bytes) -> bytes:
    return data[:-1]


def flip_in_the_middle(data: bytes) -> bytes:
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def flip_in_the_first_byte(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def flip_in_the_last_byte(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 128])


DAMAGES = [half, nothing, one_byte_less, flip_in_the_middle, flip_in_the_first_byte, flip_in_the_last_byte]


@pytest.fixture(scope="module")
def long_chain(storage: Path) -> str:
    """A finished workflow with base parts."""
    node = identity.bind(0)
    for _ in range(60):
        node = increment.bind(node)
    workflow.run(node, workflow_id="long-chain")
    assert list((storage / "w" / "long-chain" / "s").iterdir())
    return "long-chain"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["j", "s"])
def test_a_damaged_segment_or_base_part_is_named_and_nothing_is_lost_elsewhere(
    storage: Path, long_chain: str, kind: str, damage: Callable[[bytes], bytes]
) -> None:
    files = sorted((storage / "w" / long_chain / kind).iterdir())
    named = [part.rsplit("/", 1)[-1] for part in stored.parts(storage, long_chain)]
    file = files[-1] if kind == "j" else next(f for f in files if f.stem == named[-1])
    whole = file.read_bytes()
    replace(file, damage(whole))
    try:
        for call in (workflow.get_output, workflow.resume, workflow.get_metadata, workflow.get_status):
            with pytest.raises((CorruptedError, FormatError), match=f"w/{long_chain}/{kind}/{file.stem[:20]}"):
                call(long_chain)
        assert long_chain in dict(workflow.list_all())
        assert workflow.run(identity.bind("others work")) == "others work"
    finally:
        replace(file, whole)
    assert workflow.get_output(long_chain) == 60


def replace(file: Path, data: bytes) -> None:
    other = file.with_suffix(".new")
    other.write_bytes(data)
    os.replace(other, file)


def test_a_segment_of_a_newer_format_is_left_alone_and_says_upgrade(storage: Path, fresh: str) -> None:
    workflow.run(identity.bind(1), workflow_id=fresh)
    file = sorted((storage / "w" / fresh / "j").iterdir())[-1]
    data = bytearray(file.read_bytes())
    data[4] = 99
    replace(file, bytes(data))
    for call in (workflow.get_output, workflow.resume, workflow.delete, workflow.cancel):
        with pytest.raises(FormatError, match="(?i)upgrade"):
            call(fresh)
    assert file.read_bytes() == bytes(data)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_blob_is_named_and_never_half_loaded(
    storage: Path, fresh: str, damage: Callable[[bytes], bytes]
) -> None:
    workflow.run(identity.bind(list(range(50_000))), workflow_id=fresh)
    payload = blob_of(storage, fresh)
    file = next(f for f in storage.rglob("*") if payload.blob and f.name.startswith(payload.blob.rsplit("/", 1)[-1]))
    whole = file.read_bytes()
    replace(file, damage(whole))
    try:
        with pytest.raises((CorruptedError, FormatError, DecodeError), match="the output of"):
            Loader(f"file://{storage}", {}, f"the output of {fresh}").value(payload)
        output = Output(payload, f"file://{storage}", PROCESS.settings.encode(), f"the output of {fresh}", {})
        with pytest.raises((CorruptedError, FormatError, DecodeError), match="the output of"):
            ray.get(ray.put(output))
    finally:
        replace(file, whole)
    assert Loader(f"file://{storage}", {}, "the output").value(payload) == list(range(50_000))


def blob_of(storage: Path, workflow_id: str) -> Payload:
    state, _, _ = stored.state(storage, workflow_id)
    payload = state.tasks[state.root].payload
    assert payload is not None
    assert payload.blob
    return payload


# -- what can't be stored --------------------------------------------------------------------------------------------


def test_a_result_that_cannot_be_stored_names_the_task_and_the_place_inside_the_value(fresh: str) -> None:
    @ray.remote
    def make() -> Any:
        return {"a": [1, Holder()]}

    dag = make.options(**workflow.options(task_id="maker")).bind()
    with pytest.raises(workflow.WorkflowExecutionError) as caught:
        workflow.run(dag, workflow_id=fresh)
    text = str(caught.value).splitlines()[0]
    assert "maker" in text
    assert "result['a'][1].inner['lock'] is a _thread.lock" in text
    assert "Return data instead" in text
    assert caught.value.task_id == "maker"
    cause = caught.value.__cause__
    assert isinstance(cause, EncodeError)
    assert cause.path == "result['a'][1].inner['lock']"


def test_a_result_that_cannot_be_stored_is_caught_like_an_exception() -> None:
    @ray.remote
    def make() -> Any:
        return threading.Lock()

    value, error = workflow.run(make.options(**workflow.options(catch_exceptions=True)).bind())
    assert value is None
    assert isinstance(error, EncodeError)


def test_an_argument_that_cannot_be_stored_names_the_task_and_the_place(fresh: str) -> None:
    with pytest.raises(TypeError, match="lock"):
        identity.bind(Holder())  # Ray itself refuses what it can't look into
    with InputNode() as whole:
        dag = identity.bind([whole, 1])
    with pytest.raises(EncodeError) as caught:
        workflow.run(dag, {"b": Holder()}, workflow_id=fresh)
    assert "identity" in str(caught.value)
    assert caught.value.path == "arguments[0][0][0]['b'].inner['lock']"
    assert f"{caught.value.path} is a _thread.lock" in str(caught.value)
    with pytest.raises(workflow.WorkflowNotFoundError):
        workflow.get_status(fresh)


def test_a_function_that_cannot_be_stored_names_it_and_what_it_holds() -> None:
    lock = threading.Lock()

    @ray.remote
    def guarded() -> None:
        with lock:
            pass

    with pytest.raises(EncodeError, match="the code of .*guarded.*lock"):
        workflow.run(guarded.bind())


def test_an_exception_that_cannot_be_stored_still_says_what_it_was() -> None:
    class Odd(Exception):
        def __init__(self) -> None:
            super().__init__("what it was")
            self.lock = threading.Lock()

    @ray.remote
    def fail() -> None:
        raise Odd

    with pytest.raises(workflow.WorkflowExecutionError, match="Odd: what it was") as caught:
        workflow.run(fail.bind())
    assert "what it was" in str(caught.value.__cause__)


def test_a_node_hidden_inside_a_result_says_how_to_continue_with_several() -> None:
    @ray.remote
    def hide() -> Any:
        return [identity.bind(1)]

    with pytest.raises(workflow.WorkflowExecutionError, match="bind them to one function"):
        workflow.run(hide.bind())
