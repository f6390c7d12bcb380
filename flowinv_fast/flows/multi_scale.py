"""The multi-scale layout (Dinh, Sohl-Dickstein, Bengio, 2016) that RealNVP and Glow share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .._base.errors import is_whole
from .base import Layer
from .flow import FlowConfig
from .layers import AffineCoupling, FactorOut, Logit, Squeeze, Standardise


@dataclass(frozen=True)
class MultiScaleConfig(FlowConfig):
    """What fixes the layout, besides what every ``FlowConfig`` says.

    Args:
        scales: scales; H and W must be divisible by 2^(scales - 1).
        hidden: channels inside every conditioner.
        blocks: residual blocks of every conditioner.
    """

    scales: int = 3
    hidden: int = 64
    blocks: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require(
            is_whole(self.scales, 1) and self.scales <= 16, "scales", "an integer in 1..16"
        )
        factor = 2 ** (self.scales - 1)
        divisible = self.shape[1] % factor == 0 and self.shape[2] % factor == 0
        wanted = f"H and W divisible by {factor} for {self.scales} scales"
        self._require(divisible, "shape", wanted)
        self._require(self.hidden >= 1, "hidden", "an integer of at least 1")
        self._require(self.blocks >= 0, "blocks", "an integer of at least 0")


def multi_scale_layers(
    config: MultiScaleConfig,
    before_channel_coupling: Callable[[int], list[Layer[Any]]] = lambda channels: [],
    factor_out: Callable[[int], FactorOut] = lambda channels: FactorOut(),
    early_squeeze: bool = False,
) -> list[Layer[Any]]:
    """Layers in the order of encode.

    Per scale: three affine couplings with alternating checkerboard masks, squeeze, three with
    alternating channel masks, half of the channels factored out; the last scale has four
    checkerboard couplings. In front a logit, for bounded support, and the standardisation.

    Args:
        config: sizes.
        before_channel_coupling: what stands in front of every channel coupling, made of channels.
        factor_out: what lets half of the channels go, made of their number before.
        early_squeeze: the first scale, if it is not the last, is squeezed before its couplings, six
            with channel masks.
    """

    def coupling(channels: int, mask: str) -> AffineCoupling:
        return AffineCoupling(channels, config.hidden, config.blocks, mask)

    channels = config.shape[0]
    checkerboards = ("checkerboard_even", "checkerboard_odd") * 2
    halves = ("channel_first", "channel_second") * 3
    layers: list[Layer[Any]] = [Logit(config.alpha)] if config.support == "bounded" else []
    layers.append(Standardise(config.shape))
    for scale in range(config.scales - 1):
        squeezed = early_squeeze and scale == 0
        layers += [] if squeezed else [coupling(channels, mask) for mask in checkerboards[:3]]
        layers.append(Squeeze())
        for mask in halves[: 6 if squeezed else 3]:
            layers += before_channel_coupling(4 * channels)
            layers.append(coupling(4 * channels, mask))
        layers.append(factor_out(4 * channels))
        channels *= 2
    return layers + [coupling(channels, mask) for mask in checkerboards]
