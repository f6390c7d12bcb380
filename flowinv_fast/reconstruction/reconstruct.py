"""``reconstruct``: the most probable image for a measurement."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .._base.errors import SolverError, is_real, is_whole, require
from .._base.tensors import check_float, check_seed
from .._base.version import VERSION
from ..noise import SignalDependent, as_noise
from ..noise.law import drawn_at
from ..protocols import (
    Density,
    DrawnAt,
    ForwardOperator,
    Generator,
    NoiseModel,
    OnePass,
    Sampled,
    noisy_inside,
    provides,
)
from . import checks as check
from . import memory
from .diagnosis import judged
from .level import at_level, has_free_level, noise_std
from .objectives import OBJECTIVES, Objective, log_noise_of
from .posterior_mean import PosteriorMean
from .problem import Problem
from .result import Reconstruction, empty, plain
from .solve import Plan, in_parts
from .solvers import Status
from .solvers.common import Callback
from .strategies import STRATEGIES, Strategy

_NAME = "reconstruct"


@check.entrance
def reconstruct(
    y: Tensor,
    operator: ForwardOperator,
    prior: Density | Generator,
    noise: NoiseModel | OnePass | Any = None,
    *,
    objective: str | Objective | PosteriorMean | None = None,
    strategy: str | Strategy | None = None,
    start: str | Tensor | None = None,
    steps: int | None = None,
    lr: float | None = None,
    restarts: int = 1,
    precision: str | None = None,
    seed: int = 0,
    callback: Callback | None = None,
    progress: bool | None = None,
    throw: bool = True,
) -> Reconstruction:
    """Most probable images given measurements y = f(x) + noise (Whang, Lei, Dimakis, 2021).

    Images do not influence one another: solving eight together equals solving each alone, to
    rounding and to the draws of restarts and smoothing. So a batch that does not fit into memory
    is solved in parts, and a part that runs out of memory is halved. A prior and a noise model with
    ``freeze`` (a flow, ``noise.FlowNoise``) are frozen for the solve.

    Before the first step every part is evaluated once, forth and back, and refused where its result
    could not be trusted: a lost gradient (``operators.from_numpy``, ``operators.straight_through``
    mend that), random values, modules in training mode, images that influence one another, or
    writing in place.

    Args:
        y: measurements (B, ...), float32 or float64, on the prior's device. Nothing that is handed
            over is changed, and no gradient reaches it.
        operator: f, any differentiable callable from images (B, C, H, W) to (B, ...), without
            memory; a deepinv physics is used without its noise (``protocols.Physics``).
        prior: a flow (``decode``, ``encode``, ``log_prob``, ``shape``), also frozen; over images
            any density with ``log_prob``, such as ``PatchPrior``, which has images of any size; for
            the objectives that need no density any callable generator z to x with ``latent_dim``.
        noise: density of y - f(x): a ``flowinv_fast.noise`` model, a torch.distributions
            Distribution, anything with ``log_prob``, or with ``log_likelihood(y, fx)`` where its
            law depends on f(x). Unused by CSGM and the Asim objectives.
        objective: what is minimised, by name or as an object: "map-image" (``MAP()``, eq. 3, 10),
            "map" (``MAP(space="latent")``, eq. 4, 10), "mle" (``MLE()``, eq. 5), "csgm"
            (``CSGM()``, eq. 6), "asim-likelihood" (``AsimLikelihood()``, eq. 7), "asim-proxy"
            (``AsimProxy()``, eq. 8), or your own (``objectives.Objective``). Its weight is its own.
            Or "posterior-mean" (``PosteriorMean()``): the mean of draws of the posterior, which
            takes no strategy, steps, lr, restarts, precision or callback. None: "map-image". Over
            images that the prior knows in [0, 1] only (a flow of bounded support) the steps are
            those of logit(x), so that none leaves them.
        strategy: how the steps are spent, by name or as an object: "adam", "lbfgs",
            "latent-first", "smoothed", "tempered", "annealed" (``strategies``). None: "tempered"
            for MAP where log p_noise is not concave (flows, mixtures), else "adam".
        start: "measurement" (the latent, or image, of a first guess from y; zeros where the
            operator has no guess), "zeros", "draw" (z from N(0, I)), or a tensor: latents (B, N)
            or images (B, C, H, W). None: the objective's. A density that is no flow knows no size:
            it wants the operator's guess, or images.
        steps: evaluations of the loss for each start. None: the objective's.
        lr: step size of the first stage of the strategy. None: the objective's times the stage's
            ``rate``.
        restarts: solves from several starts; each image keeps the one that the objective ranks
            lowest: by its loss, for CSGM by its measurement error.
        precision: of the flows' networks, "fp32" (default), "tf32" or "bf16", see ``FrozenFlow``;
            for a prior with ``freeze``. The strategy's ``polish`` says how many steps end in fp32.
        seed: of every draw, in 0 .. 2^63 - 1; torch's generators are neither used nor changed.
        callback: called as callback(step, losses (B,), variable) at every step (the variable is
            logit(x) over images of a flow of bounded support), where a batch is
            solved in parts with the part's images.
        progress: show the planned memory and a progress bar; None: only on a terminal.
        throw: refuse measurements that are not finite and raise where an image finds no finite
            loss; with False such images come back as zeros with a status that says so.
    Returns:
        Reconstruction; what in it may not mean what it seems is told by a ``ResultWarning`` too.
    Raises:
        ArgumentError: an argument that cannot be used, named, with what was wanted.
        SolverError: an image whose loss was never finite, with throw=True.

    >>> import flowinv_fast as ff
    >>> y, flow = torch.rand(2, 1, 28, 28), ff.load_flow("fashion-28")
    >>> found = ff.reconstruct(
    ...     y, ff.operators.Identity(), flow, ff.noise.Gaussian(0.1), objective=ff.MAP(beta=0.5),
    ...     steps=2,
    ... )
    >>> found.x.shape
    torch.Size([2, 1, 28, 28])
    """
    shown = sys.stderr.isatty() if progress is None else progress
    mean = PosteriorMean() if objective == PosteriorMean.name else objective
    if isinstance(mean, PosteriorMean):
        others = {"strategy": strategy, "steps": steps, "lr": lr, "precision": precision}
        for argument, value in {**others, "callback": callback}.items():
            require(value is None, _NAME, argument, "None with PosteriorMean", repr(value))
        require(restarts == 1, _NAME, "restarts", "1 with PosteriorMean", repr(restarts))
        check_seed(_NAME, seed)
        return mean.found(y, operator, prior, noise, start, seed, shown, throw)
    fits = lambda goal: provides(goal, Objective)
    objective = "map-image" if objective is None else objective
    chosen = check.choice(_NAME, "objective", objective, OBJECTIVES, fits)
    problem = Problem.checked(_NAME, y, operator, prior, noise, chosen, start, throw)
    strategy = _default_strategy(problem) if strategy is None else strategy
    plan = _plan(chosen, strategy, steps, lr, restarts, seed, callback)
    check.stages(_NAME, plan.strategy, prior)
    check.precision(_NAME, precision, prior, y)
    if has_free_level(prior):
        problem = at_level(problem, noise_std(_NAME, problem))
    problem = problem.frozen(precision, polish=plan.strategy.polish > 0)
    found = in_parts(problem, plan, shown) if len(y) else empty(problem)
    found = judged(found, problem, plan.restarts)
    failed = [i for i, status in enumerate(found.status) if status is Status.FAILED]
    if failed and throw:
        raise SolverError(f"{_NAME}: images {failed}: {Status.FAILED.value}")
    return replace(found, config=_config(chosen, problem.start, plan, precision))


@check.entrance
def measure(
    x: Tensor,
    operator: ForwardOperator,
    noise: Sampled | DrawnAt | Any,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Simulate y = f(x) + delta, delta drawn from the noise model, at f(x) where it has ``draw``.

    With ``operators.SignSensing(noise_inside=True)`` the noise goes inside: sign(A x + delta), and
    the signal that it follows is A x.

    Args:
        x: images (B, C, H, W).
        operator: f, as for ``reconstruct``.
        noise: an object with ``sample(shape, generator)`` or ``draw(fx, generator)``, or a
            torch.distributions Distribution.
        generator: fixes the draw; None uses torch's global generator.
    Returns:
        y (B, ...), with the dtype and device of f(x).
    Raises:
        ArgumentError: images that are none, noise that cannot be drawn from or draws another
            shape, an operator whose results are no floating-point tensors, modules in training
            mode.

    >>> from flowinv_fast import noise, operators
    >>> measure(torch.zeros(2, 1, 4, 4), operators.Identity(), noise.Gaussian(0.1)).shape
    torch.Size([2, 1, 4, 4])
    """
    name = "measure"
    check.images(name, "x", x, finite=False)
    noise = as_noise(noise)
    check.drawable(name, noise)
    f = check.as_operator(name, operator)
    check.modes(name, operator=f, noise=noise)
    before, after = (f.before_noise, f.after_noise) if noisy_inside(f) else (f, lambda u: u)
    with torch.no_grad():
        clean = before(x.clone())
        check_float(name, "operator(x)", clean)
        drawn = drawn_at(noise, clean.clone(), generator)
        good = isinstance(drawn, Tensor) and drawn.shape == clean.shape
        by = "draw(fx, generator)" if provides(noise, DrawnAt) else "sample(shape, generator)"
        wanted = f"a {by} of shape {tuple(clean.shape)}"
        require(good, name, "noise", wanted, getattr(drawn, "shape", type(drawn).__name__))
        return after(clean + drawn.to(clean))


# --- choices --------------------------------------------------------------------------------------


def _default_strategy(problem: Problem) -> str:
    """MAP is tempered where log p_noise is not concave: descent alone would end in a hollow."""
    if not {"noise", "density"} <= set(problem.objective.needs):
        return "adam"
    if isinstance(problem.noise, SignalDependent):  # its hollows are those of the unit law
        problem = replace(problem, noise=problem.noise.law)
    known = getattr(problem.noise, "multimodal", None)
    hollow = _has_hollows(problem) if known is None else known
    return "tempered" if hollow else "adam"


def _has_hollows(problem: Problem) -> bool:
    """Whether log p_noise has hollows; where memory runs out half of the images are asked first.

    A law that cannot be scored here says so when it is looked at before the first step.
    """
    count = len(problem.y)
    try:
        return _sags(problem.y, problem.noise)
    except Exception as error:
        if count < 2 or not memory.exhausted(error):
            return False
    halves = slice(0, count // 2), slice(count // 2, count)
    return any(_has_hollows(problem.select(half)) for half in halves)


@torch.no_grad()
def _sags(y: Tensor, noise: Any) -> bool:
    """Whether log p_noise sags below a chord between no noise and noise of some size.

    The sizes are fixed, so that images do not decide for one another.
    """
    order = torch.arange(math.prod(y.shape[1:]), device=y.device)
    signs = (1 - 2 * (order % 2)).to(y).view(y.shape[1:])
    at = lambda size: log_noise_of(noise, y, y - size * signs)
    peak = at(0.0)
    for size in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0):
        tail, half = at(size), at(size / 2)
        sag = (peak + tail) / 2 - half
        if bool((sag > 1e-3 * (peak.abs() + tail.abs())).any()):  # never of NaN
            return True
    return False


def _plan(
    objective: Objective,
    strategy: str | Strategy,
    steps: int | None,
    lr: float | None,
    restarts: int,
    seed: int,
    callback: Callback | None,
) -> Plan:
    """The numbers of a solve, checked, with defaults for those that are not given."""
    fits = lambda plan: isinstance(plan, Strategy)
    chosen = check.choice(_NAME, "strategy", strategy, STRATEGIES, fits)
    steps = objective.steps if steps is None else steps
    require(is_whole(steps, 1), _NAME, "steps", "an integer of at least 1", steps)
    lr = objective.lr * chosen.stages[0].rate if lr is None else lr
    require(is_real(lr) and lr > 0, _NAME, "lr", "a positive number", lr)
    require(is_whole(restarts, 1), _NAME, "restarts", "an integer of at least 1", restarts)
    check_seed(_NAME, seed)
    good = callback is None or callable(callback)
    require(good, _NAME, "callback", "a callable", type(callback).__name__)
    return Plan(chosen, int(steps), float(lr), int(restarts), int(seed), callback)


def _config(
    objective: Objective, start: str | Tensor, plan: Plan, precision: str | None
) -> dict[str, Any]:
    """What was done, as JSON has it."""
    given = f"a tensor {tuple(start.shape)}" if isinstance(start, Tensor) else start
    own = plain(objective)
    return {
        "version": VERSION,
        "objective": {"name": objective.name, **(own if isinstance(own, dict) else {})},
        "strategy": plain(plan.strategy),
        "steps": plan.steps,
        "lr": plan.lr,
        "start": given,
        "restarts": plan.restarts,
        "precision": precision or "fp32",
        "seed": plan.seed,
    }
