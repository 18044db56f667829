"""The commands, put together.

Owns their names and order in ``perdure --help``. Imports no command's heavy parts: each command imports Ray, if at
all, when it runs.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import perdure
from perdure.cli import (
    bring_in,
    cancel,
    conformance,
    copy,
    delete,
    demo,
    describe,
    explain,
    export,
    gc,
    keys,
    list,
    logs,
    output,
    plugins,
    repair,
    resume,
    run,
    start,
    verify,
)
from perdure.cli import status as status_command
from perdure.cli import stop as stop_command

app = typer.Typer(
    name="perdure",
    help="Durable workflows on Ray, on storage that you pick.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
_PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def _version(asked: bool) -> None:
    if asked:
        print(f"perdure {perdure.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.command("demo")(demo.demo)
app.command("list")(list.list_workflows)
app.command("status")(status_command.status)
app.command("describe")(describe.describe)
app.command("explain")(explain.explain)
app.command("output")(output.output)
app.command("resume")(resume.resume)
app.command("cancel")(cancel.cancel)
app.command("delete")(delete.delete)
app.command("logs")(logs.logs)
app.command("copy")(copy.copy)
app.command("export")(export.export)
app.command("import")(bring_in.bring_in)
app.command("verify")(verify.verify)
app.command("repair")(repair.repair)
app.command("gc")(gc.gc)
app.add_typer(keys.keys, name="keys")
app.command("plugins")(plugins.plugins)
app.command("start", context_settings={**_PASS_ON, "help_option_names": ["--help", "-h"]})(start.start)
app.command("stop")(stop_command.stop)
if conformance.present():
    app.command("conformance", context_settings=_PASS_ON)(conformance.conformance)


def main() -> None:
    """Run the command line; ends the process."""
    try:
        app(prog_name="perdure")
    except BrokenPipeError:
        # the reader (head, less) has gone: nothing is wrong
        sys.stdout = None
        raise SystemExit(0) from None
