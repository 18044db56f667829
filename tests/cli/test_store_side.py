"""What only commands without a cluster do; see test_commands for what they print."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.clusters import until
from support.commands import here
from support.runs import Driver

from perdure.cli.store_side import StoreSide
from perdure.status import WorkflowStatus

_BODY = """
@ray.remote
def add(a, b):
    return a + b

@ray.remote
def held(value):
    return {"inside": [ray.put(value)]}

@ray.remote
def hang():
    time.sleep(600)

workflow.run(add.bind(1, add.bind(2, 3)), workflow_id="sum")
workflow.run(held.bind(7), workflow_id="held")
for name in ("cancelled", "open"):
    workflow.run_async(add.bind(hang.bind(), add.bind(1, 1)), workflow_id=name)
workflow.cancel("cancelled")
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """sum and held are SUCCESSFUL, cancelled CANCELED, open RESUMABLE: its cluster was killed."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    with Driver(folder, _BODY) as driver:
        assert driver.process.stdout is not None
        line = driver.process.stdout.readline()
        assert line.strip() == "ready", driver._said()
        driver.kill()
    url = f"file://{folder}"
    until(lambda: StoreSide(url).status("open") is WorkflowStatus.RESUMABLE, "the killed coordinator is gone")
    return url


def test_a_table_that_is_not_on_a_terminal_is_tab_separated_and_whole(store: str) -> None:
    lines = here("list", "-s", store).out.splitlines()
    assert lines[0].split("\t") == ["WORKFLOW", "STATUS", "STARTED", "TOOK"]
    assert lines[1].split("\t")[:2] == ["sum", "SUCCESSFUL"]
    assert all(len(line.split("\t")) == 4 for line in lines)


def test_output_shows_what_references_refer_to(store: str) -> None:
    assert here("output", "held", "-s", store, "-o", "json").json["value"] == {"inside": [7]}


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    for words in (["list"], ["delete", "a"], ["cancel", "a"]):
        found = here(*words, "-s", str(tmp_path))
        assert found.code == 5
        assert "not a Perdure store" in found.err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_reading_writes_nothing(store: str) -> None:
    root = Path(store.removeprefix("file://"))

    def content() -> list[Path]:
        return sorted(p for p in root.rglob("*") if p.is_file() and ".tmp" not in p.parts)

    before = content()
    for words in (["list"], ["status", "sum"], ["describe", "open"], ["output", "sum"], ["logs", "open"]):
        here(*words, "-s", store)
    assert content() == before


def test_reading_commands_import_no_ray(store: str) -> None:
    script = (
        "import sys; from perdure.cli.store_side import StoreSide; import perdure.cli.app\n"
        f"StoreSide({store!r}).list_all(); StoreSide({store!r}).describe('sum')\n"
        "assert 'ray' not in sys.modules, 'ray was imported'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_the_kinds_of_ends_have_their_own_codes(store: str) -> None:
    for workflow_id, code in {"sum": 0, "cancelled": 6, "open": 4, "none": 3}.items():
        assert here("output", workflow_id, "-s", store).code == code
        assert here("status", workflow_id, "-s", store, "--exit-code").code == code


def test_a_finished_workflow_stays_as_it_is_when_it_is_cancelled(store: str) -> None:
    assert here("cancel", "sum", "-s", store).out == "SUCCESSFUL\n"
