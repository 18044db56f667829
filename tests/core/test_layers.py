"""The layers of the core hold: pure modules stay pure, and nobody names a plugin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

CORE = Path(__file__).resolve().parent.parent.parent / "core"
PURE = {"graph", "records", "segment", "keys", "naming", "state", "scheduler"}
ALLOWED_LIBRARIES = {
    "__future__", "collections", "dataclasses", "enum", "hashlib", "msgspec", "re", "struct", "typing", "xxhash",
    "zstandard",
}  # fmt: skip
ALLOWED_CORE = PURE | {"errors"}


def imported(module: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.name} has a relative import"
            if node.module == "perdure":
                names.update(f"perdure.{alias.name}" for alias in node.names)
            else:
                names.add(node.module or "")
    return names


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_import_only_each_other_and_no_ray_io_clock_or_random(name: str) -> None:
    for module in imported(CORE / f"{name}.py"):
        if module.startswith("perdure."):
            assert module.split(".")[1] in ALLOWED_CORE, f"{name} imports {module}"
        else:
            assert module.split(".")[0] in ALLOWED_LIBRARIES, f"{name} imports {module}"


@pytest.mark.parametrize("path", sorted(CORE.rglob("*.py")), ids=lambda path: str(path.relative_to(CORE)))
def test_core_names_no_backend_and_no_serializer(path: Path) -> None:
    named = {m for m in imported(path) if m.startswith(("perdure.backends", "perdure.serializers"))}
    assert not named, f"{path.name} imports {named}: plugins are found through entry points"


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_the_engine_never_imports_the_command_line_the_suite_or_store_care(path: Path) -> None:
    if path.name == "__main__.py":
        return  # `python -m perdure` is the command line
    named = {m for m in imported(path) if m.startswith(("perdure.cli", "perdure.conformance", "perdure.care"))}
    assert not named, f"{path.name} imports {named}"


@pytest.mark.parametrize("path", sorted((CORE / "care").glob("*.py")), ids=lambda path: path.name)
def test_store_care_knows_neither_the_command_line_nor_ray(path: Path) -> None:
    named = {m for m in imported(path) if m.startswith(("perdure.cli", "perdure.conformance", "ray", "typer", "rich"))}
    assert not named, f"{path.name} imports {named}"


RAY_SIDE = ("perdure.onray", "perdure.events")
LAZILY = {"code_names": "finds decorated functions", "errors": "unpacks a cause", "http_events": "waits in a listener"}


@pytest.mark.parametrize("path", sorted(CORE.glob("*.py")), ids=lambda path: path.name)
def test_the_durable_core_knows_no_ray(path: Path) -> None:
    """What the simulation drives is what runs: the engine gets Ray, clock and random from outside."""
    if path.stem == "workflow":
        return  # the public API is where both sides meet
    named = {m for m in imported(path) if m.split(".")[0] == "ray" or m.startswith(RAY_SIDE)}
    assert not named or path.stem in LAZILY, f"{path.name} imports {named}"


def test_batches_are_decided_without_ray() -> None:
    assert not any(m.split(".")[0] == "ray" for m in imported(CORE / "onray" / "batching.py"))


def test_importing_perdure_imports_no_ray_and_no_heavy_library() -> None:
    import subprocess
    import sys

    heavy = ("ray", "pyarrow", "numpy", "s3fs", "gcsfs", "redis", "typer")
    code = f"import sys, perdure; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
