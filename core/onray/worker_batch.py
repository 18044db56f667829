"""Several tiny attempts in one Ray task.

Owns the order inside a batch; that its worker asks for more before the Ray task ends; and the way out where a member
turns out not to be tiny: a watchdog thread reports what is done already and hands back what has not begun, so that
nothing waits for the long one.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

import ray

from perdure.onray import worker

BUDGET_SECONDS: Final = 0.05
"""After so long a round begins no further member."""
LONG_SECONDS: Final = 0.1
"""A member that runs longer makes the watchdog report the others."""
HANDED_BACK: Final = "its batch took long"
_ANSWER_SECONDS: Final = 10.0
"""Without an answer for so long, the coordinator is taken for gone; its answer would be milliseconds away."""

logger = logging.getLogger("perdure")


class _Round:
    """``first``: index of its first member in the whole batch."""

    def __init__(self, name: str, first: int, count: int) -> None:
        self.name = name
        self.first = first
        self.replies: list[Any] = [None] * count
        self.lock = threading.Lock()
        self.began = time.monotonic()
        self.current = -1
        self.since = 0.0
        self.reported: set[int] = set()
        self.handed_back = False

    def outcome(self) -> list[tuple[int, Any]]:
        """(index, reply) of all that was not reported early; members that did not begin say so."""
        refused = worker.not_begun(HANDED_BACK)
        return [
            (self.first + i, refused if reply is None else reply)
            for i, reply in enumerate(self.replies)
            if i not in self.reported
        ]


_running: _Round | None = None
_wake = threading.Event()
_watchdog: threading.Thread | None = None
_handle: tuple[str, Any] = "", None


def execute_batch(name: str, specs: list[bytes]) -> list[tuple[int, Any]]:
    """Runs the members in order, and what the coordinator gives it then; the replies that it has not heard yet, with
    their indices in the batch."""
    global _watchdog
    if _watchdog is None or not _watchdog.is_alive():
        _watchdog = threading.Thread(target=_watch, name="perdure-batch", daemon=True)
        _watchdog.start()
    first = 0
    while True:
        current = _Round(name, first, len(specs))
        _run(current, specs)
        replies = current.outcome()
        # a reply that is no bytes holds ObjectRefs: those go back as the values of a Ray task
        if current.handed_back or not all(isinstance(reply, bytes) for _, reply in replies):
            return replies
        first += len(specs)
        answer = _more(name, replies)
        if answer is None:
            return replies
        if not answer:
            return []
        specs = answer


def _run(current: _Round, specs: list[bytes]) -> None:
    global _running
    _running = current
    _wake.set()
    try:
        for index, spec in enumerate(specs):
            with current.lock:
                late = time.monotonic() - current.began > BUDGET_SECONDS
                if current.handed_back or (index and late):
                    break
                current.current, current.since = index, time.monotonic()
            current.replies[index] = worker.execute(spec, [])
    finally:
        _running = None


def _coordinator(name: str) -> Any:
    """The actor; looked up once for each coordinator's id, which a batch's name begins with."""
    global _handle
    coordinator = name.partition("/")[0]
    if _handle[0] != coordinator:
        from perdure.onray import actor

        _handle = coordinator, ray.get_actor(actor.NAME, namespace=actor.NAMESPACE)
    return _handle[1]


def _more(name: str, replies: list[tuple[int, Any]]) -> list[bytes] | None:
    """Report and get the next round; None: not known whether that was heard. Waited for by a callback: `ray.get` would
    give this worker's CPU away meanwhile."""
    try:
        answer: list[bytes] = _coordinator(name).batch_more.remote(name, replies).future().result(_ANSWER_SECONDS)
        return answer
    except Exception as error:
        logger.info("a batch gets no more: %s", error)
        return None


def _watch() -> None:
    while True:
        _wake.wait()
        current = _running
        if current is None:
            _wake.clear()
            continue
        time.sleep(LONG_SECONDS / 2)
        if _running is current and current.since and time.monotonic() - current.since > LONG_SECONDS:
            _report(current)


def _report(current: _Round) -> None:
    with current.lock:
        current.handed_back = True
        done = [(i, r) for i, r in enumerate(current.replies) if r is not None and i not in current.reported]
        rest = [i for i in range(current.current + 1, len(current.replies)) if i not in current.reported]
        current.reported.update([i for i, _ in done], rest)
    if not done and not rest:
        return
    refused = worker.not_begun(HANDED_BACK)
    try:
        told = [*done, *((i, refused) for i in rest)]
        _coordinator(current.name).batch_news.remote(current.name, [(current.first + i, reply) for i, reply in told])
    except Exception as error:
        logger.warning("early results of a batch were not reported: %s", error)
