"""PSNR and the interval of a mean; every other measure of images is its package's."""

from __future__ import annotations

import math

import numpy as np
import scipy.stats
from torch import Tensor

from ._base.errors import require


def psnr(x: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, (B,): -10 log10 mean((clip(x) - truth)^2).

    Args:
        x: reconstructions (B, C, H, W), clipped to [0, 1] here.
        truth: images (B, C, H, W) in [0, 1].
    Raises:
        ArgumentError: shapes that differ.

    >>> import torch
    >>> psnr(torch.full((1, 1, 2, 2), 0.6), torch.full((1, 1, 2, 2), 0.5)).round().tolist()
    [20.0]
    """
    same = x.shape == truth.shape and x.dim() >= 2
    require(same, "psnr", "x", f"shape {tuple(truth.shape)}", tuple(x.shape))
    error = (x.clamp(0, 1) - truth).square().flatten(1).mean(1)
    return -10 * error.log10()


def interval(values: np.ndarray, level: float = 0.95) -> float:
    """Half width of Student's confidence interval of the mean; NaN for fewer than two values.

    >>> round(interval(np.array([1.0, 2.0, 3.0])), 3)
    2.484
    """
    if len(values) < 2:
        return math.nan
    quantile = scipy.stats.t.ppf(0.5 + level / 2, len(values) - 1)
    return float(quantile * values.std(ddof=1) / math.sqrt(len(values)))
