"""The solver's update."""

from __future__ import annotations

import torch
from torch import Tensor

from .._base.errors import is_real, require
from .._base.tensors import accumulate_dtype, check_float, check_like, check_number, per_image
from ._kernel import images
from ._register import register_kernel


def _twin(
    x: Tensor,  # [B, ...], changed in place
    grad: Tensor,  # [B, ...]
    exp_avg: Tensor,  # [B, ...], changed in place
    exp_avg_sq: Tensor,  # [B, ...], changed in place
    best: Tensor,  # [B, ...], changed in place: iterate of the lowest loss so far
    loss: Tensor,  # [B], loss at x
    best_loss: Tensor,  # [B], changed in place
    active: Tensor,  # [B] bool
    rates: Tensor,  # [2] float64: lr / (1 - beta1^t), 1 / sqrt(1 - beta2^t)
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """One Adam step per image with best-so-far, for the active images only.

    An image whose loss is not finite is left untouched.
    """
    move = active & torch.isfinite(loss)
    better = move & (loss < best_loss)
    best_loss.copy_(torch.where(better, loss, best_loss))
    best.copy_(torch.where(per_image(better, x), x, best))
    new_avg = exp_avg + (1 - beta1) * (grad - exp_avg)
    new_avg_sq = exp_avg_sq + (1 - beta2) * (grad * grad - exp_avg_sq)
    step_size, correction = rates.to(x.dtype)
    new_x = x - step_size * new_avg / (torch.sqrt(new_avg_sq) * correction + eps)
    for old, new in ((exp_avg, new_avg), (exp_avg_sq, new_avg_sq), (x, new_x)):
        old.copy_(torch.where(per_image(move, x), new, old))


_adam_op = register_kernel(
    "adam_step_(Tensor(a!) x, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
    "Tensor(d!) best, Tensor loss, Tensor(e!) best_loss, Tensor active, Tensor rates, "
    "float beta1, float beta2, float eps) -> ()",
    "adam_step",
    _twin,
    lambda *_: None,
    sizes=images,
)


def _check_decays(function: str, beta1: float, beta2: float) -> None:
    for argument, beta in (("beta1", beta1), ("beta2", beta2)):
        good = is_real(beta) and 0 <= beta < 1
        require(good, function, argument, "a number in [0, 1)", beta)


def adam_rates(lr: Tensor, beta1: float = 0.9, beta2: float = 0.999) -> Tensor:
    """What Adam multiplies by at its steps: (T, 2) float64 on the device of ``lr``.

    Row t - 1 holds lr_t / (1 - beta1^t) and 1 / sqrt(1 - beta2^t), both bias corrections included.

    Args:
        lr: step sizes (T,), positive or zero.
        beta1, beta2: decay of the averages of the gradient and of its square, in [0, 1).
    Raises:
        ArgumentError: lr of another shape, or negative.

    >>> adam_rates(torch.tensor([0.1, 0.1]))
    tensor([[ 1.0000, 31.6228],
            [ 0.5263, 22.3663]], dtype=torch.float64)
    """
    check_float("adam_rates", "lr", lr, 1)
    require(bool((lr >= 0).all()), "adam_rates", "lr", "step sizes (T,), not negative", "others")
    _check_decays("adam_rates", beta1, beta2)
    t = torch.arange(1, len(lr) + 1, dtype=torch.float64, device=lr.device)
    return torch.stack([lr.double() / (1 - beta1**t), (1 - beta2**t).rsqrt()], 1)


def adam_step_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    best: Tensor,
    loss: Tensor,
    best_loss: Tensor,
    active: Tensor,
    rates: Tensor,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> None:
    """One Adam step (Kingma and Ba, 2015) per image in place, keeping the best iterate so far.

    With m = exp_avg and v = exp_avg_sq: m += (1 - beta1) (grad - m), v += (1 - beta2)
    (grad^2 - v), then x -= rates[0] m / (sqrt(v) rates[1] + eps). Where ``loss < best_loss``, best
    takes x (before the step) and best_loss takes loss. An image that is not active, or whose loss
    is not finite, is left untouched.

    Args:
        x, exp_avg, exp_avg_sq, best: (B, ...) floating point, contiguous, changed.
        grad: gradient of the loss at x, like x.
        loss: loss at x (B,), float32 (float64 for float64).
        best_loss: like loss, changed.
        active: (B,) bool.
        rates: (2,) float64, a row of ``adam_rates`` made with the same betas.
        beta1, beta2, eps: of Adam; the betas in [0, 1), eps positive.
    Raises:
        ArgumentError: an argument that does not fit.

    >>> x, average, average_sq, best = torch.zeros(4, 1, 2)  # one image of two numbers
    >>> grad, rates = torch.tensor([[4.0, -0.5]]), adam_rates(torch.tensor([0.1]))[0]
    >>> loss, best_loss, active = torch.ones(1), torch.tensor([torch.inf]), torch.tensor([True])
    >>> adam_step_(x, grad, average, average_sq, best, loss, best_loss, active, rates)
    >>> x, best_loss
    (tensor([[-0.1000,  0.1000]]), tensor([1.]))
    """
    name = "adam_step_"
    check_float(name, "x", x)
    require(x.dim() >= 1, name, "x", "a batch dimension", "a scalar")
    acc = accumulate_dtype(x.dtype)
    buffers = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "best": best}
    for argument, tensor in {"grad": grad, **buffers}.items():
        check_like(name, argument, tensor, x, x.shape)
    for argument, tensor in (("loss", loss), ("best_loss", best_loss)):
        check_like(name, argument, tensor, x, x.shape[:1], acc)
    check_like(name, "active", active, x, x.shape[:1], torch.bool)
    for argument, tensor in {"x": x, **buffers, "best_loss": best_loss}.items():
        require(tensor.is_contiguous(), name, argument, "a contiguous tensor", "strided")
    check_like(name, "rates", rates, x, (2,), torch.float64)
    require(rates.is_contiguous(), name, "rates", "a contiguous tensor", "strided")
    _check_decays(name, beta1, beta2)
    check_number(name, "eps", eps, "a positive number", 0)
    images = (x, grad, exp_avg, exp_avg_sq, best)
    _adam_op(*images, loss, best_loss, active, rates, beta1, beta2, eps)
