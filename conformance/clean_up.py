"""Leaves nothing behind: the marker of a run, the sweep of its prefixes, and of runs that died.

Deletes only below ``perdure-conformance/<run>/``. A marker object comes first and carries the run's deadline
and prefixes, so that a later start (or ``sweep``) can remove what a killed run left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from typing import Any

from perdure.conformance.subject import StoreSubject
from perdure.errors import StoreError

ROOT = "perdure-conformance"


async def empty(subject: StoreSubject, url: str) -> bool:
    """Delete every key of the store at ``url``; whether none is left."""
    store = subject.open(url)
    try:
        for _ in range(3):
            keys = [key async for key, _ in store.list("")]
            if not keys:
                return True
            for start in range(0, len(keys), 32):
                await asyncio.gather(*(store.delete(k) for k in keys[start : start + 32]), return_exceptions=True)
        return not [k async for k, _ in store.list("", limit=1)]
    finally:
        with contextlib.suppress(Exception):
            await store.aclose()


async def sweep_urls(subject: StoreSubject, urls: list[str], run: str, seconds: float = 30.0) -> list[str]:
    """Empty the stores at ``urls``, all of which lie in this run's prefix. Returns those that are not empty after
    ``seconds`` each."""
    left: list[str] = []
    for url in reversed(urls):
        root = subject.local_root(url)
        if root is not None and run and run in root.parts and ROOT in root.parts:
            await asyncio.to_thread(shutil.rmtree, root, ignore_errors=True)
            if not root.exists():
                continue
        try:
            async with asyncio.timeout(seconds):
                if await empty(subject, url):
                    continue
        except Exception:
            pass
        left.append(url)
    return left


async def remaining(subject: StoreSubject, urls: list[str]) -> list[str]:
    """What could not be removed from these stores, as text: up to 20 keys each."""
    texts: list[str] = []
    for url in urls:
        try:
            async with asyncio.timeout(30):
                store = subject.open(url)
                try:
                    texts += [f"{url}: {key}" async for key, _ in store.list("", limit=20)]
                finally:
                    await store.aclose()
        except Exception as error:
            texts.append(f"{url}: {type(error).__name__}: {error}")
    return texts


def remove_folder(subject: StoreSubject, url: str, run: str) -> None:
    """Remove the emptied folder of a run on this machine's disk, and the parent if nothing else is in it."""
    root = subject.local_root(url)
    if root is None or run not in root.parts or ROOT not in root.parts:
        return
    shutil.rmtree(root, ignore_errors=True)
    with contextlib.suppress(OSError):
        if root.parent.name == ROOT:
            root.parent.rmdir()


async def write_marker(subject: StoreSubject, base: str, run: str, deadline: float, paths: list[str]) -> None:
    """Say who is at work here until when. ``deadline`` is wall-clock seconds."""
    store = subject.open(subject.at(base, ROOT))
    try:
        text = json.dumps({"run": run, "deadline": deadline, "paths": paths}).encode()
        await store.put(f"runs/{run}.json", text)
    finally:
        await store.aclose()


async def remove_marker(subject: StoreSubject, base: str, run: str) -> None:
    store = subject.open(subject.at(base, ROOT))
    try:
        await store.delete(f"runs/{run}.json")
    finally:
        await store.aclose()


async def sweep(subject: StoreSubject, base: str, now: float | None = None) -> tuple[list[str], list[str]]:
    """Remove the runs whose marker is past its deadline. Returns (runs removed, what could not go)."""
    now = time.time() if now is None else now
    store = subject.open(subject.at(base, ROOT))
    removed: list[str] = []
    left: list[str] = []
    try:
        markers: list[dict[str, Any]] = []
        async for key, _ in store.list("runs/"):
            try:
                marker = json.loads(bytes(await store.get(key)))
                if not isinstance(marker, dict) or marker["deadline"] > now or key != f"runs/{marker['run']}.json":
                    continue
                markers.append(marker)
            except (ValueError, KeyError, TypeError, StoreError):
                left.append(f"{key}: not a marker of ours")
        for marker in markers:
            run = marker["run"]
            urls = [subject.at(base, f"{ROOT}/{run}/{path}") for path in marker["paths"]]
            full = await sweep_urls(subject, urls, run)
            remove_folder(subject, subject.at(base, f"{ROOT}/{run}"), run)
            left += await remaining(subject, full)
            if not full:
                await store.delete(f"runs/{run}.json")
                removed.append(run)
    finally:
        await store.aclose()
    return removed, left
