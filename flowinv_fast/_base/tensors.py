"""Checks of tensors, and the type in which sums are carried."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import require


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which log-determinants, log-densities and all arithmetic are carried."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_tensor(
    function: str,
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Refuses, naming the argument, anything but (B, *shape) of this dtype on this device."""
    wanted = f"a floating-point tensor of shape (B, {', '.join(map(str, shape))})"
    require(isinstance(tensor, Tensor), function, name, wanted, type(tensor).__name__)
    ok = tensor.is_floating_point() and tuple(tensor.shape[1:]) == shape
    ok = ok and tensor.dim() == len(shape) + 1
    require(ok, function, name, wanted, f"{tensor.dtype} of shape {tuple(tensor.shape)}")
    require(
        tensor.device == device and tensor.dtype == dtype, function, name,
        f"{dtype} on {device}, like the flow", f"{tensor.dtype} on {tensor.device}",
    )  # fmt: skip
