"""The commands of store care, over real stores: exit codes, JSON, archives, and processes killed by SIGKILL."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from support.commands import here
from support.filled import engine, fill, go_on, right, run
from support.stored import keys_below

from perdure.errors import WorkflowNotResumableError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("care") / "store"
    asyncio.run(fill(f"file://{folder}"))
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path) -> str:
    """done and twin are finished and share a blob, open is to be resumed: 5 blobs."""
    shutil.copytree(made, tmp_path / "store")
    return f"file://{tmp_path / 'store'}"


def data(*words: str, code: int = 0) -> Any:
    done = here(*words, "-o", "json")
    assert done.code == code, done.err
    return json.loads(done.out)


def results(found: list[dict[str, Any]]) -> dict[str, str]:
    return {row["workflow_id"]: row["result"] for row in found}


def test_a_copy_brings_everything_and_goes_on_there(store: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'target'}"
    found = data("copy", store, target)
    assert results(found) == {"done": "copied", "open": "copied", "twin": "copied"}
    assert results(data("copy", store, target)) == {"done": "present", "open": "present", "twin": "present"}
    assert len(keys_below(target, "blobs/")) == 5
    assert asyncio.run(go_on(target, "open")) == right(4, 5)
    assert data("verify", target)["sound"] is True
    listed = {row["workflow_id"]: row["status"] for row in data("list", "-s", target)}
    assert listed == {"done": "SUCCESSFUL", "open": "SUCCESSFUL", "twin": "SUCCESSFUL"}
    with pytest.raises(WorkflowNotResumableError, match="has moved to file://"):
        asyncio.run(go_on(store, "open"))


def test_an_archive_holds_each_value_once_and_goes_back_in(store: str, tmp_path: Path) -> None:
    archive, target = tmp_path / "all.perdure", f"file://{tmp_path / 'target'}"
    found = data("export", store, str(archive), code=4)
    assert results(found) == {"done": "exported", "open": "refused", "twin": "exported"}
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    assert sum(name.startswith("blobs/") for name in names) == 3
    archive.unlink()
    assert results(data("export", store, "done", "open", str(archive), "--unfinished")) == {
        "done": "exported",
        "open": "exported",
    }
    assert results(data("import", str(archive), target)) == {"done": "imported", "open": "imported"}
    assert results(data("import", str(archive), target)) == {"done": "present", "open": "present"}
    assert asyncio.run(go_on(target, "open")) == right(4, 5)
    assert data("verify", target)["sound"] is True
    with pytest.raises(WorkflowNotResumableError, match="moved to archive all.perdure"):
        asyncio.run(go_on(store, "open"))
    assert here("export", store, "done", str(archive)).code == 2  # it exists


def test_every_cut_of_an_archive_is_told_and_nothing_wrong_comes_in(store: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.perdure"
    data("export", store, "done", "twin", str(archive))
    whole = archive.read_bytes()
    cut = tmp_path / "cut.perdure"
    for size in [0, 1, 511, 512, 700, *range(1024, len(whole) - 1024, 1777), len(whole) - 1600]:
        cut.write_bytes(whole[:size])
        target = f"file://{tmp_path / f'cut{size}'}"
        done = here("import", str(cut), target)
        assert done.code in (5, 7), (size, done.err)
        assert "cut off" in done.err or "not a Perdure archive" in done.err or "damaged" in done.err, done.err
        told = [row["workflow_id"] for row in data("list", "-s", target)] if keys_below(target, "w/") else []
        assert sorted(line.split("\t")[0] for line in done.out.splitlines()[1:]) == sorted(told), "what is in is told"
        if keys_below(target, "w/"):
            assert data("verify", target)["sound"] is True


def test_every_damage_to_an_archive_is_told_and_nothing_wrong_comes_in(store: str, tmp_path: Path) -> None:
    archive = tmp_path / "a.perdure"
    data("export", store, "done", str(archive))
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        spans = [(m.name, m.offset, m.offset_data, m.size) for m in tar.getmembers()]
    bad = tmp_path / "bad.perdure"
    for number, (name, header, first, size) in enumerate(spans):
        for at in {header + 3, header + 150, first, first + size // 2, first + size - 1}:
            flipped = bytearray(whole)
            flipped[at] ^= 0x10
            bad.write_bytes(flipped)
            target = f"file://{tmp_path / f'bad{number}-{at}'}"
            done = here("import", str(bad), target)
            assert done.code in (5, 7), (name, at, done.code, done.err)
            if keys_below(target, "w/"):
                assert data("verify", target)["sound"] is True


def test_verify_tells_what_is_missing_damaged_and_orphaned(store: str, tmp_path: Path) -> None:
    assert data("verify", store) == data("verify", store)
    report = data("verify", store)
    assert (report["sound"], report["checked"]["workflow"], report["checked"]["blob"]) == (True, 3, 5)
    folder = Path(store.removeprefix("file://"))
    blobs = sorted((folder / "blobs" / "0").iterdir())
    damaged = bytearray(blobs[0].read_bytes())
    damaged[10] ^= 1
    blobs[0].write_bytes(damaged)
    blobs[1].unlink()
    (folder / "blobs" / "0" / f"{'0' * 64}.obj").write_bytes(b"left")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    report = data("verify", store, code=7)
    assert (report["missing"], report["damaged"], report["orphaned"]) == (1, 1, 1)
    assert {f["problem"]: f["kind"] for f in report["findings"]} == {
        "missing": "blob",
        "damaged": "blob",
        "orphaned": "blob",
    }
    assert all(f["workflow_id"] for f in report["findings"] if f["problem"] != "orphaned")
    assert data("verify", store, "--fast", code=7)["damaged"] == 0
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert here("verify", store, "nobody").code == 7


def test_verify_tells_a_damaged_chain_and_page(store: str) -> None:
    folder = Path(store.removeprefix("file://"))
    for pattern in ("w/twin/j/*", "c/*/j/*"):
        victim = sorted(folder.glob(pattern))[0]
        flipped = bytearray(victim.read_bytes())
        flipped[-1] ^= 1
        victim.write_bytes(flipped)
    report = data("verify", store, code=7)
    assert {f["kind"] for f in report["findings"] if f["problem"] == "damaged"} == {"workflow", "coordinator"}
    listed = {row["workflow_id"]: row["problem"] for row in data("list", "-s", store, code=7)}
    assert "is damaged" in listed["twin"]
    assert listed["open"] is None


def flip(store: str, pattern: str, which: int = -1) -> None:
    victim = sorted(Path(store.removeprefix("file://")).glob(pattern))[which]
    flipped = bytearray(victim.read_bytes())
    flipped[-1] ^= 1
    victim.write_bytes(flipped)


def test_repair_lets_a_damaged_workflow_go_on_from_what_can_be_read(store: str) -> None:
    assert data("repair", store, "open")["done"] == "none"
    flip(store, "w/open/j/*")
    for command in (("status", "open", "-s", store), ("resume", "open", "-s", store), ("gc", store)):
        refused = here(*command)
        assert refused.code == 7
        assert "perdure repair" in refused.err
    (row,) = [row for row in data("list", "-s", store, code=7) if row["problem"]]
    assert (row["workflow_id"], row["status"]) == ("open", "RESUMABLE")
    before = set(keys_below(store, ""))
    looked = data("repair", store, "open", "--dry-run")
    assert (looked["sound"], looked["done"]) == (False, "none")
    assert looked["tasks_kept"] < 2  # two were done, in one segment or in two
    assert len(looked["findings"]) == 1
    asked = here("repair", store, "open")
    assert asked.code == 2
    assert "--yes" in asked.err
    assert set(keys_below(store, "")) == before
    assert data("repair", store, "open", "--yes") == looked | {"done": "repaired"}
    assert data("verify", store)["sound"] is True
    assert {row["workflow_id"]: row["problem"] for row in data("list", "-s", store)}["open"] is None
    assert asyncio.run(go_on(store, "open")) == right(4, 5)
    assert here("repair", store, "nobody").code == 3


def test_repair_forgets_a_workflow_of_which_nothing_can_be_read(store: str) -> None:
    flip(store, "w/twin/j/*", 0)
    refused = here("repair", store, "twin", "--yes")
    assert refused.code == 4
    assert "--delete" in refused.err
    assert here("repair", store, "twin", "--delete").code == 2
    assert data("repair", store, "twin", "--delete", "--yes")["done"] == "deleted"
    assert sorted(row["workflow_id"] for row in data("list", "-s", store)) == ["done", "open"]
    assert data("gc", store)["counts"]["blob"] == 1  # `done` needs the other one
    assert data("verify", store)["sound"] is True


def test_verify_tells_a_journal_that_is_gone(store: str) -> None:
    folder = Path(store.removeprefix("file://"), "w", "twin")
    (folder / "s").mkdir()
    (folder / "s" / f"{12:020d}-{'0' * 32}.obj").write_bytes(b"a part")
    for segment in (folder / "j").iterdir():
        segment.unlink()
    (found,) = [f for f in data("verify", store, code=7)["findings"] if f["problem"] == "missing"]
    assert "its journal is gone" in found["text"]


def test_gc_deletes_by_age_and_status_and_takes_what_nobody_names(store: str) -> None:
    assert data("gc", store, "--dry-run")["counts"] == {"workflow": 0, "blob": 0, "remains": 0, "upload": 0}
    assert here("gc", store, "--older-than", "0s").code == 2
    assert here("gc", store, "--older-than", "soon", "--yes").code == 2
    assert here("gc", store, "--status", "RUNNING", "--yes").code == 2
    before = set(keys_below(store, ""))
    report = data("gc", store, "--dry-run", "--older-than", "0s", "--status", "SUCCESSFUL,failed")
    assert report["counts"]["workflow"] == 2
    assert set(keys_below(store, "")) == before
    report = data("gc", store, "--older-than", "0s", "--status", "SUCCESSFUL", "--yes", "--wait", "30")
    assert report["counts"]["workflow"] == 2
    assert report["holding"] == {}
    assert report["counts"]["blob"] == 3
    assert len(keys_below(store, "blobs/")) == 2
    assert data("verify", store)["sound"] is True
    assert asyncio.run(go_on(store, "open")) == right(4, 5)
    assert [row["workflow_id"] for row in data("list", "-s", store)] == ["open"]


def test_temporary_files_of_killed_processes_go(store: str) -> None:
    folder = Path(store.removeprefix("file://"), ".tmp", "0123456789abcdef")
    folder.mkdir(parents=True)
    (folder / "0").write_bytes(b"half")
    report = data("gc", store, "--dry-run")
    assert (report["counts"]["upload"], report["bytes"]) == (1, 4)
    assert data("gc", store)["counts"]["upload"] <= 1
    assert not folder.exists()


def test_a_take_back_needs_to_be_meant(store: str, tmp_path: Path) -> None:
    target = f"file://{tmp_path / 'target'}"
    assert here("copy", store, target, "open", "--take-back").code == 2
    data("copy", store, target, "open")
    assert "has arrived" in here("copy", store, target, "open", "--take-back", "--yes").err
    here("delete", "open", "-s", target)
    data("copy", store, target, "open", "--take-back", "--yes")
    assert asyncio.run(go_on(store, "open")) == right(4, 5)


def test_an_append_only_store_is_not_collected(store: str) -> None:
    done = here("gc", f"{store}?append_only=true")
    assert done.code == 5
    assert "append-only" in done.err


def test_bad_input_is_told_at_once(store: str, tmp_path: Path) -> None:
    assert here("copy", store, store).code == 2
    assert here("copy", f"file://{tmp_path}/none", store).code == 5
    assert here("copy", store, f"file://{tmp_path}/target", "nobody").code == 3
    assert here("gc", f"file://{tmp_path}/none").code == 5
    assert here("import", str(tmp_path / "none"), store).code == 2
    (tmp_path / "text").write_text("no archive at all" * 100)
    assert here("import", str(tmp_path / "text"), f"file://{tmp_path}/t2").code == 5


@pytest.mark.parametrize("command", ["copy", "export", "import", "gc"])
def test_a_command_killed_by_sigkill_is_finished_by_the_next(command: str, store: str, tmp_path: Path) -> None:
    target, archive = f"file://{tmp_path / 'target'}", tmp_path / "a.perdure"
    if command == "import":
        data("export", store, "done", "twin", "open", str(archive), "--unfinished")
    words = {
        "copy": ["copy", store, target],
        "export": ["export", store, "done", "twin", "open", str(archive), "--unfinished"],
        "import": ["import", str(archive), target],
        "gc": ["gc", store, "--older-than", "0s", "--status", "SUCCESSFUL", "--yes", "--wait", "30"],
    }[command]
    took = _killed_after(words, None)
    for share in (0.5, 0.8, 0.95):
        for path in (tmp_path / "target", archive):
            if path != archive or command == "export":
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        _killed_after(words, took * share)
    if command == "export":
        archive.unlink(missing_ok=True)
        data(*words)
        data("import", str(archive), target)
    else:
        data(*words)
    place = store if command == "gc" else target
    assert data("verify", place)["sound"] is True
    assert asyncio.run(go_on(place, "open")) == right(4, 5)


def _killed_after(words: list[str], seconds: float | None) -> float:
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "perdure", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as p:
        try:
            p.wait(60 if seconds is None else seconds)
        except subprocess.TimeoutExpired:
            os.kill(p.pid, signal.SIGKILL)
        p.wait()
    return time.monotonic() - began


def test_a_running_engine_lets_a_collection_through(store: str) -> None:
    """A collector in another process beside a coordinator that works."""

    async def main() -> None:
        async with engine(store) as coordinator:
            await coordinator.delete("done")
            collector = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "perdure", "gc", store, "-o", "json", "--wait", "60", stdout=subprocess.PIPE
            )
            for n in range(5):
                await run(coordinator, f"w{n}", n + 10, n + 11)
                await asyncio.sleep(0.5)
            out, _ = await collector.communicate()
            report = json.loads(out)
            assert report["holding"] == {}
            assert report["counts"]["blob"] == 1
            assert coordinator.lease.cycle == 1

    asyncio.run(main())
    assert data("verify", store)["sound"] is True


def test_a_store_without_signatures_is_signed_in_another_one_only_by_who_vouches_for_it(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, target = tmp_path / "keys.json", f"file://{tmp_path / 'target'}"
    assert here("keys", "new", str(keys)).code == 0
    signed = ("--trust", "signed", "--keys", str(keys))
    refused = here("copy", store, target, *signed)
    assert refused.code == 5, refused.err
    assert "is not sealed" in refused.err
    assert "--unsigned-source" in refused.err
    assert keys_below(target, "w/") == []
    assert set(results(data("copy", store, target, *signed, "--unsigned-source")).values()) == {"copied"}
    monkeypatch.setenv("PERDURE_TRUST", "signed")
    monkeypatch.setenv("PERDURE_KEYS", str(keys))
    assert data("verify", target)["sound"] is True
    listed = {row["workflow_id"]: row["status"] for row in data("list", "-s", target)}
    assert listed == {"done": "SUCCESSFUL", "open": "RESUMABLE", "twin": "SUCCESSFUL"}
    for command in (("verify", store), ("gc", store, "--dry-run"), ("export", store, str(tmp_path / "x.perdure"))):
        assert "is not sealed" in here(*command).err, command


def test_a_signed_store_whose_mark_was_taken_off_is_not_copied(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, target = tmp_path / "keys.json", tmp_path / "target"
    assert here("keys", "new", str(keys)).code == 0
    monkeypatch.setenv("PERDURE_TRUST", "signed")
    monkeypatch.setenv("PERDURE_KEYS", str(keys))
    data("copy", store, f"file://{target}", "--unsigned-source")
    (mark,) = [path for path in target.iterdir() if path.name.startswith("format")]
    os.chmod(mark, 0o600)
    mark.write_bytes((Path(store.removeprefix("file://")) / mark.name).read_bytes())
    third = f"file://{tmp_path / 'third'}"
    assert "is not sealed" in here("copy", f"file://{target}", third).err
    assert keys_below(third, "w/") == []


@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_key_file_that_cant_be_read_is_named(store: str, path: str) -> None:
    found = here("output", "done", "-s", store, "--trust", "signed", "--keys", path)
    assert found.code == 2, found.err
    assert "key file" in found.err
    assert "can't be read" in found.err


@pytest.mark.parametrize("command", [("list",), ("status", "done"), ("describe", "done"), ("output", "done")])
def test_a_store_of_a_newer_layout_is_not_read(store: str, command: tuple[str, ...]) -> None:
    mark = Path(store.removeprefix("file://")) / "format.obj"
    os.chmod(mark, 0o600)
    mark.write_text(json.dumps(json.loads(mark.read_text()) | {"layout": 99}))
    found = here(*command, "-s", store)
    assert found.code == 5, found.err
    assert "has layout 99" in found.err


def test_a_signed_workflow_is_repaired_where_a_signature_is_wrong(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, target = tmp_path / "keys.json", f"file://{tmp_path / 'target'}"
    assert here("keys", "new", str(keys)).code == 0
    monkeypatch.setenv("PERDURE_TRUST", "signed")
    monkeypatch.setenv("PERDURE_KEYS", str(keys))
    data("copy", store, target, "open", "--unsigned-source")
    assert asyncio.run(go_on(target, "open")) == right(4, 5)
    flip(target, "w/open/j/*")
    (found,) = [f for f in data("verify", target, code=7)["findings"] if f["problem"] == "damaged"]
    assert "sign" in found["text"]
    assert data("repair", target, "open", "--yes")["done"] == "repaired"
    assert data("verify", target)["sound"] is True, "what nobody needs any more is not read, however it is signed"
    assert [(row["status"], row["problem"]) for row in data("list", "-s", target)] == [("RESUMABLE", None)]
    assert asyncio.run(go_on(target, "open")) == right(4, 5)


def test_a_key_that_is_not_at_hand_is_no_damage(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, other, target = tmp_path / "keys.json", tmp_path / "other.json", f"file://{tmp_path / 'target'}"
    for path in (keys, other):
        assert here("keys", "new", str(path)).code == 0
    monkeypatch.setenv("PERDURE_TRUST", "signed")
    monkeypatch.setenv("PERDURE_KEYS", str(keys))
    data("copy", store, target, "open", "--unsigned-source")
    before = set(keys_below(target, ""))
    monkeypatch.setenv("PERDURE_KEYS", str(other))
    for words in (("--dry-run",), ("--yes",)):
        refused = here("repair", target, "open", *words)
        assert refused.code == 7
        assert "not in the keyring" in refused.err
        assert "repair" not in refused.err, "what would help is the key"
    monkeypatch.setenv("PERDURE_KEYS", str(keys))
    assert set(keys_below(target, "")) == before
    assert data("repair", target, "open")["sound"] is True
