"""A driver of the demo: a process with its own cluster. ``python -m perdure.cli.demo_driver STORE start|resume``.

Owns nothing but the two calls that a user's script would make; it tells its parent by lines of JSON how far it is.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any, Final

WORKFLOW: Final = "demo"
LATE_SECONDS: Final = 8.0
_EVERY = 0.1


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> int:
    storage, action = sys.argv[1:3]
    import ray

    from perdure import workflow
    from perdure.cli import demo_job
    from perdure.onray import cluster

    tell(event="starting", pid=os.getpid())
    ray.init(
        address="local",
        num_cpus=max(2, os.cpu_count() or 2),
        object_store_memory=256 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _temp_dir=tempfile.mkdtemp(prefix="r-"),
    )
    workflow.init(storage=storage)
    tell(event="ready", cluster=ray.get_runtime_context().gcs_address)
    if action == "start":
        ref = workflow.run_async(demo_job.dag(LATE_SECONDS), workflow_id=WORKFLOW)
    else:
        ref = workflow.resume_async(WORKFLOW)
    connection = cluster.connected()
    while not ray.wait([ref], timeout=_EVERY)[0]:
        tell(event="progress", **connection.call("progress", WORKFLOW))
    tell(event="result", value=ray.get(ref))
    return 0


if __name__ == "__main__":
    sys.exit(main())
