"""The command line: ``perdure``, also ``python -m perdure``.

Owns commands, their output and their exit codes, one file a command. All printing goes through `terminal.Terminal`.
Nothing here imports Ray before a command needs it.
"""

from __future__ import annotations


def main() -> None:
    """The entry point of the ``perdure`` script."""
    from perdure.cli.app import main as run

    run()
