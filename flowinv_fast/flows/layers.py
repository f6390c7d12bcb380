"""The layers that flows are made of: each an invertible map with its log-determinant.

A flow encodes by walking its layers from first to last and decodes by walking back; see ``Flow``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import require
from ..ops.frozen_flow import (
    FactorOutRecord,
    MixingRecord,
    Record,
    SqueezeRecord,
    StandardiseRecord,
)
from .base import Layer, Shape
from .conditioner import unchanged
from .coupling import AffineCoupling

__all__ = [
    "AffineCoupling",
    "ChannelMixing",
    "FactorOut",
    "Layer",
    "Logit",
    "Squeeze",
    "Standardise",
]


class Standardise(Layer[Tensor]):
    """z = (x - mean) / std for every pixel, with constants of the training data.

    log|det dz/dx| = -sum(log std). Starts as the identity.

    Args:
        shape: (C, H, W) of ``mean`` and ``std``.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.layers import Standardise
        >>> layer = Standardise((1, 2, 2))
        >>> layer.initialise(torch.rand(100, 1, 2, 2), floor=1e-3)
        >>> z, logdet = layer.encode(torch.rand(3, 1, 2, 2), torch.zeros(3))
        >>> z.shape, logdet.shape
        (torch.Size([3, 1, 2, 2]), torch.Size([3]))
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    @torch.no_grad()
    def initialise(self, x: Tensor, floor: float) -> None:
        """Take mean and standard deviation, at least ``floor``, of images x (B, C, H, W)."""
        self.mean.copy_(x.mean(0))
        self.std.copy_(x.std(0).clamp_min(floor))

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        z = (x - self.mean) / self.std
        return z, logdet - torch.log(self.std).sum().to(logdet.dtype)

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        x = z * self.std + self.mean
        return x, logdet + torch.log(self.std).sum().to(logdet.dtype)

    def shape_after(self, shape: Shape) -> Shape:
        own = tuple(self.mean.shape)
        require(own == shape, "Standardise", "shape", f"that of the images, {shape}", own)
        return shape

    def records(self) -> list[Record] | None:
        if not unchanged(self, Standardise, "encode", "decode"):
            return None
        return [StandardiseRecord(self.mean, self.std)]

    def extra_repr(self) -> str:
        return f"{tuple(self.mean.shape)}"


class Logit(Layer[Tensor]):
    """z = logit(alpha + (1 - 2 alpha) x): images in [0, 1] to all of R^n.

    An image with a number more than alpha / (1 - 2 alpha) outside [0, 1] has no latent: its
    log-determinant is -infinity, and so is its log p; z and all gradients stay finite.

    Args:
        alpha: margin that keeps 0 and 1 finite, in (0, 0.5).

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.layers import Logit
        >>> Logit(0.05).encode(torch.full((1, 1, 1, 1), 0.5), torch.zeros(1))[0].item()
        0.0
    """

    def __init__(self, alpha: float):
        super().__init__()
        require(0 < alpha < 0.5, "Logit", "alpha", "a number in (0, 0.5)", alpha)
        self.alpha = alpha

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return ops.logit_encode(x, logdet, self.alpha)

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return ops.logit_decode(z, logdet, self.alpha)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"


class Squeeze(Layer[Tensor]):
    """(B, C, H, W) to (B, 4C, H/2, W/2), see ``ops.squeeze``; log|det| = 0.

    Example:
        >>> from flowinv_fast.flows.layers import Squeeze
        >>> Squeeze().shape_after((3, 64, 64))
        (12, 32, 32)
    """

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return ops.squeeze(x), logdet

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        return ops.unsqueeze(z), logdet

    def shape_after(self, shape: Shape) -> Shape:
        channels, height, width = shape
        even = height % 2 == 0 and width % 2 == 0
        require(even, "Squeeze", "shape", "even height and width", shape)
        return 4 * channels, height // 2, width // 2

    def records(self) -> list[Record] | None:
        return [SqueezeRecord()] if unchanged(self, Squeeze, "encode", "decode") else None


class FactorOut(Layer[tuple[Tensor, Tensor]]):
    """The second half of the channels leaves the flow as a latent; the first half goes on.

    With ``prior`` the latent's mean and log-std are learned functions of the half that stays:

        latent = (u - mean) exp(-log_std),   log_std = gain tanh(raw),   (raw, mean) = prior(kept)

    which is an affine coupling in the other direction, log|det| = -sum(log_std). It starts as the
    identity, so that the latent is standard normal given what stays.

    Args:
        prior: None, or a network from the half that stays (B, C/2, H, W) to raw and mean
            (B, C, H, W) along the channels, with C as its attribute ``outputs``.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.conditioner import ResidualNetwork
        >>> from flowinv_fast.flows.layers import FactorOut
        >>> layer = FactorOut(prior=ResidualNetwork(2, 4, hidden=8, blocks=1))
        >>> (kept, latent), logdet = layer.encode(torch.rand(3, 4, 2, 2), torch.zeros(3))
        >>> kept.shape, latent.shape
        (torch.Size([3, 2, 2, 2]), torch.Size([3, 8]))
    """

    def __init__(self, prior: nn.Module | None = None):
        super().__init__()
        self.prior: AffineCoupling | None = None
        if prior is not None:
            channels = getattr(prior, "outputs", None)
            wanted = "a network with its number of output channels as ``outputs``"
            require(isinstance(channels, int), "FactorOut", "prior", wanted, type(prior).__name__)
            assert isinstance(channels, int)
            self.prior = AffineCoupling(channels, mask="channel_second", conditioner=prior)

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """x (B, C, H, W) to ((kept (B, C/2, H, W), latent (B, C/2 H W)), logdet (B,))."""
        if self.prior is not None:
            x, logdet = self.prior.decode(x, logdet)
        return ops.factor_out(x), logdet

    def decode(self, z: tuple[Tensor, Tensor], logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of ``encode``: z = (kept, latent)."""
        x = ops.factor_in(*z)
        return (x, logdet) if self.prior is None else self.prior.encode(x, logdet)

    def shape_after(self, shape: Shape) -> Shape:
        channels, height, width = shape
        require(channels % 2 == 0, "FactorOut", "shape", "an even number of channels", shape)
        if self.prior is not None:
            self.prior.shape_after(shape)
        return channels // 2, height, width

    def records(self) -> list[Record] | None:
        before = [] if self.prior is None else self.prior.records(inverse=True)
        if before is None or not unchanged(self, FactorOut, "encode", "decode"):
            return None
        return [*before, FactorOutRecord()]


class ChannelMixing(Layer[Tensor]):
    """z = W x over the channels of every pixel, W = P L (U + diag(sign exp(log_size))).

    Glow's invertible 1x1 convolution (Kingma and Dhariwal, 2018). P is a fixed permutation, L unit
    lower and U strictly upper triangular: log|det dz/dx| = H W sum(log_size). W starts as a random
    rotation. The arithmetic is that of the input's dtype, under autocast too.

    Args:
        channels: C of the images (B, C, H, W).

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.layers import ChannelMixing
        >>> layer, x = ChannelMixing(3), torch.rand(2, 3, 4, 4)
        >>> z, logdet = layer.encode(x, torch.zeros(2))
        >>> torch.allclose(layer.decode(z, logdet)[0], x, atol=1e-5)
        True
    """

    permutation: Tensor
    sign: Tensor

    def __init__(self, channels: int):
        super().__init__()
        rotation = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0]
        permutation, lower, upper = torch.linalg.lu(rotation)
        sizes = upper.diagonal()
        self.register_buffer("permutation", permutation.float())
        self.register_buffer("sign", sizes.sign().float())
        self.lower = nn.Parameter(lower.tril(-1).float())
        self.upper = nn.Parameter(upper.triu(1).float())
        self.log_size = nn.Parameter(sizes.abs().log().float())

    def _factors(self) -> tuple[Tensor, Tensor]:
        """L and U, unit and full diagonals."""
        like = self.lower
        lower = like.tril(-1) + torch.eye(len(like), dtype=like.dtype, device=like.device)
        return lower, self.upper.triu(1) + torch.diag(self.sign * self.log_size.exp())

    def weight(self) -> Tensor:
        """W, (C, C)."""
        with torch.autocast(self.lower.device.type, enabled=False):
            lower, upper = self._factors()
            return self.permutation @ lower @ upper

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            z = torch.einsum("oc,bchw->bohw", self.weight(), x).contiguous()
        return z, logdet + x.shape[2] * x.shape[3] * self.log_size.sum()

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(z.device.type, enabled=False):
            lower, upper = self._factors()
            solve = torch.linalg.solve_triangular
            inverse = solve(lower, self.permutation.T, upper=False, unitriangular=True)
            inverse = solve(upper, inverse, upper=True)
            x = torch.einsum("oc,bchw->bohw", inverse, z).contiguous()
        return x, logdet - z.shape[2] * z.shape[3] * self.log_size.sum()

    def shape_after(self, shape: Shape) -> Shape:
        own = len(self.sign)
        require(shape[0] == own, "ChannelMixing", "channels", f"{shape[0]}", own)
        return shape

    def records(self) -> list[Record] | None:
        if not self.recomputable():
            return None
        return [MixingRecord(self.weight(), self.log_size.double().sum().item())]

    def recomputable(self) -> bool:
        return unchanged(self, ChannelMixing, "encode", "decode", "weight", "_factors")

    def encode_unrecorded(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Like ``encode``, leaving no graph."""
        with torch.no_grad():
            return self.encode(x, logdet)

    def encode_backward(
        self, z: Tensor, grad: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """As that of ``AffineCoupling``: the input of ``encode`` from its output z, and the
        gradients to the input and to ``parameters()``, None for frozen ones."""
        nothing = torch.zeros_like(grad_logdet)
        x = self.decode(z, nothing)[0].detach().requires_grad_()
        weights = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad():
            again, logdet = self.encode(x, nothing)
        outputs, grads = [again], [grad]
        if logdet.requires_grad:
            outputs, grads = [again, logdet], [grad, grad_logdet]
        grad, *own = torch.autograd.grad(outputs, [x, *weights], grads)
        by_id = dict(zip(map(id, weights), own))
        return x.detach(), grad, [by_id.get(id(p)) for p in self.parameters()]

    def extra_repr(self) -> str:
        return f"channels={len(self.sign)}"
