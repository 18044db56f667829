"""Store URLs: grammar, options, and secrets that stay out of sight."""

from __future__ import annotations

import pickle

import pytest

from perdure.backends.redis import RedisStore
from perdure.backends.s3 import S3Store
from perdure.store import open_store
from perdure.store_url import parse

SECRET = "hush-9d21"


def test_plain_paths_are_file_urls_taken_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert open_store("/data/a b%20c").url == "file:///data/a%20b%2520c"
    assert open_store("~/x").url == "file:///home/me/x"
    assert open_store("file:///data/a%20b").url == "file:///data/a%20b"


def test_the_canonical_url_opens_the_same_store_with_every_option() -> None:
    first = open_store("s3://bucket/some/prefix?region=eu-west-1", endpoint="http://localhost:9000", retry_seconds=5)
    second = open_store(first.url)
    assert (second.url, second.capabilities) == (first.url, first.capabilities)
    assert second.capabilities.retry_seconds == 5


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relative/path",
        "s3:bucket",
        "file://host/x",
        "file://",
        "s3://",
        "gs://",
        "s3://b:80/x",
        "redis://h:99999/0",
        "file:///a#b",
    ],
)
def test_malformed_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError):
        open_store(url)


def test_unknown_options_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"'colour'.*known: append_only, create, multi_host"):
        open_store("file:///data?colour=red")
    with pytest.raises(ValueError, match="retry_seconds='soon'"):
        open_store("redis://host/0?retry_seconds=soon")
    with pytest.raises(ValueError, match="create='maybe'"):
        open_store("/data", create="maybe")
    with pytest.raises(TypeError, match="create"):
        open_store("/data", create=["x"])
    with pytest.raises(ValueError, match="options of a store URL"):
        open_store(f"s3://bucket?secret={SECRET}&junk")


@pytest.mark.parametrize(
    "make",
    [
        lambda: S3Store.make(f"s3://bucket/p?key_id=AK&secret={SECRET}&token={SECRET}2"),
        lambda: RedisStore.make(f"redis://user:{SECRET}@host:1/0/p"),
        lambda: RedisStore.make("redis://host:1/0/p", {"password": SECRET}),
        lambda: open_store(f"fsspec+memory://x?client_secret={SECRET}&account_key={SECRET}"),
    ],
    ids=["s3", "redis-url", "redis-option", "fsspec"],
)
def test_secrets_are_in_no_url_repr_or_pickle(make: object) -> None:
    store = make()  # type: ignore[operator]
    for text in (store.url, repr(store), str(store), repr(store._url), repr(pickle.dumps(store))):
        assert SECRET not in text
    copy = pickle.loads(pickle.dumps(store))
    assert copy._url.secret_values() == store._url.secret_values()


def test_text_around_a_secret_is_masked_in_errors() -> None:
    from perdure.errors import StoreError

    store = RedisStore.make(f"redis://user:{SECRET}@host:1/0/p")
    cause = ValueError(f"can't connect with {SECRET}")
    error = store._failure(StoreError(f"bad password {SECRET}"), "get", "k", False)
    assert SECRET not in str(error)
    wrapped = store._failure(OSError(5, f"while using {SECRET}"), "get", "k", False)
    assert SECRET not in f"{wrapped} {wrapped.__cause__!r}"
    assert SECRET in str(cause)


def test_option_readers_check_their_text() -> None:
    url = parse("x://h/p?a=1&b=yes&c=-3")
    assert (url.number("a", 0), url.flag("b", False), url.option("z", "d")) == (1.0, True, "d")
    with pytest.raises(ValueError, match="c='-3'"):
        url.number("c", 0)
