"""Quantisers with a straight-through gradient; the sign is the one-bit case."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from .._base import backend
from .._base.errors import require
from . import reference
from ._register import check_float, register


def _quantise(x, bits, low, high):
    if not backend.native(x):
        return reference.quantise_ste(x.detach(), bits, low, high)
    out = x.new_empty(x.shape)
    x = x.contiguous()
    backend._C.quantise(
        x.numel(), bits, low, high, backend.arg(x), backend.arg(out), backend.place(x)
    )
    return out


def _no_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    pass


_quantise_op = register(
    "quantise_ste(Tensor x, int bits, float low, float high) -> Tensor",
    _quantise, lambda x, bits, low, high: x.new_empty(x.shape), setup_context=_no_context,
    backward=lambda ctx, grad: (grad, None, None, None),
)  # fmt: skip


def quantise_ste(x: Tensor, bits: int, low: float, high: float) -> Tensor:
    """Nearest of 2^bits levels spaced evenly from low to high, ends included; ties go up.

    The gradient is straight through: that of the identity (Bengio et al., 2013).

    Args:
        x: any shape; float32, float64, bfloat16 or float16. NaN stays NaN.
        bits: 1..24.
        low, high: outermost levels, low < high.
    Raises:
        ArgumentError: an argument that does not fit.
    """
    check_float("quantise_ste", "x", x)
    good = isinstance(bits, int) and 1 <= bits <= 24
    require(good, "quantise_ste", "bits", "an integer in 1..24", bits)
    finite = math.isfinite(low) and math.isfinite(high)
    require(finite and low < high, "quantise_ste", "high", f"a number above low = {low}", high)
    return _quantise_op(x, bits, float(low), float(high))


def sign_ste(x: Tensor) -> Tensor:
    """The sign of x, +1 at zero, with straight-through gradient: ``quantise_ste(x, 1, -1, 1)``."""
    return quantise_ste(x, 1, -1.0, 1.0)
