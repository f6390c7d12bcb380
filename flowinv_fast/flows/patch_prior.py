"""A density of images of any size, made of a flow of small patches."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ArgumentError, is_whole, require
from .._base.parameters import Fixed
from .._base.tensors import accumulate_dtype, check_float, plain
from ..protocols import Density, Freezable, is_bounded, provides

_AT_ONCE = 512  # patches that are scored together
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
        stride = max(1, side // 2) if stride is None else stride
        good = is_whole(stride, 1) and stride <= side
        require(good, _NAME, "stride", f"an integer in 1..{side}", repr(stride))
        self.flow, self.stride = flow, int(stride)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats for pixels in [0, 1] units: (B, C, H, W) to (B,).

        Raises:
            ArgumentError: images of other channels or smaller than a patch, or of another dtype or
                device than the flow's.
        """
        function, (channels, *size) = f"{_NAME}.log_prob", self.flow.shape
        check_float(function, "x", x, 4)
        good = x.shape[1] == channels and all(n >= p for n, p in zip(x.shape[2:], size))
        wanted = f"images (B, {channels}, H, W) of at least {size[0]} x {size[1]} pixels"
        require(good, function, "x", wanted, f"shape {tuple(x.shape)}")
        return _PatchSum.apply(plain(x), self, torch.is_grad_enabled() and x.requires_grad)[0]

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
        return _AT_ONCE * (
            self.flow.saved_bytes + self.flow.work_bytes + 16 * math.prod(self.flow.shape)
        )

    def __repr__(self) -> str:
        size = " x ".join(map(str, self.flow.shape))
        return f"PatchPrior({type(self.flow).__name__} of {size}, stride {self.stride})"


class _PatchSum(torch.autograd.Function):
    """log p of images and, where wanted, its gradient: some rows of patches at a time."""

    @staticmethod
    def forward(x: Tensor, prior: PatchPrior, wanted: bool) -> tuple[Tensor, Tensor]:
        batch, _, height, width = x.shape
        channels, h, w = prior.flow.shape
        rows = _places(height, h, prior.stride, x.device)
        columns = _places(width, w, prior.stride, x.device)
        total = x.new_zeros(batch, dtype=accumulate_dtype(x.dtype))
        grad = torch.zeros_like(x) if wanted else x[:0]
        many = max(1, _AT_ONCE // max(1, batch * len(columns)))
        for first in range(0, len(rows), many):
            some = rows[first : first + many]
            top = min(first * prior.stride, height - h)
            low = min((first + len(some) - 1) * prior.stride, height - h) + h
            with torch.set_grad_enabled(wanted):
                strip = x[:, :, top:low].detach().requires_grad_(wanted)
                across = strip[:, :, (some - top)[:, None, :, None], columns[:, None]]
                patches = across.permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, h, w)
                values = prior.flow.log_prob(patches).view(batch, len(some) * len(columns)).sum(1)
                if wanted:
                    grad[:, :, top:low] += torch.autograd.grad(values.sum(), strip)[0]
            total += values.detach()
        weight = height * width / (len(rows) * len(columns) * h * w)
        return total * weight, grad * weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[0], output[1])

    @staticmethod
    def backward(ctx: Any, of_total: Tensor, _: Any) -> tuple:
        x, grad = ctx.saved_tensors
        return _Once.apply(of_total.view(-1, 1, 1, 1) * grad, x), None, None


class _Once(torch.autograd.Function):
    """A gradient as it is; that of a gradient, which depends on x, is refused and not lost."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple:
        raise ArgumentError(f"{_NAME}.log_prob", "x", "one derivative", "a second one: it has none")


def _places(size: int, patch: int, stride: int, device: torch.device) -> Tensor:
    """Rows (or columns) of the patches that cover ``size`` of them: (K, patch) int64."""
    count = -(-(size - patch) // stride) + 1
    first = (stride * torch.arange(count, device=device)).clamp_max(size - patch)
    return first[:, None] + torch.arange(patch, device=device)
