"""What the compiled engine is told of a flow: one record per layer, in the order of encode."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from . import reference
from .coupling import affine_coupling_decode, affine_coupling_encode
from .layout import factor_in, factor_out, squeeze, unsqueeze

PRECISIONS = ("fp32", "tf32", "bf16")


@dataclass(frozen=True)
class StandardiseRecord:
    """z = (x - mean) / std, each (C, H, W)."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class SqueezeRecord:
    """(C, H, W) to (4C, H/2, W/2)."""


@dataclass(frozen=True)
class FactorOutRecord:
    """The second half of the channels leaves as a latent."""


@dataclass(frozen=True)
class MixingRecord:
    """z = weight x over the channels of every pixel; log|det weight| = log_size_sum."""

    weight: Tensor
    log_size_sum: float


@dataclass(frozen=True)
class CouplingRecord:
    """An affine coupling; ``inverse``: its decode formula is applied in the encode direction."""

    mask: str
    gain: Tensor
    convs: list[tuple[Tensor, Tensor]]
    inverse: bool = False


Record = StandardiseRecord | SqueezeRecord | FactorOutRecord | MixingRecord | CouplingRecord


class FrozenEngine:
    """Records with their weights as they are now, walked in plain torch.

    Args:
        shape: (C, H, W) of the images.
        records: the layers in the order of encode.
        precision: "fp32", "tf32" or "bf16": what convolutions multiply in.
        device: where the weights go.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        records: list[Record],
        precision: str,
        device: torch.device,
    ):
        fixed = lambda t: t.detach().clone().to(device)
        self.shape, self.precision, self.device = shape, precision, device
        self.n = math.prod(shape)
        self.saved_bytes = self.work_bytes = self.weight_bytes = 0
        self.records: list[Record] = []
        for record in records:
            if isinstance(record, StandardiseRecord):
                record = StandardiseRecord(fixed(record.mean), fixed(record.std))
            elif isinstance(record, MixingRecord):
                record = MixingRecord(fixed(record.weight), record.log_size_sum)
            elif isinstance(record, CouplingRecord):
                convs = [(fixed(weight), fixed(bias)) for weight, bias in record.convs]
                record = replace(record, gain=fixed(record.gain), convs=convs)
            self.records.append(record)
        self.shapes, channels, height, width = [], *shape
        for record in self.records:
            if isinstance(record, SqueezeRecord):
                channels, height, width = 4 * channels, height // 2, width // 2
            elif isinstance(record, FactorOutRecord):
                channels //= 2
                self.shapes.append((channels, height, width))
        self.shapes.append((channels, height, width))


def _coupling(record: CouplingRecord, h: Tensor, logdet: Tensor, decode: bool, bf16: bool):
    code = reference.MASKS[record.mask]
    if code < 2:
        seen = h.masked_fill(reference.transformed_map(*h.shape[1:], code, h.device), 0)
    else:
        seen = h.chunk(2, 1)[3 - code]
    with torch.autocast(h.device.type, torch.bfloat16, enabled=bf16):
        (weight, bias), *pairs, (last, last_bias) = record.convs
        t = F.conv2d(seen, weight, bias, padding=1)
        for (w, b), (v, c) in zip(pairs[::2], pairs[1::2]):
            inner = F.conv2d(F.relu(t), w, b, padding=1)
            t = t + F.conv2d(F.relu(inner), v, c, padding=1)
        raw = F.conv2d(F.relu(t), last, last_bias, padding=1).to(h.dtype)
    function = affine_coupling_decode if decode else affine_coupling_encode
    return function(h, raw, record.gain, logdet, record.mask)


def frozen_flow_encode(x: Tensor, engine: FrozenEngine) -> tuple[Tensor, Tensor]:
    """z (B, N) and log|det dz/dx| (B,) of x (B, C, H, W)."""
    h, logdet, latents = x, x.new_zeros(len(x)), []
    for record in engine.records:
        if isinstance(record, StandardiseRecord):
            h, logdet = (h - record.mean) / record.std, logdet - record.std.log().sum()
        elif isinstance(record, MixingRecord):
            h = torch.einsum("oc,bchw->bohw", record.weight, h).contiguous()
            logdet = logdet + h.shape[2] * h.shape[3] * record.log_size_sum
        elif isinstance(record, CouplingRecord):
            h, logdet = _coupling(record, h, logdet, record.inverse, engine.precision == "bf16")
        elif isinstance(record, SqueezeRecord):
            h = squeeze(h)
        else:
            h, latent = factor_out(h)
            latents.append(latent)
    return torch.cat([*latents, h.flatten(1)], 1), logdet


def frozen_flow_decode(z: Tensor, engine: FrozenEngine) -> tuple[Tensor, Tensor]:
    """x (B, C, H, W) and log|det dx/dz| (B,) of z (B, N)."""
    *latents, h = z.split([math.prod(shape) for shape in engine.shapes], 1)
    h, logdet = h.reshape(len(z), *engine.shapes[-1]), z.new_zeros(len(z))
    for record in reversed(engine.records):
        if isinstance(record, StandardiseRecord):
            h, logdet = h * record.std + record.mean, logdet + record.std.log().sum()
        elif isinstance(record, MixingRecord):
            h = torch.einsum("oc,bchw->bohw", record.weight.inverse(), h).contiguous()
            logdet = logdet - h.shape[2] * h.shape[3] * record.log_size_sum
        elif isinstance(record, CouplingRecord):
            h, logdet = _coupling(record, h, logdet, not record.inverse, engine.precision == "bf16")
        elif isinstance(record, SqueezeRecord):
            h = unsqueeze(h)
        else:
            h = factor_in(h, latents.pop())
    return h, logdet
