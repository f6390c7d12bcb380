"""One affine coupling: a conditioner and the fused transform."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .. import ops
from .mixing import ChannelMixing
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
        mixing: an invertible 1x1 convolution first.
    """

    def __init__(self, channels: int, hidden: int, blocks: int, mask: str, mixing: bool = False):
        super().__init__()
        self.mask = mask
        self.mixing = ChannelMixing(channels) if mixing else None
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
            transformed = ops.transformed_map(*x.shape[1:], self.mask, device=x.device)
            seen = x.masked_fill(transformed, 0)
        return self.conditioner(seen).to(x.dtype, memory_format=torch.contiguous_format)

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to the same shape; logdet (B,) grows by log|det dz/dx|.

        Without gradients both arguments may be overwritten.
        """
        if self.mixing is not None:
            x, logdet = self.mixing.encode(x, logdet)
        raw = self._raw(x)
        if torch.is_grad_enabled() or not x.is_contiguous():
            return ops.affine_coupling_encode(x, raw, self.gain, logdet, self.mask)
        ops.affine_coupling_encode_(x, raw, self.gain, logdet, self.mask)
        return x, logdet

    def encode_backward(
        self, z: Tensor, grad: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Input of encode from its output z, and the gradients to the input and the parameters.

        Args:
            z: output of encode (B, C, H, W). grad: gradient to it. grad_logdet: that to the
                log-determinant (B,).
        Returns:
            The input, the gradient to it, and those to ``parameters()``, None for frozen ones.
        """
        with torch.enable_grad():
            seen = z.detach().requires_grad_()
            raw = self._raw(seen)
        values, mask = raw.detach(), ops.MASKS[self.mask]
        x, _ = ops.affine_coupling_decode(z, values, self.gain, torch.zeros_like(grad_logdet),
                                          self.mask)  # fmt: skip
        grad, grad_raw, grad_gain = torch.ops.flowinv_fast.affine_coupling_encode_backward(
            grad, grad_logdet, x, values, self.gain, mask, self.gain.requires_grad
        )
        weights = [p for p in self.conditioner.parameters() if p.requires_grad]
        grad_seen, *grads = torch.autograd.grad(raw, [seen, *weights], grad_raw)
        by_id = dict(zip(map(id, weights), grads))
        if self.gain.requires_grad:
            by_id[id(self.gain)] = grad_gain
        grad = grad.add_(grad_seen)
        if self.mixing is not None:
            x, grad, own = self.mixing.encode_backward(x, grad, grad_logdet)
            by_id |= own
        return x, grad, [by_id.get(id(p)) for p in self.parameters()]

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of encode; logdet (B,) grows by log|det dx/dz|. Overwrites like encode."""
        raw = self._raw(z)
        if torch.is_grad_enabled() or not z.is_contiguous():
            x, logdet = ops.affine_coupling_decode(z, raw, self.gain, logdet, self.mask)
        else:
            ops.affine_coupling_decode_(z, raw, self.gain, logdet, self.mask)
            x = z
        return (x, logdet) if self.mixing is None else self.mixing.decode(x, logdet)


def encode_recomputed(
    couplings: Sequence[AffineCoupling], x: Tensor, logdet: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode through a run of couplings, keeping for the backward pass nothing but the output.

    The backward pass walks the run in reverse: a coupling leaves the elements that its conditioner
    sees unchanged, so its input follows from its output (Gomez et al., 2017). Peak memory is that
    of one coupling, however long the run; the price is one more evaluation of every conditioner.
    Gradients reach x, logdet and all parameters, once (no second derivatives).
    """
    parameters = [p for coupling in couplings for p in coupling.parameters()]
    return _Recomputed.apply(x, logdet, couplings, *parameters)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, logdet: Tensor, couplings: Sequence[AffineCoupling], *parameters):
        x, logdet = x.clone(memory_format=torch.contiguous_format), logdet.clone()
        for coupling in couplings:
            if coupling.mixing is not None:
                x, logdet = coupling.mixing.encode(x, logdet)
            with torch.enable_grad():  # the very arithmetic of the backward pass
                raw = coupling._raw(x).detach()
            ops.affine_coupling_encode_(x, raw, coupling.gain, logdet, coupling.mask)
        ctx.couplings = couplings
        ctx.save_for_backward(x)
        kind = x.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        return x, logdet

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor, grad_logdet: Tensor):
        (value,) = ctx.saved_tensors
        grads: list[Tensor] = []
        with torch.autocast(*ctx.autocast):
            for coupling in reversed(ctx.couplings):
                value, grad, own = coupling.encode_backward(value, grad, grad_logdet)
                grads = own + grads
        return grad, grad_logdet, None, *grads
