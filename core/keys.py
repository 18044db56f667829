"""Every key of the store's layout, made and read in this one place.

Owns the layout of ``docs/design.md`` ("Keys"). Nobody else joins strings to a key. Pure: no I/O, no Ray.
"""

from __future__ import annotations

import hashlib
import re
from typing import Final

FORMAT: Final = "format"
COORDINATORS: Final = "c/"
WORKFLOWS: Final = "w/"
CYCLES: Final = "gc/"
BELLS: Final = "bell/"
EVENTS: Final = "ev/"
INBOXES: Final = "in/"
BLOBS: Final = "blobs/"

MAX_ID_CHARACTERS: Final = 200
_SAFE = re.compile(r"[A-Za-z0-9._-]")
_LONGEST_SEGMENT = 150
_DIGITS = 20


def check_workflow_id(workflow_id: object) -> str:
    """Return the id, or raise ValueError (TypeError for a non-string) that says the rule.

    One rule everywhere: 1 to 200 characters of printable text.
    """
    if not isinstance(workflow_id, str):
        raise TypeError(f"workflow_id must be a str, not {type(workflow_id).__name__}: {workflow_id!r:.200}")
    if not 1 <= len(workflow_id) <= MAX_ID_CHARACTERS or not workflow_id.isprintable():
        raise ValueError(
            f"workflow_id {workflow_id!r:.300} is not valid: expected 1 to {MAX_ID_CHARACTERS} printable "
            f"characters (it has {len(workflow_id)}). Choose another id."
        )
    return workflow_id


def encode_id(workflow_id: str) -> str:
    """One key segment of ``[A-Za-z0-9._~-]`` for any id; distinct ids give distinct segments.

    Other characters become ``~XX`` per UTF-8 byte. What would be too long for a file name ends in a hash
    instead; the id itself stands in the records.
    """
    encoded = "".join(c if _SAFE.match(c) else "".join(f"~{b:02X}" for b in c.encode("utf-8")) for c in workflow_id)
    if not encoded.strip("."):
        encoded = "~2E" + encoded[1:]
    if len(encoded) > _LONGEST_SEGMENT:
        digest = hashlib.blake2b(workflow_id.encode("utf-8"), digest_size=16).hexdigest()
        encoded = f"{encoded[:80]}~h{digest}"
    return encoded


def id_of_chain(chain: str) -> str | None:
    """The workflow id in a chain's key, for where the records can't be read; None where only its hash is there."""
    encoded = chain.split("/", 2)[1]
    try:
        raw = re.sub("~([0-9A-F]{2})", lambda m: chr(int(m[1], 16)), encoded).encode("latin-1").decode("utf-8")
    except UnicodeError:
        return None
    return raw if encode_id(raw) == encoded else None


def workflow_chain(workflow_id: str) -> str:
    """Folder of a workflow's chain; its segments are below ``j/``, its base parts below ``s/``."""
    return f"{WORKFLOWS}{encode_id(workflow_id)}/"


def chain_of(key: str) -> str:
    """The workflow's chain that a key below ``w/`` belongs to."""
    return "/".join(key.split("/", 2)[:2]) + "/"


def coordinator_chain(coordinator: str) -> str:
    return f"{COORDINATORS}{coordinator}/"


def coordinator_of(key: str) -> str:
    """The coordinator whose chain a key below ``c/`` belongs to."""
    return key.split("/", 2)[1]


def segments(chain: str) -> str:
    return f"{chain}j/"


def segment(chain: str, number: int) -> str:
    return f"{chain}j/{number:0{_DIGITS}d}"


def parts(chain: str) -> str:
    return f"{chain}s/"


def part(chain: str, number: int, token: str) -> str:
    return f"{chain}s/{number:0{_DIGITS}d}-{token}"


def segment_number(key: str) -> int | None:
    """The number in a segment's key, or None where the key is not a segment's."""
    name = key.rsplit("/", 1)[-1]
    return int(name) if len(name) == _DIGITS and name.isdecimal() and name.isascii() else None


def part_number(key: str) -> int | None:
    name = key.rsplit("/", 1)[-1][:_DIGITS]
    return int(name) if len(name) == _DIGITS and name.isdecimal() and name.isascii() else None


def inbox(workflow_id: str, birth: int) -> str:
    """Folder of one life's inbox (E3: the key carries the life's birth)."""
    return f"in/{encode_id(workflow_id)}/{birth}/"


def inboxes(workflow_id: str) -> str:
    return f"in/{encode_id(workflow_id)}/"


def inbox_slot(workflow_id: str, birth: int, number: int) -> str:
    return f"{inbox(workflow_id, birth)}{number:0{_DIGITS}d}"


def inbox_birth(key: str) -> int | None:
    """The birth of the life that an inbox slot belongs to."""
    birth = key.split("/", 3)[2]
    return int(birth) if birth.isdecimal() and birth.isascii() else None


def inboxes_beside(chain: str) -> str:
    """The inboxes of the workflow whose chain this is."""
    return INBOXES + chain.removeprefix(WORKFLOWS)


def events_beside(chain: str) -> str:
    return EVENTS + chain.removeprefix(WORKFLOWS)


def event(workflow_id: str, birth: int, name: str) -> str:
    """An event that was sent to one life of a workflow, under the name for which it waits."""
    return f"{events(workflow_id)}{birth}/{encode_id(name)}"


def events(workflow_id: str) -> str:
    return f"{EVENTS}{encode_id(workflow_id)}/"


def event_birth(key: str) -> int | None:
    return inbox_birth(key)


def cycle(number: int) -> str:
    return f"{CYCLES}{number:0{_DIGITS}d}"


def blob(cycle_number: int, digest: str) -> str:
    """Name of a value too large for a record: its content hash below the GC cycle of its writer (B1)."""
    return f"blobs/{cycle_number}/{digest}"


def blob_cycle(key: str) -> int | None:
    """The GC cycle of a blob; None where the key is not a blob's."""
    kind, _, rest = key.partition("/")
    cycle_number = rest.partition("/")[0]
    return int(cycle_number) if kind == "blobs" and cycle_number.isdecimal() and cycle_number.isascii() else None


def in_cycle(key: str, cycle_number: int) -> str:
    """The name of the same content in another cycle."""
    return blob(cycle_number, key.split("/", 2)[2])


def bell(token: str) -> str:
    return f"{BELLS}{token}"
