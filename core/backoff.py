"""Waiting times between attempts: exponential, capped, with full jitter.

Owns the schedule only: it neither sleeps nor decides what is worth a retry. Full jitter spreads clients that
failed together (AWS Architecture Blog, "Exponential Backoff And Jitter").
"""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds for one call's retries; ``rng`` is injected so that simulations repeat."""

    def __init__(self, rng: random.Random, base: float = 0.05, cap: float = 5.0) -> None:
        self._rng, self._ceiling, self._cap = rng, base, cap

    def next(self) -> float:
        """The next delay: uniform between a tenth of the ceiling and the ceiling, which doubles up
        to the cap.
        """
        delay = self._rng.uniform(self._ceiling / 10, self._ceiling)
        self._ceiling = min(self._cap, self._ceiling * 2)
        return delay
