"""How many images a solve can hold at once, and what a failed allocation looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SHARE = 0.8  # of the free memory that a plan may use
_GROUP = Path("/sys/fs/cgroup")
_VECTORS = 24  # of an image's or measurement's size: Adam's state, iterates, residuals, gradients


def available(device: torch.device) -> int | None:
    """Bytes that can still be allocated there; None where that is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    limits = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                limits.append(1024 * int(line.split()[1]))
        limit, used = ((_GROUP / f"memory.{n}").read_text().strip() for n in ("max", "current"))
        if limit != "max":
            statistics = dict(
                line.split() for line in (_GROUP / "memory.stat").read_text().splitlines()
            )
            cache = int(statistics["inactive_file"])  # which makes room when asked
            limits.append(int(limit) - int(used) + cache)
    except (OSError, ValueError, KeyError):
        pass
    return min(limits, default=None)


def planned(prior: Any, noise: Any, y: Tensor) -> int | None:
    """Bytes that one image of a solve needs; None for a prior that does not tell."""
    needed = _bytes(prior)
    if not needed:
        return None
    numbers = max(torch.Size(prior.shape).numel(), y[0].numel())
    return needed + _bytes(noise) + _VECTORS * numbers * y.element_size()


def _bytes(part: Any) -> int:
    """What an image needs of a frozen flow, or of a noise model on one (``protocols.Frozen``)."""
    found = (getattr(part, "saved_bytes", 0), getattr(part, "work_bytes", 0))
    return sum(n for n in found if isinstance(n, int))


def images_at_once(bytes_per_image: int | None, batch: int, device: torch.device) -> int:
    """Images of a batch that fit; all of them where nothing is known."""
    free = available(device) if bytes_per_image else None
    if not free or not bytes_per_image:
        return max(1, batch)
    return max(1, min(batch, int(_SHARE * free) // bytes_per_image))


def exhausted(error: BaseException) -> bool:
    """Whether this is a failed allocation, on a GPU or in host memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
