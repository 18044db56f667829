"""Which side a command works from: a running cluster's coordinator, or the store alone.

Owns the order: ``--storage`` (the store), a running cluster, ``PERDURE_STORAGE`` (the store).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from perdure.cli.cluster_side import ClusterSide, NoCoordinator, find

if TYPE_CHECKING:
    from perdure.reading import Listed
    from perdure.status import WorkflowStatus


class Side(Protocol):
    """What both sides can do."""

    @property
    def url(self) -> str: ...
    def list_all(self) -> list[tuple[str, Listed]]: ...
    def status(self, workflow_id: str) -> WorkflowStatus: ...
    def describe(self, workflow_id: str) -> dict[str, Any]: ...
    def explain(self, workflow_id: str) -> dict[str, Any]: ...
    def cancel(self, workflow_id: str) -> WorkflowStatus: ...
    def delete(self, workflow_id: str) -> None: ...


def side(storage: str | None, address: str | None) -> Side:
    """The side to work from.

    Raises:
        ValueError: no store is named, and no cluster runs.
    """
    from perdure.cli.store_side import StoreSide

    if storage is not None and address is None:
        return StoreSide(storage)
    fallback = storage or os.environ.get("PERDURE_STORAGE")
    found = find(address)
    if found is not None:
        try:
            joined = ClusterSide(found)
        except NoCoordinator:
            if not fallback:
                raise
        else:
            _check_same(joined, storage)
            return joined
    if fallback:
        return StoreSide(fallback)
    raise ValueError("no store was named, and no cluster runs here: give --storage URL, or set PERDURE_STORAGE")


def store_url(storage: str | None, address: str | None) -> str:
    """Only the URL of the store that `side` would work on."""
    return side(storage, address).url


def _check_same(joined: ClusterSide, storage: str | None) -> None:
    from perdure.store import open_store

    if storage is not None and open_store(storage).url != open_store(joined.url).url:
        raise ValueError(
            f"--storage {open_store(storage).url} was asked for, but the workflows of the cluster at --address are "
            f"stored in {open_store(joined.url).url}. Leave one of the two options out."
        )
