"""Commands that need only the store: read any workflow, cancel or delete one that nobody drives. No cluster, no Ray.

Owns a coordinator without a runner. Only read from, it writes nothing and registers nowhere; to write it registers
and announces like any other (L1, L2), so whatever it leaves behind is settled by the next one.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from perdure.care.opening import NoRunner, whole_url
from perdure.clock import SystemClock, host_facts
from perdure.coordinator import Coordinator
from perdure.errors import FormatError, StoreError
from perdure.guarded_store import GuardedStore
from perdure.inspection import description_of
from perdure.keys import FORMAT
from perdure.reading import Answer, Listed
from perdure.runner import Context
from perdure.state import State
from perdure.status import WorkflowStatus
from perdure.store import open_store
from perdure.store_format import refuse_foreign
from perdure.value_settings import for_tools

T = TypeVar("T")

FIRST_ANSWER: Final = 30.0
"""Seconds without an answer from the store after which a reading command gives up."""


class StoreSide:
    """The store at ``url``, looked at from outside of any cluster. One call at a time."""

    def __init__(self, url: str) -> None:
        self.url = whole_url(url)
        self.settings = for_tools(self.url)

    def list_all(self) -> list[tuple[str, Listed]]:
        async def ask(coordinator: Coordinator) -> list[tuple[str, Listed]]:
            listed = await coordinator.list_all()
            return list(listed.items())

        return self._read(ask)

    def status(self, workflow_id: str) -> WorkflowStatus:
        return self._read(lambda c: c.status(workflow_id))

    def describe(self, workflow_id: str) -> dict[str, Any]:
        async def ask(coordinator: Coordinator) -> dict[str, Any]:
            status = await coordinator.status(workflow_id)
            state = await coordinator.read(workflow_id, keep=True)
            return description_of(state, status, workflow_id, [], None)

        return self._read(ask)

    def explain(self, workflow_id: str) -> dict[str, Any]:
        import importlib.metadata

        from perdure import code_names
        from perdure.explaining import explanation, facts_of

        facts = self._read(lambda c: facts_of(c, c.store, workflow_id))
        code = {f.name: code_names.digest_here(f.name) for f in facts.functions}
        here = importlib.metadata.version("ray")  # not imported for its number alone
        return explanation(facts, python=code_names.PYTHON, ray=here, package=None, code=code)

    def state(self, workflow_id: str) -> State:
        return self._read(lambda c: c.read(workflow_id, keep=True))

    def answer(self, workflow_id: str, task_id: str | None) -> Answer:
        """The value or failure; waits while a cluster drives the workflow."""
        return self._read(lambda c: c.wait(workflow_id, task_id), patient=True)

    def cancel(self, workflow_id: str) -> WorkflowStatus:
        return self._write(lambda c: c.cancel(workflow_id, Context()))

    def delete(self, workflow_id: str) -> None:
        self._write(lambda c: c.delete(workflow_id))

    # -- how -----------------------------------------------------------------------------------------------------

    def _read(self, ask: Callable[[Coordinator], Awaitable[T]], *, patient: bool = False) -> T:
        async def whole() -> T:
            async with self._coordinator() as coordinator:
                await _check_ours(coordinator.store)
                return await ask(coordinator)

        async def limited() -> T:
            if patient:
                return await whole()
            try:
                return await asyncio.wait_for(whole(), FIRST_ANSWER)
            except TimeoutError:
                raise StoreError(f"{open_store(self.url).url} did not answer within {FIRST_ANSWER:g} s") from None

        return asyncio.run(limited())

    def _write(self, ask: Callable[[Coordinator], Awaitable[T]]) -> T:
        async def whole() -> T:
            async with self._coordinator() as coordinator:
                await _check_ours(coordinator.store, sealed=self.settings.trust == "signed")
                await coordinator.start()
                try:
                    return await ask(coordinator)
                finally:
                    await coordinator.stop()

        return asyncio.run(whole())

    @asynccontextmanager
    async def _coordinator(self) -> AsyncIterator[Coordinator]:
        store = open_store(self.url)
        try:
            rng = random.Random(os.urandom(32))
            guarded = GuardedStore(store, seal=self.settings.seal())
            yield Coordinator(guarded, NoRunner(), SystemClock(), rng, host=host_facts())
        finally:
            await store.aclose()


async def _check_ours(store: Any, *, sealed: bool | None = None) -> None:
    """A place that no cluster has used yet is refused, not marked as ours."""
    if not await refuse_foreign(store, sealed=sealed):
        raise FormatError(
            f"{store.url} is not a Perdure store (yet): it has no object {FORMAT!r}. Check the URL; the first "
            "workflow.init() or `perdure run` makes the store."
        )
