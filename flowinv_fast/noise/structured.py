"""Gaussian noise whose standard deviation follows a pattern."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.tensors import check_positive, cut
from .gaussian import Gaussian


class _Patterned(Gaussian):
    """Standard deviations from ``ops.sigma_map``; residuals are (B, C, H, W) or (B, m)."""

    kind: str

    def __init__(
        self, level: float | Tensor, mean: float, rate: float, floor: float, ceiling: float
    ):
        name = type(self).__name__
        check_positive(name, "level", level)
        require(rate > 0, name, "rate", "a positive number", rate)
        require(0 <= floor <= ceiling, name, "floor", f"a number in 0 .. {ceiling}", floor)
        self.level, self.mean = level, mean
        self.rate, self.floor, self.ceiling = rate, floor, ceiling
        self._copies = {}
        self._kept: tuple[tuple, Tensor] | None = None

    def select(self, part: slice, shape: tuple[int, ...]) -> _Patterned:
        """The noise of some images, of a batch of measurements of this shape (B, ...)."""
        own = copy.copy(self)
        own._copies, own._kept = {}, None
        own.level, own.mean = cut(self.level, part, shape[:1]), cut(self.mean, part, shape)
        return own

    def std_like(self, residual: Tensor) -> Tensor:
        """Standard deviations (1 or B, ...) for a residual (B, C, H, W), or (B, m): m rows."""
        good, name = residual.dim() in (2, 4), f"{type(self).__name__}.log_prob"
        require(good, name, "residual", "shape (B, C, H, W) or (B, m)", tuple(residual.shape))
        key, kept = (residual.shape[1:], residual.dtype, residual.device), self._kept
        if kept is None or kept[0] != key:
            level = torch.as_tensor(self.level, dtype=residual.dtype, device=residual.device)
            shape = tuple(residual.shape[1:])
            shape = shape if len(shape) == 3 else (1, shape[0], 1)
            std = ops.sigma_map(
                level.reshape(-1), shape, self.kind, self.rate, self.floor, self.ceiling
            )
            kept = self._kept = (key, std if residual.dim() == 4 else std.flatten(1))
        return kept[1]


class Sinusoidal(_Patterned):
    """Every pixel of row k has the same sigma_k, an exponential of a sinusoid (docs/method.md, 4).

    form "exp": sigma_k = level exp(sin(2 pi k / period)) / e;
    form "expm1": sigma_k = level (exp(sin(2 pi k / period)) - 1) / (e - 1), where half of the rows
    sit on the floor. They are different tasks; name the form in every report.

    Args:
        level: c; a number or one per image (B,).
        mean: added to every element.
        form: "exp" or "expm1".
        period: rows per period.
        floor, ceiling: sigma is clamped to this range.
    Raises:
        ArgumentError: an argument outside its range.

    >>> Sinusoidal(0.2).std_like(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([1, 1, 8, 8])
    """

    def __init__(
        self,
        level: float | Tensor = 0.1,
        mean: float = 0.0,
        form: str = "exp",
        period: float = 16.0,
        floor: float = 0.001,
        ceiling: float = 1.0,
    ):
        require(form in ("exp", "expm1"), "Sinusoidal", "form", "'exp' or 'expm1'", repr(form))
        self.kind = f"sinusoidal_{form}"
        super().__init__(level, mean, period, floor, ceiling)

    @classmethod
    def measurements(
        cls, level: float = 1.0, mean: float = 0.0, period: float = 16.0
    ) -> Sinusoidal:
        """The noise of compressed-sensing measurements (B, m), or of any (B, C, H, W) by rows.

        sigma_k proportional to exp(sin(2 pi k / period)), the largest variance being ``level``.
        """
        check_positive("Sinusoidal.measurements", "level", level)
        return cls(math.sqrt(level), mean, "exp", period, 0.0, math.inf)


class Radial(_Patterned):
    """sigma = level exp(-rate d^2), d the distance in pixels from ((H - 1) // 2, (W - 1) // 2).

    Args:
        level: sigma at the centre; a number or one per image (B,).
        mean: added to every element.
        rate: decay per squared pixel.
        floor, ceiling: sigma is clamped to this range.
    Raises:
        ArgumentError: an argument outside its range.

    >>> Radial().std_like(torch.zeros(2, 1, 8, 8)).amax()
    tensor(1.)
    """

    kind = "radial"

    def __init__(
        self,
        level: float | Tensor = 1.0,
        mean: float = 0.0,
        rate: float = 0.005,
        floor: float = 0.001,
        ceiling: float = 1.0,
    ):
        super().__init__(level, mean, rate, floor, ceiling)
