"""Serializers: what is accepted comes back equal in value and type; what is not is refused clearly."""

from __future__ import annotations

import asyncio
import copy
import functools
import pickle
import re
import threading
import time
from typing import Any

from perdure.conformance import resources, samples
from perdure.conformance.child import ChildContext
from perdure.conformance.observed import brief
from perdure.conformance.plugin_bench import PluginTrial
from perdure.conformance.register import Certainty, Kind, Level, case
from perdure.errors import DecodeError, EncodeError
from perdure.serializer import DEFAULT_LIMITS, Limits, Pieces

B, F = Level.BASE, Level.FULL
S = Kind.SERIALIZER
MIB = 2**20


def flat(dumped: Any) -> list[bytes]:
    """The buffers of a dump, each as bytes, parts joined."""
    out = []
    for buffer in dumped:
        parts = buffer if isinstance(buffer, Pieces) else (buffer,)
        out.append(b"".join(bytes(memoryview(p).cast("B")) for p in parts))
    return out


def views(buffers: list[bytes]) -> list[memoryview]:
    return [memoryview(b).toreadonly() for b in buffers]


def same(t: PluginTrial, a: Any, b: Any) -> bool:
    return t.subject.equal(a, b) if t.subject.equal is not None else samples.identical(a, b)


def trip(t: PluginTrial, made: Any, value: Any) -> bool:
    """Dump and load one value if it is accepted; whether it was."""
    if not made.accepts(value):
        return False
    try:
        buffers = flat(made.dump(value))
    except EncodeError as error:
        t.fail("an accepted value is dumped", f"{brief(value)}: {error}")
    found = made.load(views(buffers), DEFAULT_LIMITS)
    t.expect(
        same(t, value, found),
        f"load(dump(x)) equals x in value and type: {type(value).__name__} {brief(value)}",
        f"{type(found).__name__} {brief(found)}",
    )
    return True


def exact_or_refused(t: PluginTrial, made: Any, value: Any) -> None:
    """A value that is not accepted is refused by dump with a reason, or kept exactly all the same."""
    try:
        buffers = flat(made.dump(value))
    except EncodeError as error:
        t.expect(bool(str(error)), "the refusal says why", error)
        return
    found = made.load(views(buffers), DEFAULT_LIMITS)
    t.expect(same(t, value, found), f"EncodeError, or exactly {brief(value)}", f"{type(found).__name__} {brief(found)}")


def trips(t: PluginTrial, values: list[Any], what: str) -> None:
    made = t.make()
    kept = 0
    for value in values:
        if trip(t, made, value):
            kept += 1
        else:
            exact_or_refused(t, made, value)
    if not kept:
        t.lacks("capability", "accepts", f"the serializer accepts none of these: {what}")
    if kept < len(values):
        t.note(f"{len(values) - kept} of {len(values)} values are refused: {what}")


@case("ser-01", B, "D", kind=S)
async def declared(t: PluginTrial) -> None:
    """id, version and runs_code are of the right form and constant, and it accepts at least something."""
    made = t.make()
    t.expect(
        isinstance(made.id, str) and re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,31}", made.id) is not None,
        "id is [a-z0-9][a-z0-9._-]{0,31}",
        repr(made.id),
    )
    t.expect(type(made.version) is int and made.version >= 1, "version is an int from 1 on", repr(made.version))
    t.expect(type(made.runs_code) is bool, "runs_code is a bool", repr(made.runs_code))
    other = t.make()
    t.expect(
        (other.id, other.version, other.runs_code) == (made.id, made.version, made.runs_code), "constant", other.id
    )
    values = [*t.subject.samples, *samples.EVERYTHING]
    answers = [made.accepts(v) for v in values]
    t.expect(all(type(a) is bool for a in answers), "accepts gives a bool", {type(a).__name__ for a in answers})
    t.expect(any(answers), "it accepts something (give `samples` of its own types)", "nothing of all samples")
    for value in (v for v, a in zip(values, answers, strict=True) if a):
        buffers = made.dump(value)
        t.expect(len(buffers) >= 1, "dump gives at least one buffer", len(buffers))
        break


@case("ser-02", B, "D", kind=S)
async def scalars(t: PluginTrial) -> None:
    """None, bools, ints to ± 2^4096 and floats (nan, ± inf, -0.0) come back."""
    trips(t, [*samples.SCALARS, *samples.FLOATS, *t.subject.samples], "scalars")


@case("ser-03", B, "D", kind=S)
async def texts(t: PluginTrial) -> None:
    """str with astral characters, NUL and 1 MiB come back; lone surrogates are kept or refused at dump."""
    made = t.make()
    for value in samples.SURROGATES:
        if made.accepts(value):
            trip(t, made, value)
        else:
            exact_or_refused(t, made, value)
    trips(t, [*samples.TEXTS, *t.subject.samples], "texts")


@case("ser-04", B, "D", kind=S)
async def binary(t: PluginTrial) -> None:
    """bytes and bytearray come back as what they were; memoryviews are kept or refused."""
    trips(t, [*samples.BYTES, *t.subject.samples], "bytes kinds")
    made = t.make()
    view = memoryview(b"abcdef")[1:4]
    if made.accepts(view):
        found = made.load(views(flat(made.dump(view))), DEFAULT_LIMITS)
        t.expect(
            bytes(found) == b"bcd" and isinstance(found, (memoryview, bytes)), "a memoryview keeps its bytes", found
        )


@case("ser-05", B, "D", kind=S)
async def containers(t: PluginTrial) -> None:
    """Nested containers, the order of dicts, and keys that are no str come back."""
    trips(t, [*samples.CONTAINERS, *t.subject.samples], "containers")


@case("ser-06", B, "D", kind=S)
async def types(t: PluginTrial) -> None:
    """Types are kept: tuple and list, set and frozenset, bool and int, bytes and bytearray."""
    trips(t, [*samples.KINDS, *t.subject.samples], "kinds of types")


class Unsupported:
    """No serializer knows it; pickling it says no, in the words of Python's own refusals."""

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle 'Unsupported' object")


@case("ser-07", B, "D", kind=S)
async def unsupported(t: PluginTrial) -> None:
    """An object that can't be kept is an EncodeError that names its type, and where it is if it says so."""
    made = t.make()
    for value, path in (
        (Unsupported(), ""),
        ({"outer": [1, Unsupported()]}, "outer"),
        ([1, (2, {"inner": Unsupported()})], "inner"),
        (threading.Lock(), ""),
    ):
        error = t.raises(functools.partial(made.dump, value), EncodeError, f"dump of {type(value).__name__}")
        wanted = "lock" if isinstance(value, type(threading.Lock())) else "Unsupported"
        if isinstance(value, (list, dict)) and not made.accepts([1] if isinstance(value, list) else {"a": 1}):
            wanted, path = type(value).__name__, ""  # the container is what it can't keep
        t.expect(wanted.lower() in str(error).lower(), f"the error names the type {wanted}", str(error))
        where = getattr(error, "path", None)
        if where is None:
            t.note("its errors have no path: whoever asked has to look for the part that is refused")
        else:
            t.expect(path in where, f"the path has {path!r}", where)
    value = [[1, 2], "x"]
    if made.accepts(value):
        trip(t, made, value)


@case("ser-08", F, "D", Certainty.STOCHASTIC, kind=S, cost=3)
async def many(t: PluginTrial) -> None:
    """1,000 generated values come back."""
    made = t.make()
    kept = 0
    own = list(t.subject.samples)
    for _ in range(1000):
        value = samples.generated(t.rng)
        if own and t.rng.random() < 0.5:
            value = [t.rng.choice(own), value]
            if not made.accepts(value):
                value = value[0]
        kept += trip(t, made, value)
        t.round()
    if not kept:
        t.lacks("capability", "accepts", "the serializer accepts none of the generated values")


@case("ser-09", F, "D", kind=S)
async def references(t: PluginTrial) -> None:
    """Self-references are kept or refused, never endless; shared references come back equal."""
    made = t.make()
    loop: list[Any] = []
    loop.append(loop)
    table: dict[str, Any] = {}
    table["self"] = [table]

    def attempt(value: Any) -> Any:
        try:
            return made.load(views(flat(made.dump(value))), DEFAULT_LIMITS)
        except EncodeError as error:
            return error

    for value in (loop, table):
        found = await t.within(10, asyncio.to_thread(attempt, value), "a self-reference ends")
        if isinstance(found, EncodeError):
            t.expect(True, "", "")
        elif isinstance(found, list):
            t.expect(found[0] is found, "the self-reference is kept", type(found[0]))
        else:
            t.expect(found["self"][0] is found, "the self-reference is kept", type(found))
    part = [1, 2]
    shared = [part, part, {"a": part}]
    if made.accepts(shared):
        trip(t, made, shared)
    wide: Any = [1]
    for _ in range(25):
        wide = [wide, wide]
    found = await t.within(60, asyncio.to_thread(limited, made, wide), "2^25 shared references end")
    t.expect(found, "refused, or kept", found)


def limited(made: Any, value: Any) -> bool:
    try:
        if not made.accepts(value):
            return True
        made.dump(value)
    except (EncodeError, MemoryError):
        pass
    return True


@case("ser-10", F, "D", kind=S)
async def deep(t: PluginTrial) -> None:
    """A nesting of 10,000 is refused (or kept) within 1 s, without a crash."""
    made = t.make()
    value: Any = 1
    for _ in range(10_000):
        value = [value]
    start = time.monotonic()
    try:
        accepted = made.accepts(value)
        buffers = flat(made.dump(value))
    except EncodeError as error:
        t.expect(bool(str(error)), "the refusal says why", error)
    else:
        t.expect(accepted, "what is dumped was accepted", accepted)
        try:
            made.load(views(buffers), DEFAULT_LIMITS)
        except DecodeError:
            t.fail("what was dumped can be loaded", "DecodeError")
    t.expect(time.monotonic() - start <= 1.0, "within 1 s", f"{time.monotonic() - start:.2f} s")


async def _dump_there(c: ChildContext, subject: Any, values: list[Any]) -> list[list[bytes] | None]:
    made = subject.make()
    return [flat(made.dump(v)) if made.accepts(v) else None for v in values]


@case("ser-11", B, "D", kind=S, cost=1)
async def elsewhere(t: PluginTrial) -> None:
    """What another process (with another hash seed) dumped is loaded here, with equal meaning."""
    values = [v for v in [*samples.KINDS, *samples.CONTAINERS[:14], *t.subject.samples] if not isinstance(v, bytearray)]
    dumps = await t.in_child(_dump_there, values, environment={"PYTHONHASHSEED": "77"})
    made = t.make()
    for value, buffers in zip(values, dumps, strict=True):
        t.expect((buffers is not None) == made.accepts(value), "both processes accept the same", brief(value))
        if buffers is not None:
            found = made.load(views(buffers), DEFAULT_LIMITS)
            t.expect(same(t, value, found), f"{brief(value)} from another process", brief(found))


@case("ser-12", F, "D", kind=S)
async def not_changed(t: PluginTrial) -> None:
    """dump neither changes its input nor keeps it: changing the input afterwards changes no small buffer."""
    made = t.make()
    done = 0
    for value in [*samples.CONTAINERS, *samples.KINDS, *t.subject.samples]:
        if not made.accepts(value):
            continue
        before = copy.deepcopy(value)
        dumped = flat(made.dump(value))
        t.expect(same(t, before, value), "dump does not change its input", brief(value))
        if isinstance(value, list):
            value_copy = copy.deepcopy(value)
            buffers = made.dump(value_copy)
            value_copy.clear()
            t.expect(same(t, before, made.load(views(flat(buffers)), DEFAULT_LIMITS)), "nor keep it", brief(value))
        t.expect(same(t, before, made.load(views(dumped), DEFAULT_LIMITS)), "and it loads", brief(value))
        done += 1
    if not done:
        t.lacks("capability", "accepts", "none of the values is accepted")


@case("ser-13", F, "D", Certainty.STOCHASTIC, kind=S, cost=2)
async def threads(t: PluginTrial) -> None:
    """One instance dumps and loads in 8 threads at once."""
    made = t.make()
    values = [v for v in [*samples.CONTAINERS, *samples.KINDS, *t.subject.samples] if made.accepts(v)]
    if not values:
        t.lacks("capability", "accepts", "none of the values is accepted")

    def work(number: int) -> str:
        for i in range(200):
            value = values[(i * 7 + number) % len(values)]
            found = made.load(views(flat(made.dump(value))), DEFAULT_LIMITS)
            if not same(t, value, found):
                return f"{brief(value)} came back as {brief(found)}"
        return ""

    wrong = await asyncio.gather(*(asyncio.to_thread(work, i) for i in range(8)))
    t.evidence.rounds = 1600
    t.expect(not any(wrong), "values come back in every thread", [w for w in wrong if w][:2])


async def _large(c: ChildContext, subject: Any, size: int) -> dict[str, Any]:
    made = subject.make()
    kinds: list[tuple[str, Any, int]] = []
    data = bytes(size)
    if made.accepts(data):
        kinds.append(("bytes", data, id(data)))
    try:
        import numpy

        array = numpy.zeros(size, numpy.uint8)
        if made.accepts(array):
            kinds.append(("array", array, array.ctypes.data))
    except ImportError:
        pass
    out: dict[str, Any] = {}
    for name, value, _ in kinds:
        resources.reset_peak()
        before = resources.memory()
        buffers = made.dump(value)
        grown = resources.peak() - before
        first = buffers[0].nbytes if isinstance(buffers[0], Pieces) else memoryview(buffers[0]).nbytes
        resources.reset_peak()
        before = resources.memory()
        loaded = made.load(
            [memoryview(b).cast("B").toreadonly() for b in buffers if not isinstance(b, Pieces)]
            if not any(isinstance(b, Pieces) for b in buffers)
            else views(flat(buffers)),
            DEFAULT_LIMITS,
        )
        out[name] = {
            "dump": grown / size,
            "load": (resources.peak() - before) / size,
            "first": first,
            "equal": samples.identical(value, loaded),
        }
    return out


@case("ser-14", F, "D", kind=S, alone=True, timeout=120, cost=5)
async def large(t: PluginTrial) -> None:
    """A value of 256 MiB is dumped in at most 0.15 of its size more (its buffer is not copied), and comes back."""
    seen = await t.in_child(_large, 256 * MIB)
    if not seen:
        t.lacks("capability", "accepts", "neither bytes nor arrays are accepted")
    for name, found in seen.items():
        t.evidence.numbers[name] = {k: round(v, 2) if isinstance(v, float) else v for k, v in found.items()}
        t.expect(found["equal"], f"{name} of 256 MiB comes back", found)
        if name == "bytes" and "array" in seen and found["dump"] > 0.15:
            t.note("bytes are copied by dump; arrays are not")
            continue
        t.expect(found["dump"] <= 0.15, f"{name}: the dump takes at most 0.15 of its size", f"{found['dump']:.2f}")
        t.expect(found["first"] <= MIB, "the first buffer is small", found["first"])


@case("ser-15", F, "D", kind=S)
async def private(t: PluginTrial) -> None:
    """What was loaded is read-only or private: changing it changes no buffer, nor another load of it."""
    made = t.make()
    done = 0
    for value in [*t.subject.samples, bytearray(b"x" * 100_000), [1, 2, [3]], {"a": [1]}, bytearray(b"ab")]:
        if not made.accepts(value):
            continue
        buffers = flat(made.dump(value))
        before = [bytes(b) for b in buffers]
        one = made.load(views(buffers), DEFAULT_LIMITS)
        two = made.load(views(buffers), DEFAULT_LIMITS)
        try:
            if isinstance(one, (bytearray, list)):
                one[0] = 7
            elif isinstance(one, dict) and isinstance(one.get("a"), list):
                one["a"].append(2)
            elif hasattr(one, "flat") and one.size:
                one.flat[0] = one.flat[0] + 1
            elif hasattr(one, "iloc") and one.size:
                one.iloc[0] = one.iloc[-1]
        except (ValueError, TypeError):
            pass  # read-only is fine
        t.expect(buffers == before, "the buffers are unchanged", type(value).__name__)
        t.expect(same(t, value, two), "another load is unchanged", brief(two))
        done += 1
    if not done:
        t.lacks("capability", "accepts", "none of the values is accepted")


@case("ser-22", F, "D", kind=S)
async def versions(t: PluginTrial) -> None:
    """Golden bytes of earlier versions load (where the author gives some), and so does what a copy dumped."""
    made = t.make()
    for buffers, value in t.subject.golden:
        found = made.load(views(list(buffers)), DEFAULT_LIMITS)
        t.expect(same(t, value, found), f"golden bytes of {brief(value)}", brief(found))
    if not t.subject.golden:
        t.note("no golden bytes were given: only this version was tried")
    if not t.subject.golden and not any(made.accepts(v) for v in [*samples.KINDS, *t.subject.samples]):
        t.lacks("capability", "accepts", "none of the values is accepted")
    for value in [*samples.KINDS, *t.subject.samples]:
        if made.accepts(value):
            first, second = flat(made.dump(value)), flat(t.make().dump(value))
            t.expect(
                same(t, made.load(views(first), DEFAULT_LIMITS), made.load(views(second), DEFAULT_LIMITS)),
                "two dumps mean the same",
                brief(value),
            )


@case("ser-24", B, "D", kind=S)
async def pickled(t: PluginTrial) -> None:
    """A pickled instance works and is the same serializer."""
    made = t.make()
    other = pickle.loads(pickle.dumps(made))
    t.expect(
        (other.id, other.version, other.runs_code) == (made.id, made.version, made.runs_code),
        "the same id, version, flags",
        other.id,
    )
    for value in [*samples.KINDS, *samples.SCALARS[:6], *t.subject.samples]:
        if made.accepts(value):
            found = other.load(views(flat(made.dump(value))), DEFAULT_LIMITS)
            t.expect(same(t, value, found), f"{brief(value)} through the copy", brief(found))
            t.expect(isinstance(DEFAULT_LIMITS, Limits), "limits", "")
