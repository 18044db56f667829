"""Options of a durable task: how users give them, and how they travel on plain Ray functions and DAG nodes.

Owns `workflow.options`, its checks, and the one place where they hide: Ray drops unknown options, but carries
``_labels`` from ``.options()`` through ``.bind()``, copies and pickling. A test pins that on each supported
version of Ray. Nothing here touches a store.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

import ray
from ray.remote_function import RemoteFunction

from perdure.graph import Options

LABEL: Final = "perdure"

_RAY_DATA: Final = frozenset(
    {
        "num_cpus", "num_gpus", "resources", "memory", "accelerator_type", "label_selector",
        "fallback_strategy", "enable_task_events", "runtime_env", "max_calls",
    }
)  # fmt: skip
_IGNORED: Final = frozenset({"_labels", "_metadata", "name", "concurrency_groups", "isolate_process"})


def _check_task_id(value: Any) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise ValueError(f"task_id={value!r:.100}: expected 1 to 200 printable characters")


def check_metadata(value: Any, what: str = "metadata") -> dict[str, Any]:
    """User metadata: a dict with str keys that JSON can hold. ValueError says what is not."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{what}={value!r:.200}: expected a dict with str keys")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} can't be stored as JSON: {error}. Use str, numbers, lists and dicts.") from None
    return value


def _check_bool(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r:.100}: expected True or False")


def _number(name: str, value: Any, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
        raise ValueError(f"{name}={value!r:.100}: expected a number of at least {low:g}")
    return float(value)


def _check_backoff(value: Any) -> list[float]:
    """``seconds`` or ``(seconds, factor, longest, jitter)``."""
    values = list(value) if isinstance(value, tuple | list) else [value]
    if not 1 <= len(values) <= 4:
        raise ValueError(f"retry_backoff={value!r:.100}: expected seconds, or (seconds, factor, longest, jitter)")
    defaults = [0.0, 2.0, 60.0, 0.1]
    values += defaults[len(values) :]
    first = _number("retry_backoff seconds", values[0], 0)
    factor = _number("retry_backoff factor", values[1], 1)
    longest = _number("retry_backoff longest", values[2], 0)
    jitter = _number("retry_backoff jitter", values[3], 0)
    return [first, factor, max(first, longest), min(jitter, 1.0)]


class WorkflowOptions(Mapping[str, Any]):
    """The result of `options`: a decorator for a remote function, and a mapping for ``fn.options(**...)``."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values_given = values

    def __call__(self, function: Any) -> RemoteFunction:
        if not isinstance(function, RemoteFunction):
            raise ValueError(
                f"workflow.options(...) decorates a remote function, not {type(function).__name__}: "
                "put it above @ray.remote"
            )
        return _durable(function, self.values_given)

    def __getitem__(self, key: str) -> Any:
        if key != "_labels":
            raise KeyError(key)
        return {LABEL: json.dumps(self.values_given, sort_keys=True)}

    def __iter__(self) -> Iterator[str]:
        return iter(("_labels",))

    def __len__(self) -> int:
        return 1


def options(
    *,
    task_id: str | None = None,
    metadata: dict[str, Any] | None = None,
    catch_exceptions: bool | None = None,
    checkpoint: bool | None = None,
    retry_backoff: float | tuple[float, ...] | None = None,
    timeout: float | None = None,
    max_preemptions: int | None = None,
    **unknown: Any,
) -> WorkflowOptions:
    """Durability options of a task.

    Use it as a decorator above ``@ray.remote``, or as ``fn.options(**workflow.options(...))``; the two merge,
    the later one wins per option.

    Args:
        task_id: name of the task in its workflow (default: module and name of the function). A name that is
            taken gets ``_1``, ``_2``.
        metadata: user metadata of the task: a dict that JSON can hold.
        catch_exceptions: the task's value becomes ``(value, None)`` or ``(None, exception)``.
        checkpoint: False: the value is not stored, and the task runs again if it is needed after a crash. The
            workflow's own output is always stored.
        retry_backoff: seconds before the second attempt, or ``(seconds, factor, longest, jitter)``: the delay is
            multiplied by ``factor`` per attempt up to ``longest`` seconds, and lengthened by up to the share
            ``jitter`` at random. Default 0: at once.
        timeout: seconds after which an attempt is ended by force; it counts as a crash.
        max_preemptions: how many attempts may be lost to nodes that go away (default -1: no limit); they don't
            count as retries.

    Raises:
        ValueError: an unknown option, or a value that can't be one; the text says what was expected.
    """
    if unknown:
        raise ValueError(
            f"workflow.options got {', '.join(sorted(unknown))}; expected task_id, metadata, catch_exceptions, "
            "checkpoint, retry_backoff, timeout, max_preemptions. Ray's own options go to .options() of the function."
        )
    values: dict[str, Any] = {}
    if task_id is not None:
        _check_task_id(task_id)
        values["task_id"] = task_id
    if metadata is not None:
        values["metadata"] = check_metadata(metadata)
    for name, flag in (("catch_exceptions", catch_exceptions), ("checkpoint", checkpoint)):
        if flag is not None:
            _check_bool(name, flag)
            values[name] = flag
    if retry_backoff is not None:
        values["retry_backoff"] = _check_backoff(retry_backoff)
    if timeout is not None:
        values["timeout"] = _number("timeout", timeout, 0.001)
    if max_preemptions is not None:
        if isinstance(max_preemptions, bool) or not isinstance(max_preemptions, int) or max_preemptions < -1:
            raise ValueError(f"max_preemptions={max_preemptions!r}: expected an int of at least -1")
        values["max_preemptions"] = max_preemptions
    return WorkflowOptions(values)


class DurableFunction(RemoteFunction):  # type: ignore[misc]
    """A remote function with durability options: ``.options()`` merges them instead of replacing."""

    def options(self, **task_options: Any) -> Any:
        if "_labels" in task_options:
            merged = own_options(self._default_options) | own_options(task_options)
            task_options["_labels"] = {
                **(task_options["_labels"] or {}),
                LABEL: json.dumps(merged, sort_keys=True),
            }
        return super().options(**task_options)


def _durable(function: RemoteFunction, values: dict[str, Any]) -> DurableFunction:
    copy = DurableFunction.__new__(DurableFunction)
    defaults = dict(function._default_options)
    merged = own_options(defaults) | values
    defaults["_labels"] = {**(defaults.get("_labels") or {}), LABEL: json.dumps(merged, sort_keys=True)}
    RemoteFunction.__init__(copy, function._language, function._function, function._function_descriptor, defaults)
    copy.__doc__ = function.__doc__
    return copy


def own_options(ray_options: dict[str, Any]) -> dict[str, Any]:
    """The durability options that ride in a function's or node's Ray options."""
    label = (ray_options.get("_labels") or {}).get(LABEL)
    return dict(json.loads(label)) if label else {}


def split_options(bound: dict[str, Any], where: str) -> tuple[Options, str | None, Any]:
    """A node's bound options as stored options, its task id, and the exception classes for retries (or None).

    Raises:
        ValueError: an option that a durable task can't honour; ``where`` names the task.
    """
    own = own_options(bound)
    ray_options: dict[str, Any] = {}
    for name, value in bound.items():
        if value is None or name in _IGNORED or name.startswith("_"):
            continue
        if name in _RAY_DATA:
            ray_options[name] = _plain(value) if name == "runtime_env" else value
        elif name == "num_returns":
            if value != 1:
                raise ValueError(
                    f"{where} has num_returns={value!r}: a durable task has one result. Return a tuple or a dict, "
                    "and take it apart in the next task."
                )
        elif name == "scheduling_strategy":
            ray_options[name] = _strategy_to_data(value, where)
        elif name not in ("max_retries", "retry_exceptions"):
            raise ValueError(f"{where} has the Ray option {name}={value!r:.100}, which durable tasks don't support")
    retries = bound.get("max_retries")
    retry_exceptions = bound.get("retry_exceptions") or False
    classes = None
    if isinstance(retry_exceptions, list | tuple):
        classes = tuple(retry_exceptions)
        retry_exceptions = True
    return (
        Options(
            ray=ray_options,
            max_retries=3 if retries is None else retries,
            retry_exceptions=bool(retry_exceptions),
            catch_exceptions=own.get("catch_exceptions", False),
            checkpoint=own.get("checkpoint", True),
            metadata=own.get("metadata", {}),
            backoff=tuple(own.get("retry_backoff", (0.0, 2.0, 60.0, 0.1))),
            timeout=own.get("timeout"),
            max_preemptions=own.get("max_preemptions", -1),
        ),
        own.get("task_id"),
        classes,
    )


def _plain(runtime_env: Any) -> dict[str, Any]:
    return json.loads(json.dumps(dict(runtime_env), default=str))  # type: ignore[no-any-return]


def _strategy_to_data(strategy: Any, where: str) -> Any:
    from ray.util import scheduling_strategies as kinds

    if isinstance(strategy, str):
        return strategy
    if isinstance(strategy, kinds.NodeAffinitySchedulingStrategy):
        return {"node": strategy.node_id, "soft": bool(strategy.soft)}
    if isinstance(strategy, kinds.PlacementGroupSchedulingStrategy):
        group = strategy.placement_group
        return {
            "group": group.id.hex(),
            "bundle": strategy.placement_group_bundle_index,
            "capture": bool(strategy.placement_group_capture_child_tasks),
        }
    raise ValueError(
        f"{where} has the scheduling strategy {strategy!r:.100}; durable tasks support 'DEFAULT', 'SPREAD', node "
        "affinity and placement groups. Use label_selector for labels."
    )


def strategy_from_data(data: Any) -> Any:
    """The inverse, in the cluster where the task runs now. A node that is gone makes a soft strategy 'DEFAULT'."""
    from ray.util import scheduling_strategies as kinds

    if isinstance(data, str):
        return data
    if "node" in data:
        return kinds.NodeAffinitySchedulingStrategy(data["node"], soft=data["soft"])
    # ray.util.placement_group is a function as soon as anyone has imported it from there
    from ray.util.placement_group import PlacementGroup

    group = PlacementGroup(ray.PlacementGroupID(bytes.fromhex(data["group"])))
    return kinds.PlacementGroupSchedulingStrategy(group, data["bundle"], data["capture"])
