"""How many images a solve can hold at once, and what a failed allocation looks like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._base.memory import available_memory
from ..protocols import Sized, provides

_SHARE = 0.8  # of the free memory that a plan may use
_VECTORS = 24  # of an image's or measurement's size: Adam's state, iterates, residuals, gradients


def available(device: torch.device) -> int | None:
    """Bytes that can still be allocated there; None where that is not known."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return available_memory() if device.type == "cpu" else None


def planned(prior: Any, noise: Any, y: Tensor) -> int | None:
    """Bytes that one image of a solve needs; None for a prior that does not tell."""
    needed = _bytes(prior)
    if not needed or not len(y):
        return None
    numbers = max(torch.Size(getattr(prior, "shape", ())).numel(), y[0].numel())
    return needed + _bytes(noise) + _VECTORS * numbers * y.element_size()


def _bytes(part: Any) -> int:
    """What an image needs of a frozen flow, or of a noise model on one."""
    found = (part.saved_bytes, part.work_bytes) if provides(part, Sized) else ()
    return sum(n for n in found if isinstance(n, int))


def images_at_once(bytes_per_image: int | None, batch: int, device: torch.device) -> int:
    """Images of a batch that fit; all of them where nothing is known."""
    free = available(device) if bytes_per_image else None
    if free is None or not bytes_per_image:
        return max(1, batch)
    return max(1, min(batch, int(_SHARE * free) // bytes_per_image))


def exhausted(error: BaseException) -> bool:
    """Whether this is a failed allocation, on a GPU or in host memory."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)
