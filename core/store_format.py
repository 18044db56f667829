"""The one object that says that a folder or prefix is a Perdure store, and of which layout (``format``).

Owns its text and the refusals: a newer layout, and a place that holds other people's objects.
"""

from __future__ import annotations

import json
from typing import Any, Final

from perdure import keys
from perdure.errors import AlreadyExists, FormatError, NotFound

LAYOUT: Final = 1
_OURS: Final = ("w/", "c/", "gc/", "blobs/", "in/", "q/", "bell/", "perdure-probe/", "perdure-conformance/")


def _text(sealed: bool) -> bytes:
    content = {"what": "perdure store", "layout": LAYOUT}
    return json.dumps(content | ({"sealed": True} if sealed else {}), sort_keys=True).encode()


async def check_format(store: Any, *, sealed: bool | None = None) -> None:
    """Make sure that this is a store of a layout that we know; the first one to come marks it.

    ``sealed``: whether what is written will be signed (trust="signed"), which must be so for all of a store or nothing
    of it; None for readers, who don't mind.

    Raises:
        FormatError: a newer layout, not a Perdure store, or one that is sealed and should not be, or the other way
            round. Nothing was changed.
    """
    if await refuse_foreign(store, sealed=sealed):
        return
    try:
        await store.store.create(keys.FORMAT, _text(bool(sealed)))
    except AlreadyExists:
        _check(bytes(await store.get(keys.FORMAT)), store.url, sealed)


async def refuse_foreign(store: Any, *, sealed: bool | None = None) -> bool:
    """Whether it is marked already; writes nothing, so it comes before the first write of any kind.

    Raises:
        FormatError: as `check_format`.
    """
    try:
        found = bytes(await store.get(keys.FORMAT))
    except NotFound:
        pass
    else:
        _check(found, store.url, sealed)
        return True
    names = [k for k in await store.list_keys("", None, 50) if not k.startswith(_OURS)]
    if names:
        raise FormatError(
            f"{store.url} is not a Perdure store: it has no object {keys.FORMAT!r}, but holds {names[0]!r}"
            f"{' and others' if len(names) > 1 else ''}. Nothing was changed. Use an empty folder or prefix."
        )
    return False


def _check(found: bytes, url: str, sealed: bool | None) -> None:
    content: Any = {}
    try:
        content = json.loads(found)
        what, layout = content["what"], content["layout"]
    except (ValueError, KeyError, TypeError):
        what, layout = None, 0
    if what != "perdure store" or not isinstance(layout, int):
        raise FormatError(
            f"{url} is not a Perdure store, or its mark is damaged: its object {keys.FORMAT!r} is {found[:60]!r}. "
            "Nothing was changed. Use an empty folder or prefix; if workflows are here, restore that object from "
            "another store."
        )
    if layout > LAYOUT:
        raise FormatError(
            f"{url} has layout {layout}; this Perdure knows up to {LAYOUT}. Nothing was changed. Upgrade Perdure "
            "(pip install -U perdure)."
        )
    marked = bool(content.get("sealed"))
    if sealed is not None and sealed != marked:
        raise FormatError(
            f"{url} is sealed: all that is written there is signed. Set trust='signed' and keys=. Nothing was changed."
            if marked
            else f"{url} is not sealed: what it holds was written without signatures, which trust='signed' refuses. "
            "Nothing was changed. Use an empty folder or prefix, and bring what you trust there with `perdure copy`."
        )
