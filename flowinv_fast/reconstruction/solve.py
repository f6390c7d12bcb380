"""The loop over restarts, stages and parts of a batch: what a strategy means."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from .._base.errors import require
from .._base.tensors import annealing_stream
from ..protocols import Continuation, provides
from . import memory
from .diagnosis import measured, stopped
from .objectives import Evaluate, LatentForm, Objective, Terms, generate
from .problem import Problem, draw
from .result import Reconstruction, join, longer, pack
from .solvers import SOLVERS, Solution, Status, minimise
from .solvers.common import Callback, in_full
from .strategies import Stage, Strategy
from .trial import examine

_NAME = "reconstruct"


@dataclass(frozen=True)
class Plan:
    """How a problem is solved.

    Args:
        strategy: stages of a start. lr: step size of the first stage.
        steps: of one start. restarts: starts.
        seed: of every draw. callback: called at every step.
    """

    strategy: Strategy
    steps: int
    lr: float
    restarts: int
    seed: int
    callback: Callback | None = None


# --- one start ------------------------------------------------------------------------------------


def descend(
    problem: Problem, plan: Plan, restart: int, steps: int, bar: tqdm | None = None
) -> Solution:
    """From one start, through the stages of the strategy; an interrupt ends it where it stands."""
    # What was found so far, and the form of the objective it was found for, always of one stage.
    reached: tuple[Solution, Objective] | None = None
    first = plan.strategy.stages[0]  # which may have no steps here
    try:
        for stage, form, count in allot(plan.strategy, problem.objective, steps):
            part = replace(problem, objective=form)
            if reached is None:
                start = part.first_variable(restart, plan.restarts, plan.seed)
            else:
                start = _handed_over(reached[0].best, problem, reached[1], form)
            more = SOLVERS[stage.solver](
                part.evaluate,
                start,
                steps=count,
                lr=plan.lr / (first.rate / stage.rate),  # so that a fifth is exactly a fifth
                schedule=stage.schedule,
                tol=stage.tol,
                patience=stage.patience,
                active=part.readable,
                path=easier(part, stage, plan, restart),
                callback=plan.callback,
                bar=bar,
            )
            reached = _continued(reached[0] if reached else None, more), form
            if more.interrupted:
                break
        interrupted = False
    except KeyboardInterrupt:  # between the steps of the solvers, which see to their own
        interrupted = True
    return in_full(lambda cut: _ended(problem, plan, restart, reached, cut), interrupted)


def _ended(
    problem: Problem,
    plan: Plan,
    restart: int,
    reached: tuple[Solution, Objective] | None,
    interrupted: bool,
) -> Solution:
    """What the stages reached, or the start, as a solution over the space of the objective."""
    if reached is not None and reached[1].space == problem.objective.space:
        return replace(reached[0], interrupted=reached[0].interrupted or interrupted)
    if reached is None:
        start = problem.first_variable(restart, plan.restarts, plan.seed)
    else:
        start = _handed_over(reached[0].best, problem, reached[1], problem.objective)
    end = minimise(problem.evaluate, start, steps=0, active=problem.readable)
    if reached is None:
        return replace(end, interrupted=True)
    before = reached[0]
    end = replace(end, status=before.status, gain=before.gain)
    return replace(_continued(before, end), interrupted=before.interrupted or interrupted)


def allot(
    strategy: Strategy, objective: Objective, steps: int
) -> list[tuple[Stage, Objective, int]]:
    """The stages that an objective can take, each with its form of it and its number of steps."""
    forms = [(stage, _form(objective, stage.space)) for stage in strategy.stages]
    able = [(stage, form) for stage, form in forms if form is not None]
    wanted = f"a stage in the space of the objective, {objective.space!r}"
    require(len(able) > 0, _NAME, "strategy", wanted, [stage.space for stage, _ in forms])
    shares = [stage.share for stage, _ in able]
    rest = shares.index(None) if None in shares else len(able) - 1
    counts = [int((share or 0.0) * steps + 1e-9) for share in shares]  # 29 % of 100 are 29
    counts[rest] = 0
    counts[rest] = steps - sum(counts)
    chosen = [i for i, count in enumerate(counts) if count > 0] or [rest]
    return [(*able[i], counts[i]) for i in chosen]


def _form(objective: Objective, space: str | None) -> Objective | None:
    """The objective over this space, if it has such a form."""
    if space in (None, objective.space):
        return objective
    if space == "latent" and provides(objective, LatentForm):
        return objective.latent()
    return None


def _handed_over(variable: Tensor, problem: Problem, before: Objective, after: Objective) -> Tensor:
    """Where a stage begins, of where the one before ended."""
    if before.space == after.space:
        return variable
    over = replace(problem, objective=before if before.space == "image" else after)
    with torch.no_grad():
        if after.space == "image":
            return over.of_images(generate(problem.prior, variable))
        return problem.prior.encode(over.images(variable))[0]


class Easier:
    """A problem that is easier at first: a fast precision, noise on the variable, a faint
    likelihood, an operator with easier forms (``solvers.Path``)."""

    def __init__(self, problem: Problem, stage: Stage, exact: float, seed: int, restart: int):
        self.problem, self.stage, self.exact = problem, stage, exact
        self.seed, self.restart = seed, restart
        # Below time 1 always the same: only the precision changes at the end.
        self.constant = not anneals(problem, stage)

    def at(self, t: float, step: int) -> Evaluate:
        """The problem at time t in [0, 1); the noise on the variable is that of this step."""
        problem, stage = self.problem, self.stage
        operator, (prior, noise) = problem.operator, problem.fast or (problem.prior, problem.noise)
        if provides(operator, Continuation):
            operator = operator.at(t)
        std = stage.smoothing * (1 - t)
        weight = stage.tempering ** (1 - t)
        stream = annealing_stream(self.restart, step) if std > 0 else 0

        def evaluate(variable: Tensor) -> Terms:
            if std > 0:
                variable = variable + draw(variable, stream, self.seed, std, problem.first)
            at = problem.taken(variable)
            terms = problem.objective.evaluate(problem.y, operator, prior, noise, at)
            if stage.tempering == 1:
                return terms
            return terms._replace(loss=terms.loss + (1 - weight) * terms.log_noise)

        return evaluate


def anneals(problem: Problem, stage: Stage) -> bool:
    """Whether the problem changes with time in this stage."""
    changing = stage.smoothing > 0 or stage.tempering < 1
    return changing or provides(problem.operator, Continuation)


def easier(problem: Problem, stage: Stage, plan: Plan, restart: int) -> Easier | None:
    """What leads to the problem in this stage; None where nothing does."""
    changing = anneals(problem, stage)
    if not changing and problem.fast is None:
        return None
    if stage.smoothing > 0:
        annealing_stream(plan.restarts - 1, plan.steps - 1)  # refuses more than have streams
    polish = plan.strategy.polish if problem.fast else 0.0
    exact = max(stage.exact if changing else 0.0, polish)
    return Easier(problem, stage, exact, plan.seed, restart)


def _continued(before: Solution | None, after: Solution) -> Solution:
    """Two stages as one solve."""
    if before is None:
        return after
    history = torch.cat([before.history, after.history])
    return replace(after, history=history, steps=before.steps + after.steps)


# --- restarts -------------------------------------------------------------------------------------


def solve(problem: Problem, plan: Plan, bar: tqdm | None, give_up: bool) -> Reconstruction:
    """The best of all restarts, for each image; with ``give_up`` where the first one starts."""
    kept, scores = None, []
    interrupted = give_up
    if not give_up:
        try:
            examine(_NAME, problem)
            for restart in range(plan.restarts):
                found = descend(problem, plan, restart, plan.steps, bar)
                kept = found if kept is None else _keep_better(kept, found, problem.objective)
                scores.append(_score(found, problem.objective))
                if found.interrupted:
                    interrupted = True
                    break
        except KeyboardInterrupt:
            interrupted = True
    best = kept or descend(problem, plan, 0, 0)

    def result(interrupted: bool) -> Reconstruction:
        if interrupted:
            return pack(replace(best, status=stopped(best.status)), problem, scores)
        return measured(pack(best, problem, scores), problem, plan.seed)

    return in_full(result, interrupted)


def _score(found: Solution, objective: Objective) -> Tensor:
    """What restarts are compared by, (B,); infinite where there is no finite loss."""
    return objective.rank(found.terms).nan_to_num(math.inf, math.inf)


def _keep_better(kept: Solution, new: Solution, objective: Objective) -> Solution:
    """Per image, the solution that the objective ranks lower."""
    better = _score(new, objective) < _score(kept, objective)
    pick = lambda a, b: torch.where(better.view(-1, *[1] * (a.dim() - 1)), b, a)
    rows = max(len(kept.history), len(new.history))
    both = [longer(s.history, rows, s.terms.loss) for s in (kept, new)]
    terms = Terms(*(pick(a, b) for a, b in zip(kept.terms, new.terms)))
    status = [n if b else k for k, n, b in zip(kept.status, new.status, better.tolist())]
    history = torch.where(better, both[1], both[0])
    return Solution(
        pick(kept.best, new.best),
        terms,
        history,
        status,
        pick(kept.steps, new.steps),
        pick(kept.gain, new.gain),
        new.interrupted,
    )


# --- parts of the batch ---------------------------------------------------------------------------


def in_parts(problem: Problem, plan: Plan, shown: bool) -> Reconstruction:
    """All images at once where they fit; else, or where memory runs out, fewer at a time."""
    batch, name = len(problem.y), problem.objective.name
    each = memory.planned(problem.prior, problem.noise, problem.y)
    size = memory.images_at_once(each, batch, problem.y.device)
    bar = tqdm(disable=not shown, desc=name, unit="step")
    if shown and each:
        at_once = "all at once" if size == batch else f"{size} at a time"
        bar.write(f"{name}: {batch} images of {each / 1e6:.2f} MB, {at_once}", sys.stderr)
    done: list[Reconstruction] = []
    found: Reconstruction | None = None
    interrupted = False
    with bar:
        while found is None:
            try:
                size = _next_part(problem, plan, bar, done, size, interrupted)
                interrupted = interrupted or Status.INTERRUPTED in done[-1].status
                if sum(len(part.status) for part in done) == batch:
                    found = _together(done, interrupted)
            except KeyboardInterrupt:  # elsewhere than in a solve, which sees to its own
                if interrupted:
                    raise
                interrupted = True
    return found


def _next_part(
    problem: Problem,
    plan: Plan,
    bar: tqdm,
    done: list[Reconstruction],
    size: int,
    interrupted: bool,
) -> int:
    """Add the next part to those that are done, if any is left; returns how many images fit."""
    batch, first = len(problem.y), sum(len(part.status) for part in done)
    before = bar.n
    while first < batch:
        part = slice(first, min(batch, first + size))
        bar.total = plan.steps * plan.restarts * (len(done) + math.ceil((batch - first) / size))
        bar.refresh()
        found = _unless_exhausted(problem.select(part), plan, bar, interrupted)
        if found is not None:
            done.append(found)
            break
        size = max(1, (part.stop - first) // 2)
        bar.n = before
        if problem.y.device.type == "cuda":
            torch.cuda.empty_cache()
        message = f"{_NAME}: out of memory; going on with {size} images at a time"
        warnings.warn(message, stacklevel=4)
    return size


def _together(done: list[Reconstruction], interrupted: bool) -> Reconstruction:
    """All parts as one result; an interrupt is not lost."""
    found = done[0] if len(done) == 1 else join(done)
    if interrupted and Status.INTERRUPTED not in found.status:
        found = replace(found, status=stopped(found.status))
        if Status.INTERRUPTED not in found.status:  # there was nothing to interrupt
            raise KeyboardInterrupt
    return found


def _unless_exhausted(
    problem: Problem, plan: Plan, bar: tqdm, give_up: bool
) -> Reconstruction | None:
    """The result, or None where memory ran out and fewer images can be tried.

    A function of its own, so that its traceback and the tensors in it are gone on return.
    """
    try:
        return solve(problem, plan, bar, give_up)
    except Exception as error:
        if len(problem.y) == 1 or not memory.exhausted(error):
            raise
    return None
