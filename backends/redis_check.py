"""What a Redis server's settings mean for acknowledged work.

Owns the judgement only: it reads settings and never changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import redis.asyncio as redis
from redis import exceptions as redis_errors

from perdure.errors import StoreError

Durability: TypeAlias = Literal["process", "server", "power"]


async def check(client: redis.Redis, durability: Durability, accept_loss: bool) -> tuple[str, list[str]]:
    """The server's name and warnings. StoreError where it would lose more than the options accept."""
    info: Mapping[str, Any] = await client.info("everything")
    settings = await _settings(client)
    name = f"{'valkey' if 'valkey_version' in info else 'redis-server'} {info.get('redis_version', '?')}"
    warnings: list[str] = []

    def refuse(what: str, loss: str, remedy: str, option: str) -> None:
        text = f"{name}: {what}: {loss}. {remedy}"
        accepted = accept_loss if option == "accept_loss=true" else False
        if not accepted:
            raise StoreError(f"{text}, or accept it with ?{option}")
        warnings.append(text)

    _check_file(info, settings, durability, refuse)
    policy = str(settings.get("maxmemory-policy", info.get("maxmemory_policy", "noeviction")))
    if int(settings.get("maxmemory", info.get("maxmemory", 0)) or 0) and policy != "noeviction":
        refuse(
            f"maxmemory-policy is {policy}",
            "a full memory would remove acknowledged work silently",
            "Set maxmemory-policy noeviction",
            "accept_loss=true",
        )
    failover = (
        "cluster mode"
        if int(info.get("cluster_enabled", 0) or 0)
        else "it is a replica"
        if info.get("role") == "slave"
        else f"{info['connected_slaves']} replicas are connected"
        if int(info.get("connected_slaves", 0) or 0)
        else ""
    )
    if failover:
        refuse(
            failover,
            "replication lags, so a failover may drop an acknowledged create and let another win it",
            "Use a single server with appendfsync always",
            "accept_loss=true",
        )
    if not settings:
        warnings.append(f"{name}: CONFIG GET is not allowed, so appendfsync could not be checked; it must be always")
    return name, warnings


def _check_file(info: Mapping[str, Any], settings: Mapping[str, str], durability: Durability, refuse: Any) -> None:
    append_only = settings.get("appendonly", "yes" if int(info.get("aof_enabled", 0) or 0) else "no")
    if append_only != "yes":
        if durability != "process":
            refuse(
                "there is no append-only file",
                "a restart of the server loses acknowledged work",
                "Set appendonly yes and appendfsync always",
                "durability=process",
            )
    elif settings.get("appendfsync", "always") != "always" and durability == "power":
        refuse(
            f"appendfsync is {settings['appendfsync']}",
            "a power cut loses about the last second of acknowledged work",
            "Set appendfsync always",
            "durability=server",
        )


async def _settings(client: redis.Redis) -> dict[str, str]:
    try:
        answer: dict[str, str] = await client.config_get("appendonly", "appendfsync", "maxmemory*")
    except redis_errors.ResponseError:
        return {}  # managed services hide CONFIG
    return {
        (k.decode() if isinstance(k, bytes) else k): (v.decode() if isinstance(v, bytes) else v)
        for k, v in answer.items()
    }
