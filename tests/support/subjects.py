"""Stores on real servers as subjects of the conformance suite, with every hook that a server allows.

With ``tests`` on PYTHONPATH: ``perdure conformance --hooks support.subjects:RedisSubject``, or
``python -c "from support import subjects; subjects.main()" KIND [LEVEL [CASES]]``.
"""

from __future__ import annotations

import os
import sys
from typing import ClassVar

import servers

from perdure.conformance import Level, Report, StoreSubject, run_sync

# Started in the process that runs the suite; children only see URLs.
_running: dict[str, servers.Server] = {}


class ServerSubject(StoreSubject):
    """A subject whose server is started on first use."""

    server: ClassVar[type[servers.Server]]
    settings: ClassVar[dict[str, str]] = {}
    environment: ClassVar[dict[str, str]] = {}

    def __init__(self) -> None:
        os.environ.update(self.environment)
        running = self._server()
        self.url = running.url("conformance")
        self.upstream = ("127.0.0.1", running.port)

    def _server(self) -> servers.Server:
        name = type(self).__name__
        if name not in _running:
            _running[name] = self.server(**self.settings).start()
        return _running[name]

    def proxied_url(self, host: str, port: int) -> str:
        assert self.url is not None
        assert self.upstream is not None
        return self.url.replace(f"127.0.0.1:{self.upstream[1]}", f"{host}:{port}")

    def restart(self) -> None:
        self._server().restart()

    def kill(self) -> None:
        self._server().restart()  # SIGKILL, then started again on the same data


class S3Subject(ServerSubject):
    server = servers.Ministack
    patience = 4.0  # some milliseconds a call where other work is done too
    environment: ClassVar = {
        "AWS_ACCESS_KEY_ID": servers.ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": servers.SECRET_KEY,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    secret = servers.SECRET_KEY

    def __init__(self) -> None:
        super().__init__()
        assert self.url is not None
        self.missing_url = self.url.replace(servers.BUCKET, "no-such-bucket")


class SeaweedSubject(S3Subject):
    server = servers.SeaweedFS

    def __init__(self) -> None:
        super().__init__()
        self.missing_url = None  # its administrator's buckets are made by writing to them
        self.wrong_secret_url = f"{self.url}&key_id={servers.ACCESS_KEY}&secret=wrong-secret-40c2"


class GcsSubject(ServerSubject):
    server = servers.FakeGcs
    patience = 8.0  # it looks through all objects for each put and delete: 10,000 take minutes

    def __init__(self) -> None:
        super().__init__()
        assert self.url is not None
        self.missing_url = self.url.replace(servers.BUCKET, "no-such-bucket")

    # It keeps objects in memory: a restart would lose them, which GCS does not do.
    restart = None  # type: ignore[assignment]
    kill = None  # type: ignore[assignment]


class RedisSubject(ServerSubject):
    server = servers.Redis


class RedisEverysecSubject(ServerSubject):
    server = servers.Redis
    settings: ClassVar = {"fsync": "everysec"}


class RedisTlsSubject(ServerSubject):
    server = servers.Redis
    settings: ClassVar = {"tls": "true", "acl": "true"}
    environment: ClassVar = {
        "PERDURE_REDIS_USERNAME": "perdure",
        "PERDURE_REDIS_PASSWORD": servers.Redis.password,
    }
    secret = servers.Redis.password

    def __init__(self) -> None:
        super().__init__()
        self.wrong_secret_url = f"{self.url}&password=wrong-secret-40c2"


class RcloneSubject(S3Subject):
    server = servers.Rclone


class S3rverSubject(S3Subject):
    server = servers.S3rver
    environment: ClassVar = {
        "AWS_ACCESS_KEY_ID": servers.S3rver.keys,
        "AWS_SECRET_ACCESS_KEY": servers.S3rver.keys,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    secret = None  # its fixed key is its name


class OldMotoSubject(S3Subject):
    server = servers.OldMoto
    # It keeps objects in memory.
    restart = None  # type: ignore[assignment]
    kill = None  # type: ignore[assignment]


LIARS = {"s3-rclone": RcloneSubject, "s3-s3rver": S3rverSubject, "s3-moto-4": OldMotoSubject}
"""Servers that take every create for a new one; the suite has to catch each."""

SUBJECTS = {
    "s3-ministack": S3Subject,
    "s3-seaweedfs": SeaweedSubject,
    "gs": GcsSubject,
    "redis": RedisSubject,
    "redis-everysec": RedisEverysecSubject,
    "rediss": RedisTlsSubject,
}


def judge(kind: str, level: str = "full", only: str | None = None) -> Report:
    """Run the suite over one kind of server."""
    servers.install_signal_handler()
    return run_sync((SUBJECTS | LIARS)[kind](), level=Level(level), only=only)


def main() -> None:
    """Judge the kind named on the command line and print what did not pass."""
    report = judge(*sys.argv[1:4])
    for result in report.results:
        if result.status.value != "PASSED":
            print(result.case.id, result.status.value, round(result.seconds, 1), result.reason[:500])
            if result.status.value in ("FAILED", "ERROR"):
                print("  expected", result.expected[:300], *result.calls[-6:], result.traceback[-800:], sep="\n  ")
    counts = {s: sum(r.status.value == s for r in report.results) for s in {r.status.value for r in report.results}}
    print(sys.argv[1], counts, round(report.seconds))
