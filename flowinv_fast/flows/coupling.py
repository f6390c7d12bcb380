"""The affine coupling: a conditioner and the fused transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .._base.errors import require
from ..ops.frozen_flow import CouplingRecord, Record
from .base import Layer, Shape
from .conditioner import ResidualNetwork, convolutions_of, unchanged


class AffineCoupling(Layer[Tensor]):
    """Transforms the elements selected by ``mask`` given the others (Dinh et al., 2016).

    encode: z = x exp(s) + t, with s = gain tanh(raw_s) and (raw_s, t) = conditioner(the others);
    log|det dz/dx| = sum(s). The learned gain bounds s per channel and starts at zero, and so does
    t: the layer starts as the identity.

    Args:
        channels: channels of the input; even for channel masks.
        hidden: channels inside the conditioner.
        blocks: residual blocks of the conditioner.
        mask: checkerboard_even, checkerboard_odd, channel_first or channel_second: the elements
            that are transformed.
        conditioner: a network of your own instead of a ``ResidualNetwork`` (hidden and blocks are
            then of no meaning): from the other elements, (B, C, H, W) with zeros at the transformed
            ones for a checkerboard or (B, C/2, H, W) for a channel mask, to raw_s and t along the
            channels, (B, 2C, H, W) or (B, C, H, W).
    Raises:
        ArgumentError: a mask that does not exist, or odd channels for a channel mask.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.layers import AffineCoupling
        >>> layer = AffineCoupling(2, hidden=8, blocks=1, mask="channel_first")
        >>> x = torch.rand(3, 2, 4, 4)
        >>> torch.equal(layer.encode(x, torch.zeros(3))[0], x)
        True
    """

    def __init__(
        self,
        channels: int,
        hidden: int = 64,
        blocks: int = 2,
        mask: str = "checkerboard_even",
        conditioner: nn.Module | None = None,
    ):
        super().__init__()
        masks = tuple(ops.MASKS)
        require(mask in masks, "AffineCoupling", "mask", f"one of {masks}", repr(mask))
        halves = 1 if mask.startswith("checkerboard") else 2
        good = channels >= 1 and channels % halves == 0
        require(good, "AffineCoupling", "channels", f"a multiple of {halves} for {mask}", channels)
        self.channels, self.mask = channels, mask
        moved = channels // halves
        if conditioner is None:
            conditioner = ResidualNetwork(moved, 2 * moved, hidden, blocks)
        self.conditioner = conditioner
        self.gain = nn.Parameter(torch.zeros(moved))

    def raw(self, x: Tensor) -> Tensor:
        """The conditioner's output (raw_s, t) of x, whose transformed elements it does not see."""
        if self.mask == "channel_first":
            seen = x.chunk(2, dim=1)[1]
        elif self.mask == "channel_second":
            seen = x.chunk(2, dim=1)[0]
        else:
            channels, height, width = x.shape[1:]
            moved = ops.transformed_map(channels, height, width, self.mask, device=x.device)
            seen = x.masked_fill(moved, 0)
        raw = self.conditioner(seen).to(x.dtype)
        return raw if ops.in_transform() else raw.contiguous()

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.raw(x)
        if not _may_write(x):
            return ops.affine_coupling_encode(x, raw, self.gain, logdet, self.mask)
        ops.affine_coupling_encode_(x, raw, self.gain, logdet, self.mask)
        return x, logdet

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        raw = self.raw(z)
        if not _may_write(z):
            return ops.affine_coupling_decode(z, raw, self.gain, logdet, self.mask)
        ops.affine_coupling_decode_(z, raw, self.gain, logdet, self.mask)
        return z, logdet

    def shape_after(self, shape: Shape) -> Shape:
        function = type(self).__name__
        require(shape[0] == self.channels, function, "channels", f"{shape[0]}", self.channels)
        return shape

    def records(self, inverse: bool = False) -> list[Record] | None:
        """As of every layer; ``inverse``: of a layer that encodes by our ``decode``."""
        convolutions = convolutions_of(self.conditioner)
        if convolutions is None or not unchanged(self, AffineCoupling, "encode", "decode", "raw"):
            return None
        weights: list[tuple[Tensor, Tensor]] = [(c.weight(), c.bias) for c in convolutions]
        return [CouplingRecord(self.mask, self.gain, weights, inverse)]

    def recomputable(self) -> bool:
        return unchanged(self, AffineCoupling, "encode", "decode", "raw")

    def encode_unrecorded(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Like ``encode``, leaving no graph; overwrites x and logdet.

        The conditioner runs with gradients all the same, so that ``encode_backward`` repeats the
        very arithmetic.
        """
        with torch.enable_grad():
            raw = self.raw(x).detach()
        ops.affine_coupling_encode_(x, raw, self.gain, logdet, self.mask)
        return x, logdet

    def encode_backward(
        self, z: Tensor, grad: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Input of ``encode`` from its output z, and the gradients to the input and the parameters.

        Args:
            z: output of encode (B, C, H, W). grad: gradient to it. grad_logdet: that to the
                log-determinant (B,).
        Returns:
            The input, the gradient to it, and those to ``parameters()``, None for frozen ones.
        """
        with torch.enable_grad():
            seen = z.detach().requires_grad_()
            raw = self.raw(seen)
        values, nothing = raw.detach(), torch.zeros_like(grad_logdet)
        x, _ = ops.affine_coupling_decode(z, values, self.gain, nothing, self.mask)
        learned = self.gain.requires_grad
        grad, grad_raw, grad_gain = torch.ops.flowinv_fast.affine_coupling_encode_backward(
            grad, grad_logdet, x, values, self.gain, ops.MASKS[self.mask], learned
        )
        weights = [p for p in self.conditioner.parameters() if p.requires_grad]
        grad_seen, *grads = torch.autograd.grad(raw, [seen, *weights], grad_raw)
        by_id = dict(zip(map(id, weights), grads))
        if learned:
            by_id[id(self.gain)] = grad_gain
        return x, grad.add_(grad_seen), [by_id.get(id(p)) for p in self.parameters()]

    def extra_repr(self) -> str:
        return f"channels={self.channels}, mask={self.mask}"


def _may_write(x: Tensor) -> bool:
    """Whether a coupling may take place in the memory of its input."""
    return not torch.is_grad_enabled() and not ops.in_transform() and x.is_contiguous()
