"""Gaussian noise whose standard deviation follows a pattern."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.parameters import fitted, number, numbers
from .gaussian import Gaussian
from .law import Law


class _Patterned(Gaussian):
    """Standard deviations from ``ops.sigma_map``; residuals are (B, C, H, W) or (B, m)."""

    fixed = ("level", "mean", "kind", "rate", "floor", "ceiling")
    kind: str
    level: float | Tensor

    def __init__(self, level: Any, mean: Any, rate: float, floor: float, ceiling: float):
        name = self._name
        level = numbers(name, "level", level, positive=True)
        if isinstance(level, Tensor):
            one = math.prod(level.shape[1:]) == 1
            require(one, name, "level", "a number or one per image (B,)", tuple(level.shape))
            level = level.item() if level.numel() == 1 else level.flatten()
        Law.__init__(self, level=level, mean=numbers(name, "mean", mean))
        self.rate = number(name, "rate", rate, positive=True)
        self.floor = number(name, "floor", floor)
        good = isinstance(ceiling, (int, float)) and not isinstance(ceiling, bool) and ceiling > 0
        require(good, name, "ceiling", "a positive number, or infinity", ceiling)
        self.ceiling = float(ceiling)
        good = 0 <= self.floor <= self.ceiling
        require(good, name, "floor", f"a number in 0 .. {ceiling}", floor)

    def std_like(self, residual: Tensor) -> Tensor:
        """Standard deviations (1 or B, ...) for a residual (B, C, H, W), or (B, m): m rows."""
        name = f"{self._name}.log_prob"
        good = residual.dim() in (2, 4)
        require(good, name, "residual", "shape (B, C, H, W) or (B, m)", tuple(residual.shape))
        level = self._numbers["level"]
        if isinstance(level, Tensor):  # by its one dimension, the batch's
            level = fitted(self._name, "level", level, residual.shape[:1], self._rows)
        shape, dtype, device = residual.shape[1:], residual.dtype, residual.device

        def make() -> Tensor:
            levels = torch.as_tensor(level, dtype=dtype, device=device).reshape(-1)
            sizes = (shape[0], shape[1], shape[2]) if len(shape) == 3 else (1, shape[0], 1)
            std = ops.sigma_map(levels, sizes, self.kind, self.rate, self.floor, self.ceiling)
            good = bool(((std > 0) & std.isfinite()).all())
            wanted = f"one that leaves every standard deviation positive in {dtype}"
            require(good, self._name, "floor", wanted, self.floor)
            return std if len(shape) == 3 else std.flatten(1)

        return self._once(("std", shape, dtype, device), make)


class Sinusoidal(_Patterned):
    """Every pixel of row k has the same sigma_k, an exponential of a sinusoid (docs/method.md, 4).

    form "exp": sigma_k = level exp(sin(2 pi k / period)) / e;
    form "expm1": sigma_k = level (exp(sin(2 pi k / period)) - 1) / (e - 1), where half of the rows
    sit on the floor. They are different tasks; name the form in every report.

    Args:
        level: c, positive; a number or one per image, (B,) or (B, 1, ...).
        mean: added to every element; as ``Gaussian``'s.
        form: "exp" or "expm1".
        period: rows per period.
        floor, ceiling: sigma is clamped to this range.
    Raises:
        ArgumentError: an argument outside its range; at a call, levels for another number of
            images, or a pattern that falls to zero.

    >>> Sinusoidal(0.2).std_like(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([1, 1, 8, 8])
    """

    def __init__(
        self,
        level: Any = 0.1,
        mean: Any = 0.0,
        form: str = "exp",
        period: float = 16.0,
        floor: float = 0.001,
        ceiling: float = 1.0,
    ):
        good = isinstance(form, str) and form in ("exp", "expm1")
        require(good, self._name, "form", "'exp' or 'expm1'", repr(form))
        number(self._name, "period", period, positive=True)
        self.kind = f"sinusoidal_{form}"
        super().__init__(level, mean, period, floor, ceiling)

    @classmethod
    def measurements(cls, level: float = 1.0, mean: Any = 0.0, period: float = 16.0) -> Sinusoidal:
        """The noise of compressed-sensing measurements (B, m), or of any (B, C, H, W) by rows.

        sigma_k proportional to exp(sin(2 pi k / period)), the largest variance being ``level``.
        """
        variance = number("noise.Sinusoidal.measurements", "level", level, positive=True)
        return cls(math.sqrt(variance), mean, "exp", period, 0.0, math.inf)


class Radial(_Patterned):
    """sigma = level exp(-rate d^2), d the distance in pixels from ((H - 1) // 2, (W - 1) // 2).

    Args:
        level: sigma at the centre, positive; a number or one per image, (B,) or (B, 1, ...).
        mean: added to every element; as ``Gaussian``'s.
        rate: decay per squared pixel.
        floor, ceiling: sigma is clamped to this range.
    Raises:
        ArgumentError: an argument outside its range; at a call, levels for another number of
            images, or a pattern that falls to zero.

    >>> Radial().std_like(torch.zeros(2, 1, 8, 8)).amax()
    tensor(1.)
    """

    kind = "radial"

    def __init__(
        self,
        level: Any = 1.0,
        mean: Any = 0.0,
        rate: float = 0.005,
        floor: float = 0.001,
        ceiling: float = 1.0,
    ):
        super().__init__(level, mean, rate, floor, ceiling)
