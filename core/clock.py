"""Time, as the durable core sees it. The only module of the core that reads clocks.

``boot`` counts seconds since the machine started, suspends included (L4); it orders and measures. ``wall`` is
Unix time; it is written down for people and for timers' deadlines, and no decision about ownership rests on it.
"""

from __future__ import annotations

import os
import time
from typing import Protocol


class Clock(Protocol):
    def boot(self) -> float: ...
    def wall(self) -> float: ...


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        self._id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def boot(self) -> float:
        return time.clock_gettime(self._id)

    def wall(self) -> float:
        return time.time()


def host_facts() -> dict[str, str]:
    """What lets another process on this machine prove that this one is gone (L5). Empty where it can't be."""
    facts: dict[str, str] = {}
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            facts["boot"] = file.read().strip()
        facts["pids"] = os.readlink("/proc/self/ns/pid")
        facts["pid"] = str(os.getpid())
        facts["began"] = process_start(os.getpid())
    except OSError:
        return {}
    return facts


def process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot; OSError where there is no such process."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rsplit(")", 1)[-1].split()
    if fields[0] == "Z":
        raise ProcessLookupError(pid)
    return fields[19]


def provably_gone(facts: dict[str, str]) -> bool:
    """Whether the process with these `host_facts` is gone: same boot, same pid namespace, no such process."""
    mine = host_facts()
    if not facts.get("pid") or not mine:
        return False
    if (facts.get("boot"), facts.get("pids")) != (mine["boot"], mine["pids"]):
        return False
    try:
        return process_start(int(facts["pid"])) != facts["began"]
    except OSError:
        return True
