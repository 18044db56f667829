"""``perdure repair``: let a workflow with a damaged journal go on from what can be read of it, or forget it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.cli import arguments
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

if TYPE_CHECKING:
    from perdure.care.repairing import Salvage


def repair(
    source: Annotated[str, typer.Argument(metavar="URL", help="Store of the workflow.", show_default=False)],
    workflow_id: arguments.WorkflowId,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing; show what would be given up.")] = False,
    delete: Annotated[bool, typer.Option("--delete", help="Save nothing: delete it, whatever is left of it.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
    keys: arguments.Keys = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Save the newest state of a damaged workflow that can be read whole: a resume goes on from there, and tasks whose
    results are lost run again. First try to restore what `perdure verify` names. A sound workflow is left alone."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        import asyncio

        from perdure.care.opening import hand, opened
        from perdure.care.repairing import forget, salvage
        from perdure.care.repairing import repair as repair_one

        async def whole(*, look: bool) -> Salvage:
            async with opened(source) as store, hand(store) as held:
                if look:
                    return await salvage(store, workflow_id, any_key=delete)
                return await (forget if delete else repair_one)(held, workflow_id)

        found = asyncio.run(whole(look=True))
        changes = delete or not found.sound
        if changes and not dry_run:
            if not yes:
                _ask(terminal, found, delete)
            found = asyncio.run(whole(look=False))
        _show(terminal, found, delete, changed=changes and not dry_run)


def _ask(terminal: Terminal, found: Salvage, delete: bool) -> None:
    what = f"delete workflow {found.workflow_id!r}" if delete else f"give up what came after: {_lost(found)}"
    if not sys.stdin.isatty():
        terminal.stop(f"this would {what}. Say --yes, or look with --dry-run first", Exit.USAGE)
    for key, text in found.damaged[:20]:
        terminal.note(f"{key}: {text}")
    typer.confirm(f"{what[0].upper()}{what[1:]}?", abort=True, err=True)


def _lost(found: Salvage) -> str:
    after = f"{len(found.given_up)} results that can be read, and " if found.given_up else ""
    return f"{after}what can't be read; {found.state.done} results are kept"


def _names(found: Salvage) -> list[str]:
    tasks = found.state.tasks
    return [tasks[n].name if n < len(tasks) else f"task {n}" for n in sorted(found.given_up)]


def _show(terminal: Terminal, found: Salvage, delete: bool, *, changed: bool) -> None:
    done = "none" if not changed else "deleted" if delete else "repaired"
    terminal.data(
        {
            "workflow_id": found.workflow_id,
            "sound": found.sound,
            "done": done,
            "tasks_kept": found.state.done,
            "tasks_given_up": _names(found),
            "findings": [{"key": key, "text": text} for key, text in found.damaged],
        },
        lambda: terminal.table(("DAMAGED", "WHAT"), found.damaged),
    )
    if found.sound and not delete:
        terminal.note(f"workflow {found.workflow_id!r} is sound: nothing to repair")
    elif delete:
        terminal.note(f"{'deleted' if changed else 'would delete'} {found.workflow_id}")
    elif not found.savable:  # a dry run: else it was refused
        terminal.note("nothing of it can be saved: restore what is damaged, or forget it with --delete")
    else:
        terminal.note(f"{'repaired' if changed else 'would repair'} {found.workflow_id}: {_lost(found)}")
