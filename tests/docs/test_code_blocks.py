"""Every code block of the README and the docs runs.

A page is one story: its ``python`` blocks run in order in one process with its own Ray cluster, its ``bash`` blocks
in one shell. A block that can't run here has ``<!-- test: skip (reason) -->`` on the line above it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^(?P<above>[^\n]*)\n[ ]*```(?P<kind>\w+)[^\n]*\n(?P<text>.*?)^[ ]*```", re.S | re.M)
SKIP = re.compile(r"<!-- test: skip \((?P<reason>.+)\) -->")
MOST_SKIPPED = 20
HAVE_TESTS_OF_THEIR_OWN = {"writing-a-store.md", "writing-a-serializer.md", "types.md", "format.md"}
"""Their blocks are parts of plugins, which tests/stores and tests/values put together and run."""


@dataclass(frozen=True)
class Block:
    kind: str
    text: str
    skip: str


def blocks(page: Path) -> list[Block]:
    found = []
    for match in BLOCK.finditer("\n" + page.read_text()):
        skip = SKIP.search(match["above"])
        found.append(Block(match["kind"], textwrap.dedent(match["text"]), skip["reason"] if skip else ""))
    return found


def of_kind(kind: str) -> list[Path]:
    return [
        page
        for page in PAGES
        if page.name not in HAVE_TESTS_OF_THEIR_OWN and any(b.kind == kind and not b.skip for b in blocks(page))
    ]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", of_kind("python"), ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    script = tmp_path / "page.py"
    begin = (
        "import ray\n"
        'ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)\n'
    )
    script.write_text(begin + "\n".join(b.text for b in blocks(page) if b.kind == "python" and not b.skip))
    env = {**os.environ, "PERDURE_STORAGE": f"file://{tmp_path}/store"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, f"{page.name}:\n{done.stdout}\n{done.stderr}"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", of_kind("bash"), ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Path, tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(b.text for b in blocks(page) if b.kind == "bash" and not b.skip)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PERDURE_STORAGE": f"file://{tmp_path}/store"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert done.returncode == 0, f"{page.name}:\n{done.stdout}\n{done.stderr}"


def test_few_blocks_are_left_out_and_each_says_why() -> None:
    skipped = [(page.name, b.skip) for page in PAGES for b in blocks(page) if b.skip]
    assert len(skipped) <= MOST_SKIPPED, skipped
    assert all(len(reason) > 10 for _, reason in skipped)


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
