"""BM3D (Dabov et al., 2007), from deepinv's torch implementation."""

from __future__ import annotations

import torch
from torch import Tensor

from .._base.errors import ArgumentError, require


def bm3d(y: Tensor, std: float | Tensor) -> Tensor:
    """Denoise images by block matching and 3-D filtering, for white Gaussian noise of known level.

    Args:
        y: noisy images (B, C, H, W) of about [0, 1], floating point, H and W at least 8.
        std: of the noise, in the units of y; a number, or one per image (B,).
    Returns:
        Images like y, computed in float32. No gradient.
    Raises:
        ArgumentError: y or std of another shape, or std negative.
        ImportError: deepinv or ptwt is missing (``pip install 'flowinv_fast[baselines]'``).

    >>> noisy = 0.5 + 0.1 * torch.randn(2, 1, 16, 16)
    >>> bm3d(noisy, std=0.1).std() < noisy.std()  # doctest: +SKIP
    tensor(True)
    """
    good = isinstance(y, Tensor) and y.dim() == 4 and y.is_floating_point()
    good = good and min(y.shape[2:]) >= 8
    wanted = "images (B, C, H, W) of 8 x 8 or more"
    require(good, "bm3d", "y", wanted, getattr(y, "shape", type(y)))
    wanted = f"a number of at least 0, or ({y.shape[0]},)"
    try:
        levels = torch.as_tensor(std, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentError("bm3d", "std", wanted, repr(std)) from None
    good = levels.dim() == 0 or levels.shape == y.shape[:1]
    good = good and bool((levels >= 0).all()) and bool(torch.isfinite(levels).all())
    require(good, "bm3d", "std", wanted, std)
    try:
        from deepinv.models import BM3D

        model = BM3D(use_legacy=False, ref_stride=1, device=y.device)  # the one in torch
    except ImportError as error:  # deepinv, or the ptwt that it needs here
        raise ImportError(
            "bm3d needs deepinv and ptwt: pip install 'flowinv_fast[baselines]'"
        ) from error
    if len(y) == 0:
        return y.clone()
    with torch.no_grad():
        each = levels.expand(len(y)).tolist()
        return torch.cat([model(x[None].float(), s) for x, s in zip(y, each)]).to(y)
