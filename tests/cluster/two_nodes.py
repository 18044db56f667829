"""A driver with a cluster of two nodes of its own, one of which dies while a task runs on it.

Run as a script: ``two_nodes.py STORAGE SIDE``. Prints a line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time

import ray
from ray.cluster_utils import Cluster

from perdure import workflow
from perdure.onray import cluster


def lines(path: str) -> int:
    try:
        with open(path) as file:
            return len(file.readlines())
    except FileNotFoundError:
        return 0


@ray.remote
def far(side: str) -> str:
    with open(side, "a") as file:
        file.write(f"{os.getpid()}\n")
    runs = lines(side)
    if runs <= 2:
        time.sleep(60)
    return f"run {runs}"


def main(storage: str, side: str) -> None:
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    workflow.init(storage=storage, address=nodes.address, logging_level="error", log_to_driver=False)
    connection = cluster.connected()
    dag = far.options(resources={"far": 1}, max_retries=0).bind(side)
    ref = workflow.run_async(dag, workflow_id="far")
    deadline = time.monotonic() + 30
    waiting = None
    while waiting is None and time.monotonic() < deadline:
        time.sleep(0.2)
        waiting = connection.call("describe", "far")["tasks"][0].get("waiting_for")
    for number in (1, 2):
        node = nodes.add_node(num_cpus=1, resources={"far": 1})
        while lines(side) < number:
            time.sleep(0.05)
        nodes.remove_node(node, allow_graceful=False)
    nodes.add_node(num_cpus=1, resources={"far": 1})
    value = ray.get(ref, timeout=60)
    print(json.dumps({"value": value, "waiting": waiting, "task": connection.call("describe", "far")["tasks"][0]}))
    ray.shutdown()
    nodes.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
