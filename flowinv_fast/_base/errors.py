"""The two errors this package raises on purpose."""

from __future__ import annotations

import math
from typing import Any


class ArgumentError(ValueError):
    """An argument that cannot be used; the message names it, what is wanted and what came."""

    def __init__(self, function: str, argument: str, expected: str, got: Any):
        self.function, self.argument = function, argument
        super().__init__(f"{function}: {argument}: expected {expected}, got {got}")

    def __reduce__(self):  # keeps the four-argument constructor picklable
        return _rebuild, (self.function, self.argument, str(self))


def _rebuild(function: str, argument: str, message: str) -> ArgumentError:
    error = ArgumentError.__new__(ArgumentError)
    ValueError.__init__(error, message)
    error.function, error.argument = function, argument
    return error


class SolverError(RuntimeError):
    """A solve that could not go on; the message says where it stopped and what to try."""


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether this is an integer of at least ``least``; True and False are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_real(value: Any) -> bool:
    """Whether this is a finite number."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def require(condition: bool, function: str, argument: str, expected: str, got: Any) -> None:
    """Raise ArgumentError unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(function, argument, expected, got)
