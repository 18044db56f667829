"""From values to stored bytes: small ones inside records, large ones as blobs and in Ray's object store at once."""

from __future__ import annotations

import concurrent.futures
import logging
import os
from collections.abc import Sequence
from typing import Any, Final

import blake3
import ray

from perdure.errors import AlreadyExists, EncodeError, NotFound
from perdure.graph import Payload
from perdure.keys import blob as blob_key
from perdure.keys import blob_cycle
from perdure.onray import patience
from perdure.onray.dag import INLINE, Upload
from perdure.onray.loading import KnownRefs
from perdure.onray.process import PROCESS
from perdure.references import is_node

VOLATILE: Final = "volatile/"
"""How the names of values begin that are stored nowhere (``checkpoint=False``)."""


class Saver:
    """Stores values; collects the refs that it made, so that they can be used before anyone reads the store."""

    def __init__(self, store: str, cycle: int, *, persist: bool = True, known: KnownRefs | None = None) -> None:
        self.store = store
        self.cycle = cycle
        self.persist = persist
        self.known = {} if known is None else known
        self.made: list[tuple[str, ray.ObjectRef]] = []

    def value(self, value: Any, where: str, ref: ray.ObjectRef | None = None) -> Payload:
        """The stored form of a value. Refs inside it are stored first (G7)."""
        dumped = PROCESS.values.dump(value, where=where)
        if any(is_node(r) for r in dumped.refs):
            raise EncodeError(
                f"{where} holds a DAG node inside another object. Return the node itself to continue with it; to "
                "continue with several, bind them to one function and return that node."
            )
        refs = tuple(self.ref(r, where) for r in dumped.refs)
        if dumped.size <= INLINE:
            data = b"".join(dumped.buffers)
            if dumped.serializer == "pickle":
                _check_loads(data, dumped.refs, where)
            return Payload(data, None, dumped.size, refs)
        name, stored = VOLATILE + os.urandom(16).hex(), None
        if self.persist:
            name, stored = self._storing(dumped.buffers)
        made = ref if ref is not None else ray.put(value)  # beside the upload
        if stored is not None:
            stored.result()
        self.made.append((name, made))
        return Payload(None, name, dumped.size, refs)

    def ref(self, ref: ray.ObjectRef, where: str) -> Payload:
        known = self.known.get(ref.binary())
        if known is not None and all(self._may_name(blob) for blob in known[1].blobs()):
            return known[1]
        payload = self.value(ray.get(ref), f"an ObjectRef in {where}", ref)
        self.known[ref.binary()] = (ref, payload)
        return payload

    def _may_name(self, blob: str) -> bool:
        """B1: what an older cycle holds may be collected; volatile values are stored nowhere."""
        cycle = blob_cycle(blob)
        return cycle is not None and cycle >= self.cycle

    def upload(self, upload: Upload) -> Payload:
        if upload.ref is not None:
            return self.ref(upload.ref, "the arguments")
        assert upload.data is not None
        return Payload(None, self.blob([upload.data]), len(upload.data))

    def blob(self, buffers: Sequence[Any]) -> str:
        """Store the bytes under their content's name; equal content is stored once a cycle (B1)."""
        name, stored = self._storing(buffers)
        stored.result()
        return name

    def _storing(self, buffers: Sequence[Any]) -> tuple[str, concurrent.futures.Future[None]]:
        """The name, and what is done when the bytes are durable."""
        digest = blake3.blake3(max_threads=blake3.blake3.AUTO)
        for buffer in buffers:
            digest.update(buffer)
        key = blob_key(self.cycle, digest.hexdigest())
        store = PROCESS.store(self.store).store
        size = sum(memoryview(b).nbytes for b in buffers)
        if size > store.capabilities.max_value_bytes:
            raise EncodeError(
                f"a value of {size} bytes: {store.url} holds {store.capabilities.max_value_bytes} at most"
            )
        storing = patience.patiently(
            lambda: _store_blob(store, key, buffers, size, digest.digest()), f"storing {key}", patience.SAVE_PATIENCE
        )
        return key, PROCESS.begin(storing)


def _check_loads(data: bytes, refs: list[Any], where: str) -> None:
    """Small pickles are tried: many classes, exceptions above all, give pickles that nothing can load."""
    try:
        PROCESS.values.load(data, refs=refs, where=where)
    except Exception as error:
        cause = error.__cause__ or error
        raise EncodeError(
            f"{where} can be pickled, but not loaded again ({type(cause).__name__}: {cause}). Return data instead, or "
            "give its class a __reduce__ whose arguments make it again."
        ) from error


_CHUNK: Final = 8 << 20
_COMPARED: Final = 64 << 20
"""Larger values that are there already are taken for whole by their size: reading costs as much as writing."""


async def _store_blob(store: Any, key: str, buffers: Sequence[Any], size: int, digest: bytes) -> None:
    try:
        found = await store.stat(key)
        if found == size and (size > _COMPARED or await _holds(store, key, digest)):
            return
    except NotFound:
        found = None
    if found is not None:  # it is damaged, and here are the right bytes
        logging.getLogger("perdure").warning("%s is damaged in %s; it is written anew", key, store.url)
    elif size <= _CHUNK:
        # the same bytes always, so that somebody else's object is as good as mine
        try:
            await store.create(key, b"".join(buffers))
        except AlreadyExists:
            pass
        return

    async def chunks() -> Any:
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            for at in range(0, len(view), _CHUNK):
                yield view[at : at + _CHUNK]

    await store.upload(key, chunks())


async def _holds(store: Any, key: str, digest: bytes) -> bool:
    seen = blake3.blake3()
    async for chunk in store.download(key):
        seen.update(chunk)
    return bool(seen.digest() == digest)
