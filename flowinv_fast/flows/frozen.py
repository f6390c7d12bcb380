"""A RealNVP whose weights no longer change: what the solver runs on."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import ops
from .._base import backend
from .._base.errors import require
from .._base.tensors import check_tensor
from .nets import conditioner_precision

if TYPE_CHECKING:
    from .realnvp import RealNVP, RealNVPConfig

PRECISIONS = ("fp32", "tf32", "bf16")


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
        self.compiled = not flow.config.mixing and backend.native(torch.empty(0, device=device))
        self._flow = self._words = None
        self.weight_bytes = self.saved_bytes = self.work_bytes = 0
        if self.compiled:
            self._pack(flow)
        else:
            self._flow = copy.deepcopy(flow).to(device).eval().requires_grad_(False)
            self._flow.recompute = False
            self.weight_bytes = sum(4 * p.numel() for p in self._flow.parameters())

    def _pack(self, flow: RealNVP) -> None:
        on_device = backend.execution(torch.empty(0, device=self.device))[0] >= 0
        able = on_device or self.precision != "bf16" or backend._C.cpu_bf16()
        require(able, "freeze", "precision", "'fp32' (this CPU has no bf16 products)", "'bf16'")
        kept = []  # alive until the engine has read them

        def arg(tensor: Tensor) -> tuple[int, int, int]:
            kept.append(tensor.detach().cpu().contiguous())
            return backend.arg(kept[-1])

        couplings = []
        with torch.no_grad():
            for coupling in flow.couplings():
                net = coupling.conditioner
                convs = [net.first, *(c for block in net.blocks for c in block), net.last]
                couplings.append((
                    arg(coupling.gain),
                    [(arg(c.weight()), arg(c.bias), *c.direction.shape[1::-1]) for c in convs],
                ))  # fmt: skip
        self._engine = engine = backend._C.FrozenFlow(
            flow.shape, flow.config.scales, flow.config.hidden, flow.config.blocks,
            arg(flow.location), arg(flow.spread), couplings,
            PRECISIONS.index(self.precision), on_device,
        )  # fmt: skip
        self.weight_bytes, self.saved_bytes = engine.weight_bytes, engine.saved_bytes
        self.work_bytes = 4 * engine.workspace
        if on_device:
            words = torch.empty(engine.words)
            engine.copy_words(backend.arg(words))
            self._words = words.to(self.device)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent of an image: (B, C, H, W) float32 to z (B, N) and log|det dz/dx| (B,).

        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        check_tensor("FrozenFlow.encode", "x", x, self.shape, self.dtype, self.device)
        if self._flow is not None:
            return self._plain(self._flow.encode, x)
        if self.config.support == "unbounded":
            return _Walk.apply(x, self, False)
        x, before = ops.logit_encode(x, x.new_zeros(len(x)), self.config.alpha)
        z, logdet = _Walk.apply(x, self, False)
        return z, logdet + before

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Image of a latent: (B, N) float32 to x (B, C, H, W) and log|det dx/dz| (B,).

        Raises:
            ArgumentError: wrong shape, dtype or device.
        """
        check_tensor("FrozenFlow.decode", "z", z, (math.prod(self.shape),), self.dtype, self.device)
        if self._flow is not None:
            return self._plain(self._flow.decode, z)
        x, logdet = _Walk.apply(z, self, True)
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

    # -- the engine ---------------------------------------------------------------------------

    def _run(self, call, decode: bool, *tensors: Tensor | None) -> None:
        """The engine's forward or backward on these tensors, images first in each."""
        like, work = tensors[0], None
        if self._words is not None:
            work = torch.empty(len(like) * self._engine.workspace, device=self.device)
        arguments = [backend.arg(t) for t in (*tensors, self._words, work)]
        call(decode, len(like), *arguments, backend.execution(like))


class _Walk(torch.autograd.Function):
    """One direction of the flow, csrc/conditioner/frozen_flow.h."""

    @staticmethod
    @torch.compiler.disable
    def forward(ctx, variable: Tensor, frozen: FrozenFlow, decode: bool):
        batch, engine = len(variable), frozen._engine
        variable = variable.contiguous()
        out = variable.new_empty(batch, *(frozen.shape if decode else [math.prod(frozen.shape)]))
        logdet = variable.new_empty(batch)
        saved = None
        if ctx.needs_input_grad[0]:
            saved = variable.new_empty(batch, engine.saved_bytes, dtype=torch.bool)
        frozen._run(engine.forward, decode, variable, out, logdet, saved)
        ctx.save_for_backward(saved)
        ctx.frozen, ctx.decode, ctx.shape = frozen, decode, variable.shape
        return out, logdet

    @staticmethod
    @once_differentiable
    @torch.compiler.disable
    def backward(ctx, grad_out: Tensor, grad_logdet: Tensor):
        (saved,) = ctx.saved_tensors
        grad_out, grad_logdet = grad_out.contiguous(), grad_logdet.contiguous()
        grad = grad_out.new_empty(ctx.shape)
        frozen = ctx.frozen
        frozen._run(frozen._engine.backward, ctx.decode, grad_out, grad_logdet, saved, grad)
        return grad, None, None
