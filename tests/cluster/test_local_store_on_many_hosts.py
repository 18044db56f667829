"""A folder of one machine is no storage for a cluster of several."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from perdure.errors import ClusterError
from perdure.onray.actor import _check_hosts
from perdure.store import open_store


def nodes(*names: str) -> list[dict[str, Any]]:
    return [{"NodeManagerHostname": name, "Alive": name != "gone"} for name in names]


def test_a_local_folder_is_refused_for_a_cluster_of_two_machines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes("a", "b"))
    with pytest.raises(ClusterError, match=r"local to one machine.*\(a, b\).*multi_host=true"):
        _check_hosts(open_store(str(tmp_path)))


def test_nodes_on_one_machine_and_dead_nodes_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes("a", "a", "gone"))
    _check_hosts(open_store(str(tmp_path)))


def test_a_declared_cluster_filesystem_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes("a", "b"))
    _check_hosts(open_store(f"file://{tmp_path}?multi_host=true"))
