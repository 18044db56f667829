"""What really happened, as no process sees it: the ghost history that the protocol's model checks against.

Owns the committed history of each workflow chain, written down when a create lands in the store, and the
invariants that each landing must keep. It shares the records' fold with the product, not its chain rules.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from perdure import keys
from perdure import records as r
from perdure.chain import ENTRIES
from perdure.naming import blobs_of
from perdure.segment import NO_TOKEN, Segment, decode_segment
from perdure.state import IllegalTransition, State, TaskStatus

RECORDED = (r.TaskDone, r.Continued, r.Received)


@dataclass
class History:
    """One chain: all segments that ever counted, and the state of the life that goes on."""

    segments: list[Segment] = field(default_factory=list)
    state: State = field(default_factory=lambda: State(keep=True))
    birth: int = -1
    entry: int = -1
    owner: str = ""
    named: set[str] = field(default_factory=set)
    """Blobs that the life's records name."""


class Oracle:
    """``broken`` is every invariant that did not hold, in order."""

    def __init__(self, data: Mapping[str, bytes]) -> None:
        self.data = data
        self.histories: dict[str, History] = {}
        self._graphs: dict[str, r.Continued] = {}
        self.broken: list[str] = []
        self.note: Callable[[str], None] = lambda text: None

    def fail(self, text: str) -> None:
        self.broken.append(text)
        self.note(f"BROKEN {text}")

    def history(self, workflow_id: str) -> History:
        return self.histories.setdefault(keys.workflow_chain(workflow_id), History())

    def landed(self, key: str, data: bytes) -> None:
        """A create has put this object into the store."""
        if not key.startswith(keys.WORKFLOWS) or "/j/" not in key:
            return
        prefix = key[: key.index("/j/") + 1]
        number = keys.segment_number(key)
        assert number is not None
        history = self.histories.setdefault(prefix, History())
        segment = decode_segment(data, key, number)
        if number > len(history.segments):
            self.fail(f"hole: {key} landed, the history ends at {len(history.segments) - 1}")
        elif number < len(history.segments):
            # a late copy of what was there changes nothing; of entries, J10 is to find out
            if segment.header.kind not in ENTRIES and segment.token != history.segments[number].token:
                self.fail(f"gap: an append landed in the trimmed slot {key}")
        else:
            self._commit(history, key, segment)

    def _commit(self, history: History, key: str, segment: Segment) -> None:
        header = segment.header
        last = history.segments[-1].token if history.segments else NO_TOKEN
        if segment.prev != last:
            self.fail(f"link: {key} does not continue the history")
        if header.kind in ENTRIES:
            history.entry, history.owner = segment.number, header.entry_by
            if header.kind in ("created", "deleted"):
                history.named.clear()
            if header.kind == "created":
                history.birth = segment.number
        elif (header.entry, header.entry_by) != (history.entry, history.owner):
            self.fail(f"owner: {key} by {header.entry_by[:6]}, but entry {history.entry} is {history.owner[:6]}'s")
        if header.birth != history.birth and header.kind != "deleted":
            self.fail(f"lives: {key} belongs to life {header.birth}, now is {history.birth}")
        history.segments.append(segment)
        for record in [*self._brought(key, segment), *segment.records]:
            self._check_blobs(key, record, history)
            try:
                history.state.apply(self.whole(record))
            except IllegalTransition as error:
                self.fail(f"again or illegal: {key}: {type(record).__name__}: {error}")

    def _brought(self, key: str, segment: Segment) -> list[r.Record]:
        """The history that a life brings from another store, in parts that must be there before its Created."""
        found: list[r.Record] = []
        if segment.header.kind == "created":
            for name, size in segment.header.parts:
                part = f"{key[: key.index('/j/')]}/s/{name}"
                if len(self.data.get(part, b"")) != size:
                    self.fail(f"missing: {key} names the part {part}, which is not there whole")
                else:
                    found += decode_segment(self.data[part], part).records
        return found

    def whole(self, record: r.Record) -> r.Record:
        """With its graph, where that is a blob, which may have been collected since."""
        if isinstance(record, r.Created | r.Continued) and record.graph is None and record.graph_blob:
            held = self._graphs.get(record.graph_blob)
            if held is None:
                (found,) = decode_segment(self.data[record.graph_blob], record.graph_blob).records
                assert isinstance(found, r.Continued)
                held = self._graphs[record.graph_blob] = found
            values = {name: getattr(record, name) for name in record.__struct_fields__}
            return type(record)(**values | {"graph": held.graph})
        return record

    def _check_blobs(self, key: str, record: r.Record, history: History) -> None:
        """A record names only what exists, and (B1) what its coordinator's cycle protects, or what the life named."""
        blobs = list(blobs_of(record))
        if isinstance(record, r.Created | r.Continued) and record.graph_blob and record.graph_blob in self.data:
            blobs += blobs_of(self.whole(record))
        for blob in blobs:
            if blob not in self.data:
                self.fail(f"missing: {key} names {blob}, which does not exist")
        history.named.update(blobs)

    def removed(self, key: str) -> None:
        """A blob is deleted: nothing may need it."""
        for prefix, history in self.histories.items():
            if key in history.named:
                self.fail(f"needed: {key} was deleted, but {prefix} names it")

    # -- what others claim ---------------------------------------------------------------------------------------

    def acknowledged(self, prefix: str, number: int, token: bytes) -> None:
        """A process believes that its segment is in the chain."""
        segments = self.histories[prefix].segments
        if number >= len(segments) or segments[number].token != token:
            self.fail(f"acked: {prefix} {number} is acknowledged, but not in the history")

    def begins(self, workflow_id: str, birth: int, task: int) -> None:
        """User code of a task begins."""
        history = self.history(workflow_id)
        if birth == history.birth and task < len(history.state.tasks):
            status = history.state.tasks[task].status
            if status in (TaskStatus.DONE, TaskStatus.CONTINUED):
                self.fail(f"again: task {task} of {workflow_id} begins, though its record is readable")
