"""What a worker process keeps between attempts: the store, loaded functions, a loop for I/O.

Owns this process's settings for values and whose code it holds; drivers and the coordinator have one too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import importlib
import os
import sys
import threading
import time
from typing import Any, Final

import ray

from perdure.clock import SystemClock
from perdure.onray import patience
from perdure.onray.dag import FunctionCache
from perdure.seal import check_blob
from perdure.value_settings import settings_from

_STAY_SECONDS: Final = 10.0


class Process:
    """What a worker process keeps between attempts: the store, loaded functions, a loop for I/O."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """As if nothing had run yet: after a fork, loops, locks and connections are the parent's."""
        self.lock = threading.Lock()
        self.loop: asyncio.AbstractEventLoop | None = None
        self.stores: dict[str, Any] = {}
        self.functions: dict[str, Any] = {}
        self.settings = settings_from("")
        self.values = self.settings.values()
        self.cache = FunctionCache(self.values)
        self.offsets: dict[str, float] = {}
        self.clock = SystemClock()
        self.anchor: ray.ObjectRef | None = None
        self.used = 0.0
        self.context = ""
        self.folders: tuple[str, ...] = ()

    def configure(self, settings: str) -> None:
        """Store and load values as this cluster does (`ValueSettings.encode`)."""
        wanted = settings_from(settings)
        if wanted != self.settings:
            self.settings = wanted
            self.values = wanted.values()
            self.cache = FunctionCache(self.values)
            self.stores.clear()
            self.functions.clear()

    def enter(self, digest: str, folders: tuple[str, ...], settings: str) -> None:
        """Before code of a driver runs: its folders on sys.path, and nothing left of another driver's.

        Ray gives every job workers of its own; ours run tasks of many drivers. So what an earlier driver's folders
        brought in is forgotten: a module of the same name is imported anew, also where only its text has changed.
        """
        self.configure(settings)
        if digest == self.context:
            return
        left = tuple(folder.rstrip(os.sep) + os.sep for folder in self.folders)
        if left:
            for name, module in list(sys.modules.items()):
                file = getattr(module, "__file__", None)
                if file and file.startswith(left) and name != "__main__":
                    del sys.modules[name]
            sys.path[:] = [path for path in sys.path if path not in self.folders]
        self.functions.clear()
        self.cache = FunctionCache(self.values)
        self.folders = tuple(f for f in folders if f not in sys.path and os.path.isdir(f))
        sys.path.extend(self.folders)
        importlib.invalidate_caches()
        self.context = digest

    def stay(self) -> None:
        """Keep Ray from ending this worker while tasks follow each other.

        Ray ends idle workers beyond one a CPU, first those of jobs like ours that came after the cluster's first
        driver, whose prestarted workers idle on: then every pause of a millisecond costs a new process (0.5 s). A
        worker that holds an ObjectRef is spared; it lets go after `_STAY_SECONDS` without a task.
        """
        self.used = time.monotonic()
        if self.anchor is None:
            with self.lock:
                self.anchor = ray.put(None)
                threading.Thread(target=self._let_go, name="perdure-stay", daemon=True).start()

    def _let_go(self) -> None:
        while (left := self.used + _STAY_SECONDS - time.monotonic()) > 0:
            time.sleep(left)
        self.anchor = None

    def wait(self, coroutine: Any) -> Any:
        """Run a coroutine on this process's own loop (a thread) and wait for it."""
        return self.begin(coroutine).result()

    def begin(self, coroutine: Any) -> concurrent.futures.Future[Any]:
        """Run a coroutine on this process's own loop, from any thread or loop."""
        with self.lock:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                threading.Thread(target=self.loop.run_forever, name="perdure-io", daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def store(self, url: str) -> Any:
        with self.lock:
            store = self.stores.get(url)
            if store is None:
                from perdure.guarded_store import GuardedStore
                from perdure.store import open_store

                store = self.stores[url] = GuardedStore(open_store(url))
        return store

    def get(self, url: str, key: str) -> Any:
        store = self.store(url).store
        data = self.wait(patience.patiently(lambda: store.get(key), f"reading {key}", patience.LOAD_PATIENCE))
        if self.settings.trust == "signed":
            check_blob(key, data)
        return data


PROCESS = Process()


os.register_at_fork(after_in_child=PROCESS.begin_anew)


def boot_id() -> str:
    global _boot
    if not _boot:
        try:
            with open("/proc/sys/kernel/random/boot_id") as file:
                _boot = file.read().strip()
        except OSError:
            _boot = hashlib.blake2b(os.urandom(16), digest_size=8).hexdigest()
    return _boot


_boot = ""
