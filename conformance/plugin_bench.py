"""The benches of part D: serializers, codecs and listeners, which need no place to write to."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from perdure.conformance.observed import Recorder, from_subject
from perdure.conformance.plugin_subject import ListenerSubject, subject_of
from perdure.conformance.processes import Child, Nursery
from perdure.conformance.register import Case, Kind
from perdure.conformance.runner import OutOfReach
from perdure.conformance.store_bench import plugin_of
from perdure.conformance.subject import Gap
from perdure.conformance.trial import CaseFailed, Judge, NotDeclared


class Origin(Recorder):
    """Tells whether an exception that no case foresaw came from the plugin."""

    def came_from_store(self, error: BaseException | None) -> bool:
        return from_subject(error)


class PluginTrial(Judge):
    """What a case of part D gets: ``subject``, fresh instances by ``make()``, and child processes."""

    def __init__(self, case: Case, seed: int, subject: Any, nursery: Nursery) -> None:
        super().__init__(case, seed)
        self.subject = subject
        self.nursery = nursery
        self.recorder = Origin()

    def make(self) -> Any:
        """A new instance of what is under test."""
        return self.subject.make()

    def lacks(self, kind: str, name: str, reason: str) -> None:
        """Found while running: this question has no meaning for the subject."""
        raise NotDeclared(Gap(kind, name, reason))

    def hook(self, name: str) -> Any:
        """The author's hook; NOT_DECLARED without it."""
        found = getattr(self.subject, name, None)
        if found is None:
            raise NotDeclared(Gap("hook", name, f"the hook `{name}` is not offered"))
        return found

    def raises(
        self, call: Callable[[], Any], errors: type[BaseException] | tuple[type[BaseException], ...], what: str
    ) -> BaseException:
        """The synchronous sibling of ``refuses``."""
        names = " or ".join(e.__name__ for e in (errors if isinstance(errors, tuple) else (errors,)))
        try:
            result = call()
        except errors as error:
            self.evidence.assertions += 1
            return error
        except Exception as other:
            raise CaseFailed(f"{what}: {names}", f"{type(other).__name__}: {other}") from other
        return self.fail(f"{what}: {names}", f"it returned {result!r:.200}")

    async def within(self, seconds: float, call: Awaitable[Any], what: str) -> Any:
        timer = asyncio.timeout(seconds)
        try:
            async with timer:
                result = await call
        except TimeoutError as error:
            if timer.expired():
                self.evidence.assertions += 1
                raise CaseFailed(f"{what} within {seconds:g} s", "not by then") from error
            raise
        self.evidence.assertions += 1
        return result

    @contextlib.asynccontextmanager
    async def child(self, **options: Any) -> Any:
        async with self.nursery.crew(1, **options) as children:
            yield children[0]

    async def in_child(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run an async function in a child of its own; its first arguments are the context and the subject."""
        child: Child
        async with self.child(**options) as child:
            return await child.call(function, self.subject, *args)


class PluginBench:
    """The bench of a serializer, codec or listener."""

    def __init__(self, kind: Kind, subject: Any, *, seed: int, command: str = "") -> None:
        self.kind = kind
        self.subject = subject
        self.seed = seed
        self._command = command
        modules = [f"perdure.conformance.cases.{m}" for m in MODULES[kind]]
        self.nursery = Nursery(subject, modules)
        self._plugin = ""
        self._name = ""

    async def prepare(self, cases: Sequence[Case], deadline: float) -> None:
        try:
            made = self.subject.make()
        except Exception as error:
            raise OutOfReach(f"no instance can be made: {type(error).__name__}: {error}") from error
        self._plugin = plugin_of(made)
        self._name = str(getattr(made, "id", type(made).__name__))

    def gap(self, need: str) -> Gap | None:
        subject = self.subject
        if not isinstance(subject, ListenerSubject):
            return None
        if need == "queues":
            return None if subject.queues else Gap("capability", need, "one event of a topic waits at a time")
        if need == "event":
            need = "publish" if subject.source else "due"
        elif not subject.source:
            return Gap("capability", "source", "its events come by themselves: nobody can make one happen")
        return None if subject.has(need) else Gap("hook", need, f"the hook `{need}` is not offered")

    def trial(self, case: Case) -> PluginTrial:
        return PluginTrial(case, self.seed, self.subject, self.nursery)

    async def after(self, trial: Judge) -> None:
        return

    async def finish(self) -> list[str]:
        return []

    def shut_down(self) -> None:
        self.nursery.shut_down()

    def describe(self) -> dict[str, Any]:
        return {"subject": self._name, "plugin": self._plugin}

    def command(self, case: Case) -> str:
        if not self._command:
            return f"run_sync(…, level='full', only={case.id!r}, seed={self.seed})"
        return f"{self._command} --level full -k {case.id} --seed {self.seed}"

    def scale(self) -> float:
        try:
            return min(20.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))
        except OSError:
            return 1.0


MODULES = {
    Kind.SERIALIZER: ("serializer", "serializer_hostile"),
    Kind.CODEC: ("codec",),
    Kind.LISTENER: ("listener", "listener_faults"),
}


def plugin_bench(kind: Kind, target: Any, *, seed: int, command: str = "") -> PluginBench:
    """A bench for a name, ``module:Class``, class, callable or subject. Raises ``ValueError``."""
    return PluginBench(kind, subject_of(kind, target), seed=seed, command=command)
