"""Files: read or refused by name, written whole or not at all; folders that one run writes to."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from .errors import ArgumentError, DataError

_LOCK = ".flowinv_fast.lock"
_TEMPORARY = re.compile(r"\.flowinv_fast-(\d+)-[0-9a-f]{8}\.tmp$")  # with the process's number
_DAY = 86_400
# What a folder says that keeps no locks: a read-only one, or a file system without them.
_NO_LOCKS = (
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOLCK,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EINVAL,
)

# --- reading --------------------------------------------------------------------------------------


@contextlib.contextmanager
def reading(
    function: str, argument: str, path: str | os.PathLike, folder: bool = False
) -> Iterator[Path]:
    """Around everything that reads a file: whatever goes wrong is one DataError that names it.

    What is no regular file (a folder, a pipe, a device) is refused before it is opened. Parsers
    fail in many ways (zlib.error, SyntaxError, MemoryError, RecursionError, ...); all of them
    mean that this file cannot be used.

    Args:
        function, argument: where the file was given.
        path: the file.
        folder: it is of a format whose files are folders.
    Raises:
        DataError: as said; the parser's own error is its cause.

    >>> import json, tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".json") as file:
    ...     try:
    ...         with reading("load", "path", file.name) as path:
    ...             json.loads(path.read_text())
    ...     except DataError as error:
    ...         print(str(error).replace(file.name, "a.json"))
    load: path: expected a readable file, got a.json: Expecting value: line 1 column 1 (char 0)
    """
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISDIR if folder else stat.S_ISREG)(mode):
            wanted = "folder" if folder else "file"
            raise DataError(function, argument, path, f"it is {_kind(mode)}, not a {wanted}")
        yield Path(path)
    except DataError:
        raise
    except Exception as error:
        raise DataError(function, argument, path, in_words(error)) from error


def in_words(error: Exception) -> str:
    """What a parser or the system found wrong with a file."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "reading it takes more memory than there is"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, (KeyError, EOFError)) or not str(error):
        return f"{type(error).__name__} {error}".strip()
    return str(error).partition("\nException raised from")[0]  # torch's own stack


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISREG: "a file",
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for test, name in kinds.items() if test(mode)), "something else")


# --- writing --------------------------------------------------------------------------------------


@contextlib.contextmanager
def whole_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path of the same name, whose file takes the place of ``path`` at the end.

    Where the block raises, ``path`` stays as it was. The file is on the disk before it appears. It
    keeps the permissions of the file it replaces, or gets those that open() would give; a link is
    written through. The temporary lies in a folder of its own beside the target, so that several
    writers of one path do not meet (the last one stays); what killed writers left there is swept.

    Raises:
        OSError: it cannot be written (no such folder, no permission, a full disk, something there
            that is no regular file); its errno, message and filename say why and which.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_file(f"{folder}/a.txt") as temporary:
    ...         count = temporary.write_text("all of it")
    ...     os.listdir(folder)
    ['a.txt']
    """
    try:
        before = _checked_target(path)
        target = Path(os.path.realpath(path))
        _sweep(target.parent)
        with _temporary_folder(target.parent) as (folder, mode):
            temporary = folder / target.name
            yield temporary
            if before:
                with contextlib.suppress(OSError):  # only root may give files away
                    os.chown(temporary, before.st_uid, before.st_gid)
            os.chmod(temporary, stat.S_IMODE(before.st_mode if before else mode))
            _sync(temporary)
            os.replace(temporary, target)
        with contextlib.suppress(OSError):  # not every file system can; the file is whole anyway
            _sync(target.parent)
    except (OSError, SafetensorError) as error:
        raise _not_written(path, error) from error


def _checked_target(path: str | os.PathLike) -> os.stat_result | None:
    """What is known of the file that is replaced; None where there is none."""
    try:
        before = os.stat(path)
    except FileNotFoundError:
        return None
    except ValueError as error:  # a path with a NUL
        raise OSError(errno.EINVAL, str(error)) from None
    if not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, f"it is {_kind(before.st_mode)}")
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, "it may only be read")
    return before


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[tuple[Path, int]]:
    """A new folder, and the mode of files that open() makes in it; locked while it is in use."""
    folder = parent / f".flowinv_fast-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    folder.mkdir()
    try:
        handle = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with contextlib.suppress(OSError):  # no locks here: age and process have to tell
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder, os.fstat(handle).st_mode
        finally:
            os.close(handle)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove the temporary folders of writers that were killed."""
    found = []
    with contextlib.suppress(PermissionError), os.scandir(parent) as entries:
        found = [(e.path, match) for e in entries if (match := _TEMPORARY.match(e.name))]
    for path, match in found:
        if not _in_use(path, int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _in_use(path: str, process: int) -> bool:
    """Whether the writer of a temporary folder may be alive; it may be on another machine."""
    try:
        old = time.time() - os.stat(path).st_mtime > _DAY
        if not old and _alive(process):
            return True
        handle = os.open(os.path.join(path, _LOCK), os.O_RDWR)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return not old
    finally:
        os.close(handle)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _not_written(path: str | os.PathLike, error: OSError | SafetensorError) -> OSError:
    """The error of a file that could not be written, in words and with its number."""
    said = re.search(r"os error (\d+)", str(error))  # safetensors has it in its message alone
    number = error.errno if isinstance(error, OSError) else int(said[1]) if said else None
    if number is None:
        return OSError(errno.EIO, f"cannot be written ({error})", os.fspath(path))
    why = getattr(error, "strerror", None) or os.strerror(number)
    if number == errno.ENOENT:
        why = "its folder does not exist"
    kept = "; what was there is unchanged" if os.path.exists(path) else ""
    return OSError(number, f"cannot be written ({why}){kept}", os.fspath(path))


# --- folders --------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked_folder(
    path: str | os.PathLike, function: str, argument: str = "folder"
) -> Iterator[None]:
    """Meanwhile no other run writes to this folder; what killed ones left in it is swept first.

    The system holds the lock (flock), so that one of a killed process is free at once. Where a
    folder keeps no locks (it is read-only, or on a file system without them), a warning says so
    and the block runs.

    Args:
        path: the folder, which exists.
        function, argument: where it was given.
    Raises:
        ArgumentError: another run holds it; the message names folder and process.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked_folder(folder, "train"):
    ...     try:
    ...         with locked_folder(folder, "train"):
    ...             pass
    ...     except ArgumentError as error:
    ...         print("in use by process" in str(error))
    True
    """
    lock = Path(path) / _LOCK
    try:
        handle = _locked(lock)
    except BlockingIOError:
        got = f"{path}, in use by {_holder(lock)}"
        raise ArgumentError(function, argument, "a folder of no other run", got) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{function}: {argument}: {path} cannot be locked ({error.strerror}); see to it that "
            "no other run writes there",
            stacklevel=3,
        )
        yield
        return
    try:
        for folder in (lock.parent, *(p for p in lock.parent.iterdir() if p.is_dir())):
            with contextlib.suppress(FileNotFoundError):  # another's temporary, gone by now
                _sweep(folder)
        yield
    finally:
        lock.unlink(missing_ok=True)  # while it is held: see _locked
        os.close(handle)


def _holder(lock: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        return lock.read_text()[:200] or "another process"
    return "another process"


def _locked(lock: Path) -> int:
    """A descriptor that holds the lock. Its last holder may have removed the file meanwhile."""
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(handle), os.stat(lock)):
                    with contextlib.suppress(OSError):  # a full disk
                        os.truncate(handle, 0)
                        os.write(
                            handle, f"process {os.getpid()} on {socket.gethostname()}".encode()
                        )
                    return handle
        except BlockingIOError:
            os.close(handle)
            raise
        except OSError:
            lock.unlink(missing_ok=True)
            os.close(handle)
            raise
        os.close(handle)


def user_folder() -> Path:
    """Where a user's own weights go: FLOWINV_DATA, or flowinv_fast below XDG_DATA_HOME.

    Raises:
        ArgumentError: neither is set, and the user has no home.
    """
    if os.environ.get("FLOWINV_DATA"):
        return Path(os.environ["FLOWINV_DATA"])
    above = os.environ.get("XDG_DATA_HOME")
    try:
        return (Path(above) if above else Path.home() / ".local" / "share") / "flowinv_fast"
    except RuntimeError:
        wanted = "one of them set to a folder"
        got = "none, and a user without an entry in the password database"
        raise ArgumentError(
            "user_folder", "FLOWINV_DATA, XDG_DATA_HOME, HOME", wanted, got
        ) from None


def made_folder(path: str | os.PathLike) -> Path:
    """A folder to write to, made where there is none; refused now rather than after the work.

    Raises:
        OSError: it cannot be made, or nothing can be written there.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     made_folder(f"{folder}/a/b").is_dir()
    True
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(
            errno.ENOTDIR, "a file, where a folder is wanted", str(path)
        ) from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written to this folder", str(path))
    return path
