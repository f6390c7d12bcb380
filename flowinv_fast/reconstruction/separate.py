"""Two sources from one mixture."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ArgumentError, is_real, require
from ..noise import FlowNoise
from ..noise.law import drawable, drawn_at
from ..operators import Scale
from ..protocols import Density, Flow, Freezable, OnePass, PerImage, provides
from . import checks as check
from .objectives import MAP, OBJECTIVES
from .reconstruct import reconstruct
from .result import Reconstruction


@dataclass(frozen=True)
class Separation:
    """What ``separate`` returns.

    Attributes:
        x1, x2: the sources, (B, C, H, W) each; w1 x1 + w2 x2 equals y.
        found: the solve: ``found.status`` says how each pair ended, and ``found.misfit``,
            ``found.gain`` and their like whether it can be trusted. In it the first source is the
            image and the second the noise: ``found.log_prior`` and ``found.log_noise`` are their
            log densities, the second that of w2 x2.
    """

    x1: Tensor
    x2: Tensor
    found: Reconstruction


def separate(
    y: Tensor,
    sources: Sequence[Flow | Any],
    weights: Sequence[float] = (1.0, 1.0),
    *,
    objective: str | MAP = "map-image",
    **options: Any,
) -> Separation:
    """Two sources from their mixture y = w1 x1 + w2 x2: the most probable pair.

    Signal and noise are symmetric: this is ``reconstruct`` with the second source as the noise of
    the first (Whang, Lei, Dimakis, 2021, on blind source separation), in image space, so that
    exchanging sources and weights changes the answer only as far as starts and annealing differ.

    Args:
        y: mixtures (B, C, H, W).
        sources: two flows over such images; the second with unbounded support. Or, as the second, a
            law that depends on the first source, with ``log_likelihood`` alone: x2 is a draw of it
            at the clean signal x1, such as a ``noise.SignalDependent``.
        weights: w1 and w2, not zero.
        objective: "map-image", "map", or a ``MAP``, which weighs both sources.
        options: further ones of ``reconstruct``.
    Returns:
        Separation: x1, x2, and the ``Reconstruction`` with its status.
    Raises:
        ArgumentError: other than two sources and weights, another objective, or what
            ``noise.FlowNoise`` and ``reconstruct`` refuse.

    >>> import torch, flowinv_fast as ff
    >>> flows = ff.load_flow("fashion-28"), ff.load_flow("digits-noise-28")
    >>> pair = separate(torch.rand(2, 1, 28, 28), flows, (1.0, 0.5), steps=2)
    >>> pair.x2.shape, len(pair.found.status)
    (torch.Size([2, 1, 28, 28]), 2)
    """
    name = "separate"
    check.measurement(name, y)
    two = lambda pair: hasattr(pair, "__len__") and len(pair) == 2
    require(two(sources), name, "sources", "two flows", type(sources).__name__)
    source: Any
    prior, source = sources
    check.density(name, prior, "sources")
    follows = provides(source, OnePass) and not provides(source, Density)
    if not follows:
        check.density(name, source, "sources")
    good = two(weights) and all(is_real(w) and w != 0 for w in weights)
    require(good, name, "weights", "two numbers that are not zero", weights)
    chosen = OBJECTIVES.get(objective) if isinstance(objective, str) else objective
    wanted = "'map-image', 'map' or a MAP"
    require(isinstance(chosen, MAP), name, "objective", wanted, repr(objective))
    first, second = weights
    sign = 1.0 if second > 0 else -1.0
    if follows:
        noise: Any = _Following(source, sign * first, abs(second))
    else:
        noise = FlowNoise(source, abs(second))
    found = reconstruct(sign * y, Scale(sign * first), prior, noise, objective=objective, **options)
    return Separation(found.x, sign * found.noise / second, found)


class _Following:
    """w2 x2 as the noise of w1 x1, of a source x2 whose law depends on x1.

    log p(w2 x2 | w1 x1) = log p_source(x1 + x2 | x1) - N log w2.

    Args:
        source: with ``log_likelihood``.
        first, second: w1, not zero, and w2, positive.
    """

    def __init__(self, source: Any, first: float, second: float):
        self.source, self.first, self.second = source, first, second
        self.multimodal = getattr(source, "multimodal", None)

    def _of(self, source: Any) -> _Following:
        own = copy.copy(self)
        own.source = source
        return own

    def select(self, part: slice, shape: tuple[int, ...]) -> _Following:
        """The same for some of the images."""
        able = provides(self.source, PerImage)
        return self._of(self.source.select(part, shape)) if able else self

    def freeze(self, *, precision: str) -> _Following:
        """The same on a frozen source; itself where that cannot be frozen."""
        able = provides(self.source, Freezable)
        return self._of(self.source.freeze(precision=precision)) if able else self

    def log_likelihood(self, y: Tensor, fx: Tensor) -> Tensor:
        """log p of y - fx = w2 x2 at fx = w1 x1."""
        x1, size = fx / self.first, math.prod(fx.shape[1:])
        value = self.source.log_likelihood(x1 + (y - fx) / self.second, x1)
        return value - size * math.log(self.second)

    def draw(self, fx: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of w2 x2 at fx = w1 x1."""
        if not drawable(self.source):
            raise ArgumentError("separate", "sources", "one to draw from", repr(self.source)[:80])
        return self.second * drawn_at(self.source, fx / self.first, generator)
