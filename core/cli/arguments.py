"""Options that several commands share, so that they are spelled and explained the same way everywhere."""

from __future__ import annotations

import os
from typing import Annotated, TypeAlias

import typer

from perdure.cli.terminal import Format

Output: TypeAlias = Annotated[
    Format, typer.Option("--output", "-o", help="table for people, json for programs (docs/cli.md).")
]
Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="No messages, only data and errors.")]
Storage: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--storage", "-s", metavar="URL", help="Store to use. Default: the running cluster's, else $PERDURE_STORAGE."
    ),
]
Address: TypeAlias = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", help="Ray cluster. Default: $RAY_ADDRESS, else this machine's."),
]
WorkflowId: TypeAlias = Annotated[str, typer.Argument(metavar="ID", help="Workflow id.", show_default=False)]


def _trust(value: str | None) -> str | None:
    return _export("PERDURE_TRUST", value)


def _keys(value: str | None) -> str | None:
    return _export("PERDURE_KEYS", value)


def _export(name: str, value: str | None) -> str | None:
    if value is not None:
        os.environ[name] = value  # so that one place reads it, whichever way it was given
    return value


Trust: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--trust",
        metavar="all|signed|data",
        callback=_trust,
        help="What may be loaded from the store. Default: $PERDURE_TRUST; none is needed for temporary folders.",
    ),
]
Keys: TypeAlias = Annotated[
    str | None,
    typer.Option(
        "--keys", metavar="FILE", callback=_keys, help="Key file, for --trust signed. Default: $PERDURE_KEYS."
    ),
]
