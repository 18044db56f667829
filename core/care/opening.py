"""How store care opens a store, and the coordinator through which it writes there.

Owns the one place where a store's seal is chosen. A tool that enters workflows registers and announces like any other
coordinator (L1, L2), so what it leaves behind when it is killed is settled by the next one; it drives nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from perdure.clock import SystemClock, host_facts, provably_gone
from perdure.coordinator import Coordinator
from perdure.errors import FormatError, NotFound, StoreError
from perdure.graph import Payload
from perdure.guarded_store import GuardedStore, probe
from perdure.keys import FORMAT
from perdure.runner import Job
from perdure.scheduler import Result
from perdure.seal import Seal
from perdure.store import Store, open_store
from perdure.store_format import check_format, refuse_foreign
from perdure.value_settings import TRUST_VARIABLE, for_tools

FIRST_ANSWER: Final = 30.0
"""Seconds without an answer from a store after which a command gives up."""


class NoRunner:
    """Runs nothing: attempts that are asked of it never begin."""

    async def run(self, job: Job) -> Result:
        await asyncio.Event().wait()
        raise AssertionError

    async def poll(self, job: Job) -> Result:
        return await self.run(job)

    async def acknowledge(self, job: Job, payload: Payload) -> None:
        raise StoreError("the listener's code can't be loaded by the command line")

    def none(self) -> Payload:
        return Payload(None, None, 0)

    async def gone(self, host: dict[str, str]) -> bool:
        return provably_gone(host)

    def forget(self, workflow_id: str) -> None:
        pass


def whole_url(url: str) -> str:
    """A relative folder is meant as seen from here, as in `workflow.init`."""
    return url if "://" in url else f"file://{Path(url).expanduser().absolute()}"


@asynccontextmanager
async def opened(url: str, *, make: bool = False, unsigned: bool = False) -> AsyncIterator[GuardedStore]:
    """The store at ``url``, ready to read and write; sealed stores with their seal. ``make``: an empty place becomes a
    store, as by the first `workflow.init` (sealed if PERDURE_TRUST is "signed"). ``unsigned``: where it has no
    signatures, the user vouches for it.

    Raises:
        FormatError: not a Perdure store, a newer one, or one without signatures where PERDURE_TRUST is "signed".
        ValueError: a sealed store, and no keys.
        StoreError: no answer, or a store that can't hold workflows.
    """
    url = whole_url(url)
    store = open_store(url)
    try:
        yield await _ready(store, url, make, unsigned)
    finally:
        await store.aclose()


async def _ready(store: Store, url: str, make: bool, unsigned: bool) -> GuardedStore:
    guarded = GuardedStore(store)
    try:
        async with asyncio.timeout(FIRST_ANSWER):
            found: bytes | None = bytes(await guarded.get(FORMAT))
    except TimeoutError:
        raise StoreError(f"{store.url} did not answer within {FIRST_ANSWER:g} s: {guarded.trouble or ''}") from None
    except NotFound:
        found = None
    if found is None:
        if not make:
            raise FormatError(
                f"{store.url} is not a Perdure store (yet): it has no object {FORMAT!r}. Check the URL; the first "
                "workflow.init() or `perdure run` makes the store."
            )
        settings = for_tools(url)
        sealed = settings.trust == "signed"
        await refuse_foreign(guarded, sealed=sealed)
        await probe(store)
        guarded.seal = settings.seal()
        await check_format(guarded, sealed=sealed)
        return guarded
    await refuse_foreign(guarded)
    guarded.seal = _seal(store, url, found, unsigned)
    return guarded


def _seal(store: Store, url: str, found: bytes, unsigned: bool) -> Seal | None:
    settings = for_tools(url)
    if not json.loads(found).get("sealed"):
        if settings.trust == "signed" and not unsigned:  # the mark of a sealed store may have been taken off
            raise FormatError(
                f"{store.url} is not sealed: what it holds was written without signatures, which {TRUST_VARIABLE}="
                "signed refuses. If you vouch for it: `perdure copy --unsigned-source` signs it anew in another store."
            )
        return None
    keys = settings.keys
    if not keys:
        raise ValueError(f"{store.url} is sealed: its journal is signed. Give --keys FILE, or set PERDURE_KEYS")
    return Seal(keys)


class Hand:
    """A coordinator that is registered at its first write, and says so when it goes."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.reading = coordinator
        self._started = False
        self._starting = asyncio.Lock()

    async def writing(self) -> Coordinator:
        async with self._starting:
            if not self._started:
                await self.reading.start()
                self._started = True
        return self.reading

    @property
    def registered(self) -> str | None:
        return self.reading.id if self._started else None

    async def aclose(self) -> None:
        if self._started:
            await self.reading.stop()


@asynccontextmanager
async def hand(store: GuardedStore) -> AsyncIterator[Hand]:
    """A hand in an opened store."""
    rng = random.Random(os.urandom(32))
    held = Hand(Coordinator(store, NoRunner(), SystemClock(), rng, host=host_facts()))
    try:
        yield held
    finally:
        await held.aclose()
