"""What this process has written to a Redis that may lose its newest writes, so that a restart can be made good.

Owns the memory of recent writes and their repetition. Under ``appendfsync everysec`` a power cut takes the last second
or two of acknowledged writes; a chain whose end is gone would be continued behind a gap. So each new connection asks
for the server's ``run_id``, and where it is another one, what it has lost is written again, in order, before anything
else goes over that connection (create where it is absent; the same bytes). It recovers what living processes wrote;
what a process wrote that died in the same moment is lost, as the option ``durability=server`` accepts.

What the server still has must not be written again: others may have replaced or deleted it since. So each write has a
number, and the first connection to a new server process keeps the number of the last write that it came back with.
Redis loses a suffix of its file, hence exactly the writes above it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from perdure.backends.redis_scripts import COUNTED, SCRIPTS

WINDOW_SECONDS: Final = 5.0
"""Redis syncs each second; it falls two behind when the disk is slow."""
WINDOW_BYTES: Final = 64 << 20
OLDEST_SECONDS: Final = 86_400.0
"""What was written longer ago is on the disk, and its number may have been forgotten."""
_RUN_ID: Final = re.compile(rb"run_id:([0-9a-f]+)")

logger = logging.getLogger("perdure")


class _Write(NamedTuple):
    when: float
    size: int
    script: str
    keys: Sequence[bytes]
    arguments: Sequence[Any]
    number: int
    run_id: bytes


class Recent:
    """The newest writes of one client, and the server process that took them."""

    def __init__(self, where: str, counter: bytes) -> None:
        self._where = where
        self._counter = counter
        self._run_id = b""
        self._lock = asyncio.Lock()
        self._bytes = 0
        self._writes: deque[_Write] = deque()

    def note(self, script: str, keys: Sequence[bytes], arguments: Sequence[Any], number: int) -> None:
        """A write that was acknowledged. What is older than the window, seen from this one, is forgotten."""
        now, size = time.monotonic(), sum(len(a) for a in arguments if isinstance(a, bytes | memoryview))
        self._writes.append(_Write(now, size, script, keys, arguments, number, self._run_id))
        self._bytes += size
        while self._writes and (self._writes[0].when < now - WINDOW_SECONDS or self._bytes > WINDOW_BYTES):
            self._bytes -= self._writes.popleft().size

    async def greet(self, connection: Any) -> None:
        """Redis-py's hook for a new connection."""
        await connection.on_connect()
        found = _RUN_ID.search(_bytes(await _ask(connection, "INFO", "server")))
        run_id = found[1] if found else b""
        async with self._lock:
            kept = int(
                await _ask(connection, "EVAL", SCRIPTS["kept"][0], 1, self._counter, run_id, int(OLDEST_SECONDS))
            )
            if self._run_id and run_id != self._run_id:
                await self._write_again(connection, kept)
            self._run_id = run_id

    async def _write_again(self, connection: Any, kept: int) -> None:
        lost, gone, begin = 0, [], time.monotonic()
        for write in self._writes:
            if write.run_id != self._run_id or write.number <= kept or write.when < begin - OLDEST_SECONDS:
                continue
            keys = write.keys
            answer, _ = await _ask(connection, "EVAL", COUNTED[write.script][0], len(keys), *keys, *write.arguments)
            lost += write.script == "create" and answer == 1
            if write.script == "commit" and not answer:
                gone.append(_bytes(write.arguments[0]).decode(errors="replace"))
        if lost:
            logger.warning(
                "%s was restarted and had lost %d of this process's newest writes; they have been written again. "
                "appendfsync always would not lose any", self._where, lost,
            )  # fmt: skip
        if gone:
            logger.error("%s was restarted and has lost the large values %s", self._where, ", ".join(gone))


async def _ask(connection: Any, *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await connection.read_response()


def _bytes(answer: Any) -> bytes:
    return answer if isinstance(answer, bytes) else str(answer).encode()
