"""Subjects of part D: how to make the serializer, codec or listener under test, and what its author offers.

All are picklable; child processes make their own instances.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

from perdure.conformance.plugins import load_plugin
from perdure.conformance.register import Kind


@dataclasses.dataclass
class SerializerSubject:
    """``make`` is the class (or a picklable callable). ``samples``: values of the serializer's own types.

    ``golden``: ``(buffers, value)`` written by earlier versions. ``others``: buffers of other serializers.
    """

    make: Callable[[], Any]
    samples: Sequence[Any] = ()
    golden: Sequence[tuple[Sequence[bytes], Any]] = ()
    equal: Callable[[Any, Any], bool] | None = None


@dataclasses.dataclass
class CodecSubject:
    """``make`` is the class or a picklable callable. The rest is for authenticated codecs: ``other_key`` makes
    one with another key, ``rotated`` one that writes with a new key and reads both, ``secret`` is the key."""

    make: Callable[[], Any]
    other_key: Callable[[], Any] | None = None
    rotated: Callable[[], Any] | None = None
    secrets: Sequence[bytes] = ()


class ListenerSubject:
    """A listener and its source. Subclass it; ``publish`` is the one hook without which little can be asked.

    ``order``: ``none`` or ``fifo``. ``fan_out``: what two polls with equal arguments get, ``each`` the event
    or ``one`` of them. ``acknowledges``: whether an acknowledged event is never delivered again (a timer's is).
    ``queues``: whether several events of one topic wait side by side (else one, and ``publish`` waits for its turn).
    ``source``: False where nobody can make an event happen, because time alone does: then ``due`` is asked for.
    """

    order: str = "none"
    fan_out: str = "each"
    acknowledges: bool = True
    queues: bool = True
    source: bool = True
    secret: str | None = None
    bad_arguments: Sequence[tuple[Any, ...]] = ()

    def make(self) -> Any:
        """A new listener, in whichever process."""
        raise NotImplementedError

    def arguments(self, topic: str) -> tuple[Any, ...]:
        """What ``poll_for_event`` gets to wait for the topic's events."""
        raise NotImplementedError

    # Hooks, each optional:
    #   async publish(topic, payload)   make an event with this payload happen
    #   payload(event)                  the payload of a received event
    #   async publish_malformed(topic)  put something into the source that is no event
    #   stop_source(), start_source()   take the source away and give it back
    #   requests()                      how many requests the source has seen
    #   due(seconds)                    arguments of an event that comes by itself so many seconds from now
    #   async lose_acknowledgement()    the next acknowledgement is done, and its answer lost

    def payload(self, event: Any) -> Any:
        return event

    def has(self, hook: str) -> bool:
        return getattr(self, hook, None) is not None


def subject_of(kind: Kind, target: Any) -> Any:
    """The subject for a name, ``module:Class``, a class, a callable or a subject."""
    if isinstance(target, (SerializerSubject, CodecSubject, ListenerSubject)):
        return target
    made = load_plugin(kind.value, target) if isinstance(target, str) else target
    if isinstance(made, (SerializerSubject, CodecSubject, ListenerSubject)):
        return made
    if kind is Kind.LISTENER:
        if isinstance(made, type) and issubclass(made, ListenerSubject):
            return made()
        from perdure.event_listener import TimerListener

        if made is TimerListener:
            return TimerSubject()
        raise ValueError(f"{target!r}: a listener is judged through a ListenerSubject; see docs/conformance.md")
    if kind is Kind.CODEC:
        return keyed_subject(made) if getattr(made, "keyed", False) else CodecSubject(made)
    return SerializerSubject(made)


class TimerSubject(ListenerSubject):
    """The project's timer: an event is the passing of a wall-clock time."""

    acknowledges = False
    source = False
    bad_arguments = ((), ("soon",), (None,), (1.0, 2.0))

    def make(self) -> Any:
        from perdure.event_listener import TimerListener

        return TimerListener()

    def arguments(self, topic: str) -> tuple[Any, ...]:
        return self.due(3600)

    def due(self, seconds: float) -> tuple[Any, ...]:
        return (time.time() + seconds,)


class Keyed:
    """Makes a keyed codec with keys that are the same in every process (and are only for tests)."""

    def __init__(self, codec: type, numbers: Sequence[int]) -> None:
        self.codec, self.numbers = codec, tuple(numbers)

    def __call__(self) -> Any:
        from perdure.keyring import AES_GCM, Key, Keyring

        return self.codec(Keyring([Key(f"k{n}", AES_GCM, secret_of(n)) for n in self.numbers]))


def secret_of(number: int) -> bytes:
    import hashlib

    return hashlib.sha256(f"conformance key {number}".encode()).digest()


def keyed_subject(codec: type) -> CodecSubject:
    """Keys 1 and 2; the rotated ring writes with key 2 and still reads key 1."""
    return CodecSubject(Keyed(codec, [1]), Keyed(codec, [3]), Keyed(codec, [2, 1]), [secret_of(1), secret_of(2)])
