"""Fused affine coupling: mask, s = gain tanh(raw), transform and log-determinant in one pass.

On the transformed elements, with s = gain tanh(raw_s):

    encode: z = x exp(s) + t, log|det dz/dx| = sum s
    decode: x = (z - t) exp(-s), log|det dx/dz| = -sum s

``raw`` holds raw_s in its first half of channels and t in the second. Checkerboard masks transform
the pixels whose row + column is even (odd): raw (B, 2C, H, W), gain (C,). Channel masks transform
the first (second) half of the channels: raw (B, C, H, W), gain (C/2,), C even.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import ArgumentError, is_whole, require
from .._base.tensors import (
    accumulate_dtype,
    accumulated,
    check_float,
    check_like,
    image_sum,
    known_device,
    per_image,
)
from ._kernel import Kernel
from ._register import differentiate, register

# Which elements are transformed; the others pass through and feed the conditioner.
MASKS = backend.constants.masks

# --- twins: the specification, in plain torch -------------------------------------------------


def transformed_map(
    channels: int,
    height: int,
    width: int,
    mask: str,
    device: torch.device | str | None = None,
) -> Tensor:
    """Boolean (C, H, W), true where a coupling with this mask transforms.

    Raises:
        ArgumentError: sizes, a mask or a device that cannot be.

    >>> transformed_map(1, 2, 2, "checkerboard_even").int().tolist()
    [[[1, 0], [0, 1]]]
    """
    name, sizes = "transformed_map", (channels, height, width)
    good = all(is_whole(n) for n in sizes)
    require(good, name, "channels, height, width", "non-negative integers", sizes)
    good = isinstance(mask, str) and mask in MASKS
    require(good, name, "mask", f"one of {list(MASKS)}", repr(mask))
    return _transformed_map(*sizes, MASKS[mask], known_device(name, device))


def _transformed_map(
    channels: int, height: int, width: int, mask: int, device: torch.device | str | None = None
) -> Tensor:
    if mask < 2:
        row = torch.arange(height, device=device).view(-1, 1)
        column = torch.arange(width, device=device)
        return ((row + column) % 2 == mask).expand(channels, height, width)
    channel = torch.arange(channels, device=device).view(-1, 1, 1)
    return ((channel < channels // 2) == (mask == 2)).expand(channels, height, width)


def _to_all(half: Tensor, mask: int) -> Tensor:
    """(B, C', H, W) values of the transformed elements as (B, C, H, W), zero elsewhere."""
    if mask < 2:
        _, channels, height, width = half.shape
        return half * _transformed_map(channels, height, width, mask, half.device)
    zeros = torch.zeros_like(half)
    return torch.cat([half, zeros] if mask == 2 else [zeros, half], 1)


def _of_transformed(full: Tensor, mask: int) -> Tensor:
    """Adjoint of _to_all: (B, C, H, W) to (B, C', H, W)."""
    if mask < 2:
        _, channels, height, width = full.shape
        return full * _transformed_map(channels, height, width, mask, full.device)
    return full.chunk(2, dim=1)[mask - 2]


def _log_scale_and_shift(raw: Tensor, gain: Tensor, mask: int) -> tuple[Tensor, Tensor]:
    raw_scale, shift = accumulated(raw).chunk(2, dim=1)
    log_scale = accumulated(gain).view(-1, 1, 1) * torch.tanh(raw_scale)
    return _to_all(log_scale, mask), _to_all(shift, mask)


def _encode_twin(
    x: Tensor,  # [B, C, H, W]
    raw: Tensor,  # [B, 2C, H, W] or [B, C, H, W]
    gain: Tensor,  # [C] or [C/2]
    logdet: Tensor,  # [B]
    mask: int,
) -> tuple[Tensor, Tensor]:
    log_scale, shift = _log_scale_and_shift(raw, gain, mask)
    z = accumulated(x) * torch.exp(log_scale) + shift
    return z.to(x.dtype), logdet + image_sum(log_scale)


def _decode_twin(
    z: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: int
) -> tuple[Tensor, Tensor]:
    log_scale, shift = _log_scale_and_shift(raw, gain, mask)
    x = (accumulated(z) - shift) * torch.exp(-log_scale)
    return x.to(z.dtype), logdet - image_sum(log_scale)


def _backward_twin(
    decode: bool,
    grad_out: Tensor,  # [B, C, H, W]
    grad_logdet: Tensor,  # [B]
    x: Tensor,  # [B, C, H, W], the input of encode, or the output of decode
    raw: Tensor,
    gain: Tensor,
    mask: int,
    want_gain: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_in, grad_raw, grad_gain); grad_logdet itself passes through unchanged."""
    tanh = torch.tanh(accumulated(raw).chunk(2, dim=1)[0])
    log_scale, _ = _log_scale_and_shift(raw, gain, mask)
    grad, grad_logdet = accumulated(grad_out), per_image(accumulated(grad_logdet), x)
    if decode:
        grad_in = grad * torch.exp(-log_scale)
        grad_log_scale, grad_shift = -grad * accumulated(x) - grad_logdet, -grad_in
    else:
        grad_in = grad * torch.exp(log_scale)
        grad_log_scale, grad_shift = grad_in * accumulated(x) + grad_logdet, grad
    grad_log_scale = _of_transformed(grad_log_scale, mask)
    grad_raw_scale = grad_log_scale * accumulated(gain).view(-1, 1, 1) * (1 - tanh * tanh)
    grad_raw = torch.cat([grad_raw_scale, _of_transformed(grad_shift, mask)], 1)
    grad_gain = (grad_log_scale * tanh).sum((0, 2, 3)) if want_gain else gain.new_empty(0)
    return grad_in.to(x.dtype), grad_raw.to(raw.dtype), grad_gain.to(gain.dtype)


# --- ops --------------------------------------------------------------------------------------

_ARGUMENTS = "Tensor x, Tensor raw, Tensor gain, Tensor logdet, int mask"
_FORWARD = f"({_ARGUMENTS}) -> (Tensor out, Tensor logdet_out)"
_INPLACE = f"({_ARGUMENTS}) -> ()".replace("Tensor x", "Tensor(a!) x").replace(
    "Tensor logdet", "Tensor(b!) logdet"
)
_BACKWARD = (
    "(Tensor grad_out, Tensor grad_logdet, Tensor x, Tensor raw, Tensor gain, int mask, "
    "bool want_gain) -> (Tensor grad_in, Tensor grad_raw, Tensor grad_gain)"
)


def _outputs(
    x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: int
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), logdet.new_empty(logdet.shape)


def _backward_outputs(
    grad_out: Tensor,
    grad_logdet: Tensor,
    x: Tensor,
    raw: Tensor,
    gain: Tensor,
    mask: int,
    want_gain: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    grad_gain = gain.new_empty(gain.shape if want_gain else (0,))
    return x.new_empty(x.shape), raw.new_empty(raw.shape), grad_gain


def _make_backward(name: str, decode: bool) -> Any:
    schema = f"{name}_backward{_BACKWARD}"
    twin = lambda *arguments: _backward_twin(decode, *arguments)
    call = Kernel(
        "affine_coupling_backward",
        # The kernel's own workspace is one more result.
        schema.replace("Tensor grad_gain)", "Tensor grad_gain, Tensor partials)"),
        lambda grad_out, *_: grad_out.shape,
        decode=decode,
    )

    def backward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        _, grad_logdet, x, _, gain, _, want_gain = arguments
        if not backend.native(x):
            return twin(*arguments)
        grads, workspace = _backward_outputs(*arguments), None
        if want_gain:
            workspace = grad_logdet.new_empty(x.shape[0] * gain.numel())
        call(arguments, (*grads[:2], grads[2] if want_gain else None, workspace))
        return grads

    return register(schema, backward, _backward_outputs, twin=twin, **differentiate(twin, 5))


def _make(decode: bool) -> tuple[Any, Any]:
    """The forward and the in-place op of one direction."""
    name = "affine_coupling_decode" if decode else "affine_coupling_encode"
    twin = _decode_twin if decode else _encode_twin
    backward_op = _make_backward(name, decode)
    schema = name + _FORWARD
    call = Kernel("affine_coupling", schema, lambda x, *_: x.shape, decode=decode)

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        if not backend.native(arguments[0]):
            return twin(*arguments)
        results = _outputs(*arguments)
        call(arguments, results)
        return results

    def inplace(*arguments: Any) -> None:
        x, _, _, logdet, _ = arguments
        if backend.native(x) and x.is_contiguous() and logdet.is_contiguous():
            call(arguments, (x, logdet))
            return
        for target, value in zip((x, logdet), forward(*arguments)):
            target.copy_(value)

    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, raw, gain, _, mask = inputs
        ctx.save_for_backward(output[0] if decode else x, raw, gain)
        ctx.mask = mask

    def op_backward(ctx: Any, grad_out: Tensor, grad_logdet: Tensor) -> tuple:
        value, raw, gain = ctx.saved_tensors
        want_gain = ctx.needs_input_grad[2]
        grad_in, grad_raw, grad_gain = backward_op(
            grad_out, grad_logdet, value, raw, gain, ctx.mask, want_gain
        )
        return grad_in, grad_raw, grad_gain if want_gain else None, grad_logdet, None

    forward_op = register(
        schema, forward, _outputs, twin=twin, setup_context=setup_context, backward=op_backward
    )
    inplace_op = register(f"{name}_{_INPLACE}", inplace, lambda *_: None, twin=twin)
    return forward_op, inplace_op


_encode, _encode_ = _make(decode=False)
_decode, _decode_ = _make(decode=True)


# --- public functions -------------------------------------------------------------------------


def _check(function: str, x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: str) -> int:
    check_float(function, "z" if "decode" in function else "x", x, 4)
    if not isinstance(mask, str) or mask not in MASKS:
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

    >>> x, raw = torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
    >>> raw[:, 1] = 3.0  # s = 0, t = 3
    >>> affine_coupling_encode(x, raw, torch.ones(1), torch.zeros(1), "checkerboard_even")
    (tensor([[[[4., 1.],
               [1., 4.]]]]), tensor([0.]))
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
    """x = (z - t) exp(-s), the inverse of ``affine_coupling_encode``.

    Args:
        z: latents (B, C, H, W); float32, float64, bfloat16 or float16.
        raw, gain, logdet, mask: as for ``affine_coupling_encode``.
    Returns:
        x like z, and logdet + log|det dx/dz| (the decode direction).
    Raises:
        ArgumentError: dtype, device, shape or mask that does not fit.

    >>> x, raw, gain = torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 4), torch.ones(1)
    >>> z, logdet = affine_coupling_encode(x, raw, gain, torch.zeros(1), "channel_first")
    >>> back, logdet = affine_coupling_decode(z, raw, gain, logdet, "channel_first")
    >>> torch.allclose(back, x, atol=1e-5), torch.allclose(logdet, torch.zeros(1), atol=1e-5)
    (True, True)
    """
    code = _check("affine_coupling_decode", z, raw, gain, logdet, mask)
    return _decode(z, raw, gain, logdet, code)


def affine_coupling_encode_(
    x: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: str
) -> None:
    """``affine_coupling_encode`` in place on x and logdet; only where no gradient is wanted.

    Raises:
        ArgumentError: dtype, device, shape or mask that does not fit.

    >>> x, raw = torch.ones(1, 2, 1, 1), torch.tensor([0.0, 3.0]).view(1, 2, 1, 1)
    >>> affine_coupling_encode_(x, raw, torch.ones(1), torch.zeros(1), "channel_second")
    >>> x.flatten()
    tensor([1., 4.])
    """
    code = _check("affine_coupling_encode_", x, raw, gain, logdet, mask)
    _encode_(x, raw, gain, logdet, code)


def affine_coupling_decode_(
    z: Tensor, raw: Tensor, gain: Tensor, logdet: Tensor, mask: str
) -> None:
    """``affine_coupling_decode`` in place on z and logdet; only where no gradient is wanted.

    Raises:
        ArgumentError: dtype, device, shape or mask that does not fit.

    >>> z, raw = torch.ones(1, 2, 1, 1), torch.tensor([0.0, 3.0]).view(1, 2, 1, 1)
    >>> affine_coupling_decode_(z, raw, torch.ones(1), torch.zeros(1), "channel_second")
    >>> z.flatten()
    tensor([ 1., -2.])
    """
    code = _check("affine_coupling_decode_", z, raw, gain, logdet, mask)
    _decode_(z, raw, gain, logdet, code)
