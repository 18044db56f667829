"""Commands that talk to a running cluster, or start one for themselves.

Owns how a cluster is found, and connecting to it with deadlines. Importing this module does not import Ray.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import ClusterError
from perdure.reading import Listed
from perdure.status import WorkflowStatus

if TYPE_CHECKING:
    from perdure.onray.cluster import Connection


def find(address: str | None) -> str | None:
    """Address of the running cluster: ``address``, else ``RAY_ADDRESS``, else the one that `ray start` began here.

    Raises:
        ClusterError: one was named, but does not answer.
    """
    named = address or os.environ.get("RAY_ADDRESS") or ""
    if named and named not in ("auto", "local"):
        if "://" not in named and not answers(named):
            raise ClusterError(f"no Ray cluster answers at {named}. Check --address or RAY_ADDRESS.")
        return named
    if named == "local":
        return None
    noted = current()
    if noted and answers(noted):
        return noted
    if named == "auto":
        raise ClusterError("no Ray cluster runs on this machine. Start one with `perdure start --head`.")
    return None


def current(temporary: str | None = None) -> str | None:
    """Address that `ray start` noted on this machine, dead or alive."""
    folder = temporary or os.environ.get("RAY_TMPDIR")
    try:
        # Ray keeps its files in a folder "ray" of the temporary folder, but in --temp-dir itself
        names = [Path(temporary)] if temporary else []
        names.append(Path(folder or os.environ.get("TMPDIR", "/tmp")) / "ray")
        return next(f.read_text().strip() for n in names if (f := n / "ray_current_cluster").exists()) or None
    except (OSError, StopIteration):
        return None


def answers(address: str, seconds: float = 3.0) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
    except (OSError, ValueError):
        return False


@dataclass
class Joined:
    """A connection, and whether its cluster ends with this process."""

    connection: Connection
    own: bool


def join(address: str | None, storage: str | None, *, show_output: bool = False) -> Joined:
    """Connect to the running cluster; where there is none, start one that lives as long as this process.

    ``show_output``: what tasks print comes to stderr.

    Raises:
        ClusterError, StoreError, FormatError, PluginError; ValueError: another storage than the cluster's.
    """
    found = find(address)
    from perdure.onray import cluster

    return Joined(cluster.init(storage, ray_init=ray_options(found, show_output=show_output)), own=found is None)


def ray_options(found: str | None, *, show_output: bool = False) -> dict[str, Any]:
    """Arguments of `ray.init` for a cluster that was found, or for one of our own."""
    options: dict[str, Any] = {"log_to_driver": show_output, "logging_level": "error"}
    if found is None:
        return options | {"address": "local", "include_dashboard": False}
    return options | {"address": found}


class ClusterSide:
    """A running cluster's coordinator, with the calls of `store_side.StoreSide`."""

    def __init__(self, address: str) -> None:
        import ray

        from perdure.onray import actor, cluster

        cluster._recover_token_mode()
        ray.init(**ray_options(address))
        try:
            ray.get_actor(actor.NAME, namespace=actor.NAMESPACE)
        except ValueError:
            raise NoCoordinator(
                f"the Ray cluster at {address} runs no workflows yet. Name the store with --storage URL."
            ) from None
        self.connection = cluster.init()

    @property
    def url(self) -> str:
        return self.connection.storage

    def list_all(self) -> list[tuple[str, Listed]]:
        listed = self.connection.call("list_all")
        return [(i, Listed(WorkflowStatus(status), *rest)) for i, status, *rest in listed]

    def status(self, workflow_id: str) -> WorkflowStatus:
        return WorkflowStatus(self.connection.call("status", workflow_id))

    def describe(self, workflow_id: str) -> dict[str, Any]:
        return dict(self.connection.call("describe", workflow_id))

    def explain(self, workflow_id: str) -> dict[str, Any]:
        from perdure import workflow

        return workflow.explain(workflow_id)

    def cancel(self, workflow_id: str) -> WorkflowStatus:
        from perdure import workflow

        workflow.cancel(workflow_id)
        return self.status(workflow_id)

    def delete(self, workflow_id: str) -> None:
        from perdure import workflow

        workflow.delete(workflow_id)


class NoCoordinator(ClusterError):
    """The cluster has no coordinator, and reading must not start one."""
