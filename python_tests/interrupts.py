"""Ctrl-C at a known moment, and commands in a child process that need not import torch again."""

from __future__ import annotations

import io
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch


def interrupt_at(monkeypatch, count: int, number: int = signal.SIGINT) -> None:
    """A signal comes inside the count-th gradient from now on: in the middle of a solver's step."""
    grad, calls = torch.autograd.grad, [0]

    def interrupted(*given, **options):
        calls[0] += 1
        if calls[0] == count:
            signal.raise_signal(number)
        return grad(*given, **options)

    monkeypatch.setattr(torch.autograd, "grad", interrupted)


class Ended(NamedTuple):
    """How a command ended: its exit status (-n by signal n), and what it wrote."""

    status: int
    out: str
    err: str


def ended(
    arguments: list[str],
    before: Callable[[], None] = lambda: None,
    out: int | None = None,
    err: int | None = None,
    encoding: str = "utf-8",
) -> Ended:
    """Run the command in a forked child.

    Args:
        arguments: of ``flowinv-fast``.
        before: called in the child first.
        out, err: descriptors for stdout and stderr; None: files that are read, -1: closed.
        encoding: of both.
    """
    from flowinv_fast.cli import main

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        files = [Path(folder) / name for name in ("out", "err")]
        own = [os.open(file, os.O_RDWR | os.O_CREAT, 0o666) for file in files]
        given = [own[i] if one is None else one for i, one in enumerate((out, err))]
        pid = os.fork()
        if not pid:
            status = 99
            try:
                for number, one in zip((1, 2), given):
                    os.close(number) if one < 0 else os.dup2(one, number)
                streams = [_stream(n, one, encoding) for n, one in zip((1, 2), given)]
                sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = streams
                before()
                status = main(arguments)
            except SystemExit as error:
                status = int(error.code or 0)
            except BaseException:
                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    try:
                        stream and stream.flush()
                    except OSError:
                        status = 120  # as Python's own end would have it
                os._exit(status)
        _, result = os.waitpid(pid, 0)
        list(map(os.close, own))
        texts = [file.read_bytes().decode(errors="replace") for file in files]
    return Ended(os.waitstatus_to_exitcode(result), *texts)


def _stream(number: int, given: int, encoding: str) -> io.TextIOWrapper | None:
    if given < 0:
        return None
    errors = "strict" if number == 1 else "backslashreplace"
    return io.TextIOWrapper(io.FileIO(number, "w", closefd=False), encoding, errors)
