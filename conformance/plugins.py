"""Finding the serializer, codec or listener that a command or a test names."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

GROUPS = {"serializer": "perdure.serializers", "codec": "perdure.codecs", "listener": "perdure.listeners"}


def load_plugin(kind: str, name: str) -> Any:
    """The class of an entry point's name, or of ``module:Class``. Raises ``ValueError`` with what is known."""
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"{kind} {name!r}: {error}") from error
    points = importlib.metadata.entry_points(group=GROUPS[kind])
    for point in points:
        if point.name == name:
            return point.load()
    known = ", ".join(sorted(p.name for p in points)) or "none"
    raise ValueError(f"no {kind} is called {name!r}; installed: {known}; or give module:Class")
