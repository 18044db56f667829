"""``perdure export``: workflows into one archive file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import arguments, caring
from perdure.cli.terminal import Format, Terminal

if TYPE_CHECKING:
    from perdure.care.copying import Outcome


def export(
    source: Annotated[str, typer.Argument(metavar="URL", help="Store to export from.", show_default=False)],
    words: Annotated[
        list[str],
        typer.Argument(metavar="[ID]... ARCHIVE", help="Workflow ids (default: all), and the file to make, last."),
    ],
    unfinished: Annotated[
        bool,
        typer.Option("--unfinished", help="Also workflows to be resumed: they go on where they are imported, only."),
    ] = False,
    keys: arguments.Keys = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Write workflows into an archive: one file with checksums, which any tar shows. After an interruption nothing is
    there under its name; repeat the command."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        import asyncio

        from perdure.care.archiving import export as export_all
        from perdure.care.opening import hand, opened

        ids, path = words[:-1], Path(words[-1])
        outcomes: list[Outcome] = []

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            terminal.note(f"{outcome.result} {outcome.workflow_id}")

        async def whole() -> None:
            async with opened(source) as store, hand(store) as held:
                await export_all(held, ids or None, path, unfinished=unfinished, tell=tell)

        asyncio.run(whole())
        caring.show(terminal, outcomes)
