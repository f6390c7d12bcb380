"""Noise that is itself a normalizing flow, over the whole residual or over placed patches."""

from __future__ import annotations

import copy
import math
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.parameters import Fixed, indices, number
from .._base.tensors import check_float, draw_seed
from ..protocols import Density, Freezable, Whitening, is_bounded, missing, provides
from .law import Law

Holder = TypeVar("Holder", "FlowNoise", "PlacedFlowNoise")


class FlowNoise(Fixed):
    """delta = shift + scale * a sample of a flow.

    log p(delta) = log p_flow((delta - shift) / scale) - N log scale.

    With ``whitening``, a law W such as ``StationaryGaussian``, the flow is of what W whitens, and
    has only to learn what W misses: log p(delta) = log p_flow(W(delta)) + log|det dW/d delta|.

    The flow needs support on all of R^n ("unbounded"): the residual can be any real number, and a
    logit flow's density is undefined outside its range.

    Args:
        flow: anything with ``log_prob(x)`` for x (B, C, H, W); ``sample(n)`` to draw. It is shared,
            not copied.
        scale: positive factor on the flow's images, one number.
        shift: what is added to them, one number.
        whitening: a noise model with ``whiten`` and ``colour`` (``protocols.Whitening``), instead
            of scale and shift, the same for all images; residuals may then be vectors (B, N) too,
            of a flow of N numbers.
    Raises:
        ArgumentError: no log_prob, bounded support, a scale that is not positive, a shift that is
            not finite, or a whitening that is none or stands beside a scale or shift.

    >>> import flowinv_fast as ff
    >>> model = FlowNoise(ff.load_flow("digits-noise-28"), scale=0.5)
    >>> model.log_prob(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2])
    """

    multimodal = True
    fixed = ("flow", "scale", "shift", "whitening")

    def __init__(
        self,
        flow: Density,
        scale: float = 1.0,
        shift: float = 0.0,
        whitening: Whitening | None = None,
    ):
        name = "noise.FlowNoise"
        _check_flow(name, flow)
        self.flow, self.scale = flow, number(name, "scale", scale, positive=True)
        self.shift, self.whitening = number(name, "shift", shift), whitening
        if whitening is not None:
            good = not isinstance(whitening, type) and provides(whitening, Whitening)
            wanted, got = "a noise model with whiten and colour", type(whitening).__name__
            require(good, name, "whitening", wanted, got)
            alone = self.scale == 1 and self.shift == 0
            require(alone, name, "whitening", "none beside scale or shift", got)
            size = len(getattr(flow, "shape", (1, 1, 1)))
            rows = [getattr(whitening, number, 0.0) for number in ("std", "mean")]
            same = all(not isinstance(v, Tensor) or v.dim() <= size or len(v) == 1 for v in rows)
            require(same, name, "whitening", "one law for all images", "one with rows per image")

    @property
    def saved_bytes(self) -> int:
        """Bytes that an image keeps for its gradient, where the flow is frozen."""
        return getattr(self.flow, "saved_bytes", 0)

    @property
    def work_bytes(self) -> int:
        """Bytes that an image needs during a call, where the flow is frozen."""
        return getattr(self.flow, "work_bytes", 0)

    def freeze(self, *, precision: str = "fp32") -> FlowNoise:
        """The same noise model on the frozen flow; itself where the flow cannot be frozen."""
        return _frozen(self, precision)

    def __repr__(self) -> str:
        size = " x ".join(map(str, getattr(self.flow, "shape", ())))
        told = [f"{type(self.flow).__name__} of {size}" if size else type(self.flow).__name__]
        others = {"scale": (self.scale, 1.0), "shift": (self.shift, 0.0)}
        told += [f"{name}={value:g}" for name, (value, usual) in others.items() if value != usual]
        told += [] if self.whitening is None else [f"whitening={self.whitening!r}"]
        return f"FlowNoise({', '.join(told)})"

    def _check_size(
        self, method: str, argument: str, found: tuple[int, ...], shape: tuple[int, ...]
    ) -> None:
        """A batch (B, C, H, W) of the flow's images, or of vectors of as many numbers."""
        good = tuple(found[1:]) in (tuple(shape), (math.prod(shape),))
        wanted = f"shape (B, {', '.join(map(str, shape))}) or (B, {math.prod(shape)})"
        require(good, f"noise.FlowNoise.{method}", argument, wanted, tuple(found))

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, C, H, W) to (B,)."""
        check_float("noise.FlowNoise.log_prob", "residual", residual)
        if self.whitening is not None:
            white, logdet = self.whitening.whiten(residual)
            shape = tuple(getattr(self.flow, "shape", white.shape[1:]))
            self._check_size("log_prob", "residual", white.shape, shape)
            return self.flow.log_prob(white.reshape(len(white), *shape)) + logdet
        size = math.prod(residual.shape[1:])
        at = (residual - self.shift) / self.scale if self.shift else residual / self.scale
        return self.flow.log_prob(at) - size * math.log(self.scale)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W)."""
        draw = self.scale * _draw("noise.FlowNoise.sample", self.flow, shape[0], generator)
        draw = draw + self.shift if self.shift else draw
        if self.whitening is not None:
            self._check_size("sample", "shape", shape, draw.shape[1:])
            return self.whitening.colour(draw.reshape(tuple(shape)))
        wanted = f"(B, {', '.join(map(str, draw.shape[1:]))})"
        good = tuple(draw.shape) == tuple(shape)
        require(good, "noise.FlowNoise.sample", "shape", wanted, tuple(shape))
        return draw


class PlacedFlowNoise(Law):
    """Patches of noise from a flow at known places, a small Gaussian on all other pixels.

    log p(delta) = sum over k of log p_flow(patch_k / scale) - n_patch log scale
                   + sum over the uncovered pixels of log N(delta; 0, std^2)

    Args:
        flow: density of one-channel patches (1, h, w), support unbounded. It is shared, not copied.
        places: integers (K, 3) for all images or (B, K, 3): channel, top row, left column.
        std: of the Gaussian elsewhere, one positive number.
        scale: positive factor on the flow's patches, one number.
    Raises:
        ArgumentError: an argument that does not fit. Places that overlap, leave the image or are
            for another number of images are refused when a residual is scored.

    >>> import flowinv_fast as ff
    >>> places = torch.tensor([[0, 2, 3], [2, 34, 30]])
    >>> model = PlacedFlowNoise(ff.load_flow("digits-noise-28"), places, 0.01)
    >>> model.log_prob(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2])
    """

    multimodal = True
    fixed = ("flow", "places", "std", "scale", "patch")
    places: Tensor
    std: float
    scale: float

    def __init__(self, flow: Density, places: Any, std: float, scale: float = 1.0):
        name = self._name
        _check_flow(name, flow)
        wanted = "integers of at least 0, (K, 3) or (B, K, 3)"
        where = indices(name, "places", places, wanted)
        good = where.dim() in (2, 3) and where.shape[-1] == 3
        require(good, name, "places", wanted, f"shape {tuple(where.shape)}")
        shape = tuple(getattr(flow, "shape", ()))
        single = len(shape) == 3 and shape[0] == 1
        require(single, name, "flow", "a flow of one-channel patches", shape)
        super().__init__(
            places=where,
            std=number(name, "std", std, positive=True),
            scale=number(name, "scale", scale, positive=True),
        )
        self.flow, self.patch = flow, (int(shape[1]), int(shape[2]))

    @property
    def saved_bytes(self) -> int:
        """Bytes that an image keeps for its gradient, where the flow is frozen."""
        return self._numbers["places"].shape[-2] * getattr(self.flow, "saved_bytes", 0)

    @property
    def work_bytes(self) -> int:
        """Bytes that an image needs during a call, where the flow is frozen."""
        return self._numbers["places"].shape[-2] * getattr(self.flow, "work_bytes", 0)

    def freeze(self, *, precision: str = "fp32") -> PlacedFlowNoise:
        """The same noise model on the frozen flow; itself where the flow cannot be frozen."""
        return _frozen(self, precision)

    def _places(self, batch: int, device: torch.device) -> Tensor:
        """The places (B, K, 3), copied to another device once."""
        places, rows = self._numbers["places"], self._rows
        if places.dim() == 2 or places.shape[0] == 1:
            some = self._once(("places", device), lambda: places.to(device))
            return some.expand(batch, -1, 3)
        own = len(places) if rows is None else len(rows.images)
        good = own == batch and (rows is None or rows.batch == len(places))
        got = f"places of {own} images for {batch}"
        require(good, self._name, "places", "(K, 3), or (B, K, 3) for B images", got)
        return self._once(
            ("places", device), lambda: (places if rows is None else rows.cut(places)).to(device)
        )

    def _uncovered(self, like: Tensor) -> Tensor:
        """1 where no patch lies, 0 under one: (B, C, H, W)."""
        name = f"{self._name}.log_prob"
        require(like.dim() == 4, name, "residual", "shape (B, C, H, W)", tuple(like.shape))
        places = self._places(like.shape[0], like.device)
        shape, dtype = like.shape, like.dtype

        def make() -> Tensor:
            ones = torch.ones((*places.shape[:2], *self.patch), dtype=dtype, device=places.device)
            covered = ops.scatter_patches(ones, places, _image(shape))
            apart, wanted = not bool((covered > 1).any()), "patches that do not overlap"
            require(apart, self._name, "places", wanted, "overlapping places")
            return 1 - covered

        return self._once(("uncovered", shape, dtype, like.device), make)

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, C, H, W) to (B,)."""
        check_float(f"{self._name}.log_prob", "residual", residual)
        batch = residual.shape[0]
        uncovered = self._uncovered(residual.detach())
        places = self._places(batch, residual.device)
        patches = ops.gather_patches(residual, places, self.patch)
        patch_size = math.prod(self.patch)
        flat = patches.reshape(-1, 1, *self.patch) / self.scale
        in_patches = self.flow.log_prob(flat).view(batch, -1) - patch_size * math.log(self.scale)
        # Covered pixels enter the Gaussian as zeros; their constant is taken off again.
        elsewhere = ops.gaussian_log_prob(
            residual * uncovered, torch.zeros_like(residual), 0.0, self.std
        )
        constant = math.log(self.std) + 0.5 * math.log(2 * math.pi)
        return in_patches.sum(1) + elsewhere + places.shape[1] * patch_size * constant

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W)."""
        count = shape[0] * self._numbers["places"].shape[-2]
        patches = _draw("noise.PlacedFlowNoise.sample", self.flow, count, generator)
        patches = patches.reshape(shape[0], -1, *self.patch) * self.scale
        places = self._places(shape[0], patches.device)
        digits = ops.scatter_patches(patches, places, _image(shape))
        std = torch.full((), self.std, dtype=patches.dtype, device=patches.device)
        rest = ops.gaussian_noise(0.0, std, shape, draw_seed(generator))
        return digits + rest * self._uncovered(digits)


def _frozen(model: Holder, precision: str) -> Holder:
    """A copy of a noise model on its frozen flow."""
    if not provides(model.flow, Freezable):
        return model
    own = copy.copy(model)
    vars(own)["flow"] = model.flow.freeze(precision=precision)
    return own


def _draw(name: str, flow: Density, count: int, generator: torch.Generator | None) -> Tensor:
    require(hasattr(flow, "sample"), name, "flow", "a flow with sample(n)", type(flow).__name__)
    return flow.sample(count, generator=generator)  # type: ignore[attr-defined]


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a batch's shape."""
    _, channels, height, width = shape
    return channels, height, width


def _check_flow(name: str, flow: Density) -> None:
    got = repr(flow) if isinstance(flow, type) else type(flow).__name__
    good = not isinstance(flow, type) and not missing(flow, Density)
    require(good, name, "flow", "an object with log_prob(x)", got)
    wanted = "a flow with unbounded support"
    require(not is_bounded(flow), name, "flow", wanted, "support 'bounded'")
