"""Composition of operators, which can do what its parts can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from .._base.errors import require
from .._base.parameters import Fixed
from ..protocols import (
    Continuation,
    ForwardOperator,
    Initial,
    Linear,
    NoiseInside,
    PerImage,
    Physics,
    members,
    noisy_inside,
    provides,
)

Rule = Callable[[Any, Any], dict[str, Any]]
RuleLike = TypeVar("RuleLike", bound=Rule)
RULES: dict[type, Rule] = {}  # protocol: what a composition has of it


def composes(protocol: type) -> Callable[[RuleLike], RuleLike]:
    """A decorator for the rule by which compositions get an ability from their parts.

    The rule is given the outer and the inner part and returns what the composition has, by the
    names that the protocol declares; nothing where the parts cannot do it together.

    Args:
        protocol: an ability, one of ``protocols`` or your own.
    Raises:
        ArgumentError: no protocol.

    >>> from typing import Protocol
    >>> class Gain(Protocol):
    ...     def gain(self) -> float: ...
    >>> @composes(Gain)
    ... def _gain(outer, inner):
    ...     able = provides(outer, Gain) and provides(inner, Gain)
    ...     return {"gain": lambda: outer.gain() * inner.gain()} if able else {}
    >>> del RULES[Gain]
    """
    good = isinstance(protocol, type) and bool(members(protocol))
    require(good, "composes", "protocol", "a Protocol that declares names", repr(protocol))

    def remember(rule: RuleLike) -> RuleLike:
        RULES[protocol] = rule
        return rule

    return remember


class Composable(Fixed, nn.Module):
    """An operator that composes: ``f @ g`` is x to f(g(x)), where one of them may be any callable.

    >>> import torch
    >>> class Double(Composable):
    ...     def forward(self, x): return 2 * x
    >>> (torch.exp @ Double())(torch.zeros(1, 1, 1, 1)).item()
    1.0
    """

    def __matmul__(self, other: ForwardOperator) -> Composition:
        return Composition(self, other)

    def __rmatmul__(self, other: ForwardOperator) -> Composition:
        return Composition(other, self)

    def guess(self, y: Tensor) -> Tensor | None:
        """An image (B, C, H, W) to start from, or None where there is no simple one."""
        return None


class Composition(Composable):
    """x to outer(inner(x)), which can do what its parts can.

    It has ``adjoint`` where both parts have one, ``at`` and ``select`` where one of them has, and
    ``noise_inside`` with ``before_noise`` and ``after_noise`` as the part that has them.
    ``composes`` adds an ability of your own.

    Args:
        outer, inner: any callables; a deepinv physics is used without its noise (``noiseless``).
    Raises:
        ArgumentError: a part that cannot be called, or two parts with the noise inside: there is
            one noise, and it can go into one place.

    >>> import torch
    >>> from flowinv_fast.operators import Scale
    >>> f = Scale(2.0) @ Scale(3.0)
    >>> f.adjoint(f(torch.ones(1, 1, 1, 1))).item()
    36.0
    """

    fixed = ("outer", "inner")

    def __init__(self, outer: ForwardOperator, inner: ForwardOperator):
        super().__init__()
        for name, part in (("outer", outer), ("inner", inner)):
            good = callable(part) and not isinstance(part, type)
            got = repr(part) if isinstance(part, type) else type(part).__name__
            require(good, "Composition", name, "a callable", got)
        both = noisy_inside(outer) and noisy_inside(inner)
        wanted = "one part with noise_inside: there is one noise"
        require(not both, "Composition", "inner", wanted, "noise_inside in both parts")
        self.outer, self.inner = noiseless(outer), noiseless(inner)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x))

    def guess(self, y: Tensor) -> Tensor | None:
        """The inner part's guess from the outer part's; None where one of them has none."""
        guess: Tensor | None = y
        for part in (self.outer, self.inner):
            guess = part.guess(guess) if guess is not None and provides(part, Initial) else None
        return guess

    def __getattr__(self, name: str) -> Any:
        """The abilities that the parts have; asked for only where the class has no such name."""
        for protocol, rule in RULES.items():
            if name in members(protocol):
                found = rule(self.outer, self.inner)
                if name in found:
                    return found[name]
        return super().__getattr__(name)


class _Noiseless(nn.Module):
    """What a physics measures without its noise."""

    def __init__(self, physics: Physics):
        super().__init__()
        self.physics = physics

    def forward(self, x: Tensor) -> Tensor:
        return self.physics.sensor(self.physics.A(x))


def noiseless(operator: Any) -> Any:
    """f(x) = sensor(A(x)) of a deepinv physics, whose call adds noise; all else as it is.

    >>> noiseless(abs)
    <built-in function abs>
    """
    return _Noiseless(operator) if provides(operator, Physics) else operator


# --- the rules ------------------------------------------------------------------------------------


def each(outer: Any, inner: Any, ability: type, name: str) -> dict[str, Any]:
    """The rule of an ability that returns a new object: of every part that has it.

    >>> each(abs, abs, PerImage, "select")
    {}
    """
    able = [provides(part, ability) for part in (outer, inner)]
    if not any(able):
        return {}

    def method(*args: Any, **options: Any) -> Composition:
        parts = zip((outer, inner), able, strict=True)
        return Composition(*(getattr(p, name)(*args, **options) if a else p for p, a in parts))

    return {name: method}


@composes(Linear)
def _linear(outer: Any, inner: Any) -> dict[str, Any]:
    both = provides(outer, Linear) and provides(inner, Linear)
    return {"adjoint": lambda y: inner.adjoint(outer.adjoint(y))} if both else {}


@composes(Continuation)
def _continuation(outer: Any, inner: Any) -> dict[str, Any]:
    return each(outer, inner, Continuation, "at")


@composes(PerImage)
def _per_image(outer: Any, inner: Any) -> dict[str, Any]:
    return each(outer, inner, PerImage, "select")


@composes(NoiseInside)
def _noise_inside(outer: Any, inner: Any) -> dict[str, Any]:
    if noisy_inside(outer) or provides(outer, NoiseInside) and not noisy_inside(inner):
        before, after = lambda x: outer.before_noise(inner(x)), outer.after_noise
        part = outer
    elif provides(inner, NoiseInside):
        before, after = inner.before_noise, lambda u: outer(inner.after_noise(u))
        part = inner
    else:
        return {}
    return {"noise_inside": part.noise_inside, "before_noise": before, "after_noise": after}
