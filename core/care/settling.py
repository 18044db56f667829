"""Waiting for a GC cycle: until no coordinator can add a reference to a blob of an older one (B3).

Owns the wait, and the settlement of coordinators that are gone (L6). A coordinator that died a moment ago is left alone
for some leases, since its own cluster may be starting it again to take its workflows over.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Final

from perdure.care.opening import Hand
from perdure.coordinator import Coordinator
from perdure.errors import CorruptedError, FormatError
from perdure.lease import Roster

logger = logging.getLogger("perdure")

COURTESY: Final = 3
"""Leases without a page after which a dead coordinator's workflows are entered. Clocks decide nothing but this."""
_LOOK: Final = 1.0
_AT_ONCE: Final = 16


@dataclass
class Agreement:
    """``cycle``: the newest one that all have acknowledged. ``holding``: coordinator → why it is not a newer one."""

    cycle: int
    holding: dict[str, str] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)


async def agree(hand: Hand, cycle: int, *, wait: float) -> Agreement:
    """Wait up to ``wait`` seconds for all coordinators to acknowledge ``cycle``, which has begun; settle the dead.

    Raises FormatError: one was written by a newer Perdure (J8).
    """
    names = [n for n in await hand.reading.watcher.coordinators() if n != hand.registered]
    agreement = Agreement(cycle)
    gate = asyncio.Semaphore(_AT_ONCE)
    end = hand.reading.clock.boot() + wait

    async def one(name: str) -> None:
        async with gate:
            reached, why = await _follow(hand, name, cycle, end, agreement)
        if reached < cycle:
            agreement.cycle = min(agreement.cycle, reached)
            agreement.holding[name] = why

    await _all([one(name) for name in names])
    return agreement


async def standing(coordinator: Coordinator) -> Agreement:
    """What `agree` would find now, without waiting, settling or writing; the dead count as settled."""
    agreement = Agreement(coordinator.cycles.newest + 1)
    for name in await coordinator.watcher.coordinators():
        try:
            roster = await coordinator.watcher.roster(name)
        except CorruptedError as error:
            agreement.cycle, agreement.holding[name] = 0, str(error)
            continue
        if not await coordinator.watcher.surely_dead(roster):
            agreement.cycle = min(agreement.cycle, roster.cycle)
            agreement.holding[name] = "it runs, and is asked for when the collection begins"
    return agreement


async def _follow(hand: Hand, name: str, cycle: int, end: float, agreement: Agreement) -> tuple[int, str]:
    """The cycle that this coordinator has reached, and what holds it there."""
    reading = hand.reading
    watcher, clock = reading.watcher, reading.clock
    while True:
        try:
            roster = await watcher.roster(name)
        except CorruptedError as error:
            return 0, f"its chain is damaged, so it is not known what it may still write: {error}"
        except FormatError as error:
            raise FormatError(f"{error} A collector deletes nothing from a store that a newer Perdure uses.") from error
        if roster.number < 0 or roster.clean or (roster.cycle >= cycle and not roster.retired):
            return cycle, ""
        if roster.retired:
            left = roster.wall + COURTESY * roster.lease - clock.wall()
            if not roster.opened or left <= 0 or left > COURTESY * roster.lease:
                await settle(hand, roster)
                agreement.settled.append(name)
                return cycle, ""
            why = f"it died a moment ago; its workflows are left to its own cluster for {left:.0f} s more"
        else:
            if await watcher.retire(name):  # takes a lease of silence, or the next page
                continue
            why = "it has not acknowledged the cycle: what it began before is not finished"
        left = end - clock.boot()
        if left <= 0:
            return roster.cycle, why
        await asyncio.sleep(min(_LOOK, left))


async def settle(hand: Hand, roster: Roster) -> None:
    """L6: whatever a retired coordinator has on its way into workflows' chains can't land after this."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(workflow_id: str, number: int) -> None:
        async with gate:
            await (await hand.writing()).fence(workflow_id, number, roster.coordinator)

    await _all([one(workflow_id, number) for workflow_id, number in roster.opened.items()])


async def _all(calls: list[Coroutine[Any, Any, None]]) -> None:
    """Every call to its end; the first error ends the others."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
