"""What the package's noise models share: numbers of their own, with rows per image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .._base.errors import ArgumentError
from .._base.parameters import Fixed, Rows, fitted
from .._base.tensors import as_like
from ..protocols import DrawnAt, Sampled, provides

Own = TypeVar("Own", bound="Law")


def drawable(noise: Any) -> bool:
    """Whether a noise model can be drawn from, at a clean signal or without one."""
    return provides(noise, DrawnAt) or provides(noise, Sampled)


def drawn_at(noise: Any, fx: Tensor, generator: torch.Generator | None) -> Any:
    """A draw of y - f(x) of a noise model that is ``drawable``, as it returns it."""
    if provides(noise, DrawnAt):
        return noise.draw(fx, generator)
    return noise.sample(tuple(fx.shape), generator)


class Law(Fixed):
    """A noise model of numbers that stay as they were given.

    A parameter that is read is a copy, and none can be set: what is computed from them once holds
    for good.

    Args:
        numbers: parameters, floats or tensors that nobody else holds.
    """

    def __init__(self, **numbers: float | Tensor):
        self._numbers, self._rows = numbers, None  # type: tuple[dict[str, Any], Rows | None]
        self._kept: dict[Hashable, Any] = {}

    def __getattr__(self, name: str) -> Any:
        value = vars(self).get("_numbers", {}).get(name)
        if value is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return value.clone() if isinstance(value, Tensor) else value

    def select(self: Own, part: slice, shape: tuple[int, ...]) -> Own:
        """The noise of some images, of a batch of measurements of this shape (B, ...)."""
        own = copy.copy(self)
        own._rows = Rows.of(f"{self._name}.select", self._rows, part, shape)
        own._kept = {}
        return own

    def __repr__(self) -> str:
        told = lambda v: (
            f"{v:.4g}" if isinstance(v, float) else f"<{' x '.join(map(str, v.shape))}>"
        )
        parameters = ", ".join(f"{name}={told(value)}" for name, value in self._numbers.items())
        return f"{type(self).__name__}({parameters})"

    @property
    def numbers(self) -> int:
        """How many numbers its parameters are."""
        return sum(v.numel() if isinstance(v, Tensor) else 1 for v in self._numbers.values())

    @property
    def _name(self) -> str:
        return f"noise.{type(self).__name__}"

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What follows from the parameters alone, computed once, so that a CUDA graph can hold it.

        It outlives the call, so it is no inference tensor even where inference mode is on.
        """
        kept = self._kept.get(key)
        if kept is None:
            with torch.inference_mode(False), torch.no_grad():
                kept = self._kept[key] = make()
        return kept

    def _like(self, name: str, like: Tensor) -> Tensor:
        """A parameter for a batch (B, ...), on its device and in its dtype."""
        value = self._numbers[name]
        if not isinstance(value, Tensor):
            return as_like(self._in_range(name, value, value, like), like)
        value = fitted(self._name, name, value, like.shape, self._rows)
        if value.dtype == like.dtype and value.device == like.device:
            return value

        def moved() -> Tensor:
            least, most = (float(bound) for bound in value.abs().aminmax())
            self._in_range(name, least, most, like)
            return value.to(like)

        return self._once((name, like.dim(), like.dtype, like.device), moved)

    def _in_range(self, name: str, least: float, most: float, like: Tensor) -> float:
        """Refuses a spread that a dtype rounds to zero, or what it makes infinite."""
        kind = torch.finfo(like.dtype)
        if abs(most) > kind.max or name in ("std", "power") and least < kind.smallest_normal:
            wanted = f"numbers that {like.dtype} can hold, {kind.smallest_normal:.3g} to {kind.max}"
            raise ArgumentError(self._name, name, wanted, f"{least:.3g} to {most:.3g}")
        return least
