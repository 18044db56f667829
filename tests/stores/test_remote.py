"""Stores behind a network beyond the contract: settings that lose data, faults, credentials, restarts."""

from __future__ import annotations

import asyncio
import logging
import os
import pickle
import socket
import sys
import textwrap
import time
from collections.abc import Iterator

import pytest
import servers
from botocore.exceptions import ClientError
from support.stores import SERVER_KINDS, Servers, start

from perdure.backends import s3_errors
from perdure.backends.gcs import _HttpError
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.guarded_store import GuardedStore, probe
from perdure.store import open_store

RESTARTABLE = ("s3-ministack", "redis", "redis-everysec")


@pytest.fixture
def own_server(request: pytest.FixtureRequest) -> Iterator[servers.Server]:
    """A server of the kind in the parameter, for this test alone."""
    server = start(request.param if callable(request.param) else SERVER_KINDS[request.param])
    yield server
    server.stop()


async def caught(call: object) -> StoreError:
    with pytest.raises(StoreError) as info:
        await call  # type: ignore[misc]
    return info.value


# --- servers that lie, and settings that lose data ------------------------------------------------------------


@pytest.mark.parametrize("own_server", [servers.Rclone], indirect=True)
async def test_a_server_that_ignores_conditional_writes_is_refused_by_name(own_server: servers.Server) -> None:
    async with open_store(own_server.url("x")) as store:
        error = await caught(probe(store))
    assert "a second create of one key succeeded" in str(error)
    assert own_server.address in str(error)


@pytest.mark.parametrize("kind", tuple(SERVER_KINDS))
async def test_the_probe_accepts_every_supported_server(kind: str, url: str) -> None:
    async with open_store(url) as store:
        report = await probe(store)
        assert report.warnings == ()
        assert [key async for key, _ in store.list("")] == []


@pytest.mark.parametrize(
    ("settings", "option", "loss"),
    [
        ({"fsync": "no"}, "durability=process", "a restart of the server loses acknowledged work"),
        ({"fsync": "everysec"}, "durability=server", "a power cut loses about the last second"),
        ({"maxmemory": "100mb", "maxmemory_policy": "allkeys-lru"}, "accept_loss=true", "remove acknowledged work"),
        ({"replicaof": "127.0.0.1 1"}, "accept_loss=true", "a failover may drop an acknowledged create"),
    ],
    ids=["no file", "everysec", "eviction", "replica"],
)
async def test_a_redis_that_may_lose_work_is_refused_unless_accepted(
    settings: dict[str, str], option: str, loss: str
) -> None:
    server = start(lambda: servers.Redis(**settings))
    try:
        address = f"redis://127.0.0.1:{server.port}/0/x"
        async with open_store(address) as store:
            error = await caught(store.check())
        assert loss in str(error)
        assert option in str(error)
        async with open_store(f"{address}?{option}") as store:
            warnings = await store.check()
            assert all(loss in warning for warning in warnings)
            assert store.capabilities.durability == option.partition("durability=")[2] or "power"
    finally:
        server.stop()


@pytest.mark.parametrize("own_server", ["s3-ministack"], indirect=True)
async def test_versioning_is_a_warning_and_a_lifecycle_rule_on_our_objects_a_refusal(
    own_server: servers.Server,
) -> None:
    import botocore.session

    client = botocore.session.get_session().create_client(
        "s3", endpoint_url=own_server.address, region_name="us-east-1"
    )
    client.put_bucket_versioning(Bucket=servers.BUCKET, VersioningConfiguration={"Status": "Enabled"})

    def expire(prefix: str) -> None:
        rule = {"ID": "tidy", "Status": "Enabled", "Filter": {"Prefix": prefix}, "Expiration": {"Days": 1}}
        client.put_bucket_lifecycle_configuration(Bucket=servers.BUCKET, LifecycleConfiguration={"Rules": [rule]})

    expire("other/")
    async with open_store(own_server.url("ours")) as store:
        (warning,) = await store.check()
        assert "keeps old versions" in warning
        for touching in ("", "ou", "ours/w/"):
            expire(touching)
            assert "lifecycle rule (tidy)" in str(await caught(store.check()))
    async with open_store(own_server.url("ours"), accept_lifecycle=True) as store:
        assert len(await store.check()) == 2
    client.close()


# --- wrong addresses and credentials --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["s3-ministack", "gs"])
async def test_a_missing_bucket_is_said_by_every_method_and_is_not_not_found(kind: str, url: str) -> None:
    async with open_store(url.replace(servers.BUCKET, "no-such-bucket")) as store:
        for call in (
            store.get("k"),
            store.stat("k"),
            store.create("k", b""),
            store.put("k", b""),
            store.upload("k", [bytes(9 << 20)]),
            anext(store.list("")),
            anext(store.download("k")),
            probe(store),
        ):
            error = await caught(call)
            assert type(error) is StoreError
            assert "bucket 'no-such-bucket' does not exist" in str(error)


@pytest.mark.parametrize("kind", ["s3-seaweedfs", "rediss"])
async def test_wrong_credentials_are_permission_denied_at_once_and_show_no_secret(
    kind: str, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = "wrong-secret-71aa"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong)
    monkeypatch.setenv("PERDURE_REDIS_PASSWORD", wrong)
    caplog.set_level(logging.DEBUG)
    async with open_store(url) as store:
        for call in (store.get("k"), store.create("k", b""), store.delete("k"), anext(store.list(""))):
            began = time.monotonic()
            error = await caught(call)
            assert isinstance(error, PermissionDenied)
            assert time.monotonic() - began < 3
            shown = f"{error!r} {error.__cause__!r} {pickle.dumps(error)!r} {pickle.dumps(store)!r}"
            assert wrong not in shown
    assert wrong not in caplog.text


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
async def test_an_endpoint_without_answer_is_an_error_within_ten_seconds(make_url: object, listening: bool) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if listening:
            silent.listen()
        async with open_store(make_url(silent.getsockname()[1])) as store:  # type: ignore[operator]
            began = time.monotonic()
            error = await caught(probe(store, timeout=2 if listening else 1))
            assert isinstance(error, StoreUnavailable)
            assert time.monotonic() - began < 9
            assert "Check the address" in str(error)
            began = time.monotonic()
            task = asyncio.create_task(store.get("k"))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task], timeout=1)
            assert task.done()


async def test_retries_end_after_retry_seconds() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        async with open_store(f"redis://127.0.0.1:{taken.getsockname()[1]}/0/p?retry_seconds=0.5") as store:
            assert store.capabilities.retry_seconds == 0.5
            began = time.monotonic()
            error = await caught(store.create("k", b""))
            assert isinstance(error, StoreUnavailable)
            assert 0.1 < time.monotonic() - began < 5
            assert store.trouble is not None


# --- restarts, forks, many loops ------------------------------------------------------------------------------


@pytest.mark.parametrize("own_server", RESTARTABLE, indirect=True)
async def test_s3_nothing_acknowledged_is_lost_when_the_server_is_killed_and_calls_go_on_by_themselves(
    own_server: servers.Server,
) -> None:
    async with open_store(own_server.url("x")) as store:
        guarded = GuardedStore(store)
        told: list[str] = []

        async def write(lane: int) -> None:
            for number in range(12):
                token = os.urandom(16)
                await guarded.create_once(f"{lane}/{number:03}", b"headhead" + token, token)
                told.append(f"{lane}/{number:03}")
                await asyncio.sleep(0.02)

        lanes = [asyncio.create_task(write(lane)) for lane in range(4)]
        while len(told) < 10:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(own_server.restart)
        await asyncio.gather(*lanes)
        assert [key async for key, _ in store.list("")] == sorted(told)
        assert len(told) == 48
        values = await store.get_many(told)
        assert not [value for value in values if isinstance(value, StoreError)]


CHILD = textwrap.dedent(
    """
    import asyncio, pickle, sys
    store = pickle.loads(bytes.fromhex(sys.argv[1]))
    async def main():
        wins = 0
        for number in range(20):
            try:
                await store.create(f"race/{number}", sys.argv[2].encode())
                wins += 1
            except Exception as e:
                assert type(e).__name__ == "AlreadyExists", e
        print(wins)
        await store.aclose()
    asyncio.run(main())
    """
)


@pytest.mark.parametrize("kind", ["s3-ministack", "s3-seaweedfs", "gs", "redis", "rediss"])
async def test_pickled_copies_in_other_processes_race_with_one_winner_each(kind: str, url: str) -> None:
    async with open_store(url) as store:
        await store.put("warm", b"")
        copy = pickle.dumps(store).hex()
        children = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", CHILD, copy, f"child-{n}", stdout=asyncio.subprocess.PIPE
            )
            for n in range(3)
        ]
        outputs = [(await child.communicate())[0] for child in children]
        assert sum(int(out) for out in outputs) == 20
        listed = [key async for key, _ in store.list("race/")]
        assert len(listed) == 20


@pytest.mark.parametrize("kind", ["s3-ministack", "gs", "redis"])
def test_a_forked_child_opens_its_own_connections(kind: str, url: str) -> None:
    store = open_store(url)
    asyncio.run(store.put("parent", b"1"))
    pid = os.fork()
    if pid == 0:
        try:

            async def child() -> None:
                await store.create("child", bytes(await store.get("parent")))

            asyncio.run(asyncio.wait_for(child(), 10))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0

    async def parent() -> list[str]:
        found = [key async for key, _ in store.list("")]
        await store.aclose()
        return found

    assert asyncio.run(parent()) == ["child", "parent"]


# --- streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["s3-ministack", "s3-seaweedfs", "gs", "redis"])
async def test_a_cancelled_upload_leaves_nothing_listed_and_nothing_behind(kind: str, url: str) -> None:
    started = asyncio.Event()

    async def chunks() -> object:
        yield bytes(20 << 20)
        started.set()
        await asyncio.Event().wait()

    async with open_store(url) as store:
        upload = asyncio.create_task(store.upload("big", chunks()))  # type: ignore[arg-type]
        await started.wait()
        upload.cancel()
        await asyncio.wait([upload])
        assert [key async for key, _ in store.list("")] == []
        if kind.startswith("s3"):
            client = await store._client()  # type: ignore[attr-defined]
            answer = await client.list_multipart_uploads(Bucket=servers.BUCKET, Prefix=store._prefix)  # type: ignore[attr-defined]
            assert not answer.get("Uploads")
        if kind == "redis":
            client = (await store._client()).redis  # type: ignore[attr-defined]
            assert [k async for k in client.scan_iter(store._pieces(b"") + b"*")] == []  # type: ignore[attr-defined]


async def test_redis_frees_the_pieces_of_large_values_that_are_replaced_or_deleted(session_servers: Servers) -> None:
    async with open_store(session_servers.get("redis").url("pieces")) as store:
        client = (await store._client()).redis  # type: ignore[attr-defined]

        async def pieces() -> int:
            return len([k async for k in client.scan_iter(store._pieces(b"") + b"*")])  # type: ignore[attr-defined]

        await store.upload("a", [bytes(9 << 20)])
        await store.upload("b", [bytes(9 << 20)])
        assert await pieces() == 6
        assert await client.ttl(await anext(client.scan_iter(store._pieces(b"") + b"*"))) == -1  # type: ignore[attr-defined]
        await store.upload("a", [bytes(5 << 20)])
        assert await pieces() == 5
        await store.put("a", b"small")
        await store.delete("b")
        assert await pieces() == 0


# --- what answers mean ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "http", "expected"),
    [
        ("PreconditionFailed", 412, AlreadyExists),
        ("412", 412, AlreadyExists),
        ("ConditionalRequestConflict", 409, StoreUnavailable),
        ("OperationAborted", 409, StoreUnavailable),
        ("", 409, StoreUnavailable),
        ("NoSuchKey", 404, NotFound),
        ("404", 404, NotFound),
        ("NoSuchBucket", 404, StoreError),
        ("NoSuchUpload", 404, StoreError),
        ("SlowDown", 503, StoreUnavailable),
        ("InternalError", 500, StoreUnavailable),
        ("", 502, StoreUnavailable),
        ("TooManyRequests", 429, StoreUnavailable),
        ("RequestTimeout", 400, StoreUnavailable),
        ("AccessDenied", 403, PermissionDenied),
        ("", 403, PermissionDenied),
        ("", 401, PermissionDenied),
        ("ExpiredToken", 400, PermissionDenied),
        ("SignatureDoesNotMatch", 403, PermissionDenied),
        ("RequestTimeTooSkewed", 403, StoreError),
        ("NotImplemented", 501, StoreError),
        ("PermanentRedirect", 301, StoreError),
        ("EntityTooLarge", 400, StoreError),
    ],
)
def test_w3_s3_answers_mean_what_they_say(code: str, http: int, expected: type[StoreError]) -> None:
    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": http}}
    assert type(s3_errors.from_client_error(ClientError(answer, "PutObject"), "b")) is expected


def test_a_wrong_region_is_answered_with_the_right_one() -> None:
    answer = {
        "Error": {"Code": "PermanentRedirect"},
        "ResponseMetadata": {"HTTPStatusCode": 301, "HTTPHeaders": {"x-amz-bucket-region": "eu-west-3"}},
    }
    assert "?region=eu-west-3" in str(s3_errors.from_client_error(ClientError(answer, "PutObject"), "b"))


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (412, "", AlreadyExists),
        (409, "", StoreUnavailable),
        (404, "No such object: b/k", NotFound),
        (404, '{"error": {"message": "The specified bucket does not exist."}}', StoreError),
        (429, "", StoreUnavailable),
        (503, "", StoreUnavailable),
        (408, "", StoreUnavailable),
        (403, '{"error": {"message": "m", "errors": [{"reason": "rateLimitExceeded"}]}}', StoreUnavailable),
        (403, "", PermissionDenied),
        (401, "", PermissionDenied),
        (400, "", StoreError),
    ],
)
def test_w3_gcs_answers_mean_what_they_say(status: int, text: str, expected: type[StoreError]) -> None:
    assert type(_HttpError(status, text).mapped("b")) is expected


async def test_w1_a_refusal_after_an_attempt_without_an_answer_is_doubt() -> None:
    async with open_store("redis://127.0.0.1:1/0/x") as store:
        failures: list[Exception] = [ConnectionResetError("answer lost"), PermissionDenied("no")]

        async def attempt(client: object) -> None:
            raise failures.pop(0)

        error = await caught(store._try(attempt, write=True))  # type: ignore[attr-defined]
        assert type(error) is StoreUnavailable
        failures[:] = [ConnectionResetError("answer lost"), PermissionDenied("no")]
        assert type(await caught(store._try(attempt))) is PermissionDenied  # type: ignore[attr-defined]
        failures[:] = [ConnectionResetError("answer lost"), AlreadyExists("it exists")]
        assert type(await caught(store._try(attempt, write=True))) is AlreadyExists  # type: ignore[attr-defined]
