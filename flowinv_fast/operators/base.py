"""What the package's own operators share: composition, an adjoint, a first guess."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .._base.errors import require
from .._base.tensors import as_like


class Composable(nn.Module):
    """``f @ g`` is x to f(g(x))."""

    def __matmul__(self, other: Callable[[Tensor], Tensor]) -> Composition:
        return Composition(self, other)

    def guess(self, y: Tensor) -> Tensor | None:
        """An image (B, C, H, W) to start from, or None where there is no simple one."""
        return None


class Composition(Composable):
    """x to outer(inner(x))."""

    def __init__(self, outer: Callable[[Tensor], Tensor], inner: Callable[[Tensor], Tensor]):
        super().__init__()
        for name, part in (("outer", outer), ("inner", inner)):
            require(callable(part), "Composition", name, "a callable", type(part).__name__)
        self.outer, self.inner = outer, inner

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """inner.adjoint(outer.adjoint(y)), where both parts have one."""
        return self.inner.adjoint(self.outer.adjoint(y))

    def guess(self, y: Tensor) -> Tensor | None:
        for part in (self.outer, self.inner):
            y = part.guess(y) if y is not None and hasattr(part, "guess") else None
        return y


class LinearOperator(Composable):
    """A linear f with its adjoint f^T."""

    def adjoint(self, y: Tensor) -> Tensor:
        """f^T y, shaped like the images."""
        raise NotImplementedError


class Identity(LinearOperator):
    """f(x) = x: denoising."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        return y

    def guess(self, y: Tensor) -> Tensor:
        return y


class Scale(LinearOperator):
    """f(x) = factor x; the factor a number, or a tensor that broadcasts to the images."""

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
