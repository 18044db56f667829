"""One execution of one case: its stores, its assertions, its evidence.

A case that ends without having asserted anything is an ERROR, whatever it did: ``expect`` and its relatives
are the only way to pass.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

from perdure.conformance.observed import ObservedStore, Recorder, brief
from perdure.conformance.processes import Child, Nursery
from perdure.conformance.race import Race, Round
from perdure.conformance.register import Case
from perdure.conformance.subject import Facts, Gap, StoreSubject
from perdure.errors import NotFound

RACE_BATCHES = 4
"""How often a race is run at most until its racers meet: a busy machine keeps them apart for a while."""


class CaseFailed(Exception):
    """The subject broke the rule: what was expected, what was seen, and where it helps, a timeline."""

    def __init__(self, expected: str, seen: str, timeline: list[dict[str, Any]] | None = None) -> None:
        super().__init__(f"expected: {expected}; seen: {seen}")
        self.expected = expected
        self.seen = seen
        self.timeline = timeline


class CannotJudge(Exception):
    """The suite could not decide: no overlap, fault not fired, tool missing, checker undecided."""


class NotDeclared(Exception):
    """Found while running: the case does not apply to what the subject declares."""

    def __init__(self, gap: Gap) -> None:
        super().__init__(gap.reason)
        self.gap = gap


@dataclasses.dataclass(slots=True)
class Evidence:
    """What a case did, for the report."""

    assertions: int = 0
    rounds: int = 0
    calls: int = 0
    overlap: float | None = None
    faults_planned: int = 0
    faults_fired: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)


class Judge:
    """Assertions with evidence; shared by the trials of stores, serializers, codecs and listeners."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        self.seed = seed
        self.rng = random.Random(f"{seed}:{case.id}")
        self.evidence = Evidence()

    def expect(self, ok: bool, expected: str, seen: Any = "", timeline: list[dict[str, Any]] | None = None) -> None:
        """One assertion. ``expected`` says what has to be so; ``seen`` what was there instead."""
        self.evidence.assertions += 1
        if not ok:
            raise CaseFailed(expected, seen if isinstance(seen, str) else brief(seen, 400), timeline)

    def fail(self, expected: str, seen: Any) -> NoReturn:
        self.expect(False, expected, seen)
        raise AssertionError("unreachable")

    def same(self, seen: Any, wanted: Any, what: str) -> None:
        """``seen == wanted`` in value; bytes-like values are compared by content."""
        if isinstance(wanted, bytes):
            ok = bytes(seen) == wanted if isinstance(seen, (bytes, bytearray, memoryview)) else False
        else:
            ok = seen == wanted and type(seen) is type(wanted)
        self.expect(ok, f"{what}: {brief(wanted, 300)}", brief(seen, 300))

    async def refuses(
        self, call: Awaitable[Any], error: type[BaseException] | tuple[type[BaseException], ...], what: str
    ) -> BaseException:
        """The call raises ``error``; anything else fails the case. Returns the error."""
        names = " or ".join(e.__name__ for e in (error if isinstance(error, tuple) else (error,)))
        try:
            result = await call
        except error as found:
            self.evidence.assertions += 1
            return found
        except Exception as other:
            raise CaseFailed(f"{what}: {names}", f"{type(other).__name__}: {other}") from other
        return self.fail(f"{what}: {names}", f"it returned {brief(result)}")

    def cannot(self, reason: str) -> NoReturn:
        """Give up without a verdict: ERROR."""
        raise CannotJudge(reason)

    def fault(self, fired: bool, count: int = 1) -> None:
        """Write down a planned fault and whether it was seen to fire."""
        self.evidence.faults_planned += count
        self.evidence.faults_fired += count if fired else 0

    def note(self, text: str) -> None:
        if text not in self.evidence.notes:
            self.evidence.notes.append(text)

    def round(self) -> None:
        self.evidence.rounds += 1


class Trial(Judge):
    """What a store case gets."""

    def __init__(
        self, case: Case, seed: int, subject: StoreSubject, facts: Facts, nursery: Nursery, url: str, shared: Any
    ) -> None:
        super().__init__(case, seed)
        self.subject = subject
        self.facts = facts
        self.nursery = nursery
        self.url = url
        self.shared = shared
        self.recorder = Recorder()
        self.urls: list[str] = [url]
        self.path = ""
        self._stores: list[ObservedStore] = []
        self._first: ObservedStore | None = None

    # --- stores -------------------------------------------------------------------------------------------
    @property
    def store(self) -> ObservedStore:
        """This trial's own instance at its fresh prefix."""
        if self._first is None:
            self._first = self.open()
        return self._first

    @property
    def capabilities(self) -> Any:
        return self.facts.capabilities

    def open(self, url: str | None = None) -> ObservedStore:
        """A new instance, by default at the trial's own prefix."""
        store = ObservedStore(self.subject.open(url or self.url), self.recorder)
        self._stores.append(store)
        return store

    def adopt(self, inner: Any) -> ObservedStore:
        """Observe a store that was made some other way (a pickled copy)."""
        store = ObservedStore(inner, self.recorder)
        self._stores.append(store)
        return store

    def place(self, path: str) -> str:
        """The URL of a sub-folder of the trial's prefix; it is swept with it."""
        url = self.subject.at(self.url, path)
        if url not in self.urls:
            self.urls.append(url)
        return url

    async def close_all(self) -> None:
        stores, self._stores = self._stores, []
        for store in stores:
            with contextlib.suppress(Exception):
                async with asyncio.timeout(10):
                    await store.inner.aclose()

    # --- looking ------------------------------------------------------------------------------------------
    async def value(self, key: str, store: ObservedStore | None = None) -> bytes | None:
        """The stored bytes, or None if the key is absent."""
        try:
            return bytes(await (store or self.store).get(key))
        except NotFound:
            return None

    async def size(self, key: str, store: ObservedStore | None = None) -> int | None:
        try:
            return await (store or self.store).stat(key)
        except NotFound:
            return None

    async def items(
        self, prefix: str = "", store: ObservedStore | None = None, **options: Any
    ) -> list[tuple[str, int]]:
        return [(key, size) async for key, size in (store or self.store).list(prefix, **options)]

    async def keys(self, prefix: str = "", store: ObservedStore | None = None, **options: Any) -> list[str]:
        return [key for key, _ in await self.items(prefix, store, **options)]

    async def joined(self, key: str, store: ObservedStore | None = None) -> bytes | None:
        """The value by download, or None if the key is absent."""
        try:
            return b"".join([bytes(c) async for c in (store or self.store).download(key)])
        except NotFound:
            return None

    async def expect_value(self, key: str, wanted: bytes | None, what: str, store: ObservedStore | None = None) -> None:
        """get, stat, list and download agree on this value, or on its absence."""
        found = await self.value(key, store)
        self.expect(found == wanted, f"{what}: get({key!r}) is {brief(wanted)}", brief(found))
        size = None if wanted is None else len(wanted)
        seen = await self.size(key, store)
        self.expect(seen == size and type(seen) is type(size), f"{what}: stat({key!r}) is {size}", seen)
        listed = [s for k, s in await self.items(key, store, limit=1) if k == key]
        self.expect(listed == ([] if size is None else [size]), f"{what}: list shows {key!r} with size {size}", listed)
        joined = await self.joined(key, store)
        self.expect(joined == wanted, f"{what}: download({key!r}) is {brief(wanted)}", brief(joined))

    # --- time and numbers ---------------------------------------------------------------------------------
    def rounds(self, wanted: int, minimum: int) -> int:
        """``wanted`` rounds on a local store, fewer on a slow one, never fewer than ``minimum``."""
        return max(minimum, int(wanted / max(1.0, self.facts.latency / 0.004)))

    def bytes(self, size: int) -> bytes:
        """``size`` bytes that differ from call to call (of the seed), without runs a codec could shrink."""
        return self.rng.randbytes(size)

    async def within(self, seconds: float, call: Awaitable[Any], what: str) -> Any:
        """The call ends within the time, else the case has FAILED."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                result = await call
        except TimeoutError as error:
            if time.monotonic() - started >= seconds * 0.95:
                self.evidence.assertions += 1
                raise CaseFailed(f"{what}: ends within {seconds:g} s", "it had not ended by then") from error
            raise
        self.evidence.assertions += 1
        return result

    async def eventually(self, seconds: float, question: Callable[[], Awaitable[bool]], what: str) -> None:
        """Poll ``question`` until it says yes; FAILED after ``seconds``."""
        end = time.monotonic() + seconds
        while not await question():
            self.expect(time.monotonic() < end, f"{what} within {seconds:g} s", "not so by then")
            await asyncio.sleep(0.02)
        self.evidence.assertions += 1

    async def settle(self) -> None:
        """After a client was killed: its request may still be on its way to a server (W1). Let it arrive."""
        if self.facts.uses_network:
            await asyncio.sleep(0.1 + 5 * self.facts.latency)

    # --- processes ----------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def crew(self, count: int, **options: Any) -> AsyncIterator[list[Child]]:
        async with self.nursery.crew(count, **options) as children:
            yield children

    @contextlib.asynccontextmanager
    async def child(self, **options: Any) -> AsyncIterator[Child]:
        async with self.nursery.crew(1, **options) as children:
            yield children[0]

    async def race(
        self,
        children: list[Child],
        function: Callable[..., Any],
        rounds: int,
        arguments: Callable[[int, int, int], tuple[Any, ...]],
        judge: Callable[[Round], Any],
        *,
        tasks: int = 1,
        instances: int = 1,
        need_overlap: bool = True,
    ) -> Race:
        """``rounds`` rounds of ``function(store, *arguments(round, child, task))``; ``judge`` (sync or
        async) looks at each. Where fewer than half of the rounds overlapped, as many are run again, up to
        ``RACE_BATCHES`` times in all; ERROR if the last ones did not overlap either."""
        race = await Race.start(children, self.url, function, instances)
        overlap = 0.0
        for batch in range(RACE_BATCHES):
            for number in range(batch * rounds, (batch + 1) * rounds):
                done = await race.round(lambda i, k, n=number: arguments(n, i, k), tasks)  # type: ignore[misc]
                self.evidence.rounds += 1
                self.check_foreign(done)
                verdict = judge(done)
                if asyncio.iscoroutine(verdict):
                    await verdict
            overlap = race.overlap(last=rounds)
            if overlap >= 0.5 or not need_overlap:
                break
        await race.finish()
        self.evidence.calls += race.calls
        self.evidence.overlap = min(overlap, 1.0 if self.evidence.overlap is None else self.evidence.overlap)
        if need_overlap and overlap < 0.5:
            self.cannot(
                f"the racers did not meet: in {overlap:.0%} of the last {rounds} rounds half of the "
                f"{len(children) * tasks} calls were inside at once, 50 % are needed; is the machine overloaded?"
            )
        return race

    def check_foreign(self, done: Round) -> None:
        from perdure.conformance.observed import ALLOWED

        for attempt in done.attempts:
            if attempt.error is not None and not isinstance(attempt.error, ALLOWED):
                raise CaseFailed(
                    "A4: only StoreError, ValueError, TypeError and CancelledError leave a method",
                    f"{type(attempt.error).__name__}: {attempt.error}",
                    done.timeline(),
                )

    def one_winner(self, done: Round, *, what: str = "S1") -> Any:
        """Exactly one creator returned, all others got AlreadyExists. Returns the winner's attempt."""
        from perdure.errors import AlreadyExists

        winners = done.winners()
        self.expect(
            len(winners) == 1,
            f"{what}: exactly one of {len(done.attempts)} concurrent creators returns",
            f"{len(winners)} returned; errors: "
            + ", ".join(sorted({type(a.error).__name__ for a in done.attempts if a.error is not None})),
            done.timeline(),
        )
        for attempt in done.attempts:
            self.expect(
                attempt.error is None or isinstance(attempt.error, AlreadyExists),
                f"{what}: a loser gets AlreadyExists",
                f"{type(attempt.error).__name__}: {attempt.error}",
                done.timeline(),
            )
        return winners[0]
