"""``perdure run``: start a workflow, wait for it, print its value."""

from __future__ import annotations

import enum
import json
import uuid
from typing import TYPE_CHECKING, Annotated, Any

import typer

from perdure.cli import arguments, show
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

if TYPE_CHECKING:
    from perdure.cli.cluster_side import Joined


class IfExists(enum.StrEnum):
    return_ = "return"
    error = "error"
    replace = "replace"  # type: ignore[assignment]
    resume = "resume"


def run(
    target: Annotated[
        str, typer.Argument(metavar="MODULE:DAG", help="A DAG, or a function that makes one; MODULE may be a file.")
    ],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[ARG | NAME=ARG]...", help="Arguments; JSON where it is JSON.")
    ] = None,
    workflow_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Workflow id. Default: a new one, told on stderr.")
    ] = None,
    if_exists: Annotated[
        IfExists,
        typer.Option(help="What to do when the id exists already; `resume` suits jobs that are submitted again."),
    ] = IfExists.return_,
    metadata: Annotated[str | None, typer.Option(metavar="JSON", help="User metadata: a JSON object.")] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the end, or print the id and leave.")] = True,
    storage: arguments.Storage = None,
    trust: arguments.Trust = None,
    keys: arguments.Keys = None,
    address: arguments.Address = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Run a DAG durably and print its value.

    Where no Ray cluster runs, one is started that ends with this command.
    """
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure import workflow
        from perdure.cli import target as targets
        from perdure.cli.cluster_side import find, join
        from perdure.keys import check_workflow_id

        chosen = check_workflow_id(workflow_id) if workflow_id is not None else f"workflow-{uuid.uuid4()}"
        details = _metadata(metadata)
        if not wait and find(address) is None:
            raise ValueError(
                "--no-wait needs a Ray cluster that outlives this command: start one with `perdure start --head`"
            )
        values, named = targets.words_to_values(args or [])
        dag, inputs, named_inputs = _load(terminal, target, values, named)
        joined = join(address, storage, show_output=not quiet)
        ref = workflow.run_async(
            dag, *inputs, workflow_id=chosen, metadata=details, if_exists=if_exists.value, input_kwargs=named_inputs
        )
        if not wait:
            terminal.data({"workflow_id": chosen}, lambda: terminal.line(chosen))
            return
        if workflow_id is None:
            terminal.note(f"workflow {chosen}")
        finish(terminal, joined, chosen, ref)


def finish(terminal: Terminal, joined: Joined, workflow_id: str, ref: Any) -> None:
    """Wait for a workflow's end and print it."""
    from perdure.cli import progress

    try:
        result = progress.wait(terminal, joined.connection, workflow_id, ref)
    except KeyboardInterrupt:
        terminal.stop(_interrupted(workflow_id, joined), Exit.INTERRUPTED)
    except Exception as error:
        show.failure(terminal, workflow_id, None, error)
    else:
        show.value(terminal, workflow_id, None, result)


def _interrupted(workflow_id: str, joined: Joined) -> str:
    if joined.own:
        again = f"perdure resume {workflow_id} --storage {joined.connection.shown}"
        return f"interrupted; this command's cluster ends with it. Go on: {again}"
    return f"interrupted; workflow {workflow_id} goes on without this command. Wait: perdure output {workflow_id}"


def _metadata(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--metadata is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"--metadata must be a JSON object, not {type(found).__name__}")
    return found


def _load(terminal: Terminal, target: str, values: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """The user's module runs here: its own errors are shown with their traceback, as a wrong usage."""
    import traceback

    from perdure.cli import target as targets

    try:
        return targets.load(target, values, named)
    except targets.TargetError:
        raise
    except Exception:
        traceback.print_exc()
        terminal.stop(f"{target} could not be loaded (see above)", Exit.USAGE)
