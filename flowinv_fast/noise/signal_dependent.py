"""Noise whose level follows the clean signal, as that of cameras does."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ArgumentError, require
from .._base.parameters import numbers
from .._base.tensors import accumulated, check_float, check_like, image_sum
from ..protocols import Freezable, NoiseModel, PerImage, Sampled, provides
from .distributions import as_noise
from .law import Law


class SignalDependent(Law):
    """y = f(x) + sigma(f(x)) e, e a draw of a noise model on unit scale.

    sigma(s) is linear between the knots (signal_k, std_k) and constant beyond the first and the
    last, and

        log p(y | f(x)) = log p_law((y - f(x)) / sigma(f(x))) - sum log sigma(f(x))

    whose gradient reaches f(x) through sigma too. The residual alone tells no density, so there is
    a ``log_likelihood`` and no ``log_prob``. ``multimodal`` is the law's, where it has one.

    Args:
        law: of e, with ``log_prob``, or a torch.distributions Distribution; ``sample`` to draw. It
            is shared, not copied.
        signal: knots (K,), ascending, K at least 1; for one knot the level is the same everywhere.
        std: positive levels (K,) at the knots.
    Raises:
        ArgumentError: a law without log_prob, knots that do not ascend, levels that are not
            positive or as many; at a call, y and f(x) of other shapes or types, or knots that the
            type of f(x) cannot tell apart.

    >>> law = SignalDependent(torch.distributions.Normal(0.0, 1.0), [0.0, 1.0], [0.02, 0.1])
    >>> law.std_of(torch.tensor([-1.0, 0.5, 2.0]))
    tensor([0.0200, 0.0600, 0.1000])
    >>> fx = torch.rand(2, 1, 4, 4)
    >>> law.log_likelihood(fx + law.draw(fx), fx).shape
    torch.Size([2])
    """

    fixed = ("law", "signal", "std")
    signal: Tensor
    std: Tensor

    def __init__(self, law: Any, signal: Any, std: Any):
        law, name = as_noise(law), self._name
        wanted = "a noise model on unit scale, with log_prob(residual)"
        require(provides(law, NoiseModel), name, "law", wanted, type(law).__name__)
        at = torch.as_tensor(numbers(name, "signal", signal)).double()
        levels = torch.as_tensor(numbers(name, "std", std, positive=True)).double()
        at, levels = (v[None] if v.dim() == 0 else v for v in (at, levels))
        good = at.dim() == 1 and bool((at.diff() > 0).all())
        require(good, name, "signal", "ascending knots (K,)", f"shape {tuple(at.shape)}")
        got = tuple(levels.shape)
        require(got == tuple(at.shape), name, "std", f"shape ({len(at)},), one a knot", got)
        super().__init__(signal=at, std=levels)
        self.law = law

    @property
    def multimodal(self) -> bool:
        """The law's; an AttributeError where it does not say."""
        return self.law.multimodal

    @property
    def saved_bytes(self) -> int:
        """Bytes that an image keeps for its gradient, where the law tells."""
        return getattr(self.law, "saved_bytes", 0)

    @property
    def work_bytes(self) -> int:
        """Bytes that an image needs during a call, where the law tells."""
        return getattr(self.law, "work_bytes", 0)

    def select(self, part: slice, shape: tuple[int, ...]) -> SignalDependent:
        """The noise of some images, of a batch of measurements of this shape (B, ...)."""
        return self._of(self.law.select(part, shape) if provides(self.law, PerImage) else self.law)

    def freeze(self, *, precision: str = "fp32") -> SignalDependent:
        """The same on the frozen law; itself where the law cannot be frozen."""
        if not provides(self.law, Freezable):
            return self
        return self._of(self.law.freeze(precision=precision))

    def _of(self, law: Any) -> SignalDependent:
        """The same levels with another law."""
        own = copy.copy(self)
        vars(own)["law"] = law
        return own

    def __repr__(self) -> str:
        signal, std = (self._numbers[name].tolist() for name in ("signal", "std"))
        ends = f"std {std[0]:.4g} at {signal[0]:.4g} to {std[-1]:.4g} at {signal[-1]:.4g}"
        return f"SignalDependent({self.law!r}, {ends})"

    def std_of(self, fx: Tensor) -> Tensor:
        """sigma(f(x)), shaped like f(x) (B, ...), differentiable almost everywhere.

        It is computed in float32 (float64 for float64).
        """
        check_float(f"{self._name}.std_of", "fx", fx)
        fx = accumulated(fx)
        signal, std = self._knots(fx)
        if len(signal) == 1:
            return std.expand(fx.shape)
        # Of a view bucketize warns; what is outside belongs to the nearest piece, clamped there.
        piece = torch.bucketize(fx.detach().contiguous(), signal[1:-1])
        low, width = signal[piece], signal.diff()[piece]
        share = ((fx - low) / width).clamp(0, 1)
        return (1 - share) * std[piece] + share * std[piece + 1]

    def _knots(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """The knots and their levels in the dtype and on the device of a tensor."""

        def make() -> tuple[Tensor, Tensor]:
            signal, std = (self._numbers[name].to(like) for name in ("signal", "std"))
            least, most = (float(bound) for bound in self._numbers["std"].aminmax())
            self._in_range("std", least, most, like)
            apart = bool((signal.diff() >= torch.finfo(like.dtype).smallest_normal).all())
            wanted = f"knots that {like.dtype} can tell apart"
            good = apart and bool(signal.isfinite().all())
            require(good, self._name, "signal", wanted, "closer or larger ones")
            return signal, std

        return self._once(("knots", like.dtype, like.device), make)

    def log_likelihood(self, y: Tensor, fx: Tensor) -> Tensor:
        """log p(y | fx), (B, ...) to (B,), in float32 (float64 for float64)."""
        name = f"{self._name}.log_likelihood"
        check_float(name, "fx", fx)
        require(fx.dim() >= 1, name, "fx", "shape (B, ...)", "a scalar")
        check_like(name, "y", y, fx, tuple(fx.shape))
        std = self.std_of(fx)
        unit = (accumulated(y) - accumulated(fx)) / std
        return image_sum(self.law.log_prob(unit)) - image_sum(std.log())

    def draw(self, fx: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A draw of y - f(x) at this clean signal f(x) (B, ...), with its shape, dtype and device.

        Raises:
            ArgumentError: a law that cannot be drawn from.
        """
        name = f"{self._name}.draw"
        check_float(name, "fx", fx)
        if not provides(self.law, Sampled):
            wanted = "one with sample(shape, generator), to draw from"
            raise ArgumentError(name, "law", wanted, type(self.law).__name__)
        with torch.no_grad():
            std = self.std_of(fx)
            unit = self.law.sample(tuple(fx.shape), generator)
            return (std * unit.to(std)).to(fx.dtype)
