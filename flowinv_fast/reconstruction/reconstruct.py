"""``reconstruct``: the most probable image for a measurement."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .._base.errors import SolverError, is_real, is_whole, require
from .._base.tensors import check_seed
from .._base.version import VERSION
from ..protocols import (
    Flow,
    ForwardOperator,
    Generator,
    NoiseInside,
    NoiseModel,
    Sampled,
    missing,
    provides,
)
from . import checks as check
from .objectives import OBJECTIVES, Objective
from .problem import Problem
from .result import Reconstruction, empty, plain
from .solve import Plan, in_parts
from .solvers import Status
from .solvers.common import Callback
from .strategies import STRATEGIES, Strategy

_NAME = "reconstruct"
Choice = TypeVar("Choice")


def reconstruct(
    y: Tensor,
    operator: ForwardOperator,
    prior: Flow | Generator,
    noise: NoiseModel | Any = None,
    *,
    objective: str | Objective = "map",
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

    Args:
        y: measurements (B, ...), float32 or float64, on the prior's device.
        operator: f, any differentiable callable from images (B, C, H, W) to (B, ...); an object
            with ``A`` (a deepinv physics) is used through ``A``.
        prior: a flow (``decode``, ``encode``, ``log_prob``, ``shape``), also frozen; for the
            objectives that need no density also any callable generator z to x with ``latent_dim``.
        noise: density of y - f(x): a ``flowinv_fast.noise`` model, a torch.distributions
            Distribution, anything with ``log_prob``. Unused by CSGM and the Asim objectives.
        objective: what is minimised, by name or as an object: "map" (``MAP()``, eq. 4, 10),
            "map-image" (``MAP(space="image")``, eq. 3, 10), "mle" (``MLE()``, eq. 5), "csgm"
            (``CSGM()``, eq. 6), "asim-likelihood" (``AsimLikelihood()``, eq. 7), "asim-proxy"
            (``AsimProxy()``, eq. 8), or your own (``objectives.Objective``). Its weight is its own.
        strategy: how the steps are spent, by name or as an object: "adam", "lbfgs",
            "latent-first", "smoothed", "tempered", "annealed" (``strategies``). None: "annealed"
            for MAP under a flow as noise model, else "adam".
        start: "measurement" (the latent, or image, of a first guess from y; zeros where the
            operator has no guess), "zeros", "draw" (z from N(0, I)), or a tensor: latents (B, N)
            or images (B, C, H, W). None: the objective's.
        steps: evaluations of the loss for each start. None: the objective's.
        lr: step size of the first stage of the strategy. None: the objective's times the stage's
            ``rate``.
        restarts: solves from several starts; each image keeps the one that the objective ranks
            lowest: by its loss, for CSGM by its measurement error.
        precision: of the flows' networks, "fp32" (default), "tf32" or "bf16", see ``FrozenFlow``;
            for a prior with ``freeze``. The strategy's ``polish`` says how many steps end in fp32.
        seed: of every draw, in 0 .. 2^63 - 1; torch's generators are neither used nor changed.
        callback: called as callback(step, losses (B,), variable) at every step, where a batch is
            solved in parts with the part's images.
        progress: show the planned memory and a progress bar; None: only on a terminal.
        throw: refuse measurements that are not finite and raise where an image finds no finite
            loss; with False such images come back as zeros with a status that says so.
    Returns:
        Reconstruction.
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
    chosen = _named("objective", objective, OBJECTIVES, lambda o: not missing(o, Objective))
    if strategy is None:
        strategy = _default_strategy(chosen, noise)
    plan = _plan(chosen, strategy, steps, lr, restarts, seed, callback)
    problem = Problem.checked(_NAME, y, operator, prior, noise, chosen, start, throw)
    check.precision(_NAME, precision, prior, y)
    with _unchanging(problem.operator, prior, noise):
        problem = problem.frozen(precision, polish=plan.polish > 0)
        shown = sys.stderr.isatty() if progress is None else progress
        found = in_parts(problem, plan, shown) if len(y) else empty(problem)
    failed = [i for i, status in enumerate(found.status) if status is Status.FAILED]
    if failed and throw:
        raise SolverError(f"{_NAME}: images {failed}: {Status.FAILED.value}")
    return replace(found, config=_config(chosen, problem.start, plan, precision))


def measure(
    x: Tensor,
    operator: ForwardOperator,
    noise: Sampled,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Simulate y = f(x) + delta, delta drawn from the noise model.

    With ``operators.SignSensing(noise_inside=True)`` the noise goes inside: sign(A x + delta).

    Args:
        x: images (B, C, H, W).
        operator: f, as for ``reconstruct``.
        noise: an object with ``sample(shape, generator)``.
        generator: fixes the draw; None uses torch's global generator.
    Returns:
        y (B, ...).
    Raises:
        ArgumentError: noise that cannot be drawn from.

    >>> from flowinv_fast import noise, operators
    >>> measure(torch.zeros(2, 1, 4, 4), operators.Identity(), noise.Gaussian(0.1)).shape
    torch.Size([2, 1, 4, 4])
    """
    can_be_drawn = provides(noise, Sampled)
    wanted = "an object with sample(shape, generator)"
    require(can_be_drawn, "measure", "noise", wanted, type(noise).__name__)
    f = check.as_operator("measure", operator)
    inside = provides(f, NoiseInside) and f.noise_inside
    before, after = (f.before_noise, f.after_noise) if inside else (f, lambda u: u)
    with torch.no_grad():
        clean = before(x)
        return after(clean + noise.sample(tuple(clean.shape), generator).to(clean))


# --- choices --------------------------------------------------------------------------------------


def _named(
    argument: str, given: Any, table: dict[str, Choice], fits: Callable[[Any], bool]
) -> Choice:
    """An entry of a table by name, or the user's own object."""
    if isinstance(given, str) and given in table:
        return table[given]
    wanted = f"one of {list(table)}, or an object like them"
    good = not isinstance(given, (str, type)) and fits(given)
    require(good, _NAME, argument, wanted, repr(given))
    return given


def _default_strategy(objective: Objective, noise: Any) -> str:
    """MAP under a density of many peaks is annealed."""
    both = {"noise", "density"} <= set(objective.needs)
    return "annealed" if both and getattr(noise, "multimodal", False) is True else "adam"


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
    chosen = _named("strategy", strategy, STRATEGIES, lambda s: isinstance(s, Strategy))
    steps = objective.steps if steps is None else steps
    require(is_whole(steps, 1), _NAME, "steps", "an integer of at least 1", steps)
    lr = objective.lr * chosen.stages[0].rate if lr is None else lr
    require(is_real(lr) and lr > 0, _NAME, "lr", "a positive number", lr)
    require(is_whole(restarts, 1), _NAME, "restarts", "an integer of at least 1", restarts)
    check_seed(_NAME, seed)
    return Plan(chosen, steps, lr, restarts, seed, callback)


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


@contextlib.contextmanager
def _unchanging(*parts: Any) -> Iterator[None]:
    """Modules in evaluation mode and without weight gradients; as before afterwards."""
    found = [getattr(part, "flow", part) for part in parts]
    modules = [m for m in found if isinstance(m, nn.Module)]
    training = [m for root in modules for m in root.modules() if m.training]
    wanted = [p for m in modules for p in m.parameters() if p.requires_grad]
    try:
        for m in modules:
            m.eval()
        for p in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        for m in training:
            m.training = True
