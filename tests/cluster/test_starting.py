"""Connecting and starting: deadlines, what their errors say, tokens, versions."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.clusters import Console, Head, Refused


def test_a_dead_address_is_told_within_seconds(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(Refused) as refused:
        Console("127.0.0.1:9", storage=str(tmp_path))
    assert refused.value.kind == "ClusterError"
    assert "127.0.0.1:9" in refused.value.text
    assert time.monotonic() - began < 30


def test_workers_without_perdure_are_told_with_what_to_install(tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    (shadow / "perdure").mkdir(parents=True)
    (shadow / "perdure" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'perdure'\")\n")
    with Head(env={"PYTHONPATH": str(shadow)}) as head:
        with pytest.raises(Refused) as refused:
            Console(head, env={"PYTHONPATH": None}, storage=str(tmp_path / "store"))
        assert refused.value.kind == "ClusterError"
        assert "can't import perdure" in refused.value.text
        assert "py_modules" in refused.value.text
        # no broken coordinator stays: the same again, at once
        with pytest.raises(Refused) as refused:
            Console(head, env={"PYTHONPATH": None}, storage=str(tmp_path / "store"))
        assert "can't import perdure" in refused.value.text


def test_a_coordinator_that_hangs_is_told_with_the_workers_log(bare: Head, tmp_path: Path) -> None:
    with Console(bare, storage=str(tmp_path / "s")) as console:
        kind, text, seconds = console.do(
            "execute",
            """
import os, signal, time
from perdure.onray import cluster
pid = cluster.connected().hello["pid"]
os.kill(pid, signal.SIGSTOP)
cluster.CONNECT_SECONDS = 1.5
cluster.disconnect()
began = time.time()
try:
    cluster.init()
except Exception as error:
    out = [type(error).__name__, str(error), time.time() - began]
os.kill(pid, signal.SIGCONT)
""",
        )
    assert kind == "ClusterError"
    assert "did not answer within 1.5 s" in text
    assert "/logs" in text
    assert seconds < 10


def test_another_protocol_is_one_clear_error_and_leaves_the_coordinator_alone(console: Console) -> None:
    kind, text = console.do(
        "execute",
        """
from perdure.onray import cluster
try:
    cluster.connected().call("hello", "99.0", 99)
except Exception as error:
    out = [type(error).__name__, str(error)]
""",
    )
    assert kind == "ClusterError"
    assert "99.0 (protocol 99)" in text
    assert console.do("coordinator")["pid"] == console.hello["pid"]


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_drivers_find_out_whether_the_cluster_demands_tokens(tmp_path: Path, mode: str) -> None:
    """The token lies in the user's home; the driver's own environment says nothing."""
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("0123456789abcdef" * 4)
    code = "import ray\nfrom perdure import workflow\nout = workflow.run(ray.remote(lambda: 5).bind())"
    with (
        Head(env={"HOME": str(tmp_path), "RAY_AUTH_MODE": mode}) as head,
        Console(head, env={"RAY_AUTH_MODE": None}, storage=str(tmp_path / "store")) as console,
    ):
        assert console.do("execute", code) == 5
        if mode == "token":
            with pytest.raises(Refused) as refused:
                Console(head, env={"RAY_AUTH_MODE": "disabled"}, storage=str(tmp_path / "store"))
            assert refused.value.kind == "ClusterError"
            assert "RAY_AUTH_MODE" in refused.value.text
