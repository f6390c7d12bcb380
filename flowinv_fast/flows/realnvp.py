"""Multi-scale RealNVP (Dinh, Sohl-Dickstein, Bengio, 2016) without batch normalisation."""

from __future__ import annotations

from dataclasses import dataclass

from .flow import Flow
from .multi_scale import MultiScaleConfig, multi_scale_layers


@dataclass(frozen=True)
class RealNVPConfig(MultiScaleConfig):
    """Everything that fixes the shape of a RealNVP.

    Args:
        shape: (C, H, W) of the images.
        scales: scales; H and W must be divisible by 2^(scales - 1).
        hidden: channels inside every conditioner.
        blocks: residual blocks of every conditioner.
        support, bits, alpha, smoothing: see ``FlowConfig``.
    Raises:
        ArgumentError: a value out of its range.

    Example:
        >>> import flowinv_fast as ff
        >>> config = ff.RealNVPConfig((1, 28, 28), hidden=32)
        >>> config.scales, config.blocks, config.support
        (3, 2, 'unbounded')
    """


def realnvp(config: RealNVPConfig) -> Flow:
    """A RealNVP at the identity: standardisation, then couplings scale by scale.

    Log-scales are bounded by learned gains, convolutions are weight-normalised; the layout is that
    of ``multi_scale_layers``.

    Example:
        >>> import torch, flowinv_fast as ff
        >>> flow = ff.realnvp(ff.RealNVPConfig((3, 8, 8), scales=2, hidden=8, blocks=1))
        >>> flow.log_prob(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4])
    """
    return Flow(multi_scale_layers(config), config)
