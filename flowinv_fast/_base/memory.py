"""How much host memory can still be allocated, as the system and its control groups have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Files of a memory control group: its limits, what is used, and what of it the cache gives back.
_Names = tuple[tuple[str, ...], str, str]
_V2: _Names = (("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1: _Names = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still allocate; None where the system does not tell.

    The least of what the machine has and of what every control group that the process is in, and
    every group above it, has left (cgroup version 1 or 2). Swap does not count.

    Args:
        root: where /proc and /sys lie.

    >>> free = available_memory()
    >>> free is None or free > 1_000_000
    True
    """
    found = []
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            found.append(1024 * int(line.split()[1]))
    for group, names in _groups(root):
        found += _left(group, *names)
    return max(0, min(found)) if found else None


def _groups(root: Path) -> Iterator[tuple[Path, _Names]]:
    """The memory groups of this process and those above them, up to where they are mounted."""
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):  # number:controllers:/path
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, names = [mounted, mounted / "unified"], _V2
        elif "memory" in controllers.split(","):
            tops, names = [mounted / "memory", mounted / controllers], _V1
        else:
            continue
        # A container sees its own group as the top, and may be told the path outside of it.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in tops:
            for depth in range(len(parts), -1, -1):
                yield top.joinpath(*parts[:depth]), names


def _left(group: Path, limits: tuple[str, ...], used: str, cache: str) -> list[int]:
    """What a group's limits leave; [] where it has none, or its files are not there."""
    least = min((n for name in limits for n in _numbers(group / name)), default=None)
    now = _numbers(group / used)
    if least is None or not now:
        return []
    lines = [line.split() for line in _lines(group / "memory.stat")]
    returned = [int(line[1]) for line in lines if line[:1] == [cache] and line[1].isdigit()]
    return [least - now[0] + sum(returned)]


def _numbers(path: Path) -> list[int]:
    return [int(text) for text in _lines(path) if text.isdigit()]  # "max" is no limit


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except (OSError, ValueError):
        return []
