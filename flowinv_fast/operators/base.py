"""What the package's own operators share: an adjoint, checks of images, parameters per image."""

from __future__ import annotations

import copy
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from .._base.errors import require
from .._base.parameters import Rows, fitted, numbers
from .._base.tensors import as_like, check_float
from .composition import Composable

Module = TypeVar("Module", bound="Multiplication")


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


def check_batch(function: str, argument: str, x: Any, rank: int | None = None) -> None:
    """Refuses, naming the argument, what is no floating-point batch (B, ...) of this rank."""
    check_float(function, argument, x, rank)
    got = tuple(x.shape)
    require(len(got) >= 2, function, argument, "a batch dimension and others, (B, ...)", got)


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


class Multiplication(LinearOperator):
    """f(x) = a x, a an attribute that broadcasts to the batch (B, ...) from the right.

    Args:
        value: a; numbers, copied.
        booleans: whether True and False are taken.
    Raises:
        ArgumentError: numbers that are not finite; at a call, other than floating-point batches,
            or numbers that do not broadcast to them or are for another number of images.
    """

    attribute: ClassVar[str]

    def __init__(self, value: Any, booleans: bool = False):
        super().__init__()
        kind = type(self).__name__
        own = numbers(kind, self.attribute, value, booleans=booleans)
        self._rows: Rows | None = None
        if isinstance(own, Tensor):
            self.register_buffer(self.attribute, own)
        else:
            setattr(self, self.attribute, own)

    def _like(self, x: Tensor, argument: str = "x") -> Tensor:
        """a for a batch, on its device and in its dtype."""
        kind, value = type(self).__name__, getattr(self, self.attribute)
        check_batch(kind, argument, x)
        if isinstance(value, Tensor):
            value = fitted(kind, self.attribute, value, x.shape, self._rows)
        return as_like(value, x)

    def forward(self, x: Tensor) -> Tensor:
        return self._like(x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self._like(y, "y") * y

    def select(self: Module, part: slice, shape: tuple[int, ...]) -> Module:
        """The operator of some images, of a batch of measurements of this shape (B, ...).

        Itself where one number is for all images; else a copy that shares its tensors.
        """
        if not isinstance(getattr(self, self.attribute), Tensor):
            return self
        own = copy.copy(self)
        own._buffers = dict(self._buffers)
        own._rows = Rows.of(f"{type(self).__name__}.select", self._rows, part, shape)
        return own


class Scale(Multiplication):
    """f(x) = factor x.

    Args:
        factor: a number, or numbers that broadcast to the images from the right, as torch does:
            (W,) is per column, (C, 1, 1) per channel, (B, 1, 1, 1) per image.
    Raises:
        ArgumentError: numbers that are not finite; at a call, other than floating-point batches,
            or a factor that does not broadcast to them or is for another number of images.

    >>> import torch
    >>> Scale(0.5)(torch.ones(1, 1, 1, 1)).item()
    0.5
    """

    attribute = "factor"
    fixed = ("factor",)
    factor: float | Tensor

    def __init__(self, factor: Any):
        super().__init__(factor)

    def guess(self, y: Tensor) -> Tensor:
        return (y / self._like(y, "y")).nan_to_num(0.0, 0.0, 0.0)
