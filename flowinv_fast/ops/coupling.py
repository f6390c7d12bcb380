"""Fused affine coupling: mask, s = gain tanh(raw), transform and log-determinant in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import ArgumentError
from .._base.tensors import accumulate_dtype
from . import reference
from ._register import check_float, check_like, differentiate, register
from .reference import MASKS

_FORWARD = "(Tensor {0}, Tensor raw, Tensor gain, Tensor logdet, int mask) -> (Tensor, Tensor)"
_INPLACE = "(Tensor(a!) {0}, Tensor raw, Tensor gain, Tensor(b!) logdet, int mask) -> ()"
_BACKWARD = (
    "(Tensor grad_out, Tensor grad_logdet, Tensor x, Tensor raw, Tensor gain, int mask, "
    "bool want_gain) -> (Tensor, Tensor, Tensor)"
)


def _check(function: str, x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: str) -> int:
    check_float(function, "z" if "decode" in function else "x", x, 4)
    if mask not in MASKS:
        raise ArgumentError(function, "mask", f"one of {list(MASKS)}", repr(mask))
    batch, channels, height, width = x.shape
    code = MASKS[mask]
    if code >= 2 and channels % 2:
        name = "z" if "decode" in function else "x"
        raise ArgumentError(function, name, f"even channels for {mask}", channels)
    transformed = channels if code < 2 else channels // 2
    check_like(function, "raw", raw, x, (batch, 2 * transformed, height, width))
    check_like(function, "gain", gain, x, (transformed,))
    check_like(function, "logdet", logdet, x, (batch,), accumulate_dtype(x.dtype))
    return code


def _run(decode: bool, mask: int, x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor,
         out: Tensor, logdet_out: Tensor) -> None:  # fmt: skip
    x, raw, gain, logdet = (
        backend.batch_view(x),
        raw.contiguous(),
        gain.contiguous(),
        logdet.contiguous(),
    )
    workspace = backend.partials(x.shape[0], x[:1].numel(), x)
    backend._C.affine_coupling(
        decode, mask, tuple(x.shape), max(x.stride(0), out[:1].numel()), backend.span(x),
        backend.arg(raw), backend.arg(gain), backend.arg(logdet), backend.arg(out),
        backend.arg(logdet_out), backend.arg(workspace), backend.place(x),
    )  # fmt: skip


def _make(decode: bool) -> tuple:
    """The forward, in-place and backward ops of one direction."""
    name = "affine_coupling_decode" if decode else "affine_coupling_encode"
    twin = getattr(reference, name)
    twin_backward = getattr(reference, f"{name}_backward")
    first = "z" if decode else "x"

    def outputs(x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), logdet.new_empty(logdet.shape)

    def forward(x, raw, gain, logdet, mask):
        if not backend.native(x):
            return twin(x, raw, gain, logdet, mask)
        out, logdet_out = outputs(x, logdet)
        _run(decode, mask, x, raw, gain, logdet, out, logdet_out)
        return out, logdet_out

    def inplace(x, raw, gain, logdet, mask):
        dense = x.is_contiguous() and logdet.is_contiguous()
        if backend.native(x) and dense:
            _run(decode, mask, x, raw, gain, logdet, x, logdet)
            return
        for target, value in zip((x, logdet), forward(x, raw, gain, logdet, mask)):
            target.copy_(value)

    def backward_outputs(x, raw, gain, want_gain):
        return (
            x.new_empty(x.shape), raw.new_empty(raw.shape),
            gain.new_empty(gain.shape if want_gain else (0,)),
        )  # fmt: skip

    def backward(grad_out, grad_logdet, x, raw, gain, mask, want_gain):
        if not backend.native(x):
            return reference_backward(grad_out, grad_logdet, x, raw, gain, mask, want_gain)
        grads = backward_outputs(x, raw, gain, want_gain)
        grad_out, grad_logdet, x, raw, gain = (
            t.contiguous() for t in (grad_out, grad_logdet, x, raw, gain)
        )
        workspace = None
        if want_gain:
            workspace = grad_logdet.new_empty(x.shape[0] * gain.numel())
        backend._C.affine_coupling_backward(
            decode, mask, tuple(x.shape), *map(backend.arg, (grad_out, grad_logdet, x, raw, gain)),
            *map(backend.arg, grads[:2]), backend.arg(grads[2] if want_gain else None),
            backend.arg(workspace), backend.place(x),
        )  # fmt: skip
        return grads

    def reference_backward(grad_out, grad_logdet, x, raw, gain, mask, want_gain):
        grad_in, grad_raw, grad_gain = twin_backward(grad_out, grad_logdet, x, raw, gain, mask)
        return grad_in, grad_raw, grad_gain if want_gain else grad_gain.new_empty(0)

    backward_op = register(
        f"{name}_backward{_BACKWARD}",
        backward,
        lambda grad_out, grad_logdet, x, raw, gain, mask, want_gain: backward_outputs(
            x, raw, gain, want_gain
        ),
        **differentiate(reference_backward, 5),
    )

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, raw, gain, _, mask = inputs
        ctx.save_for_backward(output[0] if decode else x, raw, gain)
        ctx.mask = mask

    def op_backward(ctx: Any, grad_out: Tensor, grad_logdet: Tensor) -> tuple:
        value, raw, gain = ctx.saved_tensors
        grad_in, grad_raw, grad_gain = backward_op(
            grad_out, grad_logdet, value, raw, gain, ctx.mask, ctx.needs_input_grad[2]
        )
        return grad_in, grad_raw, grad_gain if ctx.needs_input_grad[2] else None, grad_logdet, None

    forward_op = register(
        f"{name}{_FORWARD.format(first)}",
        forward,
        lambda x, raw, gain, logdet, mask: outputs(x, logdet),
        setup_context=setup_context,
        backward=op_backward,
    )
    inplace_op = register(
        f"{name}_{_INPLACE.format(first)}", inplace, lambda x, raw, gain, logdet, mask: None
    )
    return forward_op, inplace_op


_encode, _encode_ = _make(decode=False)
_decode, _decode_ = _make(decode=True)


def affine_coupling_encode(
    x: Tensor,  # [B, C, H, W]
    raw: Tensor,  # [B, 2C, H, W] or [B, C, H, W]
    gain: Tensor,  # [C] or [C/2]
    logdet: Tensor,  # [B]
    mask: str,
) -> tuple[Tensor, Tensor]:
    """z = x exp(s) + t on the transformed elements, s = gain tanh(raw_s); the rest passes through.

    Args:
        x: images (B, C, H, W); float32, float64, bfloat16 or float16.
        raw: conditioner output, raw_s in its first half of channels, t in the second; (B, 2C, H, W)
            for checkerboard masks, (B, C, H, W) for channel masks. Ignored where nothing changes.
        gain: bound of s per transformed channel, (C,) or (C/2,).
        logdet: running log-determinant (B,), float32 (float64 for float64).
        mask: the transformed elements: checkerboard_even, checkerboard_odd (row + column even or
            odd), channel_first, channel_second (half of the channels; C even).
    Returns:
        z like x, and logdet + log|det dz/dx|, summed in a fixed order: same bits every time.
    Raises:
        ArgumentError: dtype, device, shape or mask that does not fit.
    """
    code = _check("affine_coupling_encode", x, raw, gain, logdet, mask)
    return _encode(x, raw, gain, logdet, code)


def affine_coupling_decode(
    z: Tensor,  # [B, C, H, W]
    raw: Tensor,
    gain: Tensor,
    logdet: Tensor,
    mask: str,
) -> tuple[Tensor, Tensor]:
    """x = (z - t) exp(-s), the inverse of ``affine_coupling_encode``; same arguments.

    Returns:
        x like z, and logdet + log|det dx/dz| (the decode direction).
    Raises:
        ArgumentError: dtype, device, shape or mask that does not fit.
    """
    code = _check("affine_coupling_decode", z, raw, gain, logdet, mask)
    return _decode(z, raw, gain, logdet, code)


def affine_coupling_encode_(
    x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: str
) -> None:
    """``affine_coupling_encode`` in place on x and logdet; only where no gradient is wanted."""
    code = _check("affine_coupling_encode_", x, raw, gain, logdet, mask)
    with torch.no_grad():
        _encode_(x, raw, gain, logdet, code)


def affine_coupling_decode_(
    z: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: str
) -> None:
    """``affine_coupling_decode`` in place on z and logdet; only where no gradient is wanted."""
    code = _check("affine_coupling_decode_", z, raw, gain, logdet, mask)
    with torch.no_grad():
        _decode_(z, raw, gain, logdet, code)
