"""``gs://bucket/prefix``: Google Cloud Storage, through gcsfs.

gcsfs finds credentials, endpoint and session; the requests are made with them directly, because create needs
to see the server's own answer: ``ifGenerationMatch=0`` is the one primitive.

    412  the key exists                                     AlreadyExists
    409  a conflict, nothing was stored                     retried, then StoreUnavailable (W3)
    5xx, 408, 429, rateLimitExceeded, timeouts, resets      retried, then StoreUnavailable

Quirks: fake-gcs-server honours the condition on multipart uploads only, so every create is one. gcsfs probes
the bucket's type over gRPC (a minute per call on emulators) unless its extension is left out, as it is here.
Objects are stored with ``Cache-Control: no-store``, else public ones are served from caches (S4).
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar
from urllib.parse import quote

import aiohttp

from perdure.backends.remote import CONNECT_SECONDS, POOL, READ_SECONDS, RemoteStore, cut_session
from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Capabilities, Data, Page, is_key
from perdure.store_url import StoreUrl
from perdure.threads import Threads

if importlib.util.find_spec("gcsfs") is None:  # imported when a setting of its has been made, but missed at once
    raise ModuleNotFoundError("No module named 'gcsfs'", name="gcsfs")

_CHUNK = 8 << 20  # a multiple of 256 KiB, as resumable uploads want it
_SLICE = 256 << 10
_UNKNOWN_END = "*"
_NAMED_CREDENTIALS = ("google_default", "cloud", "cache", "anon")


class GcsStore(RemoteStore["_Client"]):
    """A store in a Google Cloud Storage bucket; see the module's text."""

    option_names: ClassVar[Mapping[str, str]] = {
        "endpoint": "address of an emulator (default: STORAGE_EMULATOR_HOST, else Google)",
        "credentials": "google_default, cloud, anon, or a JSON key file (default: what gcsfs finds)",
        "project": "project that is billed (default: that of the credentials)",
        "accept_lifecycle": "true accepts a bucket whose lifecycle rules delete objects of this prefix",
        "retry_seconds": "how long a failing call is retried (default 30)",
    }

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        if not url.host or url.port is not None or url.username:
            raise ValueError(f"{url.redacted}: expected gs://bucket/prefix")
        self._bucket = url.host
        inner = url.path.strip("/")
        self._prefix = f"{inner}/" if inner else ""
        self._endpoint = url.option("endpoint") or _emulator()
        self._accept_lifecycle = url.flag("accept_lifecycle", False)
        self._bucket_seen = False
        self._threads = Threads(1, "perdure-gs")
        self._capabilities = Capabilities(
            durability="power",
            multi_process=True,
            multi_host=True,
            max_value_bytes=4 << 40,
            max_create_bytes=16 << 20,
            max_key_bytes=1024 - len(self._prefix.encode()),
            managed=self._endpoint is None,
            latency="lan" if self._endpoint else "wan",
            retry_seconds=self._retry_seconds,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def server(self) -> str:
        return f"GCS-compatible server at {self._endpoint}" if self._endpoint else "Google Cloud Storage"

    # --- clients ------------------------------------------------------------------------------------------

    async def _connect(self) -> _Client:
        loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(limit=POOL)
        try:
            # Looking for credentials may ask the metadata server, blocking.
            filesystem = await self._threads.run(lambda: self._make_filesystem(loop, connector))
            session = await filesystem._set_session()
        except BaseException:
            await connector.close()
            raise
        return _Client(filesystem, session, self._bucket, self._threads)

    def _make_filesystem(self, loop: asyncio.AbstractEventLoop, connector: aiohttp.TCPConnector) -> Any:
        os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
        from gcsfs.core import GCSFileSystem

        credentials = self._url.option("credentials")
        if credentials and credentials not in _NAMED_CREDENTIALS and not os.path.isfile(credentials):
            # gcsfs would take the text for a token and ask Google about it
            raise PermissionDenied(
                f"credentials={credentials!r} is neither a file here nor one of {', '.join(_NAMED_CREDENTIALS)}"
            )
        return GCSFileSystem(
            asynchronous=True,
            loop=loop,
            skip_instance_cache=True,
            use_listings_cache=False,
            endpoint_url=self._endpoint,
            token=credentials or ("anon" if self._endpoint else None),
            session_kwargs={"connector": connector},
            **({"project": project} if (project := self._url.option("project")) else {}),
        )

    async def _disconnect(self, client: _Client) -> None:
        await client.session.close()

    def _abandon(self, client: _Client) -> None:
        cut_session(client.session)

    async def _aclose(self) -> None:
        await super()._aclose()
        await self._threads.aclose()

    # --- the contract -------------------------------------------------------------------------------------

    async def _create(self, key: str, data: Data) -> None:
        await self._insert(key, data, {"ifGenerationMatch": "0"})

    async def _put(self, key: str, data: Data) -> None:
        if len(data) > self._capabilities.max_create_bytes:
            await self._upload(key, _slices(data, _CHUNK))
        else:
            await self._insert(key, data, {})

    async def _insert(self, key: str, data: Data, condition: Mapping[str, str]) -> None:
        boundary = secrets.token_hex(16).encode()
        head = (
            b"--%b\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n%b\r\n"
            b"--%b\r\nContent-Type: application/octet-stream\r\n\r\n"
        ) % (boundary, json.dumps(self._metadata(key)).encode(), boundary)
        tail = b"\r\n--%b--\r\n" % boundary
        headers = {"Content-Type": f"multipart/related; boundary={boundary.decode()}"}

        async def attempt(client: _Client) -> None:
            await client.ask(
                "POST",
                client.upload_base,
                params={"uploadType": "multipart", "fields": "generation", **condition},
                headers=headers | {"Content-Length": str(len(head) + len(data) + len(tail))},
                body=_joined(head, data, tail),
            )

        await self._try(attempt, size=len(data), write=True)

    def _metadata(self, key: str) -> dict[str, str]:
        return {
            "name": self._prefix + key,
            "contentType": "application/octet-stream",
            "cacheControl": "no-store",
        }

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        async def attempt(client: _Client) -> bytes:
            return (await self._read(client, key, start, end, None))[0]

        return await self._try(attempt, size=0 if end is None else end - start)

    async def _read(
        self, client: _Client, key: str, start: int, end: int | None, generation: str | None
    ) -> tuple[bytes, str, int]:
        """Bytes of a range, the object's generation, and its whole size (-1: not told)."""
        headers: dict[str, str] = {}
        if start > 0 or end is not None:
            headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        params = {"alt": "media"} | ({"generation": generation} if generation else {})
        try:
            told, data = await client.ask("GET", self._object(client, key), params=params, headers=headers)
        except _HttpError as e:
            if e.status == 416:
                return b"", "", -1  # the range begins after the end
            await self._tell_bucket(client, e)
            raise
        whole = int(told.get("Content-Range", "/-1").rpartition("/")[2].replace("*", "-1"))
        if headers and "Content-Range" not in told:
            data, whole = data[start:end], len(data)
        return data, told.get("X-Goog-Generation", ""), whole

    async def _stat(self, key: str) -> int:
        async def attempt(client: _Client) -> int:
            try:
                _, body = await client.ask("GET", self._object(client, key), params={"fields": "size"})
            except _HttpError as e:
                await self._tell_bucket(client, e)
                raise
            return int(json.loads(body)["size"])

        return await self._try(attempt)

    async def _delete(self, key: str) -> None:
        async def attempt(client: _Client) -> None:
            try:
                await client.ask("DELETE", self._object(client, key))
            except _HttpError as e:
                if e.status != 404:
                    raise
                await self._tell_bucket(client, e)

        await self._try(attempt, write=True)

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        cut = len(self._prefix)
        params = {
            "prefix": self._prefix + prefix,
            "fields": "items(name,size),nextPageToken",
            "maxResults": str(1000 if limit is None else min(1000, limit + 1)),
        }
        if start_after is not None:
            params["startOffset"] = self._prefix + start_after  # inclusive

        while True:

            async def attempt(client: _Client, params: dict[str, str] = params) -> dict[str, Any]:
                _, body = await client.ask("GET", client.object_base, params=params)
                answer: dict[str, Any] = json.loads(body)
                return answer

            answer = await self._try(attempt)
            page = [(item["name"][cut:], int(item["size"])) for item in answer.get("items", ())]
            yield [item for item in page if is_key(item[0]) and (start_after is None or item[0] > start_after)]
            if not answer.get("nextPageToken"):
                return
            params = params | {"pageToken": answer["nextPageToken"]}

    async def _upload(self, key: str, chunks: AsyncIterator[Data]) -> None:
        parts = _parts(chunks)
        held = await anext(parts, b"")
        following = await anext(parts, None)
        if following is None:
            await self._insert(key, held, {})
            return
        session = await self._try(lambda client: self._begin(client, key), write=True)
        done = False
        try:
            position = 0
            while held:
                end = position + len(held)
                total = str(end) if following is None else _UNKNOWN_END
                done = await self._send(session, held, position, total)
                position, held = end, following or b""
                following = await anext(parts, None) if following is not None else None
            if not done:
                raise StoreUnavailable("the server did not confirm the upload")
        finally:
            if not done:
                await asyncio.shield(self._give_up(session))

    async def _begin(self, client: _Client, key: str) -> str:
        told, _ = await client.ask(
            "POST",
            client.upload_base,
            params={"uploadType": "resumable"},
            headers={"Content-Type": "application/json; charset=UTF-8"},
            body=json.dumps(self._metadata(key)).encode(),
        )
        return told["Location"]

    async def _send(self, session: str, data: bytes, position: int, total: str) -> bool:
        """Send one part; True if it completed the object. After a failure the server says where it stands."""
        again = False

        async def attempt(client: _Client) -> bool:
            nonlocal again
            first = position
            if again:
                status, stands = await client.stand(session, total)
                if status < 300:
                    return True
                first = max(position, stands)
                if first >= position + len(data):
                    return False
            again = True
            rest = memoryview(data)[first - position :]
            told = {"Content-Range": f"bytes {first}-{position + len(data) - 1}/{total}"}
            status, stands = await client.send(session, told, rest)
            if status == 308 and stands < position + len(data):
                raise ConnectionError("the server took only a part")
            return status < 300

        return await self._try(attempt, size=len(data), write=True)

    async def _give_up(self, session: str) -> None:
        try:
            await (await self._client()).ask("DELETE", session)
        except (StoreError, OSError, aiohttp.ClientError):
            pass  # 499 is its success; a session that stays expires within a week, and is never listed

    async def _download(self, key: str) -> AsyncIterator[Data]:
        position, generation, whole = 0, "", -1
        while whole < 0 or position < whole:

            async def attempt(
                client: _Client, at: int = position, generation: str = generation
            ) -> tuple[bytes, str, int]:
                try:
                    return await self._read(client, key, at, at + _CHUNK, generation or None)
                except _HttpError as e:
                    if e.status == 404 and generation:
                        raise StoreError("the value was replaced or deleted during the download") from e
                    raise

            data, generation, whole = await self._try(attempt, size=_CHUNK)
            if not data:
                return
            position += len(data)
            yield data

    # --- settings of the bucket ---------------------------------------------------------------------------

    async def _check(self) -> Sequence[str]:
        async def attempt(client: _Client) -> dict[str, Any]:
            await client.ask("GET", client.object_base, params={"prefix": self._prefix, "maxResults": "1"})
            try:
                fields = "versioning,lifecycle,retentionPolicy"
                _, body = await client.ask("GET", client.bucket_base, params={"fields": fields})
            except _HttpError:
                return {}  # reading settings is a right of its own
            settings: dict[str, Any] = json.loads(body)
            return settings

        settings = await self._try(attempt)
        warnings: list[str] = []
        if settings.get("versioning", {}).get("enabled"):
            warnings.append(
                f"bucket {self._bucket!r} keeps old versions: deleted journals and blobs stay and cost. "
                "Add a lifecycle rule for noncurrent versions, or turn versioning off"
            )
        if settings.get("retentionPolicy"):
            warnings.append(f"bucket {self._bucket!r} has a retention policy: deletes will fail until it ends")
        for rule in settings.get("lifecycle", {}).get("rule", ()):
            condition = rule.get("condition", {})
            scopes = condition.get("matchesPrefix") or [""]
            touches = any(s.startswith(self._prefix) or self._prefix.startswith(s) for s in scopes)
            current = condition.get("isLive", True) and "numNewerVersions" not in condition
            if rule.get("action", {}).get("type") == "Delete" and touches and current:
                text = (
                    f"bucket {self._bucket!r} has a lifecycle rule that deletes objects of this store: "
                    "acknowledged work would be lost. Limit the rule to other prefixes"
                )
                if not self._accept_lifecycle:
                    raise StoreError(f"{text}, or open the store with ?accept_lifecycle=true")
                warnings.append(text)
        return warnings

    def _object(self, client: _Client, key: str) -> str:
        return f"{client.object_base}/{quote(self._prefix + key, safe='')}"

    async def _tell_bucket(self, client: _Client, error: _HttpError) -> None:
        """A 404 may mean the bucket: ask once per instance."""
        if error.status != 404 or self._bucket_seen:
            return
        try:
            await client.ask("GET", client.bucket_base, params={"fields": "name"})
        except _HttpError as e:
            if e.status == 404:
                raise StoreError(
                    f"bucket {self._bucket!r} does not exist there; create it, or check name and endpoint"
                ) from e
            if e.status != 403:
                raise
        self._bucket_seen = True

    def _map_error(self, error: Exception, *, write: bool) -> StoreError | None:
        if isinstance(error, _HttpError):
            return error.mapped(self._bucket)
        if isinstance(error, aiohttp.InvalidURL):
            return StoreError(f"bad endpoint: {error}")
        if isinstance(error, (aiohttp.ClientError, TimeoutError, ConnectionError, json.JSONDecodeError)):
            return StoreUnavailable(f"{type(error).__name__}: {error}")
        if type(error).__module__.startswith("google.auth"):
            return PermissionDenied(f"{error}: set GOOGLE_APPLICATION_CREDENTIALS, or ?credentials=FILE")
        return None


class _HttpError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)
        self.status, self.text = status, text

    def mapped(self, bucket: str) -> StoreError:
        """The store error of this answer."""
        try:
            error = json.loads(self.text)["error"]
            message, reasons = str(error["message"]), {str(e.get("reason")) for e in error.get("errors", ())}
        except (ValueError, KeyError, TypeError, AttributeError):
            message, reasons = self.text[:300], set()
        text = f"HTTP {self.status}: {message or 'no reason given'}"
        if self.status == 412:
            return AlreadyExists("it exists")
        if self.status == 404:
            if "bucket" in message.lower() and "object" not in message.lower():
                return StoreError(f"bucket {bucket!r} does not exist there; create it, or check name and endpoint")
            return NotFound("no such key")
        if self.status in (408, 409, 425, 429) or self.status >= 500:
            return StoreUnavailable(text)
        if self.status == 403 and reasons & {"rateLimitExceeded", "userRateLimitExceeded"}:
            return StoreUnavailable(text)
        if self.status in (401, 403):
            return PermissionDenied(f"{text}; objects.create, get, list and delete on the bucket are needed")
        return StoreError(text)


class _Client:
    """The JSON API of one bucket, over the session and credentials of gcsfs."""

    def __init__(self, filesystem: Any, session: aiohttp.ClientSession, bucket: str, threads: Threads) -> None:
        self.session = session
        self._filesystem, self._threads = filesystem, threads
        root = filesystem._location.rstrip("/")
        self.bucket_base = f"{root}/storage/v1/b/{quote(bucket, safe='')}"
        self.object_base = f"{self.bucket_base}/o"
        self.upload_base = f"{root}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS)

    async def ask(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
    ) -> tuple[Mapping[str, str], bytes]:
        """Headers and body of a successful answer; _HttpError otherwise."""
        status, told, data = await self._request(method, url, params, headers, body)
        if status == 404 and url in (self.object_base, self.upload_base):
            raise _HttpError(404, "no such bucket")  # these two name no object
        if status >= 300:
            raise _HttpError(status, data[:2000].decode("utf-8", "replace"))
        return told, data

    async def stand(self, session: str, total: str) -> tuple[int, int]:
        """Status of a resumable upload, and how many bytes the server has."""
        return await self.send(session, {"Content-Range": f"bytes */{total}"}, memoryview(b""))

    async def send(self, session: str, headers: Mapping[str, str], data: memoryview) -> tuple[int, int]:
        """One PUT of a resumable upload: its status and how many bytes the server has."""
        length = {"Content-Length": str(len(data))}
        status, told, body = await self._request(
            "PUT", session, None, {**headers, **length}, _joined(data) if len(data) else None
        )
        if status >= 300 and status != 308:
            raise _HttpError(status, body[:2000].decode("utf-8", "replace"))
        last = told.get("Range", "bytes=0--1").rpartition("-")[2]
        return status, (int(last) + 1 if last and "--1" not in told.get("Range", "bytes=0--1") else 0)

    async def _request(
        self,
        method: str,
        url: str,
        params: Mapping[str, str] | None,
        headers: Mapping[str, str] | None,
        body: Any,
    ) -> tuple[int, Mapping[str, str], bytes]:
        credentials = self._filesystem.credentials
        if credentials.credentials is not None and not credentials.credentials.valid:
            await self._threads.run(credentials.maybe_refresh)
        sent = self._filesystem._get_headers({"Accept-Encoding": "identity", **(headers or {})})
        async with self.session.request(
            method,
            url,
            params=params,
            headers=sent,
            data=body,
            timeout=self._timeout,
            allow_redirects=False,
        ) as answer:
            data = await answer.read()
            return answer.status, answer.headers, data


async def _joined(*pieces: Data) -> AsyncIterator[Data]:
    """A request body sent slice by slice, so that a large one does not hold up the loop."""
    for piece in pieces:
        if len(piece) <= _SLICE:
            yield piece
        else:
            view = memoryview(piece)
            for first in range(0, len(view), _SLICE):
                yield view[first : first + _SLICE]


async def _slices(data: Data, size: int) -> AsyncIterator[Data]:
    view = memoryview(data)
    for first in range(0, len(view), size):
        yield view[first : first + size]


async def _parts(chunks: AsyncIterator[Data]) -> AsyncIterator[bytes]:
    held = bytearray()
    async for chunk in chunks:
        view = memoryview(chunk)
        while len(view):
            take = _CHUNK - len(held)
            held += view[:take]
            view = view[take:]
            if len(held) == _CHUNK:
                yield bytes(held)
                held.clear()
    if held:
        yield bytes(held)


def _emulator() -> str | None:
    host = os.environ.get("STORAGE_EMULATOR_HOST", "")
    if host in ("", "default"):
        return None
    return host if "://" in host else f"http://{host}"
