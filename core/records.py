"""The records of a workflow's journal and of a coordinator's pages: what can happen, as data.

Owns their shapes and bytes. Pure: msgspec structs in MessagePack arrays with a numeric tag; fields are only
ever added at the end, with defaults, so that older records stay readable. Times are Unix seconds and advisory:
no decision rests on them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from perdure.graph import Failure, Function, Graph, Payload


class Created(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """A new life begins: the entry that carries the graph. ``graph`` or the blob that holds it.

    ``client`` is the submitter's token: a repeated call with the same token attaches to this life. ``context`` is
    the digest of the submitter's environment. ``versions``: of Ray and Perdure, and the digest of the submitter's code
    package (working_dir and the like); they decide nothing.
    """

    workflow_id: str
    client: str
    time: float
    graph: Graph | None = None
    graph_blob: str | None = None
    structure: str = ""
    code: str = ""
    python: str = ""
    metadata: dict[str, Any] = {}
    pending: bool = False
    context: str = ""
    versions: tuple[str, ...] = ()


class Claimed(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """A coordinator takes the workflow over; ``retry_failed`` makes failed tasks run again.

    ``code``: (digest of a stored function, the function that takes its place from here on).
    """

    time: float
    retry_failed: bool = False
    moved_to: str | None = None
    context: str = ""
    code: tuple[tuple[str, Function], ...] = ()


class Deleted(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """The life is over and forgotten; the next life's Created continues the chain (J9)."""

    time: float


class Retired(msgspec.Struct, tag=4, array_like=True, frozen=True):
    """In a coordinator's chain: it is out, by itself or by a watcher.

    ``clean``: by itself, and nothing that it sent is on its way, so nobody has to fence what it owned (L6).
    """

    time: float
    by: str
    clean: bool = False


class Base(msgspec.Struct, tag=5, array_like=True, frozen=True):
    """The parts named in this segment's header hold all up to ``number``; ``entries`` are J11's numbers."""

    number: int
    entries: tuple[int, ...] = ()


class TaskDone(msgspec.Struct, tag=6, array_like=True, frozen=True, gc=False):
    """A task's value is durable."""

    task: int
    payload: Payload
    started: float = 0.0
    ended: float = 0.0


class TaskFailed(msgspec.Struct, tag=7, array_like=True, frozen=True, gc=False):
    """An attempt failed. ``final``: it will not be tried again (until a resume asks for it)."""

    task: int
    failure: Failure
    final: bool
    started: float = 0.0
    ended: float = 0.0


class Continued(msgspec.Struct, tag=8, array_like=True, frozen=True):
    """A task returned a graph: its value becomes that graph's."""

    task: int
    graph: Graph | None = None
    graph_blob: str | None = None
    started: float = 0.0
    ended: float = 0.0


class Received(msgspec.Struct, tag=9, array_like=True, frozen=True, gc=False):
    """An event occurred and is durable; its source is owed an acknowledgement (E5)."""

    task: int
    payload: Payload
    ended: float = 0.0


class Acknowledged(msgspec.Struct, tag=10, array_like=True, frozen=True, gc=False):
    """The event's source has been told, or has refused for good (``problem``)."""

    task: int
    problem: str = ""


class TimerSet(msgspec.Struct, tag=11, array_like=True, frozen=True, gc=False):
    """A timer began: absolute wall ``deadline`` and ``duration`` in seconds (E7)."""

    task: int
    deadline: float
    duration: float


class CancelRequested(msgspec.Struct, tag=12, array_like=True, frozen=True):
    time: float


class Succeeded(msgspec.Struct, tag=13, array_like=True, frozen=True):
    """Terminal. The output is the root task's payload, repeated here only by number."""

    time: float


class Failed(msgspec.Struct, tag=14, array_like=True, frozen=True):
    """Terminal until resumed. ``task`` is the task that failed."""

    time: float
    task: int


class Canceled(msgspec.Struct, tag=15, array_like=True, frozen=True):
    time: float


class Started(msgspec.Struct, tag=16, array_like=True, frozen=True):
    """A pending workflow may run now."""

    time: float


class Arrived(msgspec.Struct, tag=17, array_like=True, frozen=True):
    """This life came from another store or an archive; its base parts hold its history up to there (copy, import).

    ``number`` and ``token`` are those of its last segment in ``source``; ``birth`` is the one in its tasks' idempotency
    keys, which stay the same.
    """

    source: str
    number: int
    token: str
    birth: int
    time: float


class Repaired(msgspec.Struct, tag=18, array_like=True, frozen=True):
    """The history is what could still be read, held by base parts. ``damaged``: the first 100 objects that could not
    be; what came after them is given up."""

    time: float
    damaged: tuple[str, ...] = ()


class Page(msgspec.Struct, tag=32, array_like=True, frozen=True):
    """A coordinator's page: lease, takeover list and status index in one.

    ``announced``: (workflow id, slot it may enter); ``finished``: (id, number of its terminal segment, status,
    start, end); ``dropped``: ids that it no longer drives. ``cycle``: the acknowledged GC cycle.
    """

    wall: float
    lease: float
    cycle: int
    announced: tuple[tuple[str, int], ...] = ()
    finished: tuple[tuple[str, int, str, float, float], ...] = ()
    dropped: tuple[str, ...] = ()
    host: dict[str, str] = {}


Record: TypeAlias = (
    Created
    | Claimed
    | Deleted
    | Retired
    | Base
    | TaskDone
    | TaskFailed
    | Continued
    | Received
    | Acknowledged
    | TimerSet
    | CancelRequested
    | Succeeded
    | Failed
    | Canceled
    | Started
    | Arrived
    | Repaired
    | Page
)

ENTRIES = (Created, Claimed, Deleted, Retired)
TERMINAL = (Succeeded, Failed, Canceled)

encode_record = msgspec.msgpack.Encoder().encode
decode_records = msgspec.msgpack.Decoder(list[Record]).decode
encode_records = msgspec.msgpack.Encoder().encode


class Cancel(msgspec.Struct, tag=64, array_like=True, frozen=True):
    """An inbox slot: somebody asks to cancel this life."""

    time: float


Message: TypeAlias = Cancel
decode_message = msgspec.msgpack.Decoder(Message).decode
encode_message = msgspec.msgpack.Encoder().encode
