"""Commands of ``perdure`` as users run them, in processes of their own, or in this one where they need no cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.clusters import environment


@dataclass
class Done:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def perdure(*words: str, env: dict[str, str | None] | None = None, cwd: Path | None = None) -> Done:
    """One command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "perdure", *words],
        capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment(env), cwd=cwd, timeout=120,
    )  # fmt: skip
    return Done(done.returncode, done.stdout, done.stderr)


def here(*words: str) -> Done:
    """One command in this process; what it sets in the environment, as for --trust, ends with it."""
    from typer.testing import CliRunner

    from perdure.cli.app import app

    before = dict(os.environ)
    try:
        result = CliRunner().invoke(app, list(words))
    finally:
        os.environ.clear()
        os.environ.update(before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)
