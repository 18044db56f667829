"""How a cluster's values are stored and which of them may be loaded: one setting for all its processes.

Owns the text in which that setting travels to the coordinator, to workers and back to drivers, its checks, and the
rule for a store that nobody gave one: everything may be loaded only from a temporary folder of this user.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

from perdure import registry
from perdure.keyring import ENVIRONMENT as KEYS_VARIABLE
from perdure.keyring import Keyring
from perdure.seal import Seal
from perdure.values import DEFAULT_ORDER, TRUST_LEVELS, Trust, Values

TRUST_VARIABLE: Final = "PERDURE_TRUST"
SERIALIZERS_VARIABLE: Final = "PERDURE_SERIALIZERS"
CODECS_VARIABLE: Final = "PERDURE_CODECS"


class ValueSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """``serializers`` are tried in order, ``codecs`` applied in order; ``keys`` is the path of a key file, which must
    be on every machine that needs it, "" for none."""

    trust: Trust = "all"
    serializers: tuple[str, ...] = DEFAULT_ORDER
    codecs: tuple[str, ...] = ()
    keys: str = ""

    def encode(self) -> str:
        """The text that `settings_from` reads; "" for the defaults."""
        return "" if self == ValueSettings() else msgspec.json.encode(self).decode()

    def values(self) -> Values:
        """The door for values.

        Under ``signed`` it lets everything pass: what comes from the store has been verified by then, records by their
        seal and blobs by their name, and nothing else reaches it.
        """
        keys = Keyring.load(self.keys) if self.keys and self.codecs else None
        if self.trust != "data":
            return Values(self.serializers, codecs=self.codecs, keys=keys, sign=False)
        every = Values(self.serializers)
        order = tuple(name for name in self.serializers if not every.serializer(name).runs_code)
        if not order:
            raise ValueError(f"trust='data' leaves none of the serializers {', '.join(self.serializers)}")
        return Values(order, trust="data", codecs=self.codecs, keys=keys, sign=False)

    def seal(self) -> Seal | None:
        """What signs and verifies the journal; None where nothing is signed."""
        return Seal(self.keys) if self.trust == "signed" else None


@lru_cache(maxsize=64)
def settings_from(text: str) -> ValueSettings:
    """The settings that `ValueSettings.encode` wrote."""
    return msgspec.json.decode(text, type=ValueSettings) if text else ValueSettings()


def chosen(
    url: str,
    *,
    trust: str | None = None,
    serializers: Sequence[str] | None = None,
    codecs: Sequence[str] | None = None,
    keys: str | os.PathLike[str] | None = None,
    environment: Mapping[str, str] = os.environ,
) -> ValueSettings:
    """The settings for a store from what was given, else from the environment, else the defaults; checked.

    Raises:
        ValueError: no trust level for a store that needs one, an unknown one, or keys that don't fit.
        PluginError: a serializer or codec that is not installed.
    """
    level = trust if trust is not None else environment.get(TRUST_VARIABLE) or None
    if level is None:
        if not is_temporary(url):
            raise ValueError(
                f"trust is not set for {url}. Whoever can write to a store can change what is loaded from it, so say "
                "what may be loaded: trust='all' (everything, pickles too: only where everyone who can write there may "
                "run code on this cluster), trust='signed' (only what carries a valid signature; needs keys=), or "
                f"trust='data' (nothing that runs code). Set it in workflow.init(), or in {TRUST_VARIABLE}; see "
                "docs/security.md"
            )
        level = "all"
    if level not in TRUST_LEVELS:
        raise ValueError(f"trust={level!r}: expected one of {', '.join(TRUST_LEVELS)}")
    path = os.fspath(keys) if keys is not None else environment.get(KEYS_VARIABLE, "")
    settings = ValueSettings(
        level,  # type: ignore[arg-type]
        _names(serializers, environment.get(SERIALIZERS_VARIABLE), DEFAULT_ORDER, "serializers"),
        _names(codecs, environment.get(CODECS_VARIABLE), (), "codecs"),
        str(Path(path).expanduser().absolute()) if path else "",
    )
    _check(settings)
    return settings


def for_tools(url: str) -> ValueSettings:
    """The settings of a tool that reads or writes the journal only, and so loads no values: no trust level is needed.

    Raises ValueError: what the environment says is wrong.
    """
    return chosen(url, trust=os.environ.get(TRUST_VARIABLE) or "all")


def is_temporary(url: str) -> bool:
    """Whether this is a folder below a temporary folder of the machine that only this user can write to."""
    if not url.startswith("file://"):
        return False
    folder = Path(url.removeprefix("file://").partition("?")[0])
    full = folder.resolve()
    roots = [r for name in (tempfile.gettempdir(), "/tmp", "/var/tmp") if (r := Path(name).resolve()) in full.parents]
    if not roots:
        return False
    step = roots[0]
    for part in full.relative_to(step).parts:  # what exists must be this user's alone; the rest this user will make
        step = step / part
        try:
            facts = step.stat()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        if facts.st_uid != os.getuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return False
    return True


def _names(given: Sequence[str] | None, text: str | None, default: tuple[str, ...], what: str) -> tuple[str, ...]:
    if isinstance(given, str):
        raise ValueError(f"{what}={given!r}: expected a list of names")
    if given is not None:
        return tuple(given)
    return tuple(name.strip() for name in text.split(",") if name.strip()) if text else default


def _check(settings: ValueSettings) -> None:
    if not settings.serializers:
        raise ValueError("serializers=[]: expected at least one name")
    for name in settings.serializers:
        registry.load(registry.SERIALIZERS, name)
    for name in settings.codecs:
        registry.load(registry.CODECS, name)
    if settings.keys:
        Keyring.load(settings.keys)  # a wrong path is told, whether or not a key is needed now
    if settings.trust == "signed":
        if not settings.keys:
            raise ValueError(
                "trust='signed' needs keys='/path/of/a/key/file' (or "
                f"{KEYS_VARIABLE}) with a key that signs. Make one: perdure keys new FILE"
            )
        if Keyring.load(settings.keys).writer("sign") is None:
            raise ValueError(
                f"{settings.keys} has no key that signs (hmac-sha256 or ed25519), which trust='signed' needs"
            )
    settings.values().dumps(None)  # a codec that lacks its key says so now
