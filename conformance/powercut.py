"""Power cuts, replayed: from one strace log, every folder that a crash of the machine could have left.

The model is POSIX's promise and no more: file content survives once its file was synced, a name once its
folder was synced, and what was not synced may survive or not, each part on its own. Renames and links are
atomic. Inodes and names are apart, so that a name can survive without the content that was written after it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perdure.conformance.tracer import BEGIN, END

STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
CALL = re.compile(r"^(\d+)\s+([a-z_0-9]+)\((.*)\)\s+=\s+(-?\d+|\?)(.*)$", re.DOTALL)
UNFINISHED = re.compile(r"^(\d+)\s+([a-z_0-9]+)\((.*?)\s*<unfinished \.\.\.>$", re.DOTALL)
RESUMED = re.compile(r"^(\d+)\s+<\.\.\. ([a-z_0-9]+) resumed>(.*)$", re.DOTALL)


class CannotReplay(Exception):
    """The log has a call whose effect the model does not know."""


@dataclasses.dataclass(slots=True)
class Step:
    """One change of data or names. ``time`` counts steps, syncs and the return of the operation; from the
    time ``synced`` on the change survives for sure."""

    kind: str
    inode: int
    time: int
    args: tuple[Any, ...] = ()
    synced: int | None = None

    def __str__(self) -> str:
        shown = ", ".join(f"{len(a)} bytes" if isinstance(a, bytes) else str(a) for a in self.args)
        return f"{self.kind}({shown})"


@dataclasses.dataclass(slots=True)
class Inode:
    folder: bool
    data: bytes = b""
    names: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True)
class Handle:
    inode: int
    offset: int = 0
    append: bool = False
    sync: bool = False


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))


def joined_lines(lines: list[str]) -> Iterator[str]:
    """Calls cut in two by another thread's, put together again where they ended."""
    begun: dict[str, tuple[str, str]] = {}
    for line in lines:
        if match := UNFINISHED.match(line):
            begun[match[1]] = (match[2], match[3])
        elif match := RESUMED.match(line):
            name, head = begun.pop(match[1], (match[2], ""))
            yield f"{match[1]} {name}({head}{match[3]}"
        else:
            yield line


class Disk:
    """The folder's inodes before the operation, and the steps that were made to them."""

    def __init__(self, root: Path, pid: int) -> None:
        self.root = Path(os.path.realpath(root))
        self.inodes: dict[int, Inode] = {}
        self._known: dict[tuple[int, int], int] = {}
        self._next = 1
        self.top = self._load(self.root)
        self.before = {i: Inode(n.folder, n.data, dict(n.names)) for i, n in self.inodes.items()}
        self.steps: list[Step] = []
        self.time = 0
        self.acknowledged: int | None = None
        self.handles: dict[int, Handle] = {}
        self.cwd = os.readlink(f"/proc/{pid}/cwd")
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                found = os.stat(f"/proc/{pid}/fd/{fd}")
            except OSError:
                continue
            inode = self._known.get((found.st_dev, found.st_ino))
            if inode is not None:
                info = Path(f"/proc/{pid}/fdinfo/{fd}").read_text()
                position = int(re.search(r"pos:\s*(\d+)", info)[1])  # type: ignore[index]
                flags = int(re.search(r"flags:\s*(\d+)", info)[1], 8)  # type: ignore[index]
                self.handles[int(fd)] = Handle(inode, position, bool(flags & os.O_APPEND), bool(flags & os.O_DSYNC))

    def _load(self, path: Path) -> int:
        found = path.lstat()
        known = (found.st_dev, found.st_ino)
        if known in self._known:
            return self._known[known]
        number = self._new(path.is_dir())
        self._known[known] = number
        if path.is_dir():
            for entry in path.iterdir():
                self.inodes[number].names[entry.name] = self._load(entry)
        else:
            self.inodes[number].data = path.read_bytes()
        return number

    def _new(self, folder: bool) -> int:
        number, self._next = self._next, self._next + 1
        self.inodes[number] = Inode(folder)
        return number

    # --- paths -----------------------------------------------------------------------------------------------
    def _find(self, base: int | None, path: str) -> tuple[int, str] | None:
        """(folder inode, name) of a path as it is now; None if it is outside the root."""
        if path.startswith("/"):
            full = os.path.normpath(path)
            if full == str(self.root):
                return self.top, ""
            if not full.startswith(f"{self.root}/"):
                return None
            base, parts = self.top, full[len(str(self.root)) + 1 :].split("/")
        elif base is not None:
            parts = [p for p in path.split("/") if p not in ("", ".")]
        else:
            return self._find(None, os.path.join(self.cwd, path))
        folder = base
        for part in parts[:-1]:
            inner = self.inodes[folder].names.get(part)
            if inner is None or not self.inodes[inner].folder:
                return None
            folder = inner
        return folder, parts[-1] if parts else ""

    def _at(self, dirfd: str, path: str) -> tuple[int, str] | None:
        if match := re.fullmatch(r"/proc/self/fd/(\d+)", path):
            handle = self.handles.get(int(match[1]))
            return None if handle is None else (-handle.inode, "")
        if dirfd.startswith("AT_FDCWD"):
            return self._find(None, path)
        handle = self.handles.get(int(dirfd))
        if handle is None:
            return self._find(None, path) if path.startswith("/") else None
        if not path:
            return -handle.inode, ""
        return self._find(handle.inode, path)

    def _inode(self, place: tuple[int, str] | None) -> int | None:
        if place is None:
            return None
        if place[0] < 0:
            return -place[0]
        return place[0] if not place[1] else self.inodes[place[0]].names.get(place[1])

    # --- steps -----------------------------------------------------------------------------------------------
    def _step(self, kind: str, inode: int, *args: Any) -> Step:
        self.time += 1
        step = Step(kind, inode, self.time, args)
        self.steps.append(step)
        apply(self.inodes, step)
        return step

    def _sync(self, inode: int | None) -> None:
        """What was done so far to this inode (all, if None) survives from now on."""
        self.time += 1
        for step in self.steps:
            if step.synced is None and (inode is None or step.inode == inode):
                step.synced = self.time

    def read(self, lines: list[str]) -> None:
        """Take in the whole log of the operation, marks included."""
        hex_end = "".join(f"\\x{b:02x}" for b in END.encode())
        inside_begin = "".join(f"\\x{b:02x}" for b in BEGIN.encode())
        for line in joined_lines(lines):
            if inside_begin in line:
                continue
            if hex_end in line:
                self.time += 1
                self.acknowledged = self.time
                continue
            match = CALL.match(line)
            if match is None:
                continue
            result = -1 if match[4] == "?" else int(match[4])
            if result < 0:
                continue
            self._call(match[2], match[3], result)

    def _call(self, name: str, args: str, result: int) -> None:
        strings = [unhex(m[1]) for m in STRING.finditer(args)]
        if any(m[2] for m in STRING.finditer(args)) and name in ("write", "pwrite64", "writev", "pwritev"):
            raise CannotReplay(f"{name} of more bytes than the log holds")
        plain = [a.strip() for a in STRING.sub('""', args).split(",")]
        handle = self.handles.get(int(plain[0])) if plain[0].isdigit() else None
        if name in ("open", "openat", "openat2", "creat"):
            self._open(name, plain, strings, result)
        elif name == "close":
            self.handles.pop(int(plain[0]), None)
        elif name in ("dup", "dup2", "dup3") or (name == "fcntl" and "F_DUPFD" in args):
            if handle is not None:
                self.handles[result] = handle
        elif name in ("write", "writev") and handle is not None:
            data = b"".join(strings)[:result]
            if handle.append:
                handle.offset = len(self.inodes[handle.inode].data)
            self._written(handle, handle.offset, data)
            handle.offset += result
        elif name in ("pwrite64", "pwritev", "pwritev2") and handle is not None:
            self._written(handle, int(plain[-1] if name != "pwritev2" else plain[-2]), b"".join(strings)[:result])
        elif name in ("read", "readv") and handle is not None:
            handle.offset += result
        elif name == "lseek" and handle is not None:
            handle.offset = result
        elif name == "ftruncate" and handle is not None:
            self._step("truncate", handle.inode, int(plain[1]))
        elif name == "fallocate" and handle is not None:
            size = int(plain[2]) + int(plain[3])
            if plain[1] == "0" and size > len(self.inodes[handle.inode].data):
                self._step("truncate", handle.inode, size)
        elif name in ("fsync", "fdatasync") and handle is not None:
            self._sync(handle.inode)
        elif name in ("sync", "syncfs"):
            self._sync(None)
        elif name in ("rename", "renameat", "renameat2"):
            self._rename(name, plain, strings)
        elif name in ("link", "linkat"):
            self._link(name, plain, strings)
        elif name in ("unlink", "unlinkat", "rmdir"):
            place = self._at(plain[0] if name == "unlinkat" else "AT_FDCWD", os.fsdecode(strings[0]))
            if place is not None and place[0] > 0 and place[1] in self.inodes[place[0]].names:
                self._step("remove", place[0], place[1])
        elif name in ("mkdir", "mkdirat"):
            place = self._at(plain[0] if name == "mkdirat" else "AT_FDCWD", os.fsdecode(strings[0]))
            if place is not None and place[0] > 0:
                self._step("name", place[0], place[1], self._new(True))
        elif name in ("copy_file_range", "sendfile", "splice"):
            out = plain[2] if name != "sendfile" else plain[0]
            if out.isdigit() and int(out) in self.handles:
                raise CannotReplay(f"{name} into the store's folder")
        elif name == "mmap" and "PROT_WRITE" in args and "MAP_SHARED" in args:
            mapped = self.handles.get(int(plain[4])) if plain[4].isdigit() else None
            if mapped is not None and not self._shared_memory(mapped.inode):
                raise CannotReplay("the store writes through a memory map")

    def _shared_memory(self, inode: int) -> bool:
        """SQLite's -shm file is rebuilt after a crash; nothing in it needs to survive."""
        return any(n.endswith("-shm") for i in self.inodes.values() for n, j in i.names.items() if j == inode)

    def _open(self, name: str, plain: list[str], strings: list[bytes], fd: int) -> None:
        dirfd = plain[0] if name.startswith("openat") else "AT_FDCWD"
        flags = "O_CREAT|O_TRUNC|O_WRONLY" if name == "creat" else " ".join(plain)
        place = self._at(dirfd, os.fsdecode(strings[0]))
        self.handles.pop(fd, None)
        if place is None:
            return
        inode = self._inode(place)
        if "O_TMPFILE" in flags:
            inode = self._new(False)
        elif inode is None:
            if "O_CREAT" not in flags:
                return
            inode = self._new(False)
            self._step("name", place[0], place[1], inode)
        elif "O_TRUNC" in flags and self.inodes[inode].data:
            self._step("truncate", inode, 0)
        self.handles[fd] = Handle(inode, 0, "O_APPEND" in flags, "O_SYNC" in flags or "O_DSYNC" in flags)

    def _written(self, handle: Handle, offset: int, data: bytes) -> None:
        if data:
            step = self._step("write", handle.inode, offset, data)
            if handle.sync:
                step.synced = self.time

    def _rename(self, name: str, plain: list[str], strings: list[bytes]) -> None:
        fds = ("AT_FDCWD", "AT_FDCWD") if name == "rename" else (plain[0], plain[2])
        old, new = (self._at(f, os.fsdecode(s)) for f, s in zip(fds, strings, strict=True))
        if old is None and new is None:
            return
        if old is None or new is None:
            raise CannotReplay("a rename across the border of the store's folder")
        if "RENAME_EXCHANGE" in " ".join(plain):
            raise CannotReplay("renameat2 with RENAME_EXCHANGE")
        inode = self._inode(old)
        if inode is not None:
            self._step("move", new[0], new[1], inode, old[0], old[1])

    def _link(self, name: str, plain: list[str], strings: list[bytes]) -> None:
        fds = ("AT_FDCWD", "AT_FDCWD") if name == "link" else (plain[0], plain[2])
        old, new = (self._at(f, os.fsdecode(s)) for f, s in zip(fds, strings, strict=True))
        if new is None:
            return
        inode = self._inode(old)
        if inode is None:
            raise CannotReplay("a link to a file from outside the store's folder")
        self._step("name", new[0], new[1], inode)

    # --- states ----------------------------------------------------------------------------------------------
    def states(self) -> Iterator[tuple[str, bool, list[Step]]]:
        """(what was lost, whether the operation had returned, the steps that survive), each state once."""
        seen: set[tuple[bool, tuple[int, ...]]] = set()
        for cut in range(self.time + 1):
            made = [s for s in self.steps if s.time <= cut]
            unsure = [s for s in made if s.synced is None or s.synced > cut]
            sure = [s for s in made if s.synced is not None and s.synced <= cut]
            returned = self.acknowledged is not None and self.acknowledged <= cut
            choices = [("nothing", made), ("everything not synced", sure)]
            choices += [(f"only {u}", [s for s in made if s is not u]) for u in unsure]
            choices += [(f"all not synced but {u}", sorted([*sure, u], key=lambda s: s.time)) for u in unsure]
            for lost, kept in choices:
                identity = (returned, tuple(s.time for s in kept))
                if identity not in seen:
                    seen.add(identity)
                    yield f"power cut at {cut} of {self.time}, lost: {lost}", returned, kept

    def build(self, kept: list[Step]) -> None:
        """Make the real folder what it would be with only these steps."""
        inodes = {i: Inode(n.folder, n.data, dict(n.names)) for i, n in self.before.items()}
        for number, inode in self.inodes.items():
            inodes.setdefault(number, Inode(inode.folder))
        for step in kept:
            apply(inodes, step)
        for entry in list(self.root.iterdir()):
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        placed: dict[int, Path] = {}

        def place(number: int, path: Path) -> None:
            inode = inodes[number]
            if inode.folder:
                path.mkdir(exist_ok=True)
                for name, inner in inode.names.items():
                    place(inner, path / name)
            elif number in placed:
                os.link(placed[number], path)
            else:
                path.write_bytes(inode.data)
                placed[number] = path

        place(self.top, self.root)


def apply(inodes: dict[int, Inode], step: Step) -> None:
    """One step on a set of inodes."""
    inode = inodes[step.inode]
    if step.kind == "write":
        offset, data = step.args
        old = inode.data.ljust(offset, b"\0")
        inode.data = old[:offset] + data + old[offset + len(data) :]
    elif step.kind == "truncate":
        inode.data = inode.data[: step.args[0]].ljust(step.args[0], b"\0")
    elif step.kind == "name":
        inode.names[step.args[0]] = step.args[1]
    elif step.kind == "remove":
        inode.names.pop(step.args[0], None)
    elif step.kind == "move":
        name, target, old_folder, old_name = step.args
        if inodes[old_folder].names.get(old_name) == target:
            del inodes[old_folder].names[old_name]
        inode.names[name] = target
