"""Logit and dequantisation, with log-determinants."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base.errors import is_whole, require
from .._base.tensors import (
    accumulate_dtype,
    accumulated,
    check_float,
    check_like,
    check_number,
    check_seed,
    image_sum,
    per_image,
)
from ._kernel import elements, images
from ._register import differentiate, register_kernel
from .philox import uniform_twin

# --- twins ------------------------------------------------------------------------------------


def _encode_twin(x: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """z = logit(p), p = alpha + (1 - 2 alpha) x.

    For p outside (0, 1): z of the p that is eps from that end, and -infinity for the
    log-determinant.
    """
    at = alpha + (1 - 2 * alpha) * accumulated(x)
    eps = torch.finfo(at.dtype).eps
    outside = (at <= 0) | (at >= 1)
    p = torch.where(outside, at.detach().clamp(eps, 1 - eps), at)
    log_p, log_q = torch.log(p), torch.log1p(-p)
    terms = math.log(1 - 2 * alpha) - log_p - log_q
    terms = terms.masked_fill(outside, -math.inf)
    return (log_p - log_q).to(x.dtype), logdet + image_sum(terms)


def _decode_twin(z: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """x = (sigmoid(z) - alpha) / (1 - 2 alpha); logdet of the decode direction."""
    z_acc = accumulated(z)
    x = (torch.sigmoid(z_acc) - alpha) / (1 - 2 * alpha)
    terms = -F.softplus(z_acc) - F.softplus(-z_acc) - math.log(1 - 2 * alpha)
    return x.to(z.dtype), logdet + image_sum(terms)


def _encode_backward_twin(grad_z: Tensor, grad_logdet: Tensor, x: Tensor, alpha: float) -> Tensor:
    p = alpha + (1 - 2 * alpha) * accumulated(x)
    outside = (p <= 0) | (p >= 1)
    p = p.masked_fill(outside, 0.5)
    inverse = 1 / (p * (1 - p))
    to_logdet = per_image(accumulated(grad_logdet), x)
    grad = (accumulated(grad_z) + to_logdet * (2 * p - 1)) * inverse * (1 - 2 * alpha)
    return grad.masked_fill(outside, 0).to(x.dtype)


def _decode_backward_twin(grad_x: Tensor, grad_logdet: Tensor, z: Tensor, alpha: float) -> Tensor:
    sigmoid = torch.sigmoid(accumulated(z))
    to_logdet = per_image(accumulated(grad_logdet), z)
    grad = accumulated(grad_x) * sigmoid * torch.sigmoid(-accumulated(z)) / (1 - 2 * alpha)
    return (grad + to_logdet * (1 - 2 * sigmoid)).to(z.dtype)


def _dequantise_twin(x: Tensor, levels: int, seed: int, offset: int) -> Tensor:
    """(round(x (levels - 1)) + u) / levels, u uniform on [0, 1); x in [0, 1]."""
    index = torch.round(accumulated(x) * (levels - 1))
    noise = uniform_twin(x.numel(), seed, offset, x).view_as(x)
    return ((index + noise) / levels).to(x.dtype)


# --- ops --------------------------------------------------------------------------------------


def _outputs(x: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), logdet.new_empty(logdet.shape)


def _make(decode: bool) -> Callable:
    name = "logit_decode" if decode else "logit_encode"
    backward_twin = _decode_backward_twin if decode else _encode_backward_twin
    backward_op = register_kernel(
        f"{name}_backward(Tensor grad_out, Tensor grad_logdet, Tensor x, float alpha)"
        " -> Tensor grad_in",
        "logit_backward",
        backward_twin,
        lambda grad_out, grad_logdet, x, alpha: x.new_empty(x.shape),
        sizes=images,
        constants={"decode": decode},
        **differentiate(backward_twin, 3),
    )

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.alpha = inputs[2]

    def backward(ctx: Any, grad_out: Tensor, grad_logdet: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        return backward_op(grad_out, grad_logdet, x, ctx.alpha), grad_logdet, None

    return register_kernel(
        f"{name}(Tensor x, Tensor logdet, float alpha) -> (Tensor out, Tensor logdet_out)",
        "logit",
        _decode_twin if decode else _encode_twin,
        _outputs,
        sizes=images,
        constants={"decode": decode},
        setup_context=setup_context,
        backward=backward,
    )


_encode, _decode = _make(False), _make(True)

_dequantise = register_kernel(
    "dequantise(Tensor x, int levels, int seed, int offset) -> Tensor out",
    "dequantise",
    _dequantise_twin,
    lambda x, *_: x.new_empty(x.shape),
    sizes=elements,
)

# --- public functions -------------------------------------------------------------------------


def _check(function: str, name: str, x: Tensor, logdet: Tensor, alpha: float) -> None:
    check_float(function, name, x)
    require(x.dim() >= 1, function, name, "a batch dimension", "a scalar")
    check_like(function, "logdet", logdet, x, (x.shape[0],), accumulate_dtype(x.dtype))
    check_number(function, "alpha", alpha, "a number in (0, 0.5)", 0, 0.5)


def logit_encode(x: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """z = logit(p), p = alpha + (1 - 2 alpha) x.

    Args:
        x: images (B, ...) in [0, 1]; float32, float64, bfloat16 or float16.
        logdet: running log-determinant (B,), float32 (float64 for float64).
        alpha: margin in (0, 0.5), which keeps z finite at 0 and 1.
    Returns:
        z like x, and logdet + sum of log(1 - 2 alpha) - log p - log(1 - p). Where p is outside
        (0, 1), so x more than alpha / (1 - 2 alpha) outside [0, 1], no z decodes to x: the
        image's logdet is -infinity, and that number's z is the last one before the end; its
        gradient is zero, and all gradients are finite.
    Raises:
        ArgumentError: dtype, device, shape or alpha that does not fit.

    >>> logit_encode(torch.tensor([[0.0, 0.5, 1.0]]), torch.zeros(1), alpha=0.1)
    (tensor([[-2.1972,  0.0000,  2.1972]]), tensor([5.5328]))
    """
    _check("logit_encode", "x", x, logdet, alpha)
    return _encode(x, logdet, alpha)


def logit_decode(z: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """x = (sigmoid(z) - alpha) / (1 - 2 alpha), the inverse of ``logit_encode``.

    Args:
        z: (B, ...); float32, float64, bfloat16 or float16.
        logdet, alpha: as for ``logit_encode``.
    Returns:
        x like z, up to alpha / (1 - 2 alpha) beyond [0, 1], and logdet + log|det dx/dz| (the
        decode direction).
    Raises:
        ArgumentError: dtype, device, shape or alpha that does not fit.

    >>> logit_decode(torch.tensor([[0.0]]), torch.zeros(1), alpha=0.1)
    (tensor([[0.5000]]), tensor([-1.1632]))
    """
    _check("logit_decode", "z", z, logdet, alpha)
    return _decode(z, logdet, alpha)


def dequantise(x: Tensor, levels: int, seed: int, offset: int = 0) -> Tensor:
    """(round(x (levels - 1)) + u) / levels, u uniform on [0, 1).

    Args:
        x: images in [0, 1], any shape; float32, float64, bfloat16 or float16.
        levels: grey levels, at least 2 (256 for 8 bits, 32 for 5).
        seed, offset: Philox stream; element i uses lane i % 4 of block offset + i // 4, so the
            call uses ceil(numel / 4) offsets. No gradient.
    Returns:
        Noisy images in [0, 1], like x.
    Raises:
        ArgumentError: dtype, levels, seed or offset that cannot be.

    >>> 256 * dequantise(torch.tensor([0.0, 1.0]), levels=256, seed=0)
    tensor([  0.3990, 255.8805])
    """
    check_float("dequantise", "x", x)
    good = is_whole(levels, 2) and levels <= 2**24
    require(good, "dequantise", "levels", "an integer in 2..2^24", levels)
    check_seed("dequantise", seed, offset)
    return _dequantise(x, levels, seed, offset)
