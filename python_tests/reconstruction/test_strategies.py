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
    assert steps <= law.calls <= steps + 20  # and scores of what each stage found, and of draws


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
        y, operators.Identity(), affine, noise.Gaussian(0.3), objective="map", steps=10, **settings
    )
    assert variables[9].dim() == 2 and variables[10].shape == y.shape
    # The variable handed to the callback has taken one step of lr / 5 from where it was scored.
    assert (variables[10] - alone.x).abs().max() <= 0.05 / 5 * 1.01


class Unmarked:
    """A law that says nothing of its peaks."""

    def __init__(self, law):
        self.law = law

    def log_prob(self, residual):
        return self.law.log_prob(residual)


def mixture(scale: float) -> torch.distributions.Distribution:
    """Most pixels have noise of this scale, some of ten times as much."""
    scales = torch.tensor([scale, 10 * scale])
    parts = torch.distributions.Normal(torch.zeros(2), scales)
    shares = torch.distributions.Categorical(torch.tensor([0.8, 0.2]))
    return torch.distributions.MixtureSameFamily(shares, parts)


@pytest.mark.parametrize("scale", [0.02, 0.1, 1.0])
def test_without_options_noise_that_is_not_concave_is_tempered(scale):
    """By its mark, or by a few values of log p where it has none."""
    flow = realnvp(RealNVPConfig(SHAPE, scales=1, hidden=4, blocks=0))
    y = torch.rand(2, *SHAPE)
    distributions = torch.distributions
    marked = Unmarked(distributions.StudentT(2.0, 0.0, scale))
    marked.multimodal = False
    for law, wanted in [
        (noise.FlowNoise(flow, 0.5), "tempered"),
        (distributions.StudentT(2.0, 0.0, scale), "adam"),  # of one peak
        (distributions.Independent(distributions.Cauchy(torch.zeros(4), scale), 1), "adam"),
        (Unmarked(distributions.StudentT(2.0, 0.0, scale)), "tempered"),
        (mixture(scale), "tempered"),
        (Unmarked(mixture(scale)), "tempered"),
        (marked, "adam"),
        (noise.Gaussian(scale, 0.3), "adam"),
        (noise.Sinusoidal(scale), "adam"),
        (distributions.Laplace(0.0, scale), "adam"),
        (Unmarked(distributions.Normal(0.1, scale)), "adam"),
    ]:
        solve = lambda law, **options: ff.reconstruct(
            y, operators.Scale(0.5), flow, law, steps=2, progress=False, **options
        )
        got = solve(law)
        assert got.config["objective"]["name"] == "map-image" and got.z is None
        assert got.config == solve(law, strategy=wanted, objective=ff.MAP()).config


def test_without_options_a_bounded_prior_is_searched_over_images_in_its_range():
    """Over logits: the loss and the result are those of images, also between stages and starts."""
    flow = realnvp(RealNVPConfig(SHAPE, scales=1, hidden=4, blocks=0, support="bounded"))
    y, law = torch.rand(2, *SHAPE), noise.Gaussian(0.1)
    solve = lambda prior, **options: ff.reconstruct(
        y, operators.Identity(), prior, law, progress=False, **{"steps": 3, **options}
    )
    for prior in (flow, flow.freeze()):
        got = solve(prior)
        assert got.config["objective"]["name"] == "map-image" and got.z is None
        for options in ({}, {"strategy": "latent-first"}, {"start": torch.rand(2, *SHAPE)}):
            for more in ({}, {"strategy": "annealed", "restarts": 2}, {"strategy": "lbfgs"}):
                got = solve(prior, **{"steps": 8, **more, **options})
                assert ((got.x >= 0) & (got.x <= 1)).all()
                loss = -law.log_prob(y - got.x) - flow.log_prob(got.x)
                torch.testing.assert_close(got.loss, loss, atol=1e-2, rtol=1e-4)
    start = 0.1 + 0.8 * torch.rand(2, *SHAPE)
    torch.testing.assert_close(solve(flow, start=start, steps=1, lr=1e-9).x, start)


def test_without_options_digits_are_cleaned_under_a_bounded_prior():
    """The density of decoded images grows without end where their numbers leave [0, 1]."""
    x, prior = sample_images("mnist-28", 2), ff.load_flow("mnist-28")
    y = x + 0.2 * torch.randn_like(x)
    got = ff.reconstruct(y, operators.Identity(), prior, noise.Gaussian(0.2), progress=False)
    assert ff.metrics.psnr(got.x, x).mean() > ff.metrics.psnr(y, x).mean() + 2


def test_without_options_digits_come_off_clothes():
    """Over images and tempered the loss ends far below that over latents, and the images gain."""
    x, digits = sample_images("fashion-28", 3)[1:], sample_images("mnist-28", 3)[1:]
    y, halves = 0.5 * x + 0.5 * digits, operators.Scale(0.5)
    law, prior = noise.FlowNoise(ff.load_flow("digits-noise-28"), 0.5), ff.load_flow("fashion-28")
    solve = lambda **options: ff.reconstruct(
        y, halves, prior, law, steps=60, progress=False, **options
    )
    got, over_latents = solve(), solve(objective="map")
    assert (got.loss < over_latents.loss - 10).all()
    assert ff.metrics.psnr(got.x, x).mean() > ff.metrics.psnr(2 * y, x).mean() + 1


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
    default = ff.MAP(space="latent").lr
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
    kinds = {"fashion": "fashion-28", "photo": "photo-64"}
    images = sample_images(kinds.get(name.split("-")[0], "mnist-28"))
    images = images[:, :, : flow.shape[1], : flow.shape[2]].contiguous()
    if flow.config.support == "bounded":  # black itself is at the end of its logit
        images = flow.dequantise(images, 3)
    log_prob, peak = flow.freeze().log_prob(images), flow.info["log_prob_peak"]
    # The peak may be of other noise, or of other crops than these, which differ most.
    slack = {"mnist-28": 100, "photo-64-small": 2000}.get(name, 0.1)
    assert log_prob.max() <= peak + slack
    below = 4 if "patch" in name else 2 if "photo" in name else 1  # nats a number
    assert log_prob.median() > peak - below * images[0].numel()
