"""``perdure verify``: what of a store is missing, damaged or orphaned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import arguments, caring
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

if TYPE_CHECKING:
    from perdure.care.verifying import Finding, Report

_SHOWN = 1000


def verify(
    source: Annotated[str, typer.Argument(metavar="URL", help="Store to verify.", show_default=False)],
    workflow_ids: caring.Ids = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Only whether large values are there, not what is in them.")
    ] = False,
    keys: arguments.Keys = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Look at every object of a store, or all that some workflows need. Writes nothing. Ends with 7 where something is
    missing or damaged; orphans are no damage (`perdure gc` takes them)."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        import asyncio

        from perdure.care.opening import hand, opened
        from perdure.care.verifying import Verifier

        found: list[Finding] = []

        def tell(finding: Finding) -> None:
            if len(found) < _SHOWN or finding.problem != "orphaned":
                found.append(finding)

        async def whole() -> Report:
            async with opened(source) as store, hand(store) as held:
                return await Verifier(store, held.reading.reader, tell, content=not fast).run(workflow_ids or None)

        report = asyncio.run(whole())
        terminal.data(
            {
                "sound": report.sound,
                "checked": dict(report.checked),
                "missing": report.found["missing"],
                "damaged": report.found["damaged"],
                "orphaned": report.found["orphaned"],
                "findings": [
                    {"problem": f.problem, "kind": f.kind, "key": f.key, "workflow_id": f.workflow_id, "text": f.text}
                    for f in found
                ],
            },
            lambda: terminal.table(
                ("PROBLEM", "KIND", "KEY", "WORKFLOW", "WHAT"),
                [(f.problem, f.kind, f.key, f.workflow_id, f.text) for f in found],
            ),
        )
        checked = ", ".join(f"{count} {kind}" for kind, count in sorted(report.checked.items())) or "nothing"
        terminal.note(f"looked at: {checked}")
        if not report.sound:
            terminal.stop(
                f"{report.found['missing']} missing and {report.found['damaged']} damaged objects", Exit.CORRUPTED
            )
