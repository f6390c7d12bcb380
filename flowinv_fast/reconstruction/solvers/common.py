"""What all solvers share: how they are called, what they return, and how a solve ends."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..._base.errors import ArgumentError
from ..._base.tensors import accumulate_dtype
from ..objectives import Evaluate, Terms

Callback = Callable[[int, Tensor, Tensor], None]
Made = TypeVar("Made")


class Status(enum.Enum):
    """How an image's solve ended; the value is a sentence for people."""

    CONVERGED = "the loss stopped improving"
    MAX_STEPS = "all steps were taken, and the loss had nearly stopped falling"
    UNSETTLED = "all steps were taken while the loss was still falling; take more steps"
    NON_FINITE = (
        "the loss became non-finite and the best iterate before that was kept; try a smaller lr"
    )
    FAILED = "the loss was never finite, so there is no solution; try another start or a smaller lr"
    BAD_MEASUREMENT = "the measurement holds NaN or infinity; the image was not solved"
    MIXED = "the chains of the posterior agree"
    UNMIXED = "the chains disagree: their mean may serve, the deviations do not; raise warm_up"
    INTERRUPTED = "interrupted; the best iterate so far was kept"

    def __repr__(self) -> str:
        return f"Status.{self.name}"


@dataclass
class Solution:
    """Result of a solver.

    Args:
        best: variable (B, ...) of the lowest loss. terms: its loss, and what that is made of.
        history: losses (steps, B). status: how each image ended. steps: that each took (B,).
        gain: by how much as many steps again may lower the loss, estimated (B,).
        interrupted: whether an interrupt ended it.
    """

    best: Tensor
    terms: Terms
    history: Tensor
    status: list[Status]
    steps: Tensor
    gain: Tensor
    interrupted: bool = False


class Path(Protocol):
    """Easier problems that lead to the one to be solved, which is reached at time 1.

    Attributes:
        exact: share of the steps, at the end, that are taken at time 1.
        constant: whether the problem is the same at every time below 1.
    """

    @property
    def exact(self) -> float: ...
    @property
    def constant(self) -> bool: ...

    def at(self, t: float, step: int) -> Evaluate:
        """The problem at time t in [0, 1), as this step sees it: it may draw random numbers."""
        ...


class Solver(Protocol):
    """A way to minimise one loss per image, all images of a batch together."""

    def __call__(
        self,
        evaluate: Evaluate,
        start: Tensor,
        *,
        steps: int,
        lr: float = ...,
        schedule: str = ...,
        tol: float = ...,
        patience: int = ...,
        active: Tensor | None = ...,
        path: Path | None = ...,
        callback: Callback | None = ...,
        bar: tqdm | None = ...,
    ) -> Solution:
        """From a start to the lowest loss found.

        Args:
            evaluate: variable (B, ...) to Terms of (B,).
            start: first variable (B, ...); not changed.
            steps: evaluations.
            lr, schedule: step size and how it falls, where the solver has one.
            tol, patience: stopping rule, where the solver has one.
            active: (B,) bool, images to solve; None is all.
            path: followed first, by a solver that can; None: the problem is exact from the start.
            callback: called with (step, losses (B,), variable) after each evaluation.
            bar: progress bar to advance.
        """
        ...


def value_and_gradient(evaluate: Evaluate, x: Tensor) -> tuple[Tensor, Tensor]:
    """Losses (B,) in the type of sums, and their gradients (B, ...)."""
    variable = x.detach().requires_grad_()
    with torch.enable_grad():
        loss = evaluate(variable).loss
        if loss.shape != x.shape[:1]:
            wanted = f"a loss of shape ({x.shape[0]},), one per image"
            raise ArgumentError("reconstruct", "objective", wanted, tuple(loss.shape))
        (grad,) = torch.autograd.grad(loss.sum(), variable)
    return loss.detach().to(accumulate_dtype(x.dtype)), grad.contiguous()


def still_falling(losses: Tensor, pace: Tensor, whole: float) -> Tensor:
    """By how much a loss may still fall when a solve is followed by one as long, (B,).

    Progress is measured by the distance that the step sizes have allowed: on that scale a solve
    whose step size falls to zero does not look done only because it stands still at its end. With
    the fall of the lowest loss so far over the last quarter of the way, a, and over the quarter
    before, p, the next quarters bring a r, a r^2, ..., r = a / p. It is at most 3/4: above that the
    falling step size brings the loss down, which happens once.

    Args:
        losses: (n + 1, B), at every step and at the end.
        pace: (n,) step sizes.
        whole: distance of the solve to follow.
    Returns:
        NaN where there is nothing to tell from.
    """
    if len(pace) == 0:
        return torch.full_like(losses[0], math.nan)
    lowest = losses.double().cummin(0).values
    way = torch.cat([pace.new_zeros(1), pace.cumsum(0)]).double()
    marks = way[-1] * torch.tensor([0.5, 0.75], dtype=way.dtype, device=way.device)
    half, later = lowest[torch.searchsorted(way, marks, right=True) - 1]
    last, before = later - lowest[-1], half - later
    ratio = torch.where(last < 0.75 * before, last / before, 0.75)
    quarters = 4 * whole / way[-1].clamp_min(1e-300)
    return (last * ratio * (1 - ratio**quarters) / (1 - ratio)).to(losses.dtype)


def in_full(make: Callable[[bool], Made], interrupted: bool) -> Made:
    """``make(interrupted)``; where an interrupt cuts that short, made anew by ``make(True)``."""
    try:
        return make(interrupted)
    except KeyboardInterrupt:
        return make(True)
