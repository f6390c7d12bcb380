"""Noise of measurements of any size, of a law of small tiles."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ArgumentError, require
from .._base.parameters import Fixed
from .._base.tensors import check_sizes
from .._base.tiles import AT_ONCE, Tiles, check_covered, check_stride, needed_bytes
from ..protocols import Freezable, NoiseModel, PerImage, Sampled, is_bounded, provides
from .correlated import LowRankGaussian, StationaryGaussian
from .distributions import FromDistribution, as_noise
from .flow import FlowNoise, PlacedFlowNoise
from .gaussian import Gaussian
from .law import Law
from .signal_dependent import SignalDependent

_NAME = "noise.Tiled"
_CHANCE = 1.0  # by which a fit to recordings that are alike everywhere may be uneven, generously


class Tiled(Fixed):
    """Noise of measurements of any size at least a tile's, of a law of tiles.

    log p(delta) = (1 / c) sum over k of log p_law(tile_k),  c = K h w / (H W)

    The K tiles (C, h, w) of a residual (C, H, W) stand on a grid of ``stride`` rows and columns,
    the last ones moved inwards so that every pixel is covered; c is the mean number of tiles over a
    pixel. So log p is H W / (h w) times the mean log p of a tile: it grows with the number of
    pixels, at any stride, and that of a single tile is the law's.

    With square tiles, their side as stride, and sides of the residual that are multiples of it,
    this is the density of independent tiles: all pixels count alike, correlations end at the seams.
    Else it is a density up to a constant, where a pixel counts by the number of tiles over it, over
    c: correlations reach over the seams, and pixels at the edges count less.

    It is for noise that is the same everywhere: the law has to be of pieces cut at any place, not
    of one place of a sensor. Refused are laws whose parameters say otherwise; of the weights of a
    flow nobody can tell. The gradient is computed with the value, some tiles at a time, so that
    beyond the residual's own memory does not grow with it. It reaches the residual, once: a second
    derivative raises.

    Args:
        law: a noise model of tiles with ``log_prob``, such as one that ``load_noise`` has of a
            training on pieces of recordings, or a torch.distributions Distribution; ``sample`` to
            draw. It is shared, not copied. Of noise that follows the signal tile the law inside:
            SignalDependent(Tiled(law.law, shape), law.signal, law.std).
        shape: of a tile, (C, h, w).
        stride: rows and columns from tile to tile, at most min(h, w); None: that (half of it takes
            four times as long and was no better where it was measured).
    Raises:
        ArgumentError: a law without log_prob, bounded, of another shape, or with parameters that
            differ from image to image or from place to place; another stride; at a call, residuals
            of other channels or smaller than a tile.

    >>> power = torch.full((1, 8, 8), 0.01)
    >>> model = Tiled(StationaryGaussian(power), (1, 8, 8))
    >>> model.log_prob(torch.zeros(2, 1, 21, 30)).shape
    torch.Size([2])
    >>> model.sample((2, 1, 21, 30)).shape
    torch.Size([2, 1, 21, 30])
    """

    fixed = ("law", "shape", "stride")

    def __init__(self, law: Any, shape: tuple[int, int, int], stride: int | None = None):
        law, own = as_noise(law), check_sizes(_NAME, "shape", shape, "(C, h, w)", (1, 1, 1))
        wanted, got = "a noise model of tiles, with log_prob(residual)", type(law).__name__
        if isinstance(law, SignalDependent):
            got += ": give SignalDependent(Tiled(law.law, shape), law.signal, law.std)"
        require(provides(law, NoiseModel), _NAME, "law", wanted, got)
        wanted = "a law with unbounded support"
        require(not is_bounded(law), _NAME, "law", wanted, "one of images in [0, 1]")
        side = min(own[1:])
        self.stride = check_stride(_NAME, stride, side, usual=side)
        _check_law(law, own)
        self.law, self.shape = law, own

    @property
    def multimodal(self) -> bool:
        """The law's; an AttributeError where it does not say."""
        return self.law.multimodal

    @property
    def saved_bytes(self) -> int:
        """What an image keeps for its gradient is the gradient: 0."""
        return 0

    @property
    def work_bytes(self) -> int:
        """Bytes that a call needs for its tiles, as far as the law tells."""
        law = self.law
        told = getattr(law, "saved_bytes", 0) + getattr(law, "work_bytes", 0)
        return needed_bytes(told, self.shape)

    def freeze(self, *, precision: str = "fp32") -> Tiled:
        """The same on the frozen law; itself where the law cannot be frozen."""
        if not provides(self.law, Freezable):
            return self
        own = copy.copy(self)
        vars(own)["law"] = self.law.freeze(precision=precision)
        return own

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.shape))
        return f"Tiled({self.law!r} of {size}, stride {self.stride})"

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, C, H, W) to (B,), in float32 (float64 for float64)."""
        log_prob, shape = self.law.log_prob, self.shape
        tiles = Tiles(f"{_NAME}.log_prob", "residual", "law", log_prob, shape, self.stride)
        return tiles.sum(residual)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W): tiles side by side, the last ones cut off at the ends.

        Whatever the stride is, they are independent of one another: there are seams between them.

        Raises:
            ArgumentError: another shape, or a law that cannot be drawn from.
        """
        name, shape = f"{_NAME}.sample", tuple(shape)
        if not provides(self.law, Sampled):
            wanted = "one with sample(shape, generator), to draw from"
            raise ArgumentError(name, "law", wanted, type(self.law).__name__)
        check_covered(name, "shape", shape, self.shape)
        (batch, channels, height, width), (h, w) = shape, self.shape[1:]
        down, across = -(-height // h), -(-width // w)
        count = batch * down * across
        parts = [min(AT_ONCE, count - first) for first in range(0, max(1, count), AT_ONCE)]
        draws = torch.cat([self.law.sample((n, *self.shape), generator) for n in parts])
        grid = draws.reshape(batch, down, across, channels, h, w).permute(0, 3, 1, 4, 2, 5)
        whole = grid.reshape(batch, channels, down * h, across * w)
        return whole[:, :, :height, :width].contiguous()


def _check_law(law: Any, shape: tuple[int, ...]) -> None:
    """Refuse a law of other tiles, or one that is not the same for all tiles and all over them."""
    wanted = "a law that is the same for all images and at all places of a tile"
    per_image = provides(law, PerImage) and not isinstance(law, Law)
    require(not per_image, _NAME, "law", wanted, "one with select, for rows per image")
    require(not isinstance(law, PlacedFlowNoise), _NAME, "law", wanted, "one with places")
    if isinstance(law, FlowNoise):
        law, own = law.whitening, getattr(law.flow, "shape", shape)
    else:
        own = law.shape if isinstance(law, (StationaryGaussian, LowRankGaussian)) else shape
    require(tuple(own) == shape, _NAME, "shape", f"the law's, {tuple(own)}", shape)
    if isinstance(law, FromDistribution):
        sizes = (*law.distribution.batch_shape, *law.distribution.event_shape)
        good = all(n == 1 for n in (*sizes[:-3], *sizes[-2:]))  # but for rows of channels
        require(good, _NAME, "law", wanted, f"a distribution of shape {sizes}")
    if isinstance(law, (Gaussian, StationaryGaussian, LowRankGaussian)):
        offset, spread = _unevenness(law, torch.zeros(1, *shape, dtype=torch.float64))
        most = 0.0 if isinstance(law, Gaussian) else _CHANCE
        got = f"means {offset:.3g} standard deviations apart"
        require(offset <= most, _NAME, "law", wanted, got)
        got = f"standard deviations that differ by a factor of {1 + spread:.3g}"
        require(spread <= most, _NAME, "law", wanted, got)


def _unevenness(law: Any, tile: Tensor) -> tuple[float, float]:
    """How far apart a law's means are over the places of a tile, in standard deviations, and the
    ratio of the largest to the smallest standard deviation, less one."""
    if isinstance(law, StationaryGaussian):
        variance = law.power.double().mean((-2, -1), keepdim=True).to(tile)
    elif isinstance(law, LowRankGaussian):
        variance = law.diagonal + law.factor.double().square().sum(0)
    else:
        variance = law.std_like(tile).square()
    std = variance.to(tile).expand(tile.shape).sqrt()
    mean = law._like("mean", tile).expand(tile.shape)
    apart = lambda v: v.amax((-2, -1)) - v.amin((-2, -1))
    offset = apart(mean) / std.mean((-2, -1))
    return float(offset.max()), float((apart(std) / std.amin((-2, -1))).max())
