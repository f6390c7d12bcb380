"""Random numbers and structured noise on counter-based Philox 4x32-10 streams.

Contract: element i of the stream (seed, offset) is lane i % 4 of the Philox block whose counter is
offset + i // 4 and whose key is the seed. The integers are the same on CPU and GPU, for every
thread count and launch geometry; floats agree to a few units in the last place. A call that draws
n numbers uses ceil(n / 4) offsets, so the next call on the same seed adds that to its offset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import require
from .._base.tensors import check_seed
from . import reference
from ._register import check_float, check_like, register
from .density import _flat_strides, check_broadcast
from .reference import SIGMA_KINDS


def _bits(n, seed, offset, like):
    if not backend.native(like):
        return reference.random_bits(n, seed, offset, like)
    out = like.new_empty(n, dtype=torch.int64)
    backend._C.random_bits(n, seed, offset, backend.arg(out), backend.place(like))
    return out


_bits_op = register(
    "random_bits(SymInt n, int seed, int offset, Tensor like) -> Tensor",
    _bits, lambda n, seed, offset, like: like.new_empty(n, dtype=torch.int64),
)  # fmt: skip


def random_bits(
    n: int, seed: int, offset: int = 0, *, device: torch.device | str = "cpu"
) -> Tensor:
    """n random 32-bit integers as int64 in [0, 2^32), by the contract above.

    Raises:
        ArgumentError: negative n, or seed or offset that cannot be.
    """
    require(isinstance(n, int) and n >= 0, "random_bits", "n", "a non-negative integer", n)
    check_seed("random_bits", seed, offset)
    return _bits_op(n, seed, offset, torch.empty(0, device=device))


def _gaussian(mean, std, shape, seed, offset):
    if not backend.native(std):
        return reference.gaussian_noise(mean, std, shape, seed, offset)
    out = std.new_empty(shape)
    mean, mean_strides = _flat_strides(mean, shape)
    std, std_strides = _flat_strides(std, shape)
    backend._C.gaussian_noise(
        shape[0], out[:1].numel(), seed, offset, backend.arg(mean), mean_strides,
        backend.arg(std), std_strides, backend.arg(out), backend.place(out),
    )  # fmt: skip
    return out


_gaussian_op = register(
    "gaussian_noise(Tensor mean, Tensor std, SymInt[] shape, int seed, int offset) -> Tensor",
    _gaussian, lambda mean, std, shape, seed, offset: std.new_empty(shape),
)  # fmt: skip


def gaussian_noise(
    mean: float | Tensor, std: Tensor, shape: Sequence[int], seed: int, offset: int = 0
) -> Tensor:
    """mean + std n, n standard normal by Box-Muller on pairs of the stream's integers.

    Args:
        mean: a number, or a tensor like std.
        std: tensor that broadcasts to ``shape``; gives device and dtype. No gradient.
        shape: (B, ...) of the result.
        seed, offset: Philox stream.
    Raises:
        ArgumentError: dtype, device, shape, seed or offset that does not fit.
    """
    name, shape = "gaussian_noise", list(shape)
    check_float(name, "std", std)
    require(len(shape) >= 1 and min(shape) >= 0, name, "shape", "(B, ...)", shape)
    if not isinstance(mean, Tensor):
        mean = torch.full((), float(mean), dtype=std.dtype, device=std.device)
    check_like(name, "mean", mean, std)
    check_broadcast(name, "mean", mean, shape)
    check_broadcast(name, "std", std, shape)
    check_seed(name, seed, offset)
    return _gaussian_op(mean.detach(), std.detach(), shape, seed, offset)


_MAP = (
    "SymInt channels, SymInt height, SymInt width, int kind, float rate, float floor, float ceiling"
)


def _map_fake(level, channels, height, width, kind, rate, floor, ceiling):
    return level.new_empty(level.shape[0], channels, height, width)


def _structured_native(map_only, mean, level, channels, height, width, kind, rate, floor, ceiling,
                       seed, offset):  # fmt: skip
    out = level.new_empty(level.shape[0], channels, height, width)
    mean, level = mean.contiguous(), level.contiguous()
    backend._C.structured_noise(
        map_only, level.shape[0], channels, height, width, kind, rate, floor, ceiling, seed, offset,
        backend.arg(mean), backend.arg(level), backend.arg(out), backend.place(out),
    )  # fmt: skip
    return out


def _map(level, *sizes):
    if not backend.native(level):
        return reference.sigma_map(level, *sizes)
    return _structured_native(True, level, level, *sizes, 0, 0)


def _structured(mean, level, channels, height, width, kind, rate, floor, ceiling, seed, offset):
    rest = (channels, height, width, kind, rate, floor, ceiling, seed, offset)
    if not backend.native(level):
        return reference.structured_noise(mean, level, *rest)
    return _structured_native(False, mean, level, *rest)


_map_op = register(f"sigma_map(Tensor level, {_MAP}) -> Tensor", _map, _map_fake)
_structured_op = register(
    f"structured_noise(Tensor mean, Tensor level, {_MAP}, int seed, int offset) -> Tensor",
    _structured,
    lambda mean, level, *rest: _map_fake(level, *rest[:-2]),
)


def _check_map(function, level, shape, kind, rate, floor, ceiling):
    check_float(function, "level", level, 1)
    require(len(shape) == 3 and min(shape) >= 1, function, "shape", "(C, H, W)", shape)
    require(kind in SIGMA_KINDS, function, "kind", f"one of {list(SIGMA_KINDS)}", repr(kind))
    require(rate > 0 and math.isfinite(rate), function, "rate", "a positive number", rate)
    require(0 <= floor <= ceiling, function, "floor", f"a number in 0 .. {ceiling}", floor)
    return (*shape, SIGMA_KINDS[kind], float(rate), float(floor), float(ceiling))


def sigma_map(
    level: Tensor,
    shape: tuple[int, int, int],
    kind: str,
    rate: float = 16.0,
    floor: float = 0.0,
    ceiling: float = math.inf,
) -> Tensor:
    """Standard deviations of a structured noise (METHOD, noise models).

    constant: level. sinusoidal_exp: level exp(sin(2 pi row / rate)) / e. sinusoidal_expm1: level
    (exp(sin(2 pi row / rate)) - 1) / (e - 1). radial: level exp(-rate d^2), d in pixels from
    ((H - 1) // 2, (W - 1) // 2). Each clamped to [floor, ceiling].

    Args:
        level: (B,), one value per image; gives device and dtype.
        shape: (C, H, W).
        kind: constant, sinusoidal_exp, sinusoidal_expm1 or radial.
        rate: period in rows, or decay per squared pixel.
    Returns:
        (B, C, H, W). No gradient.
    Raises:
        ArgumentError: an argument that does not fit.
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
        seed, offset: Philox stream.
    Returns:
        (B, C, H, W). No gradient.
    Raises:
        ArgumentError: an argument that does not fit.
    """
    sizes = _check_map("structured_noise", level, shape, kind, rate, floor, ceiling)
    check_like("structured_noise", "mean", mean, level, level.shape)
    check_seed("structured_noise", seed, offset)
    return _structured_op(mean.detach(), level.detach(), *sizes, seed, offset)


def _digits_fake(bank, batch, count, channels, height, width, seed, offset):
    return (
        bank.new_empty(batch, channels, height, width),
        bank.new_empty(batch, count, 3, dtype=torch.int64),
        bank.new_empty(batch, count, dtype=torch.int64),
    )


def _digits(bank, batch, count, channels, height, width, seed, offset):
    if not backend.native(bank):
        return reference.digit_overlay(bank, batch, count, channels, height, width, seed, offset)
    overlay, places, index = _digits_fake(bank, batch, count, channels, height, width, seed, offset)
    bank = bank.contiguous()
    backend._C.digit_overlay(
        batch, count, *bank.shape, channels, height, width, seed, offset, backend.arg(bank),
        backend.arg(index), backend.arg(places), backend.arg(overlay), backend.place(bank),
    )  # fmt: skip
    return overlay, places, index


_digits_op = register(
    "digit_overlay(Tensor bank, SymInt batch, SymInt count, SymInt channels, SymInt height, "
    "SymInt width, int seed, int offset) -> (Tensor, Tensor, Tensor)",
    _digits, _digits_fake,
)  # fmt: skip


def digit_overlay(
    bank: Tensor, shape: tuple[int, int, int, int], count: int, seed: int, offset: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Digits of a bank at random places and in random channels, overlaps summed.

    Args:
        bank: (M, h, w) digits, images or flow draws; gives device and dtype.
        shape: (B, C, H, W) of the overlays, H >= h, W >= w.
        count: digits per image.
        seed, offset: Philox stream; digit k of image b uses block offset + b count + k.
    Returns:
        overlay (B, C, H, W), places (B, K, 3) int64 (channel, top row, left column), and index
        (B, K) into the bank. No gradient.
    Raises:
        ArgumentError: an argument that does not fit.
    """
    name = "digit_overlay"
    check_float(name, "bank", bank, 3)
    require(bank.numel() > 0, name, "bank", "at least one digit", tuple(bank.shape))
    require(
        len(shape) == 4 and min(shape[1:]) >= 1 and shape[0] >= 0,
        name,
        "shape",
        "(B, C, H, W)",
        shape,
    )
    fits = bank.shape[1] <= shape[2] and bank.shape[2] <= shape[3]
    require(fits, name, "bank", f"digits within {shape[2]} x {shape[3]}", tuple(bank.shape[1:]))
    require(isinstance(count, int) and count >= 0, name, "count", "a non-negative integer", count)
    check_seed(name, seed, offset)
    batch, channels, height, width = shape
    return _digits_op(bank.detach(), batch, count, channels, height, width, seed, offset)
