"""Checks of tensors, the type in which sums are carried, seeds and the streams of random numbers.

Random numbers come from Philox, a function of (seed, offset): an offset holds four numbers. This
is the one table of who uses which part of a seed's offsets:

    ops (dequantise, gaussian_noise, ...)   from the offset given, as many as the result needs
    reconstruct, start of restart r         stream r
    reconstruct, annealing step s           stream ((r + 1) << 14) + s + 1
    stream k, image i of size N             offset (k << 36) + i ceil(N / 4)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import is_whole, require

SEEDS = 2**63  # seeds and offsets lie in 0 .. SEEDS - 1


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
    same, wanted = tensor.device == device and tensor.dtype == dtype, f"{dtype} on {device}"
    got = f"{tensor.dtype} on {tensor.device}"
    require(same, function, name, f"{wanted}, like the flow", got)


# --- seeds and random streams ---------------------------------------------------------------------


def check_seed(function: str, seed: int, offset: int = 0) -> None:
    """Refuses, naming the argument, a seed or an offset outside 0 .. 2^63 - 1."""
    for name, value in (("seed", seed), ("offset", offset)):
        good = is_whole(value) and value < SEEDS
        require(good, function, name, "an integer in 0 .. 2^63 - 1", value)


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
