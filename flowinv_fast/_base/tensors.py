"""Checks of tensors, the type in which sums are carried, seeds and the streams of random numbers.

Random numbers come from Philox, a function of (seed, offset): an offset holds four numbers. This
is the one table of who uses which part of a seed's offsets:

    ops (dequantise, gaussian_noise, ...)   from the offset given, as many as the result needs
    reconstruct, start of restart r         stream r
    reconstruct, annealing step s           stream ((r + 1) << 14) + s + 1
    stream k, image i of size N             offset (k << 36) + i ceil(N / 4)
    training, step s of batch B, image i    offset (s B + i) ceil(N / 4)
    training, the first standardisation     offset 2^60 on
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError, is_whole, require

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# --- types and shapes -------------------------------------------------------------------------


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which log-determinants, log-densities and all arithmetic are carried."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulated(x: Tensor) -> Tensor:
    """The numbers of a tensor in the type in which they are computed and summed."""
    return x.to(accumulate_dtype(x.dtype))


def image_sum(x: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) to (B,)."""
    return x.flatten(1).sum(1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One value per image, (B,), as (B, 1, ...) with the dimensions of another tensor."""
    return values.view(-1, *[1] * (like.dim() - 1))


def as_like(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or tensor with the device and dtype of another tensor."""
    if isinstance(value, Tensor):
        return value.to(like)
    # Filled where it lives: nothing is copied from the host, so a CUDA graph can hold it.
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


def cut(value: float | Tensor, part: slice, shape: tuple[int, ...]) -> float | Tensor:
    """A parameter for some images, of one for measurements of this shape.

    It has a row per image if it has as many dimensions and rows as the measurements; any other
    broadcasts and is the same for all images.
    """
    if isinstance(value, Tensor) and value.dim() == len(shape) and value.shape[0] == shape[0]:
        return value[part]
    return value


# --- checks -----------------------------------------------------------------------------------
#
# Conditions first, messages only where one fails: making them costs more than a small kernel.


def check_float(function: str, argument: str, tensor: Any, rank: int | None = None) -> None:
    """Refuse anything but a floating-point tensor, of this rank if given."""
    wanted = "a float32, float64, bfloat16 or float16 tensor"
    if not isinstance(tensor, Tensor):
        raise ArgumentError(function, argument, wanted, type(tensor).__name__)
    if tensor.dtype not in FLOATS:
        raise ArgumentError(function, argument, wanted, tensor.dtype)
    if rank is not None and tensor.dim() != rank:
        wanted = f"a tensor of {rank} dimensions"
        raise ArgumentError(function, argument, wanted, f"shape {tuple(tensor.shape)}")


def check_like(
    function: str,
    argument: str,
    tensor: Any,
    like: Tensor,
    shape: tuple[int, ...] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Refuse a tensor on another device, or of another dtype or shape than wanted."""
    dtype = dtype or like.dtype
    if not isinstance(tensor, Tensor):
        raise ArgumentError(function, argument, "a tensor", type(tensor).__name__)
    if tensor.dtype != dtype:
        raise ArgumentError(function, argument, f"dtype {dtype}", tensor.dtype)
    if tensor.device != like.device:
        raise ArgumentError(function, argument, f"device {like.device}", tensor.device)
    if shape is not None and tensor.shape != shape:
        wanted = f"shape {tuple(shape)}"
        raise ArgumentError(function, argument, wanted, tuple(tensor.shape))


def check_broadcast(function: str, argument: str, tensor: Tensor, shape: Sequence[int]) -> None:
    """Refuse a tensor that does not broadcast to shape."""
    try:
        good = torch.broadcast_shapes(tensor.shape, tuple(shape)) == torch.Size(shape)
    except RuntimeError:
        good = False
    if not good:
        wanted = f"a shape that broadcasts to {tuple(shape)}"
        raise ArgumentError(function, argument, wanted, tuple(tensor.shape))


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
    ok = tensor.device == device and tensor.dtype == dtype
    wanted = f"{dtype} on {device}, like the flow"
    require(ok, function, name, wanted, f"{tensor.dtype} on {tensor.device}")


def check_positive(function: str, argument: str, value: float | Tensor) -> None:
    """Refuse anything but positive finite numbers."""
    tensor = torch.as_tensor(value, dtype=torch.float64)
    good = tensor.numel() > 0 and bool((tensor > 0).all()) and bool(torch.isfinite(tensor).all())
    got = value if not isinstance(value, Tensor) else f"values from {tensor.min().item():g}"
    require(good, function, argument, "positive finite numbers", got)


# --- seeds and random streams ------------------------------------------------------------------
#
# A Philox stream is named by a seed (its key) and an offset (its first block of four numbers). What
# draws several kinds of numbers from one seed of a user's keeps them apart by this table.

SEEDS = 2**63  # seeds and offsets lie in 0 .. SEEDS - 1
DATA_SEEDS = 2**40  # and those of which ``Stream`` makes several
STANDARDISATION = 2**60  # offset of the images that set a flow's standardisation


class Stream(IntEnum):
    """Kinds of numbers that are drawn from one seed below DATA_SEEDS, each from its own stream."""

    DEQUANTISATION = 0
    CROPS = 2
    FLIPS = 3

    def of(self, seed: int) -> int:
        """The Philox seed of this kind of numbers."""
        return seed + int(self) * DATA_SEEDS


def check_seed(function: str, seed: Any, offset: Any = 0, seeds: int = SEEDS) -> None:
    """Refuse a seed outside 0 .. seeds - 1, or an offset outside 0 .. 2^63 - 1."""
    for argument, value, end in (("seed", seed, seeds), ("offset", offset, SEEDS)):
        if not (is_whole(value) and value < end):
            wanted = f"an integer in 0 .. 2^{end.bit_length() - 1} - 1"
            raise ArgumentError(function, argument, wanted, value)


def draw_seed(generator: torch.Generator | None = None) -> int:
    """A Philox seed from a torch generator; from torch's global one where there is none."""
    device = torch.device("cpu") if generator is None else generator.device
    return int(torch.randint(0, 2**62, (), generator=generator, device=device))


def annealing_stream(restart: int, step: int) -> int:
    """The stream of the noise on the variable at one step of a restart."""
    return ((restart + 1) << 14) + step + 1


def stream_offset(stream: int, first: int, size: int) -> int:
    """Where the numbers of image ``first`` begin in a stream, for images of ``size`` numbers."""
    return (stream << 36) + first * ((size + 3) // 4)
