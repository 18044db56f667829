"""What this process holds: descriptors, threads, memory. For cases that ask whether something leaks."""

from __future__ import annotations

import gc
import os
import sys
import threading


def descriptors() -> int:
    """Open descriptors, or -1 where the system does not say."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder))
        except OSError:
            continue
    return -1


def threads() -> int:
    return threading.active_count()


def _status(name: str) -> int:
    try:
        with open("/proc/self/status") as lines:
            for line in lines:
                if line.startswith(name + ":"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return -1


def memory() -> int:
    """Resident bytes now (the peak, where only that can be had)."""
    gc.collect()
    now = _status("VmRSS")
    if now >= 0:
        return now
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak() -> int:
    """The largest resident size since the start or the last ``reset_peak``, in bytes."""
    value = _status("VmHWM")
    return value if value >= 0 else memory()


def reset_peak() -> None:
    """Begin a new measurement of the peak, where the system can."""
    try:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
    except OSError:
        pass
