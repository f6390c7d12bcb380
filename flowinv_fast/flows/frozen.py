"""A RealNVP whose weights no longer change: what the solver runs on."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from .._base import backend
from .._base.errors import require
from .._base.tensors import check_tensor
from ..ops.frozen_flow import (
    PRECISIONS,
    CouplingRecord,
    FactorOutRecord,
    FrozenEngine,
    MixingRecord,
    Record,
    SqueezeRecord,
    StandardiseRecord,
)
from .nets import conditioner_precision

if TYPE_CHECKING:
    from .realnvp import RealNVP, RealNVPConfig


@torch.no_grad()
def _records(flow: RealNVP) -> list[Record]:
    """The layers of a RealNVP with their weights as they are now, behind a logit if it has one."""
    records: list[Record] = [StandardiseRecord(flow.location, flow.spread)]
    for layers in flow.scales:
        for kind in ("pixel", "channel"):
            if kind not in layers:
                continue
            if kind == "channel":
                records.append(SqueezeRecord())
            for coupling in layers[kind]:
                if coupling.mixing is not None:
                    lower, upper = coupling.mixing._factors()
                    weight = coupling.mixing.permutation @ lower @ upper
                    records.append(MixingRecord(weight, float(coupling.mixing.log_size.sum())))
                net = coupling.conditioner
                convs = [net.first, *(c for block in net.blocks for c in block), net.last]
                weights = [(c.weight(), c.bias) for c in convs]
                records.append(CouplingRecord(coupling.mask, coupling.gain, weights))
            if kind == "channel":
                records.append(FactorOutRecord())
    return records


class FrozenFlow:
    """The map of a RealNVP with its weights packed for the compiled engine; made by ``freeze``.

    Encode and decode are one call each, and so are their vector-Jacobian products. For the
    backward pass an image keeps ``saved_bytes``: one bit per hidden activation and two numbers per
    transformed element; eager torch keeps every activation. Gradients reach x and z, once (no
    second derivatives), and no weights. A frozen flow is immutable and any number of threads may
    use it.

    The state of the couplings and the log-determinants are float32 in every precision:

    ``fp32``  as exact as float32 torch.
    ``tf32``  CUDA: conditioners multiply in tf32, 10 bits of mantissa. On a CPU the same as fp32.
    ``bf16``  conditioners multiply in bf16, 7 bits of mantissa. encode(decode(z)) then misses z by
              about 1e-3, and a solve should end with ``polish`` steps in fp32.

    Attributes:
        shape: (C, H, W) of the images.
        config, info: of the RealNVP.
        precision, device: what it was frozen for.
        compiled: whether the compiled engine runs it; else plain torch with folded weights.
        weight_bytes: size of the packed weights.
        saved_bytes, work_bytes: per image, kept for the backward pass, and used during a call on
            a CUDA device; zero where plain torch runs it.
    """

    def __init__(self, flow: RealNVP, precision: str = "fp32", device=None):
        require(precision in PRECISIONS, "freeze", "precision", f"one of {PRECISIONS}",
                repr(precision))  # fmt: skip
        dtype = flow.location.dtype
        require(dtype == torch.float32, "freeze", "flow", "a float32 flow", f"one of {dtype}")
        self.config: RealNVPConfig = flow.config
        self.shape, self.info = flow.shape, flow.info
        self.precision = precision
        device = torch.device(device) if device is not None else flow.location.device
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self.dtype = dtype
        self.compiled = backend.native(torch.empty(0, device=device))
        self._engine: Any = None
        self._flow: RealNVP | None = None
        self.saved_bytes = self.work_bytes = 0
        if self.compiled:
            self._engine = engine = FrozenEngine(flow.shape, _records(flow), precision, device)
            self.weight_bytes = engine.weight_bytes
            self.saved_bytes, self.work_bytes = engine.saved_bytes, engine.work_bytes
        else:
            self._flow = copy.deepcopy(flow).to(device).eval().requires_grad_(False)
            self._flow.recompute = False
            self.weight_bytes = sum(4 * p.numel() for p in self._flow.parameters())

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent of an image: (B, C, H, W) float32 to z (B, N) and log|det dz/dx| (B,).

        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        check_tensor("FrozenFlow.encode", "x", x, self.shape, self.dtype, self.device)
        if self._flow is not None:
            return self._plain(self._flow.encode, x)
        if self.config.support == "unbounded":
            return ops.frozen_flow_encode(x, self._engine)
        x, before = ops.logit_encode(x, x.new_zeros(len(x)), self.config.alpha)
        z, logdet = ops.frozen_flow_encode(x, self._engine)
        return z, logdet + before

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image of a latent: (B, N) float32 to x (B, C, H, W) and log|det dx/dz| (B,).

        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        check_tensor("FrozenFlow.decode", "z", z, (math.prod(self.shape),), self.dtype, self.device)
        if self._flow is not None:
            return self._plain(self._flow.decode, z)
        x, logdet = ops.frozen_flow_decode(z, self._engine)
        if self.config.support == "unbounded":
            return x, logdet
        return ops.logit_decode(x, logdet, self.config.alpha)

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats for pixels in [0, 1] units: (B, C, H, W) to (B,)."""
        z, logdet = self.encode(x)
        return ops.standard_normal_log_prob(z) + logdet

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, H, W): decode(temperature * standard normal)."""
        require(n >= 0, "FrozenFlow.sample", "n", "a non-negative integer", n)
        z = torch.randn(n, math.prod(self.shape), generator=generator, device=self.device)
        return self.decode(temperature * z)[0]

    def __repr__(self) -> str:
        engine = "compiled engine" if self.compiled else "plain torch"
        saved = f", {self.saved_bytes / 1e6:.2f} MB per image saved" if self.compiled else ""
        return (
            f"FrozenFlow({' x '.join(map(str, self.shape))}, {self.precision} on {self.device}, "
            f"{engine}, {self.weight_bytes / 1e6:.1f} MB of weights{saved})"
        )

    def _plain(self, transform, variable: Tensor) -> tuple[Tensor, Tensor]:
        with conditioner_precision(self.precision, self.device):
            return transform(variable)
