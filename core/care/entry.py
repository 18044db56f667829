"""One entry into a workflow's chain by a tool: announced before (L2), and taken back where nothing came of it."""

from __future__ import annotations

from perdure import records as r
from perdure.chain import Chain, EntryLost, View
from perdure.coordinator import Coordinator
from perdure.errors import StoreError


async def entered(
    here: Coordinator,
    chain: Chain,
    workflow_id: str,
    kind: str,
    records: list[r.Record],
    view: View,
    parts: tuple[tuple[str, int], ...] = (),
    *,
    rebased: bool = False,
) -> bool:
    """Take the slot after ``view``, see `Chain.enter`. False: it was taken, look again.

    Raises StoreError: the store failed for good; nothing was entered unless ``chain.landed``.
    """
    await here.lease.announce(workflow_id, view.number + 1)
    try:
        await chain.enter(kind, records, view, parts, rebased=rebased)
    except EntryLost:
        here.lease.dropped(workflow_id)
        return False
    except StoreError:
        if not chain.landed:
            here.lease.dropped(workflow_id)
        raise
    return True
