"""Patches at places of images, and the sum of placed patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._base.errors import require
from .._base.tensors import check_dense, check_float, check_sizes
from ._register import register_kernel

# --- twins ------------------------------------------------------------------------------------


def _gather_twin(image: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """Patches of an image [B, C, H, W] at places [B, K, 3] = (channel, row, column), int64.

    Returns [B, K, height, width]. Places must lie inside the image.
    """
    batch = torch.arange(image.shape[0], device=image.device).view(-1, 1, 1, 1)
    channel, row, column = (places[..., i, None, None] for i in range(3))
    rows = row + torch.arange(height, device=image.device).view(-1, 1)
    columns = column + torch.arange(width, device=image.device)
    return image[batch, channel, rows, columns]


def scatter_twin(patches: Tensor, places: Tensor, channels: int, height: int, width: int) -> Tensor:
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


# --- ops --------------------------------------------------------------------------------------


def _gather_outputs(source: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    return source.new_empty(*places.shape[:2], height, width)


def _scatter_outputs(
    source: Tensor, places: Tensor, channels: int, height: int, width: int
) -> Tensor:
    return source.new_empty(source.shape[0], channels, height, width)


def _gather_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.image = inputs[0].shape[1:]


def _gather_backward(ctx: Any, grad: Tensor) -> tuple:
    return _scatter_op(grad, ctx.saved_tensors[0], *ctx.image), None, None, None


def _scatter_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.patch = inputs[0].shape[2:]


def _scatter_backward(ctx: Any, grad: Tensor) -> tuple:
    return _gather_op(grad, ctx.saved_tensors[0], *ctx.patch), None, None, None, None


_gather_op: Callable = register_kernel(
    "gather_patches(Tensor source, Tensor places, SymInt patch_height, SymInt patch_width)"
    " -> Tensor out",
    "patches",
    _gather_twin,
    _gather_outputs,
    sizes=lambda source, places, *_: (*places.shape[:2], *source.shape[1:]),
    constants={"scatter": False},
    setup_context=_gather_context,
    backward=_gather_backward,
)
_scatter_op: Callable = register_kernel(
    "scatter_patches(Tensor source, Tensor places, SymInt channels, SymInt height, SymInt width)"
    " -> Tensor out",
    "patches",
    scatter_twin,
    _scatter_outputs,
    sizes=lambda source, places, *_: (*places.shape[:2], *source.shape[2:]),
    constants={"scatter": True},
    setup_context=_scatter_context,
    backward=_scatter_backward,
)

# --- public functions -------------------------------------------------------------------------


def _check_places(
    function: str,
    batch: int,
    places: Tensor,
    size: Sequence[int],
    shape: Sequence[int],
    device: torch.device,
) -> None:
    check_dense(function, "places", places)
    good = places.dtype == torch.int64 and places.dim() == 3
    good = good and places.shape[0] == batch and places.shape[2] == 3
    got = f"{places.dtype} of {tuple(places.shape)}"
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
        wanted = f"(channel, row, column) in 0 .. {last.tolist()}"
        require(inside, function, "places", wanted, "places outside the image")


def gather_patches(image: Tensor, places: Tensor, size: tuple[int, int]) -> Tensor:
    """Patches of images at given places; the gradient is ``scatter_patches``.

    Args:
        image: (B, C, H, W) floating point.
        places: (B, K, 3) int64: channel, top row, left column; patches lie inside the image.
        size: (h, w) of a patch.
    Returns:
        (B, K, h, w), dtype of the image.
    Raises:
        ArgumentError: dtype, device, shape or places that do not fit.

    >>> image, places = torch.arange(9.0).view(1, 1, 3, 3), torch.tensor([[[0, 1, 1]]])
    >>> gather_patches(image, places, (2, 2)).tolist()
    [[[[4.0, 5.0], [7.0, 8.0]]]]
    """
    check_float("gather_patches", "image", image, 4)
    sizes = check_sizes("gather_patches", "size", size, "(h, w)", (1, 1))
    _check_places("gather_patches", image.shape[0], places, sizes, image.shape[1:], image.device)
    return _gather_op(image, places, *sizes)


def scatter_patches(patches: Tensor, places: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Adjoint of ``gather_patches``: sums patches into zero images, in a fixed order.

    Args:
        patches: (B, K, h, w) floating point.
        places: (B, K, 3) int64, as for ``gather_patches``.
        shape: (C, H, W) of the images.
    Returns:
        (B, C, H, W), dtype of the patches; zero where no patch lies.
    Raises:
        ArgumentError: dtype, device, shape or places that do not fit.

    >>> places = torch.tensor([[[0, 0, 0], [0, 0, 1]]])  # two patches that share a pixel
    >>> scatter_patches(torch.ones(1, 2, 1, 2), places, (1, 1, 3)).tolist()
    [[[[1.0, 2.0, 1.0]]]]
    """
    check_float("scatter_patches", "patches", patches, 4)
    sizes = check_sizes("scatter_patches", "shape", shape, "(C, H, W)", (1, 1, 1))
    _check_places(
        "scatter_patches", patches.shape[0], places, patches.shape[2:], sizes, patches.device
    )
    count = patches.shape[1]
    wanted = f"{count} places an image"
    require(places.shape[1] == count, "scatter_patches", "places", wanted, places.shape[1])
    return _scatter_op(patches, places, *sizes)
