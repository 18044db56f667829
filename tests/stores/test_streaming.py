"""Large values pass through a process in little memory; a writer that is killed leaves nothing that is listed.

Sizes: 256 MiB here, 1 and 5 GiB nightly.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from support.stores import SERVER_KINDS, start

from perdure.backends import s3
from perdure.store import Store, open_store

MIB = 1 << 20
MEMORY = 64 * MIB

SIZES = [
    pytest.param(256, id="256 MiB"),
    pytest.param(1024, id="1 GiB", marks=[pytest.mark.nightly, pytest.mark.timeout(600)]),
    pytest.param(5 * 1024, id="5 GiB", marks=[pytest.mark.nightly, pytest.mark.timeout(1800)]),
]
KINDS = ("file", "s3-ministack", "s3-seaweedfs", "gs", "redis")

# Its argument is a JSON list: url, size in MiB (-1: without end). It prints what it saw as JSON.
CHILD = """
import asyncio, hashlib, json, sys
from perdure.conformance import resources
from perdure.store import open_store

MIB = 1 << 20
url, size = json.loads(sys.argv[1])
block = hashlib.shake_128(b"block").digest(MIB)

async def main():
    async with open_store(url) as store:
        await store.put("warm", b"x" * MIB)
        await store.get("warm")
        sent, got, length = hashlib.blake2b(), hashlib.blake2b(), 0

        async def chunks():
            number = 0
            while number != size:
                part = number.to_bytes(8) + block[8:]
                number += 1
                sent.update(part)
                yield part
                if size < 0 and number == 40:
                    print("begun", flush=True)

        idle = resources.memory()
        resources.reset_peak()
        await store.upload("large", chunks())
        up = resources.peak() - idle
        resources.reset_peak()
        async for chunk in store.download("large"):
            got.update(chunk)
            length += len(chunk)
        down = resources.peak() - idle
        print(json.dumps({"up": up, "down": down, "length": length, "equal": sent.digest() == got.digest()}))

asyncio.run(main())
"""


@pytest.fixture
def own(kind: str) -> Iterator[servers.Server | None]:
    """The server of the kind for this test alone, whose data are gone when it ends; None for a folder."""
    if kind == "file":
        yield None
        return
    made = (lambda: servers.FakeGcs(backend="filesystem")) if kind == "gs" else SERVER_KINDS[kind]
    server = start(made)
    yield server
    server.stop()


@pytest.fixture
def place(own: servers.Server | None) -> Iterator[str]:
    if own is not None:
        yield own.url("streams")
        return
    folder = tempfile.mkdtemp(prefix="perdure-streams-")
    yield f"file://{folder}/store"
    shutil.rmtree(folder)


def room_for(mebibytes: int) -> None:
    """Skips where disk or memory could not hold what a server keeps of a value."""
    free = shutil.disk_usage(tempfile.gettempdir()).free
    text = Path("/proc/meminfo").read_text() if os.path.exists("/proc/meminfo") else "MemAvailable: 0 kB"
    available = int(text.split("MemAvailable:")[1].split()[0]) << 10
    if free < 4 * mebibytes * MIB or available < 3 * mebibytes * MIB:
        pytest.skip(f"a value of {mebibytes} MiB needs more disk ({free:,} free) or memory ({available:,} available)")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
async def test_v1_a_large_value_goes_both_ways_in_64_mib(
    size: int, kind: str, place: str, record_property: pytest.FixtureRequest
) -> None:
    room_for(size)
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, json.dumps([place, size]), stdout=asyncio.subprocess.PIPE
    )
    out, _ = await child.communicate()
    assert child.returncode == 0
    seen = json.loads(out)
    for way in ("up", "down"):
        record_property(f"{way}_mib", round(seen[way] / MIB, 1))  # type: ignore[operator]
        print(f"{kind}: {size} MiB {way}: {seen[way] / MIB:.1f} MiB over idle")
    assert seen["length"] == size * MIB
    assert seen["equal"]
    assert seen["up"] <= MEMORY
    assert seen["down"] <= MEMORY


async def begun_and_killed(place: str) -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CHILD, json.dumps([place, -1]), stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    assert (await asyncio.wait_for(child.stdout.readline(), 60)).strip() == b"begun"
    child.send_signal(signal.SIGKILL)
    await child.wait()


async def listed(store: Store) -> list[str]:
    return [key async for key, _ in store.list("")]


@pytest.mark.parametrize("kind", KINDS)
async def test_s2_of_a_writer_that_is_killed_nothing_is_listed(kind: str, place: str) -> None:
    await begun_and_killed(place)
    async with open_store(place) as store:
        assert await listed(store) == ["warm"]
        await store.upload("large", [b"whole"])  # the name is free
        assert bytes(await store.get("large")) == b"whole"


@pytest.mark.parametrize("kind", ["s3-ministack", "s3-seaweedfs"])
async def test_the_parts_that_a_killed_writer_left_are_removed_once_they_are_old(
    kind: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun_and_killed(place)
    async with open_store(place) as store:

        async def uploads() -> int:
            client = await store._client()  # type: ignore[attr-defined]
            answer = await client.list_multipart_uploads(Bucket=servers.BUCKET)
            return len(answer.get("Uploads", ()))

        assert await uploads() == 1
        await store.check()
        assert await uploads() == 1, "a week has not passed: its writer may live"
        monkeypatch.setattr(s3, "_STALE", datetime.timedelta(seconds=-10))  # the server tells whole seconds
        await store.check()
        assert await uploads() == 0


@pytest.mark.parametrize("kind", ["redis"])
async def test_the_pieces_that_a_killed_writer_left_expire(kind: str, place: str) -> None:
    await begun_and_killed(place)
    async with open_store(place) as store:
        client = (await store._client()).redis  # type: ignore[attr-defined]
        pieces = [key async for key in client.scan_iter(store._pieces(b"") + b"*")]  # type: ignore[attr-defined]
        assert pieces
        for piece in pieces:
            assert 0 < await client.ttl(piece) <= 7 * 86_400


@pytest.mark.parametrize("kind", ["file"])
async def test_the_temporary_file_that_a_killed_writer_left_goes_at_the_next_write(kind: str, place: str) -> None:
    await begun_and_killed(place)
    folder = Path(place.removeprefix("file://"))

    def size() -> int:
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    assert size() > 30 * MIB
    async with open_store(place) as store:
        await store.put("next", b"x")
    assert size() < 2 * MIB
