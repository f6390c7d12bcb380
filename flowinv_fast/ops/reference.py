"""Plain-torch twin of every operation: same names, same arguments, same results.

This file is the specification. Each function is differentiable by ordinary autograd, runs on any
device, and is what the compiled kernels are tested against in float64. It is also the back end
chosen by ``FLOWINV_BACKEND=torch``.

Letters: B images, C channels, H rows, W columns, N = C*H*W elements of an image, K patches.
Log-determinants and log-densities are one value per image, shape (B,), in the accumulate type:
float64 for float64 tensors, float32 for float32, bfloat16 and float16.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base.tensors import accumulate_dtype

LOG_2PI = math.log(2 * math.pi)

# Which elements an affine coupling transforms; the others pass through and feed the conditioner.
MASKS = {"checkerboard_even": 0, "checkerboard_odd": 1, "channel_first": 2, "channel_second": 3}

# Standard deviation maps of the structured noises (METHOD.md, noise models).
SIGMA_KINDS = {"constant": 0, "sinusoidal_exp": 1, "sinusoidal_expm1": 2, "radial": 3}


def _acc(x: Tensor) -> Tensor:
    return x.to(accumulate_dtype(x.dtype))


def _image_sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


# --- affine coupling -------------------------------------------------------------------------
#
# On the transformed elements, with s = gain * tanh(raw_s):
#     encode: z = x exp(s) + t, log|det dz/dx| = sum s
#     decode: x = (z - t) exp(-s), log|det dx/dz| = -sum s
# raw holds raw_s in its first half of channels and t in the second. Checkerboard masks transform
# the pixels whose row + column is even (odd): raw (B, 2C, H, W), gain (C,). Channel masks
# transform the first (second) half of the channels: raw (B, C, H, W), gain (C/2,), C even.


def transformed_map(channels: int, height: int, width: int, mask: int, device=None) -> Tensor:
    """Boolean (C, H, W), true where the coupling transforms."""
    if mask < 2:
        row = torch.arange(height, device=device).view(-1, 1)
        column = torch.arange(width, device=device)
        return ((row + column) % 2 == mask).expand(channels, height, width)
    channel = torch.arange(channels, device=device).view(-1, 1, 1)
    return ((channel < channels // 2) == (mask == 2)).expand(channels, height, width)


def _spread(half: Tensor, mask: int) -> Tensor:
    """(B, C', H, W) values of the transformed elements as (B, C, H, W), zero elsewhere."""
    if mask < 2:
        _, channels, height, width = half.shape
        return half * transformed_map(channels, height, width, mask, half.device)
    zeros = torch.zeros_like(half)
    return torch.cat([half, zeros] if mask == 2 else [zeros, half], 1)


def _gather(full: Tensor, mask: int) -> Tensor:
    """Adjoint of _spread: (B, C, H, W) to (B, C', H, W)."""
    if mask < 2:
        return full * transformed_map(*full.shape[1:], mask, full.device)
    return full.chunk(2, dim=1)[mask - 2]


def _log_scale_and_shift(raw: Tensor, gain: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    raw_scale, shift = _acc(raw).chunk(2, dim=1)
    log_scale = _acc(gain).view(-1, 1, 1) * torch.tanh(raw_scale)
    return _spread(log_scale, mask), _spread(shift, mask)


def affine_coupling_encode(
    x: Tensor,  # [B, C, H, W]
    raw: Tensor,  # [B, 2C, H, W] or [B, C, H, W]
    gain: Tensor,  # [C] or [C/2]
    logdet: Tensor,  # [B]
    mask: int,
) -> tuple[Tensor, Tensor]:
    log_scale, shift = _log_scale_and_shift(raw, gain, mask)
    z = _acc(x) * torch.exp(log_scale) + shift
    return z.to(x.dtype), logdet + _image_sum(log_scale)


def affine_coupling_decode(
    z: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: int
) -> tuple[Tensor, Tensor]:
    log_scale, shift = _log_scale_and_shift(raw, gain, mask)
    x = (_acc(z) - shift) * torch.exp(-log_scale)
    return x.to(z.dtype), logdet - _image_sum(log_scale)


def affine_coupling_encode_backward(
    grad_z: Tensor,  # [B, C, H, W]
    grad_logdet: Tensor,  # [B]
    x: Tensor,  # [B, C, H, W], the input of encode
    raw: Tensor,
    gain: Tensor,
    mask: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_x, grad_raw, grad_gain); grad_logdet itself passes through unchanged."""
    tanh = torch.tanh(_acc(raw).chunk(2, dim=1)[0])
    log_scale, _ = _log_scale_and_shift(raw, gain, mask)
    scale = torch.exp(log_scale)
    grad_log_scale = _acc(grad_z) * _acc(x) * scale + _acc(grad_logdet).view(-1, 1, 1, 1)
    grad_x = _acc(grad_z) * scale
    return _coupling_grads(grad_x, grad_log_scale, _acc(grad_z), tanh, x, raw, gain, mask)


def affine_coupling_decode_backward(
    grad_x: Tensor,  # [B, C, H, W]
    grad_logdet: Tensor,  # [B]
    x: Tensor,  # [B, C, H, W], the output of decode
    raw: Tensor,
    gain: Tensor,
    mask: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_z, grad_raw, grad_gain); grad_logdet itself passes through unchanged."""
    tanh = torch.tanh(_acc(raw).chunk(2, dim=1)[0])
    log_scale, _ = _log_scale_and_shift(raw, gain, mask)
    grad_z = _acc(grad_x) * torch.exp(-log_scale)
    grad_log_scale = -_acc(grad_x) * _acc(x) - _acc(grad_logdet).view(-1, 1, 1, 1)
    return _coupling_grads(grad_z, grad_log_scale, -grad_z, tanh, x, raw, gain, mask)


def _coupling_grads(grad_in, grad_log_scale, grad_shift, tanh, x, raw, gain, mask):
    grad_log_scale = _gather(grad_log_scale, mask)
    grad_raw_scale = grad_log_scale * _acc(gain).view(-1, 1, 1) * (1 - tanh * tanh)
    grad_raw = torch.cat([grad_raw_scale, _gather(grad_shift, mask)], 1)
    grad_gain = (grad_log_scale * tanh).sum((0, 2, 3))
    return grad_in.to(x.dtype), grad_raw.to(raw.dtype), grad_gain.to(gain.dtype)


# --- preprocessing ---------------------------------------------------------------------------


def logit_encode(x: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """z = logit(p), p = alpha + (1 - 2 alpha) x; x [B, C, H, W] in [0, 1]; NaN outside (0, 1)."""
    p = alpha + (1 - 2 * alpha) * _acc(x)
    log_p, log_q = torch.log(p), torch.log1p(-p)
    terms = math.log(1 - 2 * alpha) - log_p - log_q
    return (log_p - log_q).to(x.dtype), logdet + _image_sum(terms)


def logit_decode(z: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """x = (sigmoid(z) - alpha) / (1 - 2 alpha); logdet of the decode direction."""
    z_acc = _acc(z)
    x = (torch.sigmoid(z_acc) - alpha) / (1 - 2 * alpha)
    terms = -F.softplus(z_acc) - F.softplus(-z_acc) - math.log(1 - 2 * alpha)
    return x.to(z.dtype), logdet + _image_sum(terms)


def logit_encode_backward(grad_z: Tensor, grad_logdet: Tensor, x: Tensor, alpha: float) -> Tensor:
    p = alpha + (1 - 2 * alpha) * _acc(x)
    inverse = 1 / (p * (1 - p))
    per_image = _acc(grad_logdet).view(-1, *[1] * (x.dim() - 1))
    grad = (_acc(grad_z) + per_image * (2 * p - 1)) * inverse * (1 - 2 * alpha)
    return grad.to(x.dtype)


def logit_decode_backward(grad_x: Tensor, grad_logdet: Tensor, z: Tensor, alpha: float) -> Tensor:
    sigmoid = torch.sigmoid(_acc(z))
    per_image = _acc(grad_logdet).view(-1, *[1] * (z.dim() - 1))
    grad = _acc(grad_x) * sigmoid * torch.sigmoid(-_acc(z)) / (1 - 2 * alpha)
    return (grad + per_image * (1 - 2 * sigmoid)).to(z.dtype)


def dequantise(x: Tensor, levels: int, seed: int, offset: int) -> Tensor:
    """(round(x (levels - 1)) + u) / levels, u uniform on [0, 1); x in [0, 1]."""
    index = torch.round(_acc(x) * (levels - 1))
    noise = uniform(x.numel(), seed, offset, x).view_as(x)
    return ((index + noise) / levels).to(x.dtype)


# --- layout ----------------------------------------------------------------------------------


def squeeze(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, 4C, H/2, W/2]; channel 4c + 2i + j holds pixel (2h + i, 2w + j) of c."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def unsqueeze(x: Tensor) -> Tensor:
    """Inverse of squeeze: [B, 4C, H, W] to [B, C, 2H, 2W]."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels // 4, 2, 2, height, width)
    return blocks.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)


def factor_out(x: Tensor) -> tuple[Tensor, Tensor]:
    """First half of the channels (kept, [B, C/2, H, W]) and the flattened second half (latent)."""
    kept, latent = x.chunk(2, dim=1)
    return kept.contiguous(), latent.flatten(1)


def factor_in(kept: Tensor, latent: Tensor) -> Tensor:
    """Inverse of factor_out: [B, C, H, W] and [B, C*H*W] to [B, 2C, H, W]."""
    return torch.cat([kept, latent.reshape(kept.shape)], 1)


# --- densities -------------------------------------------------------------------------------


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) per image: [B, ...] to [B]."""
    z = _acc(z).flatten(1)
    return -0.5 * (z * z + LOG_2PI).sum(1)


def gaussian_log_prob(y: Tensor, fx: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(log N(y - fx; mean, std^2) per image [B], its gradient to fx, shaped like fx).

    y and fx are [B, ...] of one shape; mean and std broadcast to it. The gradient
    ("score") is (y - fx - mean) / std^2.
    """
    std_acc = _acc(std)
    whitened = (_acc(y) - _acc(fx) - _acc(mean)) / std_acc
    terms = -0.5 * (whitened * whitened + LOG_2PI) - torch.log(std_acc)
    score = whitened / std_acc
    return _image_sum(terms.expand(fx.shape)), score.expand(fx.shape).to(fx.dtype)


def gather_patches(image: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Patches of an image [B, C, H, W] at places [B, K, 3] = (channel, row, column), int64.

    Returns [B, K, height, width]. Places must lie inside the image.
    """
    batch = torch.arange(image.shape[0], device=image.device).view(-1, 1, 1, 1)
    channel, row, column = (places[..., i, None, None] for i in range(3))
    rows = row + torch.arange(height, device=image.device).view(-1, 1)
    columns = column + torch.arange(width, device=image.device)
    return image[batch, channel, rows, columns]


def scatter_patches(
    patches: Tensor, places: Tensor, channels: int, height: int, width: int
) -> Tensor:
    """Adjoint of gather_patches: sums patches [B, K, h, w] into a zero [B, C, H, W] image."""
    batch, _, patch_height, patch_width = patches.shape
    image = patches.new_zeros(batch, channels, height, width)
    index = torch.arange(batch, device=patches.device).view(-1, 1, 1, 1)
    channel, row, column = (places[..., i, None, None] for i in range(3))
    rows = row + torch.arange(patch_height, device=patches.device).view(-1, 1)
    columns = column + torch.arange(patch_width, device=patches.device)
    return image.index_put(
        tuple(i.expand(patches.shape) for i in (index, channel, rows, columns)),
        patches,
        accumulate=True,
    )


# --- quantisation ----------------------------------------------------------------------------


def quantise_ste(x: Tensor, bits: int, low: float, high: float) -> Tensor:
    """Nearest of 2^bits levels spaced evenly from low to high, ends included; ties go up.

    bits = 1, low = -1, high = 1 is the sign, with sign(0) = +1. Gradient: straight through.
    """
    step = (high - low) / (2**bits - 1)
    index = torch.floor((_acc(x) - low) / step + 0.5).clamp(0, 2**bits - 1)
    value = (low + index * step).to(x.dtype)
    return x + (value - x).detach() if x.requires_grad else value


# --- random numbers: Philox 4x32-10 ------------------------------------------------------------
#
# Contract: element i of the stream (seed, offset) is lane i % 4 of the Philox block whose 128-bit
# counter is offset + i // 4 (low 64 bits; the high 64 are zero) and whose key is the 64-bit seed.
# An op that draws n numbers uses counters offset .. offset + ceil(n / 4) - 1, so a caller that
# advances offset by ceil(n / 4) never sees a number twice. The integers are the same on every
# device, for every thread count.

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF


def random_bits(n: int, seed: int, offset: int, like: Tensor) -> Tensor:
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


def uniform(n: int, seed: int, offset: int, like: Tensor) -> Tensor:
    """n numbers (bits >> 8) 2^-24 in [0, 1), exact in float32."""
    bits = random_bits(n, seed, offset, like)
    return (bits >> 8).to(accumulate_dtype(like.dtype)) * 2.0**-24


def standard_normal(n: int, seed: int, offset: int, like: Tensor) -> Tensor:
    """n standard normal numbers by Box-Muller on the lane pairs (0, 1) and (2, 3) of each block.

    u = ((bits_a >> 8) + 1) 2^-24 in (0, 1], v = (bits_b >> 8) 2^-24, r = sqrt(-2 log u);
    lane a becomes r cos(2 pi v), lane b r sin(2 pi v).
    """
    bits = random_bits((n + 3) // 4 * 4, seed, offset, like).view(-1, 2)
    acc = accumulate_dtype(like.dtype)
    u = ((bits[:, 0] >> 8) + 1).to(acc) * 2.0**-24
    v = (bits[:, 1] >> 8).to(acc) * 2.0**-24
    r = torch.sqrt(-2 * torch.log(u))
    angle = 2 * math.pi * v
    return torch.stack([r * torch.cos(angle), r * torch.sin(angle)], 1).flatten()[:n]


# --- structured noise --------------------------------------------------------------------------


def sigma_map(
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


def gaussian_noise(mean: Tensor, std: Tensor, shape: list[int], seed: int, offset: int) -> Tensor:
    """mean + std * n; mean and std broadcast to ``shape`` = [B, ...]; n by standard_normal."""
    noise = standard_normal(math.prod(shape), seed, offset, std).view(shape)
    return (_acc(mean) + _acc(std) * noise).expand(shape).to(std.dtype)


def structured_noise(
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
    """mean + sigma n over [B, C, H, W], sigma as in sigma_map and never stored."""
    sigma = sigma_map(_acc(level), channels, height, width, kind, rate, floor, ceiling)
    noise = standard_normal(sigma.numel(), seed, offset, level).view_as(sigma)
    return (_acc(mean).view(-1, 1, 1, 1) + sigma * noise).to(level.dtype)


def place_digits(
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
    bits = random_bits(4 * batch * count, seed, offset, like).view(batch, count, 4)
    sizes = torch.tensor([bank, channels, rows, columns], device=like.device)
    drawn = (bits * sizes) >> 32
    return drawn[..., 0], drawn[..., 1:].contiguous()


def digit_overlay(
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
    index, places = place_digits(
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
    overlay = scatter_patches(bank[index], places, channels, height, width)
    return overlay, places, index


# --- solver ----------------------------------------------------------------------------------


def adam_step(
    x: Tensor,  # [B, N], changed in place
    grad: Tensor,  # [B, N]
    exp_avg: Tensor,  # [B, N], changed in place
    exp_avg_sq: Tensor,  # [B, N], changed in place
    best: Tensor,  # [B, N], changed in place: iterate of the lowest loss so far
    loss: Tensor,  # [B], loss at x
    best_loss: Tensor,  # [B], changed in place
    active: Tensor,  # [B] bool
    rates: Tensor,  # [2] float64: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One Adam step per image with best-so-far, for the active images only.

    An image whose loss is not finite is left untouched.
    """
    move = active & torch.isfinite(loss)
    better = move & (loss < best_loss)
    best_loss.copy_(torch.where(better, loss, best_loss))
    best.copy_(torch.where(better[:, None], x, best))
    new_avg = exp_avg + (1 - beta1) * (grad - exp_avg)
    new_avg_sq = exp_avg_sq + (1 - beta2) * (grad * grad - exp_avg_sq)
    step_size, correction = rates.to(x.dtype)
    new_x = x - step_size * new_avg / (torch.sqrt(new_avg_sq) * correction + eps)
    for old, new in ((exp_avg, new_avg), (exp_avg_sq, new_avg_sq), (x, new_x)):
        old.copy_(torch.where(move[:, None], new, old))
