"""Wrong clocks for one process: Python's own time functions, moved by a number of seconds.

Only what Python code reads is moved (``time.time``, ``time_ns``, ``clock_gettime`` of the wall clock,
``datetime``); a store that reads the clock in C is not reached, and the report says so.
"""

from __future__ import annotations

import datetime
import time
from typing import Any

NOTE = "the clock is moved for Python code (time, datetime), not for code in C"

_offset = 0.0
_installed = False
_time, _time_ns, _clock_gettime = time.time, time.time_ns, time.clock_gettime
_datetime = datetime.datetime


def shift(seconds: float) -> None:
    """Move the wall clock of this process to ``seconds`` from the true one; 0 sets it right."""
    global _offset, _installed
    _offset = seconds
    if _installed:
        return
    _installed = True

    class Moved(_datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return _datetime.fromtimestamp(time.time(), tz)

        @classmethod
        def utcnow(cls) -> Any:
            return _datetime.fromtimestamp(time.time(), datetime.UTC).replace(tzinfo=None)

    time.time = lambda: _time() + _offset
    time.time_ns = lambda: _time_ns() + int(_offset * 1e9)
    time.clock_gettime = lambda clock: _clock_gettime(clock) + (_offset if clock == time.CLOCK_REALTIME else 0)
    datetime.datetime = Moved  # type: ignore[misc]


def moved() -> float:
    """How far the clock of this process is off, measured against the real one."""
    return time.time() - _time()
