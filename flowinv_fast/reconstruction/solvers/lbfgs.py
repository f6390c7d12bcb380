"""L-BFGS over a batch of independent problems, each with its own line search and history."""

from __future__ import annotations

import torch
from torch import Tensor
from tqdm import tqdm

from ..objectives import Evaluate, Terms
from .common import Callback, Path, Solution, Status, in_full, still_falling, value_and_gradient

_MEMORY = 10  # pairs of steps and gradient changes that an image keeps
_ARMIJO = 1e-4  # share of the promised decrease that a step must bring
_SHORTEST = 1e-10  # step lengths below this end an image's solve


def lbfgs(
    evaluate: Evaluate,
    start: Tensor,
    *,
    steps: int,
    lr: float = 0.1,
    schedule: str = "cosine",
    tol: float = 0.0,
    patience: int = 50,
    active: Tensor | None = None,
    path: Path | None = None,
    callback: Callback | None = None,
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
        lr, schedule, tol, patience, path: of every solver; this one finds its own step lengths and
            its own end, and a line search needs a problem that stays: the exact one.
    Returns:
        The iterates of lowest loss; the history holds the lowest loss so far.
    """
    state = _Descent(evaluate, start, active)
    history, interrupted = [], False
    try:
        for step in range(steps):
            if not state.active.any():
                break
            state.advance()
            history.append(state.loss)
            if callback:
                callback(step, state.loss.clone(), state.x.clone().view(start.shape))
            if bar is not None:
                bar.update()
    except KeyboardInterrupt:
        interrupted = True
    return in_full(lambda cut: state.solution(cut, list(history), steps), interrupted)


class _Descent:
    """The iterates of a batch, as vectors (B, N), with their losses, gradients and directions."""

    def __init__(self, evaluate: Evaluate, start: Tensor, active: Tensor | None):
        self.evaluate, self.shape = evaluate, start.shape
        self.x = start.detach().flatten(1).clone()
        self.loss, self.grad = self._at(self.x)
        finite = torch.isfinite(self.loss)
        self.active = finite if active is None else finite & active
        self.pairs = _Pairs(self.x)
        self.direction = -self.grad
        self.length = _first_length(self.grad)
        self.taken = torch.zeros(start.shape[0], dtype=torch.long, device=start.device)
        self.converged = torch.zeros_like(self.active)

    def _at(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loss, grad = value_and_gradient(self.evaluate, x.view(self.shape))
        return loss, grad.flatten(1)

    def advance(self) -> None:
        """One evaluation, each image at the trial point of its own line search."""
        trial = self.x + self.length[:, None] * self.direction
        trial = torch.where(self.active[:, None], trial, self.x)
        loss, grad = self._at(trial)
        wanted = self.loss + _ARMIJO * self.length * (self.grad * self.direction).sum(1)
        good = self.active & (loss <= wanted) & (loss < self.loss)
        good &= torch.isfinite(grad).all(1)
        self.taken += self.active
        self.pairs.add(trial - self.x, grad - self.grad, good)
        self.x = torch.where(good[:, None], trial, self.x)
        self.grad = torch.where(good[:, None], grad, self.grad)
        self.loss = torch.where(good, loss, self.loss)
        self.length = torch.where(good, torch.ones_like(self.length), 0.5 * self.length)
        self._turn(good)

    def solution(self, interrupted: bool, history: list[Tensor], steps: int) -> Solution:
        """Where it stands after the steps of ``history``, of so many."""
        best = self.x.view(self.shape)
        with torch.no_grad():
            terms = Terms(*(t.detach() for t in self.evaluate(best)))
        rest = Status.INTERRUPTED if interrupted else Status.MAX_STEPS
        status = [Status.CONVERGED if ended else rest for ended in self.converged.tolist()]
        for i, finite in enumerate(torch.isfinite(terms.loss).tolist()):
            if not finite:
                status[i] = Status.FAILED
        rows = torch.stack(history) if history else self.loss.new_zeros(0, self.shape[0])
        pace = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
        gain = still_falling(torch.cat([rows, self.loss[None]]), pace, float(steps))
        return Solution(best, terms, rows, status, self.taken, gain, interrupted)

    def _turn(self, good: Tensor) -> None:
        """New directions for the images that took their step, or whose step became tiny."""
        # A step without end along a quasi-Newton direction: forget, and descend.
        stuck = self.active & (self.length < _SHORTEST)
        self.converged |= stuck & (self.pairs.count == 0)
        self.active &= ~self.converged
        self.pairs.forget(stuck)
        turn = good | stuck
        step = -self.pairs.times(self.grad)
        self.direction = torch.where(turn[:, None], step, self.direction)
        uphill = turn & ((self.grad * self.direction).sum(1) >= 0)
        self.pairs.forget(uphill)
        self.direction = torch.where(uphill[:, None], -self.grad, self.direction)
        first = turn & (self.pairs.count == 0)
        self.length = torch.where(first, _first_length(self.grad), self.length)


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
