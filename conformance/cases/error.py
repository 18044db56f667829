"""Errors: only the named classes, filled in, and never a secret (A4). These run last and judge all others' too."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import pickle
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.conformance.child import ChildContext
from perdure.conformance.observed import ALLOWED, NAMED, Seen
from perdure.conformance.register import Level, case
from perdure.conformance.subject import Gap, StoreSubject
from perdure.conformance.trial import NotDeclared, Trial
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, PluginError, StoreError

B, F = Level.BASE, Level.FULL
PLANTED = "Pl4nted-S3cret-Do-Not-Show"


async def provoke(t: Trial) -> list[Seen]:
    """Failures of every kind that needs no fault: the errors with operation and key."""
    await t.store.create("present", b"x")
    closed = t.open()
    await closed.aclose()
    bad: list[Any] = ["", "/a", "a//b", "..", "a\nb", "\ud800", "k" * 5000, None, 5, b"a"]
    calls: list[tuple[str, Any]] = []
    for store in (t.store, closed):
        for key in ["present", "missing", *bad]:
            if key == "missing":
                calls += [("get", store.get("never/there")), ("stat", store.stat("never/there"))]
                calls += [("get", store.get("never/there", 1, 2)), ("delete", store.delete("never/there"))]
                calls += [("download", t.joined("never/there", store))]
            calls += [
                ("create", store.create(key, b"y")), ("get", store.get(key)), ("stat", store.stat(key)),
                ("get", store.get(key, -1)), ("get", store.get(key, "1")), ("put", store.put(key, None)),
                ("create", store.create(key, "text")), ("get_many", store.get_many([key])),
                ("create_many", store.create_many([(key, b"y")])), ("delete_prefix", store.delete_prefix("")),
                ("list", t.keys(key, store)), ("list", t.keys("", store, limit=-1)), ("download", t.joined(key, store)),
            ]  # fmt: skip
    try:
        for operation, call in calls:
            try:
                await call
            except Exception as error:
                t.expect(
                    isinstance(error, ALLOWED), f"A4: {operation} raises only StoreError, ValueError, TypeError",
                    f"{type(error).__name__}: {error}",
                )  # fmt: skip
    finally:
        for _, call in calls:
            call.close()
    for key, value in (("never-there", None), ("present", b"y")):
        result = (await t.store.get_many([key]))[0] if value is None else (await t.store.create_many([(key, value)]))[0]
        t.expect(isinstance(result, StoreError), "A4: batches hold StoreErrors", repr(result))
        t.recorder.errors.append(Seen("get_many" if value is None else "create_many", key, result))
    return t.recorder.errors


@case("error-01", B, "A4")
async def named_classes(t: Trial) -> None:
    """Over every failure of the whole run: only StoreError and its four, ValueError, TypeError and
    CancelledError leave a method."""
    await provoke(t)
    with t.shared.lock:
        everything = [*t.shared.errors, *t.recorder.errors]
    for seen in everything:
        kind = type(seen.error)
        t.expect(
            isinstance(seen.error, ALLOWED), f"A4: only the named classes leave {seen.operation}",
            f"{kind.__module__}.{kind.__name__}: {seen.error}",
        )  # fmt: skip
        if isinstance(seen.error, StoreError):
            t.expect(isinstance(seen.error, NAMED), "one of the five classes", kind.__name__)
    t.evidence.numbers["errors judged"] = len(everything)


@case("error-02", B, "A4")
async def filled_in(t: Trial) -> None:
    """Store errors carry url, key and operation; the message names the key and what to do is readable."""
    await t.store.create("dir/present", b"x")
    found = [
        ("create", "dir/present", await t.refuses(t.store.create("dir/present", b"y"), AlreadyExists, "create")),
        ("get", "dir/missing", await t.refuses(t.store.get("dir/missing"), NotFound, "get")),
        ("get", "dir/missing", await t.refuses(t.store.get("dir/missing", 1, 2), NotFound, "get of a range")),
        ("stat", "dir/missing", await t.refuses(t.store.stat("dir/missing"), NotFound, "stat")),
        ("get_many", "dir/missing", (await t.store.get_many(["dir/missing"]))[0]),
        ("create_many", "dir/present", (await t.store.create_many([("dir/present", b"y")]))[0]),
    ]

    async def download() -> None:
        async for _ in t.store.download("dir/missing"):
            pass

    found.append(("download", "dir/missing", await t.refuses(download(), NotFound, "download")))
    for operation, key, error in found:
        t.same(getattr(error, "key", None), key, f"key of the error of {operation}")
        t.same(getattr(error, "operation", None), operation, f"operation of the error of {operation}")
        t.same(getattr(error, "url", None), t.store.url, f"url of the error of {operation}")
        t.expect(key in str(error), f"the message of {operation} names the key", str(error))
    closed = t.open()
    await closed.aclose()
    error = await t.refuses(closed.get("dir/present"), StoreError, "get after aclose")
    t.same(getattr(error, "url", None), t.store.url, "url of the error after aclose")
    t.same(getattr(error, "operation", None), "get", "operation of the error after aclose")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def texts(error: BaseException) -> Iterator[tuple[str, str]]:
    """Every text that an error shows, with the name of the place."""
    for link in chain(error):
        yield "message", str(link)
        yield "repr", repr(link)
        yield "arguments", repr(link.args)
        yield "attributes", repr(getattr(link, "__dict__", {}))
    yield "traceback", "".join(traceback.format_exception(error))
    with contextlib.suppress(Exception):
        yield "pickle", pickle.dumps(error).decode("latin-1")


def planted_url(t: Trial) -> str | None:
    """The store's own URL with a secret planted where users put theirs."""
    url = t.url
    if "://" not in url:
        return None
    mark = "&" if "?" in url else "?"
    return f"{url}{mark}password={PLANTED}"


async def shown_texts(t: Trial, subject: StoreSubject, url: str) -> list[tuple[str, str]]:
    """What a store at ``url`` shows of itself, in use and in failure."""
    out: list[tuple[str, str]] = []
    try:
        store = t.open(url)
        out += [("repr", repr(store.inner)), ("str", str(store.inner)), ("url", store.url)]
        out += [("capabilities", repr(store.capabilities)), ("vars", repr(store.inner))]
        for call in (store.get("missing"), store.create("k", b"x"), store.create("k", b"y"), store.stat("missing")):
            try:
                await call
            except (StoreError, ValueError, TypeError) as error:
                out += list(texts(error))
        await store.aclose()
        try:
            await store.get("k")
        except StoreError as error:
            out += list(texts(error))
        out.append(("repr after aclose", repr(store.inner)))
    except (StoreError, PluginError, ValueError, TypeError) as error:
        out += [(f"opening: {place}", text) for place, text in texts(error)]
    return out


def no_secret(t: Trial, found: list[tuple[str, str]], secrets: list[str]) -> None:
    for place, text in found:
        for secret in secrets:
            where = text.find(secret)
            t.expect(
                where < 0, f"A4: the secret is not in {place}",
                text[max(0, where - 60) : where] + "<SECRET>" + text[where + len(secret) :][:40],
            )  # fmt: skip


@case("secret-01", B, "A4")
async def never_shown(t: Trial) -> None:
    """No secret in repr, str, url, error messages, chains and tracebacks: the author's own, and one planted in
    the URL's options."""
    secrets = [t.subject.secret] if t.subject.secret else []
    found = await shown_texts(t, t.subject, t.url)
    planted = planted_url(t)
    if planted is not None:
        # The traceback of a failing open shows source lines of ours, not values: the URL itself stays out.
        found += await shown_texts(t, t.subject, planted)
        secrets.append(PLANTED)
    with t.shared.lock:
        for seen in t.shared.errors:
            found += list(texts(seen.error))
    if not secrets:
        raise NotDeclared(Gap("hook", "secret", "the hook `secret` is not offered, and the URL takes no options"))
    no_secret(t, found, secrets)


async def look_everywhere(c: ChildContext, url: str, secret: str) -> list[tuple[str, str]]:
    """Use a store with DEBUG logging on; where the secret shows: logs, pickle, command line, child processes."""
    import os
    import tempfile

    folder = tempfile.mkdtemp(prefix="perdure-secret-")
    os.environ["TMPDIR"] = folder
    tempfile.tempdir = None
    stream = io.StringIO()
    logging.basicConfig(level=logging.DEBUG, stream=stream, force=True)
    out: list[tuple[str, str]] = []
    store = c.open(url)
    await store.create("k", b"x")
    await store.put("k", b"y")

    async def chunks() -> Any:
        for _ in range(3):
            yield bytes(2**20)
        for path in Path(folder).rglob("*"):
            if path.is_file():
                out.append((f"temporary file {path.name}", path.read_bytes().decode("latin-1")))

    await store.upload("u", chunks())
    for call in (store.get("missing"), store.create("k", b"z")):
        with contextlib.suppress(StoreError):
            await call
    out.append(("the DEBUG log", stream.getvalue()))
    out.append(("the pickle", pickle.dumps(store.inner).decode("latin-1")))
    async for key, _ in store.list(""):
        out.append((f"the stored object {key!r}", key + bytes(await store.get(key)).decode("latin-1")))
    children = [os.getpid()]
    for pid in children:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            children += [int(p) for p in task.read_text().split()]
        with contextlib.suppress(OSError):
            out.append((f"the command line of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes().decode("latin-1")))
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
    return [(place, text) for place, text in out if secret in text] or [("nowhere", "")]


@case("secret-02", F, "A4", needs=["secret"])
async def never_kept(t: Trial) -> None:
    """No secret in DEBUG logs, pickles, stored objects, temporary files or child command lines."""
    secret = t.subject.secret
    assert secret is not None
    if t.facts.gap("multi_process") is None:
        async with t.child() as child:
            found = await child.call(look_everywhere, t.url, secret)
        t.expect(found == [("nowhere", "")], "A4: the secret is nowhere", [place for place, _ in found])
    no_secret(t, [("the pickle", pickle.dumps(t.store.inner).decode("latin-1"))], [secret])


@case("secret-03", F, "A4", needs=["network", "wrong_secret_url"])
async def wrong_secret(t: Trial) -> None:
    """A wrong secret is PermissionDenied, and neither secret is shown."""
    url = t.subject.wrong_secret_url
    assert url is not None
    store = t.open(url)
    for call in (store.get("k"), store.create("k", b"x"), t.keys("", store)):
        async with asyncio.timeout(40):
            error = await t.refuses(call, PermissionDenied, "A4: a wrong secret")
        secrets = [s for s in (t.subject.secret, getattr(t.subject, "wrong_secret", None)) if s]
        no_secret(t, list(texts(error)), secrets)
