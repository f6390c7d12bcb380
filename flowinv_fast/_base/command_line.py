"""What all commands share: numbers that are checked as they are read, and errors of one line."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from typing import NoReturn

from .errors import did_you_mean

MOST = 2**31 - 1  # of counts: no run is larger


class UsageError(Exception):
    """A command line that cannot be read; the message names the program, the option and why."""


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are raised as one line.

    >>> Parser("tool").parse_args(["--fast"])
    Traceback (most recent call last):
        ...
    flowinv_fast._base.command_line.UsageError: tool: unrecognized arguments: --fast (see tool -h)
    """

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[override]
        """As argparse's, but a command refuses itself what it does not know, by its own name."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            first, *others = unknown
            told = did_you_mean(first, self._option_string_actions)
            self.error(" ".join(["unrecognized arguments:", told, *others]))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        unknown = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if unknown:
            nearest = did_you_mean(unknown[1], re.findall(r"[\w-]+", unknown[2]))
            message += nearest[len(unknown[1]) :]
        raise UsageError(f"{self.prog}: {message} (see {self.prog} -h)")


def whole(least: int, most: int = MOST) -> Callable[[str], int]:
    """How argparse reads an integer of a range.

    >>> whole(1, 32)("4")
    4
    """

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            wanted = f"an integer in {least}..{most:,}"
            raise argparse.ArgumentTypeError(f"expected {wanted}, got {text!r}")
        return value

    return read


def real(
    least: float, most: float = math.inf, *, ends: bool = False, infinite: bool = False
) -> Callable[[str], float]:
    """How argparse reads a number of an interval, with its ends or without.

    Args:
        least, most: ends of the interval.
        ends: whether the ends themselves are values.
        infinite: whether infinity is a value.

    >>> real(0)("1e-3")
    0.001
    """

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = least <= value <= most if ends else least < value < most
        if not (inside and math.isfinite(value) or infinite and value == math.inf):
            wanted = f"in [{least:g}, {most:g}]" if ends else f"in ({least:g}, {most:g})"
            if most == math.inf:
                wanted = f"of at least {least:g}" if ends else f"above {least:g}"
            raise argparse.ArgumentTypeError(f"expected a finite number {wanted}, got {text!r}")
        return value

    return read
