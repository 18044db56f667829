"""``perdure gc``: remove what nobody needs any more, and old workflows if asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import arguments, caring
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

if TYPE_CHECKING:
    from perdure.care.collecting import Item, Options, Report
    from perdure.status import WorkflowStatus

_SHOWN = 1000


def gc(
    source: Annotated[str, typer.Argument(metavar="URL", help="Store to clean.", show_default=False)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would go, and why.")] = False,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Delete workflows that ended so long ago first, e.g. 30d."),
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(
            "--status", metavar="S[,S]", help="Of these only: SUCCESSFUL, FAILED, CANCELED.", show_default=False
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete workflows without asking.")] = False,
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", help="For running clusters to let go of older values.")
    ] = 60.0,
    keys: arguments.Keys = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Remove large values that no workflow names, remains of deleted workflows, and interrupted uploads. Clusters may
    run meanwhile. With --older-than or --status, delete finished workflows first."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        import asyncio
        from dataclasses import replace

        from perdure.care.collecting import Collector, Options
        from perdure.care.opening import hand, opened

        options = Options(
            dry_run=dry_run,
            older_than=None if older_than is None else caring.seconds(older_than),
            statuses=None if status is None else _statuses(status),
            wait=wait,
        )
        deletes = options.older_than is not None or options.statuses is not None

        async def whole(options: Options) -> tuple[Report, list[Item]]:
            items: list[Item] = []

            def tell(item: Item) -> None:
                if len(items) < _SHOWN:
                    items.append(item)

            async with opened(source) as store, hand(store) as held:
                return await Collector(held, options, tell).run(), items

        if deletes and not dry_run and not yes:
            report, items = asyncio.run(whole(replace(options, dry_run=True)))
            _ask(terminal, report, [item for item in items if item.kind == "workflow"])
        report, items = asyncio.run(whole(options))
        _show(terminal, report, items, dry_run)


def _statuses(text: str) -> frozenset[WorkflowStatus]:
    from perdure.status import WorkflowStatus

    found = set()
    for name in text.split(","):
        try:
            found.add(WorkflowStatus(name.strip().upper()))
        except ValueError:
            raise ValueError(f"--status {name!r}: expected SUCCESSFUL, FAILED or CANCELED") from None
    if wrong := found - WorkflowStatus.terminal():
        raise ValueError(f"--status {', '.join(wrong)}: only finished workflows are deleted")
    return frozenset(found)


def _ask(terminal: Terminal, report: Report, items: list[Item]) -> None:
    count = report.counts["workflow"]
    if not count:
        return
    if not sys.stdin.isatty():
        terminal.stop(f"{count} workflows would be deleted: say --yes, or look with --dry-run first", Exit.USAGE)
    for item in items[:20]:
        terminal.note(f"{item.name}: {item.reason}")
    typer.confirm(f"Delete {count} workflows?", abort=True, err=True)


def _show(terminal: Terminal, report: Report, items: list[Item], dry_run: bool) -> None:
    terminal.data(
        {
            "dry_run": dry_run,
            "cycle": report.cycle,
            "counts": {kind: report.counts[kind] for kind in ("workflow", "blob", "remains", "upload")},
            "bytes": sum(report.sizes.values()),
            "items": [
                {"kind": i.kind, "name": i.name, "reason": i.reason, "size": i.size, "certain": i.certain}
                for i in items
            ],
            "holding": report.holding,
            "settled": report.settled,
            "refused": report.refused,
        },
        lambda: terminal.table(
            ("KIND", "NAME", "BYTES", "WHY"),
            [(i.kind, i.name, i.size, i.reason if i.certain else f"{i.reason} so far") for i in items],
        ),
    )
    total = sum(report.counts.values())
    if total > len(items):
        terminal.note(f"… and {total - len(items)} more")
    verb = "would remove" if dry_run else "removed"
    terminal.note(f"{verb} {total} things, {caring.amount(sum(report.sizes.values()))}")
    for coordinator, why in report.holding.items():
        terminal.note(f"coordinator {coordinator[:8]} holds older values back: {why}")
    for workflow_id, why in report.refused.items():
        terminal.note(f"{workflow_id} was not deleted: {why}")
