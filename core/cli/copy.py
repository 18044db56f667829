"""``perdure copy``: workflows from one store into another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import arguments, caring
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

if TYPE_CHECKING:
    from perdure.care.copying import Outcome


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Store to copy from.", show_default=False)],
    target: Annotated[str, typer.Argument(metavar="DST", help="Store to copy to; made if it is empty.")],
    workflow_ids: caring.Ids = None,
    move: Annotated[
        bool, typer.Option("--move", help="Delete each workflow in SRC when all of it has arrived.")
    ] = False,
    take_back: Annotated[
        bool,
        typer.Option("--take-back", help="Copy nothing: let workflows that never arrived in DST go on in SRC again."),
    ] = False,
    unsigned_source: Annotated[
        bool,
        typer.Option("--unsigned-source", help="With --trust signed: SRC has no signatures, and you vouch for it."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --take-back: they do not go on in DST.")] = False,
    trust: arguments.Trust = None,
    keys: arguments.Keys = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Copy workflows, with all values proven on arrival. An unfinished one then goes on in DST only; one that is being
    driven is refused. Repeat the command after an interruption."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        import asyncio

        from perdure.care.copying import Outcome
        from perdure.care.copying import copy as copy_all
        from perdure.care.copying import take_back as take_one
        from perdure.care.opening import hand, opened

        outcomes: list[Outcome] = []

        def tell(outcome: Outcome) -> None:
            outcomes.append(outcome)
            terminal.note(f"{outcome.result} {outcome.workflow_id}")

        async def whole() -> None:
            async with (
                opened(source, unsigned=unsigned_source) as here,
                hand(here) as first,
                opened(target, make=True) as there,
                hand(there) as second,
            ):
                await copy_all(first, second, workflow_ids or None, move=move, tell=tell)

        async def back() -> None:
            async with (
                opened(source, unsigned=unsigned_source) as here,
                hand(here) as first,
                opened(target) as there,
                hand(there) as second,
            ):
                for workflow_id in workflow_ids or ():
                    if not (await second.reading.reader.chain(workflow_id).read()).deleted:
                        raise ValueError(
                            f"workflow {workflow_id!r} has arrived in {there.url}: only one of the two may go on. "
                            "Delete it there first."
                        )
                    await take_one(first, workflow_id)
                    tell(Outcome(workflow_id, "taken back"))

        if take_back and not (yes and workflow_ids):
            terminal.stop(
                "--take-back needs the ids, and --yes, which says that they do not go on in DST or anywhere else",
                Exit.USAGE,
            )
        asyncio.run(back() if take_back else whole())
        caring.show(terminal, outcomes)
