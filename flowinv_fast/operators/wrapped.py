"""Operators of functions that autograd cannot look into: numpy functions, and steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

from .._base.errors import ArgumentError, require
from .base import Composable, LinearOperator

Array = np.ndarray
Map = Callable[[Array], Array]

_TOLERANCE = 1e-3  # between <f(u), v> and <u, f^T(v)>, of |f(u)| |v|: of float32 and not too strict


def from_numpy(
    function: Map,
    adjoint: Map | None = None,
    *,
    vjp: Callable[[Array, Array], Array] | None = None,
    per_image: bool = False,
) -> FromNumpy | LinearFromNumpy:
    """An operator of a numpy function, such as one of scipy, pylops or an instrument's simulator.

    A linear function comes with its adjoint, which is its gradient: the two are compared with each
    other at the first images of a shape. Any other comes with ``vjp``. Arrays have the images'
    dtype and are copies; what is returned goes to their device in their dtype. On a GPU every call
    waits for the copies.

    Args:
        function: images (B, C, H, W) to measurements (B, ...), real.
        adjoint: of a linear function, measurements (B, ...) to images (B, C, H, W).
        vjp: of any other, vjp(x, v): J(x)^T v, images (B, C, H, W), of images x and v (B, ...),
            where J(x) is the Jacobian of the function at x.
        per_image: whether the functions take one image (C, H, W), and measurements (...) of one.
    Returns:
        A ``LinearOperator`` where there is an adjoint, else an operator without one.
    Raises:
        ArgumentError: neither or both of ``adjoint`` and ``vjp``; when it is called, an adjoint
            that is none, or arrays that do not fit.

    >>> sums = lambda x: np.cumsum(x, 3)
    >>> f = from_numpy(sums, lambda y: sums(y[..., ::-1])[..., ::-1])
    >>> x = torch.ones(1, 1, 1, 3, requires_grad=True)
    >>> f(x).sum().backward()
    >>> x.grad.tolist()
    [[[[3.0, 2.0, 1.0]]]]
    """
    name = "from_numpy"
    for argument, value in (("function", function), ("adjoint", adjoint), ("vjp", vjp)):
        good = callable(value) or value is None and argument != "function"
        require(good, name, argument, "a function of numpy arrays", type(value).__name__)
    wanted = "of a linear function the adjoint, of another a vjp; without either: straight_through"
    given = "both" if adjoint and vjp else "neither of the two"
    require((adjoint is None) != (vjp is None), name, "adjoint", wanted, given)
    if adjoint is not None:
        return LinearFromNumpy(function, adjoint, per_image)
    assert vjp is not None
    return FromNumpy(function, vjp, per_image)


def straight_through(
    function: Callable[[Tensor], Tensor], surrogate: Callable[[Tensor], Tensor] | None = None
) -> StraightThrough:
    """An operator with the values of one function and the gradient of another.

    For steps, whose own gradient is zero: quantisation, thresholds, counts.

    Args:
        function: f, images (B, C, H, W) to measurements (B, ...). It sees detached copies, so it
            may turn them to numpy.
        surrogate: a differentiable function with values of the same shape; None: the images
            themselves.
    Raises:
        ArgumentError: what cannot be called; when it is called, values of different shapes.

    >>> levels = straight_through(lambda x: (4 * x).round() / 4)
    >>> x = torch.tensor([[[[0.3]]]], requires_grad=True)
    >>> levels(x).item(), torch.autograd.grad(levels(x).sum(), x)[0].item()
    (0.25, 1.0)
    """
    name = "straight_through"
    require(callable(function), name, "function", "a callable", type(function).__name__)
    good = surrogate is None or callable(surrogate)
    require(good, name, "surrogate", "a callable", type(surrogate).__name__)
    return StraightThrough(function, surrogate)


class FromNumpy(Composable):
    """A numpy function with its vector-Jacobian product; made by ``from_numpy``."""

    def __init__(self, function: Map, vjp: Callable[[Array, Array], Array], per_image: bool):
        super().__init__()
        self.function, self.vjp, self.per_image = function, vjp, per_image

    def forward(self, x: Tensor) -> Tensor:
        return _Called.apply(x, self._value, self._pulled_back)

    def _value(self, x: Tensor) -> Tensor:
        return _evaluated("function", self.function, self.per_image, x)

    def _pulled_back(self, grad: Tensor, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            raise NotImplementedError("from_numpy: a function with a vjp has no second derivatives")
        return _evaluated("vjp", self.vjp, self.per_image, x, grad, shape=x.shape)


class LinearFromNumpy(LinearOperator):
    """A linear numpy function with its adjoint; made by ``from_numpy``."""

    def __init__(self, function: Map, adjoint: Map, per_image: bool):
        super().__init__()
        self.function, self.transpose, self.per_image = function, adjoint, per_image
        self._compared: dict[tuple[int, ...], tuple[int, ...]] = {}  # shapes, of measurements and x

    def forward(self, x: Tensor) -> Tensor:
        return _Called.apply(x, self._value, lambda grad, x: self._back(grad, tuple(x.shape[1:])))

    def adjoint(self, y: Tensor) -> Tensor:
        """f^T y: measurements (B, ...) to images (B, C, H, W)."""
        return self._back(y, self._compared.get(tuple(y.shape[1:])))

    def _back(self, y: Tensor, image: tuple[int, ...] | None) -> Tensor:
        shape = None if image is None else (len(y), *image)
        back = lambda y: _evaluated("adjoint", self.transpose, self.per_image, y, shape=shape)
        return _Called.apply(y, back, lambda grad, y: self.forward(grad))

    def _value(self, x: Tensor) -> Tensor:
        value = _evaluated("function", self.function, self.per_image, x)
        if len(x) and self._compared.get(tuple(value.shape[1:])) != tuple(x.shape[1:]):
            self._compare(x)
            self._compared[tuple(value.shape[1:])] = tuple(x.shape[1:])
        return value

    def _compare(self, x: Tensor) -> None:
        """Whether <f(u), v> = <u, f^T(v)> for random u, and v near f(u)."""
        random = np.random.default_rng(0)
        normal = lambda like: torch.from_numpy(random.standard_normal(tuple(like.shape))).to(like)
        u = normal(x)
        fu = _evaluated("function", self.function, self.per_image, u)
        size = fu.double().norm()
        v = fu + normal(fu) * size.to(fu) / max(1, fu.numel()) ** 0.5
        back = _evaluated("adjoint", self.transpose, self.per_image, v, shape=u.shape)
        left = float((fu.double() * v.double()).sum())
        right = float((u.double() * back.double()).sum())
        slack = _TOLERANCE * float(size * v.double().norm())
        wanted = "the transpose of a linear function, with <f(u), v> = <u, adjoint(v)>"
        got = f"{left:.6g} and {right:.6g} for random u and v"
        require(abs(left - right) <= slack, "from_numpy", "adjoint", wanted, got)


class StraightThrough(Composable):
    """Values of one function, gradient of another; made by ``straight_through``."""

    def __init__(self, function: Callable, surrogate: Callable | None):
        super().__init__()
        self.function, self.surrogate = function, surrogate

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.function(x.detach().clone())
        smooth = x if self.surrogate is None else self.surrogate(x)
        good = isinstance(value, Tensor) and value.shape == smooth.shape
        wanted = f"values of shape {tuple(smooth.shape)}, as those of the surrogate"
        got = getattr(value, "shape", type(value).__name__)
        require(good, "straight_through", "function", wanted, got)
        return _Valued.apply(smooth, value.to(smooth))


class _Called(Function):
    """value(x), with the gradient pulled_back(grad, x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Callable, pulled_back: Callable) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pulled_back = pulled_back
        return value(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.pulled_back(grads[0], *ctx.saved_tensors), None, None


class _Valued(Function):
    """A value in the place of another, whose gradient stays."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _evaluated(
    argument: str,
    function: Callable[..., Array],
    per_image: bool,
    *given: Tensor,
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """A numpy function of tensors (B, ...), on their device in their dtype; (B, ...).

    ``shape`` is what it has to return; None: B rows of anything.
    """
    like = given[0]
    arrays = [t.detach().cpu().numpy().copy() for t in given]
    call = lambda *each: _real(argument, function(*each), arrays[0].dtype)
    if not per_image:
        value = call(*arrays)
    elif len(like):
        value = np.stack([call(*each) for each in zip(*arrays)])
    else:  # no image tells the shape of its measurement: one of zeros does
        value = call(*[np.zeros(array.shape[1:], array.dtype) for array in arrays])[None][:0]
    wanted = f"shape {tuple(shape)}" if shape else f"{len(like)} rows, one per image"
    good = value.shape == tuple(shape) if shape else value.ndim >= 1 and len(value) == len(like)
    require(good, "from_numpy", argument, wanted, f"shape {value.shape}")
    return torch.from_numpy(value).to(like.device)


def _real(argument: str, value: Any, dtype: np.dtype) -> Array:
    """A copy of an array of real numbers, whose memory may be the function's own."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        got = f"dtype {array.dtype}"
        if array.dtype.kind == "c":
            got += ": stack the real and the imaginary part"
        raise ArgumentError("from_numpy", argument, "an array of real numbers", got)
    return np.array(array, dtype, order="C")
