"""``perdure plugins``: what is installed, and whether it works."""

from __future__ import annotations

from perdure.cli import arguments
from perdure.cli.terminal import Format, Terminal


def plugins(output: arguments.Output = Format.table, quiet: arguments.Quiet = False) -> None:
    """List stores, serializers, codecs and listeners with their health. Loads each one."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure import registry

        found = registry.plugins()
        terminal.data(
            [
                {
                    "kind": info.group.rsplit(".", 1)[-1],
                    "name": info.name,
                    "distribution": info.distribution,
                    "version": info.version,
                    "object": info.value,
                    "health": info.health,
                    "error": info.error,
                }
                for info in found
            ],
            lambda: terminal.table(
                ("KIND", "NAME", "DISTRIBUTION", "VERSION", "HEALTH", "ERROR"),
                [(i.group.rsplit(".", 1)[-1], i.name, i.distribution, i.version, i.health, i.error) for i in found],
            ),
        )
