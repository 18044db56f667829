"""``s3://bucket/prefix``: Amazon S3 and servers that speak its protocol, through s3fs.

s3fs finds credentials (options, environment, profile, instance role), endpoint and session; the requests are
made with its client, because create needs to see the server's own answer: ``If-None-Match: *`` is the one
primitive.

    412  the key exists                                     AlreadyExists
    409  two conditional writes met, nothing was stored     retried, then StoreUnavailable (W3)
    5xx, 429, SlowDown, timeouts, resets                    retried, then StoreUnavailable

Quirks, by server: SeaweedFS lists folder by folder, not bytewise, so its lists are brought into order (`s3_order`).
It merges Unicode forms, takes a backslash for a slash, holds segments of 255 bytes, and answers 412 to a name
that is also a folder: there, such characters are spelled ``!XX`` and every name ends in ``!``. Servers that
ignore the condition (rclone serve s3, s3rver) are refused by the start-up probe, not here.
"""

from __future__ import annotations

import asyncio
import base64
import datetime
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar

from aiobotocore.session import AioSession
from aiohttp import ClientError as HttpError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.exceptions import ConnectionError as BotoConnectionError
from botocore.loaders import create_loader
from s3fs import S3FileSystem

from perdure.backends import s3_errors
from perdure.backends.local_names import CONTINUES, cut
from perdure.backends.remote import CONNECT_SECONDS, POOL, READ_SECONDS, RemoteStore, cut_session
from perdure.backends.s3_order import KeyOrder
from perdure.errors import PermissionDenied, StoreError, StoreUnavailable
from perdure.store import Capabilities, Data, Page, is_key
from perdure.store_url import StoreUrl

_PART = 8 << 20
_PARTS_AT_ONCE = 3  # with the part being gathered, 32 MiB at most
_LARGER_AFTER, _LARGER_PART = 1000, 16 << 20
_DOWNLOAD = 8 << 20
_SLICE = 256 << 10
_PAGE = 400  # botocore needs about 60 µs for an entry, in the event loop
_MARK = "!"  # less than all that stands unescaped
_ODD = re.compile(r"[^\"-\[\]-~]")
_ESCAPED = re.compile(rb"!([0-9A-F]{2})")
# The service's description, some megabytes of JSON: parsed once for all instances.
_loader = create_loader()
_STALE = datetime.timedelta(days=7)


class S3Store(RemoteStore[Any]):
    """A store in an S3 bucket; see the module's text."""

    option_names: ClassVar[Mapping[str, str]] = {
        "endpoint": "address of an S3-compatible server, as http(s)://host:port (default: AWS)",
        "region": "region of the bucket (default: AWS_REGION, profile, or us-east-1)",
        "profile": "profile of ~/.aws/credentials (default: AWS_PROFILE)",
        "addressing": "path or virtual (default: path with an endpoint, else virtual)",
        "key_id": "access key id (default: AWS_ACCESS_KEY_ID, profile, instance role)",
        "secret": "secret access key; better in AWS_SECRET_ACCESS_KEY",
        "token": "session token; better in AWS_SESSION_TOKEN",
        "anonymous": "true sends unsigned requests",
        "accept_lifecycle": "true accepts a bucket whose lifecycle rules delete objects of this prefix",
        "retry_seconds": "how long a failing call is retried (default 30)",
    }

    def __init__(self, url: StoreUrl) -> None:
        super().__init__(url)
        if not url.host or url.port is not None or url.username:
            raise ValueError(f"{url.redacted}: expected s3://bucket/prefix?endpoint=…&region=…")
        self._bucket = url.host
        inner = url.path.strip("/")
        self._prefix = f"{inner}/" if inner else ""
        self._endpoint = url.option("endpoint")
        addressing = url.option("addressing") or ("path" if self._endpoint else "auto")
        if addressing not in ("path", "virtual", "auto"):
            raise ValueError(f"option addressing={addressing!r} of {url.redacted}: expected path or virtual")
        self._addressing = addressing
        self._anonymous = url.flag("anonymous", False)
        self._accept_lifecycle = url.flag("accept_lifecycle", False)
        self._server = ""
        self._capabilities = Capabilities(
            durability="power",
            multi_process=True,
            multi_host=True,
            max_value_bytes=128 << 30,
            max_create_bytes=16 << 20,
            # The service's limit is 1,024; longer spellings of odd servers need some of it.
            max_key_bytes=(1000 if self._endpoint else 1024) - len(self._prefix.encode()),
            managed=self._endpoint is None,
            latency="lan" if self._endpoint else "wan",
            retry_seconds=self._retry_seconds,
        )

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def server(self) -> str:
        where = self._endpoint or "Amazon S3"
        return f"{self._server} at {where}" if self._server and self._endpoint else where

    # --- clients ------------------------------------------------------------------------------------------

    async def _connect(self) -> Any:
        region = self._url.option("region")
        session = AioSession(profile=self._url.option("profile"))
        session.register_component("data_loader", _loader)
        filesystem = S3FileSystem(
            session=session,
            asynchronous=True,
            loop=asyncio.get_running_loop(),
            skip_instance_cache=True,
            use_listings_cache=False,
            anon=self._anonymous,
            key=self._url.option("key_id"),
            secret=self._url.option("secret"),
            token=self._url.option("token"),
            endpoint_url=self._endpoint,
            client_kwargs={"region_name": region} if region else {},
            config_kwargs={
                "connect_timeout": CONNECT_SECONDS,
                "read_timeout": READ_SECONDS,
                "max_pool_connections": POOL,
                # Retries are ours: they have one time limit, and know a conflict from a failure.
                "retries": {"total_max_attempts": 1, "mode": "standard"},
                "s3": {"addressing_style": self._addressing, "payload_signing_enabled": False},
                # Envelopes carry checksums; many servers don't know the newer trailing ones.
                "request_checksum_calculation": "when_required",
                "response_checksum_validation": "when_required",
            },
        )
        client = await filesystem.set_session()
        if self._endpoint and not self._server:
            # Who answers decides how keys are spelled, so it is asked first.
            try:
                self._note(await client.head_bucket(Bucket=self._bucket))
            except ClientError as e:
                self._note(e.response)
            except BaseException:
                await self._disconnect(client)
                raise
        return client

    async def _disconnect(self, client: Any) -> None:
        await client.__aexit__(None, None, None)

    def _abandon(self, client: Any) -> None:
        for session in client._endpoint.http_session._sessions.values():
            cut_session(session)

    # --- the contract -------------------------------------------------------------------------------------

    async def _create(self, key: str, data: Data) -> None:
        await self._put_object(key, data, {"IfNoneMatch": "*"})

    async def _put(self, key: str, data: Data) -> None:
        if len(data) > self._capabilities.max_create_bytes:
            await self._upload(key, _slices(data))
        else:
            await self._put_object(key, data, {})

    async def _put_object(self, key: str, data: Data, condition: Mapping[str, str]) -> None:
        async def attempt(client: Any) -> None:
            answer = await client.put_object(**self._at(key), **_body(data), **condition)
            self._note(answer)

        await self._try(attempt, size=len(data), write=True)

    async def _get(self, key: str, start: int, end: int | None) -> Data:
        async def attempt(client: Any) -> bytes:
            return (await self._read(client, key, start, end))[0]

        return await self._try(attempt, size=0 if end is None else end - start)

    async def _read(
        self, client: Any, key: str, start: int, end: int | None, **condition: str
    ) -> tuple[bytes, str, int]:
        """Bytes of a range, ETag, and the whole size (-1: not told)."""
        extra = dict(condition)
        ranged = start > 0 or end is not None
        if ranged:
            extra["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
        try:
            answer = await client.get_object(**self._at(key), **extra)
        except ClientError as e:
            if s3_errors.status(e) == 416:
                return b"", "", -1  # the range begins after the end
            raise
        self._note(answer)
        async with answer["Body"] as body:
            data = bytes(await body.read())
        if len(data) != answer["ContentLength"]:
            raise ConnectionError(f"the answer was cut after {len(data)} of {answer['ContentLength']} bytes")
        whole = int(answer.get("ContentRange", "/-1").rpartition("/")[2].replace("*", "-1"))
        if ranged and "ContentRange" not in answer:
            data, whole = data[start:end], len(data)  # the server ignored the range
        return data, answer.get("ETag", ""), whole

    async def _stat(self, key: str) -> int:
        async def attempt(client: Any) -> int:
            try:
                answer = await client.head_object(**self._at(key))
            except ClientError as e:
                if s3_errors.status(e) != 404:
                    raise
                # An answer to HEAD has no body: only GET tells a missing key from a missing bucket.
                data, _, _ = await self._read(client, key, 0, 1)
                if data:
                    raise ConnectionError("stat and get disagree") from e
                return 0
            self._note(answer)
            return int(answer["ContentLength"])

        return await self._try(attempt)

    async def _delete(self, key: str) -> None:
        async def attempt(client: Any) -> None:
            self._note(await client.delete_object(**self._at(key)))

        await self._try(attempt, write=True)

    async def _list(self, prefix: str, start_after: str | None, limit: int | None) -> AsyncIterator[Page]:
        after = start_after or ""
        token: str | None = None
        order = KeyOrder()
        while True:
            await self._client()  # so that the server is known
            ordered = not self._odd_names
            answer = await self._list_page(prefix, after if ordered else "", token, limit if ordered else None)
            found = [(self._key(item["Key"]), int(item["Size"]), item["Key"]) for item in answer.get("Contents", ())]
            # Others may have put objects here whose names are no keys, such as "folder/" markers.
            found = [item for item in found if is_key(item[0]) and item[0].startswith(prefix)]
            token = answer.get("NextContinuationToken") if answer.get("IsTruncated") else None
            if ordered:
                yield [(key, size) for key, size, _ in found]
            else:
                below = self._name(prefix).rfind("/") + 1
                settled = [done for key, size, name in found for done in order.take(name[below:], key, size)]
                yield [item for item in settled if item[0] > after]
            if token is None:
                break
        yield [item for item in order.rest() if item[0] > after]

    async def _list_page(self, prefix: str, after: str, token: str | None, limit: int | None) -> Mapping[str, Any]:
        request: dict[str, Any] = {"Bucket": self._bucket}
        if token is not None:
            request["ContinuationToken"] = token
        elif after:
            request["StartAfter"] = self._prefix + after
        request["MaxKeys"] = _PAGE if limit is None else min(limit, _PAGE)

        async def attempt(client: Any) -> Mapping[str, Any]:
            answer: Mapping[str, Any] = await client.list_objects_v2(Prefix=self._name(prefix), **request)
            self._note(answer)
            if answer.get("IsTruncated") and not answer.get("NextContinuationToken"):
                raise ConnectionError("the list was cut without a way to go on")
            # A proxy's page or an empty body parses as an empty list: a real one counts or names its bucket (S5).
            found = len(answer.get("Contents", ()))
            if answer.get("KeyCount", found) != found or (not found and answer.get("Name") != self._bucket):
                raise ConnectionError("the answer is not a list of the bucket")
            return answer

        return await self._try(attempt)

    async def _delete_many(self, keys: Sequence[str]) -> None:
        for first in range(0, len(keys), 1000):
            await self._delete_some(keys[first : first + 1000])

    async def _delete_prefix(self, prefix: str) -> int:
        count = 0
        async for page in self._list(prefix, None, None):
            await self._delete_many([key for key, _ in page])
            count += len(page)
        return count

    async def _delete_some(self, keys: Sequence[str]) -> None:
        async def attempt(client: Any) -> None:
            objects = [{"Key": self._at(key)["Key"]} for key in keys]
            answer = await client.delete_objects(Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True})
            for failure in answer.get("Errors", ()):
                raise s3_errors.from_code(failure.get("Code", ""), failure.get("Message", ""), 0)

        await self._try(attempt, write=True)

    async def _upload(self, key: str, chunks: AsyncIterator[Data]) -> None:
        parts = _parts(chunks)
        # A part that is on its way is held by its task alone: each further reference keeps 8 MiB.
        held = [await anext(parts, b"")]
        second = await anext(parts, None)
        if second is None:
            await self._put_object(key, held[0], {})
            return
        held.append(second)
        del second

        async def take() -> bytes | None:
            return held.pop(0) if held else await anext(parts, None)

        upload_id = await self._try(lambda client: self._begin(client, key), write=True)
        try:
            tags = await self._send_parts(key, upload_id, take)
            await self._complete(key, upload_id, tags)
        except BaseException:
            # Also when cancelled: parts that stay are paid for, though never listed.
            await asyncio.shield(self._abort(key, upload_id))
            raise

    async def _begin(self, client: Any, key: str) -> str:
        answer = await client.create_multipart_upload(**self._at(key))
        return str(answer["UploadId"])

    async def _send_parts(self, key: str, upload_id: str, take: Callable[[], Awaitable[bytes | None]]) -> list[str]:
        tags: list[str] = []
        running: list[asyncio.Task[None]] = []

        async def send(number: int, data: bytes) -> None:
            async def attempt(client: Any) -> None:
                answer = await client.upload_part(**self._at(key), UploadId=upload_id, PartNumber=number, **_body(data))
                tags[number - 1] = answer["ETag"]

            await self._try(attempt, size=len(data), write=True)

        try:
            while (data := await take()) is not None:
                tags.append("")
                running.append(asyncio.create_task(send(len(tags), data)))
                del data
                if len(running) >= _PARTS_AT_ONCE:
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
                    running = [task for task in running if task not in done]
            for task in running:
                await task
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        return tags

    async def _complete(self, key: str, upload_id: str, tags: Sequence[str]) -> None:
        parts = [{"ETag": tag, "PartNumber": number} for number, tag in enumerate(tags, 1)]

        async def attempt(client: Any) -> None:
            try:
                await client.complete_multipart_upload(
                    **self._at(key), UploadId=upload_id, MultipartUpload={"Parts": parts}
                )
            except ClientError as e:
                if s3_errors.code(e) != "NoSuchUpload":
                    raise
                # Perhaps an earlier attempt of ours completed it and its answer was lost: look for the proof.
                answer = await client.head_object(**self._at(key))
                if answer["ETag"].strip('"') != _joined_tag(tags):
                    raise StoreUnavailable("the upload vanished before it was completed") from e

        await self._try(attempt, write=True)

    async def _abort(self, key: str, upload_id: str) -> None:
        try:
            client = await self._client()
            await client.abort_multipart_upload(**self._at(key), UploadId=upload_id)
        except (ClientError, BotoCoreError, OSError, StoreError):
            pass  # check() aborts what is left, after a week

    async def _download(self, key: str) -> AsyncIterator[Data]:
        position, tag, whole = 0, "", -1
        while whole < 0 or position < whole:
            condition = {"IfMatch": tag} if tag else {}

            async def attempt(
                client: Any, at: int = position, condition: dict[str, str] = condition
            ) -> tuple[bytes, str, int]:
                try:
                    return await self._read(client, key, at, at + _DOWNLOAD, **condition)
                except ClientError as e:
                    if s3_errors.status(e) in (404, 412) and condition:
                        raise StoreError("the value was replaced or deleted during the download") from e
                    raise

            data, tag, whole = await self._try(attempt, size=_DOWNLOAD)
            if not data:
                return
            position += len(data)
            yield data

    # --- settings of the bucket ---------------------------------------------------------------------------

    async def _check(self) -> Sequence[str]:
        await self._list_page("", "", None, 1)
        return await s3_errors.bucket_warnings(
            await self._client(), self._bucket, self._prefix, self._accept_lifecycle, _STALE
        )

    async def _leftovers(self, over: Callable[[str], bool], remove: bool) -> Sequence[tuple[str, int]]:
        found: list[tuple[str, int]] = []
        marker: dict[str, str] = {}
        while True:

            async def attempt(client: Any, marker: dict[str, str] = marker) -> Any:
                return await client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix, **marker)

            answer = await self._try(attempt)
            for upload in answer.get("Uploads", ()):
                key = self._key(upload["Key"])
                if key and over(key):
                    found.append((f"multipart upload of {key}", 0))
                    if remove:
                        await self._abort(key, upload["UploadId"])
            if not answer.get("IsTruncated"):
                return found
            marker = {"KeyMarker": answer["NextKeyMarker"], "UploadIdMarker": answer["NextUploadIdMarker"]}

    def _at(self, key: str) -> dict[str, str]:
        end = _MARK if self._odd_names else ""
        return {"Bucket": self._bucket, "Key": self._name(key) + end}

    @property
    def _odd_names(self) -> bool:
        return self._server.lower().startswith("seaweedfs")

    def _name(self, key: str) -> str:
        """The object's name but for its end, so that a prefix of a key gives a prefix of names."""
        return self._prefix + (_spell(key) if self._odd_names else key)

    def _key(self, name: str) -> str:
        """The key of a name; "" if it is none of ours."""
        key = name[len(self._prefix) :]
        if not self._odd_names:
            return key
        if not key.endswith(_MARK):
            return ""
        key = key[:-1]
        try:
            whole = key.replace(f"{CONTINUES}/", "").encode()
            plain = _ESCAPED.sub(lambda m: bytes.fromhex(m[1].decode()), whole).decode()
        except UnicodeDecodeError:
            return ""
        return plain if _spell(plain) == key else ""

    def _note(self, answer: Mapping[str, Any]) -> None:
        if not self._server:
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            self._server = headers.get("server", "") or "S3"

    def _map_error(self, error: Exception, *, write: bool) -> StoreError | None:
        if isinstance(error, ClientError):
            self._note(error.response)
            return s3_errors.from_client_error(error, self._bucket)
        if isinstance(error, (NoCredentialsError, PartialCredentialsError, ProfileNotFound)):
            return PermissionDenied(
                f"{error}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or ?profile="
            )
        if isinstance(error, (HTTPClientError, BotoConnectionError, HttpError, ConnectionError, TimeoutError)):
            return StoreUnavailable(f"{type(error).__name__}: {error}")
        if isinstance(error, BotoCoreError):
            return StoreUnavailable(str(error)) if write else StoreError(str(error))
        return None


class _Body:
    """A large body for aiohttp: sent slice by slice from the event loop, without a thread."""

    def __init__(self, data: Data) -> None:
        self._data = memoryview(data)

    def __len__(self) -> int:
        return len(self._data)

    def read(self) -> bytes:
        return bytes(self._data)

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        for first in range(0, len(self._data), _SLICE):
            yield self._data[first : first + _SLICE]


def _body(data: Data) -> dict[str, Any]:
    # The checksum is needed: SeaweedFS stores an empty object when a client goes away in the middle of a body
    # that has none (S2).
    checksum = hashlib.md5(data, usedforsecurity=False).digest()
    return {
        "Body": bytes(data) if len(data) <= _SLICE else _Body(data),
        "ContentMD5": base64.b64encode(checksum).decode(),
    }


def _escape(match: re.Match[str]) -> str:
    return "".join(f"{_MARK}{byte:02X}" for byte in match[0].encode())


def _spell(key: str) -> str:
    """The key for servers with odd names: ASCII, and no segment of more than 255 bytes."""
    return "/".join("/".join(cut(_ODD.sub(_escape, segment), _MARK)) for segment in key.split("/"))


def _slices(data: Data) -> AsyncIterator[Data]:
    async def generate() -> AsyncIterator[Data]:
        view = memoryview(data)
        for first in range(0, len(view), _PART):
            yield view[first : first + _PART]

    return generate()


async def _parts(chunks: AsyncIterator[Data]) -> AsyncIterator[bytes]:
    """The chunks as parts of a multipart upload: equal sizes, larger after many."""
    held = bytearray()
    count, size = 0, _PART
    async for chunk in chunks:
        view = memoryview(chunk)
        while len(view):
            take = size - len(held)
            held += view[:take]
            view = view[take:]
            if len(held) == size:
                yield bytes(held)
                held.clear()
                count += 1
                size = _PART if count < _LARGER_AFTER else _LARGER_PART
    if held:
        yield bytes(held)


def _joined_tag(tags: Sequence[str]) -> str:
    """The ETag that S3 gives a multipart object: MD5 of the parts' MD5s."""
    try:
        joined = b"".join(bytes.fromhex(tag.strip('"')) for tag in tags)
    except ValueError:
        return ""  # encrypted buckets have other tags; then there is no proof
    return f"{hashlib.md5(joined, usedforsecurity=False).hexdigest()}-{len(tags)}"
