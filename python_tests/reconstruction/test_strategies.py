"""Named strategies of reconstruct: the steps they spend, what they find; the prior's overshoot."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_names
from toy_flows import SHAPE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import noise, operators, strategies
from flowinv_fast.data import sample_images
from flowinv_fast.flows import RealNVPConfig, realnvp
from flowinv_fast.reconstruction.solvers import Status
from flowinv_fast.reconstruction.strategies import STRATEGIES


@pytest.fixture
def affine() -> AffineFlow:
    return AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)


class Counted(noise.Gaussian):
    """Gaussian noise that counts how often it is asked."""

    calls = 0

    def log_likelihood(self, y, fx):
        self.calls += 1
        return super().log_likelihood(y, fx)


@pytest.mark.parametrize("goal", ["map", "map-image"])
@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_finds_the_closed_form_in_the_steps_it_was_given(affine, strategy, goal):
    y, std, steps = torch.randn(3, *SHAPE, dtype=torch.float64), 0.4, 400
    law, seen = Counted(std), []
    got = ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        law,
        objective=goal,
        strategy=strategy,
        steps=steps,
        lr=0.1,
        callback=lambda step, losses, x: seen.append(losses),
        progress=False,
    )
    precision = 1 / std**2 + 1 / affine.std**2
    want = (y / std**2 + affine.mean / affine.std**2) / precision
    torch.testing.assert_close(got.x, want, atol=0.06, rtol=0)
    assert len(seen) == steps and got.history.shape == (steps, 3)
    converged = [status is Status.CONVERGED for status in got.status]  # only L-BFGS stops early
    assert all(n == steps or done for n, done in zip(got.steps.tolist(), converged))
    assert steps <= law.calls <= steps + 8  # and the scores of what each stage found


def test_lbfgs_ends_nearer_than_adam_on_an_ill_conditioned_problem(affine):
    size = affine.mean.numel()
    f, y = operators.GaussianSensing(size, SHAPE), torch.randn(3, size, dtype=torch.float64)
    solve = lambda strategy: ff.reconstruct(
        y, f, affine, noise.Gaussian(0.01), strategy=strategy, steps=120, lr=0.1, progress=False
    )
    assert (solve("lbfgs").loss < solve("adam").loss).all()


def test_latent_first_hands_its_solution_on(affine):
    """After the latent half the image is where the latent solve of as many steps ends."""
    y, variables = torch.randn(2, *SHAPE, dtype=torch.float64), []
    settings = {"lr": 0.05, "progress": False}
    ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(0.3),
        objective="map-image",
        steps=20,
        strategy="latent-first",
        callback=lambda step, losses, x: variables.append(x),
        **settings,
    )
    alone = ff.reconstruct(
        y, operators.Identity(), affine, noise.Gaussian(0.3), steps=10, strategy="adam", **settings
    )
    assert variables[9].dim() == 2 and variables[10].shape == y.shape
    # The variable handed to the callback has taken one step of lr / 5 from where it was scored.
    assert (variables[10] - alone.x).abs().max() <= 0.05 / 5 * 1.01


def test_annealing_is_the_default_under_a_flow_as_noise_only():
    flow = realnvp(RealNVPConfig(SHAPE, scales=1, hidden=4, blocks=0))
    y = torch.rand(2, *SHAPE)
    solve = lambda law, **options: (
        ff.reconstruct(y, operators.Scale(0.5), flow, law, steps=12, progress=False, **options).x
    )
    law = noise.FlowNoise(flow, 0.5)
    assert torch.equal(solve(law), solve(law, strategy="annealed"))
    assert not torch.equal(solve(law), solve(law, strategy="adam"))
    law = noise.Gaussian(0.5)
    assert torch.equal(solve(law), solve(law, strategy="adam"))


def test_a_given_number_takes_the_place_of_the_strategys():
    flow = realnvp(RealNVPConfig(SHAPE, scales=1, hidden=4, blocks=0))
    y, law = torch.rand(2, *SHAPE), noise.Gaussian(0.5)
    settings = {"steps": 12, "lr": 0.1, "progress": False}
    solve = lambda **options: (
        ff.reconstruct(y, operators.Identity(), flow, law, **settings, **options).x
    )
    (stage,) = STRATEGIES["annealed"].stages
    by_hand = ff.Stage(smoothing=stage.smoothing, tempering=stage.tempering)
    assert torch.equal(solve(strategy=ff.Strategy((by_hand,))), solve(strategy="annealed"))
    assert torch.equal(solve(strategy=strategies.annealed(0.0, 1.0)), solve())


def rates(steps: int, *stages: ff.Stage, goal: str = "map", **options) -> list[tuple[int, float]]:
    """Steps, and step size, of each stage that is taken: its first step is one of that size."""
    affine = AffineFlow(torch.zeros(SHAPE).double(), torch.ones(SHAPE).double())
    y, iterates = 5 + torch.rand(1, *SHAPE, dtype=torch.float64), []
    ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(1.0),
        objective=goal,
        strategy=ff.Strategy(stages),
        steps=steps,
        start="zeros",
        callback=lambda step, losses, x: iterates.append((step, x.abs().max().item())),
        progress=False,
        **options,
    )
    starts = [i for i, (step, _) in enumerate(iterates) if step == 0]
    ends = [*starts[1:], len(iterates)]
    return [(end - start, iterates[start][1]) for start, end in zip(starts, ends)]


def test_a_stage_keeps_its_rate_where_the_first_one_is_left_out():
    image, own = ff.Stage(share=0.5, space="image", rate=0.2), ff.Stage()
    default = ff.MAP().lr
    assert rates(4, image, own) == [(4, pytest.approx(default))]  # over latents: no image stage
    assert rates(4, image, own, lr=0.1) == [(4, pytest.approx(0.5))]
    latent = ff.Stage(share=0.5, space="latent")
    fifth = ff.Stage(space="image", rate=0.2)  # no step is left for the latent stage
    assert rates(1, latent, fifth, goal="map-image") == [(1, pytest.approx(0.02))]


@pytest.mark.parametrize("share", [0.29, 0.57, 0.58])  # which binary fractions fall short of
def test_a_share_of_a_hundred_steps_is_a_whole_number(share):
    counts = [count for count, _ in rates(100, ff.Stage(share=share), ff.Stage())]
    assert counts == [round(100 * share), 100 - round(100 * share)]


def test_unknown_strategy_is_named(affine):
    y = torch.randn(1, *SHAPE, dtype=torch.float64)
    assert_names(
        "strategy",
        lambda: ff.reconstruct(
            y, operators.Identity(), affine, noise.Gaussian(1.0), strategy="luck"
        ),
    )


def test_overshoot_is_told_where_the_prior_knows_its_peak(affine):
    """Against a sharp likelihood the prior's own mode is out of reach; without one it is found."""
    mode = affine.log_prob(affine.mean[None])
    affine.info = {"log_prob_peak": mode.item() - 0.05 * affine.mean.numel() - 1}
    y = affine.mean + 3 * affine.std * torch.tensor([1.0, -1.0]).double().view(2, 1, 1, 1)
    solve = lambda std, **options: ff.reconstruct(
        y,
        operators.Identity(),
        affine,
        noise.Gaussian(std),
        steps=300,
        lr=0.1,
        progress=False,
        **options,
    )
    assert solve(100.0).prior_overshoot.tolist() == [True, True]
    assert solve(0.01).prior_overshoot.tolist() == [False, False]
    assert solve(0.01, objective="mle", start="zeros").prior_overshoot is None
    affine.info = {}
    assert solve(100.0).prior_overshoot is None


@pytest.mark.parametrize("name", list(ff.available_flows()))
def test_shipped_flows_know_a_peak_that_their_own_images_respect(name):
    flow = ff.load_flow(name)
    kinds = {"fashion-28": "fashion-28", "photo-64-small": "photo-64"}
    images = sample_images(kinds.get(name, "mnist-28"))
    if flow.config.support == "bounded":  # black itself is at the end of its logit
        images = flow.dequantise(images, 3)
    log_prob, peak = flow.freeze().log_prob(images), flow.info["log_prob_peak"]
    # The peak may be of other noise, or of other crops than these, which differ most.
    slack = {"mnist-28": 100, "photo-64-small": 1000}.get(name, 0.1)
    assert log_prob.max() <= peak + slack
    assert log_prob.median() > peak - (2 if name == "photo-64-small" else 1) * images[0].numel()
