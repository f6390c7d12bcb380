"""Ways to spend the steps of a solve, as lists of stages; docs/optimisation.md compares them.

``STRATEGIES`` are the names that ``reconstruct`` knows. The functions make varied ones, as
``annealed(smoothing=0.2)``; ``dataclasses.replace`` varies any. What a stage means is in ``solve``.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._base.errors import is_real, is_whole, require
from .solvers import SOLVERS


@dataclass(frozen=True)
class Stage:
    """Some of the steps, taken in one way from where the stage before ended.

    Where the variable is disturbed, the likelihood tempered or the operator has easier forms
    (``protocols.Continuation``), the stage follows a time t from 0 to 1, at which the problem is
    the exact one, and takes its last steps there.

    Args:
        solver: "adam" or "lbfgs".
        share: of the steps, rounded down. None: what the others leave; without such a stage the
            last one takes the rest.
        space: "latent" or "image", None: the objective's own. An objective over images begins over
            latents if it has such a form (``MAP``); a stage in a space that the objective has no
            form for is left out.
        smoothing: standard deviation of the Gaussian noise on the variable at t = 0, on its way
            to zero.
        tempering: weight of log p_noise at t = 0, in (0, 1], rising geometrically to 1: the prior
            decides first, the measurement sharpens later.
        rate: factor on the objective's default step size. Where ``lr`` is given it is the step
            size of the first stage, and the others keep their ratio to it.
        schedule: of the step size: "cosine" or "constant".
        tol, patience: an image stops when its best loss gains no more than tol (1 + |best|) in
            ``patience`` steps; tol 0 takes all steps.
        exact: share of the stage's steps at t = 1, where it has a time.
    Raises:
        ArgumentError: a value out of its range.

    >>> Stage(smoothing=0.1).solver
    'adam'
    """

    solver: str = "adam"
    share: float | None = None
    space: str | None = None
    smoothing: float = 0.0
    tempering: float = 1.0
    rate: float = 1.0
    schedule: str = "cosine"
    tol: float = 0.0
    patience: int = 50
    exact: float = 0.2

    def __post_init__(self) -> None:
        def check(name: str, good: bool, wanted: str) -> None:
            require(good, "Stage", name, wanted, repr(getattr(self, name)))

        check("solver", self.solver in SOLVERS, f"one of {list(SOLVERS)}")
        fraction = self.share is None or is_real(self.share) and 0 < self.share <= 1
        check("share", fraction, "None or a number in (0, 1]")
        check("space", self.space in (None, "latent", "image"), "None, 'latent' or 'image'")
        check(
            "smoothing", is_real(self.smoothing) and self.smoothing >= 0, "a number of at least 0"
        )
        good = is_real(self.tempering) and 0 < self.tempering <= 1
        check("tempering", good, "a number in (0, 1]")
        check("rate", is_real(self.rate) and self.rate > 0, "a positive number")
        good = self.schedule in ("cosine", "constant")
        check("schedule", good, "'cosine' or 'constant'")
        check("tol", is_real(self.tol) and self.tol >= 0, "a number of at least 0")
        check("patience", is_whole(self.patience, 1), "an integer of at least 1")
        check("exact", is_real(self.exact) and 0 <= self.exact <= 1, "a number in [0, 1]")


@dataclass(frozen=True)
class Strategy:
    """How the steps of one start are spent.

    Args:
        stages: in their order, at least one, at most one of them without a share.
        polish: share of its steps that every Adam stage of a solve in a fast precision takes in
            fp32, at its end; its result is the best of them. L-BFGS is always fp32. 0: none.
    Raises:
        ArgumentError: stages that do not fit together, or polish outside [0, 1].

    >>> Strategy((Stage(share=0.5), Stage("lbfgs"))).polish
    0.1
    """

    stages: tuple[Stage, ...] = (Stage(),)
    polish: float = 0.1

    def __post_init__(self) -> None:
        good = isinstance(self.stages, (tuple, list)) and len(self.stages) >= 1
        good = good and all(isinstance(stage, Stage) for stage in self.stages)
        require(good, "Strategy", "stages", "one Stage or more", self.stages)
        object.__setattr__(self, "stages", tuple(self.stages))
        shares = [stage.share for stage in self.stages if stage.share is not None]
        wanted = "shares of at most 1 in all, at most one stage without a share"
        good = len(shares) >= len(self.stages) - 1 and sum(shares) <= 1 + 1e-9
        require(good, "Strategy", "stages", wanted, [stage.share for stage in self.stages])
        good = is_real(self.polish) and 0 <= self.polish <= 1
        require(good, "Strategy", "polish", "a number in [0, 1]", self.polish)


def adam(
    schedule: str = "cosine", tol: float = 0.0, patience: int = 50, polish: float = 0.1
) -> Strategy:
    """Adam for all steps.

    >>> adam(tol=1e-4).stages[0].patience
    50
    """
    return Strategy((Stage(schedule=schedule, tol=tol, patience=patience),), polish)


def lbfgs(share: float = 0.25) -> Strategy:
    """Adam, and L-BFGS for a share of the steps at the end.

    >>> [stage.solver for stage in lbfgs().stages]
    ['adam', 'lbfgs']
    """
    return Strategy((Stage(), Stage("lbfgs", share)))


def latent_first(share: float = 0.5) -> Strategy:
    """A share of the steps over latents, then over images with a fifth of the step size.

    An objective over latents takes all its steps there.

    >>> [stage.space for stage in latent_first().stages]
    ['latent', 'image']
    """
    return Strategy((Stage(share=share, space="latent"), Stage(space="image", rate=0.2)))


def smoothed(smoothing: float = 0.1) -> Strategy:
    """Adam with falling noise on the variable.

    >>> smoothed().stages[0].smoothing
    0.1
    """
    return Strategy((Stage(smoothing=smoothing),))


def tempered(tempering: float = 0.3, exact: float = 0.5) -> Strategy:
    """Adam with a rising weight of log p_noise, which is one for a share ``exact`` of the steps.

    >>> tempered(0.1).stages[0].tempering
    0.1
    """
    return Strategy((Stage(tempering=tempering, exact=exact),))


def annealed(smoothing: float = 0.1, tempering: float = 0.3) -> Strategy:
    """Adam with both, from twice the step size.

    >>> annealed(tempering=0.1).stages[0].rate
    2.0
    """
    return Strategy((Stage(smoothing=smoothing, tempering=tempering, rate=2.0),))


STRATEGIES = {
    "adam": adam(),
    "lbfgs": lbfgs(),
    "latent-first": latent_first(),
    "smoothed": smoothed(),
    "tempered": tempered(),
    "annealed": annealed(),
}
