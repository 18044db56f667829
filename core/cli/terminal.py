"""All printing of the command line.

Owns the rules: data on stdout, messages on stderr; a table for people, JSON for programs; no colour, no box, no
bar and nothing cut off where the output is not a terminal. Knows no command.
"""

from __future__ import annotations

import enum
import json
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from perdure.cli.exits import Exit, code_of
from perdure.errors import CorruptedError, PerdureError, SignatureError

if TYPE_CHECKING:
    from rich.console import Console


class Format(enum.StrEnum):
    table = "table"
    json = "json"


_COLOURS = {
    "SUCCESSFUL": "green", "DONE": "green", "ok": "green", "FAILED": "red", "broken": "red", "conflict": "red",
    "RUNNING": "cyan", "CANCELED": "yellow", "RESUMABLE": "yellow", "PENDING": "blue",
}  # fmt: skip


class Terminal:
    """Where a command prints. ``quiet`` drops messages (not data, not errors)."""

    def __init__(self, form: Format = Format.table, quiet: bool = False) -> None:
        self.format = form
        self.quiet = quiet

    @property
    def json(self) -> bool:
        return self.format is Format.json

    @property
    def live(self) -> bool:
        """Whether a bar may be drawn (on stderr)."""
        return sys.stderr.isatty() and not self.quiet

    @property
    def console(self) -> Console:
        """stderr, for bars."""
        from rich.console import Console

        return Console(stderr=True)

    # -- data --------------------------------------------------------------------------------------------------

    def data(self, value: Any, text: Callable[[], None]) -> None:
        """``value`` as JSON, or what ``text`` prints."""
        if self.json:
            print(json.dumps(value, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None, default=str))
        else:
            text()

    def line(self, text: str) -> None:
        """A line of data."""
        print(text)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """A table on a terminal; tab-separated lines with a header elsewhere."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        if not sys.stdout.isatty():
            print("\t".join(columns))
            for row in cells:
                print("\t".join(cell.replace("\t", " ").replace("\n", " ") for cell in row))
            return
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell, style=_COLOURS.get(cell, "")) for cell in row))
        Console().print(table)

    # -- messages ----------------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A message on stderr."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def stop(self, text: str, code: Exit) -> NoReturn:
        """End the command with an error."""
        print(f"perdure: {text}", file=sys.stderr)
        raise typer.Exit(int(code))

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Errors inside end the command with their exit code; unknown ones are shown whole (a bug)."""
        try:
            yield
        except KeyboardInterrupt:
            self.stop("interrupted", Exit.INTERRUPTED)
        except (typer.Exit, typer.Abort):
            raise
        except Exception as error:
            code = code_of(error)
            if code is None or (isinstance(error, ValueError | TypeError) and not _ours(error)):
                traceback.print_exc()
                self.stop("this is a bug in Perdure; please report it with the lines above", Exit.BUG)
            self.stop(_with_remedy(error), code)


def _with_remedy(error: Exception) -> str:
    """Its text, with what helps where a workflow's journal is damaged, unless it says so itself."""
    text = str(error)
    missing_key = isinstance(error, SignatureError) and error.unknown_key
    in_journal = isinstance(error, CorruptedError) and (error.key or "").startswith("w/")
    if in_journal and not missing_key and "`perdure" not in text:
        text = f"{text.rstrip('.')}. Restore it from a copy, or go on without it: `perdure repair`"
    return text


def _ours(error: BaseException) -> bool:
    """Whether an error was raised on purpose: a class of ours, or raised by a line of ours."""
    if isinstance(error, PerdureError):
        return True
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None:
        return True
    return str(last.tb_frame.f_globals.get("__name__", "")).split(".", 1)[0] == "perdure"


def when(seconds: float | None) -> str:
    """A Unix time for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%SZ") if seconds else ""


def span(start: float | None, end: float | None) -> str:
    """A duration for people."""
    if not start or not end:
        return ""
    seconds = max(0.0, end - start)
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
