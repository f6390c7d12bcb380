"""Ctrl-C and the signals that end a process: as an exception, or as a wish that waits."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

# What ends a process that could still put its work away; Windows has the first two.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")
_ENDING = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))


class Interruption:
    """Which signal came, None as long as none did."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Meanwhile the first ending signal raises KeyboardInterrupt, and a second one ends at once.

    Signals that are ignored (by nohup, say) stay ignored. Does nothing beside the main thread,
    which is the one that signals come to.

    >>> with interruptible() as interruption:
    ...     bool(interruption)
    False
    """
    came = Interruption()

    def stop(number: int, frame: FrameType | None) -> None:
        came.signal = number
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = _handlers(lambda handler: handler != signal.SIG_IGN)
    try:
        _install(dict.fromkeys(before, stop))
        yield came
    finally:
        _install(before)


@contextlib.contextmanager
def deferred() -> Iterator[Interruption]:
    """Meanwhile the first ending signal is only told; it acts where the block ends.

    For work that must not be cut in the middle: a loop looks at what it is given and leaves. A
    second signal acts at once.

    >>> with deferred() as interruption:
    ...     steps = next(step for step in range(9) if interruption or step == 3)
    >>> steps
    3
    """
    came = Interruption()

    def remember(number: int, frame: FrameType | None) -> None:
        came.signal = number
        _install(before)

    # What ends the process without a word, as SIGTERM does where nobody asked, stays as it is.
    before = _handlers(callable)
    try:
        _install(dict.fromkeys(before, remember))
        yield came
    finally:
        _install(before)
    if came.signal is not None:
        signal.raise_signal(came.signal)


def _handlers(wanted: Callable[[Any], bool]) -> dict[int, Any]:
    """Who has the ending signals now, of those that are wanted."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in _ENDING}
    # None is a handler that was not installed from Python: it could not be given back.
    return {n: old for n, old in found.items() if old is not None and wanted(old)}


def _install(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Meanwhile no ending signal is delivered, and children that are started never get SIGINT.

    A terminal sends Ctrl-C to a program and its children alike; who started them ends them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
