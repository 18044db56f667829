"""What is under test and what its author lets the suite do to it: the hooks of part A6.

A subject is small and picklable: child processes open the store from their own copy. It must never hold an
open store.
"""

from __future__ import annotations

import dataclasses
import importlib
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOOKS = (
    "secret",
    "upstream",
    "proxied_url",
    "restart",
    "kill",
    "denied_url",
    "local_root",
    "remote_command",
)


def join_url(url: str, path: str) -> str:
    """``url`` with ``path`` below its own path; query and fragment stay where they are."""
    head, mark, tail = url, "", ""
    for sign in "?#":
        if sign in head:
            head, _, rest = head.partition(sign)
            mark, tail = sign, rest + mark + tail
    return (
        head.rstrip("/") + "/" + path.strip("/") + mark + tail
        if not head.endswith("://")
        else head + path.strip("/") + mark + tail
    )


class StoreSubject:
    """A store to be judged. Subclass it, set ``url`` (or ``make_url``), and offer what hooks you can.

    Every hook is optional. Without one, the full-level cases that need it are NOT_DECLARED and name it.

    - ``url`` or ``make_url()``: where the suite may write; it stays below ``perdure-conformance/<run>/``.
    - ``secret``: a string that must appear nowhere (password, key).
    - ``upstream``: ``(host, port)`` of the server; ``proxied_url(host, port)``: the same store through there.
    - ``restart()``, ``kill()``: restart the server (kill = SIGKILL and start again, on the same data).
    - ``denied_url``: a place where the credentials are refused. ``wrong_secret_url``: wrong credentials.
    - ``missing_url``: a bucket or folder that does not exist (and that the store doesn't make by itself).
    - ``local_root``: the folder that holds the data. ``remote_command``: argv prefix of a Python elsewhere.
    - ``patience``: how many times longer than usual a case may take: for a test server that is slow with many keys.
      It changes no bound that a case asserts.
    """

    url: str | None = None
    secret: str | None = None
    upstream: tuple[str, int] | None = None
    denied_url: str | None = None
    wrong_secret_url: str | None = None
    missing_url: str | None = None
    remote_command: list[str] | None = None
    patience: float = 1.0

    def make_url(self) -> str:
        """The URL below which this run may write."""
        if self.url is None:
            raise TypeError(f"{type(self).__name__} needs `url` or `make_url()`")
        return self.url

    def open(self, url: str) -> Any:
        """Open a new instance. The default is what users call; override it for a store without a scheme."""
        from perdure.store import open_store

        return open_store(url)

    def at(self, base: str, path: str) -> str:
        """The URL of the sub-folder ``path`` of ``base``."""
        return join_url(base, path)

    def local_root(self, url: str) -> Path | None:
        """The folder that holds the data of the store at ``url``; None: not on this machine's disk."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme == "file" and parts.netloc in ("", "localhost"):
            return Path(urllib.parse.unquote(parts.path))
        return None

    def has(self, hook: str) -> bool:
        """Whether the author offers this hook."""
        if hook == "local_root":
            return self.local_root(self.make_url()) is not None
        return getattr(self, hook, None) is not None


class CallableSubject(StoreSubject):
    """The subject of ``run(make_store)``: a picklable callable that takes a prefix and opens a store."""

    def __init__(self, make_store: Callable[[str], Any]) -> None:
        self.make_store = make_store

    def make_url(self) -> str:
        return ""

    def at(self, base: str, path: str) -> str:
        return f"{base}/{path}".strip("/")

    def open(self, url: str) -> Any:
        return self.make_store(url)

    def local_root(self, url: str) -> Path | None:
        root = getattr(self.make_store, "local_root", None)
        return root(url) if callable(root) else None


class UrlSubject(StoreSubject):
    """A store named by its URL alone."""

    def __init__(self, url: str) -> None:
        self.url = url


def load_hooks(reference: str, url: str | None = None) -> StoreSubject:
    """The subject of ``--hooks MODULE:CLASS``. Raises ``ValueError`` with what is wrong with the reference."""
    module, _, name = reference.partition(":")
    if not name:
        raise ValueError(f"--hooks {reference!r} must look like package.module:Class")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--hooks {reference!r}: {error}") from error
    subject = found()
    for method in ("make_url", "open", "at"):
        if not hasattr(subject, method):
            raise ValueError(f"--hooks {reference!r}: {name} must derive from perdure.conformance.StoreSubject")
    if url is not None:
        subject.url = url
    return subject  # type: ignore[no-any-return]


@dataclasses.dataclass(frozen=True, slots=True)
class Gap:
    """Why a case does not apply. ``kind`` is ``capability`` or ``hook``; only the second bars FULL."""

    kind: str
    name: str
    reason: str


@dataclasses.dataclass(slots=True)
class Facts:
    """What is known of the store before its cases start: declared, offered and shown."""

    subject: StoreSubject
    capabilities: Any
    uses_network: bool | None = None
    speaks_http: bool | None = None
    latency: float = 0.001
    shown: dict[str, Any] = dataclasses.field(default_factory=dict)

    def declared(self, name: str, default: Any = None) -> Any:
        return getattr(self.capabilities, name, default)

    def gap(self, need: str) -> Gap | None:
        """None if the need is met. Needs: ``multi_process``, ``multi_host``, ``durable`` (process or more),
        ``durable_server``, ``durable_power``, ``unmanaged``, ``network``, ``http``, or a hook's name."""
        if need in ("multi_process", "multi_host"):
            if self.declared(need):
                return None
            return Gap("capability", need, f"the store declares {need}=False")
        if need == "durable":
            if self.declared("durability") != "memory":
                return None
            return Gap("capability", "durability", "the store declares durability='memory'")
        if need == "durable_power":
            if self.declared("durability") == "power":
                return None
            return Gap(
                "capability",
                "durability",
                f"the store declares durability={self.declared('durability')!r}, not 'power'",
            )
        if need == "durable_server":
            if self.declared("durability") in ("server", "power"):
                return None
            return Gap(
                "capability",
                "durability",
                f"the store declares durability={self.declared('durability')!r}, less than 'server'",
            )
        if need == "unmanaged":
            return Gap("capability", "managed", "a provider runs the service") if self.declared("managed") else None
        if need == "network":
            if self.uses_network is False:
                return Gap("capability", "network", "the store talks to no server (no socket was opened)")
            return None
        if need == "http":
            if self.uses_network is False:
                return Gap("capability", "network", "the store talks to no server (no socket was opened)")
            if self.speaks_http is False:
                return Gap("capability", "http", "the store does not speak HTTP")
            return None
        if need in ("restart", "kill", "upstream", "proxied_url", "denied_url", "secret", "wrong_secret_url"):
            if self.subject.has(need):
                return None
            if self.uses_network is False and need != "denied_url":
                return Gap("capability", "network", "the store talks to no server (no socket was opened)")
            return Gap("hook", need, f"the hook `{need}` is not offered")
        if need in ("local_root",):
            if self.subject.has(need):
                return None
            if self.uses_network or self.declared("durability") == "memory":
                return Gap("capability", "local_root", "the data is not in a folder of this machine")
            return Gap("hook", need, f"the hook `{need}` is not offered")
        if self.subject.has(need):
            return None
        return Gap("hook", need, f"the hook `{need}` is not offered")
