"""Plugins: finding, loading and checking what entry points offer.

Owns the four groups ``perdure.stores``, ``perdure.serializers``, ``perdure.codecs`` and
``perdure.listeners``. Names are listed without importing anything; only the plugin that is asked for is
imported, and one that is broken never stops another. The core imports no plugin by name, so this is the only
way in.

The environment variable ``PERDURE_DISABLE_PLUGINS`` turns plugins of other distributions off: ``1`` or
``all`` for every one, or a comma-separated list of names (``mystore``) or group-qualified names
(``perdure.stores:mystore``) or distributions. Perdure's own always stay.
"""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from perdure.errors import PluginError

STORES = "perdure.stores"
SERIALIZERS = "perdure.serializers"
CODECS = "perdure.codecs"
LISTENERS = "perdure.listeners"
GROUPS = (STORES, SERIALIZERS, CODECS, LISTENERS)

OWN_DISTRIBUTION = "perdure"

# What each kind must offer: member name → names of its required positional arguments (None: not a method).
_REQUIRED: dict[str, dict[str, tuple[str, ...] | None]] = {
    STORES: {
        "make": ("url", "options"),
        "capabilities": None,
        "_create": ("key", "data"),
        "_put": ("key", "data"),
        "_get": ("key", "start", "end"),
        "_stat": ("key",),
        "_delete": ("key",),
        "_list": ("prefix", "start_after", "limit"),
    },
    SERIALIZERS: {
        "id": None,
        "version": None,
        "runs_code": None,
        "accepts": ("obj",),
        "dump": ("obj",),
        "load": ("buffers", "limits"),
    },
    CODECS: {"id": None, "encode": ("chunks",), "decode": ("chunks", "limits")},
    LISTENERS: {"poll_for_event": (), "event_checkpointed": ("event",)},
}


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One line of ``perdure plugins``. ``health`` is ``ok``, ``disabled``, ``conflict`` or ``broken``."""

    group: str
    name: str
    value: str
    distribution: str
    version: str
    health: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Offer:
    name: str
    value: str
    distribution: str
    version: str
    load: Callable[[], object]


_registered: dict[tuple[str, str], object] = {}
_loaded: dict[tuple[str, str, str], object] = {}
_offers: dict[str, dict[str, tuple[_Offer, ...]]] | None = None
_lock = threading.RLock()


def names(group: str) -> tuple[str, ...]:
    """Names offered in a group, sorted, without importing any plugin."""
    _check_group(group)
    found = {name for name, offers in _scan()[group].items() if any(_enabled(group, o) for o in offers)}
    found.update(name for g, name in _registered if g == group)
    return tuple(sorted(found))


def load(group: str, name: str) -> object:
    """Import and check one plugin. PluginError: unknown, owned by two distributions, broken, or unfit."""
    _check_group(group)
    with _lock:
        if (group, name) in _registered:
            return _registered[group, name]
        everyone = _scan()[group].get(name, ())
        offers = [offer for offer in everyone if _enabled(group, offer)]
        if not offers:
            why = " (turned off by PERDURE_DISABLE_PLUGINS)" if everyone else ""
            raise PluginError(f"no {_kind(group)} named {name!r}{why}; installed: {', '.join(names(group)) or 'none'}")
        if len(offers) > 1:
            raise PluginError(_conflict(group, name, offers))
        return _load(group, offers[0])


def plugins() -> tuple[PluginInfo, ...]:
    """Every plugin with its health. Loads each one; a broken one is reported, with its error, in its line."""
    lines: list[PluginInfo] = []
    for group in GROUPS:
        for name, offers in sorted(_scan()[group].items()):
            enabled = [offer for offer in offers if _enabled(group, offer)]
            for offer in offers:
                health, error = "ok", None
                if offer not in enabled:
                    health = "disabled"
                elif len(enabled) > 1 and (group, name) not in _registered:
                    health, error = "conflict", _conflict(group, name, enabled)
                else:
                    try:
                        _load(group, offer)
                    except PluginError as e:
                        health, error = "broken", str(e)
                lines.append(PluginInfo(group, name, offer.value, offer.distribution, offer.version, health, error))
        for (g, name), obj in sorted(_registered.items(), key=lambda item: item[0]):
            if g == group:
                value = f"{getattr(obj, '__module__', '?')}:{getattr(obj, '__qualname__', type(obj).__name__)}"
                lines.append(PluginInfo(group, name, value, "(this process)", "", "ok"))
    return tuple(lines)


def register(group: str, name: str, obj: object) -> None:
    """Offer a plugin in this process only; it goes before an installed one. PluginError if it doesn't fit."""
    _check_group(group)
    _validate(group, name, obj, "registered in this process")
    with _lock:
        held = _registered.get((group, name))
        if held is not None and held is not obj:
            raise PluginError(f"a {_kind(group)} named {name!r} is already registered in this process: {held!r}")
        _registered[group, name] = obj


def unregister(group: str, name: str) -> None:
    """Take back a registration; silent if there is none."""
    with _lock:
        _registered.pop((group, name), None)


@contextmanager
def registered(group: str, name: str, obj: object) -> Iterator[None]:
    """``register`` for the length of a block."""
    register(group, name, obj)
    try:
        yield
    finally:
        unregister(group, name)


def refresh() -> None:
    """Forget what was found and loaded; the next call looks again (after an install in a running process)."""
    global _offers
    with _lock:
        _offers = None
        _loaded.clear()


def _scan() -> dict[str, dict[str, tuple[_Offer, ...]]]:
    global _offers
    with _lock:
        if _offers is None:
            found: dict[str, dict[str, tuple[_Offer, ...]]] = {}
            for group in GROUPS:
                by_name: dict[str, tuple[_Offer, ...]] = {}
                for point in importlib.metadata.entry_points(group=group):
                    offer = _offer(point)
                    held = by_name.get(offer.name, ())
                    # An editable install and its wheel metadata may name the same plugin twice.
                    if not any((o.distribution, o.value) == (offer.distribution, offer.value) for o in held):
                        by_name[offer.name] = (*held, offer)
                found[group] = by_name
            _offers = found
        return _offers


def _offer(point: importlib.metadata.EntryPoint) -> _Offer:
    dist = point.dist
    name = str(dist.metadata["Name"]) if dist is not None else "(unknown distribution)"
    version = dist.version if dist is not None else ""
    return _Offer(point.name, point.value, name, version, point.load)


def _load(group: str, offer: _Offer) -> object:
    with _lock:
        key = (group, offer.name, offer.distribution)
        if key in _loaded:
            return _loaded[key]
        where = f"{offer.value} of distribution {offer.distribution} {offer.version}".rstrip()
        try:
            obj = offer.load()
        except Exception as e:
            what = f"{type(e).__name__}: {e}"
            raise PluginError(f"the {_kind(group)} {offer.name!r} ({where}) can't be imported: {what}") from e
        _validate(group, offer.name, obj, where)
        _loaded[key] = obj
        return obj


def _validate(group: str, name: str, obj: object, where: str) -> None:
    label = f"the {_kind(group)} {name!r} ({where})"
    abstract = getattr(obj, "__abstractmethods__", None)
    if abstract:
        raise PluginError(f"{label} does not define: {', '.join(sorted(abstract))}")
    for member, arguments in _REQUIRED[group].items():
        if not hasattr(obj, member):
            raise PluginError(f"{label} has no {member!r}")
        if arguments is None:
            continue
        method = getattr(obj, member)
        if not callable(method):
            raise PluginError(f"{label}: {member!r} is not a method but {type(method).__name__}")
        problem = _misfit(obj, member, method, arguments)
        if problem:
            raise PluginError(f"{label}: method {member} {problem}")


def _misfit(obj: object, member: str, method: Callable[..., object], arguments: tuple[str, ...]) -> str | None:
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return None
    bound = not inspect.isclass(obj) or inspect.ismethod(method)
    if not bound and not isinstance(inspect.getattr_static(obj, member), staticmethod):
        arguments = ("self", *arguments)
    try:
        signature.bind(*arguments)
    except TypeError:
        pass
    else:
        return None
    if not arguments or arguments == ("self",):
        return None  # listeners take what their users pass
    shown = [a for a in arguments if a != "self"]
    taken = [p for p in signature.parameters if p != "self"]
    return f"must take ({', '.join(shown)}), but takes ({', '.join(taken)})"


def _enabled(group: str, offer: _Offer) -> bool:
    if offer.distribution == OWN_DISTRIBUTION:
        return True
    switch = {part.strip() for part in os.environ.get("PERDURE_DISABLE_PLUGINS", "").split(",")} - {""}
    if not switch or switch <= {"0", "false"}:
        return True
    return not switch & {"1", "all", "true", offer.name, offer.distribution, f"{group}:{offer.name}"}


def _conflict(group: str, name: str, offers: list[_Offer]) -> str:
    owners = " and ".join(f"{o.distribution} {o.version} ({o.value})" for o in offers)
    return (
        f"two distributions own the {_kind(group)} {name!r}: {owners}. Uninstall one, or turn one "
        "distribution off with PERDURE_DISABLE_PLUGINS"
    )


def _kind(group: str) -> str:
    return group.removeprefix("perdure.").removesuffix("s")


def _check_group(group: str) -> None:
    if group not in GROUPS:
        raise ValueError(f"unknown plugin group {group!r}: expected one of {', '.join(GROUPS)}")
