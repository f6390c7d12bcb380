"""Squeeze, unsqueeze and factoring out of a multi-scale flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import require
from . import reference
from ._register import check_float, check_like, register


def _move(x: Tensor, out: Tensor, to_squeezed: bool) -> Tensor:
    x = backend.batch_view(x)
    batch, channels, height, width = (out if to_squeezed else x).shape
    backend._C.squeeze(
        to_squeezed, batch, channels, height, width, max(x.stride(0), x[:1].numel()),
        backend.span(x), backend.arg(out), backend.place(x),
    )  # fmt: skip
    return out


def _squeezed(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, 4 * channels, height // 2, width // 2)


def _unsqueezed(x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return x.new_empty(batch, channels // 4, 2 * height, 2 * width)


def _no_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
    pass


_squeeze = register(
    "squeeze(Tensor x) -> Tensor",
    lambda x: _move(x, _squeezed(x), True) if backend.native(x) else reference.squeeze(x),
    _squeezed,
    setup_context=_no_context,
    backward=lambda ctx, grad: _unsqueeze(grad),
)
_unsqueeze = register(
    "unsqueeze(Tensor x) -> Tensor",
    lambda x: _move(x, _unsqueezed(x), False) if backend.native(x) else reference.unsqueeze(x),
    _unsqueezed,
    setup_context=_no_context,
    backward=lambda ctx, grad: _squeeze(grad),
)


def squeeze(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, 4C, H/2, W/2): channel 4c + 2i + j holds pixel (2h + i, 2w + j) of c.

    Raises:
        ArgumentError: not a floating-point image batch, or odd H or W.
    """
    check_float("squeeze", "x", x, 4)
    require(x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0, "squeeze", "x", "even height and width",
            tuple(x.shape))  # fmt: skip
    return _squeeze(x)


def unsqueeze(x: Tensor) -> Tensor:
    """Inverse of ``squeeze``: (B, 4C, H, W) to (B, C, 2H, 2W).

    Raises:
        ArgumentError: not a floating-point image batch, or channels no multiple of 4.
    """
    check_float("unsqueeze", "x", x, 4)
    require(x.shape[1] % 4 == 0, "unsqueeze", "x", "channels in a multiple of 4", tuple(x.shape))
    return _unsqueeze(x)


def factor_out(x: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, C, H, W) into what goes on (B, C/2, H, W) and the latent (B, C/2 H W).

    Both are views of x where x is contiguous: nothing is copied.

    Raises:
        ArgumentError: not a floating-point image batch, or odd channels.
    """
    check_float("factor_out", "x", x, 4)
    require(x.shape[1] % 2 == 0, "factor_out", "x", "an even number of channels", tuple(x.shape))
    kept, latent = x.chunk(2, dim=1)
    return kept, latent.flatten(1)


def factor_in(kept: Tensor, latent: Tensor) -> Tensor:
    """Inverse of ``factor_out``: (B, C, H, W) and (B, C H W) to (B, 2C, H, W), one copy.

    Raises:
        ArgumentError: shapes, dtypes or devices that do not belong together.
    """
    check_float("factor_in", "kept", kept, 4)
    check_like("factor_in", "latent", latent, kept, (len(kept), math.prod(kept.shape[1:])))
    return torch.cat([kept, latent.reshape(kept.shape)], 1)
