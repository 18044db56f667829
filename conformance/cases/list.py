"""list: complete, exact, ordered by UTF-8 bytes, whatever else happens (S5, L1-L3)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

from perdure.conformance import names, resources
from perdure.conformance.cases.key import all_distinct
from perdure.conformance.cases.put import ask, folder_size, seen_by_reader
from perdure.conformance.child import ChildContext
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import Trial

B, F = Level.BASE, Level.FULL
MIB = 2**20


async def fill(t: Trial, keys: list[str], data: bytes = b"x", store: Any = None) -> None:
    """Create many keys by batches, and check that each was created."""
    store = store or t.store
    for start in range(0, len(keys), 500):
        results = await store.create_many([(k, data) for k in keys[start : start + 500]])
        bad = [r for r in results if r is not None]
        t.expect(not bad, "create_many creates all of these absent keys", bad[:3])


async def ordered(t: Trial, keys: list[str], what: str) -> None:
    for key in keys:
        await t.store.create(key, key.encode())
    wanted = [(k, len(k.encode())) for k in names.in_order(keys)]
    t.same(await t.items(), wanted, f"{what}, ordered by UTF-8 bytes")
    middle = wanted[len(wanted) // 2][0]
    after = [k for k in wanted if k[0].encode() > middle.encode()]
    t.same(await t.items("", start_after=middle), after, f"{what} after {middle!r}")


@case("list-01", B, "L1")
async def prefixes(t: Trial) -> None:
    """An empty store, the prefix "", an unmatched prefix, and one longer than any key."""
    t.same(await t.items(), [], "list of an empty store")
    t.same(await t.items("a"), [], "list of an empty store")
    await t.store.create("ab/c", b"1")
    await t.store.create("b", b"22")
    t.same(await t.items(""), [("ab/c", 1), ("b", 2)], 'list("")')
    for prefix in ("c", "x/y", "ab/c/d", "ab/cc", "bb", "A", "ab/c" + "x" * 300, "B", "*", "a*", "%61"):
        t.same(await t.items(prefix), [], f"list({prefix!r})")
    for wrong in (None, 5, b"a"):
        await t.refuses(t.items(wrong), TypeError, f"list({wrong!r})")  # type: ignore[arg-type]


@case("list-02", B, "L1")
async def plain_strings(t: Trial) -> None:
    """A prefix is a plain string: with and without slash, part of a segment, and a key itself."""
    keys = ["run/1/a", "run/1/b", "run/10", "run/10x/a", "run/2", "runner", "run-1", "r"]
    for key in keys:
        await t.store.create(key, key.encode())
    for prefix in (
        "",
        "r",
        "run",
        "run/",
        "run/1",
        "run/1/",
        "run/10",
        "run/10/",
        "run/1/a",
        "runn",
        "run-",
        "/",
        "//",
    ):
        wanted = [k for k in names.in_order(keys) if k.startswith(prefix)]
        t.same(await t.keys(prefix), wanted, f"list({prefix!r})")


@case("list-03", B, "L3", Certainty.EXHAUSTIVE)
async def ascii_order(t: Trial) -> None:
    """Every printable ASCII character at one place of a name, in byte order."""
    keys = [f"k{chr(c)}x" for c in range(0x20, 0x7F)]
    await ordered(t, keys, "printable ASCII")


@case("list-04", B, "L3")
async def whole_keys(t: Trial) -> None:
    """The order is that of whole keys, not folder by folder: a, a-b, a.b, a/b, a/b-c, a/b/c, a0."""
    keys = names.ASCII_ORDER
    if not t.capabilities.key_under_key:
        keys = ["a-b", "a.b", "a/b-c", "a/b/c", "a0", "a/b.d"]
    await ordered(t, list(keys), "keys with and without folders")


@case("list-05", B, "L3")
async def unicode_order(t: Trial) -> None:
    """Borders of 1- to 4-byte UTF-8: U+FF61 and U+E000 come before emoji (not UTF-16 order)."""
    keys = [f"u{c}{tail}" for c in names.BORDERS for tail in ("", "a")]
    await ordered(t, keys, "borders of UTF-8")


@case("list-06", B, "L3")
async def case_and_digits(t: Trial) -> None:
    """Upper before lower case, n10 before n2, no natural or folded order."""
    keys = ["B", "a", "C", "b", "A", "n2", "n10", "n1", "N3", "_", "Z/a", "z/A", "aB", "ab", "Ab", "\u00c4", "\u00e4"]
    await ordered(t, keys, "case and digits")


@case("list-07", B, "L2")
async def start_after(t: Trial) -> None:
    """start_after is exclusive and any string: existing, a gap, before, after, elsewhere, "", with a slash."""
    keys = ["a/1", "a/2", "a/4", "b", "c/1", "c/2"]
    for key in keys:
        await t.store.create(key, b"x")
    for prefix in ("", "a/", "a", "c/", "zz"):
        for after in ("", "a/1", "a/2", "a/3", "a/4", "a/", "a", "a/4/", "0", "zzz", "b", "b/", "c", "c/1",
                      "\U0010ffff", "a/2\u0000", "//", "a//"):  # fmt: skip
            wanted = [k for k in keys if k.startswith(prefix) and k.encode() > after.encode()]
            t.same(await t.keys(prefix, start_after=after), wanted, f"list({prefix!r}, start_after={after!r})")
    for wrong in (5, b"a"):
        await t.refuses(t.keys("", start_after=wrong), TypeError, f"start_after={wrong!r}")


@case("list-08", B, "L2")
async def start_after_prefix(t: Trial) -> None:
    """start_after that is a proper prefix of what follows: n1 gives n1-, n1/x and n10."""
    keys = ["n1-", "n1/x", "n10", "n100", "n1z", "n2"]
    for key in [*keys, "n"]:
        await t.store.create(key, b"x")
    t.same(await t.keys("", start_after="n1"), keys, "after 'n1', which is no key")
    if t.capabilities.key_under_key:
        await t.store.create("n1", b"x")
        t.same(await t.keys("", start_after="n1"), keys, "after 'n1', which is a key")
    t.same(await t.keys("n1", start_after="n10"), ["n100", "n1z"], "after 'n10'")
    t.same(await t.keys("n1/", start_after="n1"), ["n1/x"], "start_after before the prefix")


@case("list-09", B, "L2")
async def limits(t: Trial) -> None:
    """Limits of 0, 1, n - 1, n and n + 1, with and without prefix; negative is a ValueError."""
    keys = [f"a/{i}" for i in range(5)] + [f"b/{i}" for i in range(5)] + [f"c/{i}" for i in range(5)]
    for key in keys:
        await t.store.create(key, b"x")
    for prefix in ("", "b/", "zz"):
        for after in (None, "b/1"):
            wanted = [k for k in keys if k.startswith(prefix) and (after is None or k > after)]
            for limit in (0, 1, 2, max(0, len(wanted) - 1), len(wanted), len(wanted) + 1, 1000):
                found = await t.keys(prefix, start_after=after, limit=limit)
                t.same(found, wanted[:limit], f"list({prefix!r}, {after!r}, limit={limit})")
    await t.refuses(t.keys("", limit=-1), ValueError, "limit=-1")


async def pages(t: Trial, prefix: str, limit: int) -> list[str]:
    """All keys, page by page from the last key of each."""
    found: list[str] = []
    while page := await t.keys(prefix, start_after=found[-1] if found else None, limit=limit):
        t.expect(len(page) <= limit, f"at most {limit} keys", len(page))
        t.expect(not found or page[0].encode() > found[-1].encode(), "each page goes on after the last", page[0])
        found += page
        t.expect(len(found) < 100_000, "paging ends", len(found))
    return found


@case("list-10", B, "L2")
async def paging(t: Trial) -> None:
    """Paging from the last key with limits 1, 2, 7 and 100 gives each key once."""
    keys = names.in_order(names.generated(t.rng, 90) + [f"p/{i}" for i in range(60)])
    await fill(t, keys)
    for limit in (1, 2, 7, 100):
        t.same(await pages(t, "", limit), keys, f"pages of {limit}")
    t.same(await pages(t, "p/", 7), names.in_order([k for k in keys if k.startswith("p/")]), "pages below a prefix")


@case("list-11", B, "A1")
async def sizes(t: Trial) -> None:
    """Listed sizes are right, for 0 bytes too, and after replacement."""
    for key, size in (("a", 0), ("b", 1), ("c", 70_000), ("d", MIB + 1)):
        await t.store.create(key, bytes(size))
    t.same(await t.items(), [("a", 0), ("b", 1), ("c", 70_000), ("d", MIB + 1)], "sizes")
    for key, size in (("a", 5), ("b", 0), ("c", 1), ("d", 3)):
        await t.store.put(key, bytes(size))
    t.same(await t.items(), [("a", 5), ("b", 0), ("c", 1), ("d", 3)], "sizes after replacement")


@case("list-12", B, "S5", Certainty.STOCHASTIC)
async def just_created(t: Trial) -> None:
    """100 times: a key that was just created is listed, by this and another instance."""
    other = t.open()
    for n in range(100):
        await t.store.create(f"k/{n:03}", b"x" * n)
        for store in (t.store, other):
            found = await t.items(f"k/{n:03}", store)
            t.same(found, [(f"k/{n:03}", n)], "S5: the key just created is listed")
        if n % 10 == 9:
            t.same(len(await t.keys("k/", other)), n + 1, "all keys so far")
        t.round()


@case("list-13", B, "S6", Certainty.STOCHASTIC)
async def just_deleted(t: Trial) -> None:
    """100 times: a key that was just deleted is not listed, by this and another instance."""
    other = t.open()
    await fill(t, [f"k/{n:03}" for n in range(100)])
    for n in range(100):
        await t.store.delete(f"k/{n:03}")
        for store in (t.store, other):
            t.same(await t.keys(f"k/{n:03}", store), [], "S6: the key just deleted is not listed")
        if n % 10 == 9:
            t.same(len(await t.keys("k/", other)), 99 - n, "all keys left")
        t.round()


@case("list-14", F, "S5/S6", Certainty.STOCHASTIC, needs=["multi_process"])
async def by_another_process(t: Trial) -> None:
    """A process that has listed sees another's creates and deletes in its next listing; 50 rounds."""
    async with t.child() as reader:
        await reader.start(seen_by_reader, t.url)
        present: list[str] = []
        for n in range(t.rounds(50, 20)):
            seen = (await ask(reader, "k/", "list"))["list"]
            t.same(seen, [(k, 1) for k in names.in_order(present)], "S5: the other process lists what is there")
            await t.store.create(f"k/{n:03}", b"x")
            present.append(f"k/{n:03}")
            if n % 3 == 2:
                await t.store.delete(present.pop(0))
            seen = (await ask(reader, "k/", "list"))["list"]
            t.same(seen, [(k, 1) for k in names.in_order(present)], "S5/S6: the change is listed at once")
            t.round()
        await reader.send(None)
        await reader.result()


async def list_all(c: ChildContext, url: str) -> tuple[list[str], int]:
    """All keys, and by how much the peak of memory grew while they were listed but not kept."""
    store = c.open(url)
    async for _ in store.list("", limit=2):
        pass
    resources.reset_peak()
    before = resources.memory()
    last, count = b"", 0
    async for key, _ in store.list(""):
        now = key.encode()
        if now <= last:
            return [f"{key!r} after {last!r}"], 0
        last, count = now, count + 1
    grown = resources.peak() - before
    return [str(count)], grown


@case("list-15", F, "S5", needs=["multi_process"], timeout=180, cost=15)
async def ten_thousand(t: Trial) -> None:
    """10,000 keys are listed in order, complete, in at most 64 MiB more memory."""
    keys = [f"{i % 10}/{i:05}-{'x' * (i % 50)}" for i in range(10_000)]
    await fill(t, keys)
    t.same(await t.keys(), names.in_order(keys), "10,000 keys")
    t.same(len(await t.keys("3/")), 1000, "1,000 keys below a prefix")
    async with t.child() as child:
        count, grown = await child.call(list_all, t.url)
    t.same(count, ["10000"], "keys listed by another process, in order")
    t.expect(grown <= 64 * MIB, "at most 64 MiB more memory", f"{grown / MIB:.1f} MiB")


@case("list-16", F, "S5", Certainty.EXHAUSTIVE, timeout=180, cost=10)
async def page_borders(t: Trial) -> None:
    """Exactly 999 to 1,001, 1,999 to 2,001, 5,000 and 5,001 keys, with limits at these borders."""
    keys: list[str] = []
    for count in (999, 1000, 1001, 1999, 2000, 2001, 5000, 5001):
        new = [f"k{i:05}" for i in range(len(keys), count)]
        await fill(t, new)
        keys += new
        found = await t.keys()
        t.expect(found == keys, f"{count} keys, each once", f"{len(found)}, {len(set(found))} different")
        for limit in (999, 1000, 1001, 2000, 5000):
            found = await t.keys("", limit=limit)
            t.expect(found == keys[:limit], f"{count} keys, limit={limit}", f"{len(found)} keys")
        found = await t.keys("", start_after="k00499")
        t.expect(found == keys[500:], f"{count} keys after the 500th", f"{len(found)} keys")


async def churn(c: ChildContext, url: str) -> int:
    """Create and delete keys between the stable ones until told to stop."""
    store, stop = c.open(url), asyncio.Event()

    async def wait() -> None:
        await c.receive()
        stop.set()

    waiting = asyncio.create_task(wait())
    await c.send("churning")
    n = 0
    while not stop.is_set():
        key = f"s/{n * 37 % 2000:05}-volatile"
        await store.put(key, b"v")
        await asyncio.sleep(0.0005)
        await store.delete(key)
        n += 1
    await waiting
    return n


@case("list-17", F, "S5", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, cost=5)
async def stable_keys(t: Trial) -> None:
    """2,000 stable keys are each listed once while other keys come and go among them."""
    stable = [f"s/{i:05}" for i in range(2000)]
    await fill(t, stable)
    async with t.child() as child:
        await child.start(churn, t.url)
        assert await child.message() == "churning"
        for n in range(t.rounds(20, 6)):
            found = []
            async for key, _ in t.store.list("s/", limit=None):
                found.append(key)
                if len(found) % 400 == 0:
                    await asyncio.sleep(0.002)
            t.expect(found == names.in_order(set(found)), "S5: ascending, each once", f"{len(found)} keys")
            missing = set(stable) - set(found)
            t.expect(not missing, "S5: every stable key is listed", f"round {n}: missing {sorted(missing)[:5]}")
            t.expect(set(found) <= set(stable) | {f"{s}-volatile" for s in stable}, "nothing else is listed", "")
            t.round()
        await child.send("stop")
        churned = await child.result()
    t.evidence.numbers["changes meanwhile"] = churned
    if churned < t.evidence.rounds:
        t.cannot(f"only {churned} changes happened during {t.evidence.rounds} listings")


@case("list-18", F, "S5", timeout=120, cost=6)
async def deleted_as_listed(t: Trial) -> None:
    """2,100 keys, each deleted as it is yielded: all are yielded, none twice."""
    keys = [f"k/{i:04}" for i in range(2100)]
    await fill(t, keys)
    found = []
    async for key, _ in t.store.list("k/"):
        found.append(key)
        await t.store.delete(key)
    t.expect(found == keys, "S5: all 2,100 keys are yielded", f"{len(found)} keys, {len(set(found))} different")
    t.same(await t.keys(), [], "keys left")


async def slow_upload(c: ChildContext, url: str, key: str) -> None:
    async def chunks() -> Any:
        for _ in range(4):
            yield b"x" * MIB
        await c.send("midway")
        await asyncio.sleep(60)

    await c.open(url).upload(key, chunks())


@case("list-19", B, "S2/S5", cost=1)
async def nothing_temporary(t: Trial) -> None:
    """Nothing temporary is listed: during an upload, after its cancellation, and after a kill."""
    going, stop = asyncio.Event(), asyncio.Event()

    async def chunks() -> Any:
        for i in range(4):
            yield bytes([i]) * MIB
        going.set()
        await stop.wait()
        yield b"end"

    await t.store.create("other", b"x")
    upload = asyncio.create_task(t.store.upload("up/k", chunks()))
    waiting = asyncio.create_task(going.wait())
    await asyncio.wait([upload, waiting], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if upload.done():
        await upload
    t.same(await t.items(), [("other", 1)], "listed during an upload")
    t.same(await t.items("", t.open()), [("other", 1)], "listed during an upload, by another instance")
    upload.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await upload
    await asyncio.sleep(0.05)
    t.same(await t.items(), [("other", 1)], "listed after the upload was cancelled")
    for n in range(5):
        create = asyncio.create_task(t.store.create(f"c/{n}", bytes(4 * MIB)))
        await asyncio.sleep(0.001 * n)
        create.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await create
        found = await t.items("c/")
        t.expect(all(i == (f"c/{k}", 4 * MIB) for k, i in enumerate(found) if i[0] == f"c/{k}"), "whole", found)
        t.expect({k for k, _ in found} <= {f"c/{k}" for k in range(5)}, "listed after a cancelled create", found)
    if t.facts.gap("multi_process") is None:
        async with t.child() as child:
            await child.start(slow_upload, t.url, "killed/k")
            assert await child.message() == "midway"
            t.same(await t.items("killed"), [], "listed during another process's upload")
            await child.kill()
        t.same(await t.keys("killed"), [], "listed after the uploader was killed")
        store = t.open()
        t.expect(set(await t.keys("", store)) <= {"other", *(f"c/{k}" for k in range(5))}, "nothing else", "")


@case("list-20", F, "L3", cost=3)
async def odd_names_listed(t: Trial) -> None:
    """The names of key-05 to key-09 together: set and order are the model's, with prefixes and pages too."""
    keys = {*names.ODD, *names.SCRIPTS, *(f"nf/{a}" for p in names.NORMAL_FORMS for a in p)}
    keys |= {f"lc/{a}" for p in names.CASES for a in p} | set(names.DOT_NAMES)
    everything = [k for k in names.in_order(keys) if not any(o.startswith(k + "/") for o in keys)]
    await all_distinct(t, everything)
    left = [k for i, k in enumerate(everything) if i % 2 == 0]
    t.same(await pages(t, "", 7), left, "pages of 7")
    for prefix in sorted({k[:1] for k in everything}):
        t.same(await t.keys(prefix), [k for k in left if k.startswith(prefix)], f"list({prefix!r})")
    for after in everything[1::6]:
        t.same(
            await t.keys("", start_after=after), [k for k in left if k.encode() > after.encode()], f"after {after!r}"
        )


async def stop_early(c: ChildContext, url: str) -> dict[str, Any]:
    store = c.open(url)
    async for _ in store.list("", limit=3):
        pass
    tasks, fds, slowest = len(asyncio.all_tasks()), resources.descriptors(), 0.0
    threads = resources.threads()
    for _ in range(50):
        start = time.monotonic()
        listing = store.list("")
        count = 0
        async for _ in listing:
            count += 1
            if count == 3:
                break
        await listing.aclose()  # type: ignore[attr-defined]
        slowest = max(slowest, time.monotonic() - start)
    await asyncio.sleep(0.05)
    return {
        "slowest": slowest,
        "tasks": len(asyncio.all_tasks()) - tasks,
        "descriptors": resources.descriptors() - fds,
        "threads": resources.threads() - threads,
    }


@case("list-21", F, "C5", needs=["multi_process"], timeout=180, cost=9)
async def stopped_listing(t: Trial) -> None:
    """Stopping after 3 of 10,000 keys, 50 times, is quick and leaves no task, thread or descriptor."""
    await fill(t, [f"k/{i:05}" for i in range(10_000)])
    async with t.child() as child:
        seen = await child.call(stop_early, t.url)
    t.expect(seen["slowest"] <= 1 + 20 * t.facts.latency, "each ends within 1 s", seen)
    t.expect(seen["tasks"] <= 0 and seen["threads"] <= 4, "no task or thread is left", seen)
    t.expect(seen["descriptors"] <= 4, "no descriptor is left", seen)


@case("list-22", F, "S5", cost=2)
async def interleaved(t: Trial) -> None:
    """Two listings of one instance, advanced in turn, each give their own keys."""
    one, two = [f"a/{i:04}" for i in range(1200)], [f"b/{i:04}" for i in range(1100)]
    await fill(t, one + two)
    first, second = aiter(t.store.list("a/")), aiter(t.store.list("b/"))
    seen: tuple[list[str], list[str]] = ([], [])
    sources = [(first, seen[0]), (second, seen[1])]
    while sources:
        for source, found in list(sources):
            item = await anext(source, None)
            if item is None:
                sources.remove((source, found))
            else:
                found.append(item[0])
    t.expect(seen[0] == one, "the first listing", f"{len(seen[0])} keys")
    t.expect(seen[1] == two, "the second listing", f"{len(seen[1])} keys")
    a, b = await asyncio.gather(t.keys("a/"), t.keys(""))
    t.expect(a == one and b == one + two, "two listings at once", f"{len(a)}, {len(b)}")


@case("list-23", F, "S5", alone=True, timeout=180, cost=8)
async def after_many_deletes(t: Trial) -> None:
    """After 5,000 deletes a listing is complete and takes at most 5 times as long as before."""
    kept = [f"keep/{i:02}" for i in range(50)]
    await fill(t, kept)

    async def duration() -> float:
        best = 9.0
        for _ in range(5):
            start = time.monotonic()
            await t.keys()
            best = min(best, time.monotonic() - start)
        return best

    before = await duration()
    await fill(t, [f"gone/{i:04}" for i in range(5000)])
    t.same(await t.store.delete_prefix("gone/"), 5000, "keys deleted")
    t.same(await t.keys(), kept, "keys after 5,000 deletes")
    after = await duration()
    t.evidence.numbers.update(before_ms=round(before * 1000, 2), after_ms=round(after * 1000, 2))
    t.expect(after <= 5 * before + 0.02, "at most 5 times as long as before", f"{before:.4f} s, then {after:.4f} s")
    root = t.subject.local_root(t.url)
    if root is not None:
        t.evidence.numbers["files left"] = folder_size(root)[0]
