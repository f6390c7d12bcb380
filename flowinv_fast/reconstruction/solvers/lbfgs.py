"""L-BFGS over a batch of independent problems, each with its own line search and history."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..objectives import Evaluate, Terms
from .adam import Solution, Status, value_and_gradient

_MEMORY = 10  # pairs of steps and gradient changes that an image keeps
_ARMIJO = 1e-4  # share of the promised decrease that a step must bring
_SHORTEST = 1e-10  # step lengths below this end an image's solve


def lbfgs(
    evaluate: Evaluate,
    start: Tensor,
    *,
    steps: int,
    active: Tensor | None = None,
    callback: Callable[[int, Tensor, Tensor], None] | None = None,
    bar: tqdm | None = None,
) -> Solution:
    """Minimise one loss per image by L-BFGS (Nocedal and Wright, 2006, section 7.2).

    Every step is one evaluation of the whole batch, each image at a trial point of its own: where
    that brings a sufficient decrease the image takes it and turns to a new direction, elsewhere it
    halves its step. The loss of an image never rises. An image whose step becomes tiny along the
    steepest descent has CONVERGED.

    Args:
        evaluate: variable (B, ...) to Terms of (B,).
        start: first variable (B, ...); not changed.
        steps: evaluations after the one at the start.
        active: (B,) bool, images to solve; None is all.
        callback: called with (step, losses (B,), variable) after each evaluation.
        bar: progress bar to advance.
    Returns:
        The iterates of lowest loss; the history holds the lowest loss so far.
    """
    shape = start.shape
    x = start.detach().flatten(1).clone()
    at = lambda v: value_and_gradient(evaluate, v.view(shape))
    loss, grad = at(x)
    grad = grad.flatten(1)
    batch = shape[0]
    finite = torch.isfinite(loss)
    active = finite if active is None else finite & active
    pairs = _Pairs(x)
    direction = -grad
    length = _first_length(grad)
    taken = torch.zeros(batch, dtype=torch.long, device=x.device)
    converged = torch.zeros_like(active)
    history, interrupted = [], False
    try:
        for step in range(steps):
            if not active.any():
                break
            trial = x + length[:, None] * direction
            trial = torch.where(active[:, None], trial, x)
            new_loss, new_grad = at(trial)
            new_grad = new_grad.flatten(1)
            slope = (grad * direction).sum(1)
            wanted = loss + _ARMIJO * length * slope
            good = active & (new_loss <= wanted) & (new_loss < loss)
            good &= torch.isfinite(new_grad).all(1)
            taken += active
            pairs.add(trial - x, new_grad - grad, good)
            x = torch.where(good[:, None], trial, x)
            grad = torch.where(good[:, None], new_grad, grad)
            loss = torch.where(good, new_loss, loss)
            length = torch.where(good, torch.ones_like(length), 0.5 * length)
            # A step without end along a quasi-Newton direction: forget, and descend.
            stuck = active & (length < _SHORTEST)
            converged |= stuck & (pairs.count == 0)
            active &= ~converged
            pairs.forget(stuck)
            turn = good | stuck
            direction = torch.where(turn[:, None], -pairs.times(grad), direction)
            uphill = turn & ((grad * direction).sum(1) >= 0)
            pairs.forget(uphill)
            direction = torch.where(uphill[:, None], -grad, direction)
            length = torch.where(turn & (pairs.count == 0), _first_length(grad), length)
            history.append(loss)
            if callback:
                callback(step, loss, x.view(shape))
            if bar is not None:
                bar.update()
    except KeyboardInterrupt:
        interrupted = True
    with torch.no_grad():
        terms = Terms(*(t.detach() for t in evaluate(x.view(shape))))
    rest = Status.INTERRUPTED if interrupted else Status.MAX_STEPS
    status = [
        Status.FAILED if not ok else Status.CONVERGED if ended else rest
        for ok, ended in zip(torch.isfinite(terms.loss).tolist(), converged.tolist())
    ]
    rows = torch.stack(history) if history else loss.new_zeros(0, batch)
    return Solution(x.view(shape), terms, rows, status, taken)


def _first_length(grad: Tensor) -> Tensor:
    """Of a step along -grad: it moves the largest element by a hundredth."""
    return 0.01 / grad.abs().amax(1).clamp_min(1e-30)


class _Pairs:
    """The last steps s and gradient changes y of every image, newest last: (B, memory, N)."""

    def __init__(self, x: Tensor):
        batch, size = x.shape
        self.s = x.new_zeros(batch, _MEMORY, size)
        self.y = torch.zeros_like(self.s)
        self.inverse = x.new_zeros(batch, _MEMORY)  # 1 / s.y; zero where there is no pair
        self.count = torch.zeros(batch, dtype=torch.long, device=x.device)

    def add(self, s: Tensor, y: Tensor, which: Tensor) -> None:
        """A pair for the images ``which``, where its curvature is positive."""
        product = (s * y).sum(1)
        which = which & (product > 1e-10 * s.norm(dim=1) * y.norm(dim=1))
        if not which.any():
            return
        for kept, new in ((self.s, s), (self.y, y), (self.inverse, 1 / product)):
            kept[which] = torch.cat([kept[which][:, 1:], new[which][:, None]], 1)
        self.count += which

    def forget(self, which: Tensor) -> None:
        self.inverse[which] = 0
        self.count[which] = 0

    def times(self, grad: Tensor) -> Tensor:
        """The inverse Hessian's estimate times a gradient, by the two-loop recursion."""
        q, weights = grad.clone(), []
        for i in reversed(range(_MEMORY)):
            weight = self.inverse[:, i] * (self.s[:, i] * q).sum(1)
            q -= weight[:, None] * self.y[:, i]
            weights.append(weight)
        newest = self.inverse[:, -1]
        scale = 1 / (newest * self.y[:, -1].square().sum(1)).clamp_min(1e-30)
        q *= torch.where(newest > 0, scale, torch.ones_like(scale))[:, None]
        for i, weight in enumerate(reversed(weights)):
            q += (weight - self.inverse[:, i] * (self.y[:, i] * q).sum(1))[:, None] * self.s[:, i]
        return q
