"""Structured noise on the Philox streams of philox.py."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import is_real, is_whole, require
from .._base.tensors import (
    accumulate_dtype,
    accumulated,
    check_float,
    check_like,
    check_number,
    check_seed,
    check_sizes,
    per_image,
)
from ._register import register_kernel
from .patches import scatter_twin
from .philox import bits_twin, normal_twin

# Standard deviation maps of the structured noises, see sigma_map.
SIGMA_KINDS = backend.constants.sigma_kinds

# --- twins ------------------------------------------------------------------------------------


def _map_twin(
    level: Tensor,  # [B]
    channels: int,
    height: int,
    width: int,
    kind: int,
    rate: float,
    floor: float,
    ceiling: float,
) -> Tensor:
    """Standard deviations [B, C, H, W], clamped to [floor, ceiling].

    kind 0 constant:         level
    kind 1 sinusoidal_exp:   level exp(sin(2 pi k / rate)) / e, k the row
    kind 2 sinusoidal_expm1: level (exp(sin(2 pi k / rate)) - 1) / (e - 1)
    kind 3 radial:           level exp(-rate d^2), d the distance in pixels from the centre pixel
                             ((H - 1) // 2, (W - 1) // 2)
    """
    acc = accumulate_dtype(level.dtype)
    row = torch.arange(height, device=level.device, dtype=acc).view(-1, 1)
    column = torch.arange(width, device=level.device, dtype=acc)
    if kind == 0:
        shape = torch.ones(height, width, device=level.device, dtype=acc)
    elif kind == 3:
        distance2 = (row - (height - 1) // 2) ** 2 + (column - (width - 1) // 2) ** 2
        shape = torch.exp(-rate * distance2)
    else:
        shape = torch.exp(torch.sin(2 * math.pi / rate * row))
        shape = shape / math.e if kind == 1 else (shape - 1) / (math.e - 1)
    sigma = level.to(acc).view(-1, 1, 1, 1) * shape.expand(channels, height, width)
    return sigma.clamp(floor, ceiling).to(level.dtype)


def _structured_twin(
    mean: Tensor,  # [B]
    level: Tensor,  # [B]
    channels: int,
    height: int,
    width: int,
    kind: int,
    rate: float,
    floor: float,
    ceiling: float,
    seed: int,
    offset: int,
) -> Tensor:
    """mean + sigma n over [B, C, H, W], sigma as in _map_twin and never stored."""
    sigma = _map_twin(accumulated(level), channels, height, width, kind, rate, floor, ceiling)
    noise = normal_twin(sigma.numel(), seed, offset, level).view_as(sigma)
    return (per_image(accumulated(mean), sigma) + sigma * noise).to(level.dtype)


def _places_twin(
    batch: int,
    count: int,
    bank: int,
    channels: int,
    rows: int,
    columns: int,
    seed: int,
    offset: int,
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """Random (index [B, K], places [B, K, 3]): digit of the bank, channel, top row, left column.

    Patch p = b*K + k uses the four lanes of block offset + p, each mapped to 0 .. m-1 by
    (bits * m) >> 32 with m = bank, channels, rows, columns (numbers of admissible values).
    """
    bits = bits_twin(4 * batch * count, seed, offset, like).view(batch, count, 4)
    sizes = torch.tensor([bank, channels, rows, columns], device=like.device)
    choices = (bits * sizes) >> 32
    return choices[..., 0], choices[..., 1:].contiguous()


def _digits_twin(
    bank: Tensor,  # [M, h, w]
    batch: int,
    count: int,
    channels: int,
    height: int,
    width: int,
    seed: int,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``count`` digits of the bank per image at random places and channels, overlaps summed.

    Returns (overlay [B, C, H, W], places [B, K, 3], index [B, K]).
    """
    digits, patch_height, patch_width = bank.shape
    index, places = _places_twin(
        batch,
        count,
        digits,
        channels,
        height - patch_height + 1,
        width - patch_width + 1,
        seed,
        offset,
        bank,
    )
    overlay = scatter_twin(bank[index], places, channels, height, width)
    return overlay, places, index


# --- ops --------------------------------------------------------------------------------------

_MAP = (
    "SymInt channels, SymInt height, SymInt width, int kind, float rate, float floor, float ceiling"
)


def _map_outputs(level: Tensor, channels: int, height: int, width: int, *rest: Any) -> Tensor:
    return level.new_empty(level.shape[0], channels, height, width)


_map_op = register_kernel(
    f"sigma_map(Tensor level, {_MAP}) -> Tensor out",
    "structured_noise",
    _map_twin,
    _map_outputs,
    sizes=lambda level, *_: level.shape,
    constants={"map_only": True, "mean": None, "seed": 0, "offset": 0},
)
_structured_op = register_kernel(
    f"structured_noise(Tensor mean, Tensor level, {_MAP}, int seed, int offset) -> Tensor out",
    "structured_noise",
    _structured_twin,
    lambda mean, level, *rest: _map_outputs(level, *rest),
    sizes=lambda mean, *_: mean.shape,
    constants={"map_only": False},
)


def _digits_outputs(
    bank: Tensor,
    batch: int,
    count: int,
    channels: int,
    height: int,
    width: int,
    seed: int,
    offset: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        bank.new_empty(batch, channels, height, width),
        bank.new_empty(batch, count, 3, dtype=torch.int64),
        bank.new_empty(batch, count, dtype=torch.int64),
    )


_digits_op = register_kernel(
    "digit_overlay(Tensor bank, SymInt batch, SymInt count, SymInt channels, SymInt height, "
    "SymInt width, int seed, int offset) -> (Tensor out, Tensor places, Tensor index)",
    "digit_overlay",
    _digits_twin,
    _digits_outputs,
    sizes=lambda bank, *_: bank.shape,
)

# --- public functions -------------------------------------------------------------------------


def _check_map(
    function: str,
    level: Tensor,
    shape: tuple[int, int, int],
    kind: str,
    rate: float,
    floor: float,
    ceiling: float,
) -> tuple:
    check_float(function, "level", level, 1)
    sizes = check_sizes(function, "shape", shape, "(C, H, W)", (1, 1, 1))
    known = isinstance(kind, str) and kind in SIGMA_KINDS
    require(known, function, "kind", f"one of {list(SIGMA_KINDS)}", repr(kind))
    rate = check_number(function, "rate", rate, "a positive number", 0)
    good = is_real(ceiling) or (isinstance(ceiling, float) and ceiling == math.inf)
    require(good, function, "ceiling", "a number of at least floor, or infinity", repr(ceiling))
    good = is_real(floor) and 0 <= floor <= ceiling
    require(good, function, "floor", f"a number in 0 .. {ceiling}", repr(floor))
    return (*sizes, SIGMA_KINDS[kind], rate, float(floor), float(ceiling))


def sigma_map(
    level: Tensor,
    shape: tuple[int, int, int],
    kind: str,
    rate: float = 16.0,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> Tensor:
    """Standard deviations of a structured noise (docs/method.md, section 4).

    constant: level. sinusoidal_exp: level exp(sin(2 pi row / rate)) / e. sinusoidal_expm1: level
    (exp(sin(2 pi row / rate)) - 1) / (e - 1). radial: level exp(-rate d^2), d in pixels from
    ((H - 1) // 2, (W - 1) // 2). Each clamped to [floor, ceiling].

    Args:
        level: (B,), one value per image; gives device and dtype.
        shape: (C, H, W).
        kind: constant, sinusoidal_exp, sinusoidal_expm1 or radial.
        rate: period in rows, or decay per squared pixel; positive, not used by constant.
        floor, ceiling: bounds of the result, 0 <= floor <= ceiling.
    Returns:
        (B, C, H, W) like level. No gradient.
    Raises:
        ArgumentError: an argument that does not fit.

    >>> sigma_map(torch.tensor([0.2]), (1, 1, 3), "radial", rate=0.5)
    tensor([[[[0.1213, 0.2000, 0.1213]]]])
    """
    sizes = _check_map("sigma_map", level, shape, kind, rate, floor, ceiling)
    return _map_op(level.detach(), *sizes)


def structured_noise(
    mean: Tensor,
    level: Tensor,
    shape: tuple[int, int, int],
    kind: str,
    seed: int,
    offset: int = 0,
    rate: float = 16.0,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> Tensor:
    """mean + sigma n, sigma of ``sigma_map`` computed on the way and never stored.

    Args:
        mean, level: (B,), one value per image; level gives device and dtype.
        shape, kind, rate, floor, ceiling: as for ``sigma_map``.
        seed, offset: Philox stream; the call uses ceil(numel / 4) offsets.
    Returns:
        (B, C, H, W) like level. No gradient.
    Raises:
        ArgumentError: an argument that does not fit.

    >>> mean, level = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> structured_noise(mean, level, (1, 1, 2), "constant", seed=0).flatten(1)
    tensor([[ 5.0000,  5.0000],
            [-0.6176, -0.4821]])
    """
    sizes = _check_map("structured_noise", level, shape, kind, rate, floor, ceiling)
    check_like("structured_noise", "mean", mean, level, level.shape)
    check_seed("structured_noise", seed, offset)
    return _structured_op(mean.detach(), level.detach(), *sizes, seed, offset)


def digit_overlay(
    bank: Tensor, shape: tuple[int, int, int, int], count: int, seed: int, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Digits of a bank at random places and in random channels, overlaps summed.

    Args:
        bank: (M, h, w) digits, images or flow draws, floating point; gives device and dtype.
        shape: (B, C, H, W) of the overlays, H >= h, W >= w.
        count: K, digits per image.
        seed, offset: Philox stream; digit k of image b uses block offset + b count + k.
    Returns:
        overlay (B, C, H, W), places (B, K, 3) int64 (channel, top row, left column), and index
        (B, K) int64 into the bank. No gradient.
    Raises:
        ArgumentError: an argument that does not fit.

    >>> overlay, places, index = digit_overlay(torch.ones(1, 1, 1), (1, 1, 2, 2), 3, seed=0)
    >>> places.tolist(), overlay.tolist()
    ([[[0, 1, 1], [0, 1, 0], [0, 0, 0]]], [[[[1.0, 0.0], [1.0, 1.0]]]])
    """
    name = "digit_overlay"
    check_float(name, "bank", bank, 3)
    require(bank.numel() > 0, name, "bank", "at least one digit", tuple(bank.shape))
    batch, channels, height, width = check_sizes(name, "shape", shape, "(B, C, H, W)", (0, 1, 1, 1))
    fits = bank.shape[1] <= height and bank.shape[2] <= width
    require(fits, name, "bank", f"digits within {height} x {width}", tuple(bank.shape[1:]))
    good = is_whole(count) and count < 2**31
    require(good, name, "count", "an integer in 0 .. 2^31 - 1", count)
    check_seed(name, seed, offset)
    return _digits_op(bank.detach(), batch, count, channels, height, width, seed, offset)
