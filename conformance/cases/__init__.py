"""The cases themselves, one module per group. Importing this package registers nothing; ``load`` does."""

from __future__ import annotations

import importlib
import importlib.metadata

from perdure.errors import PluginError

STORE_MODULES = (
    "key",
    "value",
    "create",
    "put",
    "get",
    "stat",
    "list",
    "delete",
    "many",
    "stream",
    "crash",
    "powercut",
    "fault",
    "model",
    "process",
    "lifetime",
    "error",
    "capability",
    "speed",
)
MODULES = (
    *STORE_MODULES,
    "serializer",
    "serializer_hostile",
    "codec",
    "listener",
    "listener_faults",
)

_loaded = False
_failure: PluginError | None = None


def load() -> None:
    """Import every case module, then the third-party ones of entry point ``perdure.conformance.cases``.

    A third party's ids must begin with the name of its distribution, so that ours can grow. Raises ``PluginError``
    that names the distribution whose cases can't be used: a run without them would say more than it knows.
    """
    global _loaded, _failure
    if _failure is not None:
        raise _failure
    if _loaded:
        return
    _loaded = True
    for name in MODULES:
        importlib.import_module(f"{__name__}.{name}")
    for point in importlib.metadata.entry_points(group="perdure.conformance.cases"):
        try:
            _load_others(point)
        except Exception as error:
            owner = f"{point.dist.name} {point.dist.version}" if point.dist else point.name
            _failure = PluginError(f"the cases of {owner} ({point.value}) can't be used: {error}")
            raise _failure from error


def _load_others(point: importlib.metadata.EntryPoint) -> None:
    from perdure.conformance import register

    before = set(register._cases)
    point.load()
    prefix = (point.dist.name if point.dist else point.name).lower().replace("_", "-") + "-"
    for id in set(register._cases) - before:
        if not id.startswith(prefix):
            raise ValueError(f"case {id!r} must begin with {prefix!r}")
