"""A store that does not answer a worker: it is asked again, for as long as what is at stake is worth."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from perdure.backoff import Backoff
from perdure.errors import NotFound, StoreError, StoreUnavailable

T = TypeVar("T")

LOAD_PATIENCE: Final = 60.0
"""Seconds for which a read is repeated: then the attempt has not begun, and another worker may fare better."""
SAVE_PATIENCE: Final = 600.0
"""The same for a write, when the user's function has run already."""
UNREAD: Final = "its inputs can't be read"
"""How the reason of an attempt begins whose inputs' refs may be those of failed loads."""


class StoreTrouble(StoreUnavailable):
    """The store failed for as long as a worker waits: not the doing of the task whose value it holds."""


async def patiently(call: Callable[[], Awaitable[T]], what: str, seconds: float) -> T:
    """``call()`` until the store carries it out.

    Every failure of the store is waited for, also what a store calls permanent (a full disk, expired credentials):
    somebody will mend it, and the value is at hand. Raises StoreTrouble after ``seconds``, NotFound at once.
    """
    waits, told = Backoff(random.Random()), False
    end = time.monotonic() + seconds
    while True:
        try:
            return await call()
        except NotFound:
            raise
        except StoreError as error:
            delay = waits.next()
            if time.monotonic() + delay > end:
                raise StoreTrouble(f"{what} was tried for {seconds:g} s: {error}") from error
            if not told:
                logging.getLogger("perdure").warning("%s is tried again for up to %g s: %s", what, seconds, error)
                told = True
            await asyncio.sleep(delay)
