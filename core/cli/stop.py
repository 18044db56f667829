"""``perdure stop``: end a cluster's coordinator in order."""

from __future__ import annotations

from typing import Final

from perdure.cli import arguments
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

STOP_SECONDS: Final = 60.0


def stop(
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Stop the coordinator, not Ray: what is done is stored, what runs is ended and RESUMABLE at once.

    The next `perdure start`, `perdure run` or workflow.init() on this cluster starts a new one, perhaps on another
    store.
    """
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.cli.cluster_side import ClusterSide, NoCoordinator, find

        found = find(address)
        if found is None:
            terminal.stop("no Ray cluster runs on this machine; name one with --address", Exit.NOT_FOUND)
        import ray

        try:
            side = ClusterSide(found)
        except NoCoordinator:
            terminal.stop(f"the Ray cluster at {found} has no coordinator to stop", Exit.NOT_FOUND)
        side.connection.call("stop", timeout=STOP_SECONDS)
        ray.kill(side.connection.handle, no_restart=True)
        shown = side.connection.shown
        terminal.data({"stopped": True, "storage": shown}, lambda: None)
        terminal.note(f"stopped the coordinator; workflows in {shown} are resumable")
