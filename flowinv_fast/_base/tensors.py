"""Checks of tensors, the type in which sums are carried, seeds and the streams of random numbers.

Random numbers come from Philox, a function of (seed, offset): an offset holds four numbers. This
is the one table of who uses which part of a seed's offsets:

    ops (dequantise, gaussian_noise, ...)   from the offset given, as many as the result needs
    reconstruct, start of restart r         stream r << 6
    reconstruct, annealing step s from 1    stream ((r + 1) << 20) + (s % 2^14 << 6) + (s >> 14)
    sample_posterior, path p of chain c     streams 2 (p K + c) and the one after; from 2^32 on its
                                            draws of the prior, its starts and probes
    stream k, image i of size N             offset (k << 30) + i ceil(N / 4)
    training, step s of batch B, image i    offset (s B + i) ceil(N / 4)
    training, the first standardisation     offset 2^60 on
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from .errors import ArgumentError, is_real, is_whole, require

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


# --- types and shapes -------------------------------------------------------------------------


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type in which log-determinants, log-densities and all arithmetic are carried."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def accumulated(x: Tensor) -> Tensor:
    """The numbers of a tensor in the type in which they are computed and summed."""
    return x.to(accumulate_dtype(x.dtype))


def image_sum(x: Tensor) -> Tensor:
    """Sum over everything but the batch: (B, ...) to (B,); (B,) are the values of their images."""
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """One value per image, (B,), as (B, 1, ...) with the dimensions of another tensor."""
    return values.view(-1, *[1] * (like.dim() - 1))


def plain(x: Tensor) -> Tensor:
    """A tensor without the subclass that a user gave it: what results should not inherit.

    One with a ``__torch_function__`` or ``__torch_dispatch__`` of its own, as parameters and the
    fake tensors of torch have, decides itself what its results are and comes back as it is.
    """
    if type(x) is Tensor or torch.compiler.is_compiling():
        return x
    kind: Any = type(x)
    function = getattr(kind.__torch_function__, "__func__", None)
    own = function is not Tensor.__torch_function__.__func__  # type: ignore[attr-defined]
    own = own or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    return x if own else x.as_subclass(Tensor)


def stored_as(function: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A weight in the type in which a file keeps it: another floating-point type, if it is one.

    Raises:
        ArgumentError: a type without fractions.
    """
    if dtype is None:
        return tensor
    wanted = "None, torch.float32, torch.float64, torch.bfloat16 or torch.float16"
    require(dtype in FLOATS, function, "dtype", wanted, dtype)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def as_like(value: float | Tensor, like: Tensor) -> Tensor:
    """A number or tensor with the device and dtype of another tensor."""
    if isinstance(value, Tensor):
        return value.to(like)
    # Filled where it lives: nothing is copied from the host, so a CUDA graph can hold it.
    return torch.full((), float(value), dtype=like.dtype, device=like.device)


# --- checks -----------------------------------------------------------------------------------
#
# Conditions first, messages only where one fails: making them costs more than a small kernel.


def known_device(function: str, device: Any) -> torch.device:
    """The device that is named, if torch has it here; None is the CPU."""
    try:
        found = torch.device("cpu" if device is None else device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        wanted = "a device that torch has here ('cpu', 'cuda', 'cuda:1', ...)"
        raise ArgumentError(function, "device", wanted, repr(device)) from error
    return found


def check_dense(function: str, argument: str, tensor: Any) -> None:
    """Refuse what is no tensor, and layouts without an address for every number: sparse ones,
    nested ones, those of oneDNN."""
    if not isinstance(tensor, Tensor):
        raise ArgumentError(function, argument, "a tensor", type(tensor).__name__)
    if tensor.layout is not torch.strided or tensor.is_nested:
        layout = "nested" if tensor.is_nested else tensor.layout
        raise ArgumentError(function, argument, "a dense tensor", f"one of layout {layout}")


def check_float(function: str, argument: str, tensor: Any, rank: int | None = None) -> None:
    """Refuse anything but a dense floating-point tensor, of this rank if given."""
    wanted = "a float32, float64, bfloat16 or float16 tensor"
    if not isinstance(tensor, Tensor):
        raise ArgumentError(function, argument, wanted, type(tensor).__name__)
    check_dense(function, argument, tensor)
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
    check_dense(function, argument, tensor)
    if tensor.dtype != dtype:
        raise ArgumentError(function, argument, f"dtype {dtype}", tensor.dtype)
    if tensor.device != like.device:
        raise ArgumentError(function, argument, f"device {like.device}", tensor.device)
    if shape is not None and tensor.shape != shape:
        wanted = f"shape {tuple(shape)}"
        raise ArgumentError(function, argument, wanted, tuple(tensor.shape))


def check_sizes(
    function: str, argument: str, given: Any, names: str, least: Sequence[int]
) -> tuple[int, ...]:
    """Sizes as plain integers; refuse anything but whole numbers, each of at least ``least``.

    Args:
        function, argument: named in errors.
        given: the sizes; of symbolic shapes as torch traces them, too.
        names: what they are, as "(C, H, W)".
        least: one a size; the last one holds for all that follow where names end in "...)".
    """
    symbolic = lambda size: isinstance(size, torch.SymInt)
    good = isinstance(given, Sequence) and not isinstance(given, str)
    open_ended = names.endswith("...)")
    good = good and (len(given) == len(least) or (open_ended and len(given) > len(least)))
    if good:
        bounds = [*least, *[least[-1]] * (len(given) - len(least))]
        fits = lambda size, bound: is_whole(size, bound) and size < 2**63
        good = all(symbolic(n) or fits(n, b) for n, b in zip(given, bounds, strict=True))
    if not good:
        wanted = f"{names}, whole numbers of at least {', '.join(map(str, least))}"
        raise ArgumentError(function, argument, wanted, repr(given)[:80])
    plain: Any = lambda size: size if symbolic(size) else int(size)
    return tuple(map(plain, given))


def check_number(
    function: str, argument: str, given: Any, wanted: str, low: float, high: float = math.inf
) -> float:
    """A finite number between ``low`` and ``high``, both left out; anything else is refused."""
    if not (is_real(given) and low < given < high):
        raise ArgumentError(function, argument, wanted, repr(given)[:80])
    return float(given)


def number_like(function: str, argument: str, given: Any, like: Tensor) -> Tensor:
    """A finite number, or a tensor of the dtype and device of ``like``, as a tensor."""
    if isinstance(given, Tensor):
        check_like(function, argument, given, like)
        return given
    wanted = "a finite number, or a tensor"
    return as_like(check_number(function, argument, given, wanted, -math.inf), like)


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
    check_dense(function, name, tensor)
    ok = tensor.is_floating_point() and tuple(tensor.shape[1:]) == shape
    ok = ok and tensor.dim() == len(shape) + 1
    require(ok, function, name, wanted, f"{tensor.dtype} of shape {tuple(tensor.shape)}")
    ok = tensor.device == device and tensor.dtype == dtype
    wanted = f"{dtype} on {device}, like the flow"
    require(ok, function, name, wanted, f"{tensor.dtype} on {tensor.device}")


# --- seeds and random streams ------------------------------------------------------------------
#
# A Philox stream is named by a seed (its key) and an offset (its first block of four numbers). What
# draws several kinds of numbers from one seed of a user's keeps them apart by this table.

SEEDS = 2**63  # seeds and offsets lie in 0 .. SEEDS - 1
DATA_SEEDS = 2**40  # and those of which ``Stream`` makes several
RESTARTS, STEPS = 2**13 - 1, 2**20 - 1  # that have streams
STANDARDISATION = 2**60  # offset of the images that set a flow's standardisation


class Stream(IntEnum):
    """Kinds of numbers that are drawn from one seed below DATA_SEEDS, each from its own stream."""

    DEQUANTISATION = 0
    CROPS = 2
    FLIPS = 3
    LEVELS = 4

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


def start_stream(restart: int) -> int:
    """The stream of what a restart begins with."""
    _check_room(restart, 0)
    return restart << 6


def annealing_stream(restart: int, step: int) -> int:
    """The stream of the noise on the variable at one step of a restart: no two share one.

    Raises:
        ArgumentError: a restart or a step beyond those that have a stream.
    """
    _check_room(restart, step)
    round_, turn = divmod(step + 1, 2**14)
    return ((restart + 1) << 20) + (turn << 6) + round_


def _check_room(restart: int, step: int) -> None:
    wanted = f"at most {RESTARTS}, each with random numbers of its own"
    require(restart < RESTARTS, "reconstruct", "restarts", wanted, restart + 1)
    wanted = f"at most {STEPS}, each with random numbers of its own"
    require(step < STEPS, "reconstruct", "steps", wanted, step + 1)


def stream_offset(stream: int, first: int, size: int) -> int:
    """Where the numbers of image ``first`` begin in a stream, for images of ``size`` numbers."""
    return (stream << 30) + first * ((size + 3) // 4)
