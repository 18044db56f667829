"""From Ray's DAG nodes to a flat, storable graph.

Owns the walk over a DAG (iterative: chains of thousands of nodes), the names of tasks, the fingerprint, and what
has to be uploaded before the graph can be stored. Used by drivers for `run`, and by workers for continuations. It
writes nothing: what is too large for a record, and every ObjectRef, comes back as an `Upload`.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import unicodedata
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import ray
from ray.dag import (
    ClassMethodNode,
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
)

from perdure.code_names import PYTHON, code_digest, name_of
from perdure.event_listener import TimerListener
from perdure.graph import EVENT, GATHER, TASK, TIMER, Function, Graph, Node, Options, Payload
from perdure.onray.options import split_options
from perdure.references import is_node
from perdure.values import Values

INLINE: Final = 16 * 1024
"""Values up to this size (bytes) ride in records; larger ones are blobs (J5)."""


@ray.remote
def event_marker(*args: Any, **kwargs: Any) -> None:
    """Stands in a DAG for a wait; never runs."""
    raise RuntimeError("an event node was executed by Ray: run the DAG with perdure.workflow.run")


@ray.remote
def timer_marker(seconds: float) -> None:
    """Stands in a DAG for `workflow.sleep`; never runs."""
    raise RuntimeError("a timer node was executed by Ray: run the DAG with perdure.workflow.run")


_EVENT_BODY = event_marker._function
_TIMER_BODY = timer_marker._function


@dataclass
class Upload:
    """Something that must be stored before the graph: an ObjectRef's value, or bytes that are ready."""

    ref: ray.ObjectRef | None = None
    data: bytes | None = None


@dataclass
class Flat:
    """A graph whose payloads named ``upload:<n>`` are not stored yet."""

    graph: Graph
    uploads: list[Upload] = field(default_factory=list)


def flatten(
    dag: Any,
    values: Values,
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    functions: FunctionCache | None = None,
) -> Flat:
    """The graph of a DAG.

    ``inputs`` feed its InputNode; None where there can be none (continuations).

    Raises:
        TypeError: not a DAG, a node of a kind that can't be durable, wrong arguments of a function or of the DAG.
        EncodeError: an argument can't be stored; names the task and the place inside the value.
    """
    return _Flattening(values, inputs, functions or FunctionCache(values)).run(dag)


def place_uploads(graph: Graph, saved: list[Payload]) -> Graph:
    """The graph with its ``upload:<n>`` payloads replaced by the stored ones."""
    if not saved:
        return graph

    def place(payload: Payload | None) -> Payload | None:
        return _placed(payload, saved)

    replace = msgspec.structs.replace
    nodes = [replace(n, args=place(n.args)) if n.args and n.args.blob else n for n in graph.nodes]
    made = [replace(f, payload=place(f.payload)) for f in graph.functions]
    opts = [
        replace(o, retry_exceptions=place(o.retry_exceptions)) if isinstance(o.retry_exceptions, Payload) else o
        for o in graph.options
    ]
    objects = [p for p in map(place, graph.objects) if p is not None]
    return replace(graph, nodes=nodes, functions=made, options=opts, objects=objects)


def payload_of(data: bytes, uploads: list[Upload]) -> Payload:
    """Inline where it is small; else an upload, named in the payload until it is placed."""
    if len(data) <= INLINE:
        return Payload(data, None, len(data))
    uploads.append(Upload(data=data))
    return Payload(None, f"upload:{len(uploads) - 1}", len(data))


def place_function(function: Function, saved: list[Payload]) -> Function:
    """As `place_uploads`, of one function."""
    return msgspec.structs.replace(function, payload=_placed(function.payload, saved))


def _placed(payload: Payload | None, saved: list[Payload]) -> Payload | None:
    if payload is None or payload.blob is None or not payload.blob.startswith("upload:"):
        return payload
    return saved[int(payload.blob.removeprefix("upload:"))]


# -- functions -------------------------------------------------------------------------------------------------------


class FunctionCache:
    """Pickles each function once. A worker keeps one for its life: what it loaded does not change."""

    def __init__(self, values: Values, limit: int = 1000) -> None:
        self.values = values
        self.limit = limit
        self._known: dict[int, tuple[Any, Function, bytes]] = {}

    def get(self, function: Any, name: str) -> tuple[Function, bytes]:
        """The stored form of a function or class, and its pickle."""
        known = self._known.get(id(function))
        if known is None:
            where = f"the code of {name}"
            if self.values.trust == "data":
                data = self.values.dumps(name_of(function, where), where=where)
            else:
                data = self.values.dumps(function, serializer="pickle", where=where)
            digest = hashlib.blake2b(data, digest_size=16).hexdigest()
            if len(self._known) >= self.limit:
                self._known.clear()
            stored = Function(name, digest, None, code_digest(function), PYTHON)
            known = self._known[id(function)] = (function, stored, data)
        return known[1], known[2]

    def stored(self, function: Any, name: str, uploads: list[Upload]) -> Function:
        """The function with its pickle as payload; what is too large for a record is added to ``uploads``."""
        known, data = self.get(function, name)
        return msgspec.structs.replace(known, payload=payload_of(data, uploads))

    def put(self, function: Any, stored: Function, data: bytes) -> None:
        """Remember a function that was loaded from this pickle."""
        self._known[id(function)] = (function, stored, data)


def default_task_id(function: Any) -> str:
    """Module and qualified name, as Ray Workflows made it: letters, digits, ``.``, ``-`` and ``_``."""
    module = getattr(function, "__module__", None) or "__anonymous_module__"
    name = getattr(function, "__qualname__", None) or "__anonymous_func__"
    name = unicodedata.normalize("NFKD", str(name)).encode("ascii", "ignore").decode("ascii")
    name = re.sub(r"[-\s]+", "-", re.sub(r"[^\w.\-]", "", name).strip())
    return f"{module}.{name}"


# -- the walk --------------------------------------------------------------------------------------------------------


@dataclass
class _Visit:
    """What was learnt of a node on the way down; its sources get numbers on the way up."""

    kind: str
    name: str
    options: int
    function: int = -1
    args: Payload | None = None
    tops: list[tuple[int | str, Any]] = field(default_factory=list)
    nested: list[Any] = field(default_factory=list)
    seconds: float | None = None
    until: float | None = None
    fingerprint: bytes = b""


class _Flattening:
    def __init__(
        self,
        values: Values,
        inputs: tuple[tuple[Any, ...], dict[str, Any]] | None,
        functions: FunctionCache,
    ) -> None:
        self.values = values
        self.inputs = inputs
        self.cache = functions
        self.uploads: list[Upload] = []
        self.nodes: list[Node] = []
        self.numbers: dict[str, int] = {}
        self.functions: list[Function] = []
        self.function_numbers: dict[str, int] = {}
        self.option_sets: list[Options] = []
        self.option_numbers: dict[bytes, int] = {}
        self.objects: list[Payload] = []
        self.object_numbers: dict[bytes, int] = {}
        self.signatures: dict[int, inspect.Signature | None] = {}
        self.prints: list[bytes] = []
        self.input_used = False

    def run(self, dag: Any) -> Flat:
        if isinstance(dag, InputNode | InputAttributeNode):
            raise TypeError("the DAG is only its input: bind a function to it")
        self._check_kind(dag)
        visits: dict[str, _Visit] = {}
        stack: list[tuple[Any, bool]] = [(dag, False)]
        while stack:
            node, leaving = stack.pop()
            uuid = node.get_stable_uuid()
            if uuid in self.numbers:
                continue
            if leaving:
                self._emit(uuid, visits.pop(uuid))
            elif uuid not in visits:
                visit = visits[uuid] = self._visit(node)
                stack.append((node, True))
                for child in reversed([v for _, v in visit.tops] + visit.nested):
                    if is_node(child) and child.get_stable_uuid() not in self.numbers:
                        stack.append((child, False))
        if self.inputs is not None and not self.input_used and (self.inputs[0] or self.inputs[1]):
            raise TypeError(
                f"the DAG has no InputNode, but run() was given {len(self.inputs[0])} positional arguments and "
                f"{sorted(self.inputs[1])}"
            )
        structure = hashlib.blake2b(b"\0".join(self.prints), digest_size=16).hexdigest()
        code = hashlib.blake2b(
            "".join(self.functions[n.function].code for n in self.nodes if n.function >= 0).encode(),
            digest_size=16,
        ).hexdigest()
        graph = Graph(
            self.nodes, self.numbers[dag.get_stable_uuid()], self.functions, self.option_sets, self.objects,
            structure, code, PYTHON,
        )  # fmt: skip
        return Flat(graph, self.uploads)

    def _check_kind(self, node: Any) -> None:
        if isinstance(node, ClassNode | ClassMethodNode):
            raise TypeError(
                f"{node} is an actor node: a durable workflow is made of functions. Keep the actor outside and call "
                "it from a task, or turn its state into task results."
            )
        if not isinstance(node, FunctionNode | MultiOutputNode):
            raise TypeError(
                f"expected a DAG made with .bind(), got {type(node).__name__}: {node!r:.200}. "
                "Call function.bind(...) and pass what it returns."
            )

    def _visit(self, node: Any) -> _Visit:
        self._check_kind(node)
        if isinstance(node, MultiOutputNode):
            visit = _Visit(GATHER, "gather", self._option_number(Options()))
            visit.tops = list(enumerate(self._substitute(v) for v in node._bound_args))
            return visit
        body = node._body
        args = [self._substitute(v) for v in node._bound_args]
        kwargs = {k: self._substitute(v) for k, v in node._bound_kwargs.items()}
        name = default_task_id(body)
        opts, task_id, classes = split_options(node._bound_options, f"task {name}")
        if body is _TIMER_BODY:
            return _Visit(TIMER, task_id or "workflow.sleep", self._option_number(opts), seconds=args[0])
        if body is _EVENT_BODY:
            return self._event(node, args, kwargs, opts, task_id)
        self._check_call(body, node, args, kwargs, name)
        if classes is not None:
            opts = msgspec.structs.replace(opts, retry_exceptions=self._classes(classes, f"retry_exceptions of {name}"))
        visit = _Visit(TASK, task_id or name, self._option_number(opts), self._function(body, name))
        self._arguments(visit, args, kwargs, name)
        return visit

    def _event(self, node: Any, args: list[Any], kwargs: dict[str, Any], opts: Options, task_id: str | None) -> _Visit:
        listener, *args = args
        name = default_task_id(listener)
        if listener is TimerListener and len(args) == 1 and not kwargs and isinstance(args[0], int | float):
            return _Visit(TIMER, task_id or name, self._option_number(opts), until=float(args[0]))
        visit = _Visit(EVENT, task_id or name, self._option_number(opts), self._function(listener, name))
        self._arguments(visit, args, kwargs, name)
        return visit

    def _arguments(self, visit: _Visit, args: list[Any], kwargs: dict[str, Any], name: str) -> None:
        """Nodes and refs among the arguments become sources by position; those inside them, in order."""
        everything: list[tuple[int | str, Any]] = [*enumerate(args), *kwargs.items()]
        visit.tops = [(where, v) for where, v in everything if is_source(v)]
        if not everything or len(visit.tops) == len(everything):
            visit.fingerprint = repr([where for where, _ in everything]).encode()
            return
        literal = (
            [None if is_source(v) else v for v in args],
            {k: v for k, v in kwargs.items() if not is_source(v)},
        )
        dumped = self.values.dump(literal, where=f"the arguments of {name}", root="arguments")
        self._refuse_inputs_inside(dumped.refs)
        visit.nested = list(dumped.refs)
        data = dumped.join()
        visit.args = self._stored(data)
        if dumped.serializer != "pickle":
            visit.fingerprint = hashlib.blake2b(data, digest_size=16).digest()
        else:  # pickles differ from process to process: only the types are compared
            visit.fingerprint = repr([(where, type(v).__qualname__) for where, v in everything]).encode()

    def _refuse_inputs_inside(self, found: list[Any]) -> None:
        if any(isinstance(v, InputNode | InputAttributeNode) for v in found):
            raise TypeError(
                "an InputNode stands inside an object that can't be looked into: pass it as an argument of its own, "
                "or inside lists, tuples and dicts"
            )

    def _emit(self, uuid: str, visit: _Visit) -> None:
        tops = tuple((where, self._source(v)) for where, v in visit.tops)
        nested = tuple(self._source(v) for v in visit.nested)
        self.numbers[uuid] = len(self.nodes)
        self.nodes.append(
            Node(
                visit.name, visit.kind, visit.function, visit.options, visit.args, tops, nested, visit.seconds,
                visit.until,
            )
        )  # fmt: skip
        function = self.functions[visit.function].name if visit.function >= 0 else ""
        times = None if visit.kind != TIMER else (visit.seconds, visit.until)
        self.prints.append(repr((visit.name, visit.kind, function, tops, nested, times)).encode() + visit.fingerprint)

    def _source(self, value: Any) -> int:
        if is_node(value):
            return self.numbers[value.get_stable_uuid()]
        binary = value.binary()
        number = self.object_numbers.get(binary)
        if number is None:
            number = self.object_numbers[binary] = len(self.objects)
            self.objects.append(Payload(None, f"upload:{len(self.uploads)}"))
            self.uploads.append(Upload(ref=value))
        return -1 - number

    # -- inputs --------------------------------------------------------------------------------------------------

    def _substitute(self, value: Any) -> Any:
        """The value with InputNodes replaced by what `run` was given, inside plain containers too."""
        kind = type(value)
        if isinstance(value, InputNode | InputAttributeNode):
            return self._input(value)
        if kind is list or kind is tuple:
            if any(_may_hold_input(v) for v in value):
                return kind(self._substitute(v) for v in value)
        elif kind is dict and any(_may_hold_input(v) for v in value.values()):
            return {k: self._substitute(v) for k, v in value.items()}
        return value

    def _input(self, node: Any) -> Any:
        if self.inputs is None:
            raise TypeError("a continuation can't have an InputNode: bind the values themselves")
        self.input_used = True
        args, kwargs = self.inputs
        one = len(args) == 1 and not kwargs
        if isinstance(node, InputNode):
            if not one:
                raise TypeError(
                    f"the DAG uses its whole input, so run() takes exactly one argument; it was given {len(args)} "
                    f"positional and {sorted(kwargs)}. Use input[0] or input.name in the DAG for several."
                )
            return args[0]
        key = node.key
        try:
            if one:
                value = args[0]
                if is_source(value):
                    raise TypeError("its one input is a DAG node or ObjectRef, which has no parts here")
                return getattr(value, key) if node._accessor_method == "__getattr__" else value[key]
            return args[key] if isinstance(key, int) else kwargs[key]
        except (IndexError, KeyError, AttributeError, TypeError) as error:
            raise TypeError(
                f"the DAG asks its input for {key!r}, but run() was given {len(args)} positional arguments and "
                f"{sorted(kwargs)} ({type(error).__name__}: {error})"
            ) from error

    # -- parts ---------------------------------------------------------------------------------------------------

    def _check_call(self, body: Any, node: Any, args: list[Any], kwargs: dict[str, Any], name: str) -> None:
        if id(body) not in self.signatures:
            if inspect.isgeneratorfunction(body) or inspect.isasyncgenfunction(body):
                raise TypeError(f"{name} is a generator: a durable task returns one value. Return a list.")
            try:
                self.signatures[id(body)] = inspect.signature(body)
            except (TypeError, ValueError):
                self.signatures[id(body)] = None
        signature = self.signatures[id(body)]
        if signature is not None:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{name}{signature} was bound to other arguments: {error}") from None

    def _function(self, body: Any, name: str) -> int:
        stored, data = self.cache.get(body, name)
        number = self.function_numbers.get(stored.digest)
        if number is None:
            number = self.function_numbers[stored.digest] = len(self.functions)
            self.functions.append(msgspec.structs.replace(stored, payload=self._stored(data)))
        return number

    def _option_number(self, opts: Options) -> int:
        key = msgspec.msgpack.encode(opts)
        number = self.option_numbers.get(key)
        if number is None:
            number = self.option_numbers[key] = len(self.option_sets)
            self.option_sets.append(opts)
        return number

    def _classes(self, classes: tuple[type, ...], where: str) -> Payload:
        if self.values.trust == "data":
            return self._stored(self.values.dumps([name_of(c, where) for c in classes], where=where))
        return self._stored(self.values.dumps(classes, serializer="pickle", where=where))

    def _stored(self, data: bytes) -> Payload:
        return payload_of(data, self.uploads)


def is_source(value: Any) -> bool:
    return isinstance(value, DAGNode | ray.ObjectRef)


def _may_hold_input(value: Any) -> bool:
    return isinstance(value, InputNode | InputAttributeNode) or type(value) in (list, tuple, dict)
