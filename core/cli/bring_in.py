"""``perdure import``: the workflows of an archive file into a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import arguments, caring
from perdure.cli.terminal import Format, Terminal
from perdure.errors import CorruptedError, FormatError, StoreError

if TYPE_CHECKING:
    from perdure.care.copying import Outcome


def bring_in(
    path: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="File that `perdure export` made.")],
    target: Annotated[str, typer.Argument(metavar="URL", help="Store to import to; made if it is empty.")],
    trust: arguments.Trust = None,
    keys: arguments.Keys = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Put the workflows of an archive into a store. Repeat the command after an interruption: what has arrived is found
    there."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        import asyncio

        from perdure.care.archiving import bring_in as bring_all
        from perdure.care.opening import hand, opened

        outcomes: list[Outcome] = []

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            terminal.note(f"{outcome.result} {outcome.workflow_id}")

        if not path.is_file():
            raise ValueError(f"{path}: no such file")

        async def whole() -> None:
            with path.open("rb") as file:
                async with opened(target, make=True) as store, hand(store) as held:
                    await bring_all(file, str(path), held, tell=tell)

        try:
            asyncio.run(whole())
        except (CorruptedError, FormatError, StoreError):
            caring.table(terminal, outcomes)  # these are in
            raise
        caring.show(terminal, outcomes)
