"""reconstruct on frozen flows: precision, polish, parts of a batch, memory that runs out."""

from __future__ import annotations

import math

import pytest
import torch
from flows.test_frozen import needs_bf16, random_flow
from torch import nn

import flowinv_fast as ff
from flowinv_fast import Status, noise, operators, strategies
from flowinv_fast._base import backend
from flowinv_fast.data import sample_images
from flowinv_fast.experiments.demo import demos
from flowinv_fast.experiments.methods import map_options
from flowinv_fast.reconstruction import memory as _memory
from flowinv_fast.reconstruction import problem as _problem

SHAPE = (1, 8, 8)
QUIET = {"progress": False}


@pytest.fixture
def flow():
    return random_flow(SHAPE, 0.3, hidden=16, scales=2, blocks=1)


def measurements(batch: int = 5) -> torch.Tensor:
    return torch.randn(batch, *SHAPE)


def test_default_precision_solves_as_well_as_the_float32_reference(monkeypatch):
    """PSNR within 0.05 dB and losses within 1e-3 of the solve on the unfrozen flow."""
    prior = ff.load_flow("fashion-28")
    x = sample_images("fashion-28", 4)
    law = noise.Gaussian(0.2)
    y = ff.measure(x, operators.Identity(), law)
    frozen = ff.reconstruct(y, operators.Identity(), prior, law, steps=60, **QUIET)
    monkeypatch.setattr(_problem, "freeze", lambda part, precision, y: part)
    plain = ff.reconstruct(y, operators.Identity(), prior, law, steps=60, **QUIET)
    torch.testing.assert_close(frozen.loss, plain.loss, rtol=1e-3, atol=0.2)
    gain = ff.metrics.psnr(frozen.x, x) - ff.metrics.psnr(plain.x, x)
    assert abs(float(gain.mean())) < 0.05


@pytest.mark.parametrize("name", ["sinusoidal", "cs"])
def test_demo_tasks_are_solved_as_well_as_by_plain_torch(name, monkeypatch):
    """Mean PSNR within 0.05 dB. Single images part by up to 0.1 dB: rounding decides between near
    optima; the mean of four was within 0.01 dB in every run."""
    (demo,) = (demo for demo in demos(0) if demo.name == name)
    setting, dataset = demo.setting, demo.setting.dataset
    prior, x = ff.load_flow(dataset.flow), sample_images(dataset.images, 4)
    y = ff.measure(x, setting.operator, setting.noise_source, torch.Generator().manual_seed(0))
    options = {**map_options(setting), **QUIET, "steps": 60}
    solve = lambda: ff.reconstruct(y, setting.operator, prior, setting.noise, **options)
    frozen = solve()
    monkeypatch.setattr(_problem, "freeze", lambda part, precision, y: part)
    monkeypatch.setattr(backend, "choice", "torch")
    gain = ff.metrics.psnr(frozen.x, x) - ff.metrics.psnr(solve().x, x)
    assert abs(float(gain.mean())) < 0.05


@needs_bf16
def test_a_fast_precision_ends_in_float32(flow):
    y, law = measurements(), noise.Gaussian(0.3)
    solve = lambda **options: ff.reconstruct(
        y, operators.Identity(), flow, law, steps=100, **QUIET, **options
    )
    exact, fast, raw = (
        solve(),
        solve(precision="bf16"),
        solve(precision="bf16", strategy=strategies.adam(polish=0.0)),
    )
    want = -law.log_prob(y - fast.x) - flow.log_prob(fast.x)
    torch.testing.assert_close(fast.loss, want, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(fast.loss, exact.loss, rtol=0.02, atol=1.0)
    assert (raw.loss - want).abs().max() > 1e-3  # what polishing is for


@needs_bf16
@pytest.mark.parametrize("steps", [1, 4, 9])
@pytest.mark.parametrize("objective", ["map", "map-image"])
def test_few_steps_of_a_fast_precision_end_in_float32_too(flow, steps, objective):
    """A tenth of few steps is one of them."""
    y, law = measurements(), noise.Gaussian(0.3)
    found = ff.reconstruct(
        y,
        operators.Identity(),
        flow,
        law,
        objective=objective,
        steps=steps,
        precision="bf16",
        **QUIET,
    )
    want = -law.log_prob(y - found.x) - flow.log_prob(found.x)
    torch.testing.assert_close(found.loss, want, rtol=1e-5, atol=1e-3)


def test_a_frozen_prior_is_taken_as_it_is(flow):
    y = measurements()
    want = ff.reconstruct(y, operators.Identity(), flow, noise.Gaussian(0.3), steps=20, **QUIET)
    got = ff.reconstruct(
        y, operators.Identity(), flow.freeze(), noise.Gaussian(0.3), steps=20, **QUIET
    )
    assert torch.equal(got.x, want.x)


@pytest.mark.parametrize("goal", ["map", "map-image"])
def test_plain_torch_back_end_solves_alike(flow, goal, monkeypatch):
    y = measurements()
    solve = lambda: ff.reconstruct(
        y, operators.Identity(), flow, noise.Gaussian(0.3), objective=goal, steps=8, **QUIET
    )
    want = solve()
    monkeypatch.setattr(backend, "choice", "torch")
    torch.testing.assert_close(solve().loss, want.loss, rtol=1e-3, atol=0.1)


def test_flow_noise_runs_frozen_and_alike(flow, monkeypatch):
    """FlowNoise and PlacedFlowNoise: the frozen noise model gives the plain one's losses."""
    law = random_flow((1, 4, 4), 0.3, hidden=8, scales=1, blocks=1)
    places = torch.tensor([[0, 0, 0], [0, 4, 4]])
    y = measurements()
    for model in (noise.FlowNoise(flow, 0.5), noise.PlacedFlowNoise(law, places, 0.3)):
        frozen = _problem.freeze(model, "fp32", y)
        assert isinstance(frozen.flow, ff.FrozenFlow) and isinstance(model.flow, ff.Flow)
        torch.testing.assert_close(frozen.log_prob(y), model.log_prob(y), rtol=1e-4, atol=1e-3)


class Learned(nn.Module):
    """A user's noise model that holds a Flow."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def log_prob(self, residual):
        return self.flow.log_prob(2 * residual)


def test_a_users_noise_module_stays_as_it_is(flow):
    law = Learned(random_flow(SHAPE, 0.3, hidden=8, scales=1, blocks=1))
    assert _problem.freeze(law, "fp32", measurements()) is law
    got = ff.reconstruct(measurements(), operators.Identity(), flow, law, steps=5, **QUIET)
    want = -law.log_prob(got.noise) - flow.log_prob(got.x)
    torch.testing.assert_close(got.loss, want, rtol=1e-4, atol=1e-3)


class Masked:
    """An operator with a mask per image."""

    def __init__(self, masks: torch.Tensor):
        self.masks = masks

    def __call__(self, x):
        return x * self.masks

    def select(self, part, shape):
        assert len(self.masks) == shape[0]
        return Masked(self.masks[part])


LAWS = {
    "gaussian": lambda: noise.Gaussian(0.2 + torch.rand(5, 1, 1, 1), torch.randn(8, 8)),
    "sinusoidal": lambda: noise.Sinusoidal(0.1 + torch.rand(5)),
    "placed": lambda: noise.PlacedFlowNoise(
        random_flow((1, 4, 4), 0.3, hidden=8, scales=1, blocks=1),
        torch.tensor([[[0, i, i]] for i in range(5)]),
        0.3,
    ),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("start", ["draw", "tensor"])
def test_parts_equal_the_whole(flow, law, start, monkeypatch):
    """Parameters per image, starts, draws and smoothing noise all follow their image."""
    y, model = measurements(), LAWS[law]()
    operator = Masked(torch.randint(2, (5, *SHAPE)).float())
    beta = torch.rand(5, generator=torch.Generator().manual_seed(1))
    plan = strategies.annealed() if law == "placed" else strategies.smoothed(0.1)
    solve = lambda: ff.reconstruct(
        y,
        operator,
        flow,
        model,
        objective=ff.MAP(beta),
        strategy=plan,
        start=start if start == "draw" else torch.linspace(-1, 1, 5 * 64).view(5, 64),
        steps=12,
        restarts=2,
        seed=3,
        **QUIET,
    )
    whole = solve()
    each = _memory.planned(flow.freeze(), model, y)
    monkeypatch.setattr(_memory, "available", lambda device: int(2.2 * each / 0.8))
    parts = solve()
    torch.testing.assert_close(parts.x, whole.x)
    torch.testing.assert_close(parts.loss, whole.loss)
    assert parts.history.shape == whole.history.shape and parts.status == whole.status


class Hungry:
    """An operator for at most two images at a time, as a full GPU would be."""

    def __init__(self, error):
        self.error, self.sizes = error, []

    def __call__(self, x):
        self.sizes.append(len(x))
        if len(x) > 2:
            raise self.error
        return 1.0 * x


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=lambda e: type(e).__name__,
)
def test_out_of_memory_halves_the_part(flow, error):
    y, operator = measurements(), Hungry(error)
    law = noise.Gaussian(0.3)
    with pytest.warns(UserWarning, match="out of memory; going on with 2 images at a time"):
        got = ff.reconstruct(y, operator, flow, law, steps=5, **QUIET)
    want = ff.reconstruct(y, operators.Identity(), flow, law, steps=5, start="zeros", **QUIET)
    torch.testing.assert_close(got.x, want.x)
    assert max(operator.sizes[1:]) == 2


def test_one_image_that_does_not_fit_raises(flow):
    class Never(Hungry):
        def __call__(self, x):
            raise self.error

    with pytest.raises(MemoryError), pytest.warns(UserWarning):
        ff.reconstruct(
            measurements(3), Never(MemoryError()), flow, noise.Gaussian(1.0), steps=2, **QUIET
        )


def test_other_errors_pass(flow):
    with pytest.raises(RuntimeError, match="mine"):
        ff.reconstruct(
            measurements(), Hungry(RuntimeError("mine")), flow, noise.Gaussian(1.0), **QUIET
        )


def test_interrupt_in_the_first_part_returns_all_images(flow, monkeypatch):
    def stop(step, losses, variable):
        if step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(_memory, "images_at_once", lambda *_: 2)
    got = ff.reconstruct(
        measurements(),
        operators.Identity(),
        flow,
        noise.Gaussian(0.3),
        steps=9,
        callback=stop,
        **QUIET,
    )
    assert got.status == [Status.INTERRUPTED] * 5 and got.x.shape == (5, *SHAPE)
    assert torch.isfinite(got.loss).all() and got.history.shape == (4, 5)


def test_the_plan_is_told(flow, capsys):
    ff.reconstruct(
        measurements(), operators.Identity(), flow, noise.Gaussian(0.3), steps=2, progress=True
    )
    told = capsys.readouterr().err
    assert "map-image: 5 images of 0." in told and "all at once" in told


def test_available_memory_is_a_plausible_number():
    free = _memory.available(torch.device("cpu"))
    assert free is None or 1e6 < free < 1e14
    assert _memory.available(torch.device("meta")) is None
    assert _memory.images_at_once(None, 0, torch.device("cpu")) == 1


def test_empty_batch_of_a_generator():
    class Generator:
        latent_dim = 3

        def __call__(self, z):
            return z.view(-1, 1, 1, 3)

    got = ff.reconstruct(
        torch.zeros(0, 1, 1, 3), operators.Identity(), Generator(), objective="csgm", **QUIET
    )
    assert got.x.shape == (0, 1, 1, 3) and got.z.shape == (0, 3)
    assert math.isnan(got.loss.mean())
