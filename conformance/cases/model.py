"""Random programs against the oracle, and random concurrent histories against the checker."""

from __future__ import annotations

import asyncio
import pickle
import time
from typing import Any

from perdure.conformance import judging, workload
from perdure.conformance.child import ChildContext
from perdure.conformance.linear import Op
from perdure.conformance.oracle import KEYS, METHODS, Model, random_step
from perdure.conformance.register import Certainty, Level, case
from perdure.conformance.trial import CaseFailed, Trial
from perdure.errors import StoreError

B, F = Level.BASE, Level.FULL

SHRINK_SECONDS = 15.0
CONCURRENT = (
    "create", "create", "put", "upload", "delete", "get", "get", "stat", "download", "range", "get_many",
    "create_many",
)  # fmt: skip


@case("model-01", B, "A1", Certainty.STOCHASTIC, cost=2)
async def steps(t: Trial) -> None:
    """500 random steps of all methods, and reopenings, agree with a dict."""
    model = Model(t)
    store = t.store
    while model.steps < 500:
        if t.rng.random() < 0.02:
            store = t.open()
        await model.step(store, *random_step(t.rng))
        t.round()
    await model.check_all(store)


async def serve_steps(c: ChildContext, url: str) -> int:
    """Run single calls for the parent: ``(method, arguments)`` in, result or error out."""
    store = c.open(url)
    done = 0
    while (word := await c.receive()) is not None:
        method, args, kwargs = word
        try:
            if method in ("list", "download"):
                result: Any = [
                    x if method == "list" else bytes(x) async for x in getattr(store, method)(*args, **kwargs)
                ]
            elif method == "upload":

                async def chunks(parts: Any = args[1]) -> Any:
                    for part in parts:
                        yield part

                await store.upload(args[0], chunks())
                result = None
            else:
                result = await getattr(store, method)(*args, **kwargs)
            if isinstance(result, memoryview):
                result = bytes(result)
            elif isinstance(result, list):
                result = [bytes(r) if isinstance(r, memoryview) else r for r in result]
            await c.send(("ok", result))
        except (StoreError, ValueError, TypeError) as error:
            await c.send(("error", error))
        done += 1
    return done


class RemoteStore:
    """The store of a child process, with the interface of a store."""

    def __init__(self, child: Any) -> None:
        self._child = child

    async def _ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        await self._child.send((method, args, kwargs))
        kind, value = await self._child.message()
        if kind == "error":
            raise value
        return value

    def __getattr__(self, method: str) -> Any:
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await self._ask(method, *args, **kwargs)

        return call

    async def upload(self, key: str, chunks: Any) -> None:
        await self._ask("upload", key, [bytes(c) async for c in chunks])

    async def list(self, *args: Any, **kwargs: Any) -> Any:
        for item in await self._ask("list", *args, **kwargs):
            yield tuple(item)

    async def download(self, key: str) -> Any:
        for chunk in await self._ask("download", key):
            yield chunk


async def state_machine(t: Trial, wanted: int, remote: RemoteStore | None) -> int:
    """Hypothesis drives the oracle and the store through ``wanted`` steps; shrinks what fails."""
    try:
        import hypothesis
        from hypothesis import stateful
        from hypothesis import strategies as st
    except ImportError:
        t.cannot("hypothesis is not installed: pip install 'perdure[conformance]'")
    loop = asyncio.get_running_loop()
    total = 0
    example = 0

    failures: list[CaseFailed] = []
    first_failure = 0.0

    def run(coroutine: Any) -> Any:
        nonlocal first_failure
        if failures and time.monotonic() - first_failure > SHRINK_SECONDS:
            coroutine.close()  # enough: what follows passes, so the search for a shorter program ends
            return None
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)
        except CaseFailed as failed:
            first_failure = first_failure or time.monotonic()
            failures.append(failed)
            raise

    keys = st.sampled_from(KEYS)
    sizes = st.sampled_from((0, 1, 17, 300, 5000))

    class Machine(stateful.RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            nonlocal example
            example += 1
            self.model = Model(t, f"e{example}/")
            self.store: Any = t.store

        @stateful.rule(method=st.sampled_from(METHODS), key=keys, other=keys, fill=st.integers(0, 255), size=sizes,
                       a=st.integers(0, 24), b=st.integers(0, 24))  # fmt: skip
        def call(self, method: str, key: str, other: str, fill: int, size: int, a: int, b: int) -> None:
            run(self.model.step(self.store, method, key, bytes([fill]) * size, other, a, b))

        @stateful.rule()
        def reopen(self) -> None:
            self.store = t.open()

        @stateful.rule()
        def pickled_copy(self) -> None:
            self.store = t.adopt(pickle.loads(pickle.dumps(t.store.inner)))

        @stateful.rule(method=st.sampled_from(METHODS), key=keys, fill=st.integers(0, 255), a=st.integers(0, 24))
        def in_another_process(self, method: str, key: str, fill: int, a: int) -> None:
            store = remote or t.store
            run(self.model.step(store, method, key, bytes([fill]) * 9, key, a, a + 3))

        @stateful.rule(method=st.sampled_from(("create", "put", "delete")), key=keys, fill=st.integers(0, 255),
                       delay=st.sampled_from((0.0, 0.0002, 0.001)))  # fmt: skip
        def cancelled(self, method: str, key: str, fill: int, delay: float) -> None:
            run(self.model.cancel(self.store, method, key, bytes([fill]) * 2000, delay))

        def teardown(self) -> None:
            nonlocal total
            total += self.model.steps
            run(self.model.check_all(t.store))
            run(t.store.delete_prefix(self.model.prefix))

    settings = hypothesis.settings(
        max_examples=60, stateful_step_count=60, deadline=None, database=None, print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck), verbosity=hypothesis.Verbosity.quiet,
    )  # fmt: skip

    def drive() -> None:
        turn = 0
        while total < wanted:
            machine = hypothesis.seed(t.seed + turn)(Machine)
            stateful.run_state_machine_as_test(machine, settings=settings)
            turn += 1

    try:
        await asyncio.to_thread(drive)
    except Exception as error:
        if not failures:
            raise
        failed = failures[-1]
        notes = "\n".join(getattr(error, "__notes__", [])) or "(the program did not fail in the same way again)"
        raise CaseFailed(failed.expected, f"{failed.seen}\n{notes}"[:4000]) from failed
    return total


@case("model-02", F, "A1", Certainty.STOCHASTIC, timeout=240, cost=30)
async def machine(t: Trial) -> None:
    """A state machine of at least 5,000 steps, with reopened stores, pickled copies, a second process and
    cancelled writes, agrees with a dict; what fails is shrunk to its shortest form."""
    wanted = t.rounds(5000, 5000)
    if t.facts.gap("multi_process") is None:
        async with t.child() as child:
            await child.start(serve_steps, t.url)
            total = await state_machine(t, wanted, RemoteStore(child))
            await child.send(None)
            await child.result()
    else:
        total = await state_machine(t, wanted, None)
    t.evidence.rounds = total
    t.expect(total >= wanted, f"{wanted} steps were made", total)


@case("linear-01", F, "A1", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, timeout=120, cost=8)
async def four_processes(t: Trial) -> None:
    """4 processes × 300 calls of all methods, on 12 keys at a time: each key's history is linearizable."""
    history = workload.History()
    async with t.crew(4) as crew:
        for phase in range(5):
            plan = workload.Plan(tuple(f"p{phase}/{i}" for i in range(12)), CONCURRENT, 60, t.seed % 100_000 + phase)
            await workload.run_plan(crew, t.url, plan, history, offset=4 * phase)
            t.round()
    judging.linearizable(t, history, "A1")


@case("linear-02", F, "A1", Certainty.STOCHASTIC, needs=["multi_process", "durable"], alone=True, timeout=120, cost=8)
async def with_kills(t: Trial) -> None:
    """The same while processes are killed inside their calls and reopen their stores."""
    history = workload.History()
    killed = 0
    for phase in range(8):
        plan = workload.Plan(
            tuple(f"p{phase}/{i}" for i in range(8)), CONCURRENT, 60, t.seed % 100_000 + phase, reopen_every=15
        )
        async with t.crew(4) as crew:
            started = asyncio.Event()
            running = asyncio.create_task(
                workload.run_plan(crew, t.url, plan, history, offset=4 * phase, started=started)
            )
            await asyncio.wait([running, asyncio.ensure_future(started.wait())], return_when="FIRST_COMPLETED")
            for victim in crew[:2]:
                await asyncio.sleep(0.01 + 0.02 * t.rng.random())
                if not running.done():
                    victim.signal(9)
                    killed += 1
            await running
            # What a dead writer left must be readable, and the same for everyone, from now on.
            store = t.open()
            for key in plan.keys:
                start = time.monotonic()
                found = await t.value(key, store)
                seen = None if found is None else workload.identity_of(found)
                history.ops.append(Op(99, "get", seen, start, time.monotonic(), "ok", key))
        t.round()
    t.fault(killed >= 4)
    judging.linearizable(t, history, "A1")


@case("linear-03", F, "S5", Certainty.STOCHASTIC, needs=["multi_process"], alone=True, timeout=120, cost=5)
async def listings(t: Trial) -> None:
    """Listings taken while 4 processes write agree with the writes: nothing missing, nothing gone, in order."""
    history = workload.History()
    methods = ("create", "put", "delete", "list", "list")
    async with t.crew(4) as crew:
        plan = workload.Plan(tuple(f"k/{i:02}" for i in range(30)), methods, t.rounds(150, 60), t.seed % 100_000)
        await workload.run_plan(crew, t.url, plan, history)
    if not history.listings:
        t.cannot("no listing was recorded")
    t.evidence.rounds = len(history.listings)
    judging.listings(t, history)
