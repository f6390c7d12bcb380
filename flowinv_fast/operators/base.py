"""What the package's own operators share: composition, an adjoint, a first guess."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from .._base.errors import require
from .._base.tensors import as_like, cut
from ..protocols import Continuation, ForwardOperator, Initial, Linear, PerImage, provides

Module = TypeVar("Module", bound=nn.Module)


class Composable(nn.Module):
    """``f @ g`` is x to f(g(x))."""

    def __matmul__(self, other: ForwardOperator) -> Composition:
        return Composition(self, other)

    def guess(self, y: Tensor) -> Tensor | None:
        """An image (B, C, H, W) to start from, or None where there is no simple one."""
        return None


class Composition(Composable):
    """x to outer(inner(x)), which can do what its parts can.

    It has ``adjoint`` where both parts have one, ``at`` and ``select`` where one of them has, and
    ``noise_inside`` with ``before_noise`` and ``after_noise`` where the noise of a part goes
    inside.

    Args:
        outer, inner: any callables.
    Raises:
        ArgumentError: a part that cannot be called.

    >>> import torch
    >>> f = Scale(2.0) @ Scale(3.0)
    >>> f.adjoint(f(torch.ones(1, 1, 1, 1))).item()
    36.0
    """

    def __init__(self, outer: ForwardOperator, inner: ForwardOperator):
        super().__init__()
        for name, part in (("outer", outer), ("inner", inner)):
            require(callable(part), "Composition", name, "a callable", type(part).__name__)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def guess(self, y: Tensor) -> Tensor | None:
        """The inner part's guess from the outer part's; None where one of them has none."""
        guess: Tensor | None = y
        for part in (self.outer, self.inner):
            guess = part.guess(guess) if guess is not None and provides(part, Initial) else None
        return guess

    def __getattr__(self, name: str) -> Any:
        """The abilities that the parts have; asked for only where the class has no such name."""
        ability = _ABILITIES.get(name)
        if ability is not None:
            found = ability(self.outer, self.inner)
            if found is not None:
                return found
        return super().__getattr__(name)


def _adjoint(outer: Any, inner: Any) -> Callable[[Tensor], Tensor] | None:
    if not (provides(outer, Linear) and provides(inner, Linear)):
        return None
    return lambda y: inner.adjoint(outer.adjoint(y))


def _at(outer: Any, inner: Any) -> Callable[[float], Composition] | None:
    if not (provides(outer, Continuation) or provides(inner, Continuation)):
        return None
    now = lambda part, t: part.at(t) if provides(part, Continuation) else part
    return lambda t: Composition(now(outer, t), now(inner, t))


def _select(outer: Any, inner: Any) -> Callable[[slice, tuple[int, ...]], Composition] | None:
    if not (provides(outer, PerImage) or provides(inner, PerImage)):
        return None
    some = lambda part, *which: part.select(*which) if provides(part, PerImage) else part
    return lambda part, shape: Composition(some(outer, part, shape), some(inner, part, shape))


def _inside(outer: Any, inner: Any) -> str:
    """The part whose noise goes inside it: "outer", "inner" or none, ""."""
    if getattr(outer, "noise_inside", False) is True:
        return "outer"
    return "inner" if getattr(inner, "noise_inside", False) is True else ""


def _before_noise(outer: Any, inner: Any) -> Callable[[Tensor], Tensor] | None:
    where = _inside(outer, inner)
    if where == "outer":
        return lambda x: outer.before_noise(inner(x))
    return inner.before_noise if where else None


def _after_noise(outer: Any, inner: Any) -> Callable[[Tensor], Tensor] | None:
    where = _inside(outer, inner)
    if where == "inner":
        return lambda u: outer(inner.after_noise(u))
    return outer.after_noise if where else None


_ABILITIES: dict[str, Callable[[Any, Any], Any]] = {
    "adjoint": _adjoint,
    "at": _at,
    "select": _select,
    "noise_inside": lambda outer, inner: True if _inside(outer, inner) else None,
    "before_noise": _before_noise,
    "after_noise": _after_noise,
}


class LinearOperator(Composable):
    """A linear f with its adjoint f^T: sum(f(x) y) = sum(x f^T(y)).

    One of your own has ``forward``, images (B, C, H, W) to measurements (B, ...), and ``adjoint``
    the other way.

    >>> import torch
    >>> class Mirror(LinearOperator):
    ...     def forward(self, x): return x.flip(3)
    ...     def adjoint(self, y): return y.flip(3)
    >>> (Scale(2.0) @ Mirror()).adjoint(torch.tensor([[[[1.0, 3.0]]]])).tolist()
    [[[[6.0, 2.0]]]]
    """

    def adjoint(self, y: Tensor) -> Tensor:
        """f^T y, shaped like the images."""
        raise NotImplementedError


class Identity(LinearOperator):
    """f(x) = x: denoising.

    >>> import torch
    >>> Identity()(torch.ones(1, 1, 2, 2)).shape
    torch.Size([1, 1, 2, 2])
    """

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def guess(self, y: Tensor) -> Tensor:
        return y


class Scale(LinearOperator):
    """f(x) = factor x.

    Args:
        factor: a number, or a tensor that broadcasts to the images (B, C, H, W).

    >>> import torch
    >>> Scale(0.5)(torch.ones(1, 1, 1, 1)).item()
    0.5
    """

    def __init__(self, factor: float | Tensor):
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return as_like(self.factor, x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return as_like(self.factor, y) * y

    def guess(self, y: Tensor) -> Tensor:
        factor = as_like(self.factor, y)
        return (y / factor).nan_to_num(0.0, 0.0, 0.0)

    def select(self, part: slice, shape: tuple[int, ...]) -> Scale:
        """The operator of some images, of a batch of measurements of this shape (B, ...)."""
        return with_rows(self, "factor", part, shape)


def with_rows(module: Module, name: str, part: slice, shape: tuple[int, ...]) -> Module:
    """A module with a parameter of images (B, C, H, W) cut to some of them.

    The module itself where the parameter has no row per image; a copy that shares the rest where
    it has. ``shape`` is that of the measurements of all images.
    """
    value = getattr(module, name)
    own = cut(value, part, (*shape[:1], 0, 0, 0))
    if own is value:
        return module
    module = copy.copy(module)
    module._buffers = dict(module._buffers)
    setattr(module, name, own)
    return module
