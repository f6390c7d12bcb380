"""Compressed sensing with a Gaussian matrix, linear or one-bit."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .base import Composable, LinearOperator


class GaussianSensing(LinearOperator):
    """f(x) = A x, A (m, N) with entries N(0, 1/m).

    Args:
        measurements: m, at least 1.
        shape: (C, H, W) of the images, N = C H W.
        seed: of the matrix, drawn by Philox: the same on every device.
    Raises:
        ArgumentError: m or shape that cannot be.

    >>> GaussianSensing(3, (1, 4, 4))(torch.ones(2, 1, 4, 4)).shape
    torch.Size([2, 3])
    """

    matrix: Tensor

    def __init__(self, measurements: int, shape: tuple[int, int, int], seed: int = 0):
        super().__init__()
        whole = isinstance(measurements, int) and measurements >= 1
        wanted = "an integer of at least 1"
        require(whole, "GaussianSensing", "measurements", wanted, measurements)
        require(len(shape) == 3 and min(shape) >= 1, "GaussianSensing", "shape", "(C, H, W)", shape)
        self.shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        std = torch.full((), 1 / math.sqrt(measurements))
        matrix = ops.gaussian_noise(0.0, std, (measurements, math.prod(shape)), seed)
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).T

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).view(-1, *self.shape)


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
        ArgumentError: an argument that cannot be.

    >>> SignSensing(3, (1, 4, 4))(torch.ones(2, 1, 4, 4)).abs().max().item()
    1.0
    """

    def __init__(
        self,
        measurements: int,
        shape: tuple[int, int, int],
        seed: int = 0,
        noise_inside: bool = False,
        widths: tuple[float, float] = (1.0, 0.1),
    ):
        super().__init__()
        good = len(widths) == 2 and widths[0] >= widths[1] > 0
        require(good, "SignSensing", "widths", "two positive numbers, falling", widths)
        self.linear = GaussianSensing(measurements, shape, seed)
        self.noise_inside, self.widths = noise_inside, widths

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


class SmoothedSign:
    """f(x) = erf(A x / (sqrt(2) width r)), r the root mean square of an image's A x.

    Args:
        linear: A.
        width: positive.
    """

    def __init__(self, linear: GaussianSensing, width: float):
        self.linear, self.width = linear, width

    def __call__(self, x: Tensor) -> Tensor:
        product = self.linear(x)
        scale = product.detach().square().mean(1, keepdim=True).sqrt().clamp_min(1e-6)
        return torch.erf(product / (math.sqrt(2) * self.width * scale))
