"""Event listeners: how the outside world wakes a workflow.

Owns the interface and the timer. A listener is constructed without arguments wherever it is needed; waits live
in one loop per environment (see `waits`), never in a Ray worker of their own.
"""

from __future__ import annotations

import asyncio
import time
from contextvars import ContextVar
from typing import Any, Final, Protocol, runtime_checkable

STORE: Final[ContextVar[str]] = ContextVar("perdure_store", default="")
"""URL of the workflow's store, while a listener runs: for listeners whose events lie there."""
LIFE: Final[ContextVar[int]] = ContextVar("perdure_life", default=0)
"""Birth of the workflow's life, while a listener runs; part of the keys of events that were sent to it (E3)."""


@runtime_checkable
class EventListenerType(Protocol):
    """What `workflow.wait_for_event` accepts."""

    async def poll_for_event(self, *args: Any, **kwargs: Any) -> Any: ...
    async def event_checkpointed(self, event: Any) -> None: ...


class EventListener:
    """Base class of listeners.

    The contract: ``poll_for_event`` awaits one event and returns it. It may be cancelled at any time and begun
    again with the same arguments, in another process; so it must not consume the event: what was polled but not
    acknowledged is delivered again. ``event_checkpointed`` is called once the event is durable, possibly twice.
    Neither may block the loop.
    """

    def __init__(self) -> None:
        """Listeners take no arguments here: the arguments of `wait_for_event` go to `poll_for_event`."""

    async def poll_for_event(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for one event and return it."""
        raise TypeError(f"{type(self).__name__} does not define poll_for_event")

    async def event_checkpointed(self, event: Any) -> None:
        """The event is durable: tell its source. The default does nothing."""


class TimerListener(EventListener):
    """Fires at a wall time: ``workflow.wait_for_event(TimerListener, unix_seconds)``. Its event is None."""

    async def poll_for_event(self, timestamp: float) -> None:
        await asyncio.sleep(max(0.0, timestamp - time.time()))
