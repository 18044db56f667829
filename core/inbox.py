"""Inboxes and bells: how others reach the owner of a workflow (E1-E4, E6).

Owns the bytes of a slot and of a bell, sending, and the watch over both. An inbox belongs to one life (its key carries
the birth), its slots are never removed while that lasts, and a bell is only a hint to look.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from perdure import keys
from perdure import records as r
from perdure import scheduler as s
from perdure.clock import Clock
from perdure.drive import Drive
from perdure.errors import AlreadyExists, NotFound, PerdureError
from perdure.journal import JournalStore
from perdure.segment import NO_TOKEN, Header, decode_body, encode_body

logger = logging.getLogger("perdure")

BELL_SECONDS: Final = 1.0
FORGOTTEN_BELL: Final = 60
"""A bell that rang for so many looks and that nobody answered is deleted."""
INBOX_SECONDS: Final = 300.0


def encode_inbox(message: r.Message, token: bytes) -> bytes:
    """An inbox slot: a segment's fixed header (so the token has its place), and the message as its body."""
    return encode_body(Header("inbox", -1, -1, ""), r.encode_message(message), token=token, prev=NO_TOKEN)


def decode_inbox(data: bytes | memoryview, key: str) -> r.Message:
    return r.decode_message(decode_body(data, key))


def encode_bell(workflow_id: str, token: bytes) -> bytes:
    return encode_body(Header("bell", -1, -1, ""), workflow_id.encode(), token=token, prev=NO_TOKEN)


def decode_bell(data: bytes | memoryview, key: str) -> str:
    return bytes(decode_body(data, key)).decode()


class Inboxes:
    """The inboxes of the workflows that this process drives, and sending to others'."""

    def __init__(
        self, store: JournalStore, clock: Clock, tokens: Callable[[], bytes], drives: dict[str, Drive]
    ) -> None:
        self.store = store
        self.clock = clock
        self.tokens = tokens
        self.drives = drives
        self._unread: dict[str, None] = {}  # ids whose inbox is to be looked into

    async def send_cancel(self, workflow_id: str, birth: int) -> None:
        """E1: the next inbox slot of this life; then a bell."""
        token = self.tokens()
        data = encode_inbox(r.Cancel(self.clock.wall()), token)
        while True:
            taken = await self.store.list_keys(keys.inbox(workflow_id, birth))
            number = max((keys.segment_number(k) or 0 for k in taken), default=-1) + 1
            try:
                await self.store.create_once(keys.inbox_slot(workflow_id, birth, number), data, token)
                break
            except AlreadyExists:
                continue
        bell = encode_bell(workflow_id, token)
        await self.store.create_once(keys.bell(token.hex()), bell, token)

    async def look(self, workflow_id: str) -> None:
        """After an entry: what was sent before it counts too."""
        self._unread[workflow_id] = None
        await self._read()

    async def _look(self, drive: Drive) -> None:
        names = await self.store.list_keys(keys.inbox(drive.workflow_id, drive.birth))
        for name in names:
            number = keys.segment_number(name)
            if number is None or number < drive.inbox_next:
                continue
            drive.inbox_next = number + 1
            message = decode_inbox(await self.store.get(name), name)
            if isinstance(message, r.Cancel):
                drive.handle(s.CancelAsked(message.time))

    async def _read(self) -> None:
        """Look into the inboxes that are due; what can't be read now is due again."""
        for workflow_id in list(self._unread):
            del self._unread[workflow_id]
            drive = self.drives.get(workflow_id)
            if drive is None:
                continue
            try:
                await self._look(drive)
            except PerdureError as error:
                self._unread[workflow_id] = None
                logger.warning("the inbox of workflow %r can't be read: %s", workflow_id, error)

    async def watch(self) -> None:
        """E6: a bell is a hint to look into an inbox; whoever handles it deletes it. Inboxes are looked into
        without one too, from time to time."""
        rung: dict[str, int] = {}
        looked = self.clock.boot()
        while True:
            await asyncio.sleep(BELL_SECONDS)
            if not self.drives:
                continue
            try:
                names = await self.store.list_keys(keys.BELLS)
                rung = {name: rung.get(name, 0) + 1 for name in names}
                for name in names:
                    workflow_id = decode_bell(await self.store.get(name), name)
                    if workflow_id in self.drives:
                        self._unread[workflow_id] = None
                        await self._read()
                    if workflow_id in self.drives or rung[name] > FORGOTTEN_BELL:
                        await self.store.delete(name)
            except NotFound:
                continue
            except PerdureError as error:
                logger.warning("the bells can't be read: %s", error)
            if self.clock.boot() - looked > INBOX_SECONDS:
                looked = self.clock.boot()
                self._unread |= dict.fromkeys(self.drives)
            await self._read()
