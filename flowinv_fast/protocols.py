"""What the solver asks of a flow, a noise model and a forward operator. No base class is needed.

The first five protocols are what a part of a problem must have; the others are abilities that a
part may have. Whether it has one is asked by ``provides``, which looks at the method's signature as
well: a name alone proves nothing. Nothing that a user hands over is ever changed: every ability
returns a new object.

Letters: B images, (C, H, W) the shape of one, N = C H W; log densities are in nats, (B,) each.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeGuard, TypeVar, runtime_checkable

import torch
from torch import Tensor

# --- the parts of a problem -----------------------------------------------------------------------


@runtime_checkable
class Density(Protocol):
    """A density over images.

    As a prior one that is no ``Flow`` has images of any size: a solve is over images, and the size
    is that of the operator's guess or of the start. A mapping ``info`` beside a flow, if there is
    one, may tell "log_prob_peak": the largest log p of held-out images.
    """

    def log_prob(self, x: Tensor, /) -> Tensor:
        """log p(x), (B,), of images x (B, C, H, W)."""
        ...


@runtime_checkable
class Flow(Density, Protocol):
    """A density with an invertible map between images x (B, C, H, W) and latents z (B, N)."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        ...

    def encode(self, x: Tensor, /) -> tuple[Tensor, Tensor]:
        """z (B, N) and log|det dz/dx| (B,)."""
        ...

    def decode(self, z: Tensor, /) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W) and log|det dx/dz| (B,)."""
        ...


@runtime_checkable
class Generator(Protocol):
    """A map from latents to images without a density: a GAN, or the decoder of a VAE."""

    @property
    def latent_dim(self) -> int:
        """Numbers in a latent."""
        ...

    def __call__(self, z: Tensor, /) -> Tensor:
        """Images (B, C, H, W) of latents z (B, latent_dim)."""
        ...


@runtime_checkable
class NoiseModel(Protocol):
    """A density of the residual delta = y - f(x), shaped like the measurements y.

    An attribute ``multimodal`` says whether the density has many peaks, as a flow's has: MAP is
    then tempered unless another strategy is chosen. Without it a few values of log p decide.

    A law that depends on f(x) as well has no density of the residual alone: ``OnePass`` serves
    instead, and ``scores`` asks for either.
    """

    def log_prob(self, residual: Tensor, /) -> Tensor:
        """log p(delta), (B,), or with further dimensions, over which it is summed."""
        ...


@runtime_checkable
class ForwardOperator(Protocol):
    """f, a differentiable map from images x (B, C, H, W) to measurements (B, ...)."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """f(x)."""
        ...


# --- what a part may be able to do ----------------------------------------------------------------


@runtime_checkable
class Freezable(Protocol):
    """A float32 flow, or a noise model that holds one, which can run faster once it is fixed."""

    def freeze(self, *, precision: str) -> Any:
        """The same map with its weights as they are now, a new object.

        ``precision`` is "fp32", "tf32" or "bf16": how its networks multiply.
        """
        ...


@runtime_checkable
class Sized(Protocol):
    """A part that knows what it needs of memory, so that a large batch is solved in parts."""

    @property
    def saved_bytes(self) -> int:
        """Bytes that an image keeps for its gradient; 0 where that is not known."""
        ...

    @property
    def work_bytes(self) -> int:
        """Bytes that an image needs during a call."""
        ...


@runtime_checkable
class Frozen(Sized, Protocol):
    """What ``freeze`` makes of a flow. Gradients reach x and z, once: no second derivatives."""

    @property
    def precision(self) -> str:
        """How its networks multiply: "fp32", "tf32" or "bf16"."""
        ...


@runtime_checkable
class PerImage(Protocol):
    """A noise model, operator or objective with parameters that differ between the images."""

    def select(self, part: slice, shape: tuple[int, ...], /) -> Any:
        """The same for some of the images only, a new object.

        ``shape`` is that of the measurements of all images, (B, ...): it tells a parameter with a
        row per image from one that broadcasts.
        """
        ...


@runtime_checkable
class Initial(Protocol):
    """An operator that can guess an image."""

    def guess(self, y: Tensor, /) -> Tensor | None:
        """An image (B, C, H, W) to start from, of measurements y (B, ...); None: no simple one."""
        ...


@runtime_checkable
class Continuation(Protocol):
    """An operator with easier ones that lead to it, for a solve to follow."""

    def at(self, t: float, /) -> ForwardOperator:
        """The operator at time t in [0, 1]: easiest at 0, at 1 the operator itself."""
        ...


@runtime_checkable
class Linear(Protocol):
    """An operator with a transpose."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """f(x)."""
        ...

    def adjoint(self, y: Tensor, /) -> Tensor:
        """f^T y, images (B, C, H, W) of measurements y (B, ...)."""
        ...


@runtime_checkable
class Physics(Protocol):
    """A deepinv physics, y = sensor(noise(A(x))): calling it adds noise.

    An operator that has all four is used as f(x) = sensor(A(x)). One that has some of them only,
    such as a module with a matrix called ``A``, is called like any other.
    """

    def A(self, x: Tensor, /) -> Tensor:  # noqa: N802
        """The measurements without noise."""
        ...

    def A_dagger(self, y: Tensor, /) -> Tensor:  # noqa: N802
        """Images (B, C, H, W) of measurements."""
        ...

    def noise(self, u: Tensor, /) -> Tensor:
        """Measurements with noise."""
        ...

    def sensor(self, u: Tensor, /) -> Tensor:
        """What the sensor makes of them."""
        ...


@runtime_checkable
class NoiseInside(Protocol):
    """An operator f(x) = after(before(x)) that is noisy within: y = after(before(x) + delta).

    It counts where ``noise_inside`` is True.
    """

    @property
    def noise_inside(self) -> bool:
        """Whether ``measure`` puts the noise inside."""
        ...

    def before_noise(self, x: Tensor, /) -> Tensor:
        """What the noise is added to, shaped like y."""
        ...

    def after_noise(self, u: Tensor, /) -> Tensor:
        """y (B, ...) of what the noise was added to."""
        ...


@runtime_checkable
class Sampled(Protocol):
    """A noise model that can be drawn from."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None, /) -> Tensor:
        """A draw of this shape, (B, ...)."""
        ...


@runtime_checkable
class OnePass(Protocol):
    """A noise model that scores y and f(x) in one pass: cheaper, or because its law follows f(x).

    It is used before ``log_prob``, which it may lack.
    """

    def log_likelihood(self, y: Tensor, fx: Tensor, /) -> Tensor:
        """log p(y | fx), (B,)."""
        ...


@runtime_checkable
class DrawnAt(Protocol):
    """A noise model that can be drawn from at a clean signal. It is used before ``sample``."""

    def draw(self, fx: Tensor, generator: torch.Generator | None = None, /) -> Tensor:
        """A draw of y - fx, shaped like fx (B, ...)."""
        ...


@runtime_checkable
class Whitening(Protocol):
    """A noise model whose residuals an invertible map makes standard normal."""

    def whiten(self, residual: Tensor, /) -> tuple[Tensor, Tensor]:
        """A residual (B, ...) as white noise of its shape, and log|det| of that map, (B,)."""
        ...

    def colour(self, white: Tensor, /) -> Tensor:
        """Inverse of ``whiten``."""
        ...


def is_bounded(flow: Any) -> bool:
    """Whether a flow says that its images lie in [0, 1], as one that begins with a logit.

    >>> is_bounded(object())
    False
    """
    support = getattr(getattr(flow, "config", None), "support", None)
    return isinstance(support, str) and support == "bounded"  # else another library's word


Ability = TypeVar("Ability")


def provides(part: object, ability: type[Ability]) -> TypeGuard[Ability]:
    """Whether an object has an ability: all names of the protocol, and methods that can be called.

    A method counts if it takes what the protocol's own takes: positional arguments by their
    number, keyword-only ones by their name. So a ``freeze()`` without ``precision``, which is
    another library's and may change the object, is none; nor is a tensor called ``at``.

    Args:
        part: any object.
        ability: a protocol of this file.

    >>> from flowinv_fast import operators
    >>> provides(operators.SignSensing(4, (1, 2, 2)), Continuation)
    True
    >>> provides(operators.Identity(), Continuation)
    False
    """
    protocol: type = ability
    if isinstance(part, type) or missing(part, protocol):
        return False
    methods = {n: d for n, d in members(protocol).items() if inspect.isfunction(d)}
    return all(_can_be_called(getattr(part, name), method) for name, method in methods.items())


def scores(noise: object) -> TypeGuard[NoiseModel | OnePass]:
    """Whether a noise model has a density, of the residual or of y given f(x).

    >>> from flowinv_fast.noise import SignalDependent
    >>> camera = SignalDependent(torch.distributions.Normal(0.0, 1.0), [0.0, 1.0], [0.1, 0.2])
    >>> provides(camera, NoiseModel), scores(camera)
    (False, True)
    """
    return provides(noise, NoiseModel) or provides(noise, OnePass)


def noisy_inside(operator: object) -> TypeGuard[NoiseInside]:
    """Whether the noise goes inside an operator.

    >>> from flowinv_fast import operators
    >>> noisy_inside(operators.SignSensing(4, (1, 2, 2), noise_inside=True))
    True
    """
    return provides(operator, NoiseInside) and operator.noise_inside in (True,)  # numpy's as well


def missing(part: object, protocol: type) -> list[str]:
    """Names of a protocol that an object lacks.

    >>> missing(3, Density)
    ['log_prob']
    """
    return [name for name in members(protocol) if not hasattr(part, name)]


@functools.lru_cache(maxsize=64)
def members(protocol: type) -> dict[str, Any]:
    """What a protocol and those it extends declare, by name.

    >>> list(members(Linear))
    ['__call__', 'adjoint']
    """
    declared: dict[str, Any] = {}
    for base in reversed(protocol.__mro__):
        if getattr(base, "_is_protocol", False) and base is not Protocol:
            names = [n for n in vars(base) if not n.startswith("_") or n == "__call__"]
            declared.update({name: vars(base)[name] for name in names})
    return declared


def _can_be_called(method: Any, declared: Callable) -> bool:
    if not callable(method):
        return False
    function, bound = getattr(method, "__func__", method), inspect.ismethod(method)
    try:
        return _accepts(function, declared, bound)
    except TypeError:  # what cannot be hashed cannot be remembered
        return _accepts.__wrapped__(function, declared, bound)


@functools.lru_cache(maxsize=1024)
def _accepts(function: Callable, declared: Callable, bound: bool) -> bool:
    """Whether a function takes the arguments of a protocol's method."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False
    own = signature.parameters.values()
    named = {p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    wanted = list(inspect.signature(declared).parameters.values())[1:]
    keywords = {p.name for p in wanted if p.kind is p.KEYWORD_ONLY}
    positional = len(wanted) - len(keywords) + bound
    try:
        signature.bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return keywords <= named
