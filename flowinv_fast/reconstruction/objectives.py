"""The losses of ``reconstruct``, one value per image, each an object with its weight.

An objective is what is minimised: over latents z (B, N) or over images x (B, C, H, W). Equation
numbers are those of Whang, Lei, Dimakis (2021). ``Objective`` says what an objective of your own
has to have; ``OBJECTIVES`` are the names that ``reconstruct`` knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from .. import ops
from .._base.errors import require
from .._base.parameters import numbers
from ..protocols import Flow, ForwardOperator, Generator, NoiseModel, OnePass, provides

STARTS = ("measurement", "zeros", "draw")


class Terms(NamedTuple):
    """A loss and what it is made of; each (B,). A term the objective does not have is zero."""

    loss: Tensor
    log_noise: Tensor
    log_prior: Tensor


Evaluate = Callable[[Tensor], Terms]


@runtime_checkable
class Objective(Protocol):
    """What ``reconstruct`` minimises. Any object with these serves; no base class is needed.

    An objective with weights per image also has ``select`` (``protocols.PerImage``), one that
    checks its weights against the measurements ``fitted``, and one over images that has a form over
    latents ``latent``.

    Attributes:
        name: in progress bars and messages.
        space: "latent" or "image", what the variable is.
        needs: which of "noise" (a noise model) and "density" (a prior with log p) it uses.
        steps, lr, start: what ``reconstruct`` takes where these are not given.
    """

    @property
    def name(self) -> str: ...
    @property
    def space(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def steps(self) -> int: ...
    @property
    def lr(self) -> float: ...
    @property
    def start(self) -> str: ...

    def evaluate(
        self,
        y: Tensor,
        operator: ForwardOperator,
        prior: Any,
        noise: Any,
        variable: Tensor,
        /,
    ) -> Terms:
        """The loss at a variable, (B, N) or (B, C, H, W), differentiable in it.

        It is called at every step, with y (B, ...) and with the prior and noise model frozen.
        """
        ...

    def rank(self, terms: Terms, /) -> Tensor:
        """(B,): of several starts each image keeps the one where this is lowest."""
        ...


@runtime_checkable
class Fitted(Protocol):
    """An objective that is fitted to a batch of measurements before the solve."""

    def fitted(self, function: str, y: Tensor, /) -> Objective:
        """The same for measurements y (B, ...), its weights on their device.

        Raises ``ArgumentError(function, ...)`` for weights that do not fit.
        """
        ...


@runtime_checkable
class LatentForm(Protocol):
    """An objective over images that strategies may begin over latents."""

    def latent(self) -> Objective:
        """The same objective over latents."""
        ...


# --- what the objectives share --------------------------------------------------------------------

Kind = TypeVar("Kind", bound="_Weighted")


@dataclass(frozen=True)
class _Weighted:
    """An objective with one weight, a number or one per image (B,); named by ``weight``."""

    weight: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.weight:
            check_weight(type(self).__name__, self.weight, getattr(self, self.weight))

    def rank(self, terms: Terms) -> Tensor:
        """The loss."""
        return terms.loss

    def fitted(self: Kind, function: str, y: Tensor) -> Kind:
        """The same with its weight as a tensor like y, () or (B,).

        Raises:
            ArgumentError: weights for another number of images.
        """
        if not self.weight:
            return self
        value = as_weight(function, self.weight, getattr(self, self.weight), y)
        return replace(self, **{self.weight: value})

    def select(self: Kind, part: slice, shape: tuple[int, ...]) -> Kind:
        """The same for some of the images, of measurements of this shape (B, ...)."""
        value = getattr(self, self.weight) if self.weight else None
        if isinstance(value, Tensor) and value.dim() == 1:
            return replace(self, **{self.weight: value[part]})
        return self


def check_weight(function: str, name: str, value: float | Tensor) -> float | Tensor:
    """A weight, a number or (B,); refuses, by name, anything but numbers of at least 0."""
    own = numbers(function, name, value)
    good = own >= 0 if isinstance(own, float) else own.dim() == 1 and bool((own >= 0).all())
    require(bool(good), function, name, "a number of at least 0, or one per image (B,)", value)
    return own


def as_weight(function: str, name: str, value: float | Tensor, y: Tensor) -> Tensor:
    """A weight with the dtype and device of measurements y (B, ...), () or (B,)."""
    own = check_weight(function, name, value)
    own = torch.tensor(own, dtype=y.dtype, device="cpu") if isinstance(own, float) else own
    tensor = own.to(y.dtype)
    good = (tensor.dim() == 0 or tensor.shape == y.shape[:1]) and bool(tensor.isfinite().all())
    wanted = f"a number of at least 0, or one per image ({y.shape[0]},)"
    require(good, function, name, wanted, f"shape {tuple(tensor.shape)} in {y.dtype}")
    return tensor.to(y.device)


def log_noise_of(noise: NoiseModel | OnePass, y: Tensor, fx: Tensor) -> Tensor:
    """log p_noise(y - fx), or log p_noise(y | fx) of a law that scores both in one pass, (B,)."""
    if provides(noise, OnePass):
        return noise.log_likelihood(y, fx)
    value = noise.log_prob(y - fx)  # type: ignore[union-attr]
    further = isinstance(value, Tensor) and value.dim() > 1
    return value.flatten(1).sum(1) if further else value


def generate(prior: Flow | Generator, z: Tensor) -> Tensor:
    """G(z) (B, C, H, W): what a flow decodes, and what any other generator returns."""
    return prior.decode(z)[0] if provides(prior, Flow) else prior(z)  # type: ignore[operator]


def has_latents(prior: Any) -> bool:
    """Whether a prior makes images of latents; a density alone does not.

    >>> has_latents(torch.distributions.Normal(0.0, 1.0))
    False
    """
    return provides(prior, Flow) or provides(prior, Generator)


def latent_size(prior: Flow | Generator) -> int:
    """Numbers in a latent of a flow (N = C H W), or of a generator with ``latent_dim``."""
    if provides(prior, Flow):
        return math.prod(prior.shape)
    return int(prior.latent_dim)  # type: ignore[union-attr]


def _decoded(prior: Flow, z: Tensor) -> tuple[Tensor, Tensor]:
    """G(z) and log p_G(G(z)) = log N(z; 0, I) - log|det dG/dz|: one decode gives both."""
    x, logdet = prior.decode(z)
    return x, ops.standard_normal_log_prob(z) - logdet


def _squared_error(y: Tensor, fx: Tensor) -> Tensor:
    return (y - fx).square().flatten(1).sum(1)


# --- the objectives -------------------------------------------------------------------------------


@dataclass(frozen=True)
class MAP(_Weighted):
    """The most probable image: -log p_noise(y - f(x)) - beta log p_G(x) (eq. 3, 4 and 10).

    Args:
        beta: weight of log p_G, a number of at least 0 or one per image (B,). 1 is the exact MAP,
            0 < beta < 1 smooths the prior (p_G^beta), 0 is maximum likelihood.
        space: "image" minimises over x itself; "latent" over z, with x = G(z).
    Raises:
        ArgumentError: another weight or space.

    >>> MAP(beta=0.5).name, MAP(space="latent").name
    ('map-image', 'map')
    """

    beta: float | Tensor = 1.0
    space: str = "image"
    weight: ClassVar[str] = "beta"
    needs: ClassVar[tuple[str, ...]] = ("noise", "density")
    start: ClassVar[str] = "measurement"

    def __post_init__(self) -> None:
        super().__post_init__()
        good = self.space in ("latent", "image")
        require(good, "MAP", "space", "'latent' or 'image'", repr(self.space))

    @property
    def name(self) -> str:
        """ "map-image" over images, "map" over latents."""
        return "map" if self.space == "latent" else "map-image"

    @property
    def steps(self) -> int:
        """300 over latents, 200 over images."""
        return 300 if self.space == "latent" else 200

    @property
    def lr(self) -> float:
        """0.05 over latents, 0.1 over images."""
        return 0.05 if self.space == "latent" else 0.1

    def latent(self) -> MAP:
        """The same objective over latents."""
        return replace(self, space="latent")

    def evaluate(
        self,
        y: Tensor,
        operator: ForwardOperator,
        prior: Flow,
        noise: NoiseModel | OnePass,
        variable: Tensor,
    ) -> Terms:
        """The loss over z (B, N), or over x (B, C, H, W)."""
        if self.space == "latent":
            x, log_prior = _decoded(prior, variable)
        else:
            x, log_prior = variable, prior.log_prob(variable)
        log_noise = log_noise_of(noise, y, operator(x))
        return Terms(-log_noise - self.beta * log_prior, log_noise, log_prior)


class _OverLatents(_Weighted):
    """What the objectives that know latents only have in common."""

    space: ClassVar[str] = "latent"
    lr: ClassVar[float] = 0.05


@dataclass(frozen=True)
class MLE(_OverLatents):
    """Maximum likelihood: -log p_noise(y - f(G(z))) over z (eq. 5), for any generator.

    >>> MLE().needs
    ('noise',)
    """

    name: ClassVar[str] = "mle"
    needs: ClassVar[tuple[str, ...]] = ("noise",)
    steps: ClassVar[int] = 500
    start: ClassVar[str] = "draw"

    def evaluate(
        self,
        y: Tensor,
        operator: ForwardOperator,
        prior: Any,
        noise: NoiseModel | OnePass,
        variable: Tensor,
    ) -> Terms:
        """The loss over z (B, N)."""
        log_noise = log_noise_of(noise, y, operator(generate(prior, variable)))
        return Terms(-log_noise, log_noise, log_noise.new_zeros(log_noise.shape))


@dataclass(frozen=True)
class CSGM(_OverLatents):
    """||y - f(G(z))||^2 + lam ||z||^2 over z (eq. 6; Bora et al., 2017).

    Of several starts each image keeps the lowest measurement error ||y - f(G(z))||^2.

    Args:
        lam: a number of at least 0, or one per image (B,).
    Raises:
        ArgumentError: another weight.

    >>> CSGM(0.3).start
    'draw'
    """

    lam: float | Tensor = 0.1
    name: ClassVar[str] = "csgm"
    weight: ClassVar[str] = "lam"
    needs: ClassVar[tuple[str, ...]] = ()
    steps: ClassVar[int] = 500
    start: ClassVar[str] = "draw"

    def evaluate(
        self, y: Tensor, operator: ForwardOperator, prior: Any, noise: Any, variable: Tensor
    ) -> Terms:
        """The loss over z (B, N); the noise model is not used."""
        error = _squared_error(y, operator(generate(prior, variable)))
        size = variable.square().sum(1)
        return Terms(error + self.lam * size, -error, -size)

    def rank(self, terms: Terms) -> Tensor:
        """The measurement error."""
        return -terms.log_noise


@dataclass(frozen=True)
class AsimLikelihood(_OverLatents):
    """||y - f(G(z))||^2 - gamma log p_G(G(z)) over z (eq. 7; Asim et al., 2019).

    Equals 2 s^2 times ``MAP`` with Gaussian noise of standard deviation s and
    beta = gamma / (2 s^2), up to a constant.

    Args:
        gamma: a number of at least 0, or one per image (B,).
    Raises:
        ArgumentError: another weight.

    >>> AsimLikelihood(0.02).needs
    ('density',)
    """

    gamma: float | Tensor = 0.1
    name: ClassVar[str] = "asim-likelihood"
    weight: ClassVar[str] = "gamma"
    needs: ClassVar[tuple[str, ...]] = ("density",)
    steps: ClassVar[int] = 300
    start: ClassVar[str] = "measurement"

    def evaluate(
        self, y: Tensor, operator: ForwardOperator, prior: Flow, noise: Any, variable: Tensor
    ) -> Terms:
        """The loss over z (B, N); the noise model is not used."""
        x, log_prior = _decoded(prior, variable)
        error = _squared_error(y, operator(x))
        return Terms(error - self.gamma * log_prior, -error, log_prior)


@dataclass(frozen=True)
class AsimProxy(_OverLatents):
    """||y - f(G(z))||^2 + gamma ||z||^2 over z, from z = 0 (eq. 8; Asim et al., 2019).

    Args:
        gamma: a number of at least 0, or one per image (B,).
        squared: False takes gamma ||z||, as their code does.
    Raises:
        ArgumentError: another weight.

    >>> AsimProxy(0.1, squared=False).start
    'zeros'
    """

    gamma: float | Tensor = 0.1
    squared: bool = True
    name: ClassVar[str] = "asim-proxy"
    weight: ClassVar[str] = "gamma"
    needs: ClassVar[tuple[str, ...]] = ()
    steps: ClassVar[int] = 300
    start: ClassVar[str] = "zeros"

    def evaluate(
        self, y: Tensor, operator: ForwardOperator, prior: Any, noise: Any, variable: Tensor
    ) -> Terms:
        """The loss over z (B, N); the noise model is not used."""
        error = _squared_error(y, operator(generate(prior, variable)))
        size = variable.square().sum(1)
        size = size if self.squared else (size + 1e-12).sqrt()
        return Terms(error + self.gamma * size, -error, -size)


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        MAP(),
        MAP(space="latent"),
        MLE(),
        CSGM(),
        AsimLikelihood(),
        AsimProxy(),
    )
}
