"""The file store beyond the contract: what is on disk, faults of the disk, crashes, leftovers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from perdure.backends import local_files
from perdure.backends.local import LocalStore
from perdure.backends.local_names import key_of, path_of
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Store, open_store


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
async def store(root: Path) -> AsyncIterator[Store]:
    async with open_store(str(root)) as opened:
        yield opened


async def keys_of(store: Store, prefix: str = "") -> list[str]:
    return [key async for key, _ in store.list(prefix)]


def temporary_files(root: Path) -> list[Path]:
    return [path for path in (root / ".tmp").rglob("*") if path.is_file()]


async def test_ordinary_keys_are_readable_on_disk(store: Store, root: Path) -> None:
    await store.create("w/run_1/j/00000000000000000007", b"x")
    assert (root / "w/run_1/j/00000000000000000007.obj").read_bytes() == b"x"


def test_every_key_has_one_path_and_comes_back_from_it() -> None:
    segments = [
        "a",
        "a.obj",
        ".a",
        "=",
        "=3D",
        "é",
        " ",
        "x" * 241,
        "." * 300,
        "=" * 200,
        "é" * 120,
        "~",
        "x" * 239 + "é",
    ]
    paths: dict[tuple[str, ...], str] = {}
    for first in segments:
        for key in (first, *(f"{first}/{second}" for second in segments)):
            names = path_of(key)
            assert key_of(names) == key
            assert all(len(name) < 255 and name not in (".", "..") and not name.startswith(".") for name in names)
            assert paths.setdefault(tuple(names), key) == key
    folders = {path[:n] for path in paths for n in range(1, len(path))}
    assert folders.isdisjoint(paths)


async def test_keys_of_the_greatest_length_work_in_every_shape(store: Store) -> None:
    size = store.capabilities.max_key_bytes
    keys = ["x" * size, "é" * (size // 2), "/".join("a" * (size // 2)), "." * 3 + "é" * ((size - 3) // 2), "=" * size]
    for key in keys:
        await store.create(key, key[:5].encode())
    assert await keys_of(store) == sorted(keys)
    for key in keys:
        await store.delete(key)
    assert await keys_of(store) == []


async def test_other_peoples_files_are_neither_listed_nor_touched(store: Store, root: Path) -> None:
    await store.create("a/b", b"x")
    (root / "a" / "notes.txt").write_text("mine")
    (root / "=zz.obj").write_text("mine")
    (root / "a" / "=41.obj").write_text("mine")
    (root / "link.obj").symlink_to("/etc/passwd")
    (root / "loop").symlink_to(root)
    assert await keys_of(store) == ["a/b"]
    await store.delete_prefix("a/")
    assert (root / "a" / "notes.txt").read_text() == "mine"


async def test_k6_links_are_not_followed(store: Store, root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "k.obj").write_text("secret")
    await store.create("x/y", b"")
    (root / "out").symlink_to(outside)
    (root / "x" / "k.obj").symlink_to(outside / "k.obj")
    for key in ("out/k", "x/k"):
        with pytest.raises(StoreError) as caught:
            await store.get(key)
        assert not isinstance(caught.value, NotFound)
    with pytest.raises(StoreError):
        await store.create("out/new", b"")
    await store.delete("x/k")
    assert sorted(path.name for path in outside.iterdir()) == ["k.obj"]
    assert (outside / "k.obj").read_text() == "secret"


def test_a_folder_that_another_thread_makes_at_that_moment_has_not_been_removed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = local_files.Files(str(root), create=True)
    real_open = os.open

    def open_late(path: str, *args: int, **more: int) -> int:
        try:
            return real_open(path, *args, **more)
        except FileNotFoundError:
            if path == files.root and not files._seen:
                os.makedirs(path)  # the other thread, between this one's look and its question
                files._seen = True
            raise

    monkeypatch.setattr(local_files.os, "open", open_late)
    files.create("k", b"x")
    files.close()
    assert (root / "k.obj").read_bytes() == b"x"


async def test_a_folder_that_vanished_is_not_an_empty_store(store: Store, root: Path) -> None:
    await store.create("k", b"x")
    os.rename(root, root.with_name("elsewhere"))
    for call in (store.get("k"), store.stat("k"), store.create("n", b""), store.delete("k"), keys_of(store)):
        with pytest.raises(StoreError, match="removed or renamed") as caught:
            await call
        assert not isinstance(caught.value, NotFound)
    root.with_name("elsewhere").rename(root)
    assert bytes(await store.get("k")) == b"x"


async def test_a_folder_may_be_required_to_exist(root: Path) -> None:
    async with open_store(f"file://{root}?create=false") as store:
        with pytest.raises(StoreError, match="does not exist"):
            await keys_of(store)


async def test_a_file_in_the_place_of_the_folder_is_said(root: Path) -> None:
    os.close(os.open(root, os.O_CREAT))
    async with open_store(str(root)) as store:
        with pytest.raises(StoreError, match=r"not a folder|Not a directory|File exists"):
            await store.create("k", b"")


async def test_a_folder_that_can_not_be_made_is_said_at_once() -> None:
    store = open_store("file:///proc/nowhere/store")
    with pytest.raises(StoreError, match="/proc/nowhere/store can't be made: No such file or directory") as caught:
        await store.create("key", b"value")
    assert not isinstance(caught.value, StoreUnavailable)
    await store.aclose()


async def test_folders_that_others_remove_are_made_again(store: Store, root: Path) -> None:
    for number in range(3):
        await store.create(f"w/x/j/{number}", b"")
        shutil.rmtree(root / "w")
    assert await keys_of(store) == []
    assert await store.create_many([(f"w/x/j/{n}", b"") for n in range(10)]) == [None] * 10


async def test_deletes_leave_no_empty_folders_but_the_top(store: Store, root: Path) -> None:
    await store.create_many([(f"w/{n}/j/0", b"") for n in range(20)])
    await store.delete("w/3/j/0")
    assert not (root / "w" / "3").exists()
    assert await store.delete_prefix("w/") == 19
    assert list((root / "w").iterdir()) == []


# --- durability (S3, S7) --------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths synced, in order."""
    seen: list[str] = []
    real = local_files.sync

    def recorded(fd: int) -> None:
        seen.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(local_files, "sync", recorded)
    return seen


async def test_s3_a_create_syncs_the_file_its_folder_and_new_parents(
    store: Store, root: Path, syncs: list[str]
) -> None:
    await store.create("w/x/j/0", b"data")
    assert re.fullmatch(rf"{re.escape(str(root))}/\.tmp/[0-9a-f]+/\d+", syncs[0])
    assert syncs[1] == f"{root}/w/x/j"
    assert {f"{root}/w/x", f"{root}/w", str(root), str(root.parent)} <= set(syncs[2:])
    syncs.clear()
    await store.create("w/x/j/1", b"data")
    assert [os.path.basename(path) for path in syncs[1:]] == ["j"]


async def test_s3_another_process_folder_is_not_believed_to_be_durable(
    store: Store, root: Path, syncs: list[str]
) -> None:
    await store.create("w/a", b"")
    (root / "w" / "x").mkdir()
    syncs.clear()
    await store.create("w/x/0", b"")
    assert f"{root}/w" in syncs


async def test_s7_a_value_whose_name_may_not_be_durable_is_made_so_before_it_is_read(
    store: Store, root: Path, syncs: list[str]
) -> None:
    await store.create("a/k", b"x")
    syncs.clear()
    await store.get("a/k")
    assert syncs == []
    # What a writer leaves between its link and its sync: two names.
    os.link(root / "a/k.obj", root / ".tmp" / "of-another-process")
    await store.get("a/k")
    assert f"{root}/a" in syncs
    syncs.clear()
    with pytest.raises(AlreadyExists):
        await store.create("a/k", b"y")
    assert f"{root}/a" in syncs
    syncs.clear()
    assert [c async for c in store.download("a/k")] == [b"x"]
    assert f"{root}/a" in syncs


async def test_a_batch_syncs_each_folder_once(store: Store, syncs: list[str]) -> None:
    await store.create_many([(f"{f}/{n}", b"") for f in "ab" for n in range(4)][:8])
    syncs.clear()
    results = await asyncio.to_thread(
        lambda: __import__("perdure.backends.local_batch", fromlist=["x"]).create_many(
            store._files,  # type: ignore[attr-defined]
            [(f"{f}/x{n}", b"") for n in range(8) for f in "ab"],
        )
    )
    assert results == [None] * 16
    assert sorted(os.path.basename(p) for p in syncs if "/.tmp/" not in p) == ["a", "b"]


# --- faults of the disk (W1) ----------------------------------------------------------------------------------


def fail_when(monkeypatch: pytest.MonkeyPatch, name: str, code: int, times: int = 1, only: str = "") -> None:
    """Let ``os.<name>`` (or the store's ``sync``) fail; ``only``: on paths that hold this text."""
    owner = local_files if name == "sync" else os
    real = getattr(owner, name)
    left = [times]

    def failing(*args: object, **options: object) -> object:
        about = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else str(args[0])
        if left[0] and (not only or only in about):
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return real(*args, **options)

    monkeypatch.setattr(owner, name, failing)


@pytest.mark.parametrize("method", ["create", "put", "upload", "create_many"])
@pytest.mark.parametrize(
    ("call", "code", "expected"),
    [
        ("write", 28, StoreError),
        ("sync", 5, StoreError),
        ("link", 28, StoreError),
        ("link", 5, StoreError),
        ("mkdir", 28, StoreError),
        ("open", 24, StoreUnavailable),
        ("open", 13, PermissionDenied),
    ],
)
async def test_w1_a_failure_before_the_name_is_published_leaves_nothing(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: str, code: int, expected: type
) -> None:
    await store.put("warm", b"")
    with monkeypatch.context() as patch:
        fail_when(patch, call, code, only="" if call in ("link", "mkdir") else ".tmp")
        if method == "create_many":
            error = (await store.create_many([("f/k", b"data")]))[0]
        else:
            with pytest.raises(StoreError) as caught:
                await (store.upload("f/k", [b"data"]) if method == "upload" else getattr(store, method)("f/k", b"data"))
            error = caught.value
    if (call, code) == ("link", 5) and method.startswith("create"):
        expected = StoreUnavailable  # the link is the publication; of the others it is the rename
    assert type(error) is expected
    assert (error.key, error.__cause__ is not None) == ("f/k", True)
    assert await keys_of(store) == ["warm"]
    for _ in range(200):
        if not temporary_files(root):
            break
        await asyncio.sleep(0.01)
    assert temporary_files(root) == []
    await store.create("f/k", b"again")
    assert bytes(await store.get("f/k")) == b"again"


@pytest.mark.parametrize("method", ["create", "put", "create_many", "delete"])
async def test_w1_a_failure_after_the_name_is_published_is_an_unknown_outcome(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    await store.create("f/other", b"")
    if method == "delete":
        await store.create("f/k", b"data")
    with monkeypatch.context() as patch:
        fail_when(patch, "sync", 5, only=f"{root}/f")
        if method == "create_many":
            error = (await store.create_many([("f/k", b"data")]))[0]
        else:
            with pytest.raises(StoreUnavailable) as caught:
                await getattr(store, method)("f/k", *([b"data"] if method != "delete" else []))
            error = caught.value
    assert isinstance(error, StoreUnavailable)
    assert await keys_of(store) == (["f/other"] if method == "delete" else ["f/k", "f/other"])


async def test_a_full_disk_is_a_definite_refusal_that_says_so(store: Store, root: Path) -> None:
    await store.put("k", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        for call in (
            store.create("n", bytes(1 << 20)),
            store.put("k", bytes(1 << 20)),
            store.upload("k", [bytes(1 << 20)]),
        ):
            with pytest.raises(StoreError, match="file size limit") as caught:
                await call
            assert not isinstance(caught.value, StoreUnavailable)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert bytes(await store.get("k")) == b"old"
    assert await keys_of(store) == ["k"]


async def test_a_failing_read_is_never_empty_and_never_not_found(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.create("k", b"data")
    with monkeypatch.context() as patch:
        fail_when(patch, "pread", 5)
        with pytest.raises(StoreError, match="input/output") as caught:
            await store.get("k")
        assert not isinstance(caught.value, NotFound)
    assert bytes(await store.get("k")) == b"data"


# --- crashes and leftovers ------------------------------------------------------------------------------------

WRITER = textwrap.dedent(
    """
    import asyncio, sys
    from perdure.store import open_store
    async def main():
        store = open_store(sys.argv[1])
        print("ready", flush=True)
        for number in range(10**6):
            await store.create(f"k/{sys.argv[2]}-{number}", b"%d" % number * 100_000)
            print(number, flush=True)
    asyncio.run(main())
    """
)


async def test_s2_s3_what_a_killed_writer_was_told_is_there_and_the_rest_is_whole_or_absent(
    store: Store, root: Path
) -> None:
    for run in range(6):
        writer = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-c", WRITER, str(root), str(run)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        told = [int(writer.stdout.readline()) for _ in range(run + 1)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split()]
        writer.wait()
        writer.stdout.close()
        found = {key.partition("-")[2] for key in await keys_of(store, f"k/{run}-")}
        assert {str(number) for number in told} <= found
        for number in found:
            assert bytes(await store.get(f"k/{run}-{number}")) == number.encode() * 100_000
    # Each process sweeps what dead ones left, when it first writes.
    async with open_store(str(root)) as fresh:
        await fresh.create("sweep", b"")
        assert temporary_files(root) == []


async def test_temporary_files_of_living_processes_are_left_alone(store: Store, root: Path) -> None:
    started = asyncio.Event()
    go_on = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(8 << 20)
        started.set()
        await go_on.wait()
        yield b"end"

    upload = asyncio.create_task(store.upload("big", chunks()))
    await started.wait()
    async with open_store(str(root)) as other:
        await other.create("k", b"")
    go_on.set()
    await upload
    assert await store.stat("big") == (8 << 20) + 3


async def test_a_cancelled_upload_leaves_no_temporary_file(store: Store, root: Path) -> None:
    started = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield bytes(8 << 20)
        started.set()
        await asyncio.Event().wait()

    upload = asyncio.create_task(store.upload("big", chunks()))
    await started.wait()
    upload.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await upload
    for _ in range(200):
        if not temporary_files(root):
            break
        await asyncio.sleep(0.01)
    assert temporary_files(root) == []
    assert await keys_of(store) == []


def test_a_forked_child_works_at_once_and_leaves_the_parents_files_alone(root: Path) -> None:
    store = open_store(str(root))
    asyncio.run(store.create("parent", b"1"))
    pid = os.fork()
    if pid == 0:
        try:

            async def child() -> None:
                await store.create("child", bytes(await store.get("parent")))
                await store.aclose()

            asyncio.run(child())
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0

    async def parent() -> list[str]:
        await store.create("after", b"")
        found = await keys_of(store)
        await store.aclose()
        return found

    assert asyncio.run(parent()) == ["after", "child", "parent"]
    assert list((root / ".tmp").iterdir()) == []


async def test_close_frees_descriptors_threads_and_the_temporary_folder(root: Path) -> None:
    import threading

    threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        store = open_store(str(root))
        await asyncio.gather(*(store.put(f"k{n}", b"") for n in range(20)))
        await store.aclose()
    assert not set(threading.enumerate()) - threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert list((root / ".tmp").iterdir()) == []


async def test_a_slow_disk_moves_reads_into_threads(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    assert isinstance(store, LocalStore)
    await store.create("k", b"x")
    real = os.pread

    def slow(fd: int, count: int, at: int) -> bytes:
        time.sleep(0.03)
        return real(fd, count, at)

    monkeypatch.setattr(os, "pread", slow)
    assert store._inline
    await store.get("k")
    assert not store._inline
    assert bytes(await store.get("k")) == b"x"
