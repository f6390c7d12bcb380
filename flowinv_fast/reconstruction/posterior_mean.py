"""``objective=PosteriorMean()``: the image of least expected squared error."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .._base.errors import ResultWarning, is_real, is_whole, require
from .._base.tensors import per_image
from .._base.version import VERSION
from . import checks as check
from .diagnosis import caller_level, cautions, measured
from .objectives import MAP
from .posterior import Walk, drawn, unmixed
from .problem import Problem
from .result import Reconstruction, plain
from .solvers import Status

_NAME = "reconstruct"


@dataclass(frozen=True)
class PosteriorMean:
    """E[x | y], the image of least expected squared error, instead of the most probable one.

    Where little is measured many images are likely, and the most probable one is duller than all
    of them; their mean has the higher PSNR. It is ``estimate`` of ``sample_posterior``, over
    images, at some 15 times the cost of MAP. In the result ``std`` is the deviation of each pixel,
    and ``status`` tells whether the chains agreed; ``history`` is empty.

    Args:
        samples, chains, warm_up, tempering: as for ``sample_posterior``.
    Raises:
        ArgumentError: a value out of its range.

    >>> PosteriorMean(chains=8).samples
    40
    """

    samples: int = 40
    chains: int = 4
    warm_up: int = 80
    tempering: float = 0.07
    name = "posterior-mean"

    def __post_init__(self) -> None:
        for name, least in (("samples", 4), ("chains", 2), ("warm_up", 1)):
            value, wanted = getattr(self, name), f"an integer of at least {least}"
            require(is_whole(value, least), "PosteriorMean", name, wanted, repr(value))
        good = is_real(self.tempering) and 0 < self.tempering <= 1
        require(good, "PosteriorMean", "tempering", "a number in (0, 1]", repr(self.tempering))

    def found(
        self,
        y: Tensor,
        operator: Any,
        prior: Any,
        noise: Any,
        start: str | Tensor | None,
        seed: int,
        shown: bool,
        throw: bool,
    ) -> Reconstruction:
        """What ``reconstruct`` returns, of its arguments."""
        check.density(_NAME, prior)
        wanted = "None, or where the chains begin, with PosteriorMean"
        require(not isinstance(start, str), _NAME, "start", wanted, repr(start))
        problem = Problem.checked(_NAME, y, operator, prior, noise, MAP(), start, throw)
        samples, chains, warm_up = map(int, (self.samples, self.chains, self.warm_up))
        walk = Walk(samples, chains, warm_up, 1, float(self.tempering), int(seed))
        problem, draws = drawn(_NAME, problem, walk, isinstance(start, Tensor), shown)
        lost = per_image(~problem.readable, draws.estimate)
        clear = lambda t: torch.where(lost, torch.zeros_like(t), t)
        x, std = clear(draws.estimate), clear(draws.std)
        with torch.no_grad():
            terms = MAP().evaluate(problem.y, problem.operator, problem.prior, problem.noise, x)
            noise_estimate = problem.y - problem.operator(x.clone())
        ends = [Status.MIXED if good else Status.UNMIXED for good in draws.mixed.tolist()]
        readable = problem.readable.tolist()
        found = Reconstruction(
            x=x,
            z=None,
            noise=noise_estimate,
            **terms._asdict(),
            history=terms.loss.new_zeros(0, len(x)),
            status=[s if ok else Status.BAD_MEASUREMENT for s, ok in zip(ends, readable)],
            steps=torch.full((len(x),), walk.gradients, device=x.device),
            std=std,
        )
        found = measured(found, problem, walk.seed) if len(x) else found
        said = list(cautions(found, problem, 1))
        said += [] if bool(draws.mixed.all()) else [unmixed(draws)]
        for message in said:
            warnings.warn(f"{_NAME}: {message}", ResultWarning, stacklevel=caller_level())
        given = f"a tensor {tuple(start.shape)}" if isinstance(start, Tensor) else start
        facts = {"objective": {"name": self.name, **plain(self)}, "start": given, "seed": walk.seed}
        return replace(found, config={"version": VERSION, **facts})
