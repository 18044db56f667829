"""One workflow's life as data that can go elsewhere: its records, what they need, what was sent to it.

Owns the shape, and how it is read from a store. Blobs are not in it: they are asked for by name when they are needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from perdure import keys
from perdure import records as r
from perdure.care.collecting import chain_of, stored_graph
from perdure.chain import View
from perdure.errors import CorruptedError
from perdure.guarded_store import GuardedStore
from perdure.reading import status_of
from perdure.state import TERMINAL, fold
from perdure.status import WorkflowStatus
from perdure.store import BytesLike

Fetch: TypeAlias = Callable[[str], AsyncIterator[BytesLike]]
"""Chunks of the blob with this name; CorruptedError where it is missing."""


@dataclass(frozen=True)
class Life:
    """``records`` hold their graphs inline. ``number``, ``token``: of the last segment where it was read. ``birth``:
    the one in its tasks' idempotency keys. ``sent``: (kind, rest of the key, bytes) of inbox slots and events.
    """

    workflow_id: str
    records: list[r.Record]
    number: int
    token: str
    birth: int
    finished: bool
    status: WorkflowStatus
    start: float
    end: float
    sent: list[tuple[str, str, bytes]] = field(default_factory=list)


async def read_life(store: GuardedStore, workflow_id: str, view: View | None = None) -> Life | None:
    """The life that this id has now; None where there is none.

    Raises CorruptedError, FormatError: it can't be read.
    """
    chain = chain_of(store, keys.workflow_chain(workflow_id))
    if view is None:
        view = await chain.read()
    if view.deleted:
        return None
    records = [await whole_record(store, record) for record in view.records if not isinstance(record, r.Base)]
    state = fold(records)
    if state.created is None or state.created.workflow_id != workflow_id:
        raise CorruptedError(f"{chain.prefix} does not begin with the workflow {workflow_id!r}", key=chain.prefix)
    return Life(
        workflow_id=workflow_id,
        records=records,
        number=view.number,
        token=view.token.hex(),
        birth=view.birth if state.key_birth is None else state.key_birth,
        finished=state.phase in TERMINAL,
        status=status_of(state.phase),
        start=state.started,
        end=state.ended,
        sent=await _sent(store, workflow_id, view.birth),
    )


async def whole_record(store: GuardedStore, record: r.Record) -> r.Record:
    """With its graph inline. CorruptedError: the graph's blob is missing or damaged."""
    if isinstance(record, r.Created | r.Continued) and record.graph is None and record.graph_blob:
        (held,) = await stored_graph(store, record.graph_blob)
        assert isinstance(held, r.Continued)
        values = {name: getattr(record, name) for name in record.__struct_fields__}
        return type(record)(**values | {"graph": held.graph, "graph_blob": None})
    return record


async def _sent(store: GuardedStore, workflow_id: str, birth: int) -> list[tuple[str, str, bytes]]:
    found = []
    for kind, prefix in (("in", keys.inbox(workflow_id, birth)), ("ev", f"{keys.events(workflow_id)}{birth}/")):
        for name in await store.list_keys(prefix):
            found.append((kind, name.removeprefix(prefix), bytes(await store.get(name))))
    return found


def blobs_from(store: GuardedStore) -> Fetch:
    """The blobs of a store, for `arriving`."""

    async def fetch(name: str) -> AsyncIterator[BytesLike]:
        async for chunk in store.store.download(name):
            yield chunk

    return fetch
