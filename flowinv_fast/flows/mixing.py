"""Glow's invertible 1x1 convolution (Kingma and Dhariwal, 2018), LU-parametrised."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelMixing(nn.Module):
    """z = W x over the channels of every pixel, W = P L (U + diag(sign exp(log_size))).

    P is a fixed permutation, L unit lower and U strictly upper triangular:
    log|det dz/dx| = H W sum(log_size). W starts as a random rotation. The arithmetic is that of the
    input's dtype, under autocast too.

    Args:
        channels: C of the images (B, C, H, W).
    """

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

    def encode(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) to the same shape; logdet (B,) grows by log|det dz/dx|."""
        with torch.autocast(x.device.type, enabled=False):
            lower, upper = self._factors()
            weight = self.permutation @ lower @ upper
            z = torch.einsum("oc,bchw->bohw", weight, x).contiguous()
        return z, logdet + x.shape[2] * x.shape[3] * self.log_size.sum()

    def decode(self, z: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of encode; logdet (B,) grows by log|det dx/dz|."""
        with torch.autocast(z.device.type, enabled=False):
            lower, upper = self._factors()
            solve = torch.linalg.solve_triangular
            inverse = solve(lower, self.permutation.T, upper=False, unitriangular=True)
            inverse = solve(upper, inverse, upper=True)
            x = torch.einsum("oc,bchw->bohw", inverse, z).contiguous()
        return x, logdet - z.shape[2] * z.shape[3] * self.log_size.sum()

    def encode_backward(
        self, z: Tensor, grad: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, dict[int, Tensor]]:
        """Input of encode from its output z, and the gradients to it and, by id, to parameters."""
        x = self.decode(z, torch.zeros_like(grad_logdet))[0].detach().requires_grad_()
        weights = [p for p in self.parameters() if p.requires_grad]
        with torch.enable_grad():
            again, logdet = self.encode(x, torch.zeros_like(grad_logdet))
        outputs, grads = [again], [grad]
        if logdet.requires_grad:
            outputs, grads = [again, logdet], [grad, grad_logdet]
        grad, *own = torch.autograd.grad(outputs, [x, *weights], grads)
        return x.detach(), grad, dict(zip(map(id, weights), own))
