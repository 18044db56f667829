"""What the commands of store care share: ids, ages and sizes as words, outcomes as data.

Owns the JSON of an outcome (docs/cli.md). All work is done by `perdure.care`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from perdure.cli.exits import Exit, code_of
from perdure.cli.terminal import Terminal

if TYPE_CHECKING:
    from perdure.care.copying import Outcome

Ids: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Workflow ids. Default: all.", show_default=False)
]

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}


def seconds(text: str) -> float:
    """``30d`` as seconds. ValueError that says what is expected."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not an age: expected a number with s, m, h, d or w, for example 30d")
    return float(match[1]) * _UNITS[match[2]]


def amount(size: int) -> str:
    """Bytes for people."""
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def fields(outcome: Outcome) -> dict[str, Any]:
    return {
        "workflow_id": outcome.workflow_id,
        "result": outcome.result,
        "error": str(outcome.error) if outcome.error is not None else None,
    }


def table(terminal: Terminal, outcomes: list[Outcome]) -> None:
    """Outcomes as data."""
    terminal.data(
        [fields(outcome) for outcome in outcomes],
        lambda: terminal.table(("WORKFLOW", "RESULT"), [(o.workflow_id, o.result) for o in outcomes]),
    )


def show(terminal: Terminal, outcomes: list[Outcome]) -> None:
    """Outcomes as data; ends the command with the code of the first that was refused."""
    table(terminal, outcomes)
    refused = [outcome for outcome in outcomes if outcome.error is not None]
    for outcome in refused[1:]:
        terminal.note(f"perdure: {outcome.error}")
    if refused:
        error = refused[0].error
        assert error is not None
        terminal.stop(str(error), code_of(error) or Exit.BUG)
