"""One affine coupling: a conditioner and the fused transform."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import ops
from .nets import ResidualNetwork


class AffineCoupling(nn.Module):
    """Transforms the elements selected by ``mask`` given the others (Dinh et al., 2016).

    encode: z = x exp(s) + t, with s = gain * tanh(raw_s) and (raw_s, t) = conditioner(the others).

    Args:
        channels: channels of the input; even for channel masks.
        hidden: channels inside the conditioner.
        blocks: residual blocks of the conditioner.
        mask: checkerboard_even, checkerboard_odd, channel_first or channel_second: the elements
            that are transformed.
    """

    def __init__(self, channels: int, hidden: int, blocks: int, mask: str):
        super().__init__()
        self.mask = mask
        if mask.startswith("checkerboard"):
            self.conditioner = ResidualNetwork(channels, 2 * channels, hidden, blocks)
            self.gain = nn.Parameter(torch.zeros(channels))
        else:
            self.conditioner = ResidualNetwork(channels // 2, channels, hidden, blocks)
            self.gain = nn.Parameter(torch.zeros(channels // 2))

    def _raw(self, x: Tensor) -> Tensor:
        if self.mask == "channel_first":
            seen = x.chunk(2, dim=1)[1]
        elif self.mask == "channel_second":
            seen = x.chunk(2, dim=1)[0]
        else:
            transformed = ops.reference.transformed_map(
                *x.shape[1:], ops.MASKS[self.mask], device=x.device
            )
            seen = x.masked_fill(transformed, 0)
        return self.conditioner(seen).to(x.dtype, memory_format=torch.contiguous_format)

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to the same shape; logdet (B,) grows by log|det dz/dx|.

        Without gradients both arguments are overwritten where they are contiguous.
        """
        raw = self._raw(x)
        if torch.is_grad_enabled() or not x.is_contiguous():
            return ops.affine_coupling_encode(x, raw, self.gain, logdet, self.mask)
        ops.affine_coupling_encode_(x, raw, self.gain, logdet, self.mask)
        return x, logdet

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of encode; logdet (B,) grows by log|det dx/dz|. Overwrites like encode."""
        raw = self._raw(z)
        if torch.is_grad_enabled() or not z.is_contiguous():
            return ops.affine_coupling_decode(z, raw, self.gain, logdet, self.mask)
        ops.affine_coupling_decode_(z, raw, self.gain, logdet, self.mask)
        return z, logdet
