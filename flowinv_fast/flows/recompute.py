"""Encoding without keeping activations: inputs are computed again from outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .._base.errors import require


class Recomputable(Protocol):
    """A layer whose input and gradients follow from its output; ``AffineCoupling`` is one."""

    def encode_unrecorded(self, x: Tensor, logdet: Tensor) -> tuple[Tensor, Tensor]:
        """``encode`` without a graph, by the arithmetic of ``encode_backward``."""

    def encode_backward(
        self, z: Tensor, grad: Tensor, grad_logdet: Tensor
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """The input of ``encode``, and the gradients to it and to ``parameters()``."""


def encode_recomputed(
    layers: Sequence[nn.Module], x: Tensor, logdet: Tensor
) -> tuple[Tensor, Tensor]:
    """Encode through a run of layers, keeping for the backward pass nothing but the output.

    The backward pass walks the run in reverse: a coupling leaves the elements that its conditioner
    sees unchanged, so its input follows from its output (Gomez et al., 2017). Peak memory is that
    of one coupling, however long the run; the price is one more evaluation of every conditioner.
    Gradients reach x, logdet and all parameters, once (no second derivatives). Conditioners have to
    be functions of their input alone: one that draws random numbers (dropout) or changes its
    buffers (batch normalisation) in training is refused.

    Args:
        layers: those of a flow for which ``recomputable()`` holds: couplings and mixings.
        x: (B, C, H, W); not overwritten. logdet: (B,).
    Returns:
        What ``encode`` of one layer after the other returns.
    Raises:
        ArgumentError: a conditioner that is not a function of its input alone.
    """
    parameters = [p for layer in layers for p in layer.parameters()]
    return _Recomputed.apply(x, logdet, layers, *parameters)


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, logdet: Tensor, layers: Sequence[Recomputable], *parameters: Tensor
    ) -> tuple[Tensor, Tensor]:
        x, logdet = x.clone(memory_format=torch.contiguous_format), logdet.clone()
        before = _traces(layers, x.device)
        for layer in layers:
            x, logdet = layer.encode_unrecorded(x, logdet)
        unmoved = all(torch.equal(a, b) for a, b in zip(before, _traces(layers, x.device)))
        wanted = "conditioners that draw no random numbers and change no buffers, which evaluating "
        wanted += "them twice would; set flow.recompute = False, or flow.eval()"
        require(unmoved, "Flow.encode", "recompute", wanted, "one that does, in training")
        ctx.layers = layers
        ctx.save_for_backward(x)
        kind = x.device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        return x, logdet

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, grad_logdet: Tensor) -> tuple[Tensor | None, ...]:
        (value,) = ctx.saved_tensors
        grads: list[Tensor | None] = []
        with torch.autocast(*ctx.autocast):
            for layer in reversed(cast("Sequence[Recomputable]", ctx.layers)):
                value, grad, own = layer.encode_backward(value, grad, grad_logdet)
                grads = own + grads
        return grad, grad_logdet, None, *grads


def _traces(layers: Sequence[Any], device: torch.device) -> list[Tensor]:
    """What an evaluation leaves a trace in: random generators, and the versions of buffers."""
    buffers = [b for layer in layers for b in layer.buffers() if not b.is_inference()]
    states = [torch.tensor([b._version for b in buffers], device="cpu"), torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states
