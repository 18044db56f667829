"""Store care on real servers: from S3 to GCS to a folder, a collection on each, uploads that were cut off."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from support.commands import here
from support.filled import engine, fill, go_on, right, run
from support.stored import keys_below
from support.stores import start

from perdure.errors import WorkflowNotResumableError
from perdure.store import open_store


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up credentials in the environment, where users have theirs too."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET_KEY)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def _running(kind: type[servers.Server]) -> Iterator[servers.Server]:
    servers.install_signal_handler()
    server = start(kind)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def s3() -> Iterator[servers.Server]:
    yield from _running(servers.Ministack)


@pytest.fixture(scope="module")
def gcs() -> Iterator[servers.Server]:
    yield from _running(servers.FakeGcs)


@pytest.fixture(scope="module")
def redis() -> Iterator[servers.Server]:
    yield from _running(servers.Redis)


def test_a_workflow_goes_from_s3_to_gcs_to_a_folder_and_ends_there(
    s3: servers.Server, gcs: servers.Server, tmp_path: Path
) -> None:
    first, second, third = s3.url("care/a"), gcs.url("care/b"), f"file://{tmp_path}/c"
    asyncio.run(fill(first))
    for source, target in ((first, second), (second, third)):
        done = here("copy", source, target, "-o", "json")
        assert done.code == 0, done.err
        assert {row["workflow_id"]: row["result"] for row in json.loads(done.out)} == {
            "done": "copied",
            "open": "copied",
            "twin": "copied",
        }
        assert here("verify", target).code == 0
    assert asyncio.run(go_on(third, "open")) == right(4, 5)
    for source in (first, second):
        with pytest.raises(WorkflowNotResumableError, match="has moved to"):
            asyncio.run(go_on(source, "open"))
    assert here("status", "done", "-s", third).out.strip() == "SUCCESSFUL"


@pytest.mark.parametrize("kind", ["s3", "gcs", "redis"])
def test_a_collection_takes_what_a_deleted_workflow_had(kind: str, request: pytest.FixtureRequest) -> None:
    url = request.getfixturevalue(kind).url("care/gc")

    async def make() -> None:
        async with engine(url) as coordinator:
            await run(coordinator, "x", 1, 2)
            await run(coordinator, "y", 2, 3)

    asyncio.run(make())
    assert here("gc", url, "--older-than", "1h", "--yes").code == 0
    assert len(keys_below(url, "blobs/")) == 3
    assert here("delete", "x", "-s", url).code == 0
    done = here("gc", url, "-o", "json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["counts"]["blob"] == 1
    assert len(keys_below(url, "blobs/")) == 2
    assert here("verify", url).code == 0


def test_multipart_uploads_of_older_cycles_are_aborted_and_those_of_the_running_one_go_on(s3: servers.Server) -> None:
    url = s3.url("care/parts")

    async def begin(cycle: int) -> str:
        async with open_store(url) as store:
            name = f"blobs/{cycle}/{'0' * 64}"
            answer = await store._try(lambda client: store._begin(client, name), write=True)  # type: ignore[attr-defined]
            return str(answer)

    async def make() -> None:
        async with engine(url) as coordinator:
            await run(coordinator, "x", 1)

    asyncio.run(make())
    for cycle in (0, 5):
        asyncio.run(begin(cycle))
    done = here("gc", url, "-o", "json")
    assert done.code == 0, done.err
    found = [item["name"] for item in json.loads(done.out)["items"] if item["kind"] == "upload"]
    assert found == [f"multipart upload of blobs/0/{'0' * 64}"]
    again = json.loads(here("gc", url, "-o", "json").out)
    assert again["counts"]["upload"] == 0
