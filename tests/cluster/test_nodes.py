"""Tasks and the nodes that they need: lost nodes, missing resources."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from support.clusters import Process, environment, until


def test_lost_nodes_cost_no_retry_and_missing_resources_are_told(tmp_path: Path) -> None:
    """A task with max_retries=0 outlives two nodes; before there is a node for it, `describe` says what it wants."""
    script = Path(__file__).with_name("two_nodes.py")
    env = environment({"RAY_AUTH_MODE": "disabled"})
    process = Process([sys.executable, str(script), str(tmp_path / "store"), str(tmp_path / "side")], env)
    try:
        line = ""
        while not line.startswith("{"):  # Ray prints there too
            line = process.line(150)
    finally:
        process.kill()
    found = json.loads(line)
    assert found["value"] == "run 3"
    assert found["waiting"] == "no node of the cluster has far 1 (most on one node: 0)"
    assert found["task"]["waiting_for"] is None
    assert until(lambda: len((tmp_path / "side").read_text().splitlines()) == 3, "three runs")
