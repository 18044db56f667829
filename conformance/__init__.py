"""perdure.conformance: tells a right store, serializer, codec or listener from a wrong one.

``await run("file:///tmp/x")`` for a report without pytest; ``class TestMine(StoreConformance): url = "…"``
for pytest; ``perdure conformance URL`` for the command line. It needs no Ray cluster, and it owns no part of
Perdure's behaviour: it must never be imported by the core.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.conformance.register import SUITE_VERSION, Certainty, Kind, Level, Status, case

if TYPE_CHECKING:
    from perdure.conformance.api import run, run_sync
    from perdure.conformance.plugin_subject import CodecSubject, ListenerSubject, SerializerSubject
    from perdure.conformance.report import Report, Result
    from perdure.conformance.subject import StoreSubject
    from perdure.conformance.testing import (
        CodecConformance,
        ListenerConformance,
        SerializerConformance,
        StoreConformance,
    )

__all__ = [
    "SUITE_VERSION",
    "Certainty",
    "CodecConformance",
    "CodecSubject",
    "Kind",
    "Level",
    "ListenerConformance",
    "ListenerSubject",
    "Report",
    "Result",
    "SerializerConformance",
    "SerializerSubject",
    "Status",
    "StoreConformance",
    "StoreSubject",
    "case",
    "run",
    "run_sync",
]

_LAZY = {
    "run": "api",
    "run_sync": "api",
    "Report": "report",
    "Result": "report",
    "StoreSubject": "subject",
    "SerializerSubject": "plugin_subject",
    "CodecSubject": "plugin_subject",
    "ListenerSubject": "plugin_subject",
    "StoreConformance": "testing",
    "SerializerConformance": "testing",
    "CodecConformance": "testing",
    "ListenerConformance": "testing",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
