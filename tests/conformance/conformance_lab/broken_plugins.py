"""Broken serializers, codecs and listeners: each a right one with one fault, and the cases that must catch it."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import pickle
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from conformance_lab import plugins
from conformance_lab.plugins import FolderListener, FolderListenerSubject, FramedCodec
from perdure.conformance.plugin_bench import PluginBench
from perdure.conformance.plugin_subject import CodecSubject, Keyed, SerializerSubject, keyed_subject
from perdure.conformance.register import Kind
from perdure.errors import DecodeError, EncodeError
from perdure.keyring import Keyring
from perdure.serializers.crypto import AesGcmCodec
from perdure.serializers.data import DataSerializer

_leaked: list[Any] = []


# --- serializers -----------------------------------------------------------------------------------------


class Mapped(DataSerializer):
    """What was loaded is changed, all the way down."""

    def change(self, x: Any) -> Any:
        raise NotImplementedError

    def walk(self, x: Any) -> Any:
        if isinstance(x, (list, tuple, set, frozenset)) and type(x) in (list, tuple, set, frozenset):
            return self.change(type(x)(self.walk(i) for i in x))
        if type(x) is dict:
            return self.change({self.walk(k): self.walk(v) for k, v in x.items()})
        return self.change(x)

    def load(self, buffers: Any, limits: Any) -> object:
        return self.walk(super().load(buffers, limits))


class BadId(DataSerializer):
    id: ClassVar[str] = "Bad Id"


class FloatInts(Mapped):
    def change(self, x: Any) -> Any:
        return int(float(x)) if type(x) is int and 2**53 < abs(x) < 2**1000 else x


class NanIsNone(Mapped):
    def change(self, x: Any) -> Any:
        return None if isinstance(x, float) and x != x else x


class DropsNul(Mapped):
    def change(self, x: Any) -> Any:
        return x.replace("\0", "") if isinstance(x, str) else x


class BytearrayIsBytes(Mapped):
    def change(self, x: Any) -> Any:
        return bytes(x) if isinstance(x, bytearray) else x


class TextKeys(Mapped):
    def change(self, x: Any) -> Any:
        return {str(k): v for k, v in x.items()} if type(x) is dict else x


class TupleIsList(Mapped):
    def change(self, x: Any) -> Any:
        return list(x) if type(x) is tuple else x

    def walk(self, x: Any) -> Any:
        return x if isinstance(x, dict) else super().walk(x)


class RawErrors(DataSerializer):
    def dump(self, obj: object) -> Any:
        try:
            return super().dump(obj)
        except EncodeError as error:
            raise TypeError(str(error)) from None


class Recursive(DataSerializer):
    def dump(self, obj: object) -> Any:
        def depth(x: Any) -> int:
            return 1 + max((depth(i) for i in x), default=0) if isinstance(x, list) and len(x) < 2 else 0

        depth(obj)
        return super().dump(obj)


class HashDependent(DataSerializer):
    def dump(self, obj: object) -> Any:
        first, *rest = super().dump(obj)
        return [hash("salt").to_bytes(8, signed=True) + bytes(first), *rest]

    def load(self, buffers: Any, limits: Any) -> object:
        first, *rest = buffers
        if bytes(first[:8]) != hash("salt").to_bytes(8, signed=True):
            raise DecodeError("another salt")
        return super().load([first[8:], *rest], limits)


class ChangesInput(DataSerializer):
    def dump(self, obj: object) -> Any:
        found = super().dump(obj)
        if isinstance(obj, list):
            obj.reverse()
        return found


class SharedState(DataSerializer):
    def dump(self, obj: object) -> Any:
        self.current = obj
        time.sleep(0.0002)
        return super().dump(self.current)


class Copies(DataSerializer):
    def dump(self, obj: object) -> Any:
        return [bytes(bytearray(b)) for b in super().dump(obj)]


class CachesLoads(DataSerializer):
    cache: ClassVar[dict[bytes, Any]] = {}

    def load(self, buffers: Any, limits: Any) -> object:
        key = b"".join(bytes(b) for b in buffers)
        if key not in self.cache:
            self.cache[key] = super().load(buffers, limits)
        return self.cache[key]


class DamageIsNone(DataSerializer):
    def load(self, buffers: Any, limits: Any) -> object:
        try:
            return super().load(buffers, limits)
        except DecodeError:
            return None


class DamageIsValueError(DataSerializer):
    def load(self, buffers: Any, limits: Any) -> object:
        try:
            return super().load(buffers, limits)
        except DecodeError as error:
            raise ValueError(str(error)) from None


class TrustsLengths(DataSerializer):
    def load(self, buffers: Any, limits: Any) -> object:
        if b"\xff\xff\xff\xff" in bytes(buffers[0]):
            _ = bytearray(b"x" * (100 << 20))
        return super().load(buffers, limits)


class PickleFallback(DataSerializer):
    def load(self, buffers: Any, limits: Any) -> object:
        try:
            return super().load(buffers, limits)
        except DecodeError:
            try:
                return pickle.loads(buffers[0])
            except Exception:
                raise DecodeError("neither") from None


class NewVersionOnly(DataSerializer):
    def dump(self, obj: object) -> Any:
        first, *rest = super().dump(obj)
        return [b"\2" + bytes(first), *rest]

    def load(self, buffers: Any, limits: Any) -> object:
        first, *rest = buffers
        if bytes(first[:1]) != b"\2":
            raise DecodeError("an old version")
        return super().load([first[1:], *rest], limits)


class ShowsValues(DataSerializer):
    def dump(self, obj: object) -> Any:
        try:
            return super().dump(obj)
        except EncodeError:
            raise EncodeError(f"can't keep {obj!r}") from None


class LosesState(DataSerializer):
    def __init__(self) -> None:
        self.ready = True

    def __reduce__(self) -> Any:
        return object.__new__, (type(self),)

    def load(self, buffers: Any, limits: Any) -> object:
        assert self.ready
        return super().load(buffers, limits)


# --- codecs ----------------------------------------------------------------------------------------------


class LosesByte(FramedCodec):
    def encode(self, chunks: Iterable[Any]) -> Iterator[bytes]:
        return super().encode(bytes(c)[:-1] if len(c) == 65_536 else c for c in chunks)


class StopsAtEmpty(FramedCodec):
    def encode(self, chunks: Iterable[Any]) -> Iterator[bytes]:
        def until() -> Iterator[Any]:
            for c in chunks:
                if not len(c):
                    return
                yield c

        return super().encode(until())


class Joins(FramedCodec):
    def encode(self, chunks: Iterable[Any]) -> Iterator[bytes]:
        return super().encode([b"".join(bytes(c) for c in chunks)])


class CutIsEnd(FramedCodec):
    def decode(self, chunks: Iterable[Any], limits: Any) -> Iterator[bytes]:
        try:
            yield from super().decode(chunks, limits)
        except DecodeError as error:
            if "too early" not in str(error):
                raise


class NoChecksum(FramedCodec):
    def check_end(self, right: bool, rest: bytes, source: Any) -> None:
        super().check_end(True, rest, source)


class TakesMore(FramedCodec):
    def check_end(self, right: bool, rest: bytes, source: Any) -> None:
        super().check_end(right, b"", iter(()))


class NoLimit(FramedCodec):
    def check_limit(self, total: int, limits: Any) -> None:
        return


class OneBuffer(FramedCodec):
    buffer = b""

    def encode(self, chunks: Iterable[Any]) -> Iterator[bytes]:
        for c in super().encode(chunks):
            OneBuffer.buffer = c
            yield b""
            yield OneBuffer.buffer


class Doubles(FramedCodec):
    def encode(self, chunks: Iterable[Any]) -> Iterator[bytes]:
        return (bytes(c).hex().encode() for c in super().encode(chunks))

    def decode(self, chunks: Iterable[Any], limits: Any) -> Iterator[bytes]:
        try:
            whole = bytes.fromhex(b"".join(bytes(c) for c in chunks).decode())
        except ValueError as error:
            raise DecodeError(str(error)) from None
        return super().decode([whole], limits)


class Unbound(AesGcmCodec):
    def bind(self, context: bytes) -> Any:
        return self


class SameAgain(AesGcmCodec):
    seen: ClassVar[dict[bytes, list[bytes]]] = {}

    def encode(self, chunks: Iterable[Any]) -> Iterator[Any]:
        data = b"".join(bytes(c) for c in chunks)
        if len(data) > 100:
            return super().encode([data])
        if data not in self.seen:
            self.seen[data] = [bytes(c) for c in super().encode([data])]
        return iter(self.seen[data])


class ShowsKey(AesGcmCodec):
    def __init__(self, keys: Keyring | None = None, *, context: bytes = b"") -> None:
        super().__init__(keys, context=context)
        self.ring = keys

    def __repr__(self) -> str:
        key = self.ring.writer("encrypt") if self.ring else None
        return f"ShowsKey({key.secret.hex() if key else ''})"


# --- listeners -------------------------------------------------------------------------------------------


class NotAsync(FolderListener):
    def event_checkpointed(self, event: Any) -> None:  # type: ignore[override]
        return


class OnlyNewEvents(FolderListener):
    async def poll_for_event(self, *args: Any) -> Any:
        topic = self.check(args)
        old = set(self.names(topic))
        while True:
            await plugins.bell(self.root).rings()
            for name in self.names(topic):
                if name not in old:
                    return [topic, name, pickle.loads((self.root / topic / name).read_bytes())]


class Polls(FolderListener):
    pause = 2.5

    async def poll_for_event(self, *args: Any) -> Any:
        topic = self.check(args)
        while (event := self.look(topic)) is None:
            await asyncio.sleep(self.pause)
        return event


class BusyLoop(Polls):
    pause = 0.0


class AsksOften(Polls):
    pause = 0.1


class Blocks(Polls):
    pause = 0.2

    def look(self, topic: str) -> Any:
        time.sleep(0.002)
        return super().look(topic)


class UnstorableEvents(FolderListener):
    async def poll_for_event(self, *args: Any) -> Any:
        return [*await super().poll_for_event(*args), threading.Lock()]


class Heavy(FolderListener):
    async def poll_for_event(self, *args: Any) -> Any:
        buffer = bytearray(b"x" * 20_000)
        event = await super().poll_for_event(*args)
        del buffer
        return event


class SwallowsCancel(FolderListener):
    async def poll_for_event(self, *args: Any) -> Any:
        try:
            return await super().poll_for_event(*args)
        except asyncio.CancelledError:
            await asyncio.sleep(2)
            raise


class AcknowledgesAtPoll(FolderListener):
    async def poll_for_event(self, *args: Any) -> Any:
        event = await super().poll_for_event(*args)
        (self.root / event[0] / event[1]).unlink(missing_ok=True)
        await asyncio.sleep(0.001)
        return event


class NeverAcknowledges(FolderListener):
    async def event_checkpointed(self, event: Any) -> None:
        return


class TwoStepAcknowledgement(FolderListener):
    async def event_checkpointed(self, event: Any) -> None:
        folder = self.root / event[0]
        away = folder.with_name(folder.name + ".away")
        os.rename(folder, away)
        time.sleep(0.004)
        (away / event[1]).unlink(missing_ok=True)
        os.rename(away, folder)


class SecondRaises(FolderListener):
    async def event_checkpointed(self, event: Any) -> None:
        (self.root / event[0] / event[1]).unlink()
        await super().event_checkpointed(event)


class AcknowledgesInMemory(FolderListener):
    done: ClassVar[set[str]] = set()

    def names(self, topic: str) -> list[str]:
        return [n for n in super().names(topic) if n not in self.done]

    async def event_checkpointed(self, event: Any) -> None:
        self.done.add(event[1])


class NewestFirst(FolderListener):
    def names(self, topic: str) -> list[str]:
        return super().names(topic)[::-1]


class Claims(FolderListener):
    """The first poll that sees an event takes it from the others until it is acknowledged."""

    taken: ClassVar[set[str]] = set()

    def look(self, topic: str) -> Any:
        for name in self.names(topic):
            if name not in self.taken:
                self.taken.add(name)
                return [topic, name, pickle.loads((self.root / topic / name).read_bytes())]
        return None


class Crosses(FolderListener):
    def look(self, topic: str) -> Any:
        for other in sorted(p.name for p in self.root.iterdir() if p.is_dir()):
            if other[:6] == topic[:6] and (event := super().look(other)) is not None:
                return event
        return None


class DiesWithSource(FolderListener):
    def names(self, topic: str) -> list[str]:
        if not self.root.exists():
            raise FileNotFoundError(str(self.root))
        return super().names(topic)

    async def poll_for_event(self, *args: Any) -> Any:
        topic = self.check(args)
        while (event := self.look(topic)) is None:
            await asyncio.sleep(0.02)
        return event


class StuckOnMalformed(FolderListener):
    def look(self, topic: str) -> Any:
        for name in self.names(topic):
            try:
                return [topic, name, pickle.loads((self.root / topic / name).read_bytes())]
            except Exception as error:
                raise plugins.ListenerError(f"event {name} can't be read: {error}") from None
        return None


class CutsEvents(FolderListener):
    def look(self, topic: str) -> Any:
        event = super().look(topic)
        if event is not None and isinstance(event[2], bytes):
            event[2] = event[2][: 1 << 20]
        return event


class SkipsFalsy(FolderListener):
    def look(self, topic: str) -> Any:
        event = super().look(topic)
        return event if event is not None and event[2] else None


class FiresByClock(FolderListener):
    async def poll_for_event(self, *args: Any) -> Any:
        topic, start = self.check(args), time.time()
        while (event := self.look(topic)) is None:
            if time.time() - start > 1800:
                return [topic, "timeout", None]
            await asyncio.sleep(0.05)
        return event


class TakesAnything(FolderListener):
    def check(self, args: tuple[Any, ...]) -> str:
        return str(args[0] if args else "default").replace("/", "") or "default"


class ShowsSecret(FolderListener):
    def __repr__(self) -> str:
        return "ShowsSecret(token='l1stener-s3cret')"


class Leaks(FolderListener):
    def __init__(self, root: str) -> None:
        super().__init__(root)
        _leaked.append(os.open("/dev/null", os.O_RDONLY))


class OneLoop(FolderListener):
    loops: ClassVar[list[Any]] = []

    async def poll_for_event(self, *args: Any) -> Any:
        if not self.loops:
            self.loops.append(asyncio.get_running_loop())
        if self.loops[0] is not asyncio.get_running_loop():
            raise RuntimeError("bound to another event loop")
        return await super().poll_for_event(*args)


class OneProcess(FolderListener):
    pid: ClassVar[list[int]] = []

    async def poll_for_event(self, *args: Any) -> Any:
        if not self.pid:
            self.pid.append(os.getpid())
        if self.pid[0] != os.getpid():
            raise RuntimeError("made in another process")
        return await super().poll_for_event(*args)


class OddError(ValueError):
    def __init__(self, topic: str, why: str) -> None:
        super().__init__(f"{topic}: {why}")


class UnpicklableErrors(FolderListener):
    def check(self, args: tuple[Any, ...]) -> str:
        try:
            return super().check(args)
        except (TypeError, ValueError) as error:
            raise OddError(repr(args), str(error)) from None


class SlowAcknowledgement(FolderListener):
    async def event_checkpointed(self, event: Any) -> None:
        await asyncio.sleep(0.03)
        await super().event_checkpointed(event)


# --- the tables ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class BrokenPlugin:
    fault: str
    make: Any
    caught_by: tuple[str, ...]


def rows(*table: tuple[Any, str]) -> list[BrokenPlugin]:
    return [BrokenPlugin(words(cls.__name__), cls, tuple(ids.split())) for cls, ids in table]


def words(name: str) -> str:
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


BROKEN: dict[str, list[BrokenPlugin]] = {
    "serializer": rows(
        (BadId, "ser-01"), (FloatInts, "ser-02"), (NanIsNone, "ser-02 ser-08"), (DropsNul, "ser-03"),
        (BytearrayIsBytes, "ser-04"), (TextKeys, "ser-05"), (TupleIsList, "ser-06"), (RawErrors, "ser-07"),
        (Recursive, "ser-09 ser-10"), (HashDependent, "ser-11"), (ChangesInput, "ser-12"), (SharedState, "ser-13"),
        (Copies, "ser-14"), (CachesLoads, "ser-15"), (DamageIsNone, "ser-16 ser-20"),
        (DamageIsValueError, "ser-17 ser-18"), (TrustsLengths, "ser-19"), (PickleFallback, "ser-21"),
        (NewVersionOnly, "ser-22"), (ShowsValues, "ser-23"), (LosesState, "ser-24"),
    ),
    "codec": rows(
        (LosesByte, "cod-01"), (StopsAtEmpty, "cod-02"), (Joins, "cod-03"), (CutIsEnd, "cod-04"),
        (NoChecksum, "cod-05"), (TakesMore, "cod-06"), (NoLimit, "cod-07"), (OneBuffer, "cod-08"),
        (Doubles, "cod-09"), (Unbound, "cod-10"), (SameAgain, "cod-11"), (ShowsKey, "cod-12"),
    ),
    "listener": rows(
        (NotAsync, "lis-01"), (OnlyNewEvents, "lis-02"), (Polls, "lis-03"), (UnstorableEvents, "lis-04"),
        (BusyLoop, "lis-05"), (Blocks, "lis-06"), (Heavy, "lis-07"), (SwallowsCancel, "lis-08"),
        (AcknowledgesAtPoll, "lis-09 lis-11 lis-12 lis-18"), (NeverAcknowledges, "lis-10"),
        (TwoStepAcknowledgement, "lis-13"), (SecondRaises, "lis-14 lis-16 lis-22"), (AcknowledgesInMemory, "lis-15"),
        (NewestFirst, "lis-17"), (Claims, "lis-19"), (Crosses, "lis-20"), (DiesWithSource, "lis-21"),
        (StuckOnMalformed, "lis-23"), (CutsEvents, "lis-24"), (SkipsFalsy, "lis-25"), (FiresByClock, "lis-26"),
        (TakesAnything, "lis-27"), (ShowsSecret, "lis-28"), (Leaks, "lis-29"), (OneLoop, "lis-30"),
        (OneProcess, "lis-31"), (UnpicklableErrors, "lis-32"), (SlowAcknowledgement, "lis-33"), (AsksOften, "lis-34"),
    ),
}  # fmt: skip


def subject(kind: str, make: Any, folder: str) -> Any:
    """The subject for a class of this module, or for a right one."""
    if kind == "listener":
        return FolderListenerSubject(str(Path(folder) / "events"), make)
    if kind == "codec":
        if not issubclass(make, AesGcmCodec):
            return CodecSubject(make)
        return (
            keyed_subject(make)
            if make is not ShowsKey
            else dataclasses.replace(keyed_subject(AesGcmCodec), make=Keyed(make, [1]))
        )
    old = [bytes(b) for b in DataSerializer().dump([1, "a"])]
    return SerializerSubject(make, golden=[(old, [1, "a"])])


def bench(kind: str, index: int, folder: str) -> PluginBench:
    return PluginBench(Kind(kind), subject(kind, BROKEN[kind][index].make, folder), seed=7)
