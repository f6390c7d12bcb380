"""The solver's update."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _backend
from ..errors import require
from . import reference
from ._register import check_float, check_like, register


def _adam(x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, step, lr, beta1, beta2, eps):
    if not _backend.native(x):
        reference.adam_step(x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, step, lr,
                            beta1, beta2, eps)  # fmt: skip
        return
    grad, loss, active = grad.contiguous(), loss.contiguous(), active.contiguous()
    _backend._C.adam_step(
        x.shape[0], x[:1].numel(),
        *map(_backend.arg, (x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active)),
        step, lr, beta1, beta2, eps, _backend.place(x),
    )  # fmt: skip


_adam_op = register(
    "adam_step_(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!) best, Tensor loss, Tensor(e!) best_loss, Tensor active, int step, float lr, "
    "float beta1, float beta2, float eps) -> ()",
    _adam, lambda *arguments: None,
)  # fmt: skip


def adam_step_(
    x: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, best: Tensor, loss: Tensor,
    best_loss: Tensor, active: Tensor, step: int, lr: float, beta1: float = 0.9,
    beta2: float = 0.999, eps: float = 1e-8,
) -> None:  # fmt: skip
    """One Adam step (Kingma and Ba, 2015) per image in place, keeping the best iterate so far.

    Where ``loss < best_loss``, best takes x (before the step) and best_loss takes loss. An image
    that is not active, or whose loss is not finite, is left untouched.

    Args:
        x, exp_avg, exp_avg_sq, best: (B, ...), contiguous, changed.
        grad: gradient of the loss at x, like x.
        loss: loss at x (B,), float32 (float64 for float64).
        best_loss: like loss, changed.
        active: (B,) bool.
        step: 1 for the first step.
        lr: step size, positive.
    Raises:
        ArgumentError: an argument that does not fit.
    """
    name = "adam_step_"
    check_float(name, "x", x)
    require(x.dim() >= 1, name, "x", "a batch dimension", "a scalar")
    acc = reference.accumulate_dtype(x.dtype)
    for argument, tensor in (
        ("grad", grad),
        ("exp_avg", exp_avg),
        ("exp_avg_sq", exp_avg_sq),
        ("best", best),
    ):
        check_like(name, argument, tensor, x, x.shape)
    for argument, tensor in (("loss", loss), ("best_loss", best_loss)):
        check_like(name, argument, tensor, x, x.shape[:1], acc)
    check_like(name, "active", active, x, x.shape[:1], torch.bool)
    written = {
        "x": x,
        "exp_avg": exp_avg,
        "exp_avg_sq": exp_avg_sq,
        "best": best,
        "best_loss": best_loss,
    }
    for argument, tensor in written.items():
        require(tensor.is_contiguous(), name, argument, "a contiguous tensor", "strided")
    require(isinstance(step, int) and step >= 1, name, "step", "an integer of at least 1", step)
    require(lr > 0, name, "lr", "a positive number", lr)
    with torch.no_grad():
        _adam_op(x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, step, float(lr),
                 beta1, beta2, eps)  # fmt: skip
