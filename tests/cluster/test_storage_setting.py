"""Where a cluster's workflows are stored: who decides, who inherits, what is refused."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.clusters import Console, Head, Refused


def test_init_decides_and_later_drivers_inherit(bare: Head, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/a"
    with Console(bare, storage=str(tmp_path / "a")) as first:
        assert first.hello["storage"] == url
    with Console(bare, env={"PERDURE_STORAGE": f"file://{tmp_path}/other"}) as second:
        assert second.hello["storage"] == url, "the cluster's setting comes before the environment's"
        assert second.hello["coordinator"] == first.hello["coordinator"]
    with pytest.raises(Refused) as refused:
        Console(bare, storage=str(tmp_path / "b"))
    assert refused.value.kind == "ValueError"
    assert f"file://{tmp_path}/a" in refused.value.text
    assert f"file://{tmp_path}/b" in refused.value.text
    assert not (tmp_path / "b").exists()
    with pytest.raises(Refused) as refused:
        Console(bare, lease_seconds=7, max_running_workflows=3)
    assert "lease_seconds=7 (is 20.0)" in refused.value.text
    assert "max_running_workflows=3 (is -1)" in refused.value.text


def test_the_environment_decides_where_init_does_not(bare: Head, tmp_path: Path) -> None:
    with Console(bare, env={"PERDURE_STORAGE": str(tmp_path / "env")}) as console:
        assert console.hello["storage"] == f"file://{tmp_path}/env"


def test_without_a_setting_a_temporary_folder_is_used_and_said_once(bare: Head) -> None:
    with Console(bare) as first:
        url = first.hello["storage"]
        first.do("execute", "from perdure import workflow\nworkflow.init()\nworkflow.init()")
        log = first.process.errors()
    assert log.count(url.removeprefix("file://")) == 1, log
    assert "PERDURE_STORAGE" in log
    with Console(bare) as second:
        assert second.hello["storage"] == url
        assert url not in second.process.errors()


@pytest.mark.parametrize(
    ("storage", "kind", "words"),
    [
        ("/etc/passwd/store", "StoreError", "/etc/passwd"),
        ("memory://here", "ValueError", "one process"),
        ("nosuch://x", "PluginError", "nosuch"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_at_once_and_does_not_stay(
    bare: Head, tmp_path: Path, storage: str, kind: str, words: str
) -> None:
    began = time.monotonic()
    with pytest.raises(Refused) as refused:
        Console(bare, storage=storage, trust="all")
    assert refused.value.kind in (kind, "StoreUnavailable")
    assert words in refused.value.text
    assert time.monotonic() - began < 30
    with Console(bare, storage=str(tmp_path / "good")) as console:  # the bad one is forgotten
        assert console.hello["storage"] == f"file://{tmp_path}/good"


def test_a_folder_of_other_people_is_refused_and_left_alone(bare: Head, tmp_path: Path) -> None:
    (tmp_path / "mine.obj").write_text("precious")
    with pytest.raises(Refused) as refused:
        Console(bare, storage=str(tmp_path))
    assert refused.value.kind == "FormatError"
    assert "not a Perdure store" in refused.value.text
    assert not (tmp_path / "format.obj").exists()
