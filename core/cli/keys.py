"""``perdure keys``: make and rotate the key files that sign and encrypt (see docs/security.md)."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from perdure.cli import arguments
from perdure.cli.exits import Exit
from perdure.cli.terminal import Format, Terminal

keys = typer.Typer(help="Make and rotate key files for --trust signed and the codec aes-gcm.", no_args_is_help=True)


@keys.command("new")
def new(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Key file; made if it is not there, readable by you.")],
    kind: Annotated[str, typer.Option("--kind", help="hmac-sha256, ed25519 (sign) or aes-gcm (encrypt).")] = "ed25519",
    name: Annotated[str | None, typer.Option("--id", help="The key's id. Default: a random one.")] = None,
    output: arguments.Output = Format.table,
    quiet: arguments.Quiet = False,
) -> None:
    """Put a new key on top of a key file: it writes from now on, the older ones still read."""
    terminal = Terminal(output, quiet)
    with terminal.failures():
        from perdure.keyring import Key, Keyring

        old = path.read_text("utf-8") if path.exists() else ""
        key = Key.generate(name or secrets.token_hex(4), kind)
        whole = f"{key.line()}\n{old}"
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(file, "w") as stream:
                stream.write(whole)
                stream.flush()
                os.fsync(stream.fileno())
            Keyring.load(temporary)  # two keys of one id are refused before the old file is touched
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        terminal.data({"file": str(path), "id": key.id, "kind": key.kind}, lambda: terminal.line(key.id))
        terminal.note(f"{path} must be on every machine of the cluster, readable by its processes only")


@keys.command("public")
def public(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Key file.")],
    name: Annotated[str, typer.Argument(metavar="ID", help="Id of an ed25519 key.")],
) -> None:
    """Print the line of a key file that verifies this key's signatures and can't make them."""
    terminal = Terminal(Format.table, False)
    with terminal.failures():
        from perdure.keyring import Keyring

        if not path.is_file():
            raise ValueError(f"{path}: no such key file. Make one with `perdure keys new {path}`")
        key = Keyring.load(path).find("sign", name)
        if key is None:
            terminal.stop(f"{path} has no signing key {name!r}", Exit.NOT_FOUND)
        terminal.line(key.public().line())
