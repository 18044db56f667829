"""Cases that others add by the entry point, from a distribution that is installed for this test only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.distributions import install, run

PROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "acme-rules"
version = "1.0.0"

[project.entry-points."perdure.conformance.cases"]
rules = "acme_rules"

[tool.setuptools]
py-modules = ["acme_rules"]
"""
CASES = '''
from perdure.conformance import Level, case


@case("{id}", Level.BASE, "ACME-1")
async def house_rule(t):
    """Acme's stores keep what they were given."""
    await t.store.put("k", b"x")
    t.same(await t.value("k"), b"x", "the value")


@case("{id_of_full}", Level.FULL, "ACME-2", needs=["multi_process"])
async def in_a_child(t):
    """A child process runs functions of this module."""
    async with t.child() as child:
        t.same(await child.call(read, t.url), None, "nothing there")


async def read(c, url):
    store = c.open(url)
    async for key, _ in store.list(""):
        return key
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "acme"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(PROJECT)
    return folder


def test_a_third_party_s_cases_are_listed_run_and_part_of_the_level(source: Path, tmp_path: Path) -> None:
    (source / "acme_rules.py").write_text(CASES.format(id="acme-rules-01", id_of_full="acme-rules-02"))
    site = install(source, tmp_path)
    listed = run(["-m", "perdure.conformance", "--list"], site, cwd=tmp_path)
    assert "acme-rules-01" in listed.stdout
    assert "acme-rules-02" not in listed.stdout
    done = run(
        [
            "-m",
            "perdure.conformance",
            f"file://{tmp_path}/s",
            "-k",
            "acme-rules-*",
            "--level",
            "full",
            "-q",
            "-o",
            "json",
        ],
        site,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {c["id"]: c["status"] for c in json.loads(done.stdout)["cases"]}
    assert found == {"acme-rules-01": "PASSED", "acme-rules-02": "PASSED"}
    explained = run(["-m", "perdure.conformance", "--explain", "acme-rules-01"], site, cwd=tmp_path)
    assert "Acme's stores keep what they were given." in explained.stdout


@pytest.mark.parametrize(
    ("id", "why"),
    [("create-99", "must begin with 'acme-rules-'"), ("create-06", "is taken by perdure.conformance.cases")],
)
def test_an_id_that_could_be_ours_is_refused_with_its_distribution(
    id: str, why: str, source: Path, tmp_path: Path
) -> None:
    (source / "acme_rules.py").write_text(CASES.format(id=id, id_of_full="acme-rules-02"))
    site = install(source, tmp_path)
    done = run(["-m", "perdure.conformance", f"file://{tmp_path}/s", "-k", "key-01", "-q"], site, cwd=tmp_path)
    assert done.returncode == 8, (done.returncode, done.stdout, done.stderr)
    assert why in done.stderr
    assert "acme-rules" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_module_of_cases_is_named_and_stops_the_run(source: Path, tmp_path: Path) -> None:
    (source / "acme_rules.py").write_text("import no_such_module\n")
    site = install(source, tmp_path)
    done = run(["-m", "perdure.conformance", f"file://{tmp_path}/s", "-k", "key-01", "-q"], site, cwd=tmp_path)
    assert done.returncode == 8, (done.returncode, done.stdout, done.stderr)
    assert "acme-rules" in done.stderr
    assert "no_such_module" in done.stderr
    assert "Traceback" not in done.stderr
