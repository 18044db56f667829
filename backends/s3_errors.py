"""What S3 answers mean: errors by code, and settings of a bucket that endanger a store.

Owns the knowledge of codes and bucket settings; sends the few requests that read settings, none that write
data.
"""

from __future__ import annotations

import datetime
from typing import Any

from botocore.exceptions import ClientError

from perdure.errors import AlreadyExists, NotFound, PermissionDenied, StoreError, StoreUnavailable

_TRANSIENT = frozenset(
    {
        "ConditionalRequestConflict",
        "OperationAborted",
        "InternalError",
        "RequestTimeout",
        "RequestTimeoutException",
        "ServiceUnavailable",
        "SlowDown",
        "Throttling",
        "ThrottlingException",
        "TooManyRequests",
        "RequestLimitExceeded",
        "BandwidthLimitExceeded",
        "IncompleteBody",
        "BadDigest",
    }
)
_DENIED = frozenset(
    {
        "AccessDenied",
        "AllAccessDisabled",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
        "UnauthorizedAccess",
    }
)
_HINTS = {
    "ExpiredToken": "the session token has expired; get a new one",
    "InvalidAccessKeyId": "the server does not know this access key id",
    "SignatureDoesNotMatch": "the secret does not belong to the access key id, or a proxy changes requests",
    "AccessDenied": "s3:GetObject, PutObject, DeleteObject and ListBucket are needed",
    "RequestTimeTooSkewed": "this machine's clock differs too much from the server's; synchronise it (NTP)",
    "NotImplemented": "the server does not support what was asked, such as conditional writes",
}


def status(error: ClientError) -> int:
    """The HTTP status of the answer, 0 if it isn't told."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)


def code(error: ClientError) -> str:
    """The S3 error code; an HTTP status as text where the answer had no body."""
    return str(error.response.get("Error", {}).get("Code", ""))


def from_client_error(error: ClientError, bucket: str) -> StoreError:
    """The store error of an answer."""
    name, http = code(error), status(error)
    message = str(error.response.get("Error", {}).get("Message", ""))
    if name == "NoSuchBucket":
        return StoreError(f"bucket {bucket!r} does not exist there; create it, or check name and endpoint")
    if http in (301, 307) or name in (
        "PermanentRedirect",
        "AuthorizationHeaderMalformed",
        "IllegalLocationConstraint",
    ):
        region = error.response.get("Error", {}).get("Region") or error.response.get("ResponseMetadata", {}).get(
            "HTTPHeaders", {}
        ).get("x-amz-bucket-region")
        where = (
            f"in region {region}: open it with ?region={region}"
            if region
            else "in another region or at another endpoint"
        )
        return StoreError(f"bucket {bucket!r} is {where} ({name or http})")
    return from_code(name, message, http)


def from_code(name: str, message: str, http: int) -> StoreError:
    """The store error of an S3 error code and HTTP status."""
    text = f"{name or f'HTTP {http}'}: {_HINTS.get(name) or message or 'no reason given'}"
    if name == "PreconditionFailed" or http == 412:
        return AlreadyExists("it exists")
    if name in ("NoSuchKey", "404", "NotFound") or (http == 404 and name not in ("NoSuchUpload",)):
        return NotFound("no such key")
    # A conflict has stored nothing (W3): it is retried, never reported as existence.
    if name in _TRANSIENT or http in (408, 409, 425, 429) or (http >= 500 and name != "NotImplemented"):
        return StoreUnavailable(text)
    if name in _DENIED or (http in (401, 403) and name != "RequestTimeTooSkewed"):
        return PermissionDenied(text)
    return StoreError(text)


async def bucket_warnings(
    client: Any, bucket: str, prefix: str, accept_lifecycle: bool, stale: datetime.timedelta
) -> list[str]:
    """Warnings about versioning; StoreError for a lifecycle rule that deletes our objects (S8).

    Also aborts multipart uploads below the prefix that were begun longer ago than ``stale`` and left.
    """
    warnings: list[str] = []
    versioning = await _ask(client.get_bucket_versioning(Bucket=bucket))
    if versioning.get("Status") == "Enabled":
        warnings.append(
            f"bucket {bucket!r} keeps old versions: deleted journals and blobs stay and are paid for. Add a "
            "lifecycle rule for noncurrent versions, or suspend versioning"
        )
    rules = (await _ask(client.get_bucket_lifecycle_configuration(Bucket=bucket))).get("Rules", [])
    for rule in rules:
        scope = rule.get("Filter", {}).get("Prefix") or rule.get("Filter", {}).get("And", {}).get("Prefix")
        scope = scope or rule.get("Prefix") or ""
        touches = scope.startswith(prefix) or prefix.startswith(scope)
        if rule.get("Status") == "Enabled" and "Expiration" in rule and touches:
            text = (
                f"bucket {bucket!r} has a lifecycle rule ({rule.get('ID', 'unnamed')}) that deletes objects "
                f"under {scope!r}: acknowledged work would be lost. Limit the rule to other prefixes"
            )
            if not accept_lifecycle:
                raise StoreError(f"{text}, or open the store with ?accept_lifecycle=true")
            warnings.append(text)
    await _abort_stale(client, bucket, prefix, stale)
    return warnings


async def _ask(request: Any) -> dict[str, Any]:
    """The answer of a settings request; empty where the server has no such setting or we may not read it."""
    try:
        answer: dict[str, Any] = await request
    except ClientError:
        return {}
    return answer


async def _abort_stale(client: Any, bucket: str, prefix: str, stale: datetime.timedelta) -> None:
    answer = await _ask(client.list_multipart_uploads(Bucket=bucket, Prefix=prefix))
    # The server's own clock on both sides.
    date = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        now = datetime.datetime.strptime(date, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=datetime.UTC)
    except ValueError:
        return
    for upload in answer.get("Uploads", ()):
        if now - upload["Initiated"] > stale:
            await _ask(client.abort_multipart_upload(Bucket=bucket, Key=upload["Key"], UploadId=upload["UploadId"]))
