"""Draws from the posterior: how sure a reconstruction is, pixel by pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .._base.errors import is_real, is_whole, require
from .._base.tensors import check_seed
from ..protocols import Flow, ForwardOperator, Generator, NoiseModel, OnePass
from . import checks as check
from .objectives import MLE, generate, latent_size, log_noise_of
from .problem import Problem
from .trial import examine

_NAME = "sample_posterior"
_WANTED = 0.57  # share of accepted proposals at which Langevin steps walk furthest


@dataclass(frozen=True)
class PosteriorSamples:
    """Draws from p(x | y).

    Attributes:
        x: (S, B, C, H, W). mean, std: per pixel over the draws, (B, C, H, W).
        acceptance: share of accepted proposals after warm-up, (B,); near 0.57 when well tuned.
    """

    x: Tensor
    mean: Tensor
    std: Tensor
    acceptance: Tensor


@check.entrance
def sample_posterior(
    y: Tensor,
    operator: ForwardOperator,
    prior: Flow | Generator,
    noise: NoiseModel | OnePass,
    samples: int = 32,
    *,
    start: Tensor | None = None,
    warm_up: int = 400,
    thin: int = 10,
    tempering: float = 0.01,
    seed: int = 0,
    progress: bool = False,
) -> PosteriorSamples:
    """Metropolis-adjusted Langevin sampling of the posterior in latent space.

    p(z | y) is proportional to p_noise(y - f(G(z))) N(z; 0, I), whose draws G turns into draws of
    p(x | y): no log-determinant is needed. During warm-up the likelihood's weight rises from
    ``tempering`` to 1 over the first half; in the second the latents' steps take the proportions of
    1 / (1 + mean squared gradient), an estimate of their posterior variances; each image's step
    size settles at an acceptance of 0.57 (Roberts and Rosenthal, 1998). Then both stay. One chain
    an image: it may stay in one mode of several, and a short one understates the deviations.

    Args:
        y, operator, prior, noise: as for ``reconstruct``; the prior decodes latents.
        samples: draws kept, at least 2.
        start: latents (B, N) to start from, for example ``Reconstruction.z``; None starts at zero.
        warm_up, thin: steps before the first draw, and between draws.
        tempering: first weight of the likelihood, in (0, 1].
        seed: of every draw, in 0 .. 2^63 - 1.
        progress: show a progress bar.
    Raises:
        ArgumentError: an argument that cannot be used.

    >>> import flowinv_fast as ff
    >>> y, flow = torch.rand(2, 1, 28, 28), ff.load_flow("fashion-28")
    >>> same, noise = ff.operators.Identity(), ff.noise.Gaussian(0.1)
    >>> samples = sample_posterior(y, same, flow, noise, 2, warm_up=1, thin=1)
    >>> samples.x.shape
    torch.Size([2, 2, 1, 28, 28])
    """
    for argument, value, least in (
        ("samples", samples, 2),
        ("warm_up", warm_up, 1),
        ("thin", thin, 1),
    ):
        require(is_whole(value, least), _NAME, argument, f"an integer of at least {least}", value)
    good = is_real(tempering) and 0 < tempering <= 1
    require(good, _NAME, "tempering", "a number in (0, 1]", tempering)
    check_seed(_NAME, seed)
    samples, warm_up, thin, seed = (int(n) for n in (samples, warm_up, thin, seed))
    problem = Problem.checked(_NAME, y, operator, prior, noise, MLE()).frozen()
    z = _first(problem, start)
    examine(_NAME, problem)
    chain = _Chain(problem, z, seed)
    accepted = torch.zeros(len(y), device=y.device)
    kept: list[Tensor] = []
    steps = warm_up + samples * thin
    for step in tqdm(range(steps), _NAME, disable=not progress, unit="step"):
        chain.weigh(min(1.0, tempering ** (1 - 2 * step / warm_up)))
        if warm_up // 2 < step < warm_up:
            chain.measure_slopes(step - warm_up // 2)
        take, log_ratio = chain.walk()
        if step < warm_up:
            chain.tune(log_ratio, step)
        else:
            accepted += take
            if (step - warm_up + 1) % thin == 0:
                kept.append(chain.state[2])
    x = torch.stack(kept)
    return PosteriorSamples(x, x.mean(0), x.std(0), accepted / (steps - warm_up))


def _first(problem: Problem, start: Tensor | None) -> Tensor:
    """The latents (B, N) where the chains begin."""
    y, size = problem.y, latent_size(problem.prior)
    if start is None:
        return y.new_zeros(len(y), size)
    check.latents(_NAME, start, y, problem.prior)
    return start.detach().clone()


class _Chain:
    """One Langevin chain an image: its latents, step sizes, and (log target, gradient, image)."""

    def __init__(self, problem: Problem, z: Tensor, seed: int):
        self.problem, self.z, self.weight = problem, z, -1.0
        self.random = torch.Generator(z.device).manual_seed(seed)
        self.log_step = z.new_full((len(z), 1), math.log(0.01))
        self.squares, self.scale = torch.zeros_like(z), torch.ones_like(z)
        self.state: tuple[Tensor, Tensor, Tensor]

    def weigh(self, weight: float) -> None:
        """Give the likelihood this weight."""
        if weight != self.weight:
            self.weight, self.state = weight, self._terms(self.z, weight)

    def _terms(self, z: Tensor, weight: float) -> tuple[Tensor, Tensor, Tensor]:
        """log of the target (B,), its gradient, and the images."""
        problem = self.problem
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            x = generate(problem.prior, z)
            log_noise = log_noise_of(problem.noise, problem.y, problem.operator(x))
            value = weight * log_noise - 0.5 * z.square().sum(1)
            (grad,) = torch.autograd.grad(value.sum(), z)
        return value.detach(), grad, x.detach()

    def measure_slopes(self, seen: int) -> None:
        """Proportions of the steps, from the mean squared gradient over ``seen`` steps so far."""
        decay = min(0.99, 1 - 1 / seen)
        self.squares = decay * self.squares + (1 - decay) * self.state[1].square()
        scale = 1 / (1 + self.squares)
        self.scale = scale / scale.mean(1, keepdim=True)

    def walk(self) -> tuple[Tensor, Tensor]:
        """One proposal an image; whether it was taken (B,), and the log of its ratio (B,)."""
        z, (value, grad, _) = self.z, self.state
        size2 = self.scale * (2 * self.log_step).exp()
        noise = torch.randn(z.shape, generator=self.random, dtype=z.dtype, device=z.device)
        proposal = z + 0.5 * size2 * grad + size2.sqrt() * noise
        new = self._terms(proposal, self.weight)
        backward = z - proposal - 0.5 * size2 * new[1]
        log_ratio = new[0] - value - (0.5 * backward.square() / size2).sum(1)
        log_ratio = (log_ratio + 0.5 * noise.square().sum(1)).nan_to_num(-math.inf)
        uniform = torch.rand(len(z), generator=self.random, dtype=z.dtype, device=z.device)
        take = uniform.log() < log_ratio
        pick = lambda a, b: torch.where(take.view(-1, *[1] * (a.dim() - 1)), a, b)
        self.z = pick(proposal, z)
        old = self.state
        self.state = pick(new[0], old[0]), pick(new[1], old[1]), pick(new[2], old[2])
        return take, log_ratio

    def tune(self, log_ratio: Tensor, step: int) -> None:
        """Step sizes towards the wanted share of accepted proposals."""
        chance = log_ratio.clamp_max(0).exp()[:, None]
        self.log_step = self.log_step + (chance - _WANTED) / (1 + step) ** 0.6
