"""``perdure conformance``: the suite's own command, loaded only when it is called. Its exit codes are its own."""

from __future__ import annotations

import importlib.util

import typer


def present() -> bool:
    """Whether this installation has the suite's command."""
    return importlib.util.find_spec("perdure.conformance.command") is not None


def conformance(context: typer.Context) -> None:
    """Judge a store, serializer, codec or listener (see `perdure conformance --help`)."""
    from perdure.conformance.command import app

    app(args=context.args, prog_name="perdure conformance")
