"""What the parts of a problem may not do, and that a solve leaves everything as it was."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_names
from torch import nn
from toy_flows import SHAPE, SIZE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import Status, noise, operators, recovery_bound, sample_posterior

GAUSS = noise.Gaussian(0.5)
SAME = operators.Identity()


def affine():
    return AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)


def data(batch=3):
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


def solve(operator=SAME, prior=None, law=GAUSS, y=None, **options):
    y = data() if y is None else y
    options = {"steps": 3, "progress": False, **options}
    return ff.reconstruct(y, operator, prior or affine(), law, **options)


def posterior(operator=SAME, prior=None, law=GAUSS):
    return sample_posterior(data(), operator, prior or affine(), law, 4, chains=2, warm_up=1)


class Density:
    """A noise model of a function."""

    def __init__(self, log_prob):
        self.log_prob = log_prob


def squares(residual):
    return -residual.square().flatten(1).sum(1)


# --- gradients that are lost ----------------------------------------------------------------------


def without_grad(x):
    with torch.no_grad():
        return 2 * x


CUT = {
    "numpy": lambda x: torch.from_numpy(2 * x.numpy()),
    "array": lambda x: torch.from_numpy(2 * x.detach().numpy()),
    "detach": lambda x: 2 * x.detach(),
    "data": lambda x: 2 * x.data,
    "no-grad": without_grad,
    "round": lambda x: (4 * x).round() / 4,
    "sign": lambda x: x.sign(),
    "threshold": lambda x: (x > 0).to(x.dtype),
    "added": lambda x: 2 * x.detach() + 0 * x,
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", CUT)
def test_an_operator_that_cuts_the_gradient(name, batch):
    message = assert_names("operator", lambda: solve(CUT[name], y=data(batch)))
    assert "operators.from_numpy" in message and "operators.straight_through" in message


@pytest.mark.parametrize("goal", ["map-image", "mle", "csgm", "asim-proxy"])
def test_every_objective_sees_it(goal):
    assert_names("operator", lambda: solve(CUT["detach"], objective=goal))


def test_sampling_sees_it():
    assert_names("operator", lambda: posterior(CUT["detach"]))


@pytest.mark.parametrize("name", ["numpy", "detach", "no-grad", "round", "added"])
def test_a_noise_model_that_cuts_the_gradient(name):
    law = Density(lambda residual: squares(CUT[name](residual)))
    assert_names("noise", lambda: solve(law=law))
    assert_names("noise", lambda: posterior(law=law))


def test_a_prior_that_cuts_the_gradient():
    flow = affine()
    decode = flow.decode
    flow.decode = lambda z: decode(z.detach())
    assert_names("prior", lambda: solve(prior=flow, objective="map"))
    flow = affine()
    log_prob = flow.log_prob
    flow.log_prob = lambda x: log_prob(x.detach())
    assert_names("prior", lambda: solve(prior=flow, objective="map-image"))
    assert_names("prior", lambda: recovery_bound(flow, data(), 1.0, 0.1))


class Uniform:
    """A law that is flat within its reach."""

    def log_prob(self, residual):
        inside = residual.abs().amax((1, 2, 3)) < 1e3
        return torch.where(inside, 0.0, -math.inf).double() + 0 * residual.sum((1, 2, 3))


def test_gradients_that_are_rightly_zero():
    flow = affine()
    flat = AffineFlow(flow.mean, flow.std)
    flat.log_prob = lambda x: x.new_zeros(len(x))
    blind = torch.zeros(3, *SHAPE).double()
    some = blind.clone()
    some[1] = 1
    for mask in (blind, some):
        solve(operators.Inpaint(mask), flow)
    solve(law=Uniform())
    solve(prior=flat, objective="map-image")
    solve(operators.SignSensing(12, SHAPE), y=torch.ones(3, 12).double())
    solve(lambda x: x.clamp(0, 1))
    solve(operators.straight_through(CUT["round"]))
    posterior(operators.Inpaint(blind))


# --- values that couple images, or change from call to call ---------------------------------------


def test_densities_have_one_value_per_image():
    for wrong in (
        lambda value: value.sum(),
        lambda value: value.sum()[None],
        lambda value: value[:, None],
        lambda value: float(value.detach().sum()),
    ):
        flow, other = affine(), affine()
        decode, log_prob = flow.decode, other.log_prob
        flow.decode = lambda z: (decode(z)[0], wrong(decode(z)[1]))  # noqa: B023
        other.log_prob = lambda x: wrong(log_prob(x))  # noqa: B023
        assert_names("prior", lambda flow=flow: solve(prior=flow))
        assert_names("prior", lambda other=other: solve(prior=other, objective="map-image"))
    for wrong in (lambda r: squares(r).sum(), lambda r: float(squares(r).detach().sum())):
        assert_names("noise", lambda wrong=wrong: solve(law=Density(wrong)))


def test_a_density_with_further_dimensions_is_summed():
    law = Density(lambda residual: -residual.square())
    flow, y = affine(), data()
    got, want = (solve(prior=flow, law=each, y=y).x for each in (law, Density(squares)))
    torch.testing.assert_close(got, want)


def test_images_that_are_coupled():
    standardised = lambda x: (x - x.mean(0)) / (1 + x.var(0, correction=0))
    flow = affine()
    log_prob = flow.log_prob
    flow.log_prob = lambda x: log_prob(x).mean().expand(len(x))
    assert "couples" in assert_names("operator", lambda: solve(standardised))
    shared = Density(lambda residual: squares(residual) * (1 + squares(residual).mean()))
    assert_names("noise", lambda: solve(law=shared))
    assert_names("noise", lambda: posterior(law=shared))
    assert_names("prior", lambda: solve(prior=flow, objective="map-image"))
    solve(standardised, y=data(1))  # one image alone is coupled to none


def test_values_that_are_random():
    dropped = lambda x: nn.functional.dropout(x, 0.5)  # in training mode, unless told otherwise
    assert ".eval()" in assert_names("operator", lambda: solve(dropped))
    assert_names("operator", lambda: solve(dropped, y=data(1)))
    assert_names("noise", lambda: solve(law=Density(lambda r: squares(dropped(r)))))
    assert_names("operator", lambda: posterior(dropped))


# --- names alone prove nothing --------------------------------------------------------------------


class Named(nn.Module):
    """A module with attributes that other libraries' objects have, and a forward that counts."""

    def __init__(self, **attributes):
        super().__init__()
        vars(self).update(attributes)

    def forward(self, x):
        return 2 * x


@pytest.mark.parametrize("a", [nn.Linear(4, 4).double(), lambda x: 5 * x, torch.ones(4, 4)])
def test_a_module_with_an_attribute_A_is_called(a):
    y, flow = data(), affine()
    got, want = (solve(f, flow, y=y).x for f in (Named(A=a), Named()))
    assert torch.equal(got, want)
    x = data()
    law = noise.Gaussian(1e-9)
    torch.testing.assert_close(ff.measure(x, Named(A=a), law), 2 * x, atol=1e-6, rtol=0)


def test_an_object_with_A_that_cannot_be_called_is_told_how():
    physics = type("Physics", (), {"A": lambda self, x: x})()
    assert "operator=physics.A" in assert_names("operator", lambda: solve(physics))


class Decoder:
    """A generator with a decode that returns images alone, as that of a VAE does."""

    latent_dim = 3

    def __init__(self):
        self.matrix = torch.randn(3, SIZE).double()

    def __call__(self, z):
        return (z @ self.matrix).view(-1, *SHAPE)

    decode = __call__


def test_a_generator_with_decode_is_called():
    prior, y = Decoder(), data()
    got = solve(prior=prior, y=y, objective=ff.CSGM(0.0), steps=400, start="zeros", lr=0.1)
    want = torch.linalg.lstsq(prior.matrix.T, y.flatten(1).T).solution.T
    torch.testing.assert_close(got.z, want, atol=1e-3, rtol=0)
    assert posterior(prior=prior).x.shape == (8, 3, *SHAPE)


def test_a_flow_with_latent_dim_is_a_flow():
    flow, y = affine(), data()
    want = solve(prior=flow, y=y).x
    flow.latent_dim = 3
    assert torch.equal(solve(prior=flow, y=y).x, want)


def test_attributes_of_other_meanings_are_let_alone():
    flow, y = affine(), data()
    want = solve(prior=flow, y=y)
    for name, value in [
        ("info", "a text"),
        ("info", {"log_prob_peak": "high"}),
        ("saved_bytes", 10**15),
        ("precision", 3),
        ("config", type("Config", (), {"support": 7})()),
    ]:
        setattr(flow, name, value)
        got = solve(prior=flow, y=y)
        assert torch.equal(got.x, want.x) and got.prior_overshoot is None
    assert noise.FlowNoise(flow).log_prob(y).shape == (3,)
    assert recovery_bound(flow, y, 1.0, 0.1).mu.shape == (3,)


# --- writing in place -----------------------------------------------------------------------------


def test_writing_in_place_is_refused():
    for write in (
        lambda x: x.mul_(2.0),
        lambda x: x.clamp_(0, 1),
        lambda x: torch.relu_(x),
        lambda x: x.detach().mul_(0) + 2 * x,
        lambda x: 2 * x + 0 * x.data.mul_(0.5),
    ):
        assert "in place" in assert_names("operator", lambda write=write: solve(write))
        assert_names("operator", lambda write=write: posterior(write))
        assert_names("operator", lambda write=write: solve(write, objective="map-image"))


def test_a_noise_model_that_writes_into_the_measurements_is_refused():
    class Law(Density):
        def log_likelihood(self, y, fx):
            return squares(y.mul_(0.5) - fx)

    class Hidden(Density):
        def log_likelihood(self, y, fx):
            return squares(y.data.mul_(0.5) - fx)

    for law in (Law(squares), Hidden(squares)):
        assert "in place" in assert_names("noise", lambda law=law: solve(law=law))


def test_a_prior_that_writes_in_place_is_refused():
    flow = affine()
    decode = flow.decode
    flow.decode = lambda z: decode(z.mul_(0.5))
    assert_names("prior", lambda: solve(prior=flow, start="zeros"))


def test_measuring_leaves_the_images_as_they_were():
    x = torch.rand(2, *SHAPE)
    before, law = x.clone(), noise.Gaussian(1e-6)
    y = ff.measure(x, lambda x: x.mul_(2.0), law)
    assert torch.equal(x, before)
    torch.testing.assert_close(y, 2 * x, atol=1e-4, rtol=0)


class Greedy:
    """An operator whose guess writes into the measurements."""

    def __call__(self, x):
        return 1.0 * x

    def guess(self, y):
        return y.mul_(0.0)


def test_a_guess_that_writes_in_place_changes_no_measurement():
    flow, y = affine(), data()
    got = solve(Greedy(), flow, y=y, steps=300, lr=0.1)
    precision = 1 / 0.5**2 + 1 / flow.std**2
    want = (y / 0.5**2 + flow.mean / flow.std**2) / precision
    torch.testing.assert_close(got.x, want, atol=1e-3, rtol=0)
    torch.testing.assert_close(got.noise, y - got.x)


class Overwriting(AffineFlow):
    """A flow whose encode overwrites the images."""

    def encode(self, x):
        z, logdet = super().encode(x)
        x.zero_()
        return z, logdet


def test_a_start_is_the_callers():
    flow = affine()
    flow = Overwriting(flow.mean, flow.std)
    for goal, start in [("map", data()), ("map", data().flatten(1)), ("map-image", data())]:
        before = start.clone()
        solve(prior=flow, objective=goal, start=start)
        assert torch.equal(start, before)


def test_results_share_no_memory_with_what_was_given():
    y, start = data(), data()
    for goal in ("map", "map-image"):
        got = solve(y=y, start=start, objective=goal, steps=1, lr=1e-9)
        kept = y.clone(), start.clone()
        for tensor in (got.x, got.noise, got.loss, got.history):
            tensor.fill_(7.0)
        assert torch.equal(y, kept[0]) and torch.equal(start, kept[1])
        assert got.status == [Status.MAX_STEPS] * 3


# --- the look itself ------------------------------------------------------------------------------


def test_errors_of_a_part_say_where_it_was_called():
    def fail(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        solve(fail)
    notes = getattr(caught.value, "__notes__", ["argument 'operator'"])
    assert "argument 'operator'" in notes[0]


def test_a_users_objective_is_looked_at():
    class Coupled(ff.MLE):
        def evaluate(self, *given):
            terms = super().evaluate(*given)
            return terms._replace(loss=terms.loss * (1 + terms.loss.detach().mean()))

    assert "couples" in assert_names("objective", lambda: solve(objective=Coupled()))


def test_the_draws_of_torch_are_left_alone():
    flow, y = affine(), data()
    before = torch.get_rng_state()
    solve(prior=flow, y=y)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_operator_is_called_nine_times_more_than_there_are_steps():
    calls = []
    solve(lambda x: calls.append(len(x)) or 1.0 * x, steps=10)
    # Two looks before; the end scores twice and measures once, and four images tell y's range.
    assert len(calls) == 10 + 2 + 3 + 4


# --- faults of a part beside the solve ------------------------------------------------------------


def test_an_error_of_a_part_is_not_its_own_cause():
    def fails(x):
        raise TypeError("mine")

    with pytest.raises(TypeError, match="mine") as caught:
        solve(fails)
    assert caught.value.__cause__ is None


def test_an_operator_that_refuses_black_images_loses_no_result():
    def normalised(x):
        if not x.any():
            raise ValueError("nothing to see")
        return 2 * x

    found = solve(normalised)
    assert found.outside is None and found.loss.isfinite().all()


def test_the_strategy_does_not_depend_on_the_memory_there_is():
    """A law with hollows is tempered where it can be scored for few images only, too."""

    def heavy(residual):
        if len(residual) > 1:
            raise MemoryError("too many images")
        return -2 * residual.square().log1p().flatten(1).sum(1)

    with pytest.warns(UserWarning, match="out of memory"):
        found = solve(law=Density(heavy))
    assert found.config["strategy"] == solve(law=Density(heavy), y=data(1)).config["strategy"]
    assert found.config["strategy"]["stages"][0]["tempering"] < 1
