"""Whether a store holds what it should: missing, damaged and orphaned objects. Writes nothing.

Owns what is looked at and how a finding is confirmed: in a store that is in use, what was missing at one moment may
have been moved or deleted since, so each finding is looked at once more (J7). Memory is bounded by the largest single
workflow. An orphan is no damage: `perdure gc` takes it, or a running task is about to name it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import blake3

from perdure import keys
from perdure.care.collecting import chain_of, names_of
from perdure.care.names import NameSet
from perdure.care.walk import folders, pages
from perdure.chain import View
from perdure.errors import CorruptedError, FormatError, NotFound, StoreError
from perdure.guarded_store import GuardedStore
from perdure.inbox import decode_bell, decode_inbox
from perdure.lease import Watcher
from perdure.reading import Reader
from perdure.segment import decode_body
from perdure.state import IllegalTransition

_OTHERS = ("perdure-probe/", "perdure-conformance/", "q/")


@dataclass(frozen=True)
class Finding:
    """``problem``: ``missing``, ``damaged`` or ``orphaned``. ``kind``: workflow, coordinator, blob, part, segment,
    inbox, event, bell, cycle, probe, unknown."""

    problem: str
    kind: str
    key: str
    text: str
    workflow_id: str | None = None


@dataclass
class Report:
    """``checked``: objects by kind."""

    checked: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)

    @property
    def sound(self) -> bool:
        return not (self.found["missing"] or self.found["damaged"])


class Verifier:
    """``content``: read every blob and compare it with its name; else only existence and size."""

    def __init__(self, store: GuardedStore, reader: Reader, tell: Callable[[Finding], None], *, content: bool) -> None:
        self.store = store
        self.reader = reader
        self.content = content
        self._tell = tell
        self.report = Report()
        self._named = NameSet()
        self._checked = NameSet()

    async def run(self, ids: Sequence[str] | None) -> Report:
        """Verify these workflows with all that they need, or the whole store."""
        try:
            if ids is not None:
                for workflow_id in ids:
                    keys.check_workflow_id(workflow_id)
                    prefix = keys.workflow_chain(workflow_id)
                    listed = await self.store.list_keys(prefix)
                    if not listed or not await self._chain(prefix, listed):
                        self._found("missing", "workflow", prefix, "no such workflow", workflow_id)
                return self.report
            async for prefix, listed in folders(self.store, keys.WORKFLOWS):
                await self._chain(prefix, listed)
            await self._coordinators(self.reader.watcher)
            await self._blobs()
            await self._signals()
            await self._rest()
        finally:
            self._named.close()
            self._checked.close()
        return self.report

    def _found(self, problem: str, kind: str, key: str, text: str, workflow_id: str | None = None) -> None:
        self.report.found[problem] += 1
        self._tell(Finding(problem, kind, key, text, workflow_id))

    # -- workflows -----------------------------------------------------------------------------------------------

    async def _chain(self, prefix: str, listed: list[str]) -> bool:
        """Whether there is a life. Its chain, and every blob that it names."""
        self.report.checked["workflow"] += 1
        chain = chain_of(self.store, prefix)
        workflow_id = keys.id_of_chain(prefix)
        try:
            view = await chain.read()
            if view.header is None:
                return self._headless(prefix, listed)
            if view.deleted:
                self._left_over(listed, view.number)
                return False
            state = await self.reader.fold(view)
            workflow_id = state.created.workflow_id if state.created is not None else workflow_id
            self._left_over(listed, view.birth)
            self._unnamed_parts(listed, view)
            async for name in names_of(self.store, view.records):
                self._named.add([name])
                await self._blob(name, prefix, view, workflow_id)
        except NotFound as error:
            self._found("missing", "blob", str(error.key), f"a graph of {prefix} is missing", workflow_id)
        except CorruptedError as error:
            problem = "missing" if "is missing" in str(error) else "damaged"
            what = "blob" if error.key is not None and error.key.startswith(keys.BLOBS) else "workflow"
            self._found(problem, what, error.key or prefix, str(error), workflow_id)
        except (FormatError, IllegalTransition, ValueError) as error:
            self._found("damaged", "workflow", prefix, str(error), workflow_id)
        return True

    def _headless(self, prefix: str, listed: list[str]) -> bool:
        """No segment, only base parts: a life on its way into an empty chain has parts of number 0."""
        newest = max((keys.part_number(key) or 0 for key in listed if "/s/" in key), default=0)
        if newest:
            text = f"its journal is gone, base parts up to segment {newest} are left. Restore {keys.segments(prefix)}"
            self._found("missing", "workflow", prefix, text)
        else:
            for key in listed:
                self._found("orphaned", "part", key, "no life names it (yet)")
        return bool(newest)

    def _left_over(self, listed: list[str], below: int) -> None:
        for key in listed:
            number = keys.part_number(key) if "/s/" in key else None
            if number is not None and number < below:
                self._found("orphaned", "part", key, "its life is over")

    def _unnamed_parts(self, listed: list[str], view: View) -> None:
        assert view.header is not None
        named = {name for name, _ in view.header.parts}
        for key in listed:
            number = keys.part_number(key) if "/s/" in key else None
            if number is not None and number >= view.birth and key.rpartition("/")[2] not in named:
                self._found("orphaned", "part", key, "no base names it (yet); it goes when its workflow is deleted")

    async def _blob(self, name: str, prefix: str, view: View, workflow_id: str | None) -> None:
        if name in self._checked:
            return
        self._checked.add([name])
        self.report.checked["blob"] += 1
        try:
            text = await trouble_of(self.store, name, content=self.content)
        except StoreError as error:
            text = f"it can't be read: {error}"
        if not text:
            return
        again = await chain_of(self.store, prefix).read()
        if again.deleted or again.birth != view.birth:
            return  # that life has been deleted meanwhile, its blobs with it
        problem = "missing" if text == "missing" else "damaged"
        shown = "a record names it, and it is not there" if text == "missing" else text
        self._found(problem, "blob", name, shown, workflow_id)

    # -- the rest ------------------------------------------------------------------------------------------------

    async def _coordinators(self, watcher: Watcher) -> None:
        async for prefix, _ in folders(self.store, keys.COORDINATORS):
            self.report.checked["coordinator"] += 1
            try:
                await watcher.roster(keys.coordinator_of(prefix))
            except (CorruptedError, FormatError) as error:
                self._found("damaged", "coordinator", getattr(error, "key", None) or prefix, str(error))

    async def _blobs(self) -> None:
        async for page in pages(self.store, keys.BLOBS):
            blobs = [key for key, _ in page if keys.blob_cycle(key) is not None]
            for name in self._named.missing(blobs):
                self._found("orphaned", "blob", name, "no workflow names it (yet)")

    async def _signals(self) -> None:
        for prefix, kind in ((keys.INBOXES, "inbox"), (keys.EVENTS, "event")):
            async for folder, listed in folders(self.store, prefix):
                below = await self._life_of(keys.WORKFLOWS + folder.removeprefix(prefix))
                for key in listed:
                    self.report.checked[kind] += 1
                    birth = keys.inbox_birth(key)
                    if birth is not None and below is not None and birth < below:
                        self._found("orphaned", kind, key, "it was sent to a life that is over")
                    else:
                        await self._readable(key, kind)
        async for page in pages(self.store, keys.BELLS):
            for key, _ in page:
                self.report.checked["bell"] += 1
                await self._readable(key, "bell")

    async def _life_of(self, prefix: str) -> int | None:
        try:
            view = await chain_of(self.store, prefix).read()
        except (CorruptedError, FormatError):
            return None  # told before
        return view.number if view.deleted else view.birth

    async def _readable(self, key: str, kind: str) -> None:
        try:
            data = await self.store.get(key)
            if kind == "inbox":
                decode_inbox(data, key)
            elif kind == "bell":
                decode_bell(data, key)
            else:
                decode_body(data, key)
        except NotFound:
            pass  # taken meanwhile
        except (CorruptedError, FormatError, ValueError) as error:
            self._found("damaged", kind, key, str(error))

    async def _rest(self) -> None:
        """Objects that are none of the kinds above."""
        ours = (keys.WORKFLOWS, keys.COORDINATORS, keys.BLOBS, keys.INBOXES, keys.EVENTS, keys.BELLS)
        last: str | None = None
        while True:
            found = await self.store.list_keys("", last, 1)
            if not found:
                return
            key = found[0]
            prefix = next((p for p in ours if key.startswith(p)), None)
            if prefix is not None:
                last = prefix[:-1] + chr(ord("/") + 1)  # behind all of them, in one step
                if last in await self.store.list_keys(last, None, 1):
                    self._unknown(last)
                continue
            if key.startswith(keys.CYCLES):
                self.report.checked["cycle"] += 1
            elif key != keys.FORMAT:
                self._unknown(key)
            last = key

    def _unknown(self, key: str) -> None:
        kind = "probe" if key.startswith(_OTHERS) else "unknown"
        self._found("orphaned", kind, key, "left by an interrupted probe" if kind == "probe" else "not Perdure's")


async def trouble_of(store: GuardedStore, name: str, *, content: bool) -> str:
    """What is wrong with a blob, "" for nothing. ``content``: read it and compare it with its name.

    Raises StoreError: it can't be read now, which says nothing of it.
    """
    try:
        if not content:
            await store.stat(name)
            return ""
        digest = blake3.blake3()
        async for chunk in store.store.download(name):
            digest.update(chunk)
    except NotFound:
        return "missing"
    return "" if digest.hexdigest() == name.rpartition("/")[2] else "its content does not fit its name"
