"""Noise by signal: its density, draws and levels, and laws with log_likelihood alone everywhere."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import assert_derivatives, assert_names, strided, tolerance
from torch.distributions import Laplace, Normal, StudentT
from toy_flows import SHAPE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import ResultWarning, noise, operators
from flowinv_fast.noise.level import LEAST, level, thirds
from flowinv_fast.protocols import DrawnAt, NoiseModel, OnePass, provides, scores

SAME = operators.Identity()
NUMBERS = torch.tensor([0.1, 0.7, 3.0], dtype=torch.float64)
INNER = {
    "gaussian": (lambda: noise.Gaussian(0.7, 0.1), Normal(NUMBERS[0], NUMBERS[1])),
    "laplace": (lambda: Laplace(NUMBERS[0], NUMBERS[1]), Laplace(NUMBERS[0], NUMBERS[1])),
    "student": (lambda: noise.FromDistribution(StudentT(3.0)), StudentT(NUMBERS[2])),
}


def random():
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def knots(count):
    """Ascending signals and positive levels, float64."""
    signal = torch.randn(count, dtype=torch.float64).sort().values
    signal = signal + 0.1 * torch.arange(count, dtype=torch.float64)
    return signal, 0.2 + torch.rand(count, dtype=torch.float64)


def sigma(fx, signal, std):
    """Levels as numpy interpolates them."""
    levels = np.interp(fx.detach().double().numpy(), signal.numpy(), std.numpy())
    return torch.from_numpy(np.asarray(levels))


# --- the law --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 1, 5, 7), (2, 9), (4,), (0, 2, 3), (3, 0)])
def test_log_likelihood_is_that_of_a_scaled_law(inner, count, dtype, shape):
    make, reference = INNER[inner]
    signal, std = knots(count)
    law = noise.SignalDependent(make(), signal, std)
    fx = 1.5 * torch.randn(shape, dtype=dtype)
    y = fx + torch.randn(shape, dtype=dtype)
    levels = sigma(fx, signal, std)
    residual = y.double() - fx.double()
    want = reference.log_prob(residual / levels) - levels.log()
    want = want.flatten(1).sum(1) if want.dim() > 1 else want
    close = tolerance(dtype, max(1, fx[:1].numel()) * 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for a, b in ((y, fx), (strided(y), strided(fx))):
            got = law.log_likelihood(a, b)
            assert got.dtype == dtype and got.shape == (shape[0],)
            torch.testing.assert_close(got.double(), want, **close)
            torch.testing.assert_close(law.std_of(b).double(), levels, **close)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_gradients_reach_y_and_the_signal(count):
    signal, std = knots(count)
    law = noise.SignalDependent(StudentT(4.0), signal, std)
    y, fx = (torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True) for _ in "ab")
    assert_derivatives(law.log_likelihood, (y, fx))
    assert_derivatives(law.log_likelihood, (y, fx), second=True)


def test_it_is_a_density_of_y():
    signal, std = knots(4)
    y = torch.linspace(-30, 30, 200_001, dtype=torch.float64)[:, None]
    for law in (noise.Gaussian(1.0), Laplace(0.0, 1.0)):
        law = noise.SignalDependent(law, signal, std)
        for fx in (-5.0, 0.3, 9.0):
            density = law.log_likelihood(y, torch.full_like(y, fx)).exp()
            assert abs(torch.trapezoid(density, y[:, 0]) - 1) < 1e-6


def test_draws_have_the_levels():
    signal, std = knots(4)
    law = noise.SignalDependent(noise.Gaussian(1.0, 0.5), signal, std)
    fx = torch.linspace(-3, 3, 7).expand(20_000, 1, 7)
    first = law.draw(fx, torch.Generator().manual_seed(3))
    assert torch.equal(first, law.draw(fx, torch.Generator().manual_seed(3)))
    assert first.shape == fx.shape and first.dtype == torch.float32
    levels = sigma(fx[0, 0], signal, std).float()
    torch.testing.assert_close(first.std(0)[0], levels, rtol=0.03, atol=0)  # 5 standard errors
    torch.testing.assert_close(first.mean(0)[0], 0.5 * levels, rtol=0, atol=0.05)
    assert law.draw(fx.double()[:0]).shape == (0, 1, 7)


def test_parameters_are_copied_and_fixed():
    signal, std = [0.0, 1.0], torch.tensor([0.1, 0.2])
    law = noise.SignalDependent(noise.Gaussian(1.0), signal, std)
    y, fx = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    before = law.log_likelihood(y, fx)
    std[0] = signal[0] = 7.0
    law.std[0] = law.signal[0] = 7.0
    for name in ("law", "signal", "std"):
        with pytest.raises(AttributeError, match="fixed"):
            setattr(law, name, 1.0)
    for other in (law, copy.deepcopy(law), pickle.loads(pickle.dumps(law))):
        assert torch.equal(other.log_likelihood(y, fx), before)
    one = noise.SignalDependent(noise.Gaussian(1.0), 0.0, 0.3)
    want = noise.Gaussian(0.3).log_likelihood(y, fx)
    torch.testing.assert_close(one.log_likelihood(y, fx), want)


def test_rows_of_the_law_follow_their_images():
    stds = torch.rand(4, 1, 1) + 0.5
    law = noise.SignalDependent(noise.Gaussian(stds), *knots(3))
    y, fx = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    whole = law.log_likelihood(y, fx)
    part = law.select(slice(1, 3), (4, 2, 3))
    torch.testing.assert_close(part.log_likelihood(y[1:3], fx[1:3]), whole[1:3])
    assert part.draw(fx[1:3]).shape == (2, 2, 3)
    shared = noise.SignalDependent(Unflagged(), *knots(3))
    assert shared.select(slice(1, 3), (4, 2, 3)).law is shared.law


class Unflagged:
    def log_prob(self, residual):
        return -residual.abs().flatten(1).sum(1)


class Froze(Unflagged):
    multimodal, saved_bytes, work_bytes = True, 30, 4

    def freeze(self, *, precision):
        return Frozen(precision)


class Frozen(Unflagged):
    def __init__(self, precision):
        self.precision = precision


def test_what_the_law_can_do_is_passed_on():
    law = noise.SignalDependent(Froze(), *knots(2))
    frozen = law.freeze(precision="tf32")
    assert frozen.law.precision == "tf32" and isinstance(law.law, Froze)
    assert law.multimodal and (law.saved_bytes, law.work_bytes) == (30, 4)
    plain = noise.SignalDependent(Unflagged(), *knots(2))
    assert plain.freeze() is plain and plain.saved_bytes == 0
    assert not hasattr(plain, "multimodal")
    assert provides(plain, OnePass) and scores(plain) and not provides(plain, NoiseModel)
    assert provides(plain, DrawnAt)
    assert_names("law", lambda: plain.draw(torch.zeros(1, 2)))


@pytest.mark.parametrize("inner,want", [("gaussian", "adam"), ("mixture", "tempered")])
def test_tempering_is_by_the_unit_law(inner, want):
    """Its levels make no hollows, so the default is that of the law without them."""
    spread = Normal(torch.zeros(2), torch.tensor([0.1, 1.0]))
    mixed = torch.distributions.Categorical(torch.tensor([0.8, 0.2]))
    mixture = torch.distributions.MixtureSameFamily(mixed, spread)
    law = {"gaussian": noise.Gaussian(1.0), "mixture": mixture}[inner]
    law = noise.SignalDependent(law, [-1.0, 1.0], [0.05, 1.0])
    flow, y = AffineFlow(torch.zeros(SHAPE), torch.ones(SHAPE)), torch.randn(2, *SHAPE)
    found, named = (solve(y, flow, law, **kw) for kw in ({}, {"strategy": want}))
    assert found.config["strategy"] == named.config["strategy"]


GOOD = {"law": noise.Gaussian(1.0), "signal": [0.0, 1.0], "std": [0.1, 0.2]}
BAD = {
    "law": ("law", {"law": 3}),
    "law-class": ("law", {"law": noise.Gaussian}),
    "law-by-signal": ("law", {"law": noise.SignalDependent(**GOOD)}),
    "signal-equal": ("signal", {"signal": [1.0, 1.0]}),
    "signal-falls": ("signal", {"signal": [1.0, 0.0]}),
    "signal-nan": ("signal", {"signal": [0.0, math.nan]}),
    "signal-shape": ("signal", {"signal": [[0.0, 1.0]]}),
    "std-zero": ("std", {"std": [0.1, 0.0]}),
    "std-length": ("std", {"std": [0.1, 0.2, 0.3]}),
    "std-text": ("std", {"std": "0.1"}),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    argument, change = BAD[case]
    assert_names(argument, lambda: noise.SignalDependent(**{**GOOD, **change}))


def test_bad_calls_are_named():
    law, x = noise.SignalDependent(**GOOD), torch.zeros(2, 3)
    assert_names("y", lambda: law.log_likelihood(x[:1], x))
    assert_names("y", lambda: law.log_likelihood(x.double(), x))
    assert_names("fx", lambda: law.log_likelihood(x, x.int()))
    assert_names("fx", lambda: law.std_of([0.0]))
    assert_names("fx", lambda: law.log_likelihood(x[0, 0], x[0, 0]))
    close = noise.SignalDependent(noise.Gaussian(1.0), [1.0, 1.0 + 1e-12], [0.1, 0.2])
    assert_names("signal", lambda: close.std_of(x))
    assert torch.isfinite(close.std_of(x.double())).all()
    tiny = noise.SignalDependent(noise.Gaussian(1.0), [0.0, 1.0], [1e-60, 1.0])
    assert_names("std", lambda: tiny.std_of(x))


# --- laws with log_likelihood alone ---------------------------------------------------------------


def solve(y, flow, law, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResultWarning)
        options = {"steps": 3, "progress": False, **options}
        return ff.reconstruct(y, SAME, flow, law, **options)


class Given:
    """N(f(x), (a + b f(x)^2)^2), by its likelihood alone."""

    def level(self, fx):
        return 0.1 + 0.2 * fx.square()

    def log_likelihood(self, y, fx):
        return Normal(fx, self.level(fx)).log_prob(y).flatten(1).sum(1)


class Drawn(Given):
    def draw(self, fx, generator=None):
        return self.level(fx) * torch.randn(fx.shape, generator=generator, dtype=fx.dtype)


@pytest.fixture
def flow():
    return AffineFlow(torch.rand(SHAPE, dtype=torch.float64), torch.ones(SHAPE).double())


def test_reconstruct_takes_a_likelihood_alone(flow):
    y = torch.rand(3, *SHAPE, dtype=torch.float64)
    for law in (Given(), Drawn(), noise.SignalDependent(noise.Gaussian(1.0), [0, 1], [0.1, 0.3])):
        found = solve(y, flow, law, steps=400, lr=0.02, strategy="adam")
        x = found.x.clone().requires_grad_()
        loss = -law.log_likelihood(y, x) - flow.log_prob(x)
        torch.testing.assert_close(found.loss, loss.detach())
        if isinstance(law, Given):  # smooth: the gradient is zero at the end
            (grad,) = torch.autograd.grad(loss.sum(), x)
            assert grad.abs().max() < 0.05
        assert (found.misfit is None) == (type(law) is Given)


def test_the_misfit_is_among_draws_at_the_solution(flow, monkeypatch):
    from flowinv_fast.reconstruction import diagnosis

    monkeypatch.setattr(diagnosis, "_DRAWS", 2000)
    law, size = Drawn(), math.prod(SHAPE)
    x = torch.rand(3, *SHAPE, dtype=torch.float64)
    far = torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1, 1) * law.level(x)
    y = x + far * torch.randn(x.shape, dtype=torch.float64)
    found = solve(y, flow, law, start=x, lr=1e-12, strategy="adam", objective="map-image")
    unit = ((y - x) / law.level(x)).square().flatten(1).sum(1)
    want = (size - unit) / math.sqrt(2 * size)
    torch.testing.assert_close(found.misfit, want, rtol=0.15, atol=0.3)

    class Wrong(Drawn):
        def draw(self, fx, generator=None):
            return torch.zeros(2)

    with pytest.warns(ResultWarning, match="misfit is not known"):
        found = ff.reconstruct(y, SAME, flow, Wrong(), steps=1, progress=False)
    assert found.misfit.isnan().all()


def test_measure_draws_at_the_signal():
    x = torch.linspace(-1, 1, 5).expand(20_000, 1, 1, 5).double()
    y = ff.measure(x, operators.Scale(2.0), Drawn(), random())
    levels = Drawn().level(2 * x[0, 0, 0])
    torch.testing.assert_close((y - 2 * x).std(0)[0, 0], levels, rtol=0.03, atol=0)
    law = noise.SignalDependent(Laplace(0.0, 1.0), [-1.0, 1.0], [0.1, 0.5])
    y = ff.measure(x[:3], SAME, law, torch.Generator().manual_seed(1))
    want = x[:3] + law.draw(x[:3], torch.Generator().manual_seed(1))
    assert torch.equal(y, want)

    class Writes(Drawn):
        def draw(self, fx, generator=None):
            return fx.mul_(0)

    assert torch.equal(ff.measure(x[:2], SAME, Writes()), x[:2])
    inside = operators.SignSensing(6, (1, 1, 5), noise_inside=True)
    assert ff.measure(x[:2].float(), inside, law).shape == (2, 6)


@pytest.mark.parametrize("weights", [(1.0, 0.5), (-1.0, -2.0)])
def test_separate_takes_a_second_source_that_follows_the_first(flow, weights):
    first, second = weights
    for source in (Given(), noise.SignalDependent(noise.Gaussian(1.0), [0, 1], [0.1, 0.3])):
        x1 = torch.rand(2, *SHAPE, dtype=torch.float64)
        y = first * x1 + second * 0.2 * torch.randn_like(x1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResultWarning)
            pair = ff.separate(y, (flow, source), weights, steps=10, progress=False)
        torch.testing.assert_close(first * pair.x1 + second * pair.x2, y)
        want = source.log_likelihood(pair.x1 + pair.x2, pair.x1) - 16 * math.log(abs(second))
        torch.testing.assert_close(pair.found.log_noise, want)
        assert (pair.found.misfit is None) == isinstance(source, Given)


def test_posterior_draws_take_a_likelihood_alone(flow):
    y = torch.rand(2, *SHAPE, dtype=torch.float64)
    drawn = ff.sample_posterior(y, SAME, flow, Given(), 4, chains=2, warm_up=4)
    assert drawn.x.shape == (8, 2, *SHAPE)


def test_what_has_neither_is_told_of_both(flow):
    y = torch.rand(2, *SHAPE, dtype=torch.float64)
    for call in (
        lambda: solve(y, flow, object()),
        lambda: ff.sample_posterior(y, SAME, flow, object(), 4),
    ):
        told = assert_names("noise", call)
        assert "log_prob(residual) or log_likelihood(y, fx)" in told
    told = assert_names("noise", lambda: ff.measure(y, SAME, Given()))
    assert "sample(shape, generator) or draw(fx, generator)" in told
    bent = Given()
    bent.log_likelihood = lambda y, fx: (y - fx).sum()
    assert "log_likelihood(y, fx) of shape" in assert_names("noise", lambda: solve(y, flow, bent))
    short = Drawn()
    short.draw = lambda fx, generator=None: fx[:1]
    assert "draw(fx, generator) of shape" in assert_names(
        "noise", lambda: ff.measure(y, SAME, short)
    )


# --- fitting --------------------------------------------------------------------------------------


def camera(clean, photons=50.0, readout=0.02):
    """y - f(x) of counted photons: variance readout^2 + f(x) / photons."""
    return (readout**2 + clean / photons).sqrt() * torch.randn(clean.shape)


def of_camera(signal, photons=50.0, readout=0.02):
    return (readout**2 + signal / photons).sqrt()


def test_the_level_of_a_camera_is_recovered():
    """7 % of the level within the range of the knots: a bin has 1,200 numbers, which is 2 %."""
    clean = torch.rand(60, 1, 18, 22)
    found = noise.fit(camera(clean), clean)
    assert found.name.endswith(", by signal")
    best = found.models["gaussian, by signal"]
    assert len(best.signal) == 16 and (best.signal.diff() > 0).all()
    at = torch.linspace(0.05, 0.95, 50, dtype=torch.float64)
    wanted = of_camera(at)
    level_of = best.std_of(at) * best.law.std
    assert ((level_of / wanted - 1).abs() < 0.2).all()
    assert ((level_of / wanted).log().square().mean().sqrt()) < 0.07
    table = {score.name: score for score in found.table}
    assert set(table) == set(found.models) and len(table) == 12
    assert table["gaussian, by signal"].parameters == 2 + 16
    # Held-out scores are comparable: on fresh recordings both laws have those nats a number.
    fresh = torch.rand(400, 1, 18, 22)
    draw = camera(fresh)
    nats = best.log_likelihood(fresh + draw, fresh) / 396
    true = Normal(0.0, of_camera(fresh)).log_prob(draw).flatten(1).mean(1)
    assert -0.01 < (true - nats).mean() < 0.02
    assert abs(table["gaussian, by signal"].nats - nats.mean()) < 0.1
    plain = found.models["gaussian"].log_prob(draw) / 396
    assert nats.mean() > plain.mean() + 0.1
    dense = torch.linspace(0, 1, 400)
    law = noise.SignalDependent(noise.Gaussian(1.0), dense, of_camera(dense))
    for known, some in ((law, 400), (best, 40)):  # a fitted law is off by a part of a per cent
        assert all(abs(row.z) < 8 for row in noise.compare(known, draw[:some], fresh[:some]).rows)
    missed = {row.name for row in noise.compare(found.models["gaussian"], draw, fresh).missed}
    assert {"deviation, dark", "deviation, bright"} <= missed


def test_one_scene_broadcasts_and_its_fixed_pattern_is_no_level():
    scene = torch.linspace(0, 1, 480).view(1, 1, 20, 24).double()
    pattern = 0.3 * torch.randn(1, 1, 20, 24, dtype=torch.float64)
    x = pattern + camera(scene.expand(60, -1, -1, -1))
    names = ["gaussian", "pixel-gaussian"]
    found = noise.fit(x, scene, families=names)
    assert found.name in ("pixel-gaussian, by signal", "pixel-gaussian")
    law = found.models["pixel-gaussian, by signal"]
    wanted = of_camera(law.signal)
    assert ((law.std / wanted - 1).abs() < 0.1).all()
    other = noise.fit(x, scene.expand(60, -1, -1, -1).numpy(), families=names)
    assert other.table == found.table


def test_where_the_noise_ignores_the_signal_so_does_the_law():
    clean = torch.rand(50, 1, 12, 14)
    found = noise.fit(noise.Gaussian(0.1).sample(tuple(clean.shape), random()), clean)
    table = {score.name: score for score in found.table}
    assert not found.name.endswith("by signal")
    assert abs(table["gaussian, by signal"].nats - table["gaussian"].nats) < 0.01


def test_without_clean_all_is_as_before():
    x = camera(torch.rand(30, 1, 8, 9))
    clean = torch.rand(30, 1, 8, 9)
    before, now = noise.fit(x), noise.fit(x, clean)
    assert len(before.table) == 6 and "by signal" not in repr(before)
    table = {score.name: score for score in now.table}
    assert all(table[score.name] == score for score in before.table)
    assert torch.equal(before.held_out, now.held_out)
    head = repr(before).splitlines()[0]
    assert head == f"{'family':<20} {'held-out nats a number':>24} {'bits/dim':>9} {'fitted':>9}"


def test_a_law_by_signal_is_ranked_as_the_flow():
    clean = torch.rand(40, 1, 10, 10)
    x = camera(clean)
    law = noise.SignalDependent(noise.Gaussian(1.0), (s := torch.linspace(0, 1, 40)), of_camera(s))
    found = noise.fit(x, clean, families=["gaussian"], flow=law)
    table = {score.name: score for score in found.table}
    want = law.log_likelihood(clean + x, clean)[found.held_out] / 100
    assert abs(table["flow"].nats - want.mean()) < 1e-5
    assert_names("flow", lambda: noise.fit(x, families=["gaussian"], flow=law))


def test_bins_hold_ties_together_and_enough_numbers():
    clean = torch.cat([torch.zeros(3000), torch.ones(2000), 1 + torch.rand(500)]).double()
    x = torch.where(clean == 0, 0.1, torch.where(clean == 1, 0.2, 0.4)) * torch.randn(5500)
    signal, std = level(clean, x + 5 * clean)  # an offset of a bin is not its level
    assert signal[:2].tolist() == [0.0, 1.0] and len(signal) <= 4
    assert abs(std[0] / 0.1 - 1) < 0.07 and abs(std[1] / 0.2 - 1) < 0.08
    signal, std = level(torch.rand(5 * LEAST - 1).double(), torch.randn(5 * LEAST - 1).double())
    assert len(signal) == 4
    signal, std = level(torch.rand(4000).double(), torch.zeros(4000).double())
    assert (std > 0).all()
    where = thirds(torch.tensor([0.0, 0.0, 1.0, 1.0]))
    assert where["dark"].tolist() == [True, True, False, False]
    assert where["bright"].tolist() == [False, False, True, True] and not where["middle"].any()


def test_too_few_numbers_for_a_level_are_told():
    x, clean = torch.randn(10, 1, 4, 4), torch.rand(10, 1, 4, 4)
    with pytest.warns(ResultWarning, match="no law by signal") as caught:
        found = noise.fit(x, clean, families=["gaussian"])
    assert {w.filename for w in caught} == {__file__} and list(found.models) == ["gaussian"]


RECORDED = torch.randn(10, 1, 4, 4)
BY_SIGNAL = noise.SignalDependent(**GOOD)
CLEAN = {
    "shape": lambda: noise.fit(RECORDED, torch.rand(9, 1, 4, 4)),
    "wider": lambda: noise.fit(RECORDED[:, :, :1], torch.rand(10, 1, 4, 4)),
    "nan": lambda: noise.fit(RECORDED, torch.full((1, 1, 4, 4), math.nan)),
    "text": lambda: noise.fit(RECORDED, "scene.npy"),
    "equal": lambda: noise.fit(RECORDED, torch.full((1, 1, 4, 4), 0.5)),
    "number": lambda: noise.fit(RECORDED, 0.5),
    "none": lambda: noise.compare(BY_SIGNAL, RECORDED),
    "compare-shape": lambda: noise.compare(BY_SIGNAL, RECORDED, torch.rand(3)),
}


@pytest.mark.parametrize("case", CLEAN)
def test_a_bad_clean_signal_is_named(case):
    assert_names("clean", CLEAN[case])


def test_what_can_be_compared():
    clean = torch.rand(20, 1, 12, 12)
    assert_names("model", lambda: noise.compare(Given(), RECORDED, torch.rand(10, 1, 4, 4)))
    drawn = Drawn().draw(clean)
    assert all(abs(row.z) < 6 for row in noise.compare(Drawn(), drawn, clean).rows)
    dark = clean.clone()
    dark[1:] = 0.2 * dark[1:]  # one recording alone has bright numbers: no statistic of them
    names = [row.name for row in noise.compare(noise.Gaussian(0.1), drawn, dark).rows]
    assert "deviation, dark" in names and len(names) == len(set(names))
    plain = noise.compare(noise.Gaussian(0.1), drawn)
    assert not [row.name for row in plain.rows if "deviation, " in row.name]
