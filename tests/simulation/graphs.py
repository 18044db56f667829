"""Random workflows whose output is known: every value carries the tag of the submission that made it."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable
from typing import Any

from support.doubles import GraphBuilder, Plain, unpacked

from perdure.graph import Graph


def random_graph(rng: random.Random, tag: str, size: int, depth: int = 0) -> Graph:
    """Mostly chains, so that there are many segments; with fan-outs, continuations, timers, events, retries."""
    b = GraphBuilder()
    refs = [b.task("mix", tag, b.object(f"{tag}.object"))]
    while len(refs) < size:
        upstream = [refs[-1], *rng.sample(refs, min(len(refs), rng.choice([0, 0, 1, 2])))]
        luck = rng.random()
        if luck < 0.04 and depth < 3:
            options: dict[str, Any] = {"checkpoint": rng.random() < 0.8, "catch_exceptions": rng.random() < 0.3}
            refs.append(b.task("grow", tag, rng.getrandbits(32), depth + 1, upstream[0], **options))
        elif luck < 0.08:
            refs.append(b.task("sleep", *upstream, kind="timer", seconds=rng.choice([0.5, 2.0, 8.0])))
        elif luck < 0.12:
            refs.append(b.task("signal", tag, len(refs), kind="event"))
        elif luck < 0.2:
            options = {"max_retries": 6, "retry_exceptions": True, "backoff": (rng.choice([0.0, 0.3]), 2.0, 5.0, 0.1)}
            refs.append(b.task("flaky", tag, f"{depth}.{len(refs)}.{rng.getrandbits(20)}", *upstream, **options))
        elif luck < 0.25:
            refs.append(b.task("fails", tag, *upstream, catch_exceptions=True))
        elif luck < 0.35:
            refs.append(b.task("mix", tag, *upstream, checkpoint=False))
        else:
            refs.append(b.task("mix", tag, *upstream))
    return b.graph(b.task("output", tag, *refs[-3:]))


def functions(rng_of_time: random.Random, attempts: dict[str, int]) -> dict[str, Callable[..., Any]]:
    """``attempts`` outlives every process, like a service that user code calls."""
    pure = pure_functions()

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        async def run(*args: Any) -> Any:
            await asyncio.sleep(rng_of_time.choice([0.0, 0.0, 0.01, 0.2, 1.0]))
            return function(*args)

        return run

    def flaky(tag: str, name: str, *args: Any) -> Any:
        key = f"{tag}/{name}"
        attempts[key] = attempts.get(key, 0) + 1
        if attempts[key] <= 2:
            raise ValueError("not yet")
        return pure["flaky"](tag, name, *args)

    async def signal(tag: str, n: int) -> str:
        await asyncio.sleep(rng_of_time.random() * 3)
        return f"{tag}.signal{n}"

    return {**{name: slow(f) for name, f in pure.items()}, "flaky": flaky, "signal": signal}


def pure_functions() -> dict[str, Callable[..., Any]]:
    def mix(tag: str, *args: Any) -> str:
        return f"{tag}:{zlib.crc32(repr(args).encode()):08x}" + "." * (len(args) * 20)

    def grow(tag: str, seed: int, depth: int, _: Any) -> Plain:
        rng = random.Random(seed)
        return Plain(random_graph(rng, tag, rng.randint(1, 6), depth))

    def fails(*_: Any) -> None:
        raise ValueError("always")

    return {
        "mix": mix,
        "grow": grow,
        "fails": fails,
        "flaky": lambda tag, name, *args: mix(tag, name, *args),
        "signal": lambda tag, n: f"{tag}.signal{n}",
        "sleep": lambda *_: None,
        "output": lambda tag, *args: (tag, mix(tag, *map(_plain, args))),
    }


def _plain(value: Any) -> Any:
    """Exceptions have no stable repr over pickling in tuples of catchers."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return repr(value)


def expected(graph: Graph) -> Any:
    """The output of a failure-free run, computed without any of the product."""
    pure = pure_functions()
    values: list[Any] = []
    for node in graph.nodes:
        args = list(unpacked(node.args) or [])
        for where, source in sorted(node.tops, key=lambda top: top[0]):
            args.insert(int(where), values[source] if source >= 0 else unpacked(graph.objects[-1 - source]))
        name = graph.functions[node.function].name
        catches = graph.options[node.options].catch_exceptions
        try:
            value = pure[name](*args)
            if isinstance(value, Plain):
                value = expected(value.graph)
            values.append((value, None) if catches else value)
        except ValueError as error:
            assert catches
            values.append((None, error))
    return values[graph.root]
