"""The layer records of a frozen flow in plain torch, for any floating-point type.

Written apart from the package's own layers, so that the engine and the layers are both held to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from flowinv_fast import ops
from flowinv_fast._base.tensors import accumulate_dtype
from flowinv_fast.ops import (
    CouplingRecord,
    FactorOutRecord,
    MixingRecord,
    SqueezeRecord,
    StandardiseRecord,
)
from flowinv_fast.ops._register import twin


def raw_of(record: CouplingRecord, x: Tensor) -> Tensor:
    """What the conditioner makes of the elements that it sees."""
    if record.mask.startswith("checkerboard"):
        moved = ops.transformed_map(*x.shape[1:], record.mask, device=x.device)
        seen = x.masked_fill(moved, 0)
    else:
        seen = x.chunk(2, dim=1)[1 if record.mask == "channel_first" else 0]
    conv = lambda i, h: F.conv2d(h, *(t.to(x) for t in record.convs[i]), padding=1)
    h = conv(0, seen)
    for i in range(1, len(record.convs) - 1, 2):
        h = h + conv(i + 1, F.relu(conv(i, F.relu(h))))
    return conv(-1, F.relu(h))


def layer(record, x: Tensor, logdet: Tensor, decode: bool) -> tuple[Tensor, Tensor]:
    """One layer, and the log-determinant of what is done."""
    sign = -1 if decode else 1
    if isinstance(record, StandardiseRecord):
        mean, std = record.mean.to(x), record.std.to(x)
        y = x * std + mean if decode else (x - mean) / std
        return y, logdet - sign * record.std.to(logdet).log().sum()
    if isinstance(record, SqueezeRecord):
        return twin("unsqueeze" if decode else "squeeze")(x), logdet
    if isinstance(record, MixingRecord):
        weight = record.weight.double().inverse() if decode else record.weight
        size = sign * math.prod(x.shape[2:]) * record.log_size_sum
        return torch.einsum("oc,bchw->bohw", weight.to(x), x), logdet + size
    name = "affine_coupling_decode" if decode != record.inverse else "affine_coupling_encode"
    return twin(name)(x, raw_of(record, x), record.gain.to(x), logdet, ops.MASKS[record.mask])


def encode(x: Tensor, records: Sequence) -> tuple[Tensor, Tensor]:
    """``ops.frozen_flow_encode``."""
    logdet = x.new_zeros(len(x), dtype=accumulate_dtype(x.dtype))
    latents = []
    for record in records:
        if isinstance(record, FactorOutRecord):
            x, latent = x.chunk(2, dim=1)
            latents.append(latent.flatten(1))
        else:
            x, logdet = layer(record, x, logdet, False)
    return torch.cat([*latents, x.flatten(1)], 1), logdet


def decode(z: Tensor, records: Sequence, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """``ops.frozen_flow_decode`` for images of this shape."""
    logdet = z.new_zeros(len(z), dtype=accumulate_dtype(z.dtype))
    channels, height, width = shape
    latents = []
    for record in records:
        if isinstance(record, FactorOutRecord):
            channels //= 2
            count = channels * height * width
            latents.append(z[:, :count].reshape(-1, channels, height, width))
            z = z[:, count:]
        elif isinstance(record, SqueezeRecord):
            channels, height, width = 4 * channels, height // 2, width // 2
    x = z.reshape(-1, channels, height, width)
    for record in reversed(records):
        if isinstance(record, FactorOutRecord):
            x = torch.cat([x, latents.pop()], 1)
        else:
            x, logdet = layer(record, x, logdet, True)
    return x, logdet
