"""A flow: a list of layers, walked forth to the latent and back to the image."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import is_real, is_whole, require
from .._base.tensors import accumulate_dtype, check_tensor, plain
from ..ops.frozen_flow import Record
from .base import Layer, Level, Shape
from .check import check_flow
from .conditioner import WeightNormConv2d, unchanged
from .frozen import FrozenFlow
from .layers import AffineCoupling, FactorOut, Standardise
from .recompute import encode_recomputed

_OF_A_LEVEL = ("bits_per_dim", "log_prob_peak")  # facts in ``info``


@dataclass(frozen=True)
class FlowConfig:
    """What every flow says about its images, whatever its layers.

    Args:
        shape: (C, H, W) of the images.
        support: "bounded" (a logit first: images in [0, 1]) or "unbounded" (density on all of
            R^n, needed by noise flows and better behaved as a prior).
        bits: pixel depth of the training images, for dequantisation and bits per dimension; 0: they
            are real numbers of any range (unbounded support), as recordings of noise are.
        alpha: margin of the logit, bounded support only.
        smoothing: standard deviation of the Gaussian noise added to training images (in units of
            the [0, 1] range), unbounded support only; 0: uniform dequantisation instead, or for
            real numbers none.
    Raises:
        ArgumentError: a value out of its range; so do the configurations that build on this one.

    Example:
        >>> from flowinv_fast.flows import FlowConfig
        >>> FlowConfig((1, 28, 28), bits=5)
        FlowConfig(shape=(1, 28, 28), support='unbounded', bits=5, alpha=0.05, smoothing=0.08)
    """

    shape: Shape
    support: str = field(default="unbounded", kw_only=True)
    bits: int = field(default=8, kw_only=True)
    alpha: float = field(default=0.05, kw_only=True)
    smoothing: float = field(default=0.08, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        good = len(self.shape) == 3 and min(self.shape) >= 1
        self._require(good, "shape", "three positive sizes")
        good = self.support in ("bounded", "unbounded")
        self._require(good, "support", "'bounded' or 'unbounded'")
        least = 0 if self.support == "unbounded" else 1
        good = is_whole(self.bits, least) and self.bits <= 16
        self._require(good, "bits", f"an integer in {least}..16")
        self._require(0 < self.alpha < 0.5, "alpha", "a number in (0, 0.5)")
        self._require(self.smoothing >= 0, "smoothing", "a number of at least 0")

    def _require(self, condition: bool, name: str, expected: str) -> None:
        require(condition, type(self).__name__, name, expected, getattr(self, name))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as stored in the header of a weights file."""
        return asdict(self)


class Flow(nn.Module):
    """A normalizing flow between images x (B, C, H, W) and latents z (B, N), N = C H W.

    log p(x) = log N(encode(x); 0, I) + log|det dz/dx|, in nats. Its layers are walked in order by
    ``encode`` and in reverse by ``decode``. What a ``FactorOut`` lets go joins the latent at once:
    z = [z_1 | z_2 | ... | rest], each flattened.

    Args:
        layers: the layers in the order of encode.
        config: shape of the images and how they are dequantised; for a flow that ``save_flow``
            writes, the configuration that its builder (``realnvp``, ``tarflow``, ...) made it of.
    Raises:
        ArgumentError: a layer that is none, or that does not fit the images that reach it.

    Example:
        >>> import torch, flowinv_fast as ff
        >>> from flowinv_fast.flows import AffineCoupling, Flow, FlowConfig, Standardise
        >>> masks = ["checkerboard_even", "checkerboard_odd"]
        >>> couplings = [AffineCoupling(1, hidden=8, blocks=1, mask=mask) for mask in masks]
        >>> flow = Flow([Standardise((1, 4, 4)), *couplings], FlowConfig((1, 4, 4)))
        >>> x = torch.rand(2, 1, 4, 4)
        >>> z, logdet = flow.encode(x)
        >>> z.shape, torch.allclose(flow.decode(z)[0], x, atol=1e-5)
        (torch.Size([2, 16]), True)
    """

    def __init__(self, layers: Sequence[Layer[Any]], config: FlowConfig):
        super().__init__()
        require(isinstance(config, FlowConfig), "Flow", "config", "a FlowConfig", repr(config))
        self.config = config
        self.shape = config.shape
        shape, sizes = config.shape, []
        for layer in layers:
            require(isinstance(layer, Layer), "Flow", "layers", "instances of Layer", repr(layer))
            after = layer.shape_after(shape)
            left, splits = math.prod(shape) - math.prod(after), isinstance(layer, FactorOut)
            fits = left > 0 if splits else left == 0
            require(fits, "Flow", "layers", f"one that keeps the size of {shape}", repr(layer))
            sizes += [left] if splits else []
            shape = after
        self.layers = nn.ModuleList(layers)
        self._rest = shape  # of what no layer let go
        self._sizes = [*sizes, math.prod(shape)]
        self.info: dict[str, Any] = {}  # provenance, filled by load_flow
        self.level_is_given = False  # by ``at``: else a solve may choose the level
        self.recompute = False  # of encode: see ``encode_recomputed``

    # -- the map -----------------------------------------------------------------------------

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent of an image.

        Args:
            x: (B, C, H, W), dtype and device of the flow; in [0, 1] for bounded support.
        Returns:
            z (B, N) and log|det dz/dx| (B,).
        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        check_tensor("Flow.encode", "x", x, self.shape, self.dtype, self.device)
        h, logdet = self._own(x), self._zero_logdet(x)
        latents: list[Tensor] = []
        together = self.recompute and torch.is_grad_enabled() and not ops.in_transform()
        for run in self._runs(together):
            if together and run[0].recomputable():
                h, logdet = encode_recomputed(run, h, logdet)
            elif isinstance(run[0], FactorOut):
                (h, latent), logdet = run[0].encode(h, logdet)
                latents.append(latent)
            else:
                h, logdet = run[0].encode(h, logdet)
        return torch.cat([*latents, h.flatten(1)], 1), logdet

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image of a latent.

        Args:
            z: (B, N), dtype and device of the flow.
        Returns:
            x (B, C, H, W) and log|det dx/dz| (B,).
        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        size = (math.prod(self.shape),)
        check_tensor("Flow.decode", "z", z, size, self.dtype, self.device)
        *latents, h = plain(z).split(self._sizes, dim=1)
        h, logdet = self._own(h.reshape(len(z), *self._rest)), self._zero_logdet(z)
        for layer in reversed(self._list()):
            if isinstance(layer, FactorOut):
                h, logdet = layer.decode((h, latents.pop()), logdet)
            else:
                h, logdet = layer.decode(h, logdet)
        return h, logdet

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats for pixels in [0, 1] units: (B, C, H, W) to (B,)."""
        z, logdet = self.encode(x)
        return ops.standard_normal_log_prob(z) + logdet

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, H, W): decode(temperature * standard normal)."""
        require(n >= 0, "Flow.sample", "n", "a non-negative integer", n)
        size = n, math.prod(self.shape)
        z = torch.randn(size, generator=generator, device=self.device, dtype=self.dtype)
        return self.decode(temperature * z)[0]

    def freeze(
        self, precision: str = "fp32", device: torch.device | str | None = None
    ) -> FrozenFlow:
        """The same map with its weights fixed now, on the compiled engine: fast and small.

        Args:
            precision: "fp32", "tf32" or "bf16", see ``FrozenFlow``.
            device: where it will run; None is where the flow is.
        Raises:
            ArgumentError: a flow that is not float32, or a precision that is not to be had here.

        Example:
            >>> import flowinv_fast as ff
            >>> flow = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1))
            >>> flow.freeze().sample(3).shape
            torch.Size([3, 1, 8, 8])
        """
        return FrozenFlow(self, precision, device)

    # -- levels of noise ---------------------------------------------------------------------

    @property
    def levels(self) -> tuple[float, float] | None:
        """Lowest and highest std that ``at`` takes; None: trained at one level."""
        return getattr(self.config, "levels", None)

    def at(self, std: float) -> Flow:
        """The density at one level of a flow that was trained over a range of them.

        That of x + std e, x an image and e standard normal. It is a flow like any other: to solve
        with, to freeze, to save. It shares the weights with this one, which is left as it is; its
        ``info`` lacks what was measured at another level.

        Args:
            std: in ``levels``, in units of the [0, 1] range; ``config.smoothing`` of the result.
        Raises:
            ArgumentError: a std that is not in ``levels``, or a flow without them.

        Example:
            >>> import torch, flowinv_fast as ff
            >>> config = ff.TarFlowConfig((1, 8, 8), width=8, heads=2, levels=(0.05, 0.5))
            >>> flow = ff.tarflow(config)
            >>> flow.at(0.5).log_prob(torch.rand(2, 1, 8, 8)).shape, flow.config.smoothing
            (torch.Size([2]), 0.08)
        """
        levels, wanted = self.levels, "a flow trained over a range of levels"
        require(levels is not None, "Flow.at", "flow", wanted, f"one of {self.config}")
        assert levels is not None
        low, high = levels
        good = is_real(std) and low <= std <= high
        require(good, "Flow.at", "std", f"a number in {low:g} .. {high:g}", repr(std))
        view = self.at_each(float(std))
        view.level_is_given = True
        view.config = replace(self.config, smoothing=float(std))
        if std != self.config.smoothing:
            view.info = {k: v for k, v in self.info.items() if k not in _OF_A_LEVEL}
        return view

    def at_each(self, level: Level) -> Flow:
        """For training: the same weights, image i of a batch (B, C, H, W) at level[i] of (B,)."""
        view = copy.copy(self)
        layers = nn.ModuleList(_at(layer, level) for layer in self._list())
        view._modules = {**self._modules, "layers": layers}
        return view

    check = check_flow

    def engine_plan(self) -> tuple[list[Layer[Any]], Shape, list[Record]] | None:
        """What ``freeze`` gives the compiled engine: leading layers that it does not know, the
        (C, H, W) behind them, and the records of all others. None: it cannot run this flow."""
        if not unchanged(self, Flow, "encode", "decode", "log_prob", "sample"):
            return None
        front, shape, records = [], self.shape, list[Record]()
        for layer in self._list():
            with torch.no_grad():
                own = layer.records()
            if own is not None:
                records += own
            elif records or isinstance(layer, FactorOut):
                return None
            else:
                front.append(layer)
                shape = layer.shape_after(shape)
        return (front, shape, records) if records else None

    # -- training helpers --------------------------------------------------------------------

    def gains(self) -> list[nn.Parameter]:
        """The learned bounds of the log-scales, of couplings and of priors: all start at zero."""
        return [m.gain for m in self.modules() if isinstance(m, AffineCoupling)]

    def conditioners(self) -> list[nn.Module]:
        """The networks inside couplings, priors and autoregressive maps: nearly all of the
        arithmetic."""
        inside = (getattr(module, "conditioner", None) for module in self.modules())
        return [network for network in inside if isinstance(network, nn.Module)]

    @torch.no_grad()
    def initialise(self, x: Tensor, floor: float = 1e-3) -> None:
        """Set the first ``Standardise`` layer from dequantised training images (B, C, H, W).

        A standard deviation is at least ``floor``, of real numbers times that of all of them, and
        for unbounded support at least the smoothing: a few images may agree on a pixel by chance.
        """
        if self.config.bits == 0:
            floor = max(floor * float(x.std()), torch.finfo(x.dtype).tiny)
        if self.config.support == "unbounded":
            floor = max(floor, self.config.smoothing)
        h, logdet = self._own(x), self._zero_logdet(x)
        for layer in self._list():
            if isinstance(layer, Standardise):
                layer.initialise(h, floor)
            if isinstance(layer, (Standardise, FactorOut)):
                return
            h, logdet = layer.encode(h, logdet)

    def dequantise(self, x: Tensor, seed: int, offset: int = 0) -> Tensor:
        """Training noise for images x in [0, 1] (B, C, H, W); random numbers by (seed, offset).

        Bounded support, or no smoothing: uniform over each of the 2^bits grey levels, and none for
        real numbers. Otherwise Gaussian of standard deviation ``smoothing``.
        """
        if self.config.bits == 0 and self.config.smoothing == 0:
            return x
        if self.config.support == "bounded" or self.config.smoothing == 0:
            return ops.dequantise(x, 2**self.config.bits, seed, offset)
        std = torch.full((), self.config.smoothing, dtype=x.dtype, device=x.device)
        return ops.gaussian_noise(x, std, list(x.shape), seed, offset)

    def bits_per_dim(self, log_prob: Tensor) -> Tensor:
        """log p (B,) in nats to bits per dimension of 2^bits grey levels (B,), or of the unit.

        For uniform dequantisation this bounds the code length of the discrete image; for Gaussian
        smoothing it is the differential code length of the smoothed image on the same scale.
        """
        return self.config.bits - log_prob / (math.log(2) * math.prod(self.shape))

    def weight_norm_penalty(self) -> Tensor:
        """Sum of squared weight-normalisation gains of every convolution, a scalar."""
        gains = [m.gain for m in self.modules() if isinstance(m, WeightNormConv2d)]
        return sum(((gain * gain).sum() for gain in gains), start=self._like().new_zeros(()))

    # -- pieces ------------------------------------------------------------------------------

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights: float32 or float64."""
        return self._like().dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._like().device

    def _like(self) -> Tensor:
        """A floating-point parameter or buffer; all have the same dtype and device."""
        tensors: Iterator[Tensor] = chain(self.parameters(), self.buffers())
        return next((t for t in tensors if t.is_floating_point()), torch.empty(0))

    def _list(self) -> list[Layer[Any]]:
        return cast("list[Layer[Any]]", list(self.layers))

    def _runs(self, together: bool) -> list[list[Layer[Any]]]:
        """The layers one by one; ``together``: neighbours that can be recomputed as one run."""
        runs: list[list[Layer[Any]]] = []
        for layer in self._list():
            if together and runs and layer.recomputable() and runs[-1][0].recomputable():
                runs[-1].append(layer)
            else:
                runs.append([layer])
        return runs

    def _own(self, h: Tensor) -> Tensor:
        """h as layers may have it: without gradients they overwrite it."""
        h = plain(h)
        if torch.is_grad_enabled():
            return h
        return h.clone(memory_format=torch.contiguous_format)

    def _zero_logdet(self, x: Tensor) -> Tensor:
        return plain(x).new_zeros(len(x), dtype=accumulate_dtype(x.dtype))


def _at(layer: Layer[Any], level: Level) -> Layer[Any]:
    """The layer at a level, its weights shared; itself where levels mean nothing to it."""
    if layer.level is None:
        return layer
    view = copy.copy(layer)
    view.level = level
    return view
