"""Draws from the posterior: how sure a reconstruction is, pixel by pixel."""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._base.errors import ResultWarning, SolverError, is_real, is_whole, require
from .._base.tensors import check_seed
from ..protocols import (
    Density,
    ForwardOperator,
    Generator,
    NoiseModel,
    OnePass,
    provides,
)
from . import checks as check
from . import memory
from .chains import LEAPS, Chains, LogDensity, split_r_hat, variance
from .diagnosis import caller_level, named
from .gaussian import gaussian_starts
from .level import at_level, levels_of, noise_std, smoothing_of
from .objectives import MAP, MLE, generate, has_latents, latent_size, log_noise_of
from .problem import Problem, draw, freeze

_NAME = "sample_posterior"
MIXED = 1.05  # split R-hat of the median pixel up to which chains agree
_APART = 0.3  # highest level of noise, where chains begin
_EDGE = 1e-2  # chains over logits begin no closer to 0 and 1
_EASING, _STAIRS = 0.8, 12  # share of the warm-up that leads to the density, in so many stairs
_DRAWS, _STEPS = 512, 100  # of the prior, and evaluations, for the image where chains begin
_AT_ONCE = 2**17  # numbers of all chains that are walked at once, where memory is not known
_START_STREAM = (1 << 32) + (1 << 30)


@dataclass(frozen=True)
class PosteriorSamples:
    """Draws from p(x | y), and whether they deserve the name.

    Attributes:
        x: (S, B, C, H, W), S = chains times draws of each, chain after chain.
        mean, std: per pixel over the draws, (B, C, H, W).
        estimate: posterior mean without the smoothing of the flow, (B, C, H, W): the image of least
            expected squared error, see ``sample_posterior``. ``mean`` for a prior without it.
        r_hat: split R-hat of each pixel (B, C, H, W): how much wider the draws of all chains are
            than those of one. 1 where they agree; above 1.05 they do not tell one law.
        effective: how many independent draws these are worth at the median pixel, (B,).
        acceptance: share of accepted paths after the warm-up, (B,); 0.8 is aimed at.
        chains: how many there were of each image.

    >>> import flowinv_fast as ff
    >>> y, flow = torch.rand(1, 1, 28, 28), ff.load_flow("fashion-28")
    >>> same, noise = ff.operators.Identity(), ff.noise.Gaussian(0.1)
    >>> some = {"chains": 3, "warm_up": 1, "start": y}
    >>> draws = ff.sample_posterior(y, same, flow, noise, 4, **some)
    >>> len(draws.x), draws.r_hat.shape
    (12, torch.Size([1, 1, 28, 28]))
    """

    x: Tensor
    mean: Tensor
    std: Tensor
    estimate: Tensor
    r_hat: Tensor
    effective: Tensor
    acceptance: Tensor
    chains: int

    @property
    def median_r_hat(self) -> Tensor:
        """Split R-hat of the median pixel, (B,)."""
        return self.r_hat.flatten(1).median(1).values

    @property
    def mixed(self) -> Tensor:
        """Whether that is at most 1.05, (B,)."""
        return self.median_r_hat <= MIXED

    def __repr__(self) -> str:
        told = [f"x {tuple(self.x.shape)}", f"{self.chains} chains"]
        if len(self.mean):
            worst = self.median_r_hat.max()
            told.append(f"R-hat of the median pixel up to {worst:.3f}")
            told.append(f"worth {self.effective.min():.0f} independent draws or more")
            told.append(f"{int(self.mixed.sum())} of {len(self.mean)} images mixed")
        return f"PosteriorSamples({', '.join(told)})"


@check.entrance
def sample_posterior(
    y: Tensor,
    operator: ForwardOperator,
    prior: Density | Generator,
    noise: NoiseModel | OnePass | Any,
    samples: int = 40,
    *,
    chains: int = 4,
    space: str | None = None,
    start: Tensor | None = None,
    warm_up: int = 80,
    thin: int = 1,
    tempering: float = 0.07,
    seed: int = 0,
    progress: bool | None = None,
) -> PosteriorSamples:
    """Draws of p(x | y) by several Hamiltonian Monte Carlo chains for every image.

    Over images the density that is walked is p_noise(y - f(x)) p_G(x); over latents, for generators
    without a density, p_noise(y - f(G(z))) N(z; 0, I), whose draws G turns into images. The path's
    gradient may be anything (a straight-through one, say): what is accepted is decided by the
    density itself.

    Chains begin apart: over latents at draws of N(0, I); over images where they would if the prior
    were Gaussian with the moments of its own draws (``gaussian.gaussian_starts``), with noise of
    the flow's smoothing on it; of a flow of levels (``Flow.at``) at the most probable image of that
    kind, with noise of std 0.3. Of a flow of levels, and over latents, four fifths of the warm-up
    lead from there to the density in stairs: the likelihood's weight rises from ``tempering`` to 1
    and the level of noise falls to its own, as in annealed Langevin dynamics (Song and Ermon,
    2019). Then step sizes and masses settle, and stay.

    A flow at smoothing s is the density of x + s e; by Tweedie's formula E[x | x + s e = u] is
    u + s^2 grad log p(u). ``estimate`` is the mean of u + a s^2 grad log p(u) over the draws,
    a = min(1, t^2 / s^2), t the std of the noise in units of the image: noise that is finer than
    the smoothing tells part of e already. A flow of levels whose level is not fixed by ``at`` is
    taken at t, if that is one of its levels and below its smoothing.

    Args:
        y, operator, prior, noise: as for ``reconstruct``.
        samples: draws kept of each chain, at least 4.
        chains: of each image, at least 2.
        space: "image" or "latent"; None: over images where the prior has a density.
        start: images (B, C, H, W) or latents (B, N) where the chains begin, for example
            ``Reconstruction.x``; all but the first with noise of std 0.1 on it, and no stairs.
        warm_up, thin: paths before the first draw, and from draw to draw. A path is 8 gradients.
        tempering: first weight of the likelihood, in (0, 1].
        seed: of every draw, in 0 .. 2^63 - 1.
        progress: show a progress bar; None: only on a terminal.
    Returns:
        PosteriorSamples; a ``ResultWarning`` names the images whose chains disagree.
    Raises:
        ArgumentError: an argument that cannot be used.
        SolverError: a density that is not finite where a chain begins.

    >>> import flowinv_fast as ff
    >>> y, flow = torch.rand(2, 1, 28, 28), ff.load_flow("fashion-28")
    >>> same, noise = ff.operators.Identity(), ff.noise.Gaussian(0.1)
    >>> some = {"chains": 2, "warm_up": 1, "start": y}
    >>> samples = sample_posterior(y, same, flow, noise, 4, **some)
    >>> samples.x.shape
    torch.Size([8, 2, 1, 28, 28])
    """
    numbers = (("samples", samples, 4), ("chains", chains, 2))
    for argument, value, least in (*numbers, ("warm_up", warm_up, 1), ("thin", thin, 1)):
        require(is_whole(value, least), _NAME, argument, f"an integer of at least {least}", value)
    good = is_real(tempering) and 0 < tempering <= 1
    require(good, _NAME, "tempering", "a number in (0, 1]", tempering)
    check_seed(_NAME, seed)
    known = space in (None, "image", "latent")
    require(known, _NAME, "space", "None, 'image' or 'latent'", repr(space))
    image = provides(prior, Density) if space is None else space == "image"
    objective: Any = MAP() if image else MLE()
    problem = Problem.checked(_NAME, y, operator, prior, noise, objective, start)
    if isinstance(start, Tensor):
        finite = bool(start.isfinite().all())
        require(finite, _NAME, "start", "finite numbers", "NaN or infinity in them")
    walk = Walk(int(samples), int(chains), int(warm_up), int(thin), float(tempering), int(seed))
    shown = sys.stderr.isatty() if progress is None else progress
    _, found = drawn(_NAME, problem, walk, isinstance(start, Tensor), shown)
    if not bool(found.mixed.all()):
        warnings.warn(f"{_NAME}: {unmixed(found)}", ResultWarning, stacklevel=caller_level())
    return found


def unmixed(found: PosteriorSamples) -> str:
    """What to say of images whose chains disagree."""
    worst = found.median_r_hat.max()
    return (
        f"{named(~found.mixed)}: the chains disagree, R-hat of the median pixel is up to "
        f"{worst:.2f}; their mean may serve, but the deviations are not to be trusted: raise "
        "warm_up or samples"
    )


@dataclass(frozen=True)
class Walk:
    """How long chains are, and how they begin; see ``sample_posterior``."""

    samples: int
    chains: int
    warm_up: int
    thin: int
    tempering: float
    seed: int

    @property
    def paths(self) -> int:
        """Of each chain."""
        return self.warm_up + self.samples * self.thin

    @property
    def gradients(self) -> int:
        """Of each chain, about."""
        return LEAPS * self.paths


def drawn(
    function: str, problem: Problem, walk: Walk, given: bool, shown: bool
) -> tuple[Problem, PosteriorSamples]:
    """Draws of the posterior, in parts where memory wants it, and the problem that they are of.

    Args:
        function: the public function, for errors.
        problem: not frozen.
        walk: how long chains are.
        given: whether the start is the user's.
        shown: whether to show a progress bar.
    """
    std = noise_std(function, problem)
    problem = at_level(problem, std)
    stairs = _Stairs.of(problem, walk, given)
    problem = replace(
        problem, prior=stairs.priors[-1], noise=freeze(problem.noise, "fp32", problem.y)
    )
    parts = _parts(problem, walk.chains)
    total = walk.paths * len(parts)
    with tqdm(total=total, desc=_NAME, disable=not shown, unit="path") as bar:
        found = [_part(problem.select(part), stairs, walk, given, std, bar) for part in parts]
    names = ("mean", "std", "estimate", "r_hat", "effective", "acceptance")
    join = lambda name: torch.cat([getattr(part, name) for part in found], int(name == "x"))
    whole = {name: join(name) for name in ("x", *names)}
    return problem, PosteriorSamples(**whole, chains=walk.chains)


def _parts(problem: Problem, chains: int) -> list[slice]:
    """The images of a batch, so many at a time as fit with all their chains."""
    y, prior = problem.y, problem.prior
    count, each = len(y), memory.planned(prior, problem.noise, y)
    size = memory.images_at_once(each, max(1, count * chains), y.device) // chains
    if not each:  # nothing is known
        numbers = max(math.prod(getattr(prior, "shape", ())), math.prod(y.shape[1:]))
        size = _AT_ONCE // (chains * max(1, numbers))
    size = max(1, size)
    return [slice(i, min(i + size, count)) for i in range(0, max(1, count), size)]


@dataclass(frozen=True)
class _Stairs:
    """What leads to the density: frozen priors, levels of their noise and weights of the
    likelihood, the last ones those of the density itself."""

    priors: list[Any]
    levels: list[float]
    weights: list[float]

    @classmethod
    def of(cls, problem: Problem, walk: Walk, given: bool) -> _Stairs:
        """Of a problem that is not frozen; one stair only where its start is the user's."""
        prior, image = problem.prior, problem.objective.space == "image"
        levels = levels_of(prior) if image else None
        last = smoothing_of(prior)
        direct = given or (image and levels is None)
        count = 1 if direct else min(_STAIRS, max(1, int(_EASING * walk.warm_up)))
        times = [1.0 if count == 1 else i / (count - 1) for i in range(count)]
        weights = [walk.tempering ** (1 - t) for t in times]
        if levels is None:
            return cls([freeze(prior, "fp32", problem.y)] * count, [last] * count, weights)
        high = max(last, min(_APART, levels[1]))
        stds = [last * (high / last) ** (1 - t) for t in times[:-1]] + [last]
        priors = [freeze(prior.at(std), "fp32", problem.y) for std in stds]
        return cls(priors, stds, weights)


def _part(
    problem: Problem, stairs: _Stairs, walk: Walk, given: bool, std: float, bar: tqdm
) -> PosteriorSamples:
    """The draws of some of the images."""
    chains = Chains(_begin(problem, stairs, walk, given), walk.chains, walk.seed, problem.first)
    easing = int(_EASING * walk.warm_up) if len(stairs.levels) > 1 else 0
    stair, before = -1, stairs.levels[0]
    for path in range(walk.warm_up):
        wanted = len(stairs.levels) - 1
        wanted = min(wanted, path * len(stairs.levels) // easing) if path < easing else wanted
        if wanted != stair:
            stair, level = wanted, stairs.levels[wanted]
            chains.face(
                _target(problem, walk.chains, stairs.priors[stair], stairs.weights[stair]),
                before / level if level > 0 else 1.0,
            )
            before = level
            _check(chains)
        settled = path - easing
        rate = 0.5 if settled < 0 else (1 + settled) ** -0.5
        chains.tune(chains.move(), rate, easing=settled < 0)
        bar.update()
    return _kept(problem, chains, walk, std, bar)


def _kept(problem: Problem, chains: Chains, walk: Walk, std: float, bar: tqdm) -> PosteriorSamples:
    """The draws after the warm-up."""
    smoothing, image = smoothing_of(problem.prior), problem.objective.space == "image"
    share = min(smoothing, std) ** 2 if image else 0.0
    kept, denoised = list[Tensor](), list[Tensor]()
    chance = torch.zeros_like(chains.value)
    for path in range(walk.samples * walk.thin):
        chance += chains.move()
        bar.update()
        if (path + 1) % walk.thin == 0:
            with torch.no_grad():
                x = problem.images(chains.variable)
            kept.append(x)
            if share > 0:
                denoised.append(x + share * _slope(problem.prior, x))
    own = lambda draws: (
        torch.stack(draws, 1).unflatten(0, (walk.chains, len(problem.y))).transpose(1, 2)
    )
    x = own(kept)  # (K, n, B, C, H, W)
    r_hat, effective = split_r_hat(x)
    flat = x.flatten(0, 1)
    mean = flat.mean(0)
    return PosteriorSamples(
        flat,
        mean,
        variance(flat, 0).sqrt(),
        own(denoised).flatten(0, 1).mean(0) if denoised else mean,
        r_hat,
        effective.flatten(1).median(1).values if len(mean) else mean.new_zeros(0),
        (chance / (walk.samples * walk.thin)).view(walk.chains, -1).mean(0),
        walk.chains,
    )


def _slope(prior: Density, x: Tensor) -> Tensor:
    """grad log p at x (K B, C, H, W)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(prior.log_prob(x).sum(), x)
    return gradient


def _begin(problem: Problem, stairs: _Stairs, walk: Walk, given: bool) -> Tensor:
    """Where the chains begin, (K B, ...)."""
    y, image, seed = problem.y, problem.objective.space == "image", walk.seed
    if given or (image and not has_latents(problem.prior)):
        chains = range(walk.chains)
        return torch.cat([problem.first_variable(k, walk.chains, seed) for k in chains])
    if not image:
        z = y.new_zeros(len(y), latent_size(problem.prior))
        return torch.cat([_noise(z, k, 1.0, walk, problem) for k in range(walk.chains)])
    apart = 0.0 if len(stairs.levels) > 1 else 1.0  # coarse levels part the chains by themselves
    x = gaussian_starts(problem, walk.chains, apart, _DRAWS, _STEPS, seed)
    std = stairs.levels[0]
    noisy = (
        part + _noise(part, k, std, walk, problem)
        for k, part in enumerate(x.tensor_split(walk.chains))
    )
    return torch.cat([problem.of_images(part, _EDGE) for part in noisy])


def _noise(like: Tensor, chain: int, std: float, walk: Walk, problem: Problem) -> Tensor:
    """White noise on the starts of a chain."""
    return draw(like, _START_STREAM + chain, walk.seed, std, problem.first)


def _target(problem: Problem, count: int, prior: Any, weight: float) -> LogDensity:
    """log of the density that is walked, of variables (K B, ...), up to a constant."""
    y, noise, f = problem.y, problem.noise, problem.operator
    image = problem.objective.space == "image"

    def log_density(variable: Tensor) -> Tensor:
        if not image:
            x, value = generate(prior, variable), -variable.square().flatten(1).sum(1) / 2
        else:
            x = problem.taken(variable)
            value = prior.log_prob(x)
            if problem.over_logits:  # dx of x = sigmoid(v)
                bend = torch.nn.functional.logsigmoid(variable)
                value = value + (2 * bend - variable).flatten(1).sum(1)
        # One chain after the other: operator and law may have parameters of each image.
        parts = x.tensor_split(count)
        return value + weight * torch.cat([log_noise_of(noise, y, f(part)) for part in parts])

    return log_density


def _check(chains: Chains) -> None:
    bad = ~chains.value.isfinite().view(chains.count, -1).all(0)
    if bool(bad.any()):
        raise SolverError(
            f"{_NAME}: {named(bad)}: the density is not finite where a chain is; try another start"
        )
