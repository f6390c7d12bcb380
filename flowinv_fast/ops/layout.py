"""Squeeze, unsqueeze and factoring out of a multi-scale flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._base.errors import require
from .._base.tensors import check_float, check_like
from ._register import no_context, register_kernel

# --- twins ------------------------------------------------------------------------------------


def _squeeze_twin(x: Tensor) -> Tensor:
    """[B, C, H, W] to [B, 4C, H/2, W/2]; channel 4c + 2i + j holds pixel (2h + i, 2w + j) of c."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 1, 3, 5, 2, 4).reshape(batch, 4 * channels, height // 2, width // 2)


def _unsqueeze_twin(x: Tensor) -> Tensor:
    """Inverse of squeeze: [B, 4C, H, W] to [B, C, 2H, 2W]."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels // 4, 2, 2, height, width)
    return blocks.permute(0, 1, 4, 2, 5, 3).reshape(batch, channels // 4, 2 * height, 2 * width)


# --- ops --------------------------------------------------------------------------------------


def _squeezed(x: Tensor) -> Tensor:
    return x.new_empty(_squeezed_sizes(x))


def _unsqueezed(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, channels // 4, 2 * height, 2 * width)


def _squeezed_sizes(x: Tensor) -> tuple[int, int, int, int]:
    batch, channels, height, width = x.shape
    return batch, 4 * channels, height // 2, width // 2


def _squeeze_backward(ctx: Any, grad: Tensor) -> Tensor:
    return _unsqueeze(grad)


def _unsqueeze_backward(ctx: Any, grad: Tensor) -> Tensor:
    return _squeeze(grad)


_squeeze: Callable = register_kernel(
    "squeeze(Tensor x) -> Tensor out",
    "squeeze",
    _squeeze_twin,
    _squeezed,
    sizes=_squeezed_sizes,
    constants={"to_squeezed": True},
    setup_context=no_context,
    backward=_squeeze_backward,
)
_unsqueeze: Callable = register_kernel(
    "unsqueeze(Tensor x) -> Tensor out",
    "squeeze",
    _unsqueeze_twin,
    _unsqueezed,
    sizes=lambda x: x.shape,
    constants={"to_squeezed": False},
    setup_context=no_context,
    backward=_unsqueeze_backward,
)

# --- public functions -------------------------------------------------------------------------


def squeeze(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 4C, H/2, W/2): channel 4c + 2i + j holds pixel (2h + i, 2w + j) of c.

    Raises:
        ArgumentError: not a floating-point image batch, or odd H or W.

    >>> squeeze(torch.arange(8.0).view(1, 1, 2, 4)).tolist()
    [[[[0.0, 2.0]], [[1.0, 3.0]], [[4.0, 6.0]], [[5.0, 7.0]]]]
    """
    check_float("squeeze", "x", x, 4)
    even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
    require(even, "squeeze", "x", "even height and width", tuple(x.shape))
    return _squeeze(x)


def unsqueeze(x: Tensor) -> Tensor:
    """Inverse of ``squeeze``: (B, 4C, H, W) to (B, C, 2H, 2W).

    Raises:
        ArgumentError: not a floating-point image batch, or channels no multiple of 4.

    >>> unsqueeze(torch.arange(4.0).view(1, 4, 1, 1)).tolist()
    [[[[0.0, 1.0], [2.0, 3.0]]]]
    """
    check_float("unsqueeze", "x", x, 4)
    require(x.shape[1] % 4 == 0, "unsqueeze", "x", "channels in a multiple of 4", tuple(x.shape))
    return _unsqueeze(x)


def factor_out(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, C, H, W) into what goes on (B, C/2, H, W) and the latent (B, C/2 H W).

    The latent is the second half of the channels. Both are views of x where x is contiguous:
    nothing is copied.

    Raises:
        ArgumentError: not a floating-point image batch, or an odd number of channels.

    >>> factor_out(torch.arange(4.0).view(1, 2, 1, 2))
    (tensor([[[[0., 1.]]]]), tensor([[2., 3.]]))
    """
    check_float("factor_out", "x", x, 4)
    require(x.shape[1] % 2 == 0, "factor_out", "x", "an even number of channels", tuple(x.shape))
    kept, latent = x.chunk(2, dim=1)
    return kept, latent.flatten(1)


def factor_in(kept: Tensor, latent: Tensor) -> Tensor:
    """Inverse of ``factor_out``: (B, C, H, W) and (B, C H W) to (B, 2C, H, W), one copy.

    Raises:
        ArgumentError: shapes, dtypes or devices that do not belong together.

    >>> factor_in(torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[2.0, 3.0]])).tolist()
    [[[[0.0, 1.0]], [[2.0, 3.0]]]]
    """
    check_float("factor_in", "kept", kept, 4)
    check_like("factor_in", "latent", latent, kept, (len(kept), math.prod(kept.shape[1:])))
    return torch.cat([kept, latent.reshape(kept.shape)], 1)
