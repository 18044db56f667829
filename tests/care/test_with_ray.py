"""Store care beside real clusters: what Ray's workers have stored is copied, collected around, and gone on with."""

from __future__ import annotations

import json
from pathlib import Path

from support.commands import here
from support.runs import Driver, eventually, lines
from support.stored import done, keys_below

_TASKS = """
NOTES = sys.argv[2]

@ray.remote
def large(n):
    open(NOTES, "a").write(f"large {n}\\n")
    return {"bytes": bytes([n]) * 100_000, "ref": ray.put(bytes([n + 1]) * 50_000)}

@ray.remote
def inner(a, b):
    open(NOTES, "a").write("inner\\n")
    return [a["ref"], b["ref"]]

@ray.remote
def wait_for_file(refs):
    while not os.path.exists(NOTES + ".go"):
        time.sleep(0.05)
    return sum(len(value) for value in ray.get(refs))
"""
_START = (
    _TASKS
    + """
dag = wait_for_file.bind(inner.bind(large.bind(1), large.bind(2)))
workflow.run_async(dag, workflow_id="w")
print("started", flush=True)
time.sleep(600)
"""
)
_RESUME = (
    _TASKS
    + """
print(workflow.resume("w"))
"""
)


def test_a_workflow_of_a_killed_cluster_goes_on_in_another_store_with_all_its_values(tmp_path: Path) -> None:
    first, second, notes = tmp_path / "first", tmp_path / "second", tmp_path / "notes"
    with Driver(first, _START, str(notes)) as driver:
        eventually(lambda: len(done(first, "w")) == 3 if (first / "w").exists() else False, "three tasks are stored")
        driver.kill()
    copied = here("copy", f"file://{first}", f"file://{second}", "-o", "json")
    assert copied.code == 0, copied.err
    assert json.loads(copied.out)[0]["result"] == "copied"
    assert here("verify", f"file://{second}").code == 0
    Path(f"{notes}.go").touch()
    with Driver(second, _RESUME, str(notes)) as driver:
        assert driver.finish().split()[-1] == "100000"
    assert sorted(lines(notes)) == ["inner", "large 1", "large 2"]


def test_a_collection_beside_a_busy_cluster_takes_only_what_nobody_needs(tmp_path: Path) -> None:
    store, notes = tmp_path / "store", tmp_path / "notes"
    body = (
        _TASKS
        + """
workflow.run(inner.bind(large.bind(7), large.bind(8)), workflow_id="old")
workflow.delete("old")
ref = workflow.run_async(wait_for_file.bind(inner.bind(large.bind(1), large.bind(2))), workflow_id="w")
print("ready", flush=True)
assert ray.get(ref) == 100_000
again = inner.options(name="again").bind(large.bind(9), large.bind(10))
print(workflow.run(again, workflow_id="new") is not None, flush=True)
while not os.path.exists(sys.argv[2] + ".end"):
    time.sleep(0.05)
"""
    )
    with Driver(store, body, str(notes)) as driver:
        assert driver.process.stdout is not None
        assert driver.process.stdout.readline().strip() == "ready"
        eventually(lambda: len(done(store, "w")) == 3, "three tasks are stored")
        held = json.loads(here("gc", f"file://{store}", "-o", "json", "--wait", "8").out)
        assert list(held["holding"].values()) != []  # a task began before the cycle
        assert held["counts"]["blob"] == 0
        Path(f"{notes}.go").touch()
        freed = json.loads(here("gc", f"file://{store}", "-o", "json", "--wait", "60").out)
        Path(f"{notes}.end").touch()
        assert freed["holding"] == {}
        assert freed["counts"]["blob"] >= 3
        assert driver.finish().split()[-1] == "True"
    assert here("verify", f"file://{store}").code == 0
    assert {key.split("/")[1] for key in keys_below(store, "blobs/")} > {"0"}  # "new" began in a later cycle
