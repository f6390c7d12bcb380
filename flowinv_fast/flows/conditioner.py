"""The conditioner: the residual network that turns the untouched half into scales and shifts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops


@contextlib.contextmanager
def conditioner_precision(name: str, device: torch.device) -> Iterator[None]:
    """Within this context convolutions multiply in ``name``: fp32, tf32 (CUDA only) or bf16."""
    kept = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = name == "tf32"
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=name == "bf16"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = kept


class WeightNormConv2d(nn.Module):
    """Convolution with weight ``gain * direction / |direction|`` per output channel.

    Salimans and Kingma, 2016. ``gain`` is what the weight-norm penalty acts on. The weight is made
    anew at every call: ``p.data`` and fused optimisers change a parameter without a sign by which
    a kept weight could tell that it is stale. ``Flow.freeze`` spares that time.

    Args:
        inputs, outputs: channels.
        kernel: odd side of the kernel; the borders are padded with zeros.
        gain: what ``gain`` starts at, for every output channel.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, gain: float = math.sqrt(2)):
        super().__init__()
        self.direction = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.gain = nn.Parameter(torch.full((outputs,), float(gain)))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def weight(self) -> Tensor:
        """The weight, (outputs, inputs, kernel, kernel), with its gradient to the parameters."""
        norm = self.direction.flatten(1).norm(dim=1).clamp_min(1e-12)
        return self.direction * (self.gain / norm).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return F.conv2d(x, self.weight(), self.bias, padding=self.direction.shape[-1] // 2)


class ResidualBlock(nn.Module):
    """h + after(relu(before(relu(h)))), two 3x3 convolutions of ``hidden`` channels."""

    def __init__(self, hidden: int):
        super().__init__()
        self.before = WeightNormConv2d(hidden, hidden)
        self.after = WeightNormConv2d(hidden, hidden, gain=0.5)

    def forward(self, h: Tensor) -> Tensor:
        """(B, hidden, H, W) to the same shape."""
        return h + self.after(F.relu(self.before(F.relu(h))))


class ResidualNetwork(nn.Module):
    """3x3 convolution, pre-activation residual blocks of two 3x3 convolutions, 3x3 convolution.

    The first half of the outputs (raw scales) starts at ordinary size, the second half (shifts)
    at zero: with the coupling's gain at zero the flow starts as the identity, yet every parameter
    receives a gradient.

    Args:
        inputs: channels of the half that is seen.
        outputs: channels of raw scales and shifts together; even.
        hidden: channels of the layers between.
        blocks: residual blocks.

    Example:
        >>> import torch
        >>> from flowinv_fast.flows.conditioner import ResidualNetwork
        >>> raw = ResidualNetwork(inputs=2, outputs=4, hidden=8, blocks=1)(torch.rand(1, 2, 4, 4))
        >>> raw.shape, raw[:, 2:].abs().max().item()
        (torch.Size([1, 4, 4, 4]), 0.0)
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, blocks: int):
        super().__init__()
        self.inputs, self.outputs = inputs, outputs
        self.first = WeightNormConv2d(inputs, hidden)
        self.blocks = nn.Sequential(*(ResidualBlock(hidden) for _ in range(blocks)))
        self.last = WeightNormConv2d(hidden, outputs, gain=1.0)
        with torch.no_grad():
            self.last.gain[outputs // 2 :] = 0

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W): raw scales, then shifts, along the channels."""
        if not ops.in_transform():  # which know one order of memory only
            x = x.contiguous(memory_format=torch.channels_last)
        h = self.first(x)
        return self.last(F.relu(self.blocks(h)))


def unchanged(module: nn.Module, base: type[nn.Module], *names: str) -> bool:
    """Whether a module runs these methods of ``base``, overridden by neither class nor instance."""
    return isinstance(module, base) and all(
        getattr(type(module), name) is getattr(base, name) and name not in vars(module)
        for name in names
    )


def convolutions_of(conditioner: nn.Module) -> list[WeightNormConv2d] | None:
    """The convolutions of a ``ResidualNetwork`` in the order in which it applies them.

    None for any other network, and for one of which a part was replaced, overridden or given a
    hook: such a network runs on plain torch only.
    """
    if any(m._forward_hooks or m._forward_pre_hooks for m in conditioner.modules()):
        return None
    if not unchanged(conditioner, ResidualNetwork, "forward"):
        return None
    assert isinstance(conditioner, ResidualNetwork)
    found = [conditioner.first]
    for block in conditioner.blocks:
        if not unchanged(block, ResidualBlock, "forward"):
            return None
        assert isinstance(block, ResidualBlock)
        found += [block.before, block.after]
    found.append(conditioner.last)
    known = (
        unchanged(c, WeightNormConv2d, "forward", "weight") and c.direction.shape[-1] == 3
        for c in found
    )
    return found if all(known) else None
