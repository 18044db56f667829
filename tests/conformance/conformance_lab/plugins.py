"""A right codec and a right listener of the laboratory, in small parts that a broken one can replace."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pickle
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from perdure.conformance.plugin_subject import ListenerSubject
from perdure.errors import DecodeError, ListenerError
from perdure.serializer import Limits


class FramedCodec:
    """Frames with lengths, an end mark, and a checksum of all."""

    id = "framed"
    integrity = "checksum"

    def encode(self, chunks: Iterable[Any]) -> Iterator[bytes]:
        sum = hashlib.blake2b(digest_size=16)
        for chunk in chunks:
            data = bytes(chunk)
            if data:
                sum.update(data)
                yield len(data).to_bytes(4) + data
        yield bytes(4) + sum.digest()

    def decode(self, chunks: Iterable[Any], limits: Limits) -> Iterator[bytes]:
        source, rest, total = iter(chunks), b"", 0
        sum = hashlib.blake2b(digest_size=16)

        def take(size: int) -> bytes:
            nonlocal rest
            parts, have = [rest], len(rest)
            while have < size:
                more = next(source, None)
                if more is None:
                    raise DecodeError("the data ends too early")
                parts.append(bytes(more))
                have += len(more)
            whole = b"".join(parts)
            rest = whole[size:]
            return whole[:size]

        while size := int.from_bytes(take(4)):
            total += size
            self.check_limit(total, limits)
            data = take(size)
            sum.update(data)
            yield data
        self.check_end(take(16) == sum.digest(), rest, source)

    def check_limit(self, total: int, limits: Limits) -> None:
        if total > limits.max_bytes:
            raise DecodeError(f"more than {limits.max_bytes} bytes")

    def check_end(self, right: bool, rest: bytes, source: Iterator[Any]) -> None:
        if not right:
            raise DecodeError("the checksum is wrong")
        if rest or any(len(x) for x in source):
            raise DecodeError("bytes after the end")


# --- a listener on a folder --------------------------------------------------------------------------------


class Bell:
    """One task per loop that looks at one file, and wakes who waits when it has changed."""

    def __init__(self, root: Path) -> None:
        self.path = root / "bell"
        self.waiting: set[asyncio.Future[None]] = set()
        self.task: asyncio.Task[None] | None = None

    async def rings(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.add(future)
        if self.task is None or self.task.done():
            self.task = asyncio.ensure_future(self.look())
        try:
            await future
        finally:
            self.waiting.discard(future)

    def state(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return -1

    async def look(self) -> None:
        last = self.state()
        while self.waiting:
            await asyncio.sleep(0.02)
            now = self.state()
            if now != last:
                last = now
                for future in list(self.waiting):
                    if not future.done():
                        future.set_result(None)


_bells: dict[tuple[int, int, str], Bell] = {}
_scans = 0
_lose: list[bool] = []


def bell(root: Path) -> Bell:
    key = (os.getpid(), id(asyncio.get_running_loop()), str(root))
    if key not in _bells:
        _bells[key] = Bell(root)
    return _bells[key]


class FolderListener:
    """Events are files of a folder per topic, oldest first; acknowledging removes the file."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.root)!r})"

    def check(self, args: tuple[Any, ...]) -> str:
        if len(args) != 1 or not isinstance(args[0], str):
            raise TypeError(f"poll_for_event takes one topic, a str, not {len(args)} arguments: {args!r:.80}")
        if not args[0] or "/" in args[0]:
            raise ValueError(f"not a topic: {args[0]!r}")
        return args[0]

    def names(self, topic: str) -> list[str]:
        global _scans
        _scans += 1
        try:
            return sorted(n for n in os.listdir(self.root / topic) if not n.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def look(self, topic: str) -> Any:
        """The oldest event as ``[topic, name, payload]``, or None."""
        for name in self.names(topic):
            path = self.root / topic / name
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                continue
            try:
                return [topic, name, pickle.loads(data)]
            except Exception as error:
                path.unlink(missing_ok=True)
                raise ListenerError(f"the event {name} of {topic!r} can't be read: {error}") from None
        return None

    async def poll_for_event(self, *args: Any) -> Any:
        topic = self.check(args)
        while True:
            ringing = asyncio.ensure_future(bell(self.root).rings())
            try:
                if (event := self.look(topic)) is not None:
                    return event
                await ringing
            finally:
                ringing.cancel()

    async def event_checkpointed(self, event: Any) -> None:
        topic, name, _ = event
        (self.root / topic / name).unlink(missing_ok=True)
        if _lose:
            _lose.clear()
            raise ListenerError("the answer of the acknowledgement was lost")


class FolderListenerSubject(ListenerSubject):
    """The folder listener (or a broken one by class), with every hook."""

    order = "fifo"
    secret = "l1stener-s3cret"
    bad_arguments = ((), ("a", "b"), (5,), ("",), ("a/b",))

    def __init__(self, root: str, listener: type = FolderListener) -> None:
        self.root = root
        self.listener = listener
        Path(root).mkdir(parents=True, exist_ok=True)

    def make(self) -> Any:
        return self.listener(self.root)

    def arguments(self, topic: str) -> tuple[Any, ...]:
        return (topic,)

    def payload(self, event: Any) -> Any:
        return event[2]

    def _ring(self) -> None:
        with open(Path(self.root) / "bell", "ab") as f:
            f.write(b".")

    async def publish(self, topic: str, payload: Any) -> None:
        await self._write(topic, pickle.dumps(payload))

    async def publish_malformed(self, topic: str) -> None:
        await self._write(topic, b"no event")

    async def _write(self, topic: str, data: bytes) -> None:
        folder = Path(self.root) / topic
        folder.mkdir(exist_ok=True)
        name = f"{time.time_ns():020}-{uuid.uuid4().hex[:8]}"
        (folder / f".{name}").write_bytes(data)
        with contextlib.suppress(FileNotFoundError):
            os.rename(folder / f".{name}", folder / name)
        self._ring()

    def stop_source(self) -> None:
        os.rename(self.root, self.root + "-away")

    def start_source(self) -> None:
        os.rename(self.root + "-away", self.root)

    def requests(self) -> int:
        return _scans

    async def lose_acknowledgement(self) -> None:
        _lose.append(True)
