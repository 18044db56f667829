"""Perdure: strong durability for Ray task graphs, on storage that you pick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if __name__ != "perdure":
    raise ImportError(
        f"this package must be imported as 'perdure', not {__name__!r}: the folder core/ is mapped to perdure "
        "by the build. Install it (pip install -e .) and import perdure."
    )

__version__ = "0.1.0"
__all__ = ["__version__", "open_store", "workflow"]

if TYPE_CHECKING:
    from perdure import workflow
    from perdure.store import open_store


def __getattr__(name: str) -> Any:
    # Lazy: `import perdure` alone must stay cheap, and stores and tools need no Ray.
    if name == "workflow":
        import importlib

        return importlib.import_module("perdure.workflow")
    if name == "open_store":
        from perdure.store import open_store

        return open_store
    raise AttributeError(f"module 'perdure' has no attribute {name!r}")
