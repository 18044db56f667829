"""Blocking file operations of the file store: folders, durability, publication.

Owns every system call that writes; knows nothing of asyncio. All methods may run in several threads at once.

Publication: write a temporary file, fsync it, ``link`` (create) or ``rename`` (put) it to its name, fsync the
folder (and parents not known to be durable), then drop the temporary name. So a file with one link is
durable, and one with two may not be yet: a reader that sees two syncs the folder itself before it believes
(S7). Folders are walked component by component without following links (K6).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import os
import secrets
import stat
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType

from perdure.backends.local_names import TEMP, path_of
from perdure.errors import AlreadyExists, NotFound, StoreError, StoreUnavailable
from perdure.store import Data
from perdure.store_errors import from_os_error

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_PIECE = 16 << 20
_TRIES = 100
_KNOWN_LIMIT = 200_000


class Chain:
    """Open folders from the store's own down to one key's. Closes them at the end of a ``with``."""

    __slots__ = ("fds", "paths")

    def __init__(self, root_fd: int) -> None:
        self.fds = [root_fd]
        self.paths = [""]

    @property
    def leaf(self) -> int:
        return self.fds[-1]

    def __enter__(self) -> Chain:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)
        self.fds = []


class Files:
    """The folder of one store, in one process."""

    def __init__(self, root: str, create: bool) -> None:
        self.root, self._create_root = root, create
        self.pid = os.getpid()
        self._seen = False
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._temp: tuple[str, int] | None = None
        # Folders (path below the root → inode) whose own name in their parent is durable.
        self._durable: dict[str, int] = {}
        self._root_durable = False

    # --- folders ------------------------------------------------------------------------------------------

    def open(self, folders: Sequence[str], make: bool = False) -> Chain:
        """Open the chain of folders. FileNotFoundError if one is missing and ``make`` is false."""
        chain = Chain(self._open_root())
        path = ""
        try:
            for name in folders:
                path = f"{path}/{name}"
                chain.fds.append(self._step(chain.leaf, name, make))
                chain.paths.append(path)
        except BaseException:
            chain.close()
            raise
        return chain

    def _step(self, parent: int, name: str, make: bool) -> int:
        for _ in range(_TRIES):
            try:
                return os.open(name, _FOLDER, dir_fd=parent)
            except FileNotFoundError:
                if not make:
                    raise
            try:
                os.mkdir(name, 0o777, dir_fd=parent)
            except FileExistsError:
                pass
        raise StoreUnavailable(f"folder {name!r} is removed as fast as it is made")

    def _open_root(self) -> int:
        seen = self._seen  # before the look: another thread may make the folder between that and the question
        try:
            return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError as e:
            if seen or not self._create_root:
                gone = "has been removed or renamed" if seen else "does not exist (option create=false)"
                raise StoreError(f"the store's folder {self.root} {gone}") from e
        try:
            os.makedirs(self.root, exist_ok=True)
        except (FileNotFoundError, NotADirectoryError, FileExistsError) as e:
            raise StoreError(f"the store's folder {self.root} can't be made: {e.strerror} ({e.filename})") from e
        self._seen = True
        return os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)

    def sync_chain(self, chain: Chain) -> None:
        """Make the leaf's entries durable, and every folder above it that isn't known to be."""
        sync(chain.leaf)
        self.sync_parents(chain)

    def sync_parents(self, chain: Chain) -> None:
        """Make the folders' own names durable, as far as that isn't known."""
        if not self._root_durable:
            self._sync_ancestors(chain.fds[0])
        for level in range(len(chain.fds) - 1, 0, -1):
            inode = os.fstat(chain.fds[level]).st_ino
            if self._durable.get(chain.paths[level]) != inode:
                sync(chain.fds[level - 1])
                if len(self._durable) >= _KNOWN_LIMIT:
                    self._durable.clear()
                self._durable[chain.paths[level]] = inode

    def _sync_ancestors(self, root_fd: int) -> None:
        device, path = os.fstat(root_fd).st_dev, self.root
        while path != os.path.dirname(path):
            path = os.path.dirname(path)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except PermissionError:
                break  # not ours to read, hence not ours to have made
            try:
                if os.fstat(fd).st_dev != device:
                    break
                sync(fd)
            finally:
                os.close(fd)
        self._root_durable = self._seen = True

    # --- temporary files ----------------------------------------------------------------------------------

    def temp_name(self) -> str:
        """A fresh name in this process's own temporary folder, which a lock marks as in use."""
        with self._lock:
            if self._temp is None:
                self._temp = self._make_temp()
            return f"{self._temp[0]}/{next(self._numbers)}"

    def _make_temp(self) -> tuple[str, int]:
        os.close(self._open_root())
        self._seen = True
        base = f"{self.root}/{TEMP}"
        os.makedirs(base, exist_ok=True)
        _sweep(base)
        for _ in range(_TRIES):
            path = f"{base}/{secrets.token_hex(8)}"
            os.mkdir(path)
            try:
                fd = os.open(path, _FOLDER)
            except FileNotFoundError:
                continue  # a sweeper took it before it was locked
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_ino == os.stat(path).st_ino:
                    return path, fd
            except (BlockingIOError, FileNotFoundError):
                pass
            except OSError as e:
                if e.errno in _NO_LOCKS:
                    return path, fd
                os.close(fd)
                raise
            os.close(fd)
        raise StoreUnavailable("the temporary folder is removed as fast as it is made")

    def close(self) -> None:
        with self._lock:
            if self._temp is not None:
                path, fd = self._temp
                self._temp = None
                if self.pid == os.getpid():
                    _remove_folder(path)
                os.close(fd)

    def forget_parent(self) -> None:
        """In a forked child: the parent's temporary folder and its lock are the parent's."""
        if self._temp is not None:
            os.close(self._temp[1])

    def write_temp(self, data: Data) -> str:
        """A new temporary file with ``data``, synced; its path. OSError: nothing is left."""
        path = self.temp_name()
        fd = self.open_temp(path)
        try:
            try:
                write_all(fd, data)
                sync(fd)
            finally:
                os.close(fd)
        except BaseException:
            drop(path)
            raise
        return path

    def open_temp(self, path: str) -> int:
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)

    # --- values -------------------------------------------------------------------------------------------

    def create(self, key: str, data: Data) -> None:
        *folders, name = path_of(key)
        # Folders first: the sync of the file then commits them too, on journaling filesystems.
        with self.open(folders, make=True) as chain:
            temp = self.write_temp(data)
            try:
                self.link(temp, chain, folders, name)
                with _Published():
                    self.sync_chain(chain)
            finally:
                drop(temp)

    def link(self, temp: str, chain: Chain, folders: Sequence[str], name: str) -> None:
        """Publish a temporary file under an absent name; the chain is reopened if its folder had been
        removed.
        """
        for _ in range(_TRIES):
            try:
                os.link(temp, name, dst_dir_fd=chain.leaf)
                return
            except FileExistsError:
                self.settle(chain, name)
                raise AlreadyExists("it exists") from None
            except FileNotFoundError:
                self._check_temp(temp)
            except OSError as e:
                if e.errno in (errno.EPERM, errno.ENOTSUP, errno.EMLINK):
                    raise StoreError(f"the filesystem of {self.root} has no hard links, which create needs") from e
                raise _doubtful(e) from e
            fresh = self.open(folders, make=True)
            chain.close()
            chain.fds, chain.paths = fresh.fds, fresh.paths
        raise StoreUnavailable("its folder is removed as fast as it is made")

    def replace(self, key: str, temp: str) -> None:
        """Publish a synced temporary file under the key, over what is there. The temporary file is
        used up.
        """
        *folders, name = path_of(key)
        second = f"{temp}b"
        try:
            os.link(temp, second)  # two links until the folder is synced, as in create
            for _ in range(_TRIES):
                with self.open(folders, make=True) as chain:
                    try:
                        os.rename(temp, name, dst_dir_fd=chain.leaf)
                    except FileNotFoundError:
                        self._check_temp(temp)
                        continue
                    except OSError as e:
                        raise _doubtful(e) from e
                    with _Published():
                        self.sync_chain(chain)
                    return
            raise StoreUnavailable("its folder is removed as fast as it is made")
        finally:
            drop(temp)
            drop(second)

    def put(self, key: str, data: Data) -> None:
        self.replace(key, self.write_temp(data))

    def delete(self, key: str) -> None:
        *folders, name = path_of(key)
        self.delete_names(folders, [name])

    def delete_names(self, folders: Sequence[str], names: Iterable[str]) -> int:
        """Remove files of one folder, durably; the number that were there."""
        count = 0
        while True:
            try:
                chain = self.open(folders)
                break
            except FileNotFoundError:
                # Somebody removed the folder, perhaps not yet durably: that of its parent is enough.
                folders, names = folders[:-1], ()
        with chain:
            for name in names:
                try:
                    os.unlink(name, dir_fd=chain.leaf)
                    count += 1
                except FileNotFoundError:
                    pass
            with _Published():
                sync(chain.leaf)
            self._prune(chain, folders)
        return count

    def _prune(self, chain: Chain, folders: Sequence[str]) -> None:
        """Remove folders that became empty, except those at the top, which are few and soon needed again."""
        for level in range(len(folders), 1, -1):
            try:
                os.rmdir(folders[level - 1], dir_fd=chain.fds[level - 1])
            except OSError:
                return
            self._durable.pop(chain.paths[level], None)

    def settle(self, chain: Chain, name: str) -> None:
        """If the named file may not be durable yet, make it so (S7)."""
        try:
            links = os.stat(name, dir_fd=chain.leaf, follow_symlinks=False).st_nlink
        except FileNotFoundError:
            return
        if links > 1:
            with _Published():
                self.sync_chain(chain)

    def open_value(self, key: str, sync: bool) -> tuple[int, os.stat_result]:
        """An open descriptor of the key's file. NotFound. With two links: synced, or NeedsSync if not
        ``sync``.
        """
        *folders, name = path_of(key)
        try:
            chain = self.open(folders)
        except FileNotFoundError:
            raise NotFound("no such key") from None
        with chain:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=chain.leaf)
            except FileNotFoundError:
                raise NotFound("no such key") from None
            try:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise StoreError(f"{name!r} in {self.root} is not a regular file")
                if status.st_nlink > 1:
                    if not sync:
                        raise NeedsSync
                    self.sync_chain(chain)
            except BaseException:
                os.close(fd)
                raise
        return fd, status

    def size(self, key: str) -> int:
        *folders, name = path_of(key)
        try:
            with self.open(folders) as chain:
                status = os.stat(name, dir_fd=chain.leaf, follow_symlinks=False)
        except FileNotFoundError:
            raise NotFound("no such key") from None
        if not stat.S_ISREG(status.st_mode):
            raise StoreError(f"{name!r} in {self.root} is not a regular file")
        return status.st_size

    def _check_temp(self, temp: str) -> None:
        if not os.path.lexists(temp):
            raise StoreError(f"the temporary file {temp} was removed by somebody else")


class NeedsSync(Exception):
    """The value may not be durable yet; read it where blocking is allowed."""


class _Published:
    """From here on the name is visible: a failure no longer means that nothing happened (W1)."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            text = from_os_error(error).args[0]
            raise StoreUnavailable(f"published, but not known to be durable: {text}") from error


def _doubtful(error: OSError) -> StoreError:
    """For a failed link or rename: with these errors the name may be there, now or after a restart (W1)."""
    mapped = from_os_error(error)
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR):
        return StoreUnavailable(f"not known whether it was published: {mapped.args[0]}")
    return mapped


def write_all(fd: int, data: Data) -> None:
    """Write every byte; the system call takes at most 2 GiB and may write less than it was given."""
    done = os.write(fd, data) if len(data) <= _PIECE else 0
    if done < len(data):
        view = memoryview(data)
        while done < len(data):
            done += os.write(fd, view[done : done + _PIECE])


def sync(fd: int) -> None:
    """fsync that reaches the platter; macOS needs to be told so."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def drop(path: str) -> None:
    """Remove a temporary name; what can't be removed is left to the sweep."""
    try:
        os.unlink(path)
    except OSError:
        pass


_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF, errno.EINVAL, errno.ENOSYS)


def _sweep(base: str) -> None:
    """Remove the temporary folders of processes that are gone: those whose lock can be had."""
    for name in os.listdir(base):
        path = f"{base}/{name}"
        try:
            fd = os.open(path, _FOLDER)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_folder(path)
        except OSError:
            pass  # in use, or no locks here
        finally:
            os.close(fd)


def leftovers(root: str, remove: bool) -> list[tuple[str, int]]:
    """Temporary folders of processes that are gone, with the bytes in them."""
    found = []
    for name in sorted(os.listdir(f"{root}/{TEMP}")) if os.path.isdir(f"{root}/{TEMP}") else ():
        path = f"{root}/{TEMP}/{name}"
        try:
            fd = os.open(path, _FOLDER)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with os.scandir(path) as entries:
                size = sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
            found.append((f"temporary folder {TEMP}/{name}", size))
            if remove:
                _remove_folder(path)
        except OSError:
            pass  # in use, or no locks here
        finally:
            os.close(fd)
    return found


def _remove_folder(path: str) -> None:
    try:
        with os.scandir(path) as entries:
            files = list(entries)
        if any(entry.stat(follow_symlinks=False).st_nlink > 1 for entry in files):
            # A dead writer's value is visible but perhaps not durable; dropping its second link says it is.
            sync_filesystem(path)
        for entry in files:
            os.unlink(entry.path)
        os.rmdir(path)
    except OSError:
        pass


_libc = ctypes.CDLL(None, use_errno=True)


def sync_filesystem(path: str) -> None:
    """syncfs(2) where there is one, else sync(2). OSError if the filesystem reports one."""
    if not hasattr(_libc, "syncfs"):
        os.sync()
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        if _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)


def start_writeback(fd: int) -> None:
    """Ask for the file's pages to be written, without waiting, so that the syncs of a batch share
    one commit.
    """
    if hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), 2)
