"""Serializers against damaged and hostile bytes: a value or DecodeError, in bounded time and memory, no code."""

from __future__ import annotations

import functools
import os
import pickle
import random
import struct
import sys
import time
from typing import Any

from perdure.conformance import resources, samples
from perdure.conformance.cases.serializer import flat, views
from perdure.conformance.child import ChildContext
from perdure.conformance.plugin_bench import PluginTrial
from perdure.conformance.register import Certainty, Kind, Level, case
from perdure.errors import DecodeError
from perdure.serializer import Limits

B, F = Level.BASE, Level.FULL
S = Kind.SERIALIZER
MIB = 2**20
LIMITS = Limits(max_bytes=64 * MIB, max_buffers=1000, max_depth=100)


def small_dumps(t: PluginTrial) -> list[list[bytes]]:
    made = t.make()
    values = [
        *t.subject.samples,
        {"a": [1, 2.5, None, True], "b": ("x", b"yz"), "c": {1, 2}},
        "text",
        12345,
        [b"ab"] * 3,
        [1.5, "q"],
    ]
    found = [flat(made.dump(v)) for v in values if made.accepts(v)]
    found = [f for f in found if sum(map(len, f)) <= 6000]
    if not found:
        t.lacks("capability", "accepts", "no small value is accepted")
    return found


def safe(subject: Any) -> bool:
    """Whether damaged bytes may be given to it at all: a serializer that runs code is asked only in a child."""
    return not subject.make().runs_code


async def _damaged(c: ChildContext, subject: Any, damaged: list[list[bytes]], must_refuse: bool) -> dict[str, Any]:
    """Load damaged buffers one by one; what was wrong, the slowest, and the most memory."""
    made = subject.make()
    wrong: list[str] = []
    refused = loaded = 0
    slowest = 0.0
    resources.reset_peak()
    before = resources.memory()
    for buffers in damaged:
        start = time.monotonic()
        try:
            found = made.load(views(buffers), LIMITS)
        except DecodeError:
            refused += 1
        except BaseException as error:
            wrong.append(f"{type(error).__name__}: {str(error)[:150]} from {buffers[0][:60]!r}")
        else:
            loaded += 1
            if must_refuse:
                wrong.append(f"loaded {type(found)!s} from {buffers[0][:60]!r}")
            del found
        slowest = max(slowest, time.monotonic() - start)
    return {"wrong": wrong[:5], "count": len(wrong), "refused": refused, "loaded": loaded, "slowest": slowest,
            "memory": resources.peak() - before}  # fmt: skip


def judge(t: PluginTrial, seen: dict[str, Any], what: str) -> None:
    t.evidence.numbers[what] = {k: seen[k] for k in ("refused", "loaded")}
    t.expect(not seen["wrong"], f"{what}: a value or DecodeError", f"{seen['count']} wrong: {seen['wrong']}")
    t.expect(seen["slowest"] <= 1.0, f"{what}: within 1 s each", f"{seen['slowest']:.2f} s")
    t.expect(seen["memory"] <= 64 * MIB, f"{what}: in 64 MiB", f"{seen['memory'] / MIB:.0f} MiB")


def only_data(t: PluginTrial) -> None:
    """Damaged bytes may make a serializer that runs code do anything: the question is only put to the others."""
    if not safe(t.subject):
        t.lacks("capability", "runs_code", "the serializer declares that loading may run code")


@case("ser-16", B, "D", Certainty.EXHAUSTIVE, kind=S, cost=2)
async def cuts(t: PluginTrial) -> None:
    """Every cut of a small value is a DecodeError, and so is a missing buffer."""
    only_data(t)
    damaged = []
    for buffers in small_dumps(t):
        for i, buffer in enumerate(buffers):
            damaged += [[*buffers[:i], buffer[:n], *buffers[i + 1 :]] for n in range(len(buffer))]
        damaged += [buffers[:-1]] if len(buffers) > 1 else [[]]
    t.evidence.rounds = len(damaged)
    judge(t, await t.in_child(_damaged, [d for d in damaged if d], True), "cuts")


@case("ser-17", B, "D", Certainty.EXHAUSTIVE, kind=S, cost=3)
async def flips(t: PluginTrial) -> None:
    """Every single-bit flip of a small value is a value or DecodeError, within 1 s and 64 MiB."""
    only_data(t)
    damaged = []
    for buffers in small_dumps(t):
        for i, buffer in enumerate(buffers):
            for n in range(min(len(buffer), 1500) * 8):
                changed = bytearray(buffer)
                changed[n // 8] ^= 1 << (n % 8)
                damaged.append([*buffers[:i], bytes(changed), *buffers[i + 1 :]])
    t.evidence.rounds = len(damaged)
    judge(t, await t.in_child(_damaged, damaged, False), "flips")


def mutated(rng: random.Random, sources: list[list[bytes]]) -> list[bytes]:
    buffers = [bytearray(b) for b in rng.choice(sources)]
    for _ in range(rng.randrange(1, 5)):
        one = rng.choice(buffers)
        where = rng.randrange(len(one) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            one[where : where + rng.randrange(8)] = rng.randbytes(rng.randrange(8))
        elif kind == 1:
            one[where:where] = rng.choice(
                (
                    b"\xff" * 8,
                    struct.pack(">Q", 2**63),
                    struct.pack("<I", 2**31),
                    b"\xdf\xff\xff\xff\xff",
                    b"\xc6\xff\xff\xff\xff",
                )
            )
        elif kind == 2:
            del one[where:]
        elif kind == 3:
            one[where:where] = one[: rng.randrange(40)] * rng.randrange(1, 4)
        elif kind == 4:
            one[:] = rng.randbytes(rng.randrange(60))
        elif one:
            one[rng.randrange(len(one))] = rng.randrange(256)
    return [bytes(b) for b in buffers]


@case("ser-18", F, "D", Certainty.STOCHASTIC, kind=S, timeout=180, cost=10)
async def fuzz(t: PluginTrial) -> None:
    """20,000 generated inputs are each a value or DecodeError, within 1 s and 64 MiB."""
    only_data(t)
    sources = small_dumps(t)
    damaged = [mutated(t.rng, sources) for _ in range(20_000)]
    t.evidence.rounds = len(damaged)
    judge(t, await t.in_child(_damaged, damaged, False), "generated inputs")


@case("ser-19", F, "D", kind=S)
async def lengths(t: PluginTrial) -> None:
    """Declared lengths of 2^31 and 2^63 at every place are refused before memory is taken."""
    only_data(t)
    damaged = []
    for buffers in small_dumps(t):
        first = buffers[0][:400]
        for n in range(len(first)):
            for claim in (
                b"\xdd\xff\xff\xff\xff",
                b"\xdf\x7f\xff\xff\xff",
                b"\xc6\xff\xff\xff\xff",
                b"\xdb\x80\x00\x00\x00",
                struct.pack("<Q", 2**63 - 1),
                struct.pack(">I", 2**31),
                b"\xff" * 9 + b"\x01",
            ):
                damaged.append([first[:n] + claim + first[n + len(claim) :], *buffers[1:]])
    t.evidence.rounds = len(damaged)
    judge(t, await t.in_child(_damaged, damaged, False), "claimed lengths")


@case("ser-20", F, "D", kind=S)
async def foreign(t: PluginTrial) -> None:
    """Bytes of other formats (pickle, JSON, MessagePack, Arrow, gzip, text) are refused or are a plain value."""
    only_data(t)
    others = [
        pickle.dumps({"a": [1, 2]}), b'{"a": [1, 2]}', b"\x81\xa1a\x92\x01\x02" * 3 + b"\xc1",
        b"ARROW1\0\0" + bytes(40),
        b"\x1f\x8b\x08\0" + bytes(20),
        b"plain text", b"PAR1", b"\x93NUMPY\x01\0" + bytes(60), b"%PDF-1.4", bytes(100), b"\xff" * 100, b"",
    ]  # fmt: skip
    seen = await t.in_child(_damaged, [[o] for o in others], False)
    judge(t, seen, "other formats")
    t.expect(seen["refused"] >= len(others) // 2, "most of them are refused", seen)


class _Payloads:
    """Pickles that would do something if they were loaded, each marked by a file or an event."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args


def hostile() -> list[bytes]:
    """25 payloads: pickles of all protocols, and other formats that run code where they are trusted."""
    out = []
    for protocol in range(6):
        for call, args in ((os.system, ("true",)), (eval, ("1+1",)), (exec, ("import json",))):
            out.append(pickle.dumps(_Payloads(call, *args), protocol))
    out += [
        b"cos\nsystem\n(S'true'\ntR.", b"c__builtin__\neval\n(S'1'\ntR.", b"!!python/object/apply:os.system ['true']",
        b'{"py/object": "os.system", "py/reduce": ["true"]}', b"\xe3\0\0\0\0", b"(lp0\n.",
        b"\x80\x04\x95\0\0\0\0\0\0\0\0.",
    ]  # fmt: skip
    return out


async def _watched(c: ChildContext, subject: Any, payloads: list[list[bytes]]) -> dict[str, Any]:
    made = subject.make()
    for value in samples.KINDS[:3]:  # whatever is imported at the first use is imported now
        if made.accepts(value):
            made.load(views(flat(made.dump(value))), LIMITS)
    try:
        made.load(views([b"\xc1warm-up"]), LIMITS)
    except Exception:
        pass
    events: list[str] = []
    active = False
    bad = (
        "import",
        "exec",
        "compile",
        "os.",
        "subprocess.",
        "socket.",
        "open",
        "pickle.find_class",
        "ctypes.",
        "shutil.",
        "marshal.",
    )

    def hook(event: str, args: Any) -> None:
        if active and event.startswith(bad):
            events.append(f"{event} {str(args)[:80]}")

    sys.addaudithook(hook)
    wrong = []
    for buffers in payloads:
        active = True
        try:
            made.load(views(buffers), LIMITS)
        except DecodeError:
            pass
        except Exception as error:
            active = False
            wrong.append(f"{type(error).__name__}: {error}")
        finally:
            active = False
    return {"events": events[:5], "wrong": wrong[:5]}


@case("ser-21", B, "D", kind=S)
async def runs_nothing(t: PluginTrial) -> None:
    """runs_code=False: 25 hostile payloads, alone and behind each head of its own, run, import and open nothing
    (an audit hook watches)."""
    only_data(t)
    payloads = [[p] for p in hostile()]
    for buffers in small_dumps(t)[:3]:
        payloads += [[buffers[0][:n] + p] for p in hostile() for n in (1, 2, 4)]
        payloads += [[*buffers, p] for p in hostile()[:5]]
    seen = await t.in_child(_watched, payloads)
    t.evidence.rounds = len(payloads)
    t.expect(not seen["events"], "loading runs, imports and opens nothing", seen["events"])
    t.expect(not seen["wrong"], "a value or DecodeError", seen["wrong"])


@case("ser-23", B, "D", kind=S)
async def errors(t: PluginTrial) -> None:
    """Errors survive pickling and show at most 200 characters of a value."""
    made = t.make()
    secret = "SECRET-VALUE-" * 60
    found: list[BaseException] = []

    class Local:
        text = secret

        def __reduce__(self) -> Any:
            raise TypeError("can't be pickled")

        def __repr__(self) -> str:
            return secret

    for value in (Local(), [Local()], {secret: Local()}):
        try:
            made.dump(value)
        except Exception as error:
            found.append(error)
    if safe(t.subject):
        for buffers in small_dumps(t)[:3]:
            cut_views = views([buffers[0][:-1], *buffers[1:]])
            found.append(t.raises(functools.partial(made.load, cut_views, LIMITS), DecodeError, "a cut value"))
        if made.accepts(secret):
            cut = flat(made.dump([secret, secret]))
            cut[0] = cut[0][:-1]
            found.append(t.raises(lambda: made.load(views(cut), LIMITS), DecodeError, "a cut value"))
    t.expect(bool(found), "some error was raised", "none")
    for each in found:
        twin = pickle.loads(pickle.dumps(each))
        t.expect(type(twin) is type(each) and str(twin) == str(each), "the error survives pickling", repr(twin)[:200])
        t.expect(str(each).count("SECRET-VALUE-") * 13 <= 200, "at most 200 characters of the value", str(each)[:300])
