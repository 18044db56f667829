"""Store URLs: parsing, canonical form, and keeping secrets out of sight.

Owns the grammar ``scheme://[user[:password]@]host[:port]/path?option=value`` for every store. It never does
I/O and never imports a store. The path is percent-decoded once, here; a ``?`` or ``#`` that belongs to a path
is written ``%3F`` or ``%23``. A plain path (``/data/x``, ``~/x``, ``./x``) is a ``file://`` URL taken
literally.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, quote, unquote, urlencode

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

# Option names that hold secrets in every store; a store adds its own by Store.secret_options.
COMMON_SECRETS = frozenset({"password", "secret", "token"})


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A parsed store URL. ``str()`` and ``repr()`` give the redacted form: no password, no secret option."""

    scheme: str
    host: str
    port: int | None
    path: str
    username: str | None
    options: Mapping[str, str]
    password: str | None = field(default=None, repr=False)
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return self.redacted

    def __repr__(self) -> str:
        return f"StoreUrl({self.redacted!r})"

    @property
    def redacted(self) -> str:
        """The canonical URL without secrets; opening it (credentials from the environment) is the
        same store.
        """
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        port = f":{self.port}" if self.port is not None else ""
        query = f"?{urlencode(sorted(self.options.items()))}" if self.options else ""
        host = f"[{self.host}]" if ":" in self.host else quote(self.host, safe="")
        return f"{self.scheme}://{user}{host}{port}{quote(self.path)}{query}"

    def option(self, name: str, default: str | None = None) -> str | None:
        """The option's value, secret or not."""
        value = self.options.get(name)
        return self.secrets.get(name, default) if value is None else value

    def number(self, name: str, default: float) -> float:
        """The option as a non-negative number; ValueError names option and value."""
        text = self.options.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ValueError(f"option {name}={text!r} of {self.redacted}: expected a non-negative number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """The option as a truth value (true/false, yes/no, 1/0); ValueError names option and value."""
        text = self.options.get(name)
        if text is None:
            return default
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise ValueError(f"option {name}={text!r} of {self.redacted}: expected true or false")

    def secret_values(self) -> tuple[str, ...]:
        """Every secret text that must not appear in a message."""
        values = [*self.secrets.values()]
        if self.password:
            values.append(self.password)
        return tuple(value for value in values if value)


def scheme_of(url: str) -> str:
    """The scheme in lower case; plain paths give ``file``. ValueError for anything else, TypeError for no
    str.
    """
    if not isinstance(url, str):
        raise TypeError(f"a store URL is a str, not {type(url).__name__}")
    match = _SCHEME.match(url)
    if match:
        return match[1].lower()
    if url.startswith(("/", "~", "./", "../")) or url in (".", ".."):
        return "file"
    raise ValueError(
        "this is not a store URL or an absolute path: expected something like file:///data/perdure, "
        f"s3://bucket/prefix or /data/perdure, got {_without_secrets(url)!r}"
    )


def parse(url: str, options: Mapping[str, object] | None = None, secret_names: Iterable[str] = ()) -> StoreUrl:
    """Parse a URL; keyword options (str, int, float, bool) are merged and win over those of its query."""
    scheme = scheme_of(url)
    match = _SCHEME.match(url)
    given = {name: _text(name, value) for name, value in (options or {}).items() if value is not None}
    if match is None:
        return _build(scheme, "", os.path.abspath(os.path.expanduser(url)), given, secret_names)
    rest, _, query = url[match.end() :].partition("?")
    if "#" in rest or "#" in query:
        raise ValueError(f"a '#' in a store URL is written %23: {_without_secrets(url)!r}")
    authority, slash, path = rest.partition("/")
    try:
        asked = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        # The parser's own text quotes the query, which may hold a secret.
        raise ValueError(f"options of a store URL are written ?name=value&name=value: {rest!r}") from None
    merged = asked | given
    return _build(scheme, authority, unquote(slash + path, errors="strict"), merged, secret_names)


def _build(scheme: str, authority: str, path: str, options: Mapping[str, str], secret_names: Iterable[str]) -> StoreUrl:
    userinfo, _, hostport = authority.rpartition("@")
    username, _, password = userinfo.partition(":")
    host, port = hostport, None
    match = re.fullmatch(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?", hostport)
    if match is None:
        raise ValueError(f"not a host and port in a {scheme}:// URL: {hostport!r}")
    host = match[1].strip("[]")
    if match[2]:
        port = int(match[2])
        if port > 65535:
            raise ValueError(f"port {port} in a {scheme}:// URL: expected 0 to 65535")
    secret = COMMON_SECRETS | frozenset(secret_names)
    return StoreUrl(
        scheme=scheme,
        host=unquote(host),
        port=port,
        path=path,
        username=unquote(username) or None,
        options={name: value for name, value in options.items() if name not in secret},
        password=unquote(password) or None,
        secrets={name: value for name, value in options.items() if name in secret},
    )


def _text(name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise TypeError(f"store option {name}: expected str, int, float or bool, not {type(value).__name__}")


def _without_secrets(url: str) -> str:
    """For messages about URLs too broken to parse: cut userinfo and query."""
    return re.sub(r"//[^/@]*@", "//…@", url).partition("?")[0]
