"""Log-densities of independent Gaussians, and placed patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import require
from .._base.tensors import accumulate_dtype
from . import reference
from ._register import check_float, check_like, register

# --- Gaussian ----------------------------------------------------------------------------------


def _flat_strides(tensor: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, tuple[int, int]]:
    """A tensor that broadcasts to shape [B, ...] as (tensor, (batch stride, element stride)).

    A scalar, one value an image, one map for all images and a full tensor are read in place;
    anything between (one value a row, say) is written out once for one image, or for all.
    """
    tensor = tensor.reshape((1,) * (len(shape) - tensor.dim()) + tuple(tensor.shape))
    batch = tensor.shape[0] != 1
    if all(size == 1 for size in tensor.shape[1:]):
        return tensor.contiguous(), (int(batch), 0)
    full = tensor.expand((tensor.shape[0],) + tuple(shape[1:])).contiguous()
    return full, (full[:1].numel() if batch else 0, 1)


def _gaussian_outputs(y, fx, mean, std):
    acc = accumulate_dtype(fx.dtype)
    return fx.new_empty(fx.shape[:1], dtype=acc), fx.new_empty(fx.shape)


def _gaussian(y, fx, mean, std):
    if not backend.native(fx):
        return reference.gaussian_log_prob(y, fx, mean, std)
    log_prob, score = _gaussian_outputs(y, fx, mean, std)
    y, fx = y.contiguous(), fx.contiguous()
    mean, mean_strides = _flat_strides(mean, fx.shape)
    std, std_strides = _flat_strides(std, fx.shape)
    n = fx[:1].numel()
    workspace = backend.partials(fx.shape[0], n, fx)
    backend._C.gaussian_log_prob(
        fx.shape[0], n, backend.arg(y), backend.arg(fx), backend.arg(mean), mean_strides,
        backend.arg(std), std_strides, backend.arg(score), backend.arg(log_prob),
        backend.arg(workspace), backend.place(fx),
    )  # fmt: skip
    return log_prob, score


def _gaussian_context(ctx: Any, inputs: tuple, output: tuple) -> None:
    _, fx, mean, std = inputs
    ctx.save_for_backward(mean, std, output[1])
    ctx.shapes = (inputs[0].shape, fx.shape)


def _gaussian_backward(ctx: Any, grad_log_prob: Tensor, grad_score: Tensor) -> tuple:
    """score = r / std^2 with r = y - fx - mean is all that is needed, to second order too."""
    mean, std, score = ctx.saved_tensors
    shape = ctx.shapes[1]
    acc = accumulate_dtype(score.dtype)
    per_image = grad_log_prob.view(-1, *[1] * (len(shape) - 1))
    std_acc, score_acc = std.to(acc), score.to(acc)
    grad_score = grad_score.to(acc)
    to_fx = per_image * score_acc - grad_score / (std_acc * std_acc)
    grad_y = (-to_fx).to(score.dtype) if ctx.needs_input_grad[0] else None
    grad_fx = to_fx.to(score.dtype) if ctx.needs_input_grad[1] else None
    grad_mean = grad_std = None
    if ctx.needs_input_grad[2]:
        grad_mean = to_fx.expand(shape).sum_to_size(mean.shape).to(mean.dtype)
    if ctx.needs_input_grad[3]:
        to_std = per_image * (score_acc * score_acc * std_acc - 1 / std_acc)
        to_std = to_std - grad_score * 2 * score_acc / std_acc
        grad_std = to_std.expand(shape).sum_to_size(std.shape).to(std.dtype)
    return grad_y, grad_fx, grad_mean, grad_std


_gaussian_op = register(
    "gaussian_log_prob(Tensor y, Tensor fx, Tensor mean, Tensor std) -> (Tensor, Tensor)",
    _gaussian, _gaussian_outputs, setup_context=_gaussian_context, backward=_gaussian_backward,
)  # fmt: skip


def gaussian_log_prob(
    y: Tensor, fx: Tensor, mean: float | Tensor = 0.0, std: float | Tensor = 1.0
) -> Tensor:
    """log N(y - fx; mean, std^2 I), one value per image, its gradient computed in the same pass.

    Args:
        y: measurements (B, ...); float32, float64, bfloat16 or float16.
        fx: predictions f(x), like y.
        mean, std: numbers, or tensors like y that broadcast to it. std must be positive: this is
            not checked, and a std of zero gives infinities.
    Returns:
        (B,), float32 (float64 for float64).
    Raises:
        ArgumentError: dtype, device or shape that does not fit.
    """
    name = "gaussian_log_prob"
    check_float(name, "fx", fx)
    require(fx.dim() >= 1, name, "fx", "a batch dimension", "a scalar")
    check_like(name, "y", y, fx, fx.shape)
    parts = []
    for argument, value in (("mean", mean), ("std", std)):
        if not isinstance(value, Tensor):
            value = torch.full((), float(value), dtype=fx.dtype, device=fx.device)
        check_like(name, argument, value, fx)
        check_broadcast(name, argument, value, fx.shape)
        parts.append(value)
    return _gaussian_op(y, fx, *parts)[0]


def check_broadcast(function: str, argument: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a tensor that does not broadcast to shape."""
    try:
        good = torch.broadcast_shapes(tensor.shape, shape) == torch.Size(shape)
    except RuntimeError:
        good = False
    require(
        good, function, argument, f"a shape that broadcasts to {tuple(shape)}", tuple(tensor.shape)
    )


# --- standard normal -----------------------------------------------------------------------------


def _normal_outputs(z):
    return z.new_empty(z.shape[:1], dtype=accumulate_dtype(z.dtype))


def _normal(z):
    if not backend.native(z):
        return reference.standard_normal_log_prob(z)
    log_prob = _normal_outputs(z)
    z, n = z.contiguous(), z[:1].numel()
    workspace = backend.partials(z.shape[0], n, z)
    backend._C.standard_normal_log_prob(
        z.shape[0], n, backend.arg(z), backend.arg(log_prob), backend.arg(workspace),
        backend.place(z),
    )  # fmt: skip
    return log_prob


def _normal_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _normal_backward(ctx: Any, grad: Tensor) -> Tensor:
    (z,) = ctx.saved_tensors
    return (grad.view(-1, *[1] * (z.dim() - 1)) * -z).to(z.dtype)


_normal_op = register(
    "standard_normal_log_prob(Tensor z) -> Tensor", _normal, _normal_outputs,
    setup_context=_normal_context, backward=_normal_backward,
)  # fmt: skip


def standard_normal_log_prob(z: Tensor) -> Tensor:
    """log N(z; 0, I) per image: (B, ...) to (B,), float32 (float64 for float64).

    Raises:
        ArgumentError: not a floating-point tensor with a batch dimension.
    """
    check_float("standard_normal_log_prob", "z", z)
    require(z.dim() >= 1, "standard_normal_log_prob", "z", "a batch dimension", "a scalar")
    return _normal_op(z)


# --- patches -------------------------------------------------------------------------------------


def _patches(scatter, source, places, out, patch, image):
    batch, count = places.shape[:2]
    source, places = source.contiguous(), places.contiguous()
    backend._C.patches(
        scatter, batch, count, *patch, *image, backend.arg(source), backend.arg(places),
        backend.arg(out), backend.place(source),
    )  # fmt: skip
    return out


def _gather_fake(image, places, height, width):
    return image.new_empty(*places.shape[:2], height, width)


def _gather(image, places, height, width):
    if not backend.native(image):
        return reference.gather_patches(image, places, height, width)
    out = _gather_fake(image, places, height, width)
    return _patches(False, image, places, out, (height, width), image.shape[1:])


def _scatter_fake(patches, places, channels, height, width):
    return patches.new_empty(patches.shape[0], channels, height, width)


def _scatter(patches, places, channels, height, width):
    if not backend.native(patches):
        return reference.scatter_patches(patches, places, channels, height, width)
    out = _scatter_fake(patches, places, channels, height, width)
    return _patches(True, patches, places, out, patches.shape[2:], (channels, height, width))


def _gather_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.image = inputs[0].shape[1:]


def _scatter_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.patch = inputs[0].shape[2:]


_gather_op = register(
    "gather_patches(Tensor image, Tensor places, SymInt height, SymInt width) -> Tensor",
    _gather, _gather_fake, setup_context=_gather_context,
    backward=lambda ctx, grad: (
        _scatter_op(grad, ctx.saved_tensors[0], *ctx.image), None, None, None,
    ),
)  # fmt: skip
_scatter_op = register(
    "scatter_patches(Tensor patches, Tensor places, SymInt channels, SymInt height, SymInt width)"
    " -> Tensor",
    _scatter, _scatter_fake, setup_context=_scatter_context,
    backward=lambda ctx, grad: (
        _gather_op(grad, ctx.saved_tensors[0], *ctx.patch), None, None, None, None,
    ),
)  # fmt: skip


def _check_places(function, batch, places, size, shape, device):
    good = isinstance(places, Tensor) and places.dtype == torch.int64 and places.dim() == 3
    good = good and places.shape[0] == batch and places.shape[2] == 3
    got = f"{places.dtype} of {tuple(places.shape)}" if isinstance(places, Tensor) else type(places)
    require(good, function, "places", f"int64 of shape ({batch}, K, 3)", got)
    require(places.device == device, function, "places", f"device {device}", places.device)
    channels, height, width = shape
    fits = len(size) == 2 and 1 <= size[0] <= height and 1 <= size[1] <= width
    require(fits, function, "size", f"a patch (h, w) within {height} x {width}", tuple(size))
    # Reading them waits for the device, which a graph cannot hold; its trial runs were checked.
    unread = places.is_cuda and torch.cuda.is_current_stream_capturing()
    if places.numel() > 0 and not torch.compiler.is_compiling() and not unread:
        last = torch.tensor([channels - 1, height - size[0], width - size[1]], device=device)
        inside = bool(((places >= 0) & (places <= last)).all())
        require(inside, function, "places", f"(channel, row, column) in 0 .. {last.tolist()}",
                "places outside the image")  # fmt: skip


def gather_patches(image: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Patches of images at given places; the gradient is ``scatter_patches``.

    Args:
        image: (B, C, H, W) floating point.
        places: (B, K, 3) int64: channel, top row, left column; patches lie inside the image.
        size: (h, w) of a patch.
    Returns:
        (B, K, h, w).
    Raises:
        ArgumentError: dtype, device, shape or places that do not fit.
    """
    check_float("gather_patches", "image", image, 4)
    _check_places("gather_patches", image.shape[0], places, size, image.shape[1:], image.device)
    return _gather_op(image, places, *size)


def scatter_patches(patches: Tensor, places: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Adjoint of ``gather_patches``: sums patches into zero images, in a fixed order.

    Args:
        patches: (B, K, h, w) floating point.
        places: (B, K, 3) int64, as for ``gather_patches``.
        shape: (C, H, W) of the images.
    Returns:
        (B, C, H, W).
    Raises:
        ArgumentError: dtype, device, shape or places that do not fit.
    """
    check_float("scatter_patches", "patches", patches, 4)
    require(len(shape) == 3 and min(shape) >= 1, "scatter_patches", "shape", "(C, H, W)", shape)
    _check_places(
        "scatter_patches", patches.shape[0], places, patches.shape[2:], shape, patches.device
    )
    require(places.shape[1] == patches.shape[1], "scatter_patches", "places",
            f"{patches.shape[1]} places an image", places.shape[1])  # fmt: skip
    return _scatter_op(patches, places, *shape)
