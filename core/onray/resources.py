"""What a task asks of the cluster, and whether any node has it.

Owns the words that say what a task waits for. It decides nothing: a node may come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def demand(ray_options: Mapping[str, Any]) -> dict[str, float]:
    """Ray's names of resources and how much of each; a task needs one CPU where it says nothing."""
    asked = {"CPU": float(1 if ray_options.get("num_cpus") is None else ray_options["num_cpus"])}
    for option, name in (("num_gpus", "GPU"), ("memory", "memory")):
        if ray_options.get(option):
            asked[name] = float(ray_options[option])
    for name, amount in (ray_options.get("resources") or {}).items():
        asked[name] = float(amount)
    return {name: amount for name, amount in asked.items() if amount > 0}


def unmet(ray_options: Mapping[str, Any], nodes: Iterable[Mapping[str, Any]]) -> str:
    """Which resources no living node has (as `ray.nodes` lists them), in words; "" where one node has them all."""
    asked = demand(ray_options)
    totals = [node["Resources"] for node in nodes if node["Alive"]]
    if any(all(total.get(name, 0) >= amount for name, amount in asked.items()) for total in totals):
        return ""
    missing = {
        name: amount for name, amount in asked.items() if all(total.get(name, 0) < amount for total in totals)
    } or asked  # each is somewhere, but not on one node
    shown = ", ".join(
        f"{name} {amount:g} (most on one node: {_most(name, totals):g})" for name, amount in missing.items()
    )
    return f"no node of the cluster has {shown}"


def _most(name: str, totals: list[Mapping[str, float]]) -> float:
    return max((total.get(name, 0.0) for total in totals), default=0.0)
