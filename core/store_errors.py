"""How a store's failures become Perdure's errors.

Owns the mapping of operating-system errors, and the last check that every error that leaves a store names
URL, key and operation, can be pickled with its cause, and shows no secret. It knows no particular store.
"""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterable

from perdure.errors import PermissionDenied, StoreError, StoreUnavailable

_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})

_TRANSIENT = frozenset(
    {
        errno.EAGAIN,
        errno.EBUSY,
        errno.EINTR,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.ESTALE,
        errno.ETIMEDOUT,
        errno.ECONNABORTED,
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETRESET,
        errno.ENETUNREACH,
        errno.ENOTCONN,
        errno.EPIPE,
    }
)

_HINTS = {
    errno.ENOSPC: "the disk is full; free space, then the call can be repeated",
    errno.EDQUOT: "the disk quota is used up; free space, then the call can be repeated",
    errno.EFBIG: "the file size limit (ulimit -f, or the filesystem's) is reached",
    errno.EIO: "the disk reports an input/output error; check the device and its log",
    errno.EACCES: "check owner and mode of the folder for the user who runs this process",
    errno.EPERM: "the filesystem or the user's rights don't allow it",
    errno.EROFS: "the filesystem is mounted read-only",
    errno.EMFILE: "this process has used up its file descriptors (ulimit -n)",
    errno.ENFILE: "this machine has used up its file descriptors",
    errno.ENOTDIR: "something that is not a folder is in the way",
    errno.ELOOP: "a symbolic link is in the way; the store does not follow links",
    errno.EXDEV: "the store's folder spans two filesystems",
}


def from_os_error(error: OSError) -> StoreError:
    """The store error for an OSError whose write, if it was one, is known not to have happened.

    The caller turns it into StoreUnavailable itself when the name may already be published.
    """
    code = error.errno or 0
    text = f"{error.strerror or error} ({errno.errorcode[code]})" if code in errno.errorcode else str(error)
    hint = _HINTS.get(code)
    if hint:
        text = f"{text}: {hint}"
    if code in _DENIED:
        return PermissionDenied(text)
    if code in _TRANSIENT or isinstance(error, (TimeoutError, ConnectionError)):
        return StoreUnavailable(text)
    return StoreError(text)


def finish(
    error: StoreError,
    cause: BaseException | None,
    *,
    url: str,
    key: str | None,
    operation: str,
    secrets: Iterable[str],
) -> StoreError:
    """Fill in what the error lacks and make it safe to show and to pickle. Errors already complete stay."""
    if error.url is None:
        error.url, error.key, error.operation = url, error.key if error.key is not None else key, operation
        about = f" {error.key!r}" if error.key is not None else ""
        error.args = (f"{operation}{about} in {url}: {error.args[0] if error.args else type(error).__name__}",)
    secrets = tuple(secrets)
    if secrets:
        error.args = tuple(_scrub(str(arg), secrets) for arg in error.args)
    if cause is None:
        cause = error.__cause__
    error.__cause__ = _portable(cause, secrets)
    # What was being handled is the cause already; a second copy would bypass the scrubbing.
    error.__context__ = None
    return error


def _portable(cause: BaseException | None, secrets: tuple[str, ...]) -> BaseException | None:
    """The cause itself where it can be pickled and shows no secret, else a stand-in with its text."""
    if cause is None:
        return None
    seen: BaseException | None = cause
    clean, depth = True, 0
    while secrets and seen is not None and depth < 20:
        text = f"{seen} {seen.args!r} {seen.__dict__!r}"
        if any(secret in text for secret in secrets):
            # The original stays reachable as __context__, so it is cleaned in place too.
            clean = False
            seen.args = tuple(_scrub(str(arg), secrets) for arg in seen.args)
        seen = seen.__cause__ or seen.__context__
        depth += 1
    if clean and (type(cause) in _PICKLABLE or _pickles(cause)):
        return cause
    stand_in = StoreError(_scrub(f"{type(cause).__module__}.{type(cause).__qualname__}: {cause}", secrets))
    return stand_in.with_traceback(cause.__traceback__)


_PICKLABLE = frozenset({OSError, FileExistsError, FileNotFoundError, PermissionError, TimeoutError})


def _pickles(error: BaseException) -> bool:
    try:
        return isinstance(pickle.loads(pickle.dumps(error)), type(error))
    except Exception:
        return False


def _scrub(text: str, secrets: tuple[str, ...]) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text
