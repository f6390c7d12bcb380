"""Logit and dequantisation, with log-determinants."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._base import backend
from .._base.errors import require
from .._base.tensors import accumulate_dtype, check_seed
from . import reference
from ._register import check_float, check_like, differentiate, register


def _make(decode: bool):
    name = "logit_decode" if decode else "logit_encode"
    twin, twin_backward = getattr(reference, name), getattr(reference, f"{name}_backward")

    def outputs(x: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), logdet.new_empty(logdet.shape)

    def forward(x, logdet, alpha):
        if not backend.native(x):
            return twin(x, logdet, alpha)
        out, logdet_out = outputs(x, logdet, alpha)
        x, logdet, n = x.contiguous(), logdet.contiguous(), x[:1].numel()
        workspace = backend.partials(x.shape[0], n, x)
        backend._C.logit(
            decode, x.shape[0], n, alpha, backend.arg(x), backend.arg(logdet), backend.arg(out),
            backend.arg(logdet_out), backend.arg(workspace), backend.place(x),
        )  # fmt: skip
        return out, logdet_out

    def backward(grad_out, grad_logdet, x, alpha):
        if not backend.native(x):
            return twin_backward(grad_out, grad_logdet, x, alpha)
        grad_in = x.new_empty(x.shape)
        grad_out, grad_logdet, x = (t.contiguous() for t in (grad_out, grad_logdet, x))
        backend._C.logit_backward(
            decode, x.shape[0], x[:1].numel(), alpha, backend.arg(grad_out),
            backend.arg(grad_logdet), backend.arg(x), backend.arg(grad_in), backend.place(x),
        )  # fmt: skip
        return grad_in

    backward_op = register(
        f"{name}_backward(Tensor grad_out, Tensor grad_logdet, Tensor x, float alpha) -> Tensor",
        backward,
        lambda grad_out, grad_logdet, x, alpha: x.new_empty(x.shape),
        **differentiate(twin_backward, 3),
    )

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.alpha = inputs[2]

    def op_backward(ctx: Any, grad_out: Tensor, grad_logdet: Tensor) -> tuple:
        (x,) = ctx.saved_tensors
        return backward_op(grad_out, grad_logdet, x, ctx.alpha), grad_logdet, None

    return register(
        f"{name}(Tensor x, Tensor logdet, float alpha) -> (Tensor, Tensor)",
        forward, outputs, setup_context=setup_context, backward=op_backward,
    )  # fmt: skip


_encode, _decode = _make(False), _make(True)


def _dequantise_native(x: Tensor, levels: int, seed: int, offset: int) -> Tensor:
    if not backend.native(x):
        return reference.dequantise(x, levels, seed, offset)
    out = x.new_empty(x.shape)
    x = x.contiguous()
    backend._C.dequantise(
        x.numel(), levels, seed, offset, backend.arg(x), backend.arg(out), backend.place(x)
    )
    return out


_dequantise = register(
    "dequantise(Tensor x, int levels, int seed, int offset) -> Tensor",
    _dequantise_native,
    lambda x, levels, seed, offset: x.new_empty(x.shape),
)


def _check(function: str, name: str, x: Tensor, logdet: Tensor, alpha: float) -> None:
    check_float(function, name, x)
    require(x.dim() >= 1, function, name, "a batch dimension", "a scalar")
    check_like(function, "logdet", logdet, x, (x.shape[0],), accumulate_dtype(x.dtype))
    require(0 < alpha < 0.5, function, "alpha", "a number in (0, 0.5)", alpha)


def logit_encode(x: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """z = logit(p), p = alpha + (1 - 2 alpha) x.

    Args:
        x: (B, ...) in [0, 1]; NaN comes back where p is outside (0, 1).
        logdet: running log-determinant (B,), float32 (float64 for float64).
        alpha: margin in (0, 0.5).
    Returns:
        z like x, and logdet + sum of log(1 - 2 alpha) - log p - log(1 - p).
    Raises:
        ArgumentError: dtype, device, shape or alpha that does not fit.
    """
    _check("logit_encode", "x", x, logdet, alpha)
    return _encode(x, logdet, alpha)


def logit_decode(z: Tensor, logdet: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """x = (sigmoid(z) - alpha) / (1 - 2 alpha), the inverse of ``logit_encode``.

    Returns:
        x like z, and logdet + log|det dx/dz| (the decode direction).
    Raises:
        ArgumentError: dtype, device, shape or alpha that does not fit.
    """
    _check("logit_decode", "z", z, logdet, alpha)
    return _decode(z, logdet, alpha)


def dequantise(x: Tensor, levels: int, seed: int, offset: int = 0) -> Tensor:
    """(round(x (levels - 1)) + u) / levels, u uniform on [0, 1).

    Args:
        x: images in [0, 1], any shape.
        levels: grey levels, at least 2 (256 for 8 bits, 32 for 5).
        seed, offset: Philox stream; element i uses lane i % 4 of block offset + i // 4, so the
            call uses ceil(numel / 4) offsets. No gradient.
    Raises:
        ArgumentError: dtype, levels, seed or offset that cannot be.
    """
    check_float("dequantise", "x", x)
    require(2 <= levels <= 2**24, "dequantise", "levels", "an integer in 2..2^24", levels)
    check_seed("dequantise", seed, offset)
    return _dequantise(x, levels, seed, offset)
