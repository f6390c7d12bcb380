"""Log-densities of independent Gaussians, one value per image."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._base.errors import require
from .._base.tensors import (
    accumulate_dtype,
    accumulated,
    check_broadcast,
    check_float,
    check_like,
    image_sum,
    number_like,
    per_image,
)
from ._kernel import images
from ._register import register_kernel

_LOG_2PI = math.log(2 * math.pi)

# --- Gaussian ---------------------------------------------------------------------------------


def _gaussian_twin(y: Tensor, fx: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """(log N(y - fx; mean, std^2) per image [B], its gradient to fx, shaped like fx).

    y and fx are [B, ...] of one shape; mean and std broadcast to it. The gradient
    ("score") is (y - fx - mean) / std^2.
    """
    std_acc = accumulated(std)
    whitened = (accumulated(y) - accumulated(fx) - accumulated(mean)) / std_acc
    terms = -0.5 * (whitened * whitened + _LOG_2PI) - torch.log(std_acc)
    score = whitened / std_acc
    return image_sum(terms.expand(fx.shape)), score.expand(fx.shape).to(fx.dtype)


def _gaussian_outputs(y: Tensor, fx: Tensor, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    log_prob = fx.new_empty(fx.shape[:1], dtype=accumulate_dtype(fx.dtype))
    return log_prob, fx.new_empty(fx.shape)


def _gaussian_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, _, mean, std = inputs
    ctx.save_for_backward(mean, std, output[1])


def _gaussian_backward(ctx: Any, grad_log_prob: Tensor, grad_score: Tensor) -> tuple:
    """score = r / std^2 with r = y - fx - mean is all that is needed, to second order too."""
    mean, std, score = ctx.saved_tensors
    shape = score.shape
    std_acc, score_acc, grad_score = accumulated(std), accumulated(score), accumulated(grad_score)
    grad_log_prob = per_image(grad_log_prob, score)
    to_fx = grad_log_prob * score_acc - grad_score / (std_acc * std_acc)
    grad_y = (-to_fx).to(score.dtype) if ctx.needs_input_grad[0] else None
    grad_fx = to_fx.to(score.dtype) if ctx.needs_input_grad[1] else None
    grad_mean = grad_std = None
    if ctx.needs_input_grad[2]:
        grad_mean = to_fx.expand(shape).sum_to_size(mean.shape).to(mean.dtype)
    if ctx.needs_input_grad[3]:
        to_std = grad_log_prob * (score_acc * score_acc * std_acc - 1 / std_acc)
        to_std = to_std - grad_score * 2 * score_acc / std_acc
        grad_std = to_std.expand(shape).sum_to_size(std.shape).to(std.dtype)
    return grad_y, grad_fx, grad_mean, grad_std


_gaussian_op = register_kernel(
    "gaussian_log_prob(Tensor y, Tensor fx, Tensor mean, Tensor std)"
    " -> (Tensor log_prob, Tensor score)",
    "gaussian_log_prob",
    _gaussian_twin,
    _gaussian_outputs,
    sizes=images,
    setup_context=_gaussian_context,
    backward=_gaussian_backward,
)


def gaussian_log_prob(
    y: Tensor, fx: Tensor, mean: float | Tensor = 0.0, std: float | Tensor = 1.0
) -> Tensor:
    """log N(y - fx; mean, std^2), one value per image, its gradient computed in the same pass.

    With r = y - fx - mean: -sum(r^2 / (2 std^2) + log std + log(2 pi) / 2), in nats.

    Args:
        y: measurements (B, ...); float32, float64, bfloat16 or float16.
        fx: predictions f(x), like y.
        mean, std: numbers, or tensors like y that broadcast to it. std must be positive: this is
            not checked, and a std of zero gives infinities.
    Returns:
        (B,), float32 (float64 for float64).
    Raises:
        ArgumentError: dtype, device or shape that does not fit.

    >>> gaussian_log_prob(torch.zeros(2, 3), torch.ones(2, 3), std=0.5)
    tensor([-6.6774, -6.6774])
    """
    name = "gaussian_log_prob"
    check_float(name, "fx", fx)
    require(fx.dim() >= 1, name, "fx", "a batch dimension", "a scalar")
    check_like(name, "y", y, fx, fx.shape)
    parts = []
    for argument, value in (("mean", mean), ("std", std)):
        value = number_like(name, argument, value, fx)
        check_broadcast(name, argument, value, fx.shape)
        parts.append(value)
    return _gaussian_op(y, fx, *parts)[0]


# --- standard normal --------------------------------------------------------------------------


def _normal_twin(z: Tensor) -> Tensor:
    """log N(z; 0, I) per image: [B, ...] to [B]."""
    z = accumulated(z)
    return -0.5 * image_sum(z * z + _LOG_2PI)


def _normal_outputs(z: Tensor) -> Tensor:
    return z.new_empty(z.shape[:1], dtype=accumulate_dtype(z.dtype))


def _normal_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _normal_backward(ctx: Any, grad: Tensor) -> Tensor:
    (z,) = ctx.saved_tensors
    return (per_image(grad, z) * -z).to(z.dtype)


_normal_op = register_kernel(
    "standard_normal_log_prob(Tensor z) -> Tensor log_prob",
    "standard_normal_log_prob",
    _normal_twin,
    _normal_outputs,
    sizes=images,
    setup_context=_normal_context,
    backward=_normal_backward,
)


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) = -sum(z^2 + log(2 pi)) / 2, one value per image, in nats.

    Args:
        z: latents (B, ...); float32, float64, bfloat16 or float16.
    Returns:
        (B,), float32 (float64 for float64).
    Raises:
        ArgumentError: not a floating-point tensor with a batch dimension.

    >>> standard_normal_log_prob(torch.zeros(2, 3))
    tensor([-2.7568, -2.7568])
    """
    check_float("standard_normal_log_prob", "z", z)
    require(z.dim() >= 1, "standard_normal_log_prob", "z", "a batch dimension", "a scalar")
    return _normal_op(z)
