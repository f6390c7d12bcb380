"""The conditioner: the residual network that turns the untouched half into scales and shifts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@contextlib.contextmanager
def conditioner_precision(name: str, device: torch.device) -> Iterator[None]:
    """What convolutions multiply in: fp32, tf32 (CUDA) or bf16."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = kept


class WeightNormConv2d(nn.Module):
    """Convolution with weight ``gain * direction / |direction|`` per output channel.

    Salimans and Kingma, 2016. ``gain`` is what the weight-norm penalty acts on. The folded weight
    of parameters that need no gradient is computed once and kept; of others it is not, since fused
    optimisers change them without a new version.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, gain: float = math.sqrt(2)):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.gain = nn.Parameter(torch.full((outputs,), float(gain)))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._folded: tuple[tuple, Tensor] | None = None

    def weight(self) -> Tensor:
        """The weight, (outputs, inputs, kernel, kernel)."""
        if self.direction.requires_grad or self.gain.requires_grad:
            return self._fold()
        key = (self.direction._version, self.gain._version, self.direction.data_ptr())
        if self._folded is None or self._folded[0] != key:
            with torch.no_grad():
                folded = self._fold().contiguous(memory_format=torch.channels_last)
            self._folded = (key, folded)
        return self._folded[1]

    def _fold(self) -> Tensor:
        norm = self.direction.flatten(1).norm(dim=1).clamp_min(1e-12)
        return self.direction * (self.gain / norm).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight(), self.bias, padding=self.direction.shape[-1] // 2)


class ResidualNetwork(nn.Module):
    """3x3 convolution, pre-activation residual blocks of two 3x3 convolutions, 3x3 convolution.

    The first half of the outputs (raw scales) starts at ordinary size, the second half (shifts)
    at zero: with the coupling's gain at zero the flow starts as the identity, yet every parameter
    receives a gradient.
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int):
        super().__init__()
        self.first = WeightNormConv2d(inputs, hidden)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [WeightNormConv2d(hidden, hidden), WeightNormConv2d(hidden, hidden, gain=0.5)]
            )
            for _ in range(blocks)
        )
        self.last = WeightNormConv2d(hidden, outputs, gain=1.0)
        with torch.no_grad():
            self.last.gain[outputs // 2 :] = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.contiguous(memory_format=torch.channels_last))
        for before, after in self.blocks:
            h = h + after(F.relu(before(F.relu(h))))
        return self.last(F.relu(h))
