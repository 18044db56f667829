"""The job that `perdure demo` runs: sales of a made-up company, in Arrow tables, made and used up in one DAG.

Owns the tasks and the DAG. Nothing here knows that the cluster will be killed; a plain Ray user would write the same
file. The stages, for 16 shards and 8 regions (65 tasks):

    generate x16 → clean x16 → split x16 (ObjectRefs) → region x8 → ┐
                                                    sleep (a timer) → choose → continuation: detail x6 → report
"""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from perdure import workflow

SHARDS: Final = 16
REGIONS: Final = 8
BEST: Final = 3
ROWS: Final = 40_000
EXECUTIONS: Final = "PERDURE_DEMO_EXECUTIONS"
WORK_SECONDS: Final = 0.15
"""How long each task pretends to think, so that there is a middle to be killed in."""


def note_execution() -> None:
    """One line in a side file each time a task's body begins: what ran is counted, not believed."""
    import time

    path = os.environ.get(EXECUTIONS)
    if path:
        with open(path, "a") as file:
            file.write(workflow.context().task_id + "\n")
        time.sleep(WORK_SECONDS)


def generated(shard: int) -> pa.Table:
    rng = np.random.default_rng(shard)
    return pa.table(
        {
            "region": rng.integers(0, REGIONS, ROWS, dtype=np.int32),
            "product": rng.integers(0, 200, ROWS, dtype=np.int32),
            "units": rng.integers(-1, 10, ROWS, dtype=np.int32),
            "cents": rng.integers(100, 20_000, ROWS, dtype=np.int64),
        }
    )


def cleaned(orders: pa.Table) -> pa.Table:
    valid = orders.filter(pc.greater(orders["units"], 0))
    revenue = pc.multiply(valid["cents"], pc.cast(valid["units"], pa.int64()))
    return valid.append_column("revenue", revenue)


def by_region(orders: pa.Table) -> list[pa.Table]:
    return [orders.filter(pc.equal(orders["region"], region)) for region in range(REGIONS)]


def by_product(orders: pa.Table) -> pa.Table:
    grouped = orders.group_by("product").aggregate([("revenue", "sum"), ("units", "sum")])
    return grouped.sort_by([("revenue_sum", "descending"), ("product", "ascending")])


def chosen(totals: dict[int, int]) -> list[int]:
    return sorted(totals, key=lambda region: (-totals[region], region))[:BEST]


@ray.remote
def generate(shard: int) -> pa.Table:
    note_execution()
    return generated(shard)


@ray.remote
def clean(orders: pa.Table) -> pa.Table:
    note_execution()
    return cleaned(orders)


@ray.remote
def split(orders: pa.Table) -> list[Any]:
    """One ObjectRef for each region: they are checkpointed with the result."""
    note_execution()
    return [ray.put(table) for table in by_region(orders)]


@ray.remote
def region(number: int, shards: list[Any]) -> pa.Table:
    """``shards``: ObjectRefs of lists of ObjectRefs; only this region's tables are fetched."""
    note_execution()
    lists = ray.get(shards)
    return by_product(pa.concat_tables(ray.get([refs[number] for refs in lists])))


@ray.remote
def choose(regions: list[Any], late_orders: None) -> Any:
    """Decide with the data at hand how the job goes on: a continuation."""
    note_execution()
    tables = ray.get(regions)
    totals = {number: int(pc.sum(table["revenue_sum"]).as_py()) for number, table in enumerate(tables)}
    best = chosen(totals)
    details = [
        named(detail, f"detail.{kind}.{number}").bind(number, kind, regions[number])
        for number in best
        for kind in ("top", "rest")
    ]
    return workflow.continuation(named(report, "report").bind(totals, details))


@ray.remote
def detail(number: int, kind: str, products: pa.Table) -> dict[str, Any]:
    note_execution()
    return detailed(number, kind, products)


@ray.remote
def report(totals: dict[int, int], details: list[Any]) -> dict[str, Any]:
    note_execution()
    return reported(totals, ray.get(details))


def detailed(number: int, kind: str, products: pa.Table) -> dict[str, Any]:
    part = products.slice(0, 10) if kind == "top" else products.slice(10)
    return {
        "region": number,
        "kind": kind,
        "products": part.num_rows,
        "cents": int(pc.sum(part["revenue_sum"]).as_py()),
    }


def reported(totals: dict[int, int], details: list[dict[str, Any]]) -> dict[str, Any]:
    return {"cents": sum(totals.values()), "best": chosen(totals), "details": details}


def named(function: Any, task_id: str) -> Any:
    return function.options(**workflow.options(task_id=task_id))


def dag(late_seconds: float = 2.0) -> Any:
    """The whole job. ``late_seconds``: how long it waits for late orders, by a durable timer."""
    shards = []
    for number in range(SHARDS):
        orders = named(generate, f"generate.{number}").bind(number)
        shards.append(named(split, f"split.{number}").bind(named(clean, f"clean.{number}").bind(orders)))
    regions = [named(region, f"region.{number}").bind(number, shards) for number in range(REGIONS)]
    return named(choose, "choose").bind(regions, workflow.sleep(late_seconds))


def expected() -> dict[str, Any]:
    """The same answer without Ray and without Perdure, to compare with."""
    shards = [by_region(cleaned(generated(number))) for number in range(SHARDS)]
    tables = [by_product(pa.concat_tables([shard[number] for shard in shards])) for number in range(REGIONS)]
    totals = {number: int(pc.sum(table["revenue_sum"]).as_py()) for number, table in enumerate(tables)}
    details = [detailed(n, kind, tables[n]) for n in chosen(totals) for kind in ("top", "rest")]
    return reported(totals, details)
