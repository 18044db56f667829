"""Workflows into an archive file, and out of one.

Owns the order of members, and the file's birth: it is written beside its name and renamed when it is whole and synced,
so an interrupted export leaves nothing under that name, and the next one begins anew. An import is restartable as a
copy is: what has arrived is found there.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import IO, Any, Final, TypeAlias

import blake3

import perdure
from perdure import keys
from perdure import records as r
from perdure.care.archive import FIRST, VERSION, Member, Reader, Writer
from perdure.care.arriving import arrive, batches, put_proven
from perdure.care.copying import Outcome, depart
from perdure.care.lives import Fetch, Life, read_life
from perdure.care.names import NameSet
from perdure.care.opening import Hand
from perdure.errors import CorruptedError, FormatError, NotFound, StoreError, WorkflowError, WorkflowStillActiveError
from perdure.guarded_store import GuardedStore
from perdure.naming import blobs_of
from perdure.reading import unknown
from perdure.segment import NO_TOKEN, Header, decode_segment, encode_segment
from perdure.status import WorkflowStatus
from perdure.store import BytesLike

Tell: TypeAlias = Callable[[Outcome], None]
_HELD: Final = 8 << 20


# -- export ----------------------------------------------------------------------------------------------------------


async def export(source: Hand, ids: Sequence[str] | None, path: Path, *, unfinished: bool, tell: Tell) -> None:
    """Write these workflows, or all, into ``path``. ``unfinished``: also those that are to be resumed; they are marked
    as moved there, so only what is imported goes on.

    Raises:
        CorruptedError: a blob is damaged; no archive was made.
        ValueError: there is one already, or somebody is writing it.
    """
    if os.path.lexists(path):  # noqa: ASYNC240 (one command, one file)
        raise ValueError(f"{path} exists already. Choose another name, or remove it")
    partial = path.with_name(f"{path.name}.partial")
    chosen = list(dict.fromkeys(ids)) if ids is not None else sorted(await source.reading.list_all())
    with partial.open("ab") as file:
        _lock(file, partial)
        file.truncate(0)  # what an interrupted export left
        writer = Writer(file)
        shown = source.reading.store.url  # type: ignore[attr-defined]
        about = {"what": "perdure archive", "version": VERSION, "perdure": perdure.__version__, "source": shown}
        writer.document(FIRST, about | {"time": source.reading.clock.wall()})
        there = NameSet()
        count = 0
        try:
            for workflow_id in chosen:
                outcome = await _export_one(
                    source, writer, there, workflow_id, f"archive {path.name}", unfinished, count
                )
                count += outcome.result != "refused"
                tell(outcome)
        finally:
            there.close()
        writer.close(workflows=count)
        file.flush()
        os.fsync(file.fileno())
        os.link(partial, path)  # never over another's
        os.unlink(partial)
        _sync_folder(path.parent)


async def _export_one(
    source: Hand, writer: Writer, there: NameSet, workflow_id: str, to: str, unfinished: bool, number: int
) -> Outcome:
    store: GuardedStore = source.reading.store  # type: ignore[assignment]
    try:
        keys.check_workflow_id(workflow_id)
        life = await read_life(store, workflow_id)
        if life is None:
            raise unknown(workflow_id)
        if not life.finished:
            if not unfinished:
                raise WorkflowStillActiveError(
                    f"workflow {workflow_id!r} is not finished. With --unfinished it is exported to go on where it is "
                    "imported, and no longer here.",
                    workflow_id=workflow_id,
                )
            life = await depart(source, workflow_id, to)
        needed = [name for name in dict.fromkeys(blobs_of(life.records)) if _digest_of(name) not in there]
        sizes = {name: await _size(store, name) for name in needed}
    except (WorkflowError, CorruptedError, FormatError) as error:
        return Outcome(workflow_id, "refused", error)
    for name, size in sizes.items():
        await _write_blob(store, writer, name, size)
        there.add([_digest_of(name)])
    _write_life(writer, life, number)
    return Outcome(workflow_id, "exported")


def _digest_of(name: str) -> str:
    return name.rpartition("/")[2]


async def _size(store: GuardedStore, name: str) -> int:
    try:
        return await store.stat(name)
    except NotFound:
        raise CorruptedError(f"{name} is missing, but a workflow's record names it", key=name) from None


async def _write_blob(store: GuardedStore, writer: Writer, name: str, size: int) -> None:
    digest, left = blake3.blake3(), size
    writer.begin(f"blobs/{_digest_of(name)}", size)
    async for chunk in store.store.download(name):
        left -= len(chunk)
        if left < 0:
            break
        digest.update(chunk)
        writer.piece(chunk)
    if left or digest.hexdigest() != _digest_of(name):
        raise CorruptedError(
            f"{name} is damaged: its content does not fit its name. No archive was made; `perdure verify` tells which "
            "workflows need it, leave them out",
            key=name,
        )
    writer.end(digest.hexdigest())


def _write_life(writer: Writer, life: Life, number: int) -> None:
    folder = f"workflows/{number}"
    sums = blake3.blake3()
    count = 0
    for batch in batches(life.records):
        data = encode_segment(Header("archive", -1, -1, ""), batch, token=NO_TOKEN, prev=NO_TOKEN)
        sums.update(writer.whole(f"{folder}/records/{count}", data).encode())
        count += 1
    for at, (_, _, data) in enumerate(life.sent):
        sums.update(writer.whole(f"{folder}/sent/{at}", data).encode())
    fields = {
        name: getattr(life, name) for name in ("workflow_id", "number", "token", "birth", "finished", "start", "end")
    }
    fields |= {"status": str(life.status), "records": count, "sent": [[kind, rest] for kind, rest, _ in life.sent]}
    writer.document(f"{folder}/workflow.json", fields | {"members": sums.hexdigest()})


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"{path}: another export is writing it") from None


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


# -- import ----------------------------------------------------------------------------------------------------------


async def bring_in(file: IO[bytes], shown: str, target: Hand, *, tell: Tell) -> None:
    """Put the workflows of an archive into a store, in its order.

    Raises:
        FormatError, CorruptedError: the archive can't be read (on); what was told is done.
    """
    reader = Reader(file, shown)
    source = str(reader.about.get("source", shown))
    there = await target.writing()
    store: GuardedStore = there.store  # type: ignore[assignment]
    ticket = there.cycles.begin()  # holds all blobs of the archive until the last workflow names them
    try:
        gathered = _Gathered(reader)
        for member in reader.members():
            kind, _, rest = member.name.partition("/")
            if kind == "blobs":
                await _bring_blob(store, member, keys.blob(ticket.cycle, rest))
            elif kind == "workflows":
                life = gathered.add(member)
                if life is not None:
                    tell(await _arrive_one(target, life, _within(store, ticket.cycle), source))
            else:
                member.whole()  # of a later minor version
    finally:
        ticket.leave()


async def _arrive_one(target: Hand, life: Life, fetch: Fetch, source: str) -> Outcome:
    try:
        keys.check_workflow_id(life.workflow_id)
        new = await arrive(target, life, fetch, source)
    except (WorkflowError, CorruptedError, FormatError) as error:
        return Outcome(life.workflow_id, "refused", error)
    return Outcome(life.workflow_id, "imported" if new else "present")


async def _bring_blob(store: GuardedStore, member: Member, name: str) -> None:
    begun = False
    held = member.whole() if member.size <= _HELD else None

    async def fetch(_: str) -> AsyncIterator[BytesLike]:
        nonlocal begun
        if held is not None:
            yield held
            return
        if begun:  # a stream can't be read twice
            raise StoreError(f"the store failed in the middle of {member.name}; import again, what is there is kept")
        begun = True
        for piece in member.pieces():
            yield piece

    await put_proven(store, name, name, fetch)
    if not begun and held is None:
        for _ in member.pieces():  # it is there: only proven
            pass
    if member.digest != _digest_of(name):
        raise member.reader.damaged(member.name)


def _within(store: GuardedStore, cycle: int) -> Fetch:
    """Blobs that were brought in before, by the names of where they came from."""

    async def fetch(name: str) -> AsyncIterator[BytesLike]:
        async for chunk in store.store.download(keys.in_cycle(name, cycle)):
            yield chunk

    return fetch


class _Gathered:
    """The members of one workflow, until its last."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self._folder = ""
        self._clear()

    def _clear(self) -> None:
        self._records: list[r.Record] = []
        self._count = 0
        self._sent: list[bytes] = []
        self._sums = blake3.blake3()

    def add(self, member: Member) -> Life | None:
        """The life, where this member ends it."""
        folder, _, rest = member.name.removeprefix("workflows/").partition("/")
        if folder != self._folder:
            self._clear()
            self._folder = folder
        if rest == "workflow.json":
            return self._life(member)
        data = member.whole()
        self._sums.update(member.digest.encode())
        if rest.startswith("records/"):
            self._records += decode_segment(data, f"{member.reader.shown}: {member.name}").records
            self._count += 1
        else:
            self._sent.append(data)
        return None

    def _life(self, member: Member) -> Life:
        fields: dict[str, Any] = member.document()
        if (fields["records"], len(fields["sent"]), fields["members"]) != (
            self._count, len(self._sent), self._sums.hexdigest(),
        ):  # fmt: skip
            raise member.reader.damaged(member.name)
        sent = [(kind, rest, data) for (kind, rest), data in zip(fields["sent"], self._sent, strict=True)]
        life = Life(
            fields["workflow_id"],
            self._records,
            fields["number"],
            fields["token"],
            fields["birth"],
            fields["finished"],
            WorkflowStatus(fields["status"]),
            fields["start"],
            fields["end"],
            sent,
        )
        self._clear()
        return life
