"""Quantisers with a straight-through gradient; the sign is the one-bit case."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._base.errors import is_whole, require
from .._base.tensors import accumulated, check_float, check_number
from ._kernel import elements
from ._register import no_context, register_kernel


def _twin(x: Tensor, bits: int, low: float, high: float) -> Tensor:
    """Nearest of 2^bits levels spaced evenly from low to high, ends included; ties go up.

    bits = 1, low = -1, high = 1 is the sign, with sign(0) = +1. Gradient: straight through.
    """
    step = (high - low) / (2**bits - 1)
    index = torch.floor((accumulated(x) - low) / step + 0.5).clamp(0, 2**bits - 1)
    value = (low + index * step).to(x.dtype)
    return x + (value - x).detach() if x.requires_grad else value


def _backward(ctx: Any, grad: Tensor) -> tuple:
    return grad, None, None, None


_op = register_kernel(
    "quantise_ste(Tensor x, int bits, float low, float high) -> Tensor out",
    "quantise",
    _twin,
    lambda x, *_: x.new_empty(x.shape),
    sizes=elements,
    setup_context=no_context,
    backward=_backward,
)


def quantise_ste(x: Tensor, bits: int, low: float, high: float) -> Tensor:
    """Nearest of 2^bits levels spaced evenly from low to high, ends included; ties go up.

    The gradient is straight through: that of the identity (Bengio et al., 2013).

    Args:
        x: any shape; float32, float64, bfloat16 or float16. NaN stays NaN.
        bits: 1..24.
        low, high: outermost levels, finite, low < high; what lies beyond takes the nearer one.
    Returns:
        Levels, like x.
    Raises:
        ArgumentError: an argument that does not fit.

    >>> quantise_ste(torch.tensor([-2.0, 0.1, 0.6]), bits=2, low=0, high=1)
    tensor([0.0000, 0.0000, 0.6667])
    """
    check_float("quantise_ste", "x", x)
    good = is_whole(bits, 1) and bits <= 24
    require(good, "quantise_ste", "bits", "an integer in 1..24", bits)
    low = check_number("quantise_ste", "low", low, "a finite number", -math.inf)
    high = check_number("quantise_ste", "high", high, f"a finite number above low = {low}", low)
    return _op(x, bits, low, high)


def sign_ste(x: Tensor) -> Tensor:
    """The sign of x, +1 at zero, with straight-through gradient: ``quantise_ste(x, 1, -1, 1)``.

    Args:
        x: any shape; float32, float64, bfloat16 or float16. NaN stays NaN.
    Returns:
        -1 or 1, like x.
    Raises:
        ArgumentError: not a floating-point tensor.

    >>> sign_ste(torch.tensor([-0.5, 0.0, 2.0]))
    tensor([-1.,  1.,  1.])
    """
    return quantise_ste(x, 1, -1.0, 1.0)
