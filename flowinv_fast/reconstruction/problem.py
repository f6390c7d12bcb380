"""What a solve is about: measurements with all that scores them, checked once, cut into parts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.tensors import start_stream, stream_offset
from ..noise import as_noise
from ..protocols import Flow, Freezable, Initial, PerImage, is_bounded, provides
from . import checks as check
from .objectives import Evaluate, Fitted, Objective, generate, has_latents, latent_size

_EDGE = 1e-2  # a guess over logits comes no closer to 0 and 1: it would hardly move from there
_FINITE = 1e-6  # of images that were found, or given


@dataclass(frozen=True)
class Problem:
    """A batch of measurements, or a range of its images, with what scores them.

    Args:
        y: measurements (B, ...); images that cannot be read are zero.
        operator: a callable, f.
        prior, noise: frozen where they can be.
        objective: with its weights fitted to y.
        start: "measurement", "zeros", "draw", or latents (B, N) or images (B, C, H, W).
        readable: whether y is finite, (B,).
        fast: (prior, noise) in a fast precision, for all but the last steps.
        first: number of the first image in the whole batch; draws depend on it.
    """

    y: Tensor
    operator: Any
    prior: Any
    noise: Any
    objective: Objective
    start: str | Tensor
    readable: Tensor
    fast: tuple[Any, Any] | None = None
    first: int = 0

    @classmethod
    def checked(
        cls,
        function: str,
        y: Tensor,
        operator: Any,
        prior: Any,
        noise: Any,
        objective: Objective,
        start: str | Tensor | None = None,
        throw: bool = True,
    ) -> Problem:
        """The problem that a user's arguments make, nothing frozen yet.

        Raises:
            ArgumentError: an argument of ``function`` that cannot be used, named.
        """
        known = objective.space in ("latent", "image")
        wanted = "a space 'latent' or 'image'"
        require(known, function, "objective", wanted, repr(objective.space))
        check.measurement(function, y)
        operator = check.as_operator(function, operator)
        check.prior(function, prior, objective, y)
        noise = as_noise(noise)
        if "noise" in objective.needs:
            check.noise(function, noise)
        check.modes(function, operator=operator, prior=prior, noise=noise, objective=objective)
        if provides(objective, Fitted):
            objective = objective.fitted(function, y)
        readable = check.readable(function, y, throw)
        start = objective.start if start is None else start
        check.start(function, start, y, prior)
        start = start.detach().clone() if isinstance(start, Tensor) else start
        y = torch.where(readable.view(-1, *[1] * (y.dim() - 1)), y, torch.zeros_like(y)).detach()
        return cls(y, operator, prior, noise, objective, start, readable)

    def frozen(self, precision: str | None = None, polish: bool = True) -> Problem:
        """The same with its flows frozen.

        In a ``precision`` other than fp32 they are frozen twice: ``fast`` for most steps and fp32
        for the last ones, or, without ``polish``, in that precision alone.
        """
        both = lambda p: (freeze(self.prior, p, self.y), freeze(self.noise, p, self.y))
        fast = None
        if precision not in (None, "fp32") and provides(self.prior, Freezable):
            fast = both(precision)
        prior, noise = both("fp32") if fast is None or polish else fast
        return replace(self, prior=prior, noise=noise, fast=fast if polish else None)

    def select(self, part: slice) -> Problem:
        """The problem of some of the images."""
        if part == slice(0, len(self.y)):
            return self
        shape = tuple(self.y.shape)
        some = lambda v: v.select(part, shape) if provides(v, PerImage) else v
        start = self.start[part] if isinstance(self.start, Tensor) else self.start
        fast = (self.fast[0], some(self.fast[1])) if self.fast else None
        return replace(
            self,
            y=self.y[part],
            operator=some(self.operator),
            noise=some(self.noise),
            objective=some(self.objective),
            start=start,
            readable=self.readable[part],
            fast=fast,
            first=self.first + part.start,
        )

    @property
    def evaluate(self) -> Evaluate:
        """The loss as a function of the variable."""
        loss = partial(self.objective.evaluate, self.y, self.operator, self.prior, self.noise)
        return (lambda variable: loss(self.taken(variable))) if self.over_logits else loss

    def first_variable(self, restart: int, restarts: int, seed: int) -> Tensor:
        """Where a restart begins: latents (B, N) or images (B, C, H, W), by the objective's space.

        Of a flow that knows images in [0, 1] only it is the logits of images, see ``over_logits``.
        From the measurement restart r of R begins at (1 - r / R) times the guess, from a tensor at
        a draw around it, from zeros or draws at a new draw.
        """
        y, prior, start = self.y, self.prior, self.start
        image = self.objective.space == "image"
        if isinstance(start, Tensor):
            given_image = start.dim() == 4
            variable = start if given_image == image else _convert(start, prior, image)
            variable = self.of_images(variable) if image else variable
            return variable + (
                draw(variable, start_stream(restart), seed, 0.1, self.first) if restart else 0
            )
        if start == "measurement":
            guess = self._guess()
            if guess is not None:
                guess = guess.clamp(0, 1) * (1 - restart / restarts)
                return self.of_images(guess, _EDGE) if image else _convert(guess, prior, False)
            start = "zeros"
        z = y.new_zeros(y.shape[0], latent_size(prior))
        if start == "draw" or restart > 0:
            z = z + draw(z, start_stream(restart), seed, 1.0, self.first)
        return self.of_images(generate(prior, z)) if image else z

    def _guess(self) -> Tensor | None:
        """The operator's first guess of the images, if it has one."""
        y, prior = self.y, self.prior
        guess = self.operator.guess(y.clone()) if provides(self.operator, Initial) else None
        size = tuple(prior.shape) if provides(prior, Flow) else None
        if guess is None:
            wanted = "images (B, C, H, W), where neither the prior nor a guess(y) tells their size"
            require(has_latents(prior), "reconstruct", "start", wanted, repr(self.start))
            return None
        if size is None and has_latents(prior):  # a generator, whose start is a latent
            return None
        shape = ", ".join(map(str, (len(y), *(size or "CHW"))))
        wanted = f"a guess(y) of shape ({shape}), {y.dtype} on {y.device}"
        require(isinstance(guess, Tensor), "reconstruct", "operator", wanted, type(guess).__name__)
        got = f"{guess.dtype} of shape {tuple(guess.shape)} on {guess.device}"
        good = guess.dim() == 4 and len(guess) == len(y)
        good = good and size in (tuple(guess.shape[1:]), None)
        good = good and guess.dtype == y.dtype and guess.device == y.device
        require(good, "reconstruct", "operator", wanted, got)
        return guess

    @property
    def over_logits(self) -> bool:
        """Whether the variable is logit(x): over images that the prior knows in [0, 1] only.

        The objective is the same, and images stay where they have a density.
        """
        return self.objective.space == "image" and is_bounded(self.prior)

    def images(self, variable: Tensor) -> Tensor:
        """x (B, C, H, W) of a variable."""
        image = self.objective.space == "image"
        return self.taken(variable) if image else generate(self.prior, variable)

    def taken(self, variable: Tensor) -> Tensor:
        """What the objective takes of a variable: itself, or the images whose logits it is."""
        return torch.sigmoid(variable) if self.over_logits else variable

    def of_images(self, x: Tensor, edge: float = _FINITE) -> Tensor:
        """The variable over images at x (B, C, H, W), of logits no closer to 0 and 1 than this."""
        return torch.logit(x, edge) if self.over_logits else x


def freeze(part: Any, precision: str, y: Tensor) -> Any:
    """A flow, or a noise model with one, frozen for float32 measurements; else as it is."""
    able = y.dtype == torch.float32 and provides(part, Freezable)
    return part.freeze(precision=precision) if able else part


def draw(like: Tensor, stream: int, seed: int, std: float, first: int) -> Tensor:
    """Gaussian draws; an image's depend on its size and (seed, stream, first + its index)."""
    scale = torch.full((), std, dtype=like.dtype, device=like.device)
    size = math.prod(like.shape[1:])
    rows = (like.shape[0], 4 * ((size + 3) // 4))  # a Philox offset holds four numbers
    draws = ops.gaussian_noise(0.0, scale, rows, seed, stream_offset(stream, first, size))
    return draws[:, :size].view(like.shape)


def _convert(start: Tensor, prior: Any, to_image: bool) -> Tensor:
    with torch.no_grad():
        return prior.decode(start)[0] if to_image else prior.encode(start)[0]
