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
from ..protocols import Continuation, NoiseModel, provides
from . import checks as check
from . import memory
from .objectives import Evaluate, LatentForm, Objective, Terms, generate
from .problem import Problem, draw
from .result import Reconstruction, join, longer, pack
from .solvers import SOLVERS, Solution, Status, minimise
from .solvers.common import Callback
from .strategies import Stage, Strategy

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

    @property
    def polish(self) -> int:
        """Last steps in fp32, of a solve in a fast precision."""
        return int(self.strategy.polish * self.steps)


# --- one start ------------------------------------------------------------------------------------


def descend(
    problem: Problem, plan: Plan, restart: int, steps: int, bar: tqdm | None = None
) -> Solution:
    """From one start, through the stages of the strategy."""
    found: Solution | None = None
    stages = allot(plan.strategy, problem.objective, steps)
    objective, first = stages[0][1], plan.strategy.stages[0]  # which may have no steps here
    for stage, form, count in stages:
        part = replace(problem, objective=form)
        if found is None:
            start = part.first_variable(restart, plan.restarts, plan.seed)
        else:
            start = _handed_over(found.best, problem, objective, form)
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
        found, objective = _continued(found, more), form
        if Status.INTERRUPTED in found.status:
            break
    assert found is not None
    if objective.space != problem.objective.space:
        start = _handed_over(found.best, problem, objective, problem.objective)
        end = minimise(problem.evaluate, start, steps=0, active=problem.readable)
        found = _continued(found, replace(end, status=found.status))
    return found


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
    to_image = after.space == "image"
    with torch.no_grad():
        return generate(problem.prior, variable) if to_image else problem.prior.encode(variable)[0]


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
        stream = annealing_stream(self.restart, step)

        def evaluate(variable: Tensor) -> Terms:
            if std > 0:
                variable = variable + draw(variable, stream, self.seed, std, problem.first)
            terms = problem.objective.evaluate(problem.y, operator, prior, noise, variable)
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
    polish = plan.polish / plan.steps if problem.fast else 0.0
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
    noise: NoiseModel | None = problem.noise if "noise" in problem.objective.needs else None
    check.shapes(_NAME, problem.y, problem.operator, problem.prior, noise)
    kept: Solution | None = None
    for restart in range(plan.restarts):
        found = descend(problem, plan, restart, 0 if give_up else plan.steps, bar)
        kept = found if kept is None else _keep_better(kept, found, problem.objective)
        give_up = give_up or Status.INTERRUPTED in found.status
        if give_up:
            break
    assert kept is not None
    if give_up:
        ended = lambda s: Status.INTERRUPTED if s is Status.MAX_STEPS else s
        kept = replace(kept, status=[ended(status) for status in kept.status])
    return pack(kept, problem)


def _keep_better(kept: Solution, new: Solution, objective: Objective) -> Solution:
    """Per image, the solution that the objective ranks lower."""
    score = lambda s: objective.rank(s.terms).nan_to_num(math.inf, math.inf)
    better = score(new) < score(kept)
    pick = lambda a, b: torch.where(better.view(-1, *[1] * (a.dim() - 1)), b, a)
    rows = max(len(kept.history), len(new.history))
    both = [longer(s.history, rows, s.terms.loss) for s in (kept, new)]
    terms = Terms(*(pick(a, b) for a, b in zip(kept.terms, new.terms)))
    status = [n if b else k for k, n, b in zip(kept.status, new.status, better.tolist())]
    history = torch.where(better, both[1], both[0])
    return Solution(pick(kept.best, new.best), terms, history, status, pick(kept.steps, new.steps))


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
    first = 0
    try:
        while first < batch:
            parts = len(done) + math.ceil((batch - first) / size)
            bar.total = plan.steps * plan.restarts * parts
            bar.refresh()
            part = slice(first, min(batch, first + size))
            given_up = bool(done) and Status.INTERRUPTED in done[-1].status
            before = bar.n
            found = _unless_exhausted(problem.select(part), plan, bar, given_up)
            if found is not None:
                done.append(found)
                first = part.stop
                continue
            size = max(1, (part.stop - first) // 2)
            bar.n = before
            if problem.y.device.type == "cuda":
                torch.cuda.empty_cache()
            message = f"{_NAME}: out of memory; going on with {size} images at a time"
            warnings.warn(message, stacklevel=3)
    finally:
        bar.close()
    return done[0] if len(done) == 1 else join(done)


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
