"""A store as the journal uses it: every create has a known answer.

Owns retries above the store's own, the comparison of writer tokens, and the probe that refuses stores whose
create is not exclusive. It reads no clock and draws no random number but through what it is given, so it runs
under virtual time.

    W2/J13  on every AlreadyExists the stored object's token is read: mine is success, else, or if it is gone,
    lost W1/J13  an unknown outcome is repeated with the same bytes until it is known, or the caller is
    cancelled any other error means that nothing was stored, and goes to the caller at once

The idea of a write id that is stored with the object is from SlateDB (RetryingObjectStore).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, TypeVar

from perdure.backoff import Backoff
from perdure.errors import AlreadyExists, CorruptedError, NotFound, StoreError, StoreUnavailable
from perdure.seal import Seal, strip
from perdure.store import BytesLike, Chunks, Data, Store

T = TypeVar("T")
Sleep: TypeAlias = Callable[[float], Awaitable[None]]
Item: TypeAlias = tuple[str, BytesLike, bytes]
"""Key, data, and the 16-byte writer token that stands in the data."""

TOKEN_SIZE: Final = 16
TOKEN_AT: Final = 8
PROBE_PREFIX: Final = "perdure-probe/"
BLOBS: Final = "blobs/"
_PROBE_RACERS = 8


class GuardedStore:
    """Wraps a store; ``store`` is the one wrapped.

    ``token_at`` is the token's offset in every object created here. ``sleep`` and ``rng`` time the retries,
    which go on until the caller is cancelled. ``trouble`` is the newest failure while calls wait for the
    store, and None when it answers. With a ``seal``, journal objects are signed when they are created and verified when
    they are read; without one, signatures are ignored. Where the store's lists may be incomplete, what a list says is
    needless stays (append-only): creates alone then keep the chains safe.
    """

    def __init__(
        self,
        store: Store,
        *,
        token_at: int = TOKEN_AT,
        sleep: Sleep = asyncio.sleep,
        rng: random.Random | None = None,
        seal: Seal | None = None,
    ) -> None:
        self.store = store
        self.seal = seal
        self.trouble: StoreError | None = None
        self._token_at = token_at
        self._sleep = sleep
        self._rng = rng or random.Random()

    @property
    def url(self) -> str:
        return self.store.url

    async def create_once(self, key: str, data: BytesLike, token: bytes) -> None:
        """Create the key and know it. AlreadyExists: the key holds, or held, somebody else's object.

        Other StoreErrors (a full disk, missing rights) mean that nothing was stored.
        """
        await self._create_once(key, self._close(key, data), token, doubt=False)

    async def _create_once(self, key: str, data: BytesLike, token: bytes, *, doubt: bool) -> None:
        """``doubt``: an earlier attempt may still land, so no failure of a later one ends the matter
        (J13).
        """
        waits = Backoff(self._rng)
        while True:
            try:
                await self.store.create(key, data)
            except AlreadyExists as e:
                if await self._is_mine(key, token):
                    return
                raise e
            except StoreError as e:
                doubt = doubt or isinstance(e, StoreUnavailable)
                if not doubt:
                    raise
                await self._wait(waits, e)
            else:
                self.trouble = None
                return

    async def create_many_once(self, items: Sequence[Item]) -> list[StoreError | None]:
        """``create_once`` of each; aligned: None = created, or the error. One batch, then stragglers
        alone.
        """
        if self.seal is not None:
            items = [(key, self._close(key, data), token) for key, data, token in items]
        try:
            results = await self.store.create_many([(key, data) for key, data, _ in items])
        except StoreUnavailable as e:
            results = [e] * len(items)
        doubtful = [n for n, result in enumerate(results) if isinstance(result, (AlreadyExists, StoreUnavailable))]
        if not doubtful:
            self.trouble = None
            return results
        answers = await asyncio.gather(*(self._settle(items[n], results[n]) for n in doubtful))
        for n, answer in zip(doubtful, answers, strict=True):
            results[n] = answer
        return results

    async def _settle(self, item: Item, result: StoreError | None) -> StoreError | None:
        key, data, token = item
        try:
            if isinstance(result, AlreadyExists):
                return None if await self._is_mine(key, token) else result
            await self._create_once(key, data, token, doubt=True)
        except StoreError as e:
            return e
        return None

    async def _is_mine(self, key: str, token: bytes) -> bool:
        first = self._token_at
        try:
            stored = await self.get(key, first, first + TOKEN_SIZE)
        except NotFound:
            return False  # it was there and is gone: whoever trims or deletes has gone on without this writer
        return bytes(stored) == token

    async def get(self, key: str, start: int | None = None, end: int | None = None) -> Data:
        """``Store.get``, waiting out failures of the store. SignatureError, CorruptedError: see `Seal.open`."""
        data = await self._insist(lambda: self.store.get(key, start, end))
        return data if start is not None or end is not None else self._open(key, data)

    async def get_many(self, keys: Sequence[str]) -> list[Data | StoreError | CorruptedError]:
        """``Store.get_many``; what could not be had is asked for again. What has no valid signature is an error of its
        own: it may be one that nobody needs."""
        results: list[Any] = await self._insist(lambda: self.store.get_many(keys))
        missed = [n for n, result in enumerate(results) if isinstance(result, StoreUnavailable)]
        for n, found in enumerate(results):
            try:
                if n in missed:
                    results[n] = await self.get(keys[n])
                elif not isinstance(found, StoreError):
                    results[n] = self._open(keys[n], found)
            except (StoreError, CorruptedError) as e:
                results[n] = e
        return results

    def _close(self, key: str, data: BytesLike) -> BytesLike:
        return data if self.seal is None or key.startswith(BLOBS) else self.seal.close(key, data)

    def _open(self, key: str, data: Data) -> Data:
        return strip(data) if self.seal is None else self.seal.open(key, data)

    async def stat(self, key: str) -> int:
        """``Store.stat``, waiting out failures of the store."""
        return await self._insist(lambda: self.store.stat(key))

    async def list_keys(self, prefix: str, start_after: str | None = None, limit: int | None = None) -> list[str]:
        """The keys of ``Store.list``, complete: after a failure it begins anew."""
        return [key for key, _ in await self.list_sizes(prefix, start_after, limit)]

    async def list_sizes(
        self, prefix: str, start_after: str | None = None, limit: int | None = None
    ) -> list[tuple[str, int]]:
        """(key, size) of ``Store.list``, complete: after a failure it begins anew."""

        async def whole() -> list[tuple[str, int]]:
            return [item async for item in self.store.list(prefix, start_after, limit)]

        return await self._insist(whole)

    async def put(self, key: str, data: BytesLike) -> None:
        """``Store.put``, repeated until done; for identical bytes only (W4)."""
        await self._insist(lambda: self.store.put(key, data))

    async def upload(self, key: str, chunks: Callable[[], Chunks]) -> None:
        """``Store.upload``, repeated until done; ``chunks()`` gives the value anew. Content-named
        keys only.
        """
        await self._insist(lambda: self.store.upload(key, chunks()))

    async def delete(self, key: str) -> None:
        """``Store.delete``, repeated until done."""
        await self._insist(lambda: self.store.delete(key))

    async def delete_many(self, keys: Sequence[str]) -> None:
        """``Store.delete_many``, repeated until done. Nothing where lists may be incomplete."""
        if not self.store.capabilities.complete_lists:
            return
        await self._insist(lambda: self.store.delete_many(keys))

    async def delete_prefix(self, prefix: str) -> int:
        """``Store.delete_prefix``, repeated until done; the count of the last attempt. Nothing where lists may
        be incomplete.
        """
        if not self.store.capabilities.complete_lists:
            return 0
        return await self._insist(lambda: self.store.delete_prefix(prefix))

    async def _insist(self, call: Callable[[], Awaitable[T]]) -> T:
        waits = Backoff(self._rng)
        while True:
            try:
                result = await call()
            except StoreUnavailable as e:
                await self._wait(waits, e)
            else:
                self.trouble = None
                return result

    async def _wait(self, waits: Backoff, error: StoreError) -> None:
        self.trouble = error
        await self._sleep(waits.next())


@dataclass(frozen=True, slots=True)
class ProbeReport:
    """What the start-up probe learned: which server answers, and warnings that say what to do."""

    server: str
    warnings: tuple[str, ...]


async def probe(
    store: Store, *, timeout: float = 10.0, tokens: Callable[[], bytes] = lambda: os.urandom(16)
) -> ProbeReport:
    """Try the one promise that correctness rests on, and the store's own check of its settings.

    Creates one key twice, then lets eight creators race for another, reads back, lists, and cleans up.
    Raises StoreError for a store in which two creators succeed or a settings check fails, StoreUnavailable if
    there is no whole answer within ``timeout`` seconds.
    """
    async with answering(store, timeout):
        warnings = list(await store.check())
        await _probe_create(store, f"{PROBE_PREFIX}{tokens().hex()}", tokens)
    if not store.capabilities.complete_lists:
        warnings.append(
            f"{store.url} may list late what has just been written: nothing is ever deleted there (append-only), "
            "neither old segments nor garbage. Watch its size, or copy what lives to another store"
        )
    return ProbeReport(store.server(), tuple(warnings))


@contextlib.asynccontextmanager
async def answering(store: Store, timeout: float = 10.0) -> AsyncIterator[None]:
    """Raises StoreUnavailable where what is inside takes longer than ``timeout`` seconds: for the first calls, whose
    address may be wrong.
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as e:
        trouble = f": {store.trouble}" if store.trouble is not None else ""
        raise StoreUnavailable(
            f"{store.url} gave no whole answer within {timeout:g} s{trouble}. Check the address and that the "
            "server runs",
            url=store.url,
            operation="probe",
        ) from e


async def _probe_create(store: Store, prefix: str, tokens: Callable[[], bytes]) -> None:
    twice, race = f"{prefix}/twice", f"{prefix}/race"
    try:
        first = tokens()
        try:
            await store.create(twice, first)
        except AlreadyExists:
            pass  # its own lost answer (W2); the get below tells
        try:
            await store.create(twice, tokens())
        except AlreadyExists:
            pass
        else:
            _refuse(store, "a second create of one key succeeded: it ignores the condition")
        if bytes(await store.get(twice)) != first:
            _refuse(store, "a refused create changed the value")

        values = [tokens() for _ in range(_PROBE_RACERS)]
        answers = await asyncio.gather(*(store.create(race, v) for v in values), return_exceptions=True)
        winners = [v for v, answer in zip(values, answers, strict=True) if answer is None]
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, AlreadyExists):
                raise answer
        stored = bytes(await store.get(race))
        if len(winners) > 1:
            _refuse(store, f"{len(winners)} of {len(values)} concurrent creators of one key succeeded")
        if stored not in (winners or values):
            _refuse(store, "the value is not the winner's")
        listed = [key async for key, _ in store.list(f"{prefix}/")]
        if listed != [race, twice] and store.capabilities.complete_lists:
            _refuse(store, f"the list after two creates is wrong: {listed}")
    finally:
        for key in (twice, race):
            try:
                await store.delete(key)
            except StoreError:
                pass  # the first error counts; what is left lies under perdure-probe/


def _refuse(store: Store, why: str) -> None:
    raise StoreError(
        f"{store.url} ({store.server()}) can't hold workflows: {why}. Two clusters could both own one "
        "workflow. Use a server with conditional writes (If-None-Match, ifGenerationMatch), or file:// on a local disk",
        url=store.url,
        operation="probe",
    )
