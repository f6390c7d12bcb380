"""Distributions of torch as noise models."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Cauchy, Distribution, Independent, StudentT, Transform, constraints

from .._base.errors import ArgumentError, require
from .._base.parameters import has_rows
from .._base.tensors import accumulate_dtype, check_float, draw_seed
from .law import Law

_ONE_PEAK = (Cauchy, StudentT)  # with heavy tails, which pull back all the same

_DRAWING = threading.Lock()  # torch.distributions draw from the one generator that torch has


class FromDistribution(Law):
    """A continuous distribution of torch as density of the residuals y - f(x).

    ``reconstruct``, ``measure`` and ``sample_posterior`` put it around a distribution that is given
    as noise. Its events are one number, the last dimensions of a residual, or all pixels of an
    image in one vector; its batch shape broadcasts to the others from the right, with a row per
    image where it has as many dimensions. Residuals outside the support have log p = -inf, with a
    gradient of zero. ``multimodal`` is False for Student's t and Cauchy's distribution: log p is
    not concave, but has one peak.

    Args:
        distribution: a torch.distributions Distribution. It is copied without its gradients;
            modules inside it are shared.
    Raises:
        ArgumentError: no distribution, or a discrete one; at a call, shapes that do not fit.

    >>> from torch.distributions import Laplace
    >>> FromDistribution(Laplace(0.0, 0.1)).log_prob(torch.zeros(2, 1, 4, 4)).shape
    torch.Size([2])
    """

    def __init__(self, distribution: Distribution):
        super().__init__()
        got = repr(distribution)[:80]
        good = isinstance(distribution, Distribution)
        require(good, self._name, "distribution", "a torch.distributions Distribution", got)
        support = _support(distribution)
        wanted = "a continuous distribution: residuals are real numbers"
        discrete = bool(getattr(support, "is_discrete", False))
        require(not discrete, self._name, "distribution", wanted, got)
        while hasattr(support, "base_constraint"):
            support = support.base_constraint
        inner = distribution
        while isinstance(inner, Independent):
            inner = inner.base_dist
        if isinstance(inner, _ONE_PEAK):
            self.multimodal = False
        self._bounded = type(support) is not type(constraints.real)
        with torch.inference_mode(False), torch.no_grad():
            self._own = _mapped(distribution, lambda v: v.detach().clone())

    def __repr__(self) -> str:
        return f"FromDistribution({self._own})"

    @property
    def distribution(self) -> Distribution:
        """A copy of the distribution."""
        return _mapped(self._own, Tensor.clone)

    def log_prob(self, residual: Tensor) -> Tensor:
        """log p(residual): (B, ...) to (B,), in float32 (float64 for float64)."""
        check_float(f"{self._name}.log_prob", "residual", residual)
        rows = self._rows
        shape, per_image = self._seen(residual.shape)
        value = residual.to(accumulate_dtype(residual.dtype)).reshape(shape)
        if per_image and rows is not None:  # the other images' rows are scored too, and left out
            chosen = self._once(("rows", value.device), lambda: rows.numbers(value.device))
            whole = value.new_zeros((rows.batch, *shape[1:])).index_copy(0, chosen, value)
            terms = self._scored(whole)[chosen]
        else:
            terms = self._scored(value)
        return terms.flatten(1).sum(1) if terms.dim() > 1 else terms

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """A draw of shape (B, ...), on the CPU, in the dtype of the distribution.

        Torch's global generator stays as it is, but for one number where no other is given.
        """
        seen, per_image = self._seen(shape)
        rows = self._rows if per_image else None
        count = seen[0] if rows is None else rows.batch
        on_cpu = self._once("cpu", lambda: _mapped(self._own, lambda v: v.cpu()))
        batch = (count, *seen[1 : len(seen) - len(self._own.event_shape)])
        draw = _drawn(self._name, on_cpu, batch, draw_seed(generator))
        return (draw if rows is None else rows.cut(draw)).reshape(tuple(shape))

    def _seen(self, shape: Sequence[int]) -> tuple[tuple[int, ...], bool]:
        """The shape in which residuals are scored, flat or as it is, and whether rows differ."""
        event, batch = tuple(self._own.event_shape), tuple(self._own.batch_shape)
        shape = tuple(shape)
        require(len(shape) >= 1, self._name, "residual", "shape (B, ...)", shape)
        if len(event) == 1 and event[0] == math.prod(shape[1:]):
            shape = (shape[0], *event)
        good = len(event) < len(shape) and shape[len(shape) - len(event) :] == event
        wanted = f"one with events that are one number, the last dimensions of {shape} or an image"
        require(good, self._name, "distribution", wanted, f"events of shape {event}")
        return shape, has_rows(self._name, "distribution", batch + event, shape, self._rows)

    def _scored(self, value: Tensor) -> Tensor:
        """log p of every event; -inf outside the support."""
        key = ("form", value.dtype, value.device)
        distribution, inside = self._once(key, lambda: self._form(value.dtype, value.device))
        if inside is None:
            return distribution.log_prob(value)
        events = len(distribution.event_shape)
        unknown = value.isnan()
        unknown = unknown.flatten(value.dim() - events).any(-1) if events else unknown
        good = distribution.support.check(value) | unknown
        safe = torch.where(good.reshape(*good.shape, *[1] * events), value, inside)
        return distribution.log_prob(safe).masked_fill(~good, -math.inf)

    def _form(self, dtype: torch.dtype, device: torch.device) -> tuple[Distribution, Tensor | None]:
        """The distribution in a dtype on a device; and, where it is bounded, events inside it."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, dtype if value.is_floating_point() else value.dtype)

        own, inside = self._own, None
        if self._bounded:
            on_cpu = _mapped(own, lambda v: v.cpu())
            inside = moved(_drawn(self._name, on_cpu, tuple(own.batch_shape), seed=0))
        return _mapped(own, moved), inside


def as_noise(noise: Any) -> Any:
    """A noise model of what a user gives: a distribution of torch is adapted, else it is one.

    >>> type(as_noise(torch.distributions.Normal(0.0, 1.0))).__name__
    'FromDistribution'
    """
    return FromDistribution(noise) if isinstance(noise, Distribution) else noise


def _support(distribution: Distribution) -> Any:
    try:
        return distribution.support
    except NotImplementedError:
        return constraints.real


def _mapped(part: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """A copy of a distribution, and of all inside it, with its tensors moved and no validation.

    Validation refuses a whole batch for one residual.
    """
    if isinstance(part, Tensor):
        return move(part)
    if isinstance(part, (list, tuple)) and type(part) in (list, tuple):
        return type(part)(_mapped(p, move) for p in part)
    if not isinstance(part, (Distribution, Transform)):
        return part
    own = copy.copy(part)
    for name, value in vars(own).items():
        vars(own)[name] = _mapped(value, move)
    if isinstance(own, Distribution):
        vars(own)["_validate_args"] = False
    return own


def _drawn(name: str, distribution: Distribution, batch: tuple[int, ...], seed: int) -> Tensor:
    """Draws of a batch shape from a seed, which leave torch's global generator as it was."""
    with _DRAWING, torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(seed)
        own = tuple(distribution.batch_shape)
        lead = len(batch) - len(own)
        if batch[lead:] == own:
            return distribution.sample(torch.Size(batch[:lead]))
        try:
            return distribution.expand(torch.Size(batch)).sample()
        except NotImplementedError:
            wanted = f"one of batch shape {batch}, or with expand()"
            raise ArgumentError(name, "distribution", wanted, own) from None
