"""Creates a cluster's coordinator from a process of its own: ``python -m perdure.onray.bootstrap``.

A detached actor keeps the runtime_env and the namespace of the driver that created it, so no user's driver may
create it. This process has none: it connects, finds or creates the actor, shakes hands, prints one line of JSON and
ends. Its input is one line of JSON: ``{"address", "config", "seconds", "packages"}``.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from typing import Any

os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def main() -> int:
    request = json.loads(sys.stdin.readline())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is not our answer
    try:
        answer = create(request)
    except Exception as error:
        from perdure.errors import PerdureError

        cause = getattr(error, "cause", None)
        known = cause if isinstance(cause, PerdureError) else error if isinstance(error, PerdureError) else None
        answer = {
            "error": str(known or error),
            "type": type(known or error).__name__,
            "ours": known is not None,
        }
    out.write(json.dumps(answer) + "\n")
    out.flush()
    return 0


def create(request: dict[str, Any]) -> dict[str, Any]:
    """The coordinator's answer to hello; it is created where there is none.

    It gets no runtime_env, since that would reach the tasks of every driver. Only where the cluster's machines
    don't have Perdure, it gets the parts of the driver's that may bring it.
    """
    import ray

    from perdure.onray import actor

    ray.init(address=request["address"], namespace=actor.NAMESPACE, log_to_driver=False, logging_level="error")
    config, seconds = base64.b64decode(request["config"]), float(request.get("seconds", 30.0))
    try:
        return _start(config, seconds, {})
    except Exception as error:
        if not _lacks_perdure(error):
            raise
        packages = request.get("packages") or {}
        if packages:
            try:
                return _start(config, seconds, packages)
            except Exception as second:
                if not _lacks_perdure(second):
                    raise
                error = second
        from perdure.errors import ClusterError

        raise ClusterError(
            "the cluster's workers can't import perdure. Install it on the cluster's machines (in the Python that runs "
            "Ray there), or bring it with the driver: ray.init(runtime_env={'pip': ['perdure']}), py_modules with "
            f"perdure's wheel, or `uv run` with a project that has it. A worker said:\n{str(error)[-1500:]}"
        ) from error


def _start(config: bytes, seconds: float, runtime_env: dict[str, Any]) -> dict[str, Any]:
    import ray

    import perdure
    from perdure.errors import ClusterError
    from perdure.onray import actor

    extra = {"runtime_env": runtime_env} if runtime_env else {}
    handle = (
        ray.remote(actor.CoordinatorActor)
        .options(
            name=actor.NAME,
            namespace=actor.NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            resources={"node:__internal_head__": 0.001},
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=1_000_000,
            **extra,
        )
        .remote(config)
    )
    hello = handle.hello.remote(perdure.__version__, actor.PROTOCOL)
    try:
        return dict(ray.get(hello, timeout=seconds))
    except Exception as error:
        # an actor whose storage can't be used must not stay and answer every later driver with it; but one that
        # only does not want this driver (another version) is in use
        if not isinstance(getattr(error, "cause", error), ClusterError):
            ray.kill(handle, no_restart=True)
        if isinstance(error, ray.exceptions.GetTimeoutError):
            raise ClusterError(f"it did not answer within {seconds:g} s") from error
        raise


def _lacks_perdure(error: BaseException) -> bool:
    text = str(error)
    return "No module named 'perdure'" in text or "failed to be imported" in text or "failed to import" in text


if __name__ == "__main__":
    sys.exit(main())
