"""The solver's update."""

from __future__ import annotations

import torch
from torch import Tensor

from .._base import backend
from .._base.errors import require
from .._base.tensors import accumulate_dtype
from . import reference
from ._register import check_float, check_like, register


def _adam(x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, rates, beta1, beta2, eps):
    if not backend.native(x):
        flat = (t.reshape(t.shape[0], -1) for t in (x, grad, exp_avg, exp_avg_sq, best))
        reference.adam_step(*flat, loss, best_loss, active, rates, beta1, beta2, eps)
        return
    grad, loss, active = grad.contiguous(), loss.contiguous(), active.contiguous()
    backend._C.adam_step(
        x.shape[0], x[:1].numel(),
        *map(backend.arg, (x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, rates)),
        beta1, beta2, eps, backend.place(x),
    )  # fmt: skip


_adam_op = register(
    "adam_step_(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!) best, Tensor loss, Tensor(e!) best_loss, Tensor active, Tensor rates, "
    "float beta1, float beta2, float eps) -> ()",
    _adam, lambda *arguments: None,
)  # fmt: skip


def adam_rates(lr: Tensor, beta1: float = 0.9, beta2: float = 0.999) -> Tensor:
    """What Adam multiplies by at its steps: (T, 2) float64 on the device of ``lr``.

    Row t - 1 holds lr_t / (1 - beta1^t) and 1 / sqrt(1 - beta2^t), both bias corrections included.

    Args:
        lr: step sizes (T,), positive or zero.
    Raises:
        ArgumentError: lr of another shape, or negative.
    """
    good = lr.dim() == 1 and bool((lr >= 0).all())
    require(good, "adam_rates", "lr", "step sizes (T,), not negative", tuple(lr.shape))
    t = torch.arange(1, len(lr) + 1, dtype=torch.float64, device=lr.device)
    return torch.stack([lr.double() / (1 - beta1**t), (1 - beta2**t).rsqrt()], 1)


def adam_step_(
    x: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, best: Tensor, loss: Tensor,
    best_loss: Tensor, active: Tensor, rates: Tensor, beta1: float = 0.9, beta2: float = 0.999,
    eps: float = 1e-8,
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
        rates: (2,) float64, a row of ``adam_rates`` made with the same betas.
    Raises:
        ArgumentError: an argument that does not fit.
    """
    name = "adam_step_"
    check_float(name, "x", x)
    require(x.dim() >= 1, name, "x", "a batch dimension", "a scalar")
    acc = accumulate_dtype(x.dtype)
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
    check_like(name, "rates", rates, x, (2,), torch.float64)
    require(rates.is_contiguous(), name, "rates", "a contiguous tensor", "strided")
    with torch.no_grad():
        _adam_op(x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, rates,
                 beta1, beta2, eps)  # fmt: skip
