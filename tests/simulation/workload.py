"""Workflows to crash: what they do, and what must come out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from support.doubles import GraphBuilder, Plain

from perdure.graph import Graph

LARGE = "x" * 3000


def thirty_tasks() -> tuple[Graph, Callable[[Any], bool]]:
    """30 tasks and a continuation of 15 more; an object, a timer, an event, a retry, a caught failure, volatile
    values. With the check of its output."""
    b = GraphBuilder()
    shared = b.object(1000)
    squares = [b.task("square", n, shared) for n in range(15)]
    total = b.task("sum", *squares)
    timer = b.task("sleep", total, kind="timer", seconds=3.0)
    event = b.task("signal", kind="event")
    flaky = b.task("flaky", timer, max_retries=3, retry_exceptions=True, backoff=(0.3, 2.0, 5.0, 0.1))
    caught = b.task("boom", catch_exceptions=True)
    volatile = b.task("large", total, checkpoint=False)
    lengths = [b.task("length", volatile, n) for n in range(4)]
    fib = b.task("fib", 5)
    merged = b.task("sum", *lengths)
    last = b.task("last", total, flaky, caught, merged, fib, event)
    assert len(b.nodes) >= 28
    wrapped = b.task("wrap", last)
    root = b.task("wrap", wrapped)
    expected = sum((n * n + 1000) for n in range(15))

    def right(output: Any) -> bool:
        total_, flaky_, caught_, merged_, fib_, event_ = output
        return (
            total_ == expected
            and flaky_ == "at last"
            and caught_[0] is None
            and isinstance(caught_[1], ValueError)
            and merged_ == sum(len(LARGE) + n for n in range(4))
            and fib_ == 5
            and event_ == "signal"
        )

    return b.graph(root), right


def functions(attempts: dict[str, int]) -> dict[str, Callable[..., Any]]:
    """``attempts`` counts what user code would see outside: it outlives every process."""

    async def square(n: int, plus: int) -> int:
        await asyncio.sleep(0.01 * (n % 5))
        return n * n + plus

    async def signal() -> str:
        await asyncio.sleep(1.0)
        return "signal"

    async def flaky(_: Any) -> str:
        await asyncio.sleep(0.05)
        attempts["flaky"] = attempts.get("flaky", 0) + 1
        if attempts["flaky"] < 3:
            raise ValueError("not yet")
        return "at last"

    def boom() -> None:
        raise ValueError("boom")

    def fib(n: int) -> Any:
        if n < 2:
            return n
        b = GraphBuilder()
        return Plain(b.graph(b.task("add", b.task("fib", n - 1), b.task("fib", n - 2))))

    return {
        "square": square,
        "sum": lambda *values: sum(values),
        "signal": signal,
        "flaky": flaky,
        "boom": boom,
        "fib": fib,
        "add": lambda x, y: x + y,
        "large": lambda _: LARGE,
        "length": lambda text, n: len(text) + n,
        "last": lambda *values: list(values),
        "wrap": lambda value: value,
    }
