"""Events that the outside world leaves in the store, addressed to a workflow and a name.

Owns their bytes, sending and receiving. An event is an object of its own, made with create: it is durable before its
sender is answered, and two workflows that wait for the same name never meet. It belongs to one life of the workflow
(E3) and stays until it is acknowledged, so a poll consumes nothing (E5). No HTTP here, and no Ray.
"""

from __future__ import annotations

import os
from typing import Final, Protocol

from perdure import keys
from perdure import records as r
from perdure.chain import Chain, ChainStore
from perdure.errors import AlreadyExists, NotFound, WorkflowExistsError, WorkflowNotFoundError
from perdure.segment import NO_TOKEN, Header, decode_body, encode_body
from perdure.state import compact

LIMIT: Final = 1 << 20
"""Bytes of an event, at most."""


class MailStore(ChainStore, Protocol):
    """What a mailbox needs of a store; `guarded_store.GuardedStore` is one."""


class Mailbox:
    """The events of one store."""

    def __init__(self, store: MailStore) -> None:
        self.store = store

    async def send(self, workflow_id: str, name: str, data: bytes) -> bool:
        """Leave an event; it is durable on return. False: the same one lies there already (the sender's retry).

        Raises:
            ValueError: a wrong id, a name that is not 1 to 200 printable characters, more than `LIMIT` bytes.
            WorkflowNotFoundError: no such workflow, or it has ended for good.
            WorkflowExistsError: another event of this name has not been taken yet.
        """
        keys.check_workflow_id(workflow_id)
        check_name(name)
        if len(data) > LIMIT:
            raise ValueError(f"an event may have {LIMIT} bytes, this one has {len(data)}: send a reference to it")
        birth = await self._life(workflow_id)
        key, token = keys.event(workflow_id, birth, name), os.urandom(16)
        try:
            await self.store.create_once(key, _encode(data, token), token)
        except AlreadyExists:
            if bytes(decode_body(await self.store.get(key), key)) == data:
                return False
            raise WorkflowExistsError(
                f"workflow {workflow_id!r} has not taken the last event {name!r} yet, and this is another one. Send it "
                "again later, or under a name of its own.",
                workflow_id=workflow_id,
            ) from None
        return True

    async def _life(self, workflow_id: str) -> int:
        chain = Chain(self.store, keys.workflow_chain(workflow_id), "", lambda: NO_TOKEN, compact)
        view = await chain.read()
        if view.deleted:
            raise WorkflowNotFoundError(f"workflow {workflow_id!r} is not in this store", workflow_id=workflow_id)
        if any(isinstance(record, r.Succeeded | r.Canceled) for record in view.records):
            raise WorkflowNotFoundError(
                f"workflow {workflow_id!r} has ended: it waits for nothing any more", workflow_id=workflow_id
            )
        return view.birth

    async def waiting(self) -> list[str]:
        """Keys of all events that nobody has acknowledged yet."""
        return await self.store.list_keys(keys.EVENTS)

    async def get(self, key: str) -> bytes:
        return bytes(decode_body(await self.store.get(key), key))

    async def acknowledge(self, key: str, data: bytes) -> None:
        """The event of these bytes is durable in its workflow. Silent if it was acknowledged before; what was sent
        under its name since then stays.
        """
        try:
            found = await self.get(key)
        except NotFound:
            return
        if found == data:
            await self.store.delete(key)


def check_name(name: object) -> str:
    if not isinstance(name, str) or not 1 <= len(name) <= 200 or not name.isprintable():
        raise ValueError(f"event_key={name!r:.200}: expected 1 to 200 printable characters")
    return name


def _encode(data: bytes, token: bytes) -> bytes:
    return encode_body(Header("event", -1, -1, ""), data, token=token, prev=NO_TOKEN)
