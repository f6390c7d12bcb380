"""A batch of measurements with all that scores them: what a solve is about, part by part."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import flows, ops
from ..flows import FrozenFlow
from ..noise import Flow, PlacedFlow
from . import objectives
from .objectives import METHODS


@dataclass(frozen=True)
class Problem:
    """What is solved, for a range of the images; ``fast`` is (prior, noise) of a fast precision."""

    method: str
    y: Tensor
    operator: Any
    prior: Any
    noise: Any
    fast: tuple[Any, Any] | None
    weight: Tensor | None
    squared: bool
    init: str | Tensor
    readable: Tensor
    first: int = 0

    def images(self, part: slice) -> Problem:
        if part == slice(0, len(self.y)):
            return self
        some = lambda v: v.images(part, tuple(self.y.shape)) if hasattr(v, "images") else v
        each = lambda v: v[part] if isinstance(v, Tensor) and v.dim() > 0 else v
        fast = (self.fast[0], some(self.fast[1])) if self.fast else None
        return replace(
            self, y=self.y[part], operator=some(self.operator), noise=some(self.noise), fast=fast,
            weight=each(self.weight), init=each(self.init), readable=self.readable[part],
            first=self.first + part.start,
        )  # fmt: skip

    def objective(self, prior: Any, noise: Any) -> objectives.Evaluate:
        y, operator, weight = self.y, self.operator, self.weight
        if self.method == "mle":
            return objectives.mle(y, operator, prior, noise)
        if self.method in ("map_latent", "map_image"):
            return getattr(objectives, self.method)(y, operator, prior, noise, weight)
        if self.method == "asim_proxy":
            return objectives.asim_proxy(y, operator, prior, weight, self.squared)
        return getattr(objectives, self.method)(y, operator, prior, weight)

    def start(self, restart: int, restarts: int, seed: int) -> Tensor:
        """The first variable of a restart: latents (B, N) or images (B, C, H, W)."""
        y, prior, init = self.y, self.prior, self.init
        batch, image = y.shape[0], METHODS[self.method].space == "image"
        if isinstance(init, Tensor):
            given_image = init.dim() == 4
            start = init if given_image == image else _convert(init, prior, image)
            return start + (_draw(start, restart, seed, 0.1, self.first) if restart else 0)
        if init == "measurement":
            guess = self.operator.guess(y) if hasattr(self.operator, "guess") else None
            if guess is not None:
                guess = guess.clamp(0, 1) * (1 - restart / restarts)
                return guess if image else _convert(guess, prior, False)
            init = "zeros"
        z = y.new_zeros(batch, objectives.latent_size(prior))
        if init == "draw" or restart > 0:
            z = z + _draw(z, restart, seed, 1.0, self.first)
        return objectives.generate(prior, z) if image else z


def freeze(part: Any, precision: str = "fp32") -> Any:
    """A flow, or the flow of our noise models, on the compiled engine; anything else as it is."""
    if isinstance(part, flows.Flow) and part.dtype == torch.float32:
        return part.freeze(precision)
    frozen = freeze(part.flow, precision) if type(part) in (Flow, PlacedFlow) else None
    if isinstance(frozen, FrozenFlow):
        part = copy.copy(part)
        part.flow = frozen
    return part


class Annealed:
    """An objective that is easier at first: a fast precision, noise on the variable, a faint
    likelihood, an operator with ``anneal``. At time 1 it is the objective itself."""

    def __init__(
        self, problem: Problem, smoothing: float, tempering: float, seed: int, restart: int
    ):
        self.evaluate = self.fast = problem.objective(problem.prior, problem.noise)
        if problem.fast:
            self.fast = problem.objective(*problem.fast)
        self.operator_anneal = getattr(problem.operator, "anneal", None)
        self.smoothing, self.tempering, self.seed = smoothing, tempering, seed
        self.first, self.time = problem.first, 1.0
        # Below time 1 always the same: only the precision changes at the end.
        self.constant = smoothing == 0 and tempering == 1 and self.operator_anneal is None
        self.calls = (restart + 1) << 14  # apart from the streams of the starts

    def anneal(self, t: float) -> None:
        self.time = t
        if self.operator_anneal is not None:
            self.operator_anneal(t)

    def __call__(self, variable: Tensor) -> objectives.Terms:
        if self.time >= 1:
            return self.evaluate(variable)
        std = self.smoothing * (1 - self.time)
        if std > 0:
            self.calls += 1
            variable = variable + _draw(variable, self.calls, self.seed, std, self.first)
        terms = self.fast(variable)
        if self.tempering == 1:
            return terms
        weight = self.tempering ** (1 - self.time)
        return terms._replace(loss=terms.loss + (1 - weight) * terms.log_noise)


def _draw(like: Tensor, stream: int, seed: int, std: float, first: int) -> Tensor:
    """Gaussian draws; an image's depend on its size and (seed, stream, first + its index)."""
    spread = torch.full((), std, dtype=like.dtype, device=like.device)
    size = math.prod(like.shape[1:])
    blocks = (size + 3) // 4  # a Philox offset holds four numbers
    offset = (stream << 36) + first * blocks
    draws = ops.gaussian_noise(0.0, spread, (like.shape[0], 4 * blocks), seed, offset)
    return draws[:, :size].view(like.shape)


def _convert(start: Tensor, prior: Any, to_image: bool) -> Tensor:
    with torch.no_grad():
        return prior.decode(start)[0] if to_image else prior.encode(start)[0]
