"""Image quality: PSNR here, everything else from its package."""

from __future__ import annotations

from torch import Tensor

from .errors import require


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (B,): -10 log10 mean((clip(x) - truth)^2).

    Args:
        x: reconstructions (B, C, H, W), clipped to [0, 1] here.
        truth: images (B, C, H, W) in [0, 1].
    Raises:
        ArgumentError: shapes that differ.
    """
    same = x.shape == truth.shape and x.dim() >= 2
    require(same, "psnr", "x", f"shape {tuple(truth.shape)}", tuple(x.shape))
    error = (x.clamp(0, 1) - truth).square().flatten(1).mean(1)
    return -10 * error.log10()
