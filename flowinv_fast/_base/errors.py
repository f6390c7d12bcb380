"""The errors and the warning that this package raises on purpose."""

from __future__ import annotations

import difflib
import math
import numbers
import os
from collections.abc import Iterable
from typing import Any, TypeGuard


class ArgumentError(ValueError):
    """An argument that cannot be used; the message names it, what is wanted and what came."""

    def __init__(self, function: str, argument: str, expected: str, got: Any):
        self.function, self.argument = function, argument
        super().__init__(f"{function}: {argument}: expected {expected}, got {got}")

    def __reduce__(self):  # keeps the four-argument constructor picklable
        return _rebuild, (type(self), self.function, self.argument, str(self))


def _rebuild(kind: type[ArgumentError], function: str, argument: str, message: str) -> Any:
    error = kind.__new__(kind)
    ValueError.__init__(error, message)
    error.function, error.argument = function, argument
    return error


class DataError(ArgumentError):
    """A file that cannot be used: damaged, too large for what it says, or of another kind.

    Args:
        function, argument: where the file was given.
        path: the file.
        wrong: what is wrong with it, in words.

    >>> print(DataError("load_flow", "path", "a.safetensors", "it ends after 12 of 96 bytes"))
    load_flow: path: expected a readable file, got a.safetensors: it ends after 12 of 96 bytes
    """

    def __init__(self, function: str, argument: str, path: str | os.PathLike, wrong: str):
        super().__init__(function, argument, "a readable file", f"{os.fspath(path)}: {wrong}")


class ResultWarning(UserWarning):
    """A result that may not mean what it seems to; the message says why and what to try."""


class SolverError(RuntimeError):
    """A solve that could not go on; the message says where it stopped and what to try."""


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether this is an integer of at least ``least``; True and False are none."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)  # numpy's as well
    return whole and value >= least


def is_real(value: Any) -> TypeGuard[float]:
    """Whether this is a finite number; True and False are none."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):  # numpy's are real as well
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def require(condition: bool, function: str, argument: str, expected: str, got: Any) -> None:
    """Raise ArgumentError unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(function, argument, expected, got)


def did_you_mean(name: Any, names: Iterable[str]) -> str:
    """A name that was not found, as text, with the one it resembles, for the end of a message.

    >>> did_you_mean("fashion28", ["fashion-28", "mnist-28"])
    'fashion28 (did you mean fashion-28?)'
    """
    near = difflib.get_close_matches(str(name), list(names), 1)
    return f"{name} (did you mean {near[0]}?)" if near else str(name)
