"""Random numbers on counter-based Philox 4x32-10 streams.

Contract: element i of the stream (seed, offset) is lane i % 4 of the Philox block whose 128-bit
counter is offset + i // 4 (low 64 bits; the high 64 are zero) and whose key is the 64-bit seed. The
integers are the same on CPU and GPU, for every thread count and launch geometry; floats agree to a
few units in the last place. A call that draws n numbers uses ceil(n / 4) offsets, so the next call
on the same seed adds that to its offset and never sees a number twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .._base.errors import is_whole, require
from .._base.tensors import (
    accumulate_dtype,
    accumulated,
    check_broadcast,
    check_float,
    check_like,
    check_seed,
    check_sizes,
    known_device,
    number_like,
)
from ._register import register_kernel

# --- twins ------------------------------------------------------------------------------------

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def bits_twin(n: int, seed: int, offset: int, like: Tensor) -> Tensor:
    """n 32-bit integers as int64 in [0, 2^32), on the device of ``like``."""
    blocks = (n + 3) // 4
    index = torch.arange(blocks, device=like.device, dtype=torch.int64)
    # 64-bit counter arithmetic without overflow surprises: split into 32-bit words.
    low = (index & _LOW) + (offset & _LOW)
    high = (index >> 32) + ((offset >> 32) & _LOW) + (low >> 32)
    counter = [low & _LOW, high & _LOW, torch.zeros_like(index), torch.zeros_like(index)]
    key = [seed & _LOW, (seed >> 32) & _LOW]
    for _ in range(10):
        high0, low0 = _multiply(counter[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(counter[2], _MULTIPLIERS[1])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(k + w) & _LOW for k, w in zip(key, _WEYL, strict=True)]
    return torch.stack(counter, 1).flatten()[:n]


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of the product of 32-bit numbers held in int64."""
    low_product = a * (b & 0xFFFF)  # below 2^48
    high_product = a * (b >> 16)  # below 2^48
    low = low_product + ((high_product & 0xFFFF) << 16)
    return (high_product >> 16) + (low >> 32), low & _LOW


def uniform_twin(n: int, seed: int, offset: int, like: Tensor) -> Tensor:
    """n numbers (bits >> 8) 2^-24 in [0, 1), exact in float32."""
    bits = bits_twin(n, seed, offset, like)
    return (bits >> 8).to(accumulate_dtype(like.dtype)) * 2.0**-24


def normal_twin(n: int, seed: int, offset: int, like: Tensor) -> Tensor:
    """n standard normal numbers by Box-Muller on the lane pairs (0, 1) and (2, 3) of each block.

    u = ((bits_a >> 8) + 1) 2^-24 in (0, 1], v = (bits_b >> 8) 2^-24, r = sqrt(-2 log u);
    lane a becomes r cos(2 pi v), lane b r sin(2 pi v).
    """
    bits = bits_twin((n + 3) // 4 * 4, seed, offset, like).view(-1, 2)
    acc = accumulate_dtype(like.dtype)
    u = ((bits[:, 0] >> 8) + 1).to(acc) * 2.0**-24
    v = (bits[:, 1] >> 8).to(acc) * 2.0**-24
    r = torch.sqrt(-2 * torch.log(u))
    angle = 2 * math.pi * v
    return torch.stack([r * torch.cos(angle), r * torch.sin(angle)], 1).flatten()[:n]


def _gaussian_twin(mean: Tensor, std: Tensor, shape: list[int], seed: int, offset: int) -> Tensor:
    """mean + std * n; mean and std broadcast to ``shape`` = [B, ...]; n by normal_twin."""
    noise = normal_twin(math.prod(shape), seed, offset, std).view(shape)
    return (accumulated(mean) + accumulated(std) * noise).expand(shape).to(std.dtype)


# --- ops --------------------------------------------------------------------------------------

_bits_op = register_kernel(
    "random_bits(SymInt n, int seed, int offset, Tensor like) -> Tensor out",
    "random_bits",
    bits_twin,
    lambda n, seed, offset, like: like.new_empty(n, dtype=torch.int64),
)
_gaussian_op = register_kernel(
    "gaussian_noise(Tensor mean, Tensor std, SymInt[] shape, int seed, int offset) -> Tensor out",
    "gaussian_noise",
    _gaussian_twin,
    lambda mean, std, shape, seed, offset: std.new_empty(shape),
    sizes=lambda mean, std, shape, *_: (shape[0], math.prod(shape[1:])),
)

# --- public functions -------------------------------------------------------------------------


def random_bits(
    n: int, seed: int, offset: int = 0, *, device: torch.device | str = "cpu"
) -> Tensor:
    """n random 32-bit integers: (n,) int64 in [0, 2^32), elements of the stream (seed, offset).

    Four of them use one offset. They are the same on every device.

    Args:
        n: how many, at least 0.
        seed, offset: Philox stream, each in 0 .. 2^63 - 1.
        device: where to make them.
    Raises:
        ArgumentError: negative n, a seed or offset that cannot be, or a device that is not there.

    >>> random_bits(6, seed=0)[4:], random_bits(2, seed=0, offset=1)
    (tensor([4175744164, 1555169499]), tensor([4175744164, 1555169499]))
    """
    good = is_whole(n) and n < 2**63
    require(good, "random_bits", "n", "a non-negative integer below 2^63", n)
    check_seed("random_bits", seed, offset)
    return _bits_op(n, seed, offset, torch.empty(0, device=known_device("random_bits", device)))


def gaussian_noise(
    mean: float | Tensor, std: Tensor, shape: Sequence[int], seed: int, offset: int = 0
) -> Tensor:
    """mean + std n, n standard normal by Box-Muller on pairs of the stream's integers.

    Args:
        mean: a number, or a tensor like std.
        std: tensor that broadcasts to ``shape``; gives device and dtype. No gradient.
        shape: (B, ...) of the result.
        seed, offset: Philox stream; the call uses ceil(numel / 4) offsets.
    Returns:
        Tensor of this shape, like std.
    Raises:
        ArgumentError: dtype, device, shape, seed or offset that does not fit.

    >>> gaussian_noise(0.0, torch.tensor(1.0), (1, 4), seed=0)
    tensor([[ 0.9911, -0.9247, -0.6176, -0.4821]])
    """
    name = "gaussian_noise"
    check_float(name, "std", std)
    shape = check_sizes(name, "shape", shape, "(B, ...)", (0,))
    mean = number_like(name, "mean", mean, std)
    check_like(name, "mean", mean, std)
    check_broadcast(name, "mean", mean, shape)
    check_broadcast(name, "std", std, shape)
    check_seed(name, seed, offset)
    return _gaussian_op(mean.detach(), std.detach(), shape, seed, offset)
