"""Distributions for tests: installed from a source folder into one of their own, as pip does it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path


def install(source: Path, folder: Path) -> Path:
    """Install a copy of the distribution at ``source`` below ``folder``; the folder to put on the path."""
    copy, site = folder / f"{source.name}-source", folder / f"{source.name}-site"
    shutil.copytree(source, copy)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--target", str(site), str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return site


def run(arguments: list[str], *sites: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """``python ARGUMENTS`` with the installed distributions on its path."""
    paths = os.pathsep.join([*map(str, sites), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
