"""The command ``flowinv-fast``: parses its arguments and calls what the wings offer."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import flowinv_fast

from ._base.command_line import Parser, UsageError, whole
from ._base.errors import ArgumentError, ResultWarning, SolverError
from ._base.interrupts import Interruption, interruptible
from .experiments import commands as experiments
from .training import commands as training

_EXITS = """exit status:
  0    done
  1    a run that failed: no finite loss, a full disk, too little memory
  2    arguments, files or folders that cannot be used
  130  Ctrl-C (143: SIGTERM, 129: SIGHUP): what is finished is kept; a second one stops at once
  141  the reader of the output has gone"""


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand.

    Args:
        argv: the arguments; None: those of the process.
    Returns:
        The exit status: 0, 2 for bad input, 1 for a run that failed, 128 + n after signal n.

    >>> main(["train", "photo-65", "--data", "x"])
    2
    """
    with interruptible() as interruption, _standard_streams():
        try:
            arguments = _parser().parse_args(argv)
        except UsageError as error:
            _tell(str(error))
            return 2
        with _short_warnings(arguments.command):
            return _run(arguments, interruption)


def _run(arguments: argparse.Namespace, interruption: Interruption) -> int:
    """The command's exit status, whatever ends it."""
    try:
        status = _computed(arguments)
        sys.stdout.flush()  # a full disk or a reader that left shows here, not after the return
        return status
    except BrokenPipeError:
        return 141
    except KeyboardInterrupt:
        _tell(f"flowinv-fast {arguments.command}: interrupted; {arguments.kept}")
        return 128 + (interruption.signal or 2)
    except (ArgumentError, SolverError, OSError, MemoryError) as error:
        if arguments.debug:
            _tell(traceback.format_exc())
        _tell(f"flowinv-fast {arguments.command}: {_in_words(error)}")
        return 2 if isinstance(error, ArgumentError) else 1


def _computed(arguments: argparse.Namespace) -> int:
    if getattr(arguments, "threads", None):
        import torch

        torch.set_num_threads(arguments.threads)
    try:
        return arguments.run(arguments)
    except RuntimeError as error:
        from .reconstruction import memory

        if memory.exhausted(error):
            raise MemoryError(str(error).splitlines()[0]) from error
        raise


def _in_words(error: Exception) -> str:
    """One line; what the system says names its file."""
    if isinstance(error, MemoryError):
        told = f" ({error})" if str(error) else ""
        return f"out of memory{told}; try fewer images at once, a smaller batch, or fewer --jobs"
    if isinstance(error, OSError) and error.strerror:
        name = "" if error.filename is None else f"{error.filename}: "
        return f"{name}{error.strerror}"
    return " ".join(str(error).split())


# --- streams --------------------------------------------------------------------------------------


@contextlib.contextmanager
def _standard_streams() -> Iterator[None]:
    """Streams that can always be written to.

    A stream that was closed (``2>&-``) gets the null device, also as a descriptor: else the next
    file that is opened takes its number, and messages go into it. What the terminal's encoding
    lacks is written as \\\\u escapes.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number, which is this one
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        _empty(sys.stdout)
        sys.stdin, sys.stdout, sys.stderr = before


def _tell(message: str) -> None:
    """To stderr, where it can still be written to."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


def _empty(stream: TextIO) -> None:
    """What a stream still holds is written, or dropped where nobody takes it: it would fail again
    at Python's end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


@contextlib.contextmanager
def _short_warnings(command: str) -> Iterator[None]:
    """Warnings about results as one line, like errors; others as Python shows them."""
    others: Callable[..., Any] = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, ResultWarning):
            _tell(f"flowinv-fast {command}: warning: {message}")
        else:
            others(message, category, filename, lineno, file, line)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


# --- arguments ------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="flowinv-fast",
        description="Image inverse problems with a normalizing-flow prior and noise model.",
        epilog=_EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"%(prog)s {flowinv_fast.__version__}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("--debug", action="store_true", help="with an error, show where it arose")
    parser.set_defaults(kept="nothing was left half written")
    subparsers: Any = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)  # of every command that computes
    common.add_argument("--threads", type=whole(1, 1024), help="CPU threads")
    experiments.add_commands(subparsers, common)
    training.add_commands(subparsers, common)
    text = "what was built, what is here, which flows are shipped"
    subparsers.add_parser("info", help=text).set_defaults(run=_info)
    return parser


def _info(arguments: argparse.Namespace) -> int:
    print(flowinv_fast.show_config())
    print("shipped flows")
    for name, facts in flowinv_fast.available_flows().items():
        print(f"  {name:<16} {facts['bits_per_dim']:.3f} bits/dim, {facts['data']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
