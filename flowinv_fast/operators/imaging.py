"""Operators of image restoration."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .._base.errors import require
from .._base.tensors import as_like
from .base import LinearOperator, with_rows


class Inpaint(LinearOperator):
    """f(x) = mask x.

    Args:
        mask: 1 where a pixel is measured, 0 where not; broadcasts to (B, C, H, W).
    Raises:
        ArgumentError: a mask that is no tensor.

    >>> Inpaint(torch.tensor([1.0, 0.0]))(torch.ones(1, 1, 1, 2)).tolist()
    [[[[1.0, 0.0]]]]
    """

    mask: Tensor

    def __init__(self, mask: Tensor):
        super().__init__()
        require(isinstance(mask, Tensor), "Inpaint", "mask", "a tensor", type(mask).__name__)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return as_like(self.mask, x) * x

    def adjoint(self, y: Tensor) -> Tensor:
        return self.forward(y)

    def guess(self, y: Tensor) -> Tensor:
        """Unmeasured pixels take the mean of the image's measured ones."""
        mask = as_like(self.mask, y).expand(y.shape)
        dims = (1, 2, 3)
        mean = (mask * y).sum(dims, keepdim=True) / mask.sum(dims, keepdim=True).clamp_min(1)
        return torch.where(mask > 0, y, mean)

    def select(self, part: slice, shape: tuple[int, ...]) -> Inpaint:
        """The operator of some images, of a batch of measurements of this shape (B, ...)."""
        return with_rows(self, "mask", part, shape)


class Blur(LinearOperator):
    """Convolution of every channel with one kernel, zeros outside, size kept.

    Args:
        kernel: (h, w), odd sizes.
    Raises:
        ArgumentError: a kernel of another shape.

    >>> Blur(torch.ones(3, 3) / 9)(torch.ones(1, 1, 5, 5))[0, 0, 2, 2].item()
    1.0
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor):
        super().__init__()
        good = isinstance(kernel, Tensor) and kernel.dim() == 2
        good = good and all(n % 2 == 1 for n in kernel.shape)
        got = getattr(kernel, "shape", type(kernel))
        require(good, "Blur", "kernel", "a tensor (h, w) of odd sizes", got)
        self.register_buffer("kernel", kernel)

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        channels = x.shape[1]
        weight = as_like(kernel, x).expand(channels, 1, *kernel.shape)
        padding = (kernel.shape[0] // 2, kernel.shape[1] // 2)
        return F.conv2d(x, weight, padding=padding, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.kernel.flip(0, 1))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._convolve(y, self.kernel)

    def guess(self, y: Tensor) -> Tensor:
        return y


class Downsample(LinearOperator):
    """Means over blocks of factor x factor pixels.

    Args:
        factor: at least 1; H and W must be divisible by it.
    Raises:
        ArgumentError: another factor, or images that it does not divide.

    >>> Downsample(2)(torch.ones(1, 1, 4, 6)).shape
    torch.Size([1, 1, 2, 3])
    """

    def __init__(self, factor: int):
        super().__init__()
        wanted = "an integer of at least 1"
        require(isinstance(factor, int) and factor >= 1, "Downsample", "factor", wanted, factor)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        divisible = x.shape[2] % self.factor == 0 and x.shape[3] % self.factor == 0
        require(divisible, "Downsample", "x", f"H and W divisible by {self.factor}", tuple(x.shape))
        return F.avg_pool2d(x, self.factor)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.guess(y) / self.factor**2

    def guess(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)
