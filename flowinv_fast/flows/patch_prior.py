"""A density of images of any size, made of a flow of small patches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._base.errors import require
from .._base.parameters import Fixed
from .._base.tiles import Tiles, check_stride, needed_bytes
from ..protocols import Density, Freezable, is_bounded, provides

_NAME = "PatchPrior"


class PatchPrior(Fixed):
    """A density of images of any size at least a patch's, made of a flow of patches.

    log p(x) = (1 / c) sum over k of log p_flow(patch_k),  c = K h w / (H W)

    The K patches (C, h, w) of an image (C, H, W) stand on a grid of ``stride`` rows and columns,
    the last ones moved inwards so that every pixel is covered; c is the mean number of patches over
    a pixel. So log p is H W / (h w) times the mean log p of a patch: it grows with the number of
    pixels, at any stride, and that of a single patch is the flow's. The sum is the expected patch
    log likelihood (EPLL) of Zoran and Weiss, From learning models of natural image patches to whole
    image restoration, ICCV 2011; with a flow, PatchNR of Altekrueger et al., 2023. It is a density
    up to a constant: patches that overlap are no independent parts.

    The grid is fixed. One drawn at every step would spread its seams, but the solver compares
    losses between steps, and the same image has to have the same loss in all of them.

    The gradient is computed with the value, some patches at a time, so that beyond the image's own
    memory does not grow with it. It reaches x, once: a second derivative raises, and weights have
    none. There are no latents and no draws, so a solve is over images; and as log p of held-out
    patches is not that of whole images, it does not tell ``prior_overshoot``.

    Args:
        flow: a density of patches with ``shape`` (C, h, w) and ``log_prob``, such as one that
            ``flowinv-fast train --patches`` made, frozen or not; support unbounded. It is shared,
            not copied.
        stride: rows and columns from patch to patch, at most min(h, w); None: half of that (a
            quarter of it takes four times as long and was no better where it was measured).
    Raises:
        ArgumentError: another flow or stride.

    Example:
        >>> import torch, flowinv_fast as ff
        >>> flow = ff.realnvp(ff.RealNVPConfig((3, 8, 8), scales=2, hidden=8, blocks=1))
        >>> ff.PatchPrior(flow).log_prob(torch.rand(2, 3, 21, 30)).shape
        torch.Size([2])
    """

    fixed = ("flow", "stride")

    def __init__(self, flow: Any, stride: int | None = None):
        shape = getattr(flow, "shape", None)
        good = provides(flow, Density) and isinstance(shape, (tuple, list)) and len(shape) == 3
        wanted = "a flow of patches, with shape (C, h, w) and log_prob(x)"
        require(good, _NAME, "flow", wanted, type(flow).__name__)
        wanted = "a flow with unbounded support"
        require(not is_bounded(flow), _NAME, "flow", wanted, "one of images in [0, 1]")
        side = min(flow.shape[1:])
        self.flow = flow
        self.stride = check_stride(_NAME, stride, side, usual=max(1, side // 2))

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats for pixels in [0, 1] units: (B, C, H, W) to (B,).

        Raises:
            ArgumentError: images of other channels or smaller than a patch, or of another dtype or
                device than the flow's.
        """
        shape, log_prob = tuple(self.flow.shape), self.flow.log_prob
        return Tiles(f"{_NAME}.log_prob", "x", "flow", log_prob, shape, self.stride).sum(x)

    def freeze(
        self, precision: str = "fp32", device: torch.device | str | None = None
    ) -> PatchPrior:
        """The same on the frozen flow; itself where the flow is frozen, or cannot be.

        Raises:
            ArgumentError: as for ``Flow.freeze``; another precision or device of such a flow.
        """
        if provides(self.flow, Freezable):
            there = {} if device is None else {"device": device}
            return PatchPrior(self.flow.freeze(precision=precision, **there), self.stride)
        own = precision in ("fp32", getattr(self.flow, "precision", None)) and device is None
        wanted = "a flow with freeze(precision=)"
        require(own, f"{_NAME}.freeze", "flow", wanted, type(self.flow).__name__)
        return self

    def at(self, std: float) -> PatchPrior:
        """The same of ``flow.at(std)``, of a flow of levels.

        Raises:
            ArgumentError: as for ``Flow.at``.
        """
        return PatchPrior(self.flow.at(std), self.stride)

    @property
    def levels(self) -> tuple[float, float] | None:
        """Of the flow; None where it has none, as a frozen one."""
        return getattr(self.flow, "levels", None)

    @property
    def level_is_given(self) -> bool:
        """Of the flow: whether its level was chosen by ``at``; a frozen flow's was."""
        return getattr(self.flow, "level_is_given", True)

    @property
    def config(self) -> Any:
        """Of the flow."""
        return self.flow.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the flow."""
        return self.flow.dtype

    @property
    def device(self) -> torch.device:
        """Of the flow."""
        return self.flow.device

    @property
    def precision(self) -> str:
        """Of the flow, where it is frozen."""
        return self.flow.precision

    @property
    def saved_bytes(self) -> int:
        """What an image keeps for its gradient is the gradient: 0."""
        return 0

    @property
    def work_bytes(self) -> int:
        """Bytes that a call needs for its patches, where the flow is frozen."""
        return needed_bytes(self.flow.saved_bytes + self.flow.work_bytes, self.flow.shape)

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.flow.shape))
        return f"PatchPrior({type(self.flow).__name__} of {size}, stride {self.stride})"
