"""Objectives and strategies as objects: a user's own, stages, annealing that changes nothing."""

from __future__ import annotations

import inspect
import json
import math
import threading
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers import assert_names
from toy_flows import SHAPE, SIZE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise, operators, strategies
from flowinv_fast.reconstruction.objectives import OBJECTIVES, Objective, Terms, generate
from flowinv_fast.reconstruction.solve import allot

QUIET = {"progress": False}


@pytest.fixture
def affine() -> AffineFlow:
    return AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)


def data(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


# --- objectives -----------------------------------------------------------------------------------


def test_reconstruct_has_few_options():
    parameters = inspect.signature(ff.reconstruct).parameters.values()
    options = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert len(options) <= 15 and len(parameters) - len(options) == 4
    assert not {"beta", "gamma", "lam", "squared", "method", "init"} & set(options)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_name_is_its_object(affine, name):
    y, law = data(), noise.Gaussian(0.5)
    solve = lambda goal: ff.reconstruct(
        y, operators.Identity(), affine, law, objective=goal, steps=4, **QUIET
    )
    assert OBJECTIVES[name].name == name and isinstance(OBJECTIVES[name], Objective)
    assert torch.equal(solve(name).x, solve(OBJECTIVES[name]).x)


def test_a_weight_of_another_objective_cannot_be_given():
    for wrong in (lambda: ff.MAP(gamma=1.0), lambda: ff.MLE(beta=1.0), lambda: ff.CSGM(beta=1.0)):
        with pytest.raises(TypeError):
            wrong()


class Full(torch.overrides.TorchFunctionMode):
    """No memory is left for any tensor."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")


def test_a_weight_is_not_blamed_for_what_is_around_it():
    """Neither for memory that is over nor for a default device without numbers."""
    weight = torch.tensor([0.5, 1.0])
    with Full(), pytest.raises(RuntimeError, match="allocate memory"):
        ff.MAP(weight)
    with torch.device("meta"):
        assert ff.MAP(0.5).beta == 0.5 and ff.MAP([0.5, 1.0]).beta == [0.5, 1.0]
    for wrong in (-1.0, "x", [1.0, -1.0], None, math.nan, torch.ones(2, 1), torch.ones(0), 1j):
        assert_names("beta", lambda beta=wrong: ff.MAP(beta))
    assert_names("beta", lambda: ff.MAP(1e300).fitted("f", torch.rand(2, 1)))


def test_objectives_are_values():
    assert ff.MAP(0.5) == ff.MAP(beta=0.5) and ff.MAP(0.5) != ff.MAP(0.5, "latent")
    with pytest.raises(AttributeError):
        ff.MAP().beta = 2.0


class Robust:
    """A user's own: sum of |y - f(G(z))| plus weight ||z||^2; no base class, a weight per image."""

    name, space, needs = "robust", "latent", ()
    steps, lr, start = 30, 0.05, "zeros"

    def __init__(self, weight: torch.Tensor):
        self.weight = weight

    def evaluate(self, y, operator, prior, noise, variable):
        error = (y - operator(generate(prior, variable))).abs().flatten(1).sum(1)
        size = variable.square().sum(1)
        return Terms(error + self.weight * size, -error, -size)

    def rank(self, terms):
        return terms.loss

    def select(self, part, shape):
        return Robust(self.weight[part])


def test_a_users_own_objective(affine, monkeypatch):
    from flowinv_fast.reconstruction import memory

    y, goal = data(5), Robust(torch.rand(5, dtype=torch.float64))
    solve = lambda **options: ff.reconstruct(
        y, operators.Identity(), affine, objective=goal, restarts=2, **options, **QUIET
    )
    got = solve()
    assert got.history.shape == (30, 5) and (got.loss < got.history[0]).all()
    error = (y - got.x).abs().flatten(1).sum(1)
    torch.testing.assert_close(got.loss, error + goal.weight * got.z.square().sum(1))
    assert got.config["objective"]["name"] == "robust" and got.prior_overshoot is None
    monkeypatch.setattr(memory, "images_at_once", lambda *_: 2)
    torch.testing.assert_close(solve().x, got.x)


def test_restarts_are_ranked_by_the_objective(affine):
    class Worst(Robust):
        def rank(self, terms):
            return -terms.loss

    y, weight = data(16), torch.rand(16, dtype=torch.float64)
    solve = lambda kind: (
        ff.reconstruct(
            y,
            operators.Identity(),
            affine,
            objective=kind(weight),
            start="draw",
            steps=4,
            restarts=6,
            **QUIET,
        ).loss
    )
    assert (solve(Worst) >= solve(Robust)).all() and (solve(Worst) > solve(Robust)).any()


def test_an_objective_that_does_not_fit_is_named(affine):
    class Summed(Robust):
        def evaluate(self, *given):
            return Terms(*(t.sum() for t in super().evaluate(*given)))

    call = lambda goal: ff.reconstruct(
        data(), operators.Identity(), affine, objective=goal, **QUIET
    )
    half = type("Half", (), {"name": "half", "evaluate": Robust.evaluate})()
    strange = Robust(torch.ones(3))
    strange.space = "pixels"
    for goal in (Summed(torch.ones(3).double()), half, strange):
        assert_names("objective", lambda goal=goal: call(goal))


@pytest.mark.parametrize("goal", [ff.MAP, ff.CSGM, ff.AsimLikelihood, ff.AsimProxy])
def test_weights_are_cut_with_their_images(goal):
    each = goal(torch.tensor([0.1, 0.2, 0.3]))
    own = each.select(slice(1, 3), (3, *SHAPE))
    torch.testing.assert_close(getattr(own, own.weight), torch.tensor([0.2, 0.3]))
    assert goal(0.3).select(slice(1, 3), (3, *SHAPE)) == goal(0.3)


# --- strategies -----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 10, 50])
@pytest.mark.parametrize("name", strategies.STRATEGIES)
def test_stages_share_the_steps(name, steps):
    for goal in OBJECTIVES.values():
        stages = allot(strategies.STRATEGIES[name], goal, steps)
        assert sum(count for *_, count in stages) == steps
        assert all(count > 0 for *_, count in stages)
        spaces = [form.space for _, form, _ in stages]
        first = "latent" if name == "latent-first" and steps > 1 else goal.space
        assert spaces[0] == first and spaces[-1] == goal.space


def test_shares_are_rounded_down_and_the_rest_goes_where_it_may():
    stage = ff.Stage
    counts = lambda *shares, steps=10: [
        count
        for *_, count in allot(ff.Strategy(tuple(stage(share=s) for s in shares)), ff.MAP(), steps)
    ]
    assert counts(0.25, None, 0.25) == [2, 6, 2]
    assert counts(0.35, 0.35) == [3, 7] and counts(0.5, 0.5, steps=5) == [2, 3]
    assert counts(0.01, None) == [10] and counts(None, 0.99, steps=1) == [1]


def test_a_strategy_of_ones_own(affine):
    """Stages go on from one another; the step size is that of the first."""
    y, seen = data(), []
    plan = ff.Strategy(
        (
            ff.Stage(share=0.5, space="latent", tempering=0.2),
            ff.Stage(share=0.25, rate=0.1, schedule="constant"),
            ff.Stage("lbfgs"),
        )
    )
    got = ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(0.4),
        objective="map-image",
        strategy=plan,
        steps=100,
        callback=lambda step, loss, x: seen.append((step, x.dim())),
        **QUIET,
    )
    dims = [dim for _, dim in seen]
    assert dims == [2] * 50 + [4] * 50 and [step for step, _ in seen[50:75]] == list(range(25))
    precision = 1 / 0.4**2 + 1 / affine.std**2
    want = (y / 0.4**2 + affine.mean / affine.std**2) / precision
    torch.testing.assert_close(got.x, want, atol=1e-3, rtol=0)


def test_a_strategy_over_latents_only_still_returns_images(affine):
    y, plan = data(), ff.Strategy((ff.Stage(space="latent"),))
    solve = lambda goal, how: ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(0.4),
        objective=goal,
        strategy=how,
        steps=12,
        lr=0.05,
        **QUIET,
    )
    got, want = solve("map-image", plan), solve("map", "adam")
    torch.testing.assert_close(got.x, want.x)
    torch.testing.assert_close(got.loss, want.loss)
    assert got.z is None and got.steps.tolist() == [12] * 3


def test_an_interrupt_between_spaces_returns_images(affine):
    def stop(step, losses, variable):
        if step == 3:
            raise KeyboardInterrupt

    got = ff.reconstruct(
        data(),
        operators.Identity(),
        affine,
        noise.Gaussian(0.4),
        objective="map-image",
        strategy="latent-first",
        steps=20,
        callback=stop,
        **QUIET,
    )
    assert got.status == [ff.Status.INTERRUPTED] * 3 and got.x.shape == (3, *SHAPE)
    assert torch.isfinite(got.loss).all() and len(got.history) == 4


def test_functions_vary_the_strategies_of_the_table():
    make = {
        "adam": strategies.adam,
        "lbfgs": strategies.lbfgs,
        "latent-first": strategies.latent_first,
        "smoothed": strategies.smoothed,
        "tempered": strategies.tempered,
        "annealed": strategies.annealed,
    }
    assert {name: call() for name, call in make.items()} == strategies.STRATEGIES
    assert strategies.annealed(tempering=0.1).stages[0].smoothing == 0.1


# --- annealing changes nothing of the user's ------------------------------------------------------


def one_bit(affine, operator, y, **options):
    return ff.reconstruct(y, operator, affine, noise.Gaussian(0.5), steps=20, **options, **QUIET)


def test_a_callback_that_raises_leaves_the_operator_as_it_was(affine):
    operator, x = operators.SignSensing(12, SHAPE), data()
    sign = operator(x)
    before = dict(vars(operator))

    def fail(step, losses, variable):
        if step == 5:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        one_bit(affine, operator, sign, callback=fail)
    assert vars(operator) == before and torch.equal(operator(x), sign)


def test_two_threads_may_share_an_operator(affine):
    operator = operators.SignSensing(12, SHAPE)
    ys = [operator(data()) for _ in range(2)]
    want = [one_bit(affine, operator, y).x for y in ys]
    found = [None, None]
    meet = threading.Barrier(2)

    def run(i):
        wait = lambda step, losses, variable: meet.wait(60) if step % 5 == 0 else None
        found[i] = one_bit(affine, operator, ys[i], callback=wait).x

    threads = [threading.Thread(target=run, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, want))


def test_a_users_operator_is_followed_and_solved_exactly_at_the_end(affine):
    """The times of an operator with easier forms: rising from 0, and then the operator itself."""

    class Easing:
        def __init__(self):
            self.times, self.exact = [], 0

        def __call__(self, x):
            self.exact += x.requires_grad
            return x

        def at(self, t):
            self.times.append(t)
            return lambda x: (1 - t) * 0.5 * x + t * x

    f = Easing()
    ff.reconstruct(data(), f, affine, noise.Gaussian(0.4), steps=10, **QUIET)
    assert f.times == [i / 8 for i in range(8)] and f.exact == 3  # the first is the look before


def test_flow_noise_of_a_subclass_is_frozen_and_tempered():
    from flows.test_frozen import random_flow

    class Own(noise.FlowNoise):
        pass

    flow = random_flow((1, 8, 8), 0.3, hidden=8, scales=1, blocks=1)
    law = Own(flow, 0.5)
    frozen = law.freeze(precision="fp32")
    assert type(frozen) is Own and frozen is not law and law.flow is flow
    assert isinstance(frozen.flow, ff.FrozenFlow) and frozen.scale == law.scale
    y = torch.rand(2, 1, 8, 8)
    got = ff.reconstruct(y, operators.Scale(0.5), flow, law, steps=5, **QUIET)
    assert got.config["strategy"]["stages"][0]["tempering"] == 0.3


# --- what was done --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd(ff.MLE):
    """A user's dataclass with a field that JSON does not know."""

    law: object = None


def test_config_says_what_was_done(affine):
    beta, y = torch.tensor([0.1, 0.5, 1.0]), data()
    z = torch.zeros(3, SIZE, dtype=torch.float64)
    got = ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(0.4),
        objective=ff.MAP(beta, "image"),
        strategy="latent-first",
        steps=6,
        restarts=2,
        seed=5,
        start=z,
        **QUIET,
    )
    config = json.loads(json.dumps(got.config))
    assert config == got.config
    assert config["objective"] == {"name": "map-image", "beta": beta.tolist(), "space": "image"}
    assert [stage["space"] for stage in config["strategy"]["stages"]] == ["latent", "image"]
    rest = {k: config[k] for k in ("steps", "lr", "start", "restarts", "precision", "seed")}
    assert rest == {
        "steps": 6,
        "lr": 0.1,
        "start": "a tensor (3, 16)",
        "restarts": 2,
        "precision": "fp32",
        "seed": 5,
    }
    assert config["version"] == ff.__version__
    got = ff.reconstruct(y, operators.Identity(), affine, noise.Gaussian(0.4), steps=2, **QUIET)
    assert got.config["objective"]["beta"] == 1.0 and got.config["start"] == "measurement"
    odd = Odd(law=noise.Gaussian(1.0))
    got = ff.reconstruct(
        y, operators.Identity(), affine, noise.Gaussian(0.4), objective=odd, steps=2, **QUIET
    )
    assert "Gaussian" in json.loads(json.dumps(got.config))["objective"]["law"]
    numpy_weight = ff.MAP(beta=np.float32(0.5))
    got = ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(0.4),
        objective=numpy_weight,
        steps=2,
        **QUIET,
    )
    assert got.config["objective"]["beta"] == 0.5


def test_the_strategy_in_config_is_the_one_that_ran(affine):
    plan = replace(strategies.tempered(0.5), polish=0.2)
    got = ff.reconstruct(
        data(), operators.Identity(), affine, noise.Gaussian(0.4), strategy=plan, steps=2, **QUIET
    )
    told = got.config["strategy"]
    assert ff.Strategy(tuple(ff.Stage(**s) for s in told["stages"]), told["polish"]) == plan
