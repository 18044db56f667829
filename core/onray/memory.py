"""Memory of a long-lived process, given back to the system.

Owns one call: the C library keeps what a burst (a large graph, thousands of attempts) has freed, and a coordinator
lives for weeks.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable


def _trimmer() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None  # not glibc


_trim = _trimmer()


def give_back() -> None:
    """Collect garbage and return free memory to the system; a few milliseconds."""
    gc.collect()
    if _trim is not None:
        _trim(0)
