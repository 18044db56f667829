"""Keys: what is a key, what is refused, and that no two keys are ever confused (K1-K6)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from perdure.conformance import names
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial
from perdure.errors import AlreadyExists, NotFound, StoreError

B, F = Level.BASE, Level.FULL


def writers(t: Trial, key: Any) -> list[tuple[str, Any]]:
    """Every keyed method, as (name, call)."""
    store = t.store

    async def chunks() -> Any:
        yield b"x"

    async def drain() -> None:
        async for _ in store.download(key):
            pass

    return [
        ("create", lambda: store.create(key, b"x")),
        ("put", lambda: store.put(key, b"x")),
        ("get", lambda: store.get(key)),
        ("stat", lambda: store.stat(key)),
        ("delete", lambda: store.delete(key)),
        ("get_many", lambda: store.get_many([key])),
        ("create_many", lambda: store.create_many([(key, b"x")])),
        ("upload", lambda: store.upload(key, chunks())),
        ("download", drain),
    ]


async def refused(t: Trial, key: Any, error: type[Exception], what: str) -> None:
    for name, call in writers(t, key):
        await t.refuses(call(), error, f"{what}: {name}({key!r})")


async def through_all_methods(t: Trial, key: str, data: bytes) -> None:
    """One key through create, reading, put, upload and delete."""
    await t.store.create(key, data)
    await t.expect_value(key, data, "after create")
    await t.refuses(t.store.create(key, b"other"), AlreadyExists, f"second create of {key!r}")
    await t.store.put(key, data + b"!")
    t.same(await t.value(key), data + b"!", f"after put of {key!r}")
    t.same(bytes((await t.store.get_many([key]))[0]), data + b"!", f"get_many of {key!r}")
    await t.store.delete(key)
    await t.expect_value(key, None, "after delete")
    t.same(await t.store.create_many([(key, data)]), [None], f"create_many of {key!r}")
    t.same(await t.value(key), data, f"after create_many of {key!r}")


async def all_distinct(t: Trial, keys: list[str], *, order: bool = True) -> None:
    """Create all with bytes of their own, read all back, list them as they were given."""
    for i, key in enumerate(keys):
        try:
            await t.store.create(key, f"{i}".encode())
        except AlreadyExists as error:
            t.fail(f"K2/K3: {key!r} is a key of its own among {i} others", error)
    for i, key in enumerate(keys):
        t.same(await t.value(key), f"{i}".encode(), f"bytes of {key!r}")
        t.same(await t.size(key), len(f"{i}"), f"size of {key!r}")
    listed = await t.keys()
    wanted = names.in_order(keys)
    missing, foreign = set(wanted) - set(listed), set(listed) - set(wanted)
    t.expect(not missing and not foreign, "list gives back the keys as given", f"missing {missing}, foreign {foreign}")
    if order:
        t.same(listed, wanted, "order of the listing")
    for i, key in enumerate(keys):
        if i % 2:
            await t.store.delete(key)
    for i, key in enumerate(keys):
        t.same(await t.value(key), None if i % 2 else f"{i}".encode(), f"after every second was deleted: {key!r}")


@case("key-01", B, "K1", cost=2)
async def plain_names(t: Trial) -> None:
    """40 plain names go through all methods and come back as they were given."""
    for i, key in enumerate(names.PLAIN):
        await through_all_methods(t, key, f"value {i}".encode())
    t.same(set(await t.keys()), set(names.PLAIN), "keys listed")


@case("key-02", B, "K1")
async def empty_parts(t: Trial) -> None:
    """The empty key and leading, trailing and double slashes are refused with ValueError, nothing is stored."""
    for key in names.EMPTY_PARTS:
        await refused(t, key, ValueError, "K1")
    t.same(await t.keys(), [], "keys after the refusals")


@case("key-03", B, "K1")
async def dots(t: Trial) -> None:
    """Segments `.` and `..` are refused; `...`, `.a`, `a.` and `a..b` are ordinary names."""
    for key in names.DOT_PARTS:
        await refused(t, key, ValueError, "K1")
    await all_distinct(t, names.DOT_NAMES)


@case("key-04", B, "K1", Certainty.EXHAUSTIVE)
async def controls(t: Trial) -> None:
    """Each control character and lone surrogate is refused with ValueError, other types with TypeError."""
    for character in names.CONTROLS:
        for key in (character, f"a{character}", f"{character}a", f"a/{character}/b"):
            await t.refuses(t.store.create(key, b"x"), ValueError, f"K1: create({key!r})")
            await t.refuses(t.store.get(key), ValueError, f"K1: get({key!r})")
    for key in ("a\nb", "a\x00", "\x7f"):
        await refused(t, key, ValueError, "K1")
    for key in names.SURROGATES:
        await refused(t, key, ValueError, "K1")
    for wrong in [*names.WRONG_TYPES, Path("a")]:
        for name, call in writers(t, wrong):
            await t.refuses(call(), TypeError, f"K1: {name}({wrong!r})")
    t.same(await t.keys(), [], "keys after the refusals")


@case("key-05", B, "K2")
async def odd_names(t: Trial) -> None:
    """45 odd names (escapes, globs, quotes, blanks, reserved words) are kept, distinct, and listed as given."""
    await all_distinct(t, names.ODD)
    t.same(await t.value("a/b"), None, "`a%2Fb` is one segment: get('a/b')")


@case("key-06", B, "K3")
async def scripts(t: Trial) -> None:
    """Names in 12 scripts, emoji, right-to-left and joiners are kept, distinct, and listed as given."""
    await all_distinct(t, names.SCRIPTS)


@case("key-07", B, "K3")
async def normal_forms(t: Trial) -> None:
    """Names that differ in Unicode normal form only are two keys in get, create and list."""
    for i, (one, other) in enumerate(names.NORMAL_FORMS):
        await t.store.create(f"{i}/{one}", b"one")
        t.same(await t.value(f"{i}/{other}"), None, f"{other!r} while only {one!r} exists")
        try:
            await t.store.create(f"{i}/{other}", b"other")
        except AlreadyExists as error:
            t.fail(f"K3: {other!r} is free while {one!r} exists", error)
        t.same(await t.value(f"{i}/{one}"), b"one", f"bytes of {one!r}")
        t.same(await t.value(f"{i}/{other}"), b"other", f"bytes of {other!r}")
        t.same(await t.keys(f"{i}/"), names.in_order([f"{i}/{one}", f"{i}/{other}"]), "keys listed")


@case("key-08", B, "K3")
async def letter_case(t: Trial) -> None:
    """Names that differ in letter case only are two keys."""
    for i, (one, other) in enumerate(names.CASES):
        await t.store.create(f"{i}/{one}", b"one")
        t.same(await t.value(f"{i}/{other}"), None, f"{other!r} while only {one!r} exists")
        try:
            await t.store.create(f"{i}/{other}", b"other")
        except AlreadyExists as error:
            t.fail(f"K3: {other!r} is free while {one!r} exists", error)
        await t.store.delete(f"{i}/{one}")
        t.same(await t.value(f"{i}/{other}"), b"other", f"bytes of {other!r} after delete of {one!r}")
        t.same(await t.keys(f"{i}/"), [f"{i}/{other}"], "keys listed")


def _pad(name: str, size: int) -> str:
    return "p" * (size - len(name.encode())) + name


@case("key-09", F, "K3/K4", cost=3)
async def long_pairs(t: Trial) -> None:
    """Pairs that differ in case, form or the last byte stay two keys in segments of 63 to 200 bytes."""
    for size in (63, 64, 65, 127, 128, 129, 199, 200):
        pairs = [(_pad("x", size), _pad("y", size))]
        pairs += [(_pad(a, size), _pad(b, size)) for a, b in [*names.NORMAL_FORMS[:4], *names.CASES[:6]]]
        keys = sorted({f"{size}/{k}" for pair in pairs for k in pair})
        for i, key in enumerate(keys):
            try:
                await t.store.create(key, f"{i}".encode())
            except AlreadyExists as error:
                t.fail(f"K4: a segment of {size} bytes is told from its neighbours", error)
        for i, key in enumerate(keys):
            t.same(await t.value(key), f"{i}".encode(), f"bytes of a key with a segment of {size} bytes")
        t.same(await t.keys(f"{size}/"), names.in_order(keys), "keys listed")


@case("key-10", B, "K4")
async def longest_key(t: Trial) -> None:
    """A key of max_key_bytes (BASE: at least 512) goes through all methods; one byte more is refused."""
    longest = t.store.capabilities.max_key_bytes
    t.expect(isinstance(longest, int) and longest >= 512, "max_key_bytes is at least 512", longest)
    for ending in ("", "\u00e9", "\U0001f600"):
        key = names.with_length(longest, ending)
        assert len(key.encode()) == longest
        await through_all_methods(t, key, b"long")
        await t.store.delete(key)
        await refused(t, names.with_length(longest + 1, ending), ValueError, "K4: one byte more")
    one, other = names.with_length(longest, "a"), names.with_length(longest, "b")
    await t.store.create(one, b"a")
    await t.store.create(other, b"b")
    t.same(await t.value(one), b"a", "bytes of the longest key")
    t.same(await t.keys(), [one, other], "keys listed")


@case("key-11", F, "K4", Certainty.EXHAUSTIVE, cost=3)
async def segment_lengths(t: Trial) -> None:
    """Segments of 1 to 255 bytes work or are refused, never merged; up to 200 they work."""
    kept: dict[str, bytes] = {}
    for size in range(1, 256):
        for last in "xy":
            key = f"s/{'n' * (size - 1)}{last}"
            try:
                await t.store.create(key, key.encode())
            except AlreadyExists as error:
                t.fail(f"K4: segment of {size} bytes is a key of its own", error)
            except (ValueError, StoreError) as error:
                t.expect(size > 200, "K4: segments up to 200 bytes work", f"{size} bytes: {error}")
            else:
                kept[key] = key.encode()
    for key, data in kept.items():
        t.same(await t.value(key), data, f"bytes of a segment of {len(key) - 2} bytes")
    t.same(await t.keys(), names.in_order(list(kept)), "keys listed")


@case("key-12", B, "K5")
async def key_under_key(t: Trial) -> None:
    """`a` and `a/b` coexist in both orders (or the second is refused cleanly, if so declared)."""
    for first, second, folder in (("1/a", "1/a/b", "1"), ("2/a/b", "2/a", "2"), ("3/a/b/c", "3/a/b", "3")):
        await t.store.create(first, b"first")
        if t.capabilities.key_under_key:
            await t.store.create(second, b"second")
            await t.expect_value(first, b"first", "both exist")
            await t.expect_value(second, b"second", "both exist")
            t.same(await t.keys(f"{folder}/"), names.in_order([first, second]), "keys listed")
            await t.store.delete(first)
            await t.expect_value(second, b"second", f"after delete of {first!r}")
            await t.store.put(first, b"again")
            await t.store.delete(second)
            await t.expect_value(first, b"again", f"after delete of {second!r}")
            await t.expect_value(second, None, f"after delete of {second!r}")
        else:
            error = await t.refuses(t.store.create(second, b"second"), StoreError, "K5: declared key_under_key=False")
            t.expect(not isinstance(error, (AlreadyExists, NotFound)), "K5: a plain StoreError", repr(error))
            await t.refuses(t.store.put(second, b"second"), StoreError, "K5: put likewise")
            await t.expect_value(first, b"first", "after the refusal")


@case("key-13", B, "K6")
async def prefixes(t: Trial) -> None:
    """Stores at `…/1` and `…/10`, and at a prefix and below it, never see each other's keys as their own."""
    one, ten = t.open(t.place("x/1")), t.open(t.place("x/10"))
    await one.create("k", b"one")
    await ten.create("k", b"ten")
    await ten.create("0/k", b"deep")
    await one.create("0/k", b"flat")
    t.same(await t.value("k", one), b"one", "k of …/1")
    t.same(await t.value("k", ten), b"ten", "k of …/10")
    t.same(await t.value("0/k", one), b"flat", "0/k of …/1")
    t.same(await t.keys("", one), ["0/k", "k"], "keys of …/1")
    t.same(await t.keys("", ten), ["0/k", "k"], "keys of …/10")
    t.same(await one.delete_prefix("k"), 1, "keys deleted in …/1")
    t.same(await t.value("k", ten), b"ten", "k of …/10 after delete_prefix in …/1")
    outer, inner = t.open(t.place("y")), t.open(t.place("y/z"))
    await outer.create("k", b"outer")
    await inner.create("k", b"inner")
    t.same(await t.value("k", outer), b"outer", "k of the outer prefix")
    t.same(await t.value("k", inner), b"inner", "k of the inner prefix")
    t.same(await t.keys("", inner), ["k"], "keys of the inner prefix")
    seen = await t.keys("", outer)
    t.expect(seen in (["k"], ["k", "z/k"]), "the outer prefix lists its own keys (the inner's at most under z/)", seen)
    if "z/k" in seen:
        t.note("prefixes nest: a store at y sees the keys of a store at y/z below z/")
        t.same(await t.value("z/k", outer), b"inner", "what the outer lists, it can read")


TRAVERSALS = [
    "../outside", "..%2foutside", "%2e%2e/outside", "..\\outside", "a/../../outside", "....//outside",
    "/etc/hostname", "file:///etc/hostname", "~/outside", "$HOME/outside", "\u2024\u2024/outside", "..;/outside",
]  # fmt: skip


@case("key-14", F, "K6")
async def nothing_outside(t: Trial) -> None:
    """Traversal spellings, and a symbolic link planted in the store's folder, reach nothing outside."""
    outer, inner = t.open(t.place("home")), t.open(t.place("home-inner"))
    await outer.create("outside", b"precious")
    for key in TRAVERSALS:
        try:
            await inner.put(key, b"evil")
        except (ValueError, StoreError):
            t.expect(True, "", "")
            continue
        listed = await t.keys("", inner)
        t.expect(key in listed, "an accepted spelling is an ordinary name, listed as given", f"{key!r} in {listed}")
    t.same(await t.value("outside", outer), b"precious", "the sibling's value")
    t.same(await t.keys("", outer), ["outside"], "the sibling's keys")
    await inner.create("d/k", b"x")
    root = t.subject.local_root(inner.url) or t.subject.local_root(t.place("home-inner"))
    if root is None:
        return
    target = root.parent / "link-target"
    target.mkdir(exist_ok=True)
    (target / "secret").write_bytes(b"precious")
    holders = [p for p in root.rglob("*") if p.is_dir()] + [root]
    for holder in holders:
        os.symlink(target, holder / "evil")
    try:
        for key in ("evil/secret", "evil/new", "evil", "d/evil/secret", "d/evil/new"):
            for call in (inner.get(key), inner.put(key, b"overwritten"), inner.create(key, b"c"), inner.delete(key)):
                try:
                    data = await call
                except (StoreError, ValueError):
                    continue
                t.expect(data is None or bytes(data) != b"precious", "K6: no link is followed", data)
        await inner.delete_prefix("evil")
        inside = sorted(p.name for p in target.iterdir())
        t.same(inside, ["secret"], "files in the folder that the link points to")
        t.same((target / "secret").read_bytes(), b"precious", "the file that the link points to")
    finally:
        for holder in holders:
            if (holder / "evil").is_symlink():
                (holder / "evil").unlink()


@case("key-15", F, "K1-K3", Certainty.STOCHASTIC, cost=3)
async def generated_keys(t: Trial) -> None:
    """300 generated keys against a set: each is its own key, listed as given and in order."""
    keys = names.generated(t.rng, 300)
    t.rng.shuffle(keys)
    t.evidence.rounds = len(keys)
    await all_distinct(t, keys)
