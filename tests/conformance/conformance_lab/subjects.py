"""Subjects for the laboratory's stores: picklable, with all hooks that such a store can offer."""

from __future__ import annotations

import sys
import urllib.parse
from pathlib import Path
from typing import Any

from conformance_lab import wire
from conformance_lab.folder import FolderStore
from perdure.conformance.subject import StoreSubject

REMOTE = f"""
import sys
sys.path[:0] = {[p for p in sys.path if p]!r}
import asyncio
from conformance_lab.wire import WireStore
from perdure.errors import AlreadyExists, NotFound
async def main():
    url, first, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    store = WireStore(url)
    await store.put("remote-ready", b"x")
    while True:
        try:
            await store.get("go")
            break
        except NotFound:
            await asyncio.sleep(0.005)
    won = []
    for n in range(count):
        try:
            await store.create(f"r/{{n}}", first.encode())
            won.append(n)
        except AlreadyExists:
            pass
    print("WON", *won)
    await store.aclose()
asyncio.run(main())
"""


class FolderSubject(StoreSubject):
    """The right folder store (or a broken one by class)."""

    def __init__(self, root: str, store_class: type = FolderStore) -> None:
        self.url = f"folder-lab://{urllib.parse.quote(root)}"
        self.store_class = store_class

    def open(self, url: str) -> Any:
        return self.store_class(url)

    def local_root(self, url: str) -> Path | None:
        return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))


class WireSubject(StoreSubject):
    """The right wire store (or a broken one by class), with a server of its own on ``root``."""

    secret = wire.SECRET
    remote_command = [sys.executable]  # noqa: RUF012
    remote_code = REMOTE

    def __init__(self, root: str, store_class: type = wire.WireStore, sloppy: str = "") -> None:
        self.root = root
        self.sloppy = sloppy
        self.port = wire.free_port()
        self.upstream = ("127.0.0.1", self.port)
        self.url = f"wire-lab://127.0.0.1:{self.port}/lab"
        self.wrong_secret_url = f"{self.url}/denied?account=stranger"
        self.denied_url = self.wrong_secret_url
        self.wrong_secret = "wr0ng-s3cret"
        self.store_class = store_class
        Path(root, "data").mkdir(parents=True, exist_ok=True)

    def start(self) -> WireSubject:
        wire.start_server(Path(self.root), self.port, self.sloppy)
        return self

    def stop(self) -> None:
        wire.stop_server(Path(self.root))

    def open(self, url: str) -> Any:
        return self.store_class(url)

    def proxied_url(self, host: str, port: int) -> str:
        return f"wire-lab://{host}:{port}/lab"

    def local_root(self, url: str) -> Path | None:
        return None

    def restart(self) -> None:
        wire.stop_server(Path(self.root), 15)
        self.start()

    def kill(self) -> None:
        wire.stop_server(Path(self.root))
        self.start()


async def instantly(store: object) -> None:
    """A racer's call that nobody can meet."""
