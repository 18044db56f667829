"""CI runs a failed test of real processes once more, and names it in the summary; see CONTRIBUTING.md."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

REAL = {"care", "cli", "cluster", "crash", "events", "remote", "workflow"}
"""Folders whose tests kill, pause and race real processes on a machine that others may keep busy. All else (the
simulation, the pure parts, the suite and its stores) gives the same answer each time, and is not run again."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("CI"):
        for item in items:
            if Path(item.path).relative_to(Path(__file__).parent).parts[0] in REAL:
                item.add_marker(pytest.mark.flaky(reruns=1))
