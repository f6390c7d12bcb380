"""Compressed sensing with a Gaussian matrix, linear or one-bit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from .._base.errors import is_real, is_whole, require
from .._base.parameters import Fixed
from .._base.tensors import check_seed
from .base import LinearOperator, check_batch
from .composition import Composable
from .product import product


class GaussianSensing(LinearOperator):
    """f(x) = A x, A (m, N) with entries N(0, 1/m).

    Args:
        measurements: m, at least 1.
        shape: (C, H, W) of the images, N = C H W.
        seed: of the matrix, drawn by Philox: the same on every device.
    Raises:
        ArgumentError: m, shape or seed that cannot be, and batches of another shape.

    Under ``torch.use_deterministic_algorithms(True)`` products are exact but for one rounding, so
    that bits depend neither on the number of threads nor on the other images of a batch
    (docs/method.md, section 5).

    >>> GaussianSensing(3, (1, 4, 4))(torch.ones(2, 1, 4, 4)).shape
    torch.Size([2, 3])
    """

    fixed = ("matrix", "shape")
    matrix: Tensor

    def __init__(self, measurements: int, shape: Sequence[int], seed: int = 0):
        super().__init__()
        name, wanted = "GaussianSensing", "an integer of at least 1"
        require(is_whole(measurements, 1), name, "measurements", wanted, measurements)
        good = (
            isinstance(shape, Sequence) and len(shape) == 3 and all(is_whole(n, 1) for n in shape)
        )
        require(good, name, "shape", "(C, H, W), integers of at least 1", shape)
        check_seed(name, seed)
        self.shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        std = torch.full((), 1 / math.sqrt(measurements))
        matrix = ops.gaussian_noise(0.0, std, (measurements, math.prod(shape)), seed)
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        check_batch("GaussianSensing", "x", x)
        good, wanted = tuple(x.shape[1:]) == self.shape, f"images (B, {self._sizes})"
        require(good, "GaussianSensing", "x", wanted, tuple(x.shape))
        return product(x.flatten(1), self.matrix, transposed=True)

    def adjoint(self, y: Tensor) -> Tensor:
        check_batch("GaussianSensing", "y", y, 2)
        good, wanted = y.shape[1] == len(self.matrix), f"measurements (B, {len(self.matrix)})"
        require(good, "GaussianSensing", "y", wanted, tuple(y.shape))
        return product(y, self.matrix).view(-1, *self.shape)

    @property
    def _sizes(self) -> str:
        return ", ".join(map(str, self.shape))


class SignSensing(Composable):
    """f(x) = sign(A x): one-bit compressed sensing, with a straight-through gradient.

    The sign says nothing about where to go, so a solve follows smoother operators towards it:
    ``at(t)`` is erf(A x / (sqrt(2) w)), w falling geometrically from ``widths[0]`` to ``widths[1]``
    times the root mean square of A x as t goes from 0 to 1; at t = 1 it is the sign.

    Args:
        measurements: m, at least 1.
        shape: (C, H, W) of the images.
        seed: of the matrix.
        noise_inside: where ``measure`` puts the noise: sign(A x + delta) if True, else
            sign(A x) + delta (the paper's, default). Name it in every table.
        widths: first and last width of the smoothed sign.
    Raises:
        ArgumentError: an argument that cannot be, and batches of another shape.

    >>> SignSensing(3, (1, 4, 4))(torch.ones(2, 1, 4, 4)).abs().max().item()
    1.0
    """

    fixed = ("linear", "noise_inside", "widths")

    def __init__(
        self,
        measurements: int,
        shape: Sequence[int],
        seed: int = 0,
        noise_inside: bool = False,
        widths: tuple[float, float] = (1.0, 0.1),
    ):
        super().__init__()
        good = isinstance(widths, Sequence) and len(widths) == 2 and all(map(is_real, widths))
        good = good and widths[0] >= widths[1] > 0
        require(good, "SignSensing", "widths", "two positive numbers, falling", widths)
        good = isinstance(noise_inside, bool)
        require(good, "SignSensing", "noise_inside", "True or False", repr(noise_inside))
        self.linear = GaussianSensing(measurements, shape, seed)
        self.noise_inside, self.widths = noise_inside, (float(widths[0]), float(widths[1]))

    def at(self, t: float) -> SignSensing | SmoothedSign:
        """The operator at time t in [0, 1], which shares the matrix; at 1 this one."""
        if t >= 1:
            return self
        first, last = self.widths
        return SmoothedSign(self.linear, first * (last / first) ** t)

    def before_noise(self, x: Tensor) -> Tensor:
        """A x (B, m), to which a device adds its noise where ``noise_inside``."""
        return self.linear(x)

    def after_noise(self, u: Tensor) -> Tensor:
        """sign(u), with the gradient of u."""
        return ops.sign_ste(u)

    def forward(self, x: Tensor) -> Tensor:
        return ops.sign_ste(self.linear(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: up to scale, the linear estimate of the image (Plan and Vershynin, 2013)."""
        return self.linear.adjoint(y)

    def guess(self, y: Tensor) -> Tensor:
        """The linear estimate, scaled to peak at 1: signs say nothing about brightness."""
        image = self.adjoint(y)
        peak = image.flatten(1).amax(1).clamp_min(1e-12)
        return image / peak.view(-1, 1, 1, 1)


class SmoothedSign(Fixed):
    """f(x) = erf(A x / (sqrt(2) width r)), r the root mean square of an image's A x.

    Args:
        linear: A.
        width: positive.
    """

    fixed = ("linear", "width")

    def __init__(self, linear: GaussianSensing, width: float):
        self.linear, self.width = linear, width

    def __call__(self, x: Tensor) -> Tensor:
        product = self.linear(x)
        scale = product.detach().square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        return torch.erf(product / (math.sqrt(2) * self.width * scale))
