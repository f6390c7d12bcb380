"""Two sources from one mixture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._base.errors import require
from ..noise import Flow
from ..operators import Scale
from . import checks as check
from .reconstruct import reconstruct


def separate(
    y: Tensor,
    sources: Sequence[Any],
    weights: Sequence[float] = (1.0, 1.0),
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
        options: of ``reconstruct``; ``method`` is "map_image" unless "map_latent" is given.
    Returns:
        x1 and x2, (B, C, H, W) each; w1 x1 + w2 x2 equals y.
    Raises:
        ArgumentError: other than two sources and weights, a method that does not weigh both
            sources, or what ``noise.Flow`` and ``reconstruct`` refuse.
    """
    check.measurement(y)
    two = lambda pair: hasattr(pair, "__len__") and len(pair) == 2
    require(two(sources), "separate", "sources", "two flows", type(sources).__name__)
    real = lambda w: isinstance(w, (int, float)) and math.isfinite(w) and w != 0
    good = two(weights) and all(real(w) for w in weights)
    require(good, "separate", "weights", "two numbers that are not zero", weights)
    options = {"method": "map_image", **options}
    require(options["method"] in ("map_image", "map_latent"), "separate", "method",
            "'map_image' or 'map_latent'", repr(options["method"]))  # fmt: skip
    first, second = weights
    law = Flow(sources[1], abs(second))
    sign = math.copysign(1.0, second)
    found = reconstruct(sign * y, Scale(sign * first), sources[0], law, **options)
    return found.x, sign * found.noise / second
