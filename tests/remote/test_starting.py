"""`workflow.init` with a store that can't be used: one clear error, soon, and nothing changed there."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator

import pytest
import servers
from support import stored
from support.clusters import Console, Head, Refused
from support.remote import ENVIRONMENT
from support.stores import start

from perdure.store import open_store


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with Head(env=ENVIRONMENT) as made:
        yield made


def refused(head: Head, url: str, **env: str) -> Refused:
    with pytest.raises(Refused) as info:
        Console(head, storage=url, env=ENVIRONMENT | env).kill()
    return info.value


@pytest.fixture(scope="module")
def s3() -> Iterator[servers.Server]:
    running = start(lambda: servers.Ministack())
    yield running
    running.stop()


@pytest.mark.parametrize(
    "make_url",
    [
        lambda port: f"s3://b/p?endpoint=http://127.0.0.1:{port}&region=us-east-1",
        lambda port: f"gs://b/p?endpoint=http://127.0.0.1:{port}",
        lambda port: f"redis://127.0.0.1:{port}/0/p",
    ],
    ids=["s3", "gs", "redis"],
)
@pytest.mark.parametrize("listening", [False, True], ids=["refused", "silent"])
def test_an_endpoint_without_answer_is_said_soon(head: Head, make_url: object, listening: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        began = time.monotonic()
        error = refused(head, make_url(silent.getsockname()[1]))  # type: ignore[operator]
        took = time.monotonic() - began
    assert error.kind == "StoreUnavailable"
    assert "Check the address" in error.text
    assert took < 18, "8 s of waiting, and the starts of a driver and a coordinator"


def test_a_missing_bucket_is_said(head: Head, s3: servers.Server) -> None:
    error = refused(head, s3.url("x").replace(servers.BUCKET, "no-such-bucket"))
    assert error.kind == "StoreError"
    assert "bucket 'no-such-bucket' does not exist" in error.text


def test_a_wrong_password_is_permission_denied_and_is_not_shown(head: Head) -> None:
    server = start(lambda: servers.Redis(requirepass=servers.Redis.password))
    try:
        error = refused(head, f"redis://127.0.0.1:{server.port}/0/x?password=wrong-password-17")
    finally:
        server.stop()
    assert error.kind == "PermissionDenied"
    assert "PERDURE_REDIS_PASSWORD" in error.text
    assert "wrong-password-17" not in error.text


def test_a_server_that_ignores_conditional_writes_is_refused(head: Head) -> None:
    server = start(lambda: servers.Rclone())
    try:
        error = refused(head, server.url("x"))
    finally:
        server.stop()
    assert error.kind == "StoreError"
    assert "a second create of one key succeeded" in error.text


def test_a_prefix_with_other_peoples_objects_is_refused_and_left_alone(head: Head, s3: servers.Server) -> None:
    async def write() -> None:
        async with open_store(s3.url("shared")) as store:
            await store.put("report.csv", b"1,2")

    asyncio.run(write())
    error = refused(head, s3.url("shared"))
    assert error.kind == "FormatError"
    assert "report.csv" in error.text
    assert stored.keys_below(s3.url("shared"), "") == ["report.csv"]
