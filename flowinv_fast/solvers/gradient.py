"""Adam over a batch of independent problems, each with its own best iterate and its own end."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .. import ops
from ..objectives import Evaluate, Terms


class Status(enum.Enum):
    """How an image's solve ended; the value is a sentence for people."""

    CONVERGED = "the loss stopped improving"
    MAX_STEPS = "all steps were taken; more steps may lower the loss further"
    NON_FINITE = (
        "the loss became non-finite and the best iterate before that was kept; try a smaller lr"
    )
    FAILED = "the loss was never finite, so there is no solution; try another init or a smaller lr"
    BAD_MEASUREMENT = "the measurement holds NaN or infinity; the image was not solved"
    INTERRUPTED = "interrupted; the best iterate so far was kept"

    def __repr__(self) -> str:
        return f"Status.{self.name}"


@dataclass
class Solution:
    """Result of ``minimise``: best variable (B, ...), its terms, loss history, ends, steps (B,)."""

    best: Tensor
    terms: Terms
    history: Tensor
    status: list[Status]
    steps: Tensor


def minimise(
    evaluate: Evaluate,
    start: Tensor,
    *,
    steps: int,
    lr: float,
    schedule: str = "cosine",
    tol: float = 0.0,
    patience: int = 50,
    active: Tensor | None = None,
    anneal: Callable[[float], None] | None = None,
    exact: float = 0.2,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    bar: tqdm | None = None,
) -> Solution:
    """Minimise one loss per image with Adam (one fused update per step).

    An image stops when its best loss improved by no more than tol (1 + |best|) over ``patience``
    steps, or when its loss is not finite; the others go on, and nothing of one image enters
    another's iterates.

    Args:
        evaluate: variable (B, ...) to Terms of (B,).
        start: first variable (B, ...); not changed.
        steps, lr: number of steps and step size; with ``schedule`` "cosine" the step size falls
            to zero along half a cosine, with "constant" it stays.
        tol, patience: the stopping rule; tol 0 takes all steps.
        active: (B,) bool, images to solve; None is all.
        anneal: called with t in [0, 1] before each evaluation: a continuation of the problem that
            is exact at t = 1, reached ``exact`` of the steps before the end. The best iterate is
            chosen among the exact ones.
        callback: called with (step, losses (B,), variable) after each evaluation.
        bar: progress bar to advance.
    Returns:
        The best iterates; losses of images that had stopped repeat their last in the history.
    """
    x = start.detach().clone(memory_format=torch.contiguous_format)
    batch, acc = x.shape[0], ops.reference.accumulate_dtype(x.dtype)
    zeros = lambda: torch.zeros_like(x)
    exp_avg, exp_avg_sq, best = zeros(), zeros(), x.clone()
    best_loss = x.new_full((batch,), math.inf, dtype=acc)
    active = (
        torch.ones(batch, dtype=torch.bool, device=x.device) if active is None else active.clone()
    )
    non_finite = torch.zeros_like(active)
    taken = torch.zeros(batch, dtype=torch.long, device=x.device)
    first_exact = math.ceil((1 - exact) * steps) if anneal else 0
    shown = torch.full_like(best_loss, math.inf)
    history: list[Tensor] = []
    marks: list[Tensor] = []  # best loss after each exact step
    interrupted = False
    try:
        for step in range(steps):
            if not active.any():
                break
            if anneal:
                anneal(min(1.0, step / max(1, first_exact)))
            if step < first_exact:
                best_loss.fill_(-math.inf)  # nothing is best yet
            elif step == first_exact:
                best_loss.fill_(math.inf)
            loss, grad = _value_and_gradient(evaluate, x)
            finite = torch.isfinite(loss)
            non_finite |= active & ~finite
            active &= finite
            taken += active
            rate = lr * (
                0.5 * (1 + math.cos(math.pi * step / steps)) if schedule == "cosine" else 1
            )
            ops.adam_step_(
                x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, step + 1, rate
            )
            shown = torch.where(active, loss, shown)
            history.append(shown)
            if callback:
                callback(step, shown, x)
            if bar is not None:
                bar.update()
            if step >= first_exact:
                marks.append(best_loss.clone())
                if tol > 0 and len(marks) > patience:
                    gained = marks[-1 - patience] - best_loss
                    active &= gained > tol * (1 + best_loss.abs())
    except KeyboardInterrupt:
        interrupted = True
    if anneal:
        anneal(1.0)
    # The last update's result was never scored; a solve cut short in its continuation has no best.
    with torch.no_grad():
        last = evaluate(x)
        better = active & (last.loss < best_loss) | (best_loss == -math.inf)
        best = torch.where(better.view(-1, *[1] * (x.dim() - 1)), x, best)
        terms = Terms(*(t.detach() for t in evaluate(best)))
    failed = ~torch.isfinite(terms.loss)
    reason = Status.INTERRUPTED if interrupted else Status.MAX_STEPS
    status = [
        Status.FAILED if failed[i] else Status.NON_FINITE if non_finite[i]
        else reason if active[i] else Status.CONVERGED
        for i in range(batch)
    ]  # fmt: skip
    rows = torch.stack(history) if history else x.new_zeros(0, batch, dtype=acc)
    return Solution(best, terms, rows, status, taken)


def _value_and_gradient(evaluate: Evaluate, x: Tensor) -> tuple[Tensor, Tensor]:
    variable = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = evaluate(variable).loss
        (grad,) = torch.autograd.grad(loss.sum(), variable)
    return loss.detach().to(ops.reference.accumulate_dtype(x.dtype)), grad.contiguous()
