"""Events in the store: acknowledged once, whoever acknowledges again."""

from __future__ import annotations

import itertools

from support.doubles import DictStore

from perdure import keys
from perdure import records as r
from perdure.chain import CREATED, Chain, View
from perdure.events.mailbox import Mailbox


async def a_mailbox() -> Mailbox:
    tokens = (number.to_bytes(16, "big") for number in itertools.count(1))
    store = DictStore()
    chain = Chain(store, keys.workflow_chain("w"), "A", lambda: next(tokens), list)
    await chain.enter(CREATED, [r.Created("w", "client", 0.0)], View())
    return Mailbox(store)


async def test_e5_an_event_stays_until_it_is_acknowledged() -> None:
    mailbox, key = await a_mailbox(), keys.event("w", 0, "go")
    assert await mailbox.send("w", "go", b"1")
    assert not await mailbox.send("w", "go", b"1")  # the sender's retry
    for _ in range(2):
        assert await mailbox.get(key) == b"1"
    await mailbox.acknowledge(key, b"1")
    assert await mailbox.waiting() == []
    await mailbox.acknowledge(key, b"1")


async def test_a_late_second_acknowledgement_leaves_the_next_event() -> None:
    mailbox, key = await a_mailbox(), keys.event("w", 0, "go")
    await mailbox.send("w", "go", b"1")
    await mailbox.acknowledge(key, b"1")
    await mailbox.send("w", "go", b"2")
    await mailbox.acknowledge(key, b"1")
    assert await mailbox.get(key) == b"2"
