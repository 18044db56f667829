"""A task graph as flat data, as it is stored: nodes by number, payloads opaque.

Owns the shapes and their checks. Pure: it knows neither Ray nor user code; functions, arguments and results
are bytes here and stay so until a worker loads them.

Sources: a node names what it consumes by number. ``n >= 0`` is node n of the same graph, ``n < 0`` is object
``-1 - n`` of the same graph (an ObjectRef that was saved when the graph was stored).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

TASK: Final = "task"
EVENT: Final = "event"
TIMER: Final = "timer"
GATHER: Final = "gather"
KINDS: Final = frozenset({TASK, EVENT, TIMER, GATHER})


class Payload(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True, gc=False):
    """A stored value: inline envelope bytes, or the key of a blob.

    ``refs`` are the values behind the ObjectRefs inside it, in the order in which its serializer met them.
    ``wraps`` is what `catch_exceptions` adds when it is loaded, innermost first: ``v`` makes ``(value, None)``,
    ``e`` makes ``(None, exception)``. ``size`` is in bytes, before wraps.
    """

    data: bytes | None = None
    blob: str | None = None
    size: int = 0
    refs: tuple[Payload, ...] = ()
    wraps: str = ""

    def wrapped(self, mark: str) -> Payload:
        return Payload(self.data, self.blob, self.size, self.refs, self.wraps + mark)

    def blobs(self) -> list[str]:
        """Keys of all blobs that it needs."""
        found = [self.blob] if self.blob else []
        for ref in self.refs:
            found += ref.blobs()
        return found


class Failure(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True, gc=False):
    """Why an attempt failed, readable without loading user code.

    ``kind``: ``raised`` (by user code), ``crashed`` (its process died), ``preempted`` (its node went away),
    ``timeout``, ``encode`` (the result can't be stored), ``decode`` (an input can't be loaded), ``event``.
    ``exception`` holds the pickled exception where it could be pickled.
    """

    kind: str
    type: str
    text: str
    traceback: str = ""
    exception: Payload | None = None


class Function(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True, gc=False):
    """A user's function (or listener class): its name, the digest of its pickle, and the pickle itself.

    ``payload`` is None where the same digest already stands in the workflow (continuations repeat functions).
    ``code`` is a digest of the code alone, stable over processes of one Python version; ``python`` is the version
    ("3.11") that pickled it.
    """

    name: str
    digest: str
    payload: Payload | None = None
    code: str = ""
    python: str = ""


class Options(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """Options of a task. ``ray`` are Ray's own (plain data). Times are in seconds.

    ``retry_exceptions``: False, True, or a payload with the exception classes (only workers can load them).
    ``backoff``: first delay, factor, longest delay, jitter (share of the delay, 0 to 1).
    """

    ray: dict[str, Any] = {}
    max_retries: int = 3
    retry_exceptions: bool | Payload = False
    catch_exceptions: bool = False
    checkpoint: bool = True
    metadata: dict[str, Any] = {}
    backoff: tuple[float, float, float, float] = (0.0, 2.0, 60.0, 0.1)
    timeout: float | None = None
    max_preemptions: int = -1


class Node(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True, gc=False):
    """One node. ``function`` and ``options`` are numbers into the graph's lists.

    ``args``: the literal arguments, one envelope of ``(list, dict)``; None for no arguments.
    ``tops``: arguments that are nodes or ObjectRefs themselves, ``(position or name, source)``: they arrive as
    values. ``nested``: sources of nodes and ObjectRefs inside other arguments, in the serializer's order: they
    arrive as ObjectRefs. ``seconds``: for a timer, its duration; ``until``: or its wall time (Unix seconds).
    """

    name: str
    kind: str = TASK
    function: int = -1
    options: int = 0
    args: Payload | None = None
    tops: tuple[tuple[int | str, int], ...] = ()
    nested: tuple[int, ...] = ()
    seconds: float | None = None
    until: float | None = None

    def upstream(self) -> set[int]:
        """Numbers of the nodes (not objects) that must be done first."""
        return {s for _, s in self.tops if s >= 0} | {s for s in self.nested if s >= 0}


class Graph(msgspec.Struct, array_like=True, frozen=True, omit_defaults=True):
    """A whole graph: nodes in an order in which every node follows its sources; ``root`` gives the value."""

    nodes: list[Node]
    root: int
    functions: list[Function] = []
    options: list[Options] = []
    objects: list[Payload] = []
    structure: str = ""
    code: str = ""
    python: str = ""

    def check(self) -> None:
        """Raise ValueError where the graph can't be one (damaged or foreign data)."""
        count = len(self.nodes)
        if not 0 <= self.root < count:
            raise ValueError(f"root {self.root} is not one of the {count} nodes")
        for i, node in enumerate(self.nodes):
            if node.kind not in KINDS:
                raise ValueError(f"node {i} ({node.name}) has the unknown kind {node.kind!r}")
            if not 0 <= node.options < len(self.options):
                raise ValueError(f"node {i} ({node.name}) names options {node.options}, which don't exist")
            if node.kind in (TASK, EVENT) and not 0 <= node.function < len(self.functions):
                raise ValueError(f"node {i} ({node.name}) names function {node.function}, which doesn't exist")
            if node.kind == TIMER and node.seconds is None and node.until is None:
                raise ValueError(f"timer {i} ({node.name}) has no time")
            for source in [s for _, s in node.tops] + list(node.nested):
                if not -len(self.objects) <= source < i:
                    raise ValueError(f"node {i} ({node.name}) consumes {source}, which is not before it")


encode_graph = msgspec.msgpack.Encoder().encode
_decode_graph = msgspec.msgpack.Decoder(Graph).decode


def decode_graph(data: bytes | memoryview) -> Graph:
    """The graph in these bytes; ValueError (msgspec's or ours) where they are none."""
    graph = _decode_graph(data)
    graph.check()
    return graph
