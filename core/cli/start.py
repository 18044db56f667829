"""``perdure start``: a Ray node by `ray start`, and on a head node the coordinator with its storage.

Owns which of its options are Ray's and which are its own. It never stops anything that it did not start.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import FrameType
from typing import Annotated, Final

import typer

from perdure.cli import arguments
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

HEAD_SECONDS: Final = 60.0


def start(
    context: typer.Context,
    head: Annotated[bool, typer.Option("--head", help="Start a head node, with the coordinator.")] = False,
    storage: arguments.Storage = None,
    trust: arguments.Trust = None,
    keys: arguments.Keys = None,
    block: Annotated[bool, typer.Option("--block", help="Stay, and end the node when this command ends.")] = False,
    max_running: Annotated[
        int | None, typer.Option("--max-running", help="Workflows that run at once; -1: no limit.")
    ] = None,
    max_pending: Annotated[
        int | None, typer.Option("--max-pending", help="Workflows that may wait; -1: no limit.")
    ] = None,
    lease_seconds: Annotated[float | None, typer.Option("--lease-seconds", help="Default 20.")] = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Start a Ray node as `ray start` does, and workflows with their storage on a head node.

    All other options go to `ray start`: --port, --num-cpus, --address (of a worker node) and so on. Drivers that
    connect later use this storage.
    """
    terminal = Terminal(output, quiet)
    with terminal.failures():
        rest = list(context.args)
        own = {
            "--storage": storage,
            "--trust": trust,
            "--keys": keys,
            "--max-running": max_running,
            "--max-pending": max_pending,
        }
        if not head:
            given = [name for name, value in {**own, "--lease-seconds": lease_seconds}.items() if value is not None]
            if given:
                raise ValueError(f"{', '.join(given)} can only be given to a head node (--head)")
            raise typer.Exit(subprocess.call(_ray_start(rest, head=False, block=block)))
        chosen = storage or os.environ.get("PERDURE_STORAGE")
        if not chosen:
            raise ValueError("a head node needs --storage URL (or PERDURE_STORAGE): where are workflows to be kept?")
        from perdure.onray.cluster import check_lease, check_limit, storage_url
        from perdure.value_settings import chosen as settings

        url = storage_url(chosen)  # what is wrong is found before anything is started
        check_limit("--max-running", max_running)
        check_limit("--max-pending", max_pending)
        check_lease(lease_seconds)
        values = settings(url).encode()
        ray_start = subprocess.Popen(_ray_start(rest, head=True, block=block), stdout=sys.stderr)
        if not block and ray_start.wait() != 0:
            terminal.stop(f"`ray start` ended with code {ray_start.returncode} (see above)", Exit.STORE)
        told: list[int] = []
        if block:
            _pass_on_signals(ray_start, told)
        try:
            address = _address(rest, ray_start if block else None)
            _coordinator(terminal, address, url, values, max_running, max_pending, lease_seconds)
        except BaseException:
            if block:
                ray_start.terminate()
                ray_start.wait()
            raise
        if block:
            raise typer.Exit(_ended(ray_start.wait(), bool(told)))


def _ray_start(rest: list[str], *, head: bool, block: bool) -> list[str]:
    # as a module: the `ray` script of this environment need not be on the PATH
    command = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start"]
    return command + ["--head"] * head + ["--block"] * block + rest


def _pass_on_signals(process: subprocess.Popen[bytes], told: list[int]) -> None:
    """Ray ends its node in order when it is told so (it may wait half a minute for work that runs)."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        told.append(number)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, pass_on)


def _ended(code: int, told: bool) -> int:
    return int(Exit.OK) if told or code == 0 else int(Exit.STORE)


def _option(rest: list[str], name: str) -> str | None:
    for number, word in enumerate(rest):
        if word == name and number + 1 < len(rest):
            return rest[number + 1]
        if word.startswith(name + "="):
            return word.partition("=")[2]
    return None


def _address(rest: list[str], process: subprocess.Popen[bytes] | None) -> str:
    """Where the new head listens: Ray notes it in its folder."""
    from perdure.cli.cluster_side import answers, current

    temporary = _option(rest, "--temp-dir")
    port = _option(rest, "--port")
    deadline = time.monotonic() + HEAD_SECONDS
    while time.monotonic() < deadline:
        if process is not None and process.poll() is not None:
            raise ValueError(f"`ray start` ended with code {process.returncode} (see above)")
        found = current(temporary)
        if found and (port in (None, "0") or found.endswith(f":{port}")) and answers(found):
            return found
        time.sleep(0.2)
    from perdure.errors import ClusterError

    raise ClusterError(f"the head node did not answer within {HEAD_SECONDS:g} s; see `ray start`'s messages above")


def _coordinator(
    terminal: Terminal,
    address: str,
    url: str,
    values: str,
    max_running: int | None,
    max_pending: int | None,
    lease: float | None,
) -> None:
    # This process never joins the cluster: Ray's own handlers would take the signals that must reach `ray start`.
    from perdure.onray import cluster
    from perdure.onray.actor import Config

    config = Config(
        url, lease or 20.0, -1 if max_running is None else max_running, -1 if max_pending is None else max_pending,
        values,
    )  # fmt: skip
    hello = cluster.start_coordinator(address, config)
    if hello["storage"] != url:
        raise ValueError(
            f"somebody has connected to the cluster at {address} before its storage was set: its workflows are kept in "
            f"{hello['shown']}. Stop its coordinator with `perdure stop --address {address}`, and name the storage "
            "again, with `perdure run --storage` or workflow.init(storage=...)."
        )
    terminal.data(
        {"address": address, "storage": hello["shown"], "coordinator": hello["coordinator"]},
        lambda: terminal.line(address),
    )
    terminal.note(f"workflows are kept in {hello['shown']}; the cluster is at {address}")
    sys.stdout.flush()
