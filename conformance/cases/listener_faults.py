"""Listeners under kills, lost sources, floods and wrong clocks."""

from __future__ import annotations

import asyncio
import gc
import pickle
import time
import unittest.mock
from typing import Any

from perdure.conformance import resources
from perdure.conformance.cases.listener import _idle, cancelled, poll, received, silent, topic
from perdure.conformance.child import ChildContext
from perdure.conformance.plugin_bench import PluginTrial
from perdure.conformance.register import Certainty, Kind, Level, case
from perdure.errors import ListenerError

B, F = Level.BASE, Level.FULL
L = Kind.LISTENER
MIB = 2**20


async def _take(c: ChildContext, subject: Any, name: str, delay: float | None) -> None:
    """Poll, report the event, and acknowledge ``delay`` seconds later (None: never)."""
    listener = subject.make()
    event = await listener.poll_for_event(*subject.arguments(name))
    await c.send(("polled", subject.payload(event)))
    if delay is None:
        await asyncio.sleep(60)
    await asyncio.sleep(delay or 0)
    await c.send("acknowledging")
    await listener.event_checkpointed(event)
    await c.send("acknowledged")
    await asyncio.sleep(60)


@case("lis-12", F, "D", kind=L, needs=["publish"])
async def killed_before(t: PluginTrial) -> None:
    """A process killed after poll and before its acknowledgement: the event is delivered to the next."""
    for i in range(5):
        name = topic(t)
        await t.subject.publish(name, i)
        async with t.child() as child:
            await child.start(_take, t.subject, name, None)
            t.same(await child.message(), ("polled", i), "polled by the child")
            await child.kill()
        await received(t, t.make(), name, i, "after the kill")
        t.round()


@case("lis-13", F, "D", Certainty.STOCHASTIC, kind=L, needs=["publish", "queues"], cost=3)
async def killed_inside(t: PluginTrial) -> None:
    """A process killed inside event_checkpointed: the event is acknowledged, or comes again; later ones come."""
    for i in range(12):
        name = topic(t)
        await t.subject.publish(name, i)
        await t.subject.publish(name, "other")
        async with t.child() as child:
            await child.start(_take, t.subject, name, 0.0)
            _, taken = await child.message()
            t.same(await child.message(), "acknowledging", "the child acknowledges")
            await asyncio.sleep(0.0003 * i)
            await child.kill()
        listener, rest = t.make(), {i, "other"} - {taken}
        while rest:
            event = await t.within(5, listener.poll_for_event(*t.subject.arguments(name)), "what was not acknowledged")
            payload = t.subject.payload(event)
            t.expect(payload in {taken} | rest, "the event again, or the other one", payload)
            rest.discard(payload)
            await listener.event_checkpointed(event)
        t.round()


@case("lis-17", F, "D", kind=L, needs=["publish", "queues"], cost=4)
async def order(t: PluginTrial) -> None:
    """1,000 events come in the declared order, each once when each is acknowledged."""
    name, listener = topic(t), t.make()
    for i in range(1000):
        await t.subject.publish(name, i)
    seen = []
    for _ in range(1000):
        event = await t.within(10, listener.poll_for_event(*t.subject.arguments(name)), "poll")
        seen.append(t.subject.payload(event))
        await listener.event_checkpointed(event)
    t.evidence.rounds = 1000
    if t.subject.order == "fifo":
        t.expect(seen == list(range(1000)), "fifo: in the order of publishing", seen[:10])
    t.expect(sorted(seen) == list(range(1000)), "each event once", f"{len(set(seen))} different")
    await silent(t, listener, name, "after all")


@case("lis-18", F, "D", Certainty.STOCHASTIC, kind=L, needs=["publish", "queues"], timeout=180, cost=12)
async def none_lost(t: PluginTrial) -> None:
    """1,000 events with random kills and cancels: none is lost; repeats are counted."""
    name = topic(t)
    seen: dict[int, int] = {}
    published = 0

    async def publish_all() -> None:
        nonlocal published
        for i in range(1000):
            await t.subject.publish(name, i)
            published += 1
            if i % 20 == 0:
                await asyncio.sleep(0.001)

    publishing = asyncio.ensure_future(publish_all())
    listener = t.make()
    kills = cancels = 0
    end = time.monotonic() + 120
    while len(seen) < 1000:
        if publishing.done() and publishing.exception() is not None:
            publishing.result()
        t.expect(time.monotonic() < end, "all 1,000 events come", f"{len(seen)} came of {published}")
        dice = t.rng.random()
        if dice < 0.008:
            async with t.child() as child:
                await child.start(_take, t.subject, name, 0.0)
                try:
                    async with asyncio.timeout(5):
                        _, payload = await child.message()
                        seen[payload] = seen.get(payload, 0) + 1
                except TimeoutError:
                    pass
                await asyncio.sleep(t.rng.random() * 0.003)
                await child.kill()
            kills += 1
            continue
        task = poll(t.subject, listener, name)
        await asyncio.wait([task], timeout=t.rng.random() * 0.002 if dice < 0.2 else 5)
        if not task.done():
            task.cancel()
            await asyncio.wait([task])
            cancels += 1
        if task.cancelled() or task.exception() is not None:
            continue
        payload = t.subject.payload(task.result())
        seen[payload] = seen.get(payload, 0) + 1
        if dice > 0.25:
            await listener.event_checkpointed(task.result())
    await publishing
    t.evidence.rounds = 1000
    t.evidence.numbers.update(kills=kills, cancels=cancels, repeats=sum(seen.values()) - len(seen))
    t.fault(kills > 0)
    t.expect(set(seen) == set(range(1000)), "no event is lost", sorted(set(range(1000)) - set(seen))[:5])


@case("lis-19", F, "D", kind=L, needs=["publish"])
async def equal_arguments(t: PluginTrial) -> None:
    """Two polls with equal arguments get what is declared: each the event, or one of them."""
    for _ in range(5):
        name = topic(t)
        one, two = poll(t.subject, t.make(), name), poll(t.subject, t.make(), name)
        await asyncio.sleep(0.1)
        await t.subject.publish(name, "both?")
        done, pending = await asyncio.wait([one, two], timeout=3 if t.subject.fan_out == "each" else 1)
        t.expect(
            len(done) == (2 if t.subject.fan_out == "each" else 1),
            f"declared {t.subject.fan_out!r}",
            f"{len(done)} got it",
        )
        for task in done:
            t.same(t.subject.payload(task.result()), "both?", "payload")
        for task in pending:
            await cancelled(t, task, "poll")


@case("lis-21", F, "D", kind=L, needs=["publish", "stop_source", "start_source"], alone=True, timeout=120, cost=5)
async def source_away(t: PluginTrial) -> None:
    """The source is away at the start and midway: poll waits or raises ListenerError, and works within 10 s."""
    for when in ("start", "midway"):
        name, listener = topic(t), t.make()
        task: asyncio.Task[Any] | None = None
        if when == "midway":
            task = poll(t.subject, listener, name)
            await asyncio.sleep(0.1)
        await asyncio.to_thread(t.subject.stop_source)
        task = task or poll(t.subject, listener, name)
        await asyncio.sleep(0.5)
        if task.done():
            t.expect(isinstance(task.exception(), ListenerError), "ListenerError while the source is away", repr(task))
        await asyncio.to_thread(t.subject.start_source)
        t.fault(True)
        await t.subject.publish(name, when)
        if task.done():
            task = poll(t.subject, listener, name)
        event = await t.within(10, task, "it works again")
        t.same(t.subject.payload(event), when, "payload")


@case("lis-22", F, "D", kind=L, needs=["publish", "lose_acknowledgement"])
async def lost_acknowledgement(t: PluginTrial) -> None:
    """The answer of an acknowledgement is lost: silent or ListenerError, and again is silent."""
    name, listener = topic(t), t.make()
    await t.subject.publish(name, "x")
    event = await received(t, listener, name, "x", "the event")
    await t.subject.lose_acknowledgement()
    try:
        await t.within(10, listener.event_checkpointed(event), "it ends")
    except ListenerError as error:
        t.expect(bool(str(error)), "a clear error", error)
    t.fault(True)
    await t.within(10, listener.event_checkpointed(event), "the second attempt ends")
    await silent(t, listener, name, "after the acknowledgement")


@case("lis-23", F, "D", kind=L, needs=["publish", "publish_malformed"])
async def malformed(t: PluginTrial) -> None:
    """A malformed event is a ListenerError that names it (or is passed by), and the next event still comes."""
    name, listener = topic(t), t.make()
    await t.subject.publish_malformed(name)
    await t.subject.publish(name, "good")
    for _ in range(3):
        try:
            event = await t.within(5, listener.poll_for_event(*t.subject.arguments(name)), "poll")
        except ListenerError as error:
            t.expect(len(str(error)) > 10, "the error names it", error)
            continue
        t.same(t.subject.payload(event), "good", "the next event")
        return
    t.fail("the next event still comes", "three errors")


@case("lis-24", F, "D", kind=L, needs=["publish"])
async def large(t: PluginTrial) -> None:
    """An event of 8 MiB is delivered whole, or refused when it is published or polled."""
    name, payload = topic(t), bytes(8 * MIB)
    try:
        await t.subject.publish(name, payload)
        event = await t.within(20, t.make().poll_for_event(*t.subject.arguments(name)), "poll")
    except (ListenerError, ValueError) as error:
        t.expect(bool(str(error)), "refused by limit, clearly", error)
        return
    t.expect(t.subject.payload(event) == payload, "8 MiB come whole", "other bytes")


@case("lis-26", F, "D", kind=L)
async def clock_stepped(t: PluginTrial) -> None:
    """The clock steps by an hour either way while polls wait: nothing fires early, and nothing twice."""
    real = time.time
    for offset in (3600.0 * 0.9, -3600.0):
        name, listener = topic(t), t.make()
        task = poll(t.subject, listener, name)
        await asyncio.sleep(0.1)
        with unittest.mock.patch("time.time", lambda offset=offset: real() + offset):
            t.fault(abs(time.time() - real() - offset) < 5)
            await asyncio.wait([task], timeout=0.5)
            t.expect(not task.done(), f"nothing fires when the clock steps by {offset:+.0f} s", task)
            if t.subject.has("publish"):
                await t.subject.publish(name, "now")
                event = await t.within(5, task, "an event comes whatever the clock says")
                await listener.event_checkpointed(event)
                await silent(t, listener, name, "not twice")
        if not task.done():
            await cancelled(t, task, "poll")


@case("lis-29", F, "D", kind=L, cost=1)
async def nothing_left(t: PluginTrial) -> None:
    """50 listeners polled and cancelled leave no task, thread or descriptor."""
    seen = await t.in_child(_use_and_drop, 50)
    t.expect(all(x <= 2 for x in seen), "nothing is left", f"tasks, threads, descriptors: {seen}")


async def _use_and_drop(c: ChildContext, subject: Any, count: int) -> list[int]:
    async def some(n: int) -> None:
        for i in range(n):
            listener = subject.make()
            task = poll(subject, listener, f"drop-{i}")
            await asyncio.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            if hasattr(listener, "aclose"):
                await listener.aclose()

    def state() -> list[int]:
        gc.collect()
        return [len(asyncio.all_tasks()), resources.threads(), resources.descriptors()]

    await some(5)
    await asyncio.sleep(0.1)
    before = state()
    await some(count)
    await asyncio.sleep(0.3)
    return [b - a for a, b in zip(before, state(), strict=True)]


@case("lis-32", B, "D", kind=L)
async def its_error(t: PluginTrial) -> None:
    """What a listener raises arrives whole: picklable, with its text."""
    given = list(t.subject.bad_arguments) or [(object(),) * 6]
    for args in given:
        try:
            await t.within(5, t.make().poll_for_event(*args), "it ends")
            t.fail("bad arguments raise", "it returned")
        except (TypeError, ValueError, ListenerError) as error:
            try:
                twin = pickle.loads(pickle.dumps(error))
            except Exception as failed:
                t.fail("the error survives pickling", f"{type(failed).__name__}: {failed}")
            t.expect(type(twin) is type(error) and str(twin) == str(error), "the error survives pickling", repr(twin))


@case("lis-33", F, "D", Certainty.STOCHASTIC, kind=L, needs=["publish", "queues"], alone=True, timeout=120, cost=12)
async def flood(t: PluginTrial) -> None:
    """500 events/s for 10 s: all come, none twice once acknowledged, without the loop standing still."""
    name, listener, total = topic(t), t.make(), 5000
    begin = time.monotonic()

    async def publish_all() -> None:
        for i in range(total):
            await t.subject.publish(name, i)
            ahead = i / 500 - (time.monotonic() - begin)
            if ahead > 0:
                await asyncio.sleep(ahead)

    publishing = asyncio.ensure_future(publish_all())
    seen: set[int] = set()
    try:
        async with asyncio.timeout(60):
            while len(seen) < total:
                event = await listener.poll_for_event(*t.subject.arguments(name))
                payload = t.subject.payload(event)
                t.expect(payload not in seen, "no acknowledged event comes again", payload)
                seen.add(payload)
                await listener.event_checkpointed(event)
    except TimeoutError:
        pass
    await publishing
    t.evidence.rounds = total
    t.evidence.numbers["seconds"] = round(time.monotonic() - begin, 1)
    t.expect(len(seen) == total, "all 5,000 events come within 60 s", f"{len(seen)} came")


@case("lis-34", F, "D", kind=L, needs=["requests"], alone=True, cost=7)
async def idle_source(t: PluginTrial) -> None:
    """An idle source sees at most 1 request per 5 s and connection, not per poll."""
    seen = await t.in_child(_idle, 50, 5.0)
    t.evidence.numbers["requests in 5 s of 50 polls"] = seen["requests"]
    t.expect(seen["requests"] <= 4, "at most 4 requests in 5 s for 50 polls", seen["requests"])
