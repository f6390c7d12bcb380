"""What a result says of itself, against closed forms; interrupts at any moment of a solve."""

from __future__ import annotations

import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from toy_flows import SHAPE, SIZE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import Status, noise, operators, strategies
from flowinv_fast._base.errors import ResultWarning
from flowinv_fast.data import sample_images
from flowinv_fast.reconstruction import memory

QUIET = {"progress": False}
_module = sys.modules["flowinv_fast.reconstruction.reconstruct"]


@pytest.fixture
def affine() -> AffineFlow:
    return AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)


@pytest.fixture(scope="module")
def fashion():
    return ff.load_flow("fashion-28")


def told(call) -> tuple[ff.Reconstruction, list[str]]:
    """The result, and the messages of its ResultWarnings."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = call()
    assert all(w.filename == __file__ for w in seen if w.category is ResultWarning)
    return found, [str(w.message) for w in seen if w.category is ResultWarning]


def solve(y, prior, law, operator=None, **options):
    same = operators.Identity()
    return told(lambda: ff.reconstruct(y, operator or same, prior, law, **{**QUIET, **options}))


# --- convergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_gain_of_a_geometric_fall_is_what_comes_next(schedule):
    """A loss e^(-k way): as many steps again bring e^(-k) - e^(-2 k), whatever the schedule."""
    from flowinv_fast.reconstruction.solvers.common import still_falling

    steps, k = 4000, 2 + 3 * torch.rand(3, dtype=torch.float64)
    t = torch.arange(steps, dtype=torch.float64) / steps
    pace = torch.rand(1).item() * (
        0.5 * (1 + torch.cos(math.pi * t)) if schedule == "cosine" else 1
    )
    pace = pace * torch.ones_like(t)
    way = torch.cat([pace.new_zeros(1), pace.cumsum(0)]) / pace.sum()
    losses = 7 * (-k * way[:, None]).exp() - 3
    got = still_falling(losses, pace, float(pace.sum()))
    torch.testing.assert_close(got, 7 * ((-k).exp() - (-2 * k).exp()), rtol=0.02, atol=0)


def test_a_short_solve_is_unsettled_and_a_long_one_is_not(affine):
    """The gain is of the size of what is missing to the closed form; one warning names them."""
    std, y = 0.3, affine.mean + torch.randn(3, *SHAPE).double()
    options = {"objective": "map-image", "lr": 0.1, "start": "zeros", "strategy": "adam"}
    x = (y / std**2 + affine.mean / affine.std**2) / (1 / std**2 + 1 / affine.std**2)
    law = noise.Gaussian(std)
    least = -law.log_prob(y - x) - affine.log_prob(x)
    for steps in (10, 400):
        found, messages = solve(y, affine, law, steps=steps, **options)
        missing = found.loss - least
        about = [m for m in messages if "still falling" in m]
        if steps == 10:
            assert (found.gain > 0.02 * missing).all() and (missing > 1).all()
            assert found.status == [Status.UNSETTLED] * 3 and "images [0, 1, 2]" in about[0]
        else:
            assert (missing < 0.1).all() and (found.gain < 0.1).all()
            assert found.status == [Status.MAX_STEPS] * 3 and not about


def test_shipped_flows_tell_short_solves_from_long_ones(fashion):
    x, law = sample_images("fashion-28", 1), noise.Gaussian(0.2)
    y = ff.measure(x, operators.Identity(), law, torch.Generator().manual_seed(0))
    short, messages = solve(y, fashion, law, objective="map", steps=20, strategy="adam")
    assert short.status == [Status.UNSETTLED]
    assert len(messages) == 1 and "raise steps" in messages[0]
    long, messages = solve(y, fashion, law, objective="map-image", steps=90, strategy="adam")
    assert not messages and long.status == [Status.MAX_STEPS]
    assert 0.1 < (short.loss - long.loss) / short.gain < 10


def test_losses_in_other_units_are_compared_with_themselves(affine):
    y = affine.mean + torch.randn(2, *SHAPE).double()
    options = {"objective": ff.CSGM(0.1), "start": "zeros", "lr": 0.1}
    found, messages = solve(1e-3 * y, affine, None, steps=5, **options)
    assert found.status == [Status.UNSETTLED] * 2 and found.misfit is None
    found, messages = solve(y, affine, None, steps=400, **options)
    assert found.status == [Status.MAX_STEPS] * 2 and not messages


def test_starts_that_disagree(affine):
    """The spread is the gap between the two lowest of all final losses; here nothing moves."""
    y, first = torch.randn(4, *SHAPE).double(), []
    options = {"start": "draw", "steps": 1, "lr": 1e-12, "objective": "map", "strategy": "adam"}
    keep = lambda step, losses, z: first.append(losses)
    found, messages = solve(y, affine, noise.Gaussian(0.3), restarts=5, callback=keep, **options)
    ordered = torch.stack(first).sort(0).values
    torch.testing.assert_close(found.spread, ordered[1] - ordered[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.loss, ordered[0], rtol=1e-6, atol=1e-6)
    parted = [i for i, s in enumerate(found.spread.tolist()) if s > 0.01 * SIZE]
    assert any(f"images {parted}: no two of 5 starts" in m for m in messages)
    assert found.starts.tolist() == [5] * 4
    found, messages = solve(y, affine, noise.Gaussian(0.3), **{**options, "steps": 2})
    assert found.spread is None


class Holed:
    """A Gaussian law whose density is lost where the first residual of an image is positive."""

    def log_prob(self, residual):
        lost = residual.flatten(1)[:, 0] > 0
        return torch.where(lost, math.nan, -residual.square().flatten(1).sum(1))


def test_starts_without_a_finite_loss(affine):
    y, first = torch.zeros(6, *SHAPE).double(), []
    options = {"start": "draw", "steps": 1, "lr": 1e-12, "restarts": 4, "throw": False}
    keep = lambda step, losses, z: first.append(losses)
    found, messages = solve(y, affine, Holed(), callback=keep, objective="map", **options)
    count = torch.stack(first).isfinite().sum(0)
    assert found.starts.tolist() == count.tolist()
    which = [i for i, n in enumerate(count.tolist()) if n < 4]
    assert not which or any(
        f"images {which}: a start whose loss was not finite" in m for m in messages
    )


# --- the residual ---------------------------------------------------------------------------------


def z_of_gaussian(residual, std):
    """-2 log p less its constant is chi-square of m degrees: mean m, variance 2 m."""
    m = residual[0].numel()
    return (m - (residual / std).square().flatten(1).sum(1)) / math.sqrt(2 * m)


class Shared:
    """The same law for all images, which says so by having no ``select``."""

    def __init__(self, std):
        self.law = noise.Gaussian(std)

    def log_prob(self, residual):
        return self.law.log_prob(residual)

    def sample(self, shape, generator=None):
        return self.law.sample(shape, generator)


@pytest.mark.parametrize("kind", ["own", "shared"])
def test_the_misfit_is_the_z_score_of_a_chi_square(affine, kind, monkeypatch):
    from flowinv_fast.reconstruction import diagnosis

    stds = torch.tensor([0.2, 0.5, 1.0]).double().view(3, 1, 1, 1)
    std = stds if kind == "own" else torch.tensor(0.5).double()
    y = affine.mean + torch.tensor([0.1, 1.0, 3.0]).double().view(3, 1, 1, 1) * torch.randn(SHAPE)
    law = noise.Gaussian(stds) if kind == "own" else Shared(0.5)
    monkeypatch.setattr(diagnosis, "_DRAWS", 1200)
    before = torch.get_rng_state()
    found, _ = solve(y, affine, law, steps=3)
    want = z_of_gaussian(found.noise, std)
    torch.testing.assert_close(found.misfit, want, rtol=0.15, atol=0.3)
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.undo()
    few, _ = solve(y, affine, law, steps=3)  # the usual few draws tell the size
    torch.testing.assert_close(few.misfit, want, rtol=2.0, atol=2.0)
    again, _ = solve(y, affine, law, steps=3)
    assert torch.equal(few.misfit, again.misfit)


def test_residuals_that_the_law_finds_unlikely_are_told(affine):
    y = affine.mean + torch.tensor([0.1, 1.0, 0.1]).double().view(3, 1, 1, 1) * torch.randn(SHAPE)
    stay = {"steps": 2, "objective": "map-image", "lr": 1e-12}
    found, messages = solve(y, affine, noise.Gaussian(0.1), start=affine.mean.expand_as(y), **stay)
    assert ((found.misfit < -6) == torch.tensor([False, True, False])).all()
    assert sum("images [1]: the noise model finds the residual" in m for m in messages) == 1


def test_laws_without_draws_have_no_misfit(affine):
    y = torch.randn(2, *SHAPE).double()
    assert solve(y, affine, Holed(), steps=1, throw=False)[0].misfit is None
    # The noise inside the sign is not what y - f(x) is.
    f = operators.SignSensing(9, SHAPE, noise_inside=True)
    assert (
        solve(torch.ones(2, 9).double(), affine, noise.Gaussian(0.1), f, steps=1)[0].misfit is None
    )
    # A flow noise whose flow cannot be drawn says so; a law that breaks does not break the solve.
    assert solve(y, affine, noise.FlowNoise(affine), steps=1)[0].misfit is None
    law = Shared(0.3)
    law.sample = lambda shape, generator=None: torch.zeros(7)
    found, messages = solve(y, affine, law, steps=1)
    assert found.misfit.isnan().all() and any("misfit is not known" in m for m in messages)


# --- the range of the data, and of the prior ------------------------------------------------------

OPERATORS = {
    "same": operators.Identity,
    "mask": lambda: operators.Inpaint((torch.rand(28, 28) < 0.5).float()),
    "coarse": lambda: operators.Downsample(2),
    "sensing": lambda: operators.GaussianSensing(100, (1, 28, 28)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_data_outside_the_range_of_the_prior(fashion, name):
    """0 .. 255 always, -1 .. 1 where pixels are measured one by one; never 0 .. 1 under noise."""
    f, x = OPERATORS[name](), sample_images("fashion-28", 4)
    made = lambda x, std: f(x) + std * torch.randn_like(f(x))
    flags = lambda y, std: solve(y, fashion, noise.Gaussian(std), f, steps=1)[0].outside.tolist()
    for std in (0.02, 0.5):
        assert flags(made(x, std), std) == [False] * 4
    assert flags(made(255 * x, 0.1), 0.1) == [True] * 4
    if name == "same":
        assert flags(made(2 * x - 1, 0.1), 0.1) == [True] * 4
        some = torch.cat([x[:1], 255 * x[1:2], x[2:3], 2 * x[3:] - 1])
        found, messages = solve(some, fashion, noise.Gaussian(0.1), f, steps=1)
        assert found.outside.tolist() == [False, True, False, True]
        assert sum("images [1, 3]: y is outside the range" in m for m in messages) == 1


def test_a_bounded_prior_too():
    prior, x = ff.load_flow("mnist-28"), sample_images("mnist-28", 2)
    found, _ = solve(torch.cat([x, 255 * x, 2 * x - 1]), prior, noise.Gaussian(0.1), steps=1)
    assert found.outside.tolist() == [False, False, True, True, True, True]


def test_solutions_unlike_held_out_images(affine):
    """Where x stays at y its log p is that of the Gaussian prior at y."""
    y = affine.mean + affine.std * torch.tensor([0.0, 1.0, 9.0]).double().view(3, 1, 1, 1)
    density = affine.log_prob(y)
    mean = density[1].item()  # which is the peak as well
    affine.info = {"log_prob_peak": mean, "bits_per_dim": 8 - mean / SIZE / math.log(2)}
    stay = {"steps": 2, "objective": "map-image", "lr": 1e-12, "start": y}
    found, messages = solve(y, affine, noise.Gaussian(1.0), **stay)
    assert found.prior_overshoot.tolist() == [True, False, False]
    assert found.prior_undershoot.tolist() == [False, False, True]
    (about,) = [m for m in messages if "held-out" in m]
    assert "images [0]: the prior finds x far more" in about and "images [2]: the prior" in about
    affine.info = {}
    found, messages = solve(y, affine, noise.Gaussian(1.0), **stay)
    assert found.prior_overshoot is None and found.prior_undershoot is None


def test_warnings_name_the_callers_line(affine):
    y, pair = torch.randn(2, *SHAPE).double(), (affine, affine)
    _, messages = told(lambda: ff.separate(y, pair, steps=2, **QUIET))  # which asserts the file
    assert messages


def test_each_warning_once_for_all_parts_of_a_batch(affine, monkeypatch):
    y = torch.cat([torch.rand(3, *SHAPE), 255 * torch.randn(4, *SHAPE)]).double()
    monkeypatch.setattr(memory, "images_at_once", lambda *_: 2)
    found, messages = solve(y, affine, noise.Gaussian(0.1), steps=2, restarts=2)
    kinds = ["still falling", "finds the residual", "outside the range"]
    assert all(sum(kind in m for m in messages) == 1 for kind in kinds)
    assert "images [3, 4, 5, 6]: y is outside" in " ".join(messages)
    for name in ("gain", "spread", "starts", "misfit", "outside"):
        assert getattr(found, name).shape == (7,), name
    text = repr(found)
    assert all(word in text for word in ("gain", "spread", "misfit", "4 x outside", "UNSETTLED"))


# --- interrupts -----------------------------------------------------------------------------------


class Interrupt:
    """Raises KeyboardInterrupt once, before the n-th line of this wing that runs from the first
    part on, below the loop over the parts."""

    folder = str(Path(_module.__file__).parent)

    def __init__(self, n: int | None = None):
        self.n, self.lines, self.late, self.begun = n, 0, 0, False

    def callback(self, step, losses, variable):
        self.late += self.n is not None and self.lines >= self.n

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(self.folder):
            return None
        self.begun = self.begun or frame.f_code.co_name == "solve"
        if not self.begun or frame.f_code.co_name == "in_parts":
            return self._trace
        if event == "line":
            self.lines += 1
            if self.lines == self.n:
                raise KeyboardInterrupt
        return self._trace

    def during(self, function):
        def traced(*arguments):
            before = sys.gettrace()
            sys.settrace(self._trace)
            try:
                return function(*arguments)
            finally:
                sys.settrace(before)

        return traced


STAGES = {
    "adam": strategies.adam(),
    "lbfgs": strategies.lbfgs(0.5),
    "latent-first": strategies.latent_first(),
    "annealed": strategies.annealed(),
}


@pytest.mark.parametrize("strategy", STAGES)
def test_an_interrupt_at_any_moment_is_a_status(affine, strategy, monkeypatch):
    """Two parts of two starts each, interrupted at random lines: all images come back, no step is
    taken afterwards, and what is told of x is true."""
    y, law, real = torch.randn(3, *SHAPE).double(), noise.Gaussian(0.4), _module.in_parts
    monkeypatch.setattr(memory, "images_at_once", lambda *_: 2)
    options = {"objective": "map-image", "steps": 4, "restarts": 2, "strategy": STAGES[strategy]}

    def run(interrupt):
        monkeypatch.setattr(_module, "in_parts", interrupt.during(real))
        return solve(y, affine, law, callback=interrupt.callback, **options)[0]

    whole = Interrupt()
    full = run(whole)
    for n in torch.randint(1, whole.lines + 1, (15,)).tolist():
        interrupt = Interrupt(n)
        found = run(interrupt)
        assert interrupt.late == 0 and torch.is_grad_enabled(), n
        assert Status.INTERRUPTED in found.status, n
        assert len(found.status) == 3 and found.x.shape == (3, *SHAPE)
        loss = -law.log_prob(y - found.x) - affine.log_prob(found.x)
        torch.testing.assert_close(found.loss, loss)
        guess = -law.log_prob(torch.zeros_like(y)) - affine.log_prob(y.clamp(0, 1))
        assert torch.isfinite(found.loss).all(), guess
        for i in range(3):
            if found.status[i] is not Status.INTERRUPTED:
                assert torch.equal(found.x[i], full.x[i]), n


def test_an_interrupt_as_a_no_grad_ends_leaves_the_callers_gradient_mode(affine):
    """It can fall between the last line within and the line that gives the mode back."""

    def stop(step, losses, variable):
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    y = torch.randn(2, *SHAPE).double()
    for mode in (True, False):
        with torch.set_grad_enabled(mode):
            found, _ = solve(y, affine, noise.Gaussian(0.4), steps=4, callback=stop)
            assert torch.is_grad_enabled() is mode and Status.INTERRUPTED in found.status


def test_the_rest_of_an_interrupted_batch_says_so(affine, monkeypatch):
    y = torch.randn(5, *SHAPE).double()
    monkeypatch.setattr(memory, "images_at_once", lambda *_: 2)
    steps = []

    def stop(step, losses, variable):
        steps.append(step)
        if len(steps) == 12:  # in the second part
            raise KeyboardInterrupt

    found, _ = solve(y, affine, noise.Gaussian(0.4), steps=8, callback=stop)
    ends = found.status
    assert ends[2:] == [Status.INTERRUPTED] * 3 and Status.INTERRUPTED not in ends[:2]
    assert len(steps) == 12 and found.steps.tolist() == [8, 8, 4, 4, 0]
    assert found.misfit[:2].isfinite().all() and found.misfit[2:].isnan().all()
    assert found.gain[4].isnan() and not found.outside[2:].any()


def test_an_interrupt_while_all_have_converged_is_kept(affine):
    """Nothing may swallow it, whatever the images' own ends."""

    def stop(step, losses, variable):
        if step == 3:
            raise KeyboardInterrupt

    y = affine.mean.expand(2, *SHAPE).clone()
    found, _ = solve(
        y,
        affine,
        noise.Gaussian(0.4),
        start="zeros",
        steps=30,
        callback=stop,
        strategy=strategies.adam("constant", tol=1.0, patience=3),
    )
    assert Status.INTERRUPTED in found.status


def test_a_start_that_no_step_betters_is_told(affine):
    """A step that is far too long: the result is the start, and the loss at the end far above."""
    y, law = torch.randn(3, *SHAPE).double(), noise.Gaussian(1e-3)
    told_of = lambda **options: [
        m for m in solve(y, affine, law, progress=False, **options)[1] if "no step was better" in m
    ]
    (message,) = told_of(steps=4, lr=30.0, start=y)
    assert "images [0, 1, 2]" in message and "smaller lr" in message
    assert not told_of(steps=60, lr=1e-4, start=0.9 * y)
    there = solve(y, affine, law, steps=300, lr=1e-3)[0].x
    assert not told_of(steps=3, lr=1e-9, start=there)
