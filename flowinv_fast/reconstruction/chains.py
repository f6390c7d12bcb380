"""Hamiltonian Monte Carlo: several chains for every image of a batch, walked together."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._base.tensors import per_image
from .problem import draw

LEAPS = 8  # steps of a path, one gradient each
_WANTED = 0.8  # share of accepted paths at which they lead furthest for their cost
_JITTER = 0.2  # share by which step sizes vary, so that no path closes on itself
_FIRST_STEP = 0.3  # of the scale that the gradients suggest
# Weight of the latest squared gradients in their running mean, while easing, else least and most.
_EASING, _LEAST, _MOST = 0.1, 0.05, 0.3
_FLOOR = 1e-3  # of the mean of the squared gradients: no direction counts as freer than that

LogDensity = Callable[[Tensor], Tensor]


class Chains:
    """The chains of a batch, image after image within chain after chain: rows k B + i.

    A path of ``LEAPS`` leapfrog steps is taken or refused as a whole (Neal, 2011), so that the
    density stays what it is, whatever the gradients are. Until ``tune`` is no longer called the
    step size of each chain settles at an acceptance of 0.8 and the masses, those of an image shared
    by its chains, become the running mean of the squared gradients: in the long run the mean
    curvature, as E[g g^T] = -E[H].

    Args:
        variable: where they start, (K B, ...).
        count: K.
        seed: of every draw; those of an image depend on its number alone.
        first: number of the first image.
    """

    def __init__(self, variable: Tensor, count: int, seed: int, first: int):
        self.variable, self.count, self.seed, self.first = variable, count, seed, first
        self.log_step = variable.new_full((len(variable),), math.log(_FIRST_STEP))
        self.squares = variable.new_zeros(0)
        self.paths = 0
        self.log_density: LogDensity
        self.value: Tensor
        self.gradient: Tensor

    def face(self, log_density: LogDensity, narrower: float = 1.0) -> None:
        """Go on under another density, (K B, ...) to (K B,), so many times as narrow."""
        self.log_density = log_density
        self.value, self.gradient = self._slope(self.variable)
        latest = self._of_images(self.gradient.square())
        self.squares = self.squares * narrower**2 if len(self.squares) else latest

    def move(self) -> Tensor:
        """One path a chain; the chance with which each was taken, (K B,)."""
        mass = self._masses()
        mass = mass.repeat(self.count, *[1] * (mass.dim() - 1))
        momentum = self._draws(self.variable, 0) * mass.sqrt()
        two = self._draws(self.variable.new_empty(len(self.variable), 2), 1)
        jitter, luck = torch.special.ndtr(two).unbind(1)
        step = per_image(self.log_step.exp() * (1 + _JITTER * (2 * jitter - 1)), momentum)
        energy = lambda value, p: value - (p.square() / mass).flatten(1).sum(1) / 2
        before = energy(self.value, momentum)
        at, value, gradient = self.variable, self.value, self.gradient
        for _ in range(LEAPS):
            momentum = momentum + step / 2 * gradient
            at = at + step * momentum / mass
            value, gradient = self._slope(at)
            momentum = momentum + step / 2 * gradient
        log_ratio = (energy(value, momentum) - before).nan_to_num(-math.inf, -math.inf)
        taken = luck.log() < log_ratio
        pick = lambda new, old: torch.where(per_image(taken, new), new, old)
        self.variable = pick(at, self.variable)
        self.gradient = pick(gradient, self.gradient)
        self.value = torch.where(taken, value, self.value)
        self.paths += 1
        return log_ratio.clamp_max(0).exp()

    def tune(self, chance: Tensor, rate: float, easing: bool = False) -> None:
        """Move step sizes and masses towards where they belong, the former at this rate.

        Args:
            chance: with which the latest paths were taken, (K B,).
            rate: of the step sizes.
            easing: whether the density is about to change: then the length of a step follows the
                masses, else its acceptance alone.
        """
        before = self._masses().log().flatten(1).mean(1)
        seen = self.paths + 1
        weight = max(_EASING, 1 / seen) if easing else min(max(_LEAST, 5 / seen), _MOST)
        latest = self._of_images(self.gradient.square())
        self.squares = self.squares + weight * (latest - self.squares)
        self.log_step = self.log_step + rate * (chance - _WANTED)
        if not easing:
            longer = (self._masses().log().flatten(1).mean(1) - before) / 2
            self.log_step = self.log_step + longer.repeat(self.count)

    def _masses(self) -> Tensor:
        """Of each image, (B, ...)."""
        least = _FLOOR * per_image(self.squares.flatten(1).mean(1), self.squares)
        return (self.squares + least).clamp_min(torch.finfo(self.squares.dtype).tiny)

    def _slope(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """log density (K B,) and its gradient."""
        at = at.detach().requires_grad_()
        with torch.enable_grad():
            value = self.log_density(at)
            (gradient,) = torch.autograd.grad(value.sum(), at)
        return value.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)

    def _of_images(self, values: Tensor) -> Tensor:
        """The mean over the chains of each image, (K B, ...) to (B, ...)."""
        return values.view(self.count, -1, *values.shape[1:]).mean(0)

    def _draws(self, like: Tensor, kind: int) -> Tensor:
        """Gaussian draws of this path: of momenta (kind 0), or of step and luck (kind 1)."""
        parts = like.tensor_split(self.count)
        number = lambda chain: 2 * (self.paths * self.count + chain) + kind
        return torch.cat(
            [
                draw(part, number(chain), self.seed, 1.0, self.first)
                for chain, part in enumerate(parts)
            ]
        )


def split_r_hat(draws: Tensor) -> tuple[Tensor, Tensor]:
    """How well chains agree, and how many draws they are worth: split R-hat and effective draws.

    Every chain is cut into halves; with the variance W within them and the variance B / n of their
    means, var = (n - 1) / n W + B / n, R-hat is sqrt(var / W), and m halves of n draws are worth
    m n var / B of independent ones, at most m n (Gelman et al., Bayesian data analysis).

    Args:
        draws: (K, n, ...), at least four of each chain.
    Returns:
        Two tensors (...); R-hat is 1 where nothing moves.

    >>> r_hat, effective = split_r_hat(torch.randn(4, 100, 5, generator=torch.Generator()))
    >>> bool((r_hat < 1.1).all()), bool((effective > 30).all())
    (True, True)
    """
    length = draws.shape[1] // 2
    halves = torch.cat([draws[:, :length], draws[:, length : 2 * length]])
    within, between = variance(halves, 1).mean(0), length * variance(halves.mean(1), 0)
    both = (length - 1) / length * within + between / length
    tiny = torch.finfo(draws.dtype).tiny
    still = both <= tiny
    r_hat = torch.where(still, 1.0, (both / within.clamp_min(tiny)).sqrt())
    most = float(halves.shape[0] * length)
    worth = (most * both / between.clamp_min(tiny)).clamp_max(most)
    return r_hat, torch.where(still, most, worth)


def variance(values: Tensor, dim: int) -> Tensor:
    """What ``var`` computes, which warns of no images.

    >>> variance(torch.tensor([1.0, 3.0]), 0)
    tensor(2.)
    """
    off = values - values.mean(dim, keepdim=True)
    return off.square().sum(dim) / (values.shape[dim] - 1)
