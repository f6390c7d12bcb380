"""Compositions do what their parts can: every ability that an operator may have."""

from __future__ import annotations

import copy
import pickle
from typing import Protocol, runtime_checkable

import pytest
import torch
from helpers import assert_names
from toy_flows import Physics

from flowinv_fast import measure, noise, operators, protocols
from flowinv_fast.protocols import provides

SHAPE = (1, 4, 4)
# What a problem is made of, and what flows and noise models are able to do.
NOT_OF_OPERATORS = {
    *("Density", "Flow", "Generator", "NoiseModel", "ForwardOperator", "Physics"),
    *("Freezable", "Frozen", "Sampled", "Sized", "OnePass", "DrawnAt", "Whitening"),
}
ABILITIES = sorted(
    name
    for name, value in vars(protocols).items()
    if getattr(value, "_is_protocol", False) and name not in NOT_OF_OPERATORS | {"Protocol"}
)


class Able(operators.LinearOperator):
    """An operator with every ability: 3 x, its noise inside."""

    noise_inside = True

    def __init__(self, gain=3.0):
        super().__init__()
        self.gain = gain

    def forward(self, x):
        return self.gain * x

    def adjoint(self, y):
        return self.gain * y

    def guess(self, y):
        return y / self.gain

    def at(self, t):
        return Able(self.gain * (1 + t))

    def select(self, part, shape):
        return Able(self.gain + part.start)

    def before_noise(self, x):
        return 2 * x

    def after_noise(self, u):
        return self.gain * u / 2


@pytest.mark.parametrize("name", ABILITIES)
@pytest.mark.parametrize("side", ["outer", "inner", "deep"])
def test_compositions_forward_every_ability(name, side):
    ability, same = getattr(protocols, name), operators.Identity()
    part = Able()
    assert provides(part, ability), "give Able the new ability and operators/composition.py a rule"
    whole = {"outer": part @ same, "inner": same @ part, "deep": same @ (part @ same) @ same}[side]
    for f in (whole, copy.deepcopy(whole), pickle.loads(pickle.dumps(whole)), whole.double()):
        assert provides(f, ability)


def test_an_ability_of_your_own():
    @runtime_checkable
    class Gained(Protocol):
        def total(self) -> float: ...

    class Part(Able):
        noise_inside = False

        def total(self):
            return self.gain

    f = Part(2.0) @ (Part(3.0) @ Part(5.0))
    assert not provides(f, Gained)

    @operators.composes(Gained)
    def rule(outer, inner):
        able = provides(outer, Gained) and provides(inner, Gained)
        return {"total": lambda: outer.total() * inner.total()} if able else {}

    try:
        assert provides(f, Gained) and f.total() == 30.0
        assert not provides(f @ torch.exp, Gained)
    finally:
        del operators.composition.RULES[Gained]
    assert_names("protocol", lambda: operators.composes(int))
    assert_names("protocol", lambda: operators.composes("total"))


def test_values_of_what_is_forwarded():
    x, part, half = torch.randn(2, *SHAPE), Able(), operators.Scale(0.5)
    for f in (part @ half, half @ part):
        torch.testing.assert_close(f(x), 1.5 * x)
        torch.testing.assert_close(f.adjoint(x), 1.5 * x)
        torch.testing.assert_close(f.guess(x), x / 1.5)
        torch.testing.assert_close(f.at(0.5)(x), 2.25 * x)
        torch.testing.assert_close(f.select(slice(1, 2), (2, 1))(x), 2.0 * x)
        torch.testing.assert_close(f.after_noise(f.before_noise(x)), f(x))


def test_noise_inside_survives_the_identity():
    f = operators.SignSensing(5, SHAPE, noise_inside=True)
    x, law = torch.rand(3, *SHAPE), noise.Gaussian(2.0)
    want = measure(x, f, law, torch.Generator().manual_seed(3))
    same = operators.Identity()
    for g in (f @ same, same @ f, f @ same @ same, f @ (lambda x: x), (lambda y: y) @ f):
        assert g.noise_inside is True
        assert torch.equal(measure(x, g, law, torch.Generator().manual_seed(3)), want)
        assert (want.abs() == 1).all()
    outside = operators.SignSensing(5, SHAPE) @ same
    assert provides(outside, protocols.NoiseInside) and outside.noise_inside is False


def test_the_noise_goes_into_one_place():
    small = operators.SignSensing(5, (5, 1, 1), noise_inside=True)
    shaped = (lambda y: y.view(-1, 5, 1, 1)) @ operators.SignSensing(5, SHAPE, noise_inside=True)
    assert_names("inner", lambda: small @ shaped)
    plain = (lambda y: y.view(-1, 5, 1, 1)) @ operators.SignSensing(5, SHAPE)
    f, x = small @ plain, torch.randn(2, *SHAPE)
    assert f.noise_inside is True and torch.equal(f.before_noise(x), small.linear(plain(x)))


def test_plain_functions_on_either_side():
    x = torch.rand(2, *SHAPE) + 0.1
    torch.testing.assert_close((torch.log @ operators.Scale(2.0))(x), (2 * x).log())
    torch.testing.assert_close((torch.nn.Flatten() @ operators.Scale(2.0))(x), 2 * x.flatten(1))
    torch.testing.assert_close((operators.Scale(2.0) @ torch.log)(x), 2 * x.log())
    assert_names("outer", lambda: 3 @ operators.Identity())
    assert_names("inner", lambda: operators.Identity() @ operators.Identity)


def test_parameters_move_with_a_composition():
    f = operators.Scale(torch.rand(2, 1, 1, 1)) @ operators.Blur(torch.rand(3, 3))
    x = torch.rand(2, *SHAPE)
    want = f(x)
    assert len(f.state_dict()) == 2
    torch.testing.assert_close(f.double()(x.double()).float(), want)
    for attribute in ("outer", "inner"):
        with pytest.raises(AttributeError, match="fixed"):
            setattr(f, attribute, operators.Identity())


def test_a_physics_is_composed_without_its_noise():
    physics = Physics(lambda x: 4 * x, sensor=lambda u: u / 2)
    x = torch.randn(2, *SHAPE)
    torch.testing.assert_close((operators.Scale(0.5) @ physics)(x), x)
    torch.testing.assert_close((physics @ operators.Scale(0.5))(x), x)
