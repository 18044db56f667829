"""Real Ray clusters and drivers as processes of their own, which tests may stop and kill.

Owns every process that it starts: each is a session of its own, is killed by the pids of that session, and ends by
itself when the test process does (its standard input closes).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

HERE = Path(__file__).parent
WAIT_SECONDS = 60.0

_HEAD = """
import json, sys
import ray
ray.init(address="local", include_dashboard=False, log_to_driver=False, **json.loads(sys.argv[1]))
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


def until(condition: Callable[[], T], what: str, seconds: float = WAIT_SECONDS, pause: float = 0.005) -> T:
    """The first true value of ``condition``; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(pause)


def environment(extra: dict[str, str | None] | None = None) -> dict[str, str]:
    """This process's environment without what would lead to another cluster or store; None in ``extra`` removes."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PERDURE_"))}
    env["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # else Ray warns once a start
    for name, value in (extra or {}).items():
        if value is None:
            env.pop(name, None)
        else:
            env[name] = value
    return env


class Process:
    """A child process that leads its own session; its errors go to a file, so that failures can show them."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        self.log = tempfile.NamedTemporaryFile("w+", prefix="perdure-test-", suffix=".log")
        self.popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            start_new_session=True, env=env if env is not None else environment(), cwd=cwd,
        )  # fmt: skip

    @property
    def pid(self) -> int:
        return self.popen.pid

    def errors(self) -> str:
        return Path(self.log.name).read_text(errors="replace")

    def line(self, seconds: float = WAIT_SECONDS) -> str:
        """The next line of its output."""
        assert self.popen.stdout is not None
        ready, _, _ = select.select([self.popen.stdout], [], [], seconds)
        text = self.popen.stdout.readline() if ready else ""
        if not text:
            raise AssertionError(
                f"{self.popen.args} said nothing for {seconds:g} s (exit code {self.popen.poll()}):\n"
                f"{self.errors()[-4000:]}"
            )
        return text.rstrip("\n")

    def send(self, text: str) -> None:
        assert self.popen.stdin is not None
        self.popen.stdin.write(text + "\n")
        self.popen.stdin.flush()

    def members(self) -> list[int]:
        """Pids of its session and of all descendants, itself first."""
        table = processes()
        found = [self.pid]
        for pid, (parent, session) in sorted(table.items()):
            if pid != self.pid and (session == self.pid or parent in found):
                found.append(pid)
        return found

    def kill(self) -> None:
        """SIGKILL to it and everything that it started."""
        for pid in self.members():
            kill(pid)
        self.finish()

    def finish(self) -> None:
        """Reap it and close its pipes."""
        self.popen.wait(30)
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass
        self.log.close()


def processes() -> dict[int, tuple[int, int]]:
    """Parent and session of every process of this machine."""
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                fields = Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[-1].split()
            except OSError:
                continue
            table[int(name)] = (int(fields[1]), int(fields[3]))
    return table


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


class Head:
    """A one-node Ray cluster with its own temporary folder. ``options`` go to `ray.init`."""

    def __init__(self, *, env: dict[str, str | None] | None = None, **options: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pdr-", dir="/tmp"))  # short: sockets lie below it
        settings = {"num_cpus": 2, "_temp_dir": str(self.folder)} | options
        self.env = environment(env)
        self.process = Process([sys.executable, "-c", _HEAD, json.dumps(settings)], self.env)
        try:
            self.address = self.process.line()
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """kill -9 of all of it at once."""
        self.process.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> None:
        """An orderly end, as far as Ray ends by itself."""
        members = self.process.members()
        assert self.process.popen.stdin is not None
        self.process.popen.stdin.close()
        try:
            self.process.popen.wait(20)
        except subprocess.TimeoutExpired:
            pass
        for pid in members[1:]:
            kill(pid)
        self.kill()

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Console:
    """A driver that obeys: see `console.py` beside this file. Answers are plain data."""

    def __init__(
        self, head: Head | str, *, env: dict[str, str | None] | None = None, cwd: Path | None = None, **init: Any
    ) -> None:
        address = head if isinstance(head, str) else head.address
        base = head.env if isinstance(head, Head) else environment()
        merged = {k: v for k, v in {**base, **(env or {})}.items() if v is not None}
        settings = {"address": address, "logging_level": "error"} | init
        self.process = Process([sys.executable, str(HERE / "console.py"), json.dumps(settings)], merged, cwd)
        try:
            self.hello = self.answer()
        except BaseException:
            self.process.kill()
            raise

    def do(self, what: str, *args: Any, seconds: float = WAIT_SECONDS, **kwargs: Any) -> Any:
        """Carry out a command there; what it raises is an AssertionError here."""
        self.process.send(json.dumps([what, args, kwargs]))
        return self.answer(seconds)

    def answer(self, seconds: float = WAIT_SECONDS) -> Any:
        reply = json.loads(self.process.line(seconds))
        if "error" in reply:
            raise Refused(reply["type"], reply["error"])
        return reply["value"]

    def close(self) -> None:
        assert self.process.popen.stdin is not None
        self.process.popen.stdin.close()
        try:
            self.process.popen.wait(20)
        except subprocess.TimeoutExpired:
            pass
        self.process.kill()

    def kill(self) -> None:
        self.process.kill()

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Refused(AssertionError):
    """What a console's command raised. ``kind``: the class's name."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind
        self.text = text


class Scene:
    """A cluster, a driver that obeys, a store and the file in which tasks note their executions."""

    def __init__(
        self, folder: Path, storage: Path | str | None = None, env: dict[str, str | None] | None = None, **init: object
    ) -> None:
        self.storage = folder / "store" if storage is None else storage
        self.side = folder / "side"
        self.init = init
        self.head = Head(env=env)
        try:
            self.console = self.connect()
        except BaseException:
            self.head.kill()
            raise

    def connect(self) -> Console:
        return Console(self.head, storage=str(self.storage), **self.init)

    def close(self) -> None:
        self.console.kill()
        self.head.kill()

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def ray_driver(head: Head, source: str) -> str:
    """Run a short script that is connected to the cluster, without Perdure; what it prints."""
    script = f"import ray\nray.init({head.address!r}, logging_level='error')\n" + textwrap.dedent(source)
    env = head.env | {"RAY_AUTH_MODE": head.env.get("RAY_AUTH_MODE") or "token"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
