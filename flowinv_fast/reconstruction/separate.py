"""Two sources from one mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._base.errors import is_real, require
from ..noise import FlowNoise
from ..operators import Scale
from ..protocols import Flow
from . import checks as check
from .objectives import MAP, OBJECTIVES
from .reconstruct import reconstruct


def separate(
    y: Tensor,
    sources: Sequence[Flow],
    weights: Sequence[float] = (1.0, 1.0),
    *,
    objective: str | MAP = "map-image",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Two sources from their mixture y = w1 x1 + w2 x2: the most probable pair.

    Signal and noise are symmetric: this is ``reconstruct`` with the second source as the noise of
    the first (Whang, Lei, Dimakis, 2021, on blind source separation), in image space, so that
    exchanging sources and weights changes the answer only as far as starts and annealing differ.

    Args:
        y: mixtures (B, C, H, W).
        sources: two flows over such images; the second with unbounded support.
        weights: w1 and w2, not zero.
        objective: "map-image", "map", or a ``MAP``, which weighs both sources.
        options: further ones of ``reconstruct``.
    Returns:
        x1 and x2, (B, C, H, W) each; w1 x1 + w2 x2 equals y.
    Raises:
        ArgumentError: other than two sources and weights, another objective, or what
            ``noise.FlowNoise`` and ``reconstruct`` refuse.

    >>> import torch, flowinv_fast as ff
    >>> flows = ff.load_flow("fashion-28"), ff.load_flow("digits-noise-28")
    >>> x1, x2 = separate(torch.rand(2, 1, 28, 28), flows, (1.0, 0.5), steps=2)
    >>> x2.shape
    torch.Size([2, 1, 28, 28])
    """
    name = "separate"
    check.measurement(name, y)
    two = lambda pair: hasattr(pair, "__len__") and len(pair) == 2
    require(two(sources), name, "sources", "two flows", type(sources).__name__)
    good = two(weights) and all(is_real(w) and w != 0 for w in weights)
    require(good, name, "weights", "two numbers that are not zero", weights)
    chosen = OBJECTIVES.get(objective) if isinstance(objective, str) else objective
    wanted = "'map-image', 'map' or a MAP"
    require(isinstance(chosen, MAP), name, "objective", wanted, repr(objective))
    first, second = weights
    noise = FlowNoise(sources[1], abs(second))
    sign = 1.0 if second > 0 else -1.0
    found = reconstruct(
        sign * y, Scale(sign * first), sources[0], noise, objective=objective, **options
    )
    return found.x, sign * found.noise / second
