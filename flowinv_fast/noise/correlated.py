"""Gaussian noise with correlations: stationary, or a few components beside independent noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._base.errors import ArgumentError, require
from .._base.parameters import numbers
from .._base.tensors import (
    accumulate_dtype,
    accumulated,
    check_broadcast,
    check_float,
    draw_seed,
    image_sum,
    known_device,
)
from .law import Law


class _Correlated(Law):
    """N(mean, covariance) over measurements of one shape.

    A subclass sets ``shape`` and ``_log_det``, the log-determinant of the covariance, and has
    ``_squared``, ``_whitened`` and ``_coloured``.
    """

    multimodal = False
    shape: tuple[int, ...]
    mean: float | Tensor
    _log_det: float

    def _squared(self, delta: Tensor) -> Tensor:
        """delta^T covariance^-1 delta, (B,)."""
        raise NotImplementedError

    def _whitened(self, delta: Tensor) -> Tensor:
        """Root^-1 delta, root root^T the covariance."""
        raise NotImplementedError

    def _coloured(self, white: Tensor) -> Tensor:
        """Root white, the inverse of ``_whitened``."""
        raise NotImplementedError

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, *shape) to (B,), in float32 (float64 for float64)."""
        check_float(f"{self._name}.log_prob", "residual", residual)
        self._check_shape("log_prob", "residual", residual.shape)
        delta = accumulated(residual)
        constant = self._log_det + math.prod(self.shape) * math.log(2 * math.pi)
        return -0.5 * (self._squared(delta - self._like("mean", delta)) + constant)

    def whiten(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """root^-1 (residual - mean), root root^T the covariance, and log|det| of that map, (B,).

        Residuals of this law become standard normal, and keep their shape. In float32 (float64 for
        float64).
        """
        check_float(f"{self._name}.whiten", "residual", residual)
        self._check_shape("whiten", "residual", residual.shape)
        delta = accumulated(residual)
        white = self._whitened(delta - self._like("mean", delta))
        return white, white.new_full((len(white),), -0.5 * self._log_det)

    def colour(self, white: Tensor) -> Tensor:
        """Inverse of ``whiten``: mean + root white."""
        check_float(f"{self._name}.colour", "white", white)
        self._check_shape("colour", "white", white.shape)
        return self._like("mean", white) + self._coloured(white)

    def sample(
        self,
        shape: tuple[int, ...],
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """A draw of shape (B, *shape); the seed is ``generator``'s, or torch's global one's."""
        device = known_device(f"{self._name}.sample", device)
        self._check_shape("sample", "shape", shape)
        one = torch.ones((), device=device, dtype=accumulate_dtype(dtype))
        white = ops.gaussian_noise(0.0, one, tuple(shape), draw_seed(generator))
        return self.colour(white).to(dtype)

    def _check_shape(self, method: str, argument: str, shape: tuple[int, ...]) -> None:
        if tuple(shape[1:]) != self.shape or not shape:
            wanted = f"shape (B, {', '.join(map(str, self.shape))}), which this law is for"
            raise ArgumentError(f"{self._name}.{method}", argument, wanted, tuple(shape))


class StationaryGaussian(_Correlated):
    """Gaussian noise whose correlations depend on the distance alone, on a torus.

    With F the orthonormal discrete Fourier transform over the last two dimensions (of a vector: its
    one), the coefficients are independent with variances S, the power spectrum:

        delta = mean + F^-1 sqrt(S) F n,    n standard normal
        log p(delta) = -1/2 sum over k of |F(delta - mean)_k|^2 / S_k + log(2 pi S_k)

    Channels are independent, rows and columns wrap around, and residuals have the shape of the
    spectrum and no other.

    Args:
        power: S, positive, (C, H, W) for images and (D,) for vectors, in the order of
            ``torch.fft.fft2``; S_-k = S_k, as it is of real noise, and the mean of S over a channel
            is the variance of a pixel.
        mean: any sign; a number, or numbers that broadcast to the measurements as ``Gaussian``'s.
    Raises:
        ArgumentError: a spectrum that is not positive, finite and symmetric, or a mean that is not
            finite; at a call, residuals of another shape.

    >>> law = StationaryGaussian(torch.full((1, 4, 4), 0.01))  # white: Gaussian(0.1)
    >>> law.log_prob(torch.zeros(2, 1, 4, 4))
    tensor([22.1383, 22.1383])
    """

    fixed = ("power", "mean", "shape")
    power: Tensor

    def __init__(self, power: Any, mean: Any = 0.0):
        name, wanted = self._name, "positive numbers of shape (C, H, W) or (D,)"
        own = numbers(name, "power", power, positive=True)
        if not isinstance(own, Tensor):
            raise ArgumentError(name, "power", wanted, own)
        self._axes = tuple(range(-min(2, own.dim()), 0))
        mirrored = own.flip(self._axes).roll([1] * len(self._axes), self._axes)
        even = torch.allclose(own, mirrored, rtol=1e-3, atol=0.0)
        wanted = "a spectrum of real noise, whose value at -k is that at k (order of torch.fft)"
        require(even, name, "power", wanted, f"another one of shape {tuple(own.shape)}")
        super().__init__(power=(own + mirrored) / 2, mean=numbers(name, "mean", mean))
        self.shape = tuple(own.shape)
        self._log_det = float(self.power.double().log().sum())

    def _squared(self, delta: Tensor) -> Tensor:
        if not len(delta):  # of which torch has no transform
            return image_sum(delta)
        waves = torch.fft.fftn(delta, dim=self._axes, norm="ortho")
        power = self._like("power", delta)
        return image_sum((waves.real.square() + waves.imag.square()) / power)

    def _whitened(self, delta: Tensor) -> Tensor:
        return self._filtered(delta, self._like("power", delta).rsqrt())

    def _coloured(self, white: Tensor) -> Tensor:
        return self._filtered(white, self._like("power", white).sqrt())

    def _filtered(self, delta: Tensor, gain: Tensor) -> Tensor:
        if not len(delta):
            return delta
        waves = gain * torch.fft.fftn(delta, dim=self._axes)
        return torch.fft.ifftn(waves, dim=self._axes).real


class LowRankGaussian(_Correlated):
    """Gaussian noise of R components, patterns of random strength, beside independent noise.

    The covariance is diag(d) + U^T U, with U the components as rows. With U diag(d)^-1/2 =
    P diag(s) Q, a singular value decomposition, and u = (delta - mean) / sqrt(d),

        log p(delta) = -1/2 (|u|^2 - sum over r of s_r^2 / (1 + s_r^2) (Q_r u)^2
                             + sum of log d + sum over r of log(1 + s_r^2) + N log 2 pi),

    which is Woodbury's identity. Residuals have the shape of a component and no other.

    Args:
        mean: any sign; a number, or numbers that broadcast to the measurements as ``Gaussian``'s.
        factor: U, (R, C, H, W) for images and (R, D) for vectors, any sign.
        diagonal: d, positive; a number, or numbers that broadcast to a component.
    Raises:
        ArgumentError: a diagonal that is not positive, numbers that are not finite or do not fit;
            at a call, residuals of another shape.

    >>> law = LowRankGaussian(0.0, torch.ones(1, 1, 4, 4), 0.01)  # a common offset, std 1
    >>> law.log_prob(torch.ones(1, 1, 4, 4)) > law.log_prob(torch.eye(4)[None, None])
    tensor([True])
    """

    fixed = ("mean", "factor", "diagonal", "shape")
    factor: Tensor
    diagonal: float | Tensor

    def __init__(self, mean: Any, factor: Any, diagonal: Any):
        name = self._name
        own, spread = (
            numbers(name, "factor", factor),
            numbers(name, "diagonal", diagonal, positive=True),
        )
        if not isinstance(own, Tensor) or own.dim() < 2:
            raise ArgumentError(name, "factor", "shape (R, C, H, W) or (R, D)", _shape_of(own))
        shape = tuple(own.shape[1:])
        if isinstance(spread, Tensor):
            check_broadcast(name, "diagonal", spread, shape)
        super().__init__(mean=numbers(name, "mean", mean), factor=own, diagonal=spread)
        self.shape = shape
        variances = torch.as_tensor(spread, dtype=torch.float64, device=own.device).expand(shape)
        self._std = variances.sqrt()
        whitened = (own.double() / self._std).flatten(1)
        _, self._sizes, self._basis = torch.linalg.svd(whitened, full_matrices=False)
        self._log_det = float(variances.log().sum() + self._sizes.square().log1p().sum())

    def _parts(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sqrt(d), s and Q, on the device and in the dtype of a residual."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            least, most = (float(bound) for bound in self._std.aminmax())
            self._in_range("std", least, most, like)
            return self._std.to(like), self._sizes.to(like), self._basis.to(like)

        return self._once(("parts", like.dtype, like.device), make)

    # With A = U diag(d)^-1/2 the covariance is sqrt(d) (1 + A^T A) sqrt(d), of which
    # sqrt(d) (1 + A^T A)^1/2 is a root: not the symmetric one, and as good.

    def _squared(self, delta: Tensor) -> Tensor:
        return image_sum(self._whitened(delta).square())  # from which nothing large is taken off

    def _whitened(self, delta: Tensor) -> Tensor:
        std, sizes, rows = self._parts(delta)
        flat, less = (delta / std).flatten(1), (1 + sizes.square()).rsqrt() - 1
        return (flat + (flat @ rows.T * less) @ rows).view(delta.shape)

    def _coloured(self, white: Tensor) -> Tensor:
        std, sizes, rows = self._parts(white)
        flat, more = white.flatten(1), (1 + sizes.square()).sqrt() - 1
        return std * (flat + (flat @ rows.T * more) @ rows).view(white.shape)


def _shape_of(value: float | Tensor) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else value
