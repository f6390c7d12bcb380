"""A multi-scale flow with 1x1 convolutions and learned priors (Kingma and Dhariwal, 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .base import Layer
from .conditioner import ResidualNetwork
from .flow import Flow
from .layers import ChannelMixing, FactorOut
from .multi_scale import MultiScaleConfig, multi_scale_layers


@dataclass(frozen=True)
class GlowConfig(MultiScaleConfig):
    """Everything that fixes the shape of a Glow.

    Args:
        shape: (C, H, W) of the images.
        scales: scales; H and W must be divisible by 2^(scales - 1).
        hidden: channels inside every conditioner.
        blocks: residual blocks of every conditioner.
        mixing: an invertible 1x1 convolution before every channel coupling.
        conditional_prior: mean and log-std of every latent that leaves early are functions of
            what stays.
        prior_hidden: channels inside the networks of these functions.
        prior_blocks: their residual blocks.
        early_squeeze: no couplings at full resolution: squeezed before the first.
        support, bits, alpha, smoothing: see ``FlowConfig``.
    Raises:
        ArgumentError: a value out of its range.

    Example:
        >>> import flowinv_fast as ff
        >>> config = ff.GlowConfig((3, 64, 64), hidden=32)
        >>> config.scales, config.mixing, config.prior_hidden
        (3, True, 32)
    """

    mixing: bool = True
    conditional_prior: bool = True
    prior_hidden: int = 32
    prior_blocks: int = 1
    early_squeeze: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(isinstance(self.mixing, bool), "mixing", "True or False")
        conditional = isinstance(self.conditional_prior, bool)
        self._require(conditional, "conditional_prior", "True or False")
        self._require(isinstance(self.early_squeeze, bool), "early_squeeze", "True or False")
        self._require(self.prior_hidden >= 1, "prior_hidden", "an integer of at least 1")
        self._require(self.prior_blocks >= 0, "prior_blocks", "an integer of at least 0")


def glow(config: GlowConfig) -> Flow:
    """The layout of a RealNVP with ``ChannelMixing`` before every channel coupling and a prior of
    every factored-out latent. It starts as a rotation of the image's pixels.

    Example:
        >>> import torch, flowinv_fast as ff
        >>> flow = ff.glow(ff.GlowConfig((3, 8, 8), scales=2, hidden=8, blocks=1))
        >>> flow.log_prob(torch.rand(4, 3, 8, 8)).shape
        torch.Size([4])
    """

    def factor_out(channels: int) -> FactorOut:
        if not config.conditional_prior:
            return FactorOut()
        hidden, blocks = config.prior_hidden, config.prior_blocks
        return FactorOut(ResidualNetwork(channels // 2, channels, hidden, blocks))

    def mixing(channels: int) -> list[Layer[Any]]:
        return [ChannelMixing(channels)] if config.mixing else []

    layers = multi_scale_layers(config, mixing, factor_out, config.early_squeeze)
    return Flow(layers, config)
