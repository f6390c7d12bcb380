"""reconstruct: closed-form posteriors, independence of images, ends, and every bad argument."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_names
from torch import nn
from toy_flows import SHAPE, SIZE, AffineFlow, Physics

import flowinv_fast as ff
from flowinv_fast import ArgumentError, SolverError, Status, noise, operators, strategies
from flowinv_fast.flows import RealNVPConfig, realnvp
from flowinv_fast.reconstruction import objectives


@pytest.fixture
def affine():
    return AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)


@pytest.fixture
def flow():
    """A small RealNVP away from the identity."""
    model = realnvp(RealNVPConfig(SHAPE, scales=2, hidden=4, blocks=1, support="unbounded"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gain", "bias")):
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model.double()


def data(batch=3):
    return torch.randn(batch, *SHAPE, dtype=torch.float64)


SOLVE = {"steps": 800, "lr": 0.1, "progress": False}


# --- right answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("space", ["latent", "image"])
@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_gaussian_posterior_mode(affine, space, beta):
    """y = a x + mean + std e with a Gaussian prior: the mode is a weighted mean (eq. 10)."""
    a, std, mean = 0.7, torch.rand(SHAPE).double() + 0.2, torch.randn(SHAPE).double()
    y = data()
    goal = ff.MAP(beta, space)
    got = ff.reconstruct(
        y, operators.Scale(a), affine, noise.Gaussian(std, mean), objective=goal, **SOLVE
    )
    precision = a * a / std**2 + beta / affine.std**2
    want = (a * (y - mean) / std**2 + beta * affine.mean / affine.std**2) / precision
    torch.testing.assert_close(got.x, want, atol=1e-4, rtol=0)
    torch.testing.assert_close(got.log_prior, affine.log_prob(got.x))
    torch.testing.assert_close(got.loss, -got.log_noise - beta * got.log_prior)
    assert (got.z is None) == (space == "image")


def test_beta_zero_is_maximum_likelihood(affine):
    y, std = data(), 0.4
    solve = lambda goal, **options: ff.reconstruct(
        y, operators.Identity(), affine, noise.Gaussian(std), objective=goal, **options, **SOLVE
    )
    got, mle = solve(ff.MAP(beta=0.0)), solve("mle", start="zeros")
    torch.testing.assert_close(got.x, y, atol=1e-4, rtol=0)
    torch.testing.assert_close(mle.x, y, atol=1e-4, rtol=0)


def test_theorem_41_holds_with_equality_for_a_gaussian_prior():
    """||x_bar - x*|| = ||delta|| / (1 + mu s^2), x* the prior's mode and mu its curvature."""
    std, s = 0.6, 0.9
    prior = AffineFlow(torch.randn(SHAPE).double(), torch.full(SHAPE, std).double())
    delta = s * data()
    y = prior.mean + delta
    got = ff.reconstruct(
        y, operators.Identity(), prior, noise.Gaussian(s), objective="map-image", **SOLVE
    )
    distance = (got.x - prior.mean).flatten(1).norm(dim=1)
    bound = delta.flatten(1).norm(dim=1) / (1 + s * s / std**2)
    torch.testing.assert_close(distance, bound, rtol=1e-4, atol=0)


def test_equation_7_is_map_with_gaussian_noise(affine):
    """2 s^2 times the MAP loss, gamma = 2 s^2 beta, up to a constant: the same images."""
    y, s, beta = data(), 0.5, 0.7
    solve = lambda law, goal: ff.reconstruct(
        y, operators.Identity(), affine, law, objective=goal, **SOLVE
    )
    ours = solve(noise.Gaussian(s), ff.MAP(beta))
    asim = solve(None, ff.AsimLikelihood(2 * s * s * beta))
    torch.testing.assert_close(ours.x, asim.x, atol=1e-4, rtol=0)
    constant = SIZE * math.log(s * math.sqrt(2 * math.pi)) * 2 * s * s
    torch.testing.assert_close(2 * s * s * ours.loss - constant, asim.loss, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_losses_are_the_tables_equations(flow, squared):
    y, z = data(), torch.randn(3, SIZE, dtype=torch.float64)
    weight, model = torch.rand(3, dtype=torch.float64), noise.Gaussian(0.3)
    x, logdet = flow.decode(z)
    normal = torch.distributions.Normal(0, 1).log_prob(z).sum(1)
    error = ((y - 2 * x) ** 2).sum((1, 2, 3))
    f = operators.Scale(2.0)
    log_noise = model.log_prob(y - 2 * x)
    length = (z**2).sum(1) if squared else z.norm(dim=1)
    at = lambda goal, variable: goal.evaluate(y, f, flow, model, variable)
    for got, want in [
        (at(ff.MAP(weight, "latent"), z), -log_noise - weight * (normal - logdet)),
        (at(ff.MAP(weight, "image"), x), -log_noise - weight * flow.log_prob(x)),
        (at(ff.MLE(), z), -log_noise),
        (at(ff.CSGM(weight), z), error + weight * (z**2).sum(1)),
        (at(ff.AsimLikelihood(weight), z), error - weight * (normal - logdet)),
        (at(ff.AsimProxy(weight, squared), z), error + weight * length),
    ]:
        torch.testing.assert_close(got.loss, want)


def test_users_module_and_torch_distribution(affine):
    """A torch.nn.Module as operator, a torch.distributions law of the residual as noise."""

    class Mixing(nn.Module):
        def __init__(self):
            super().__init__()
            self.matrix = nn.Parameter(torch.randn(6, SIZE, dtype=torch.float64) / 4)

        def forward(self, x):
            return x.flatten(1) @ self.matrix.T

    f, std = Mixing().train(), 1.0
    y = torch.randn(3, 6, dtype=torch.float64)
    law = torch.distributions.Normal(torch.tensor(0.2).double(), torch.tensor(std).double())
    got = ff.reconstruct(y, f, affine, law, objective="map", **SOLVE)
    matrix = f.matrix.detach()
    scaled = matrix * affine.std.flatten()
    residual = y - 0.2 - matrix @ affine.mean.flatten()
    hessian = scaled.T @ scaled / std**2 + torch.eye(SIZE)
    want = torch.linalg.solve(hessian, scaled.T @ residual.T / std**2).T
    torch.testing.assert_close(got.z, want, atol=1e-3, rtol=0)
    assert f.training and f.matrix.requires_grad and f.matrix.grad is None


def test_independent_distribution_is_summed_once(affine):
    """A law over whole measurements, (B,) already, gives what its elementwise form gives."""
    y = torch.randn(2, *SHAPE, dtype=torch.float64)
    plain = torch.distributions.Normal(torch.zeros(SHAPE).double(), 0.5)
    whole = torch.distributions.Independent(plain, 3)
    results = [
        ff.reconstruct(y, operators.Identity(), affine, law, **SOLVE) for law in (plain, whole)
    ]
    torch.testing.assert_close(results[0].loss, results[1].loss)


def test_a_physics_is_used_without_its_noise(affine):
    y = data()
    physics = Physics(lambda x: 4 * x, sensor=lambda u: u / 2)
    got = ff.reconstruct(y, physics, affine, noise.Gaussian(1e-3), **SOLVE)
    torch.testing.assert_close(got.x, y / 2, atol=1e-3, rtol=0)
    assert ff.measure(y, physics, noise.Gaussian(1e-6)).sub(2 * y).abs().max() < 1e-4


@pytest.mark.parametrize("name", list(objectives.OBJECTIVES))
def test_every_objective_lowers_its_loss(flow, name):
    y = data()
    got = ff.reconstruct(
        y, operators.Scale(0.5), flow, noise.Gaussian(0.3), objective=name, steps=40, progress=False
    )
    assert got.history.shape == (40, 3)
    assert (got.loss <= got.history[0] + 1e-9).all()
    torch.testing.assert_close(got.loss, got.history.min(0)[0].minimum(got.loss))
    assert got.x.shape == y.shape and got.steps.tolist() == [40] * 3


# --- images do not influence one another ---------------------------------------------------------


@pytest.mark.parametrize("start", ["measurement", "zeros", "draw"])
def test_eight_together_equal_each_alone(flow, start):
    y = data(8)
    sigma = torch.rand(8, 1, 1, 1, dtype=torch.float64) + 0.2
    factor, beta = torch.rand(8, 1, 1, 1, dtype=torch.float64) + 0.5, torch.rand(8).double()
    settings = {"steps": 30, "start": start, "progress": False}
    together = ff.reconstruct(
        y, operators.Scale(factor), flow, noise.Gaussian(sigma), objective=ff.MAP(beta), **settings
    )
    if start == "draw":  # image i's draw is element i of one stream: alone, image 0 repeats it
        singles = range(1)
    else:
        singles = range(8)
    for i in singles:
        one = slice(i, i + 1)
        alone = ff.reconstruct(
            y[one],
            operators.Scale(factor[one]),
            flow,
            noise.Gaussian(sigma[one]),
            objective=ff.MAP(beta[one]),
            **settings,
        )
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(alone.loss[0], together.loss[i], rtol=1e-9, atol=1e-9)


def test_same_seed_same_bits_and_torch_generators_untouched(flow):
    y, before = data(), torch.get_rng_state()
    draw = lambda seed: (
        ff.reconstruct(
            y,
            operators.Identity(),
            flow,
            noise.Gaussian(0.5),
            start="draw",
            restarts=2,
            steps=5,
            strategy=strategies.smoothed(0.1),
            seed=seed,
            progress=False,
        ).x
    )
    assert torch.equal(draw(7), draw(7))
    assert not torch.equal(draw(7), draw(8))
    assert torch.equal(before, torch.get_rng_state())


def test_restarts_keep_the_lowest_loss_per_image(flow):
    y = data(16)  # the chance that every image's first start is its best of six is 6^-16
    settings = {"steps": 6, "start": "draw", "progress": False}
    once, often = (
        ff.reconstruct(y, operators.Identity(), flow, noise.Gaussian(0.1), restarts=r, **settings)
        for r in (1, 6)
    )
    assert (often.loss <= once.loss + 1e-12).all() and (often.loss < once.loss).any()


# --- ends ----------------------------------------------------------------------------------------


def test_each_image_stops_on_its_own(affine):
    """An image that starts at its optimum converges at once, a far one goes on."""
    y = affine.mean.expand(2, *SHAPE).clone()
    y[1] += 50
    got = ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(0.5),
        start="zeros",
        steps=60,
        lr=0.05,
        strategy=strategies.adam("constant", tol=1e-6, patience=5),
        progress=False,
    )
    assert got.status == [Status.CONVERGED, Status.UNSETTLED]
    assert got.steps[0] < 20 and got.steps[1] == 60


class Broken:
    """A noise whose density is lost for one image, where its residual is small."""

    def __init__(self, image, below):
        self.image, self.below = image, below

    def log_prob(self, residual):
        error = residual.square().flatten(1).sum(1)
        lost = (torch.arange(len(error)) == self.image) & (error < self.below)
        return torch.where(lost, math.nan, -error)


def test_a_non_finite_image_keeps_its_best_and_the_others_go_on(affine):
    y = affine.mean + 10
    y = y.expand(3, *SHAPE).clone()
    settings = {"progress": False, "steps": 50, "lr": 0.5, "start": "zeros"}
    got = ff.reconstruct(y, operators.Identity(), affine, Broken(1, 1000.0), **settings)
    assert [s is Status.NON_FINITE for s in got.status] == [False, True, False]
    assert 0 < got.steps[1] < 50
    assert torch.isfinite(got.x).all() and torch.isfinite(got.loss).all()
    assert got.loss[1] < got.history[0, 1] and got.loss[1] > got.loss[0]
    torch.testing.assert_close(got.x[0], got.x[2])
    whole = ff.reconstruct(y[:1], operators.Identity(), affine, Broken(1, 0.0), **settings)
    torch.testing.assert_close(got.x[:1], whole.x)


def test_never_finite_raises_or_reports(affine):
    y, settings = data(), {"progress": False, "steps": 5}
    with pytest.raises(SolverError, match=r"images \[1\]"):
        ff.reconstruct(y, operators.Identity(), affine, Broken(1, math.inf), **settings)
    got = ff.reconstruct(
        y, operators.Identity(), affine, Broken(1, math.inf), throw=False, **settings
    )
    assert [s is Status.FAILED for s in got.status] == [False, True, False]
    assert torch.isfinite(got.x).all() and (got.x[1] == 0).all()


def test_nan_in_y_is_refused_or_solved_around(flow):
    y = data()
    y[1, 0, 2, 2] = math.nan
    settings = {"steps": 10, "progress": False}
    with pytest.raises(ArgumentError, match="y: expected finite.*1 of 3"):
        ff.reconstruct(y, operators.Identity(), flow, noise.Gaussian(0.5), **settings)
    got = ff.reconstruct(
        y, operators.Identity(), flow, noise.Gaussian(0.5), throw=False, **settings
    )
    assert [s is Status.BAD_MEASUREMENT for s in got.status] == [False, True, False]
    clean = ff.reconstruct(y[[0, 2]], operators.Identity(), flow, noise.Gaussian(0.5), **settings)
    torch.testing.assert_close(got.x[[0, 2]], clean.x, rtol=1e-9, atol=1e-9)
    assert (got.x[1] == 0).all()


def test_interrupt_keeps_the_best_so_far(affine):
    def stop(step, losses, variable):
        if step == 7:
            raise KeyboardInterrupt

    y = data()
    got = ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(0.5),
        callback=stop,
        progress=False,
        restarts=3,
    )
    assert got.status == [Status.INTERRUPTED] * 3 and (got.loss <= got.history[0]).all()


def test_empty_batch(flow):
    got = ff.reconstruct(
        torch.zeros(0, *SHAPE).double(), operators.Identity(), flow, noise.Gaussian(0.5)
    )
    assert got.x.shape == (0, *SHAPE) and got.loss.shape == (0,) and got.status == []


def test_strided_and_differentiable_measurements(flow):
    y = data()
    wide = torch.zeros(3, 1, 4, 8, dtype=torch.float64)
    wide[..., ::2] = y
    solve = lambda m: ff.reconstruct(
        m, operators.Identity(), flow, noise.Gaussian(0.5), steps=10, progress=False
    )
    assert torch.equal(solve(wide[..., ::2].requires_grad_()).x, solve(y).x)
    assert not solve(y.clone().requires_grad_()).x.requires_grad


def test_the_prior_comes_back_as_it_was(flow):
    flow.train()
    next(flow.parameters()).requires_grad_(False)
    wanted = [p.requires_grad for p in flow.parameters()]
    ff.reconstruct(data(), operators.Identity(), flow, noise.Gaussian(0.5), steps=3, progress=False)
    assert flow.training and [p.requires_grad for p in flow.parameters()] == wanted
    assert all(p.grad is None for p in flow.parameters())


def test_given_starts(flow):
    y, z = data(), torch.randn(3, SIZE, dtype=torch.float64)
    x = flow.decode(z)[0].detach()
    settings = {"steps": 1, "lr": 1e-12, "progress": False}
    for goal, start in [("map", z), ("map", x), ("map-image", x), ("map-image", z)]:
        got = ff.reconstruct(
            y,
            operators.Identity(),
            flow,
            noise.Gaussian(0.5),
            objective=goal,
            start=start,
            **settings,
        )
        torch.testing.assert_close(got.x, x, atol=1e-6, rtol=0)


def test_measure_puts_the_noise_where_the_operator_says():
    x = torch.rand(5, *SHAPE)
    law = noise.Gaussian(0.3)
    outside = ff.measure(x, operators.SignSensing(9, SHAPE), law, torch.Generator().manual_seed(1))
    inside = ff.measure(
        x, operators.SignSensing(9, SHAPE, noise_inside=True), law, torch.Generator().manual_seed(1)
    )
    assert (inside.abs() == 1).all() and not (outside.abs() == 1).any()
    again = ff.measure(x, operators.SignSensing(9, SHAPE), law, torch.Generator().manual_seed(1))
    assert torch.equal(outside, again)


# --- bad calls -----------------------------------------------------------------------------------

BAD = {
    "y-type": ("y", {"y": [1.0, 2.0]}),
    "y-int": ("y", {"y": torch.zeros(3, *SHAPE, dtype=torch.int64)}),
    "y-half": ("y", {"y": torch.zeros(3, *SHAPE, dtype=torch.float16)}),
    "y-dtype": ("y", {"y": torch.zeros(3, *SHAPE, dtype=torch.float32)}),
    "y-device": ("y", {"y": torch.zeros(3, *SHAPE, dtype=torch.float64, device="meta")}),
    "y-shape": ("y", {"y": torch.zeros(3, 1, 4, 5, dtype=torch.float64)}),
    "y-no-batch": ("y", {"y": torch.zeros(16, dtype=torch.float64)}),
    "y-nan": ("y", {"y": torch.full((3, *SHAPE), math.nan, dtype=torch.float64)}),
    "y-inf": ("y", {"y": torch.full((3, *SHAPE), math.inf, dtype=torch.float64)}),
    "operator": ("operator", {"operator": 3.0}),
    "operator-none-back": ("operator", {"operator": lambda x: None}),
    "operator-dtype": ("operator", {"operator": lambda x: x.float()}),
    "prior": ("prior", {"prior": lambda z: z}),
    "noise-none": ("noise", {"noise": None}),
    "noise-shape": ("noise", {"noise": type("N", (), {"log_prob": lambda self, r: r.sum()})()}),
    "objective": ("objective", {"objective": "map_latent"}),
    "objective-type": ("objective", {"objective": 3}),
    "objective-class": ("objective", {"objective": ff.MAP}),
    "beta-shape": ("beta", {"objective": ff.MAP(torch.ones(4))}),
    "gamma-shape": ("gamma", {"objective": ff.AsimLikelihood(torch.ones(2))}),
    "lam-shape": ("lam", {"objective": ff.CSGM(torch.ones(1))}),
    "strategy": ("strategy", {"strategy": "luck"}),
    "strategy-type": ("strategy", {"strategy": ff.Stage()}),
    "strategy-space": (
        "strategy",
        {"objective": "map", "strategy": ff.Strategy((ff.Stage(space="image"),))},
    ),
    "steps": ("steps", {"steps": 0}),
    "steps-type": ("steps", {"steps": 2.5}),
    "lr": ("lr", {"lr": 0.0}),
    "lr-nan": ("lr", {"lr": math.nan}),
    "start": ("start", {"start": "ones"}),
    "start-shape": ("start", {"start": torch.zeros(3, 5, dtype=torch.float64)}),
    "start-dtype": ("start", {"start": torch.zeros(3, SIZE)}),
    "restarts": ("restarts", {"restarts": 0}),
    "seed": ("seed", {"seed": -1}),
    "precision": ("precision", {"precision": "fp16"}),
    "precision-prior": (
        "precision",
        {"prior": AffineFlow(torch.zeros(SHAPE), torch.ones(SHAPE)), "precision": "bf16"},
    ),
    "precision-double": (
        "precision",
        {
            "prior": realnvp(RealNVPConfig(SHAPE, scales=1, hidden=4, blocks=0)).double(),
            "precision": "bf16",
        },
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case, flow):
    argument, change = BAD[case]
    call = {
        "y": data(),
        "operator": operators.Identity(),
        "prior": flow,
        "noise": noise.Gaussian(0.5),
        "steps": 2,
        "progress": False,
        **change,
    }
    message = assert_names(argument, lambda: ff.reconstruct(**call))
    assert message.startswith(f"reconstruct: {argument}: expected ")


BAD_CHOICES = {
    "beta-negative": ("beta", lambda: ff.MAP(-0.1)),
    "beta-nan": ("beta", lambda: ff.MAP(math.nan)),
    "beta-type": ("beta", lambda: ff.MAP("one")),
    "beta-matrix": ("beta", lambda: ff.MAP(torch.ones(2, 2))),
    "space": ("space", lambda: ff.MAP(space="pixels")),
    "gamma": ("gamma", lambda: ff.AsimLikelihood(-1.0)),
    "proxy": ("gamma", lambda: ff.AsimProxy(math.inf)),
    "lam": ("lam", lambda: ff.CSGM(torch.tensor([1.0, -1.0]))),
    "solver": ("solver", lambda: ff.Stage("sgd")),
    "share": ("share", lambda: ff.Stage(share=0.0)),
    "stage-space": ("space", lambda: ff.Stage(space="pixels")),
    "schedule": ("schedule", lambda: ff.Stage(schedule="linear")),
    "smoothing": ("smoothing", lambda: strategies.smoothed(-1.0)),
    "tempering": ("tempering", lambda: strategies.tempered(0.0)),
    "tempering-above": ("tempering", lambda: strategies.annealed(tempering=1.5)),
    "tol": ("tol", lambda: strategies.adam(tol=-1e-3)),
    "patience": ("patience", lambda: strategies.adam(patience=0)),
    "rate": ("rate", lambda: ff.Stage(rate=0.0)),
    "exact": ("exact", lambda: ff.Stage(exact=2.0)),
    "polish": ("polish", lambda: strategies.adam(polish=3)),
    "stages": ("stages", lambda: ff.Strategy(())),
    "stages-type": ("stages", lambda: ff.Strategy("adam")),
    "two-rests": ("stages", lambda: ff.Strategy((ff.Stage(), ff.Stage()))),
    "too-much": ("stages", lambda: ff.Strategy((ff.Stage(share=0.7), ff.Stage(share=0.7)))),
}


@pytest.mark.parametrize("case", BAD_CHOICES)
def test_bad_choice_is_named(case):
    assert_names(*BAD_CHOICES[case])
