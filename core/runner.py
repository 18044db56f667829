"""Where attempts run: what a coordinator asks for, with Ray or a test double behind it.

Owns the shapes that cross this border, and no behaviour. `executor.RayRunner` is the real one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from perdure.graph import Function, Options, Payload
from perdure.scheduler import Result


@dataclass(frozen=True, slots=True)
class Context:
    """Whose code runs: what the tasks of the driver that started or resumed a workflow need.

    ``runtime_env``: Ray's, resolved; may hold secrets, so it is never stored, only ``digest`` is. ``paths``:
    folders of the driver's ``sys.path``. ``driver``: the driver that wants the tasks' output, or "".
    """

    digest: str = ""
    runtime_env: dict[str, Any] = field(default_factory=dict)
    paths: tuple[str, ...] = ()
    driver: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt of one task, ready to go.

    ``tops`` and ``nested``: the payloads of the sources, see `perdure.graph.Node`. ``key``: the idempotency key,
    the same for all attempts. ``submitted``: the coordinator's `Clock.boot` at submission (L3).
    ``cycle``: the GC cycle that new blobs of this attempt carry (B1).
    """

    workflow_id: str
    birth: int
    task: int
    name: str
    attempt: int
    function: Function
    options: Options
    args: Payload | None
    tops: tuple[tuple[int | str, Payload], ...]
    nested: tuple[Payload, ...]
    persist: bool
    key: str
    kind: str
    context: Context
    metadata: dict[str, Any]
    submitted: float = 0.0
    cycle: int = 0


class LostValues(Exception):
    """Values that were never stored (`checkpoint=False`) are gone; ``blobs`` are their names."""

    def __init__(self, blobs: tuple[str, ...]) -> None:
        super().__init__(f"values are gone: {', '.join(blobs)}")
        self.blobs = blobs


class Runner(Protocol):
    """Runs attempts. Methods may be cancelled; then the attempt is ended by force."""

    async def run(self, job: Job) -> Result:
        """One attempt. Raises LostValues where an input is gone; every other failure is a result."""
        ...

    async def poll(self, job: Job) -> Result:
        """Wait for one event, in a loop shared with other waits, holding no worker."""
        ...

    async def acknowledge(self, job: Job, payload: Payload) -> None:
        """Tell the event's source that the event is durable. Raises what the listener raised."""
        ...

    def none(self) -> Payload:
        """The payload of None (timers)."""
        ...

    async def gone(self, host: dict[str, str]) -> bool:
        """Whether the process with these facts (`lease.Page.host`) is provably gone."""
        ...

    def forget(self, workflow_id: str) -> None:
        """The workflow is no longer driven here: drop what was held for it."""
        ...
