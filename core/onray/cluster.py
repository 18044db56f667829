"""This driver's connection to its cluster's coordinator.

Owns `init`: starting Ray where it is down, finding or creating the coordinator, the storage setting and its
conflicts, deadlines on everything that could hang, and what of this driver its tasks need (`Context`).
"""

from __future__ import annotations

import base64
import getpass
import hashlib
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import ray
from ray import exceptions as rx

import perdure
from perdure import errors
from perdure.errors import ClusterError, PerdureError, WorkflowError
from perdure.onray import actor
from perdure.onray.process import PROCESS
from perdure.onray.relay import Printer
from perdure.runner import Context
from perdure.store import open_store
from perdure.value_settings import chosen, settings_from

logger = logging.getLogger("perdure")

START_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 30.0
PATIENCE_SECONDS: Final = 5.0
STORAGE_VARIABLE: Final = "PERDURE_STORAGE"


@dataclass
class Connection:
    """A handle on the coordinator, valid for one Ray session of this process."""

    session: str
    handle: Any
    storage: str
    shown: str
    hello: dict[str, Any]
    driver: str
    printer: Printer
    context: tuple[object, bytes] | None = None
    _versions: tuple[str, str, str] | None = None

    def call(self, method: str, *args: Any, timeout: float | None = None) -> Any:
        """One call; the coordinator's own errors come out as they are, Ray's as ClusterError."""
        return get(getattr(self.handle, method).remote(*args), timeout)

    def coordinator(self) -> str:
        """Id of the coordinator that answers now; after a restart it is another one."""
        return str(self.call("hello", perdure.__version__, actor.PROTOCOL)["coordinator"])

    def versions(self) -> tuple[str, str, str]:
        """See `versions`; read once a connection."""
        if self._versions is None:
            self._versions = versions()
        return self._versions

    def wait(self, workflow_id: str, task_id: str | None = None) -> ray.ObjectRef:
        """The value of a workflow or task; until then this driver gets its output (see `relay`)."""
        return self.handle.wait.remote(workflow_id, task_id, self.printer.audience)


_BRINGS_PACKAGES: Final = (
    "working_dir", "py_modules", "pip", "uv", "conda", "py_executable", "image_uri", "container",
)  # fmt: skip

_connection: Connection | None = None
_temporary: str | None = None


def get(ref: ray.ObjectRef, timeout: float | None = None) -> Any:
    """`ray.get`, with Perdure's errors unwrapped from Ray's (their ``__cause__`` is the user's exception)."""
    try:
        return ray.get(ref, timeout=timeout)
    except rx.RayTaskError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, PerdureError | ValueError | TypeError):
            raise cause from cause.__cause__
        raise
    except rx.GetTimeoutError as error:
        raise ClusterError(
            f"the coordinator did not answer within {timeout:g} s. See its log with `perdure logs --coordinator`, or "
            "`ray list actors --detail`."
        ) from error
    except rx.RayActorError as error:
        raise ClusterError(f"the coordinator of this cluster is gone: {error}") from error


def session_of() -> str:
    context = ray.get_runtime_context()
    return f"{context.gcs_address}/{context.get_job_id()}"


def storage_url(storage: str) -> str:
    """The whole URL for what the user gave: plain paths become absolute ``file://`` URLs. Checked, not opened."""
    if not storage.strip():
        raise ValueError(f"storage={storage!r}: expected a URL or a folder; leave it out for the default")
    if "://" not in storage:
        storage = str(Path(storage).expanduser().absolute())
    store = open_store(storage)
    if not store.capabilities.multi_process:
        raise ValueError(
            f"{store.url} can only be used within one process, and a cluster has several. Use file:///some/folder, or "
            "any store that several processes share."
        )
    return storage if "://" in storage else f"file://{storage}"


def _temporary_storage() -> str:
    global _temporary
    if _temporary is None:
        _temporary = tempfile.mkdtemp(prefix=f"perdure-{getpass.getuser()}-")
        logger.warning(
            "no storage was set: workflows are stored in %s, which does not outlive this machine. Set "
            "workflow.init(storage=...) or %s.", _temporary, STORAGE_VARIABLE,
        )  # fmt: skip
    return f"file://{_temporary}"


def check_limit(name: str, value: int | None) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < -1):
        raise ValueError(f"{name}={value!r}: expected an int of at least -1 (-1: no limit)")


def check_lease(seconds: float | None) -> None:
    if seconds is not None and not 1 <= seconds <= 3600:
        raise ValueError(f"lease_seconds={seconds!r}: expected 1 to 3600 seconds")


def init(
    storage: str | None = None,
    max_running: int | None = None,
    max_pending: int | None = None,
    lease_seconds: float | None = None,
    ray_init: dict[str, Any] | None = None,
    values: dict[str, Any] | None = None,
) -> Connection:
    """Connect; see `workflow.init`."""
    global _connection
    check_limit("max_running_workflows", max_running)
    check_limit("max_pending_workflows", max_pending)
    if max_running == 0:
        raise ValueError("max_running_workflows=0 would run nothing: expected at least 1, or -1 for no limit")
    check_lease(lease_seconds)
    url = storage_url(storage) if storage is not None else None
    asked = {name: value for name, value in (values or {}).items() if value is not None}
    if url is not None and asked:
        chosen(url, **asked)  # wrong values are told before anything is started
    if not ray.is_initialized():
        _recover_token_mode()
        _start_ray(ray_init or {})
    elif ray_init:
        raise ValueError(
            f"Ray is running already, so {', '.join(sorted(ray_init))} can't be set by workflow.init(). Give them to "
            "ray.init()."
        )
    session = session_of()
    connection = _connection
    if connection is None or connection.session != session:
        connection = _connect(session, url, max_running, max_pending, lease_seconds, asked)
        _connection = connection
    _check_same(connection, url, max_running, max_pending, lease_seconds)
    _check_values(connection, asked)
    return connection


def connected() -> Connection:
    """The connection; made with the defaults where there is none."""
    connection = _connection
    if connection is not None and ray.is_initialized() and connection.session == session_of():
        return connection
    return init()


def disconnect() -> None:
    """Forget the connection (after `ray.shutdown`)."""
    global _connection
    _connection = None


def _start_ray(options: dict[str, Any]) -> None:
    """`ray.init`, which alone would try a dead address for minutes, and not say that a token is missing."""
    address = options.get("address") or os.environ.get("RAY_ADDRESS") or ""
    place = address.removeprefix("ray://").partition("?")[0]
    host, _, port = place.rpartition(":")
    if host and port.isdigit() and "/" not in place:
        _reach(address, host.strip("[]"), int(port))
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise ClusterError(
            f"can't connect to the Ray cluster at {address or 'this machine'}: {error}. If it demands tokens, this "
            "process needs RAY_AUTH_MODE=token and the cluster's token (RAY_AUTH_TOKEN, or ~/.ray/auth_token); "
            f"RAY_AUTH_MODE is {os.environ.get('RAY_AUTH_MODE', 'not set')} here."
        ) from error


def _reach(address: str, host: str, port: int) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            with socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())):
                return
        except OSError as error:
            # a cluster that is being started may not listen yet: some seconds of patience
            if isinstance(error, socket.gaierror) or time.monotonic() > deadline - CONNECT_SECONDS + PATIENCE_SECONDS:
                raise ClusterError(f"no Ray cluster answers at {address}: {error}. Check the address.") from error
            time.sleep(0.2)


def _recover_token_mode() -> None:
    """A cluster started beside a token file demands tokens of everyone; a process must say so before Ray begins."""
    token = Path("~/.ray/auth_token").expanduser()
    if "RAY_AUTH_MODE" not in os.environ and token.exists():
        os.environ["RAY_AUTH_MODE"] = "token"
        # Ray has read its settings when it was imported; processes that it starts would see another mode than we do
        from ray._raylet import Config  # type: ignore[attr-defined]

        Config.initialize("")


def _check_same(
    connection: Connection,
    url: str | None,
    max_running: int | None,
    max_pending: int | None,
    lease_seconds: float | None,
) -> None:
    hello = connection.hello
    if url is not None and open_store(url).url != open_store(connection.storage).url:
        raise ValueError(
            f"storage={open_store(url).url!r} was asked for, but this cluster's workflows are stored in "
            f"{connection.shown!r} since its first workflow.init(). Use that, or another cluster."
        )
    differ = [
        f"{name}={asked!r} (is {hello[key]!r})"
        for name, key, asked in (
            ("max_running_workflows", "max_running", max_running),
            ("max_pending_workflows", "max_pending", max_pending),
            ("lease_seconds", "lease_seconds", lease_seconds),
        )
        if asked is not None and asked != hello[key]
    ]
    if differ:
        raise ValueError(
            f"workflow.init() was called before with other values for {', '.join(differ)}. They hold for the whole "
            "cluster: use the same ones, or start a new cluster."
        )


def _check_values(connection: Connection, asked: dict[str, Any]) -> None:
    """ValueError where this driver asked for other settings of values than the cluster's."""
    if not asked:
        return
    here, there = chosen(connection.storage, **asked), settings_from(connection.hello["values"])
    differ = [
        f"{name}={getattr(here, name)!r} (is {getattr(there, name)!r})"
        for name in asked
        if getattr(here, name) != getattr(there, name)
    ]
    if differ:
        raise ValueError(
            f"this cluster's workflow.init() was called before with other values for {', '.join(differ)}. They hold "
            "for the whole cluster: use the same ones, or start a new cluster."
        )


def _connect(
    session: str,
    url: str | None,
    max_running: int | None,
    max_pending: int | None,
    lease: float | None,
    values: dict[str, Any],
) -> Connection:
    handle = _find()
    if handle is None:
        place = storage_url(url or os.environ.get(STORAGE_VARIABLE) or _temporary_storage())
        config = actor.Config(
            place, lease or 20.0,
            -1 if max_running is None else max_running, -1 if max_pending is None else max_pending,
            chosen(place, **values).encode(),
        )  # fmt: skip
        _bootstrap(config)
        handle = _find()
        if handle is None:
            raise ClusterError("the coordinator was started, but can't be found. See `ray list actors`.")
    try:
        hello = get(handle.hello.remote(perdure.__version__, actor.PROTOCOL), CONNECT_SECONDS)
    except ClusterError as error:
        raise ClusterError(f"{error}\n{_worker_errors()}") from error
    driver = uuid.uuid4().hex
    PROCESS.configure(hello["values"])
    return Connection(session, handle, hello["storage"], hello["shown"], hello, driver, Printer(handle, driver))


def _find() -> Any:
    try:
        return ray.get_actor(actor.NAME, namespace=actor.NAMESPACE)
    except ValueError:
        return None
    except TypeError as error:
        raise ClusterError(
            f"this cluster's coordinator is of a Perdure that this process can't talk to ({error}). Install the same "
            "version of perdure on both sides."
        ) from error


def _bootstrap(config: actor.Config) -> None:
    """Run `perdure.onray.bootstrap` on the cluster: here, or through a task where this is a Ray client."""
    line = _bootstrap_line(ray.get_runtime_context().gcs_address, config)
    if ray.util.client.ray.is_connected():
        remote = ray.remote(run_bootstrap).options(num_cpus=0, name="perdure.onray.bootstrap")
        _started(get(remote.remote(line), START_SECONDS + 30))
    else:
        _started(run_bootstrap(line))


def start_coordinator(address: str, config: actor.Config) -> dict[str, Any]:
    """Make sure that the cluster at ``address`` has a coordinator, without connecting this process to it.

    Returns what the coordinator says of itself. Raises ClusterError, StoreError, FormatError, PluginError.
    """
    _recover_token_mode()
    return _started(run_bootstrap(_bootstrap_line(address, config)))


def _bootstrap_line(address: str, config: actor.Config) -> str:
    request = {
        "address": address,
        "config": base64.b64encode(msgspec.msgpack.encode(config)).decode(),
        "seconds": CONNECT_SECONDS,
        "packages": _packages(),
    }
    return json.dumps(request)


def _packages() -> dict[str, Any]:
    """What of this driver's runtime_env may bring Perdure itself to a cluster that does not have it."""
    if not ray.is_initialized():
        return {}
    env = _plain_env(dict(ray.get_runtime_context().runtime_env))
    return {name: env[name] for name in _BRINGS_PACKAGES if name in env}


def _started(answer: dict[str, Any]) -> dict[str, Any]:
    if "error" in answer:
        kind = getattr(errors, answer["type"], None) if answer.get("ours") else None
        if isinstance(kind, type) and issubclass(kind, PerdureError) and not issubclass(kind, WorkflowError):
            raise kind(answer["error"])
        raise ClusterError(f"the coordinator could not be started: {answer['error']}")
    return answer


def run_bootstrap(line: str) -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_JOB_") and k != "RAY_ADDRESS"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "perdure.onray.bootstrap"],
            input=line + "\n", capture_output=True, text=True, timeout=START_SECONDS, env=env, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        log = (error.stderr or b"")[-3000:]
        shown = log.decode(errors="replace") if isinstance(log, bytes) else log
        raise ClusterError(
            f"the coordinator did not start within {START_SECONDS:g} s. Its starter said:\n{shown or '(nothing)'}\n"
            f"{_worker_errors()}"
        ) from error
    answer = done.stdout.strip().splitlines()[-1:] or [""]
    try:
        reply = dict(json.loads(answer[0]))
        if "error" in reply and reply.get("type") in ("", "ClusterError"):
            reply["error"] += "\n" + _worker_errors()
        return reply
    except ValueError:
        return {"error": f"exit code {done.returncode}:\n{done.stderr[-3000:]}\n{_worker_errors()}", "type": ""}


def _worker_errors(folder: str = "") -> str:
    """The end of the newest worker's .err file: where Ray hides why a process did not start."""
    logs = Path(folder or _session_folder()) / "logs"
    try:
        files = sorted(logs.glob("worker*.err"), key=lambda p: p.stat().st_mtime)
        shown = next(
            (f, t) for f in reversed(files) if (t := f.read_text(errors="replace")[-2000:].strip())
        )  # the newest that says something
    except (OSError, StopIteration):
        return f"The workers' own logs are in {logs} on the head node."
    return f"The newest worker's log ({logs / shown[0].name}) ends with:\n{shown[1]}"


def _session_folder() -> str:
    try:
        here = ray.get_runtime_context()
        return str(Path(here.get_temp_dir()) / here.get_session_name())
    except Exception:  # not connected: the newest session of this machine
        return "/tmp/ray/session_latest"


# -- what tasks need of this driver ----------------------------------------------------------------------------------


def context_of(connection: Connection) -> bytes:
    """This driver's environment for its tasks, encoded."""
    now = (tuple(sys.path), os.getcwd() if "" in sys.path else "")
    if connection.context is None or connection.context[0] != now:
        env = _plain_env(dict(ray.get_runtime_context().runtime_env))
        paths = driver_paths()
        identity = json.dumps([env, paths, connection.driver], sort_keys=True, default=str)
        digest = hashlib.blake2b(identity.encode(), digest_size=12).hexdigest()
        encoded = actor.encode_context(Context(digest, env, paths, connection.printer.audience))
        connection.context = now, encoded
    return connection.context[1]


def versions() -> tuple[str, str, str]:
    """Of Ray and Perdure here, and a digest of this driver's code package: "" where it has none."""
    env = _plain_env(dict(ray.get_runtime_context().runtime_env))
    package = {name: env[name] for name in _BRINGS_PACKAGES if env.get(name)}
    digest = hashlib.blake2b(json.dumps(package, sort_keys=True).encode(), digest_size=8).hexdigest() if package else ""
    return ray.__version__, perdure.__version__, digest


def _plain_env(env: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(env, default=str))  # type: ignore[no-any-return]


def driver_paths() -> tuple[str, ...]:
    """Folders of ``sys.path`` that are this driver's own: not the interpreter's, not site-packages."""
    roots = {os.path.realpath(p) for p in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    out = []
    for path in sys.path:
        full = os.path.realpath(path or os.getcwd())
        if not os.path.isdir(full) or any(full == r or full.startswith(r + os.sep) for r in roots):
            continue
        if full not in out:
            out.append(full)
    return tuple(out)
