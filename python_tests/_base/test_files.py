"""Reading files or naming what is wrong; writing them whole or not at all; one run to a folder."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import threading
import zipfile
import zlib
from pathlib import Path

import pytest
import torch
from helpers import assert_names
from safetensors.torch import save_file

from flowinv_fast import ArgumentError
from flowinv_fast._base import files
from flowinv_fast._base.errors import DataError
from flowinv_fast._base.files import user_folder, whole_file


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def ended_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


# --- writing --------------------------------------------------------------------------------------


def test_a_file_appears_whole(tmp_path):
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        assert not (tmp_path / "a.txt").exists() and temporary.suffix == ".txt"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_of_one_path_do_not_meet(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as one:
        one.write_text("one")
        with whole_file(path) as two:
            two.write_text("two, and more")
        assert path.read_text() == "two, and more" and one.read_text() == "one"
    assert path.read_text() == "one" and names(tmp_path) == ["a.txt"]


def test_many_threads_write_one_path(tmp_path):
    path, failed = tmp_path / "a.txt", []

    def write(text):
        try:
            for _ in range(10):
                with whole_file(path) as temporary:
                    temporary.write_text(text)
        except BaseException as error:
            failed.append(error)

    texts = [letter * 1000 * (1 + i) for i, letter in enumerate("abcd")]
    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and path.read_text() in texts and names(tmp_path) == ["a.txt"]


def test_the_mask_of_the_process_is_left_alone(tmp_path, monkeypatch):
    """Another thread would write files of any mode while it is changed."""
    kept = os.umask(0o027)
    try:
        monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("os.umask was called"))
        with whole_file(tmp_path / "a.safetensors") as temporary:
            save_file({"a": torch.zeros(3)}, temporary)  # lets only the owner read, by itself
    finally:
        monkeypatch.undo()
        os.umask(kept)
    assert stat.S_IMODE((tmp_path / "a.safetensors").stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_permissions_are_kept(tmp_path, mode):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    with whole_file(path) as temporary:
        temporary.write_text("new")
    assert stat.S_IMODE(path.stat().st_mode) == mode and path.read_text() == "new"


def test_links_are_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    real, link = tmp_path / "far" / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    for target in (real, tmp_path / "far" / "new.txt"):
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        with whole_file(link) as temporary:
            temporary.write_text("new")
        assert link.is_symlink() and target.read_text() == "new"
    assert names(tmp_path / "far") == ["new.txt", "real.txt"]


def cannot_write(path: Path, number: int) -> str:
    with pytest.raises(OSError) as caught, whole_file(path) as temporary:
        temporary.write_text("new")
    assert caught.value.errno == number and caught.value.filename == str(path)
    return str(caught.value)


def test_what_cannot_be_written_is_named(tmp_path):
    assert "its folder does not exist" in cannot_write(tmp_path / "none" / "a", errno.ENOENT)
    (tmp_path / "folder").mkdir()
    assert "it is a folder" in cannot_write(tmp_path / "folder", errno.EINVAL)
    os.mkfifo(tmp_path / "pipe")
    assert "it is a pipe" in cannot_write(tmp_path / "pipe", errno.EINVAL)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cannot_write(tmp_path / "loop", errno.ELOOP)
    cannot_write(tmp_path / ("a" * 300), errno.ENAMETOOLONG)
    cannot_write(tmp_path / "a\0b", errno.EINVAL)
    assert names(tmp_path) == ["folder", "loop", "pipe"]


def test_a_write_protected_file_stays(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda *_: False)  # as it is for all but root
    assert "may only be read" in cannot_write(path, errno.EACCES)
    assert path.read_text() == "old"


@contextlib.contextmanager
def full_disk():
    """Files longer than 2000 bytes fail to grow: that of this test's report too, outside."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_a_full_disk_loses_nothing(tmp_path, kind):
    path = tmp_path / "a.bin"
    path.write_text("old")
    with pytest.raises(OSError, match="what was there is unchanged") as caught:
        with full_disk(), whole_file(path) as temporary:
            if kind == "text":
                temporary.write_text("x" * 4000)
            else:
                save_file({"a": torch.zeros(1000)}, temporary)
    assert caught.value.errno == errno.EFBIG and caught.value.filename == str(path)
    assert path.read_text() == "old" and names(tmp_path) == ["a.bin"]


def child(work) -> int:
    """The number of a new process that does this and ends."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(1)
    return process


def kill_oneself_while_writing(path: Path) -> None:
    with whole_file(path) as temporary:
        temporary.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_killed_writers_left_is_swept(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    _, status = os.waitpid(child(lambda: kill_oneself_while_writing(path)), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(names(tmp_path)) == 2 and path.read_text() == "old"
    ours = f".flowinv_fast-{ended_process()}-0123abcd.tmp"
    kept = ["mine.tmp", ".a.tmp.txt", ".flowinv_fast-12-what.tmp"]
    for name in (ours, *kept):
        (tmp_path / name).mkdir()
    with whole_file(path) as one:  # in use, by this process
        one.write_text("one")
        with whole_file(path) as temporary:
            temporary.write_text("new")
        assert len(names(tmp_path)) == 5 and one.exists()
    assert names(tmp_path) == sorted(["a.txt", *kept]) and path.read_text() == "one"


def test_temporaries_of_unseen_processes_stay_while_they_are_locked(tmp_path):
    """In another container the number of a process means nothing; the lock does."""
    import fcntl

    folder = tmp_path / f".flowinv_fast-{ended_process()}-0123abcd.tmp"
    folder.mkdir()
    with open(folder / ".flowinv_fast.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with whole_file(tmp_path / "a") as temporary:
            temporary.touch()
        assert folder.exists()
    with whole_file(tmp_path / "a") as temporary:
        temporary.touch()
    assert not folder.exists()


def test_a_file_is_on_the_disk_before_it_appears(tmp_path, monkeypatch):
    done, sync, place = [], os.fsync, os.replace
    inode = lambda handle: os.fstat(handle).st_ino
    monkeypatch.setattr(os, "fsync", lambda h: (done.append(inode(h)), sync(h))[1])
    monkeypatch.setattr(os, "replace", lambda *a: (done.append("placed"), place(*a))[1])
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert done == [(tmp_path / "a.txt").stat().st_ino, "placed", tmp_path.stat().st_ino]


# --- reading --------------------------------------------------------------------------------------


def refused(path: str | Path, read=lambda path: path.read_bytes()) -> str:
    with pytest.raises(DataError) as caught, files.reading("load", "path", path) as checked:
        read(checked)
    assert (caught.value.function, caught.value.argument) == ("load", "path")
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    opened = lambda path: pytest.fail("it was opened")
    assert "it is a pipe" in refused(tmp_path / "pipe", opened)
    assert "it is a folder" in refused(tmp_path, opened)
    assert "it is a device" in refused("/dev/zero", opened)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        assert "it is a socket" in refused(tmp_path / "socket", opened)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "symbolic links" in refused(tmp_path / "loop", opened)
    assert "No such file" in refused(tmp_path / "none", opened)
    assert "too long" in refused(tmp_path / ("a" * 300), opened)
    assert "null" in refused(f"{tmp_path}/a\0b", opened)


PARSERS = [
    zlib.error("incorrect header check"),
    EOFError(),
    zipfile.BadZipFile("File is not a zip file"),
    MemoryError(),
    RecursionError("maximum recursion depth exceeded"),
    OverflowError("int too large"),
    struct.error("unpack requires a buffer of 4 bytes"),
    SyntaxError("broken PNG file"),
    KeyError("trainer"),
    IndexError(),
    AttributeError("'NoneType' object has no attribute 'x'"),
    OSError(errno.EIO, os.strerror(errno.EIO)),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ArgumentError("Config", "scales", "an integer", "'three'"),
]


@pytest.mark.parametrize("error", PARSERS, ids=lambda error: type(error).__name__)
def test_whatever_a_parser_raises_is_one_error(tmp_path, error):
    path = tmp_path / "a.bin"
    path.touch()

    def read(_):
        raise error

    message = refused(path, read)
    assert message.split(f"{path}: ")[1].strip(), "it says what is wrong"


def test_an_interruption_passes(tmp_path):
    with pytest.raises(KeyboardInterrupt), files.reading("load", "path", __file__):
        raise KeyboardInterrupt


# --- folders --------------------------------------------------------------------------------------


def hold(folder: Path, told: int) -> None:
    with files.locked_folder(folder, "train"):
        os.write(told, b"held")
        signal.pause()


def test_one_run_to_a_folder(tmp_path):
    here, there = os.pipe()
    first = child(lambda: hold(tmp_path, there))
    os.close(there)
    assert os.read(here, 4) == b"held"

    def second():
        with files.locked_folder(tmp_path, "train"):
            pass

    message = assert_names("folder", second)
    assert f"process {first} on" in message and str(tmp_path) in message
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    second()  # a kill sets it free
    assert names(tmp_path) == []
    os.close(here)


def test_what_killed_runs_left_is_swept(tmp_path):
    for folder in (tmp_path, tmp_path / "cells"):
        (folder / f".flowinv_fast-{ended_process()}-0123abcd.tmp").mkdir(parents=True)
    with files.locked_folder(tmp_path, "train"):
        assert not list(tmp_path.rglob("*.tmp"))
    assert names(tmp_path) == ["cells"]


def test_one_run_to_a_folder_among_threads(tmp_path):
    with files.locked_folder(tmp_path, "train"):
        with pytest.raises(ArgumentError, match=f"process {os.getpid()}"):
            with files.locked_folder(tmp_path, "train"):
                pass
    with pytest.raises(ZeroDivisionError), files.locked_folder(tmp_path, "train"):
        raise ZeroDivisionError
    with files.locked_folder(tmp_path, "train"):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EROFS, errno.EOPNOTSUPP])
def test_folders_without_locks_are_told(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files.fcntl, "flock", none)
    with pytest.warns(UserWarning, match="cannot be locked"):
        with files.locked_folder(tmp_path, "train"):
            (tmp_path / "a").touch()
    assert names(tmp_path) == ["a"]


def test_a_missing_folder_is_no_lock():
    with pytest.raises(FileNotFoundError), files.locked_folder("/none/at/all", "train"):
        pass


def test_a_user_without_a_home(monkeypatch):
    import pwd

    for name in ("FLOWINV_DATA", "XDG_DATA_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def none(_):
        raise KeyError

    monkeypatch.setattr(pwd, "getpwuid", none)
    with pytest.raises(ArgumentError, match="FLOWINV_DATA"):
        user_folder()
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert user_folder() == Path("/data/flowinv_fast")
    monkeypatch.setenv("FLOWINV_DATA", "/mine")
    assert user_folder() == Path("/mine")
