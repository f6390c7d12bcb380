"""Noise that is itself a normalizing flow, over the whole residual or over placed patches."""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.tensors import check_positive, draw_seed
from ..protocols import Density, Freezable, missing, provides

Holder = TypeVar("Holder", "FlowNoise", "PlacedFlowNoise")


class FlowNoise:
    """delta = scale * sample of a flow: log p(delta) = log p_flow(delta / scale) - N log scale.

    The flow needs support on all of R^n ("unbounded"): the residual can be any real number, and a
    logit flow's density is undefined outside its range.

    Args:
        flow: anything with ``log_prob(x)`` for x (B, C, H, W); ``sample(n)`` to draw.
        scale: positive factor on the flow's images.
    Raises:
        ArgumentError: no log_prob, bounded support, or a scale that is not positive.

    >>> import flowinv_fast as ff
    >>> model = FlowNoise(ff.load_flow("digits-noise-28"), scale=0.5)
    >>> model.log_prob(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2])
    """

    multimodal = True

    def __init__(self, flow: Density, scale: float = 1.0):
        _check_flow("noise.FlowNoise", flow)
        check_positive("noise.FlowNoise", "scale", scale)
        self.flow, self.scale = flow, float(scale)

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

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, C, H, W) to (B,)."""
        size = math.prod(residual.shape[1:])
        return self.flow.log_prob(residual / self.scale) - size * math.log(self.scale)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, C, H, W)."""
        draw = self.scale * _draw("noise.FlowNoise.sample", self.flow, shape[0], generator)
        wanted = f"(B, {', '.join(map(str, draw.shape[1:]))})"
        good = tuple(draw.shape) == tuple(shape)
        require(good, "noise.FlowNoise.sample", "shape", wanted, tuple(shape))
        return draw


class PlacedFlowNoise:
    """Patches of noise from a flow at known places, a small Gaussian on all other pixels.

    log p(delta) = sum over k of log p_flow(patch_k / scale) - n_patch log scale
                   + sum over the uncovered pixels of log N(delta; 0, std^2)

    Args:
        flow: density of one-channel patches (1, h, w), support unbounded.
        places: int64 (K, 3) for all images or (B, K, 3): channel, top row, left column.
        std: of the Gaussian elsewhere, positive.
        scale: positive factor on the flow's patches.
    Raises:
        ArgumentError: an argument that does not fit. Places that overlap, or leave the image, are
            refused when a residual is scored.

    >>> import flowinv_fast as ff
    >>> places = torch.tensor([[0, 2, 3], [2, 34, 30]])
    >>> model = PlacedFlowNoise(ff.load_flow("digits-noise-28"), places, 0.01)
    >>> model.log_prob(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2])
    """

    multimodal = True

    def __init__(self, flow: Density, places: Tensor, std: float, scale: float = 1.0):
        name = "noise.PlacedFlowNoise"
        _check_flow(name, flow)
        check_positive(name, "std", std)
        check_positive(name, "scale", scale)
        good = isinstance(places, Tensor) and places.dtype == torch.int64
        good = good and places.dim() in (2, 3) and places.shape[-1] == 3
        got = getattr(places, "shape", type(places))
        require(good, name, "places", "int64 (K, 3) or (B, K, 3)", got)
        shape = tuple(getattr(flow, "shape", ()))
        single = len(shape) == 3 and shape[0] == 1
        require(single, name, "flow", "a flow of one-channel patches", shape)
        self.flow, self.places, self.std, self.scale = flow, places, float(std), float(scale)
        self.patch = (int(shape[1]), int(shape[2]))
        self._kept: tuple[tuple, Tensor] | None = None
        self._moved: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @property
    def saved_bytes(self) -> int:
        """Bytes that an image keeps for its gradient, where the flow is frozen."""
        return self.places.shape[-2] * getattr(self.flow, "saved_bytes", 0)

    @property
    def work_bytes(self) -> int:
        """Bytes that an image needs during a call, where the flow is frozen."""
        return self.places.shape[-2] * getattr(self.flow, "work_bytes", 0)

    def freeze(self, *, precision: str = "fp32") -> PlacedFlowNoise:
        """The same noise model on the frozen flow; itself where the flow cannot be frozen."""
        return _frozen(self, precision)

    def select(self, part: slice, shape: tuple[int, ...]) -> PlacedFlowNoise:
        """The noise of some images, of a batch of measurements of this shape (B, C, H, W)."""
        if self.places.dim() == 2:
            return self
        own = copy.copy(self)
        own.places, own._kept, own._moved = self.places[part], None, {}
        return own

    def _places(self, batch: int, device: torch.device) -> Tensor:
        """The places (B, K, 3), copied to another device once."""
        places = self.places
        if places.device != device:
            kept = self._moved.get(device)
            if kept is None or kept[0] is not places:
                kept = self._moved[device] = (places, places.to(device))
            places = kept[1]
        return places.expand(batch, -1, 3) if places.dim() == 2 else places

    def _uncovered(self, residual: Tensor) -> Tensor:
        """1 where no patch lies, 0 under one: (B, C, H, W)."""
        key, kept = (residual.shape, residual.dtype, residual.device), self._kept
        if kept is None or kept[0] != key:
            places = self._places(residual.shape[0], residual.device)
            ones = residual.new_ones(*places.shape[:2], *self.patch)
            covered = ops.scatter_patches(ones, places, _image(residual.shape))
            apart, wanted = not bool((covered > 1).any()), "patches that do not overlap"
            require(apart, "noise.PlacedFlowNoise", "places", wanted, "overlapping places")
            kept = self._kept = (key, 1 - covered)
        return kept[1]

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, C, H, W) to (B,)."""
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
        count = shape[0] * self.places.shape[-2]
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
    own.flow = model.flow.freeze(precision=precision)
    return own


def _draw(name: str, flow: Density, count: int, generator: torch.Generator | None) -> Tensor:
    require(hasattr(flow, "sample"), name, "flow", "a flow with sample(n)", type(flow).__name__)
    return flow.sample(count, generator=generator)  # type: ignore[attr-defined]


def _image(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """(C, H, W) of a batch's shape."""
    _, channels, height, width = shape
    return channels, height, width


def _check_flow(name: str, flow: Density) -> None:
    got = type(flow).__name__
    require(not missing(flow, Density), name, "flow", "an object with log_prob(x)", got)
    support = getattr(getattr(flow, "config", None), "support", "unbounded")
    wanted = "a flow with unbounded support"
    require(support == "unbounded", name, "flow", wanted, f"support {support!r}")
