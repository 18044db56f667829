"""Several tiny attempts in one Ray task.

Owns the order inside a batch and the way out where a member turns out not to be tiny: a watchdog thread reports what
is done already and hands back what has not begun, so that nothing waits for the long one.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

import ray

from perdure.onray import worker

BUDGET_SECONDS: Final = 0.05
"""After so long a batch begins no further member."""
LONG_SECONDS: Final = 0.1
"""A member that runs longer makes the watchdog report the others."""
HANDED_BACK: Final = "its batch took long"

logger = logging.getLogger("perdure")


class _Batch:
    def __init__(self, name: str, specs: list[bytes]) -> None:
        self.name = name
        self.replies: list[Any] = [None] * len(specs)
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.current = -1
        self.since = 0.0
        self.reported: set[int] = set()
        self.handed_back = False


_running: _Batch | None = None
_wake = threading.Event()
_watchdog: threading.Thread | None = None


def execute_batch(name: str, specs: list[bytes]) -> list[Any]:
    """The replies of `worker.execute`, in order; members that did not begin say so."""
    global _running, _watchdog
    if _watchdog is None or not _watchdog.is_alive():
        _watchdog = threading.Thread(target=_watch, name="perdure-batch", daemon=True)
        _watchdog.start()
    batch = _Batch(name, specs)
    _running = batch
    _wake.set()
    try:
        for index, spec in enumerate(specs):
            with batch.lock:
                late = time.monotonic() - batch.began > BUDGET_SECONDS
                if batch.handed_back or (index and late):
                    break
                batch.current, batch.since = index, time.monotonic()
            batch.replies[index] = worker.execute(spec, [])
    finally:
        _running = None
    refused = worker.not_begun(HANDED_BACK)
    return [refused if reply is None else reply for reply in batch.replies]


def _watch() -> None:
    while True:
        _wake.wait()
        batch = _running
        if batch is None:
            _wake.clear()
            continue
        time.sleep(LONG_SECONDS / 2)
        if _running is batch and batch.since and time.monotonic() - batch.since > LONG_SECONDS:
            _report(batch)


def _report(batch: _Batch) -> None:
    with batch.lock:
        batch.handed_back = True
        done = [(i, reply) for i, reply in enumerate(batch.replies) if reply is not None and i not in batch.reported]
        rest = [i for i in range(batch.current + 1, len(batch.replies)) if i not in batch.reported]
        batch.reported.update([i for i, _ in done], rest)
    if not done and not rest:
        return
    refused = worker.not_begun(HANDED_BACK)
    try:
        from perdure.onray import actor

        handle = ray.get_actor(actor.NAME, namespace=actor.NAMESPACE)
        handle.batch_news.remote(batch.name, done + [(i, refused) for i in rest])
    except Exception as error:
        logger.warning("early results of a batch were not reported: %s", error)
