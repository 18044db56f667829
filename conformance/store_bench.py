"""Prepares a store for its cases: opens it, learns its facts, gives each case a fresh prefix, cleans up."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shlex
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from perdure.conformance import clean_up
from perdure.conformance.cases import STORE_MODULES
from perdure.conformance.child import ChildContext
from perdure.conformance.observed import Seen
from perdure.conformance.processes import Nursery
from perdure.conformance.register import Case, Kind
from perdure.conformance.runner import OutOfReach
from perdure.conformance.subject import Facts, Gap, StoreSubject
from perdure.conformance.trial import Judge, Trial

CLEAN_SECONDS = 300.0
"""For what is left at the end of a run, for each place."""


@dataclasses.dataclass(slots=True)
class Shared:
    """What cases of one run leave for each other: the errors seen, for ``error-01`` and its like."""

    errors: list[Seen] = dataclasses.field(default_factory=list)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    shown: dict[str, Any] = dataclasses.field(default_factory=dict)


class StoreBench:
    """The bench of ``Kind.STORE``."""

    kind = Kind.STORE

    def __init__(self, subject: StoreSubject, *, seed: int, keep: bool = False, command: str = "") -> None:
        self.subject = subject
        self.seed = seed
        self.keep = keep
        self.run = f"{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid():x}-{os.urandom(3).hex()}"
        self.base = ""
        self.facts = Facts(subject, None)
        self.nursery = Nursery(subject, [f"perdure.conformance.cases.{name}" for name in STORE_MODULES])
        self.shared = Shared()
        self.latency: dict[str, Any] = {}
        self.left: list[str] = []
        self._unswept: list[str] = []
        self._open: list[Trial] = []
        self._command = command
        self._prepared = False
        self._store_url = ""
        self._plugin = ""

    # --- before --------------------------------------------------------------------------------------------
    async def prepare(self, cases: Sequence[Case], deadline: float) -> None:
        try:
            self.base = self.subject.make_url()
            # Small units first: whatever fails here means that there is nothing to judge.
            store = self.subject.open(self.subject.at(self.base, f"{clean_up.ROOT}/{self.run}/probe"))
            self.facts.capabilities = store.capabilities
            self._store_url = self.redact(str(store.url))
            self._plugin = plugin_of(store)
            self.announce(self.facts.declared("latency"))
            await clean_up.write_marker(self.subject, self.base, self.run, deadline, ["probe", *(c.id for c in cases)])
            self._prepared = True
            await self._measure(store)
            await store.aclose()
        except Exception as error:
            raise OutOfReach(
                f"the store could not be opened, written and read: {type(error).__name__}: {self.redact(str(error))}"
            ) from error
        module = type(store).__module__
        self.nursery.preload += [module] if module.startswith("perdure.") else []
        if self.facts.declared("multi_process"):
            async with self.nursery.crew(1) as (child,):
                with contextlib.suppress(Exception):
                    self.facts.uses_network = bool(await child.call(_sockets_used, self._probe_url())) or bool(
                        self.facts.uses_network
                    )
        if self.subject.has("upstream") and self.subject.has("proxied_url") and self.facts.uses_network:
            self.facts.speaks_http = await self._speaks_http()
        with contextlib.suppress(Exception):
            await clean_up.sweep(self.subject, self.base)

    def announce(self, latency: str) -> None:
        """Called with the declared latency class before anything but a probe was written."""

    def _probe_url(self) -> str:
        return self.subject.at(self.base, f"{clean_up.ROOT}/{self.run}/probe")

    async def _measure(self, store: Any) -> None:
        before = tcp_sockets()
        numbers: dict[str, list[float]] = {"create": [], "get": [], "delete": []}
        for i in range(20):
            for name, call in (
                ("create", lambda i=i: store.create(f"latency/{i}", b"x" * 100)),
                ("get", lambda i=i: store.get(f"latency/{i}")),
                ("delete", lambda i=i: store.delete(f"latency/{i}")),
            ):
                start = time.perf_counter()
                await call()  # type: ignore[no-untyped-call]
                numbers[name].append(time.perf_counter() - start)
        self.facts.latency = statistics.median(numbers["get"])
        self.facts.uses_network = bool(tcp_sockets() - before)
        self.latency = {
            name: {
                "median_ms": round(statistics.median(values) * 1000, 3),
                "worst_ms": round(max(values) * 1000, 3),
                "histogram": histogram(values),
            }
            for name, values in numbers.items()
        }

    async def _speaks_http(self) -> bool:
        from perdure.conformance.proxy import FaultProxy

        upstream = self.subject.upstream
        assert upstream is not None
        async with FaultProxy(upstream) as proxy:
            url = self.subject.proxied_url(*proxy.address)  # type: ignore[attr-defined]
            store = self.subject.open(self.subject.at(url, f"{clean_up.ROOT}/{self.run}/probe"))
            try:
                await store.put("http", b"?")
                await store.delete("http")
            finally:
                await store.aclose()
            if not proxy.requests:
                raise OutOfReach("the hook `proxied_url` does not lead through the proxy: no request came")
            return proxy.http

    # --- during --------------------------------------------------------------------------------------------
    def scale(self) -> float:
        """How much longer a case may take than on a local store of an idle machine."""
        try:
            load = os.getloadavg()[0] / (os.cpu_count() or 1)
        except OSError:
            load = 1.0
        return min(20.0, max(1.0, self.subject.patience, self.facts.latency / 0.002, load))

    def gap(self, need: str) -> Gap | None:
        return self.facts.gap(need)

    def trial(self, case: Case) -> Trial:
        path = f"{clean_up.ROOT}/{self.run}/{case.id}"
        trial = Trial(
            case, self.seed, self.subject, self.facts, self.nursery, self.subject.at(self.base, path), self.shared
        )
        trial.path = path
        self._open.append(trial)
        return trial

    async def after(self, trial: Judge) -> None:
        assert isinstance(trial, Trial)
        with self.shared.lock:
            self.shared.errors.extend(trial.recorder.errors)
        await trial.close_all()
        if not self.keep:
            self._unswept += await clean_up.sweep_urls(self.subject, trial.urls, self.run)
        self._open.remove(trial)

    def command(self, case: Case) -> str:
        if self._command:
            return f"{self._command} -k {case.id} --seed {self.seed}"
        level = " --level full" if case.level.value == "full" else ""
        url = self._store_url
        for part in (f"/{clean_up.ROOT}/{self.run}/probe",):
            url = url.replace(part, "")
        return f"perdure conformance {shlex.quote(url)}{level} -k {case.id} --seed {self.seed}"

    # --- after ---------------------------------------------------------------------------------------------
    async def finish(self) -> list[str]:
        if not self._prepared or self.keep:
            return self.left
        try:
            # What took too long while cases ran, or did not end at all, gets more time now.
            again = [*self._unswept, *(url for trial in self._open for url in trial.urls), self._probe_url()]
            left = await clean_up.sweep_urls(self.subject, again, self.run, CLEAN_SECONDS)
            self.left += map(self.redact, await clean_up.remaining(self.subject, left))
            if not self.left:
                await clean_up.remove_marker(self.subject, self.base, self.run)
                clean_up.remove_folder(
                    self.subject, self.subject.at(self.base, f"{clean_up.ROOT}/{self.run}"), self.run
                )
                self._remove_empty_root()
        except Exception as error:
            self.left.append(f"clean-up failed: {type(error).__name__}: {self.redact(str(error))}")
        return self.left

    def _remove_empty_root(self) -> None:
        """Take away the suite's own folder from a local disk, if no other run's marker is in it."""
        root = self.subject.local_root(self.subject.at(self.base, clean_up.ROOT))
        if root is None or root.name != clean_up.ROOT or not root.is_dir():
            return
        if not any(p.is_file() for p in root.rglob("*") if p.suffix == ".json" or "runs" in p.parts):
            import shutil

            shutil.rmtree(root, ignore_errors=True)

    def shut_down(self) -> None:
        self.nursery.shut_down()

    def redact(self, text: str) -> str:
        secret = self.subject.secret
        return text.replace(secret, "***") if secret else text

    def describe(self) -> dict[str, Any]:
        capabilities = self.facts.capabilities
        declared: dict[str, Any] = {}
        if dataclasses.is_dataclass(capabilities):
            declared = {f.name: getattr(capabilities, f.name) for f in dataclasses.fields(capabilities)}
        else:
            declared = (
                {k: v for k, v in vars(capabilities).items() if not k.startswith("_")}
                if hasattr(capabilities, "__dict__")
                else {}
            )
        return {
            "subject": self._store_url.replace(f"/{clean_up.ROOT}/{self.run}/probe", ""),
            "capabilities": {k: getattr(v, "value", v) for k, v in declared.items()},
            "shown": {"uses_network": self.facts.uses_network, "speaks_http": self.facts.speaks_http}
            | self.facts.shown
            | self.shared.shown,
            "latency": self.latency,
            "plugin": self._plugin,
        }


def histogram(seconds: Sequence[float]) -> dict[str, int]:
    """Counts per power-of-two bucket, by upper bound."""
    counts: dict[str, int] = {}
    for value in sorted(seconds):
        bound = 0.125
        while value * 1000 > bound:
            bound *= 2
        counts[f"<= {bound:g} ms"] = counts.get(f"<= {bound:g} ms", 0) + 1
    return counts


def tcp_sockets() -> set[str]:
    """The TCP sockets of this process, by inode; empty where /proc does not say."""
    inodes: set[str] = set()
    known: set[str] = set()
    try:
        for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6"):
            with contextlib.suppress(FileNotFoundError), open(table) as lines:
                known |= {line.split()[9] for line in list(lines)[1:]}
        for fd in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                target = os.readlink(f"/proc/self/fd/{fd}")
                if target.startswith("socket:["):
                    inodes.add(target[8:-1])
    except OSError:
        return set()
    return inodes & known


async def _sockets_used(c: ChildContext, url: str) -> bool:
    """In a child: whether a create, get, list and delete open a network connection."""
    seen: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(args[1], tuple):
            seen.append(event)

    sys.addaudithook(hook)
    store = c.open(url)
    await store.create("network", b"?")
    await store.get("network")
    async for _ in store.list("network"):
        pass
    live = bool(tcp_sockets())
    await store.delete("network")
    await asyncio.sleep(0)
    return bool(seen) or live


def plugin_of(store: Any) -> str:
    """Distribution and version that the store's class comes from, as far as it can be told."""
    import importlib.metadata

    module = type(store).__module__
    top = module.partition(".")[0]
    names = importlib.metadata.packages_distributions().get(top, [])
    if not names and top == "perdure":
        names = ["perdure"]
    if not names:
        return f"{module}.{type(store).__name__} (not from an installed distribution)"
    return f"{names[0]} {importlib.metadata.version(names[0])} ({module}.{type(store).__name__})"
