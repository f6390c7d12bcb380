"""Adam over a batch of independent problems, each with its own best iterate and its own end."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from ... import ops
from ..._base.tensors import accumulate_dtype
from ..objectives import Evaluate, Terms
from .common import Callback, Path, Solution, Status, in_full, still_falling, value_and_gradient
from .graph import capture

_LOOK = 25  # steps queued on a GPU before the host looks, which waits for them


def minimise(
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
    """Minimise one loss per image with Adam (one fused update per step).

    An image stops when its best loss improved by no more than tol (1 + |best|) over ``patience``
    steps, or when its loss is not finite; the others go on, and nothing of one image enters
    another's iterates.

    Args are those of every solver (``common.Solver``). With ``schedule`` "cosine" the step size
    falls to zero along half a cosine, with "constant" it stays; tol 0 takes all steps. A ``path``
    is followed until a share of the steps, ``path.exact``, is left, at least one unless it is 0,
    and the best iterate is chosen among those of the exact problem.

    Returns:
        The best iterates; losses of images that had stopped repeat their last in the history.
    """
    first_exact = steps - _exact_steps(path.exact, steps) if path else 0
    state = AdamState(evaluate, start, steps, lr, schedule, tol, patience, active)

    def take(which: range, path: Path | None) -> None:
        """Some of the steps; without a path all are of one problem, which a graph can hold."""
        advance, look = state.advance, 1
        if path is None and _capturable(start, len(which)):
            advance, look = capture(state.advance, state.tensors()), _LOOK
        for step in which:
            if (step - which.start) % look == 0 and not state.active.any():
                break
            if path is not None:
                state.evaluate = path.at(step / first_exact, step)
            advance()
            _report(state, step, callback, bar)

    interrupted = False
    try:
        if path is not None and first_exact:
            state.best_loss.fill_(-math.inf)  # nothing is best yet
            if path.constant:
                state.evaluate = path.at(0.0, 0)
            take(range(first_exact), None if path.constant else path)
            state.evaluate = evaluate
        state.begin_exact(first_exact)
        take(range(first_exact, steps), None)
    except KeyboardInterrupt:
        interrupted = True
    state.evaluate = evaluate
    since = 0 if path is None or path.constant else first_exact
    return in_full(lambda cut: state.solution(cut, since), interrupted)


def _exact_steps(share: float, steps: int) -> int:
    return min(steps, max(1, round(share * steps))) if share > 0 else 0


def _capturable(start: Tensor, steps: int) -> bool:
    return start.is_cuda and steps >= _LOOK


class AdamState:
    """Everything a solve changes, on its device, so that a step needs nothing from the host."""

    def __init__(
        self,
        evaluate: Evaluate,
        start: Tensor,
        steps: int,
        lr: float,
        schedule: str,
        tol: float,
        patience: int,
        active: Tensor | None,
    ):
        self.evaluate, self.tol, self.patience = evaluate, tol, patience
        x = start.detach().clone(memory_format=torch.contiguous_format)
        batch, acc, device = x.shape[0], accumulate_dtype(x.dtype), x.device
        self.x, self.best = x, x.clone()
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(x), torch.zeros_like(x)
        everyone = torch.ones(batch, dtype=torch.bool, device=device)
        self.active = everyone if active is None else active.clone()
        self.non_finite = torch.zeros_like(everyone)
        self.taken = torch.zeros(batch, dtype=torch.long, device=device)
        self.best_loss = x.new_full((batch,), math.inf, dtype=acc)
        self.shown = torch.full_like(self.best_loss, math.inf)  # of an image that stopped: its last
        self.history = self.best_loss.new_zeros(steps, batch)
        self.marks = self.history.clone() if tol > 0 else None  # best loss after each exact step
        t = torch.arange(steps, dtype=torch.float64, device=device) / max(1, steps)
        cosine = 0.5 * (1 + torch.cos(math.pi * t))
        self.pace = lr * (cosine if schedule == "cosine" else torch.ones_like(t))
        self.rates = ops.adam_rates(self.pace)
        self.done = torch.zeros(1, dtype=torch.long, device=device)  # steps so far
        self.first_exact = self.done.clone()

    def tensors(self) -> list[Tensor]:
        """All that ``advance`` changes."""
        return [v for v in vars(self).values() if isinstance(v, Tensor)]

    def begin_exact(self, step: int) -> None:
        self.first_exact.fill_(step)
        self.best_loss.fill_(math.inf)

    def advance(self) -> None:
        """One step. In place and without a read by the host: a CUDA graph can hold it."""
        loss, grad = value_and_gradient(self.evaluate, self.x)
        finite = torch.isfinite(loss)
        self.non_finite |= self.active & ~finite
        self.active &= finite
        self.taken += self.active
        moments = self.exp_avg, self.exp_avg_sq
        rates = self.rates.index_select(0, self.done)[0]
        ops.adam_step_(self.x, grad, *moments, self.best, loss, self.best_loss, self.active, rates)
        self.shown.copy_(torch.where(self.active, loss, self.shown))
        self.history.index_copy_(0, self.done, self.shown[None])
        if self.marks is not None:
            self.marks.index_copy_(0, self.done, self.best_loss[None])
            before = (self.done - self.patience).clamp_min(0)
            gained = self.marks.index_select(0, before)[0] - self.best_loss
            stuck = gained <= self.tol * (1 + self.best_loss.abs())
            self.active &= ~(stuck & (self.done - self.patience >= self.first_exact))
        self.done += 1

    def solution(self, interrupted: bool, since: int) -> Solution:
        """Where it stands; ``since``: first step whose losses are of the exact problem."""
        done = int(self.done)
        with torch.no_grad():
            best = self._best() if done else self.x
            terms = Terms(*(t.detach() for t in self.evaluate(best)))
        failed, active = (~torch.isfinite(terms.loss)).tolist(), self.active.tolist()
        reason = Status.INTERRUPTED if interrupted else Status.MAX_STEPS
        status = [reason if going else Status.CONVERGED for going in active]
        for i, broken in enumerate(self.non_finite.tolist()):
            if failed[i]:
                status[i] = Status.FAILED
            elif broken:
                status[i] = Status.NON_FINITE
        history, end = self.history[:done], terms.loss[None].to(self.history)
        losses, pace = torch.cat([history[since:], end]), self.pace[since:done]
        gain = still_falling(losses, pace, float(self.pace.sum()))
        return Solution(best, terms, history, status, self.taken, gain, interrupted)

    def _best(self) -> Tensor:
        # The last update's result was never scored; a solve cut short before its exact steps has
        # no best.
        last = self.evaluate(self.x)
        better = self.active & (last.loss < self.best_loss) | (self.best_loss == -math.inf)
        return torch.where(better.view(-1, *[1] * (self.x.dim() - 1)), self.x, self.best)


def _report(state: AdamState, step: int, callback: Callback | None, bar: tqdm | None) -> None:
    if callback:
        callback(step, state.shown.clone(), state.x.clone())  # the state's own change later
    if bar is not None:
        bar.update()
