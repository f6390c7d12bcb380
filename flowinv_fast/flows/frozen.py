"""A flow whose weights no longer change: what the solver runs on."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from .. import ops
from .._base import backend
from .._base.errors import ArgumentError, require
from .._base.tensors import check_tensor, known_device, plain
from ..ops.frozen_flow import PRECISIONS, FrozenEngine, frozen_flow_decode, frozen_flow_encode
from .base import Layer
from .check import check_flow, not_finite
from .conditioner import conditioner_precision

if TYPE_CHECKING:
    from .flow import Flow, FlowConfig

Module = TypeVar("Module", bound=nn.Module)


class FrozenFlow:
    """The map of a ``Flow`` with its weights fixed, on the compiled engine; made by ``freeze``.

    Encode and decode are one call each, and so are their vector-Jacobian products. For the
    backward pass an image keeps ``saved_bytes``: one bit per hidden activation and two numbers per
    transformed element; eager torch keeps every activation. Gradients reach x and z, once (no
    second derivatives), and no weights. A frozen flow is immutable and any number of threads may
    use it; it can be copied and pickled, and then runs where it was frozen for.

    The engine runs every layer that has ``records``; leading layers without them (``Logit``) run
    as ops in front of it. A flow with such a layer elsewhere, or of a class that overrides
    ``encode``, ``decode``, ``log_prob`` or ``sample``, is kept as a copy and runs on plain torch.

    The state of the couplings and the log-determinants are float32 in every precision:

    ``fp32``  as exact as float32 torch.
    ``tf32``  CUDA: conditioners multiply in tf32, 10 bits of mantissa. On a CPU the same as fp32.
    ``bf16``  conditioners multiply in bf16, 7 bits of mantissa. encode(decode(z)) then misses z by
              about 1e-3, and a solve should end with ``polish`` steps in fp32.

    Args:
        flow: a float32 flow; it is left as it is, and later changes of it are not seen.
        precision: "fp32", "tf32" or "bf16".
        device: where it will run; None is where the flow is.

    Attributes:
        shape: (C, H, W) of the images.
        config, info: of the flow.
        precision, device, dtype: what it was frozen for.
        compiled: whether the compiled engine runs it; else plain torch.
        weight_bytes: size of the weights.
        saved_bytes, work_bytes: per image, kept for the backward pass, and used during a call on
            a CUDA device; zero where plain torch runs it.

    Example:
        >>> import torch, flowinv_fast as ff
        >>> frozen = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1)).freeze()
        >>> z, logdet = frozen.encode(torch.rand(3, 1, 8, 8))
        >>> z.shape, logdet.shape
        (torch.Size([3, 64]), torch.Size([3]))
    """

    def __init__(
        self, flow: Flow, precision: str = "fp32", device: torch.device | str | None = None
    ):
        known = f"one of {PRECISIONS}"
        require(precision in PRECISIONS, "freeze", "precision", known, repr(precision))
        single = flow.dtype == torch.float32
        require(single, "freeze", "flow", "a float32 flow", f"one of {flow.dtype}")
        device = flow.device if device is None else known_device("freeze", device)
        real = "meta" not in (device.type, flow.device.type)
        require(real, "freeze", "device", "one that holds numbers", "meta")
        _require_finite(flow)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.config: FlowConfig = flow.config
        self.shape, self.info = flow.shape, flow.info
        self.precision, self.device, self.dtype = precision, device, flow.dtype
        self.saved_bytes = self.work_bytes = 0
        self._flow: Flow | None = None
        self._front: list[Layer[Tensor]] = []
        self._engine: FrozenEngine | None = None
        plan = flow.engine_plan()
        if plan is not None and backend.native(torch.empty(0, device=device)):
            front, shape, records = plan
            self._front = [_fixed(layer, device) for layer in front]
            self._engine = engine = FrozenEngine(shape, records, precision, device)
            self.weight_bytes = engine.weight_bytes
            self.saved_bytes, self.work_bytes = engine.saved_bytes, engine.work_bytes
        else:
            self._flow = kept = _fixed(flow, device)
            kept.recompute = False
            self.weight_bytes = sum(4 * p.numel() for p in kept.parameters())

    @property
    def compiled(self) -> bool:
        """Whether the compiled engine runs it."""
        return self._engine is not None

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent of an image: (B, C, H, W) float32 to z (B, N) and log|det dz/dx| (B,).

        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        check_tensor("FrozenFlow.encode", "x", x, self.shape, self.dtype, self.device)
        x = plain(x)
        if self._engine is None:
            return self._plain("encode", x)
        if not self._front:
            return frozen_flow_encode(x, self._engine)
        h = x if torch.is_grad_enabled() else x.clone()  # layers may overwrite it
        before = x.new_zeros(len(x))
        for layer in self._front:
            h, before = layer.encode(h, before)
        z, logdet = frozen_flow_encode(h, self._engine)
        return z, logdet + before

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image of a latent: (B, N) float32 to x (B, C, H, W) and log|det dx/dz| (B,).

        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        check_tensor("FrozenFlow.decode", "z", z, (math.prod(self.shape),), self.dtype, self.device)
        z = plain(z)
        if self._engine is None:
            return self._plain("decode", z)
        x, logdet = frozen_flow_decode(z, self._engine)
        for layer in reversed(self._front):
            x, logdet = layer.decode(x, logdet)
        return x, logdet

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) in nats for pixels in [0, 1] units: (B, C, H, W) to (B,)."""
        if self._engine is None:
            check_tensor("FrozenFlow.log_prob", "x", x, self.shape, self.dtype, self.device)
            return self._plain("log_prob", plain(x))
        z, logdet = self.encode(x)
        return ops.standard_normal_log_prob(z) + logdet

    @torch.no_grad()
    def sample(
        self, n: int, temperature: float = 1.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """n images (n, C, H, W): decode(temperature * standard normal)."""
        require(n >= 0, "FrozenFlow.sample", "n", "a non-negative integer", n)
        if self._engine is None:
            return self._plain("sample", n, temperature, generator)
        size = n, math.prod(self.shape)
        z = torch.randn(size, generator=generator, device=self.device, dtype=self.dtype)
        return self.decode(temperature * z)[0]

    check = check_flow

    def __repr__(self) -> str:
        engine = "compiled engine" if self.compiled else "plain torch"
        saved = f", {self.saved_bytes / 1e6:.2f} MB per image saved" if self.compiled else ""
        return (
            f"FrozenFlow({' x '.join(map(str, self.shape))}, {self.precision} on {self.device}, "
            f"{engine}, {self.weight_bytes / 1e6:.1f} MB of weights{saved})"
        )

    def _plain(self, method: str, *arguments: Any) -> Any:
        """A method of the copied flow, its conditioners in our precision."""
        with conditioner_precision(self.precision, self.device):
            return getattr(self._flow, method)(*arguments)


def _require_finite(flow: nn.Module) -> None:
    """Refuse, naming it, a weight that is infinite or no number: every result would be."""
    for name, tensor in not_finite(flow):
        count = int((~torch.isfinite(tensor)).sum())
        got = f"{name} with {count} of {tensor.numel()} that are not"
        raise ArgumentError("freeze", "flow", "finite weights", got)


def _fixed(module: Module, device: torch.device) -> Module:
    """A copy without gradients to its weights, there."""
    return copy.deepcopy(module).to(device).eval().requires_grad_(False)
