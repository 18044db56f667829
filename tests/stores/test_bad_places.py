"""Places that can't hold workflows as they are: one clear error, or a warning, that says what to do."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import servers
from botocore.exceptions import ClientError
from support.stores import Servers, start

from perdure.backends import s3_errors
from perdure.conformance.proxy import Fault, FaultProxy, Request
from perdure.errors import PermissionDenied, StoreError, StoreUnavailable
from perdure.guarded_store import probe
from perdure.store import open_store


def proxied(server: servers.Server, proxy: FaultProxy, prefix: str) -> str:
    return server.url(prefix).replace(f":{server.port}", f":{proxy.address[1]}")


# --- Redis ----------------------------------------------------------------------------------------------------


async def test_a_redis_with_replicas_is_refused_unless_accepted() -> None:
    server = start(lambda: servers.Redis())
    replica = start(lambda: servers.Redis(replicaof=f"127.0.0.1 {server.port}"))
    try:
        async with open_store(server.url("x")) as store:
            client = (await store._client()).redis  # type: ignore[attr-defined]
            deadline = time.monotonic() + 30
            while not (await client.info("replication"))["connected_slaves"]:
                assert time.monotonic() < deadline, "the replica did not connect"
            with pytest.raises(StoreError, match="1 replicas are connected") as info:
                await store.check()
            assert "a failover may drop an acknowledged create" in str(info.value)
            assert "?accept_loss=true" in str(info.value)
        async with open_store(server.url("x") + "?accept_loss=true") as store:
            (warning,) = (await probe(store)).warnings
            assert "failover" in warning
    finally:
        replica.stop()
        server.stop()


# --- credentials ----------------------------------------------------------------------------------------------


async def test_s3_without_credentials_says_which_variables_to_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    async with open_store("s3://b/p?endpoint=http://127.0.0.1:9&region=us-east-1") as store:
        with pytest.raises(PermissionDenied, match="AWS_ACCESS_KEY_ID"):
            await store.get("k")
    async with open_store("s3://b/p?endpoint=http://127.0.0.1:9&region=us-east-1&profile=nobody") as store:
        with pytest.raises(PermissionDenied, match="nobody"):
            await store.get("k")


async def test_gs_with_a_missing_credentials_file_says_so(session_servers: Servers) -> None:
    url = session_servers.get("gs").url("x") + "&credentials=/no/such/key.json"
    async with open_store(url) as store:
        with pytest.raises(PermissionDenied, match=r"/no/such/key\.json' is neither a file here"):
            await store.get("k")


EXPIRED = Fault("status", 400, b"<Error><Code>ExpiredToken</Code><Message>The token has expired.</Message></Error>")
SKEWED = Fault("status", 403, b"<Error><Code>RequestTimeTooSkewed</Code><Message>Too large.</Message></Error>")


@pytest.mark.parametrize(
    ("fault", "kind", "text"),
    [(EXPIRED, PermissionDenied, "get a new one"), (SKEWED, StoreError, "NTP")],
    ids=["expired token", "clock skew"],
)
async def test_what_a_server_says_of_credentials_and_clocks_comes_out_at_once(
    session_servers: Servers, fault: Fault, kind: type[StoreError], text: str
) -> None:
    server = session_servers.get("s3-ministack")
    async with FaultProxy(("127.0.0.1", server.port)) as proxy, open_store(proxied(server, proxy, "told")) as store:
        await store.put("k", b"1")
        proxy.always(lambda request: fault)
        began = time.monotonic()
        with pytest.raises(StoreError, match=text) as info:
            await store.get("k")
        assert type(info.value) is kind
        assert not isinstance(info.value, StoreUnavailable)
        assert time.monotonic() - began < 5
        proxy.always(None)
        assert bytes(await store.get("k")) == b"1"  # new credentials, the same instance


def test_a_wrong_region_in_a_signature_is_answered_with_the_right_one() -> None:
    answer = {
        "Error": {"Code": "AuthorizationHeaderMalformed", "Region": "eu-west-3"},
        "ResponseMetadata": {"HTTPStatusCode": 400},
    }
    assert "?region=eu-west-3" in str(s3_errors.from_client_error(ClientError(answer, "GetObject"), "b"))


# --- settings of a GCS bucket ---------------------------------------------------------------------------------


def rule(action: str, **condition: object) -> dict[str, object]:
    return {"action": {"type": action}, "condition": condition}


@pytest.mark.parametrize(
    ("settings", "outcome"),
    [
        ({"versioning": {"enabled": True}}, "keeps old versions"),
        ({"retentionPolicy": {"retentionPeriod": "60"}}, "retention policy"),
        ({"lifecycle": {"rule": [rule("Delete", age=30)]}}, "refused"),
        ({"lifecycle": {"rule": [rule("Delete", age=30, matchesPrefix=["watched/"])]}}, "refused"),
        ({"lifecycle": {"rule": [rule("Delete", age=30, matchesPrefix=["other/"])]}}, ""),
        ({"lifecycle": {"rule": [rule("Delete", age=30, isLive=False)]}}, ""),
        ({"lifecycle": {"rule": [rule("SetStorageClass", age=30)]}}, ""),
        ({}, ""),
    ],
)
async def test_s8_bucket_settings_that_endanger_a_store_are_told(
    session_servers: Servers, settings: dict[str, object], outcome: str
) -> None:
    """fake-gcs-server has none of these settings: the answer about the bucket is put into its mouth."""
    server = session_servers.get("gs")

    def told(request: Request) -> Fault | None:
        asks = request.method == "GET" and "fields=versioning" in request.target
        return Fault("spell", 200, json.dumps(settings).encode()) if asks else None

    async with FaultProxy(("127.0.0.1", server.port)) as proxy:
        proxy.always(told)
        url = proxied(server, proxy, "watched")
        async with open_store(url) as store:
            if outcome == "refused":
                with pytest.raises(StoreError, match="acknowledged work would be lost"):
                    await probe(store)
            else:
                warnings = (await probe(store)).warnings
                assert len(warnings) == bool(outcome)
                assert all(outcome in warning for warning in warnings)
        if outcome == "refused":
            async with open_store(url, accept_lifecycle=True) as store:
                assert len((await probe(store)).warnings) == 1
        assert proxy.fired
