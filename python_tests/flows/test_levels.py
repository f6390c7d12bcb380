"""One flow of many levels of noise: a density at each, on shared weights, of x + std e."""

from __future__ import annotations

import copy
import math
import pickle
import random
import threading

import pytest
import torch
from helpers import assert_names
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast.flows import Flow, FlowConfig, TarFlowConfig, tarflow
from flowinv_fast.flows.levels import NoisyStandardise
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer

RANGE = (0.03, 0.6)
SIZES = {
    "grey": TarFlowConfig((1, 8, 12), 4, 16, 3, 2, 2, levels=RANGE),
    "colour": TarFlowConfig((3, 4, 6), 2, 12, 2, 1, 3, levels=RANGE, smoothing=0.3),
    "two pixels": TarFlowConfig((1, 1, 2), 1, 8, 2, 1, 2, levels=RANGE),
}


def trained(config: TarFlowConfig, dtype: torch.dtype = torch.float64) -> Flow:
    """As if it had learnt: no weight is zero."""
    flow = tarflow(config).to(dtype).eval()
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.3 / math.sqrt(max(p.shape[-1], 1)) * torch.randn_like(p)
        first = flow.layers[0]
        first.mean.normal_()
        first.std.uniform_(RANGE[0], 1.5)
    return flow


def images(config: TarFlowConfig, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(batch, *config.shape, dtype=dtype)


def some_levels() -> list[float]:
    """Both ends, and one between."""
    low, high = RANGE
    return [low, low * (high / low) ** random.random(), high]


def test_the_density_at_each_level_integrates_to_one():
    flow = trained(SIZES["two pixels"])
    mean, std = flow.layers[0].mean.view(2), flow.layers[0].std.view(2)
    steps = torch.linspace(-12, 12, 401, dtype=torch.float64)
    for level in some_levels():
        wide = (std.square() + level**2).sqrt()
        x = (mean + wide * torch.cartesian_prod(steps, steps)).view(-1, 1, 1, 2)
        with torch.no_grad():
            total = flow.at(level).log_prob(x).exp().sum() * (steps[1] - steps[0]) ** 2
        assert abs(total.item() * wide.prod().item() - 1) < 1e-3


@pytest.mark.parametrize("name", ["colour", "two pixels"])
def test_determinant_of_the_dense_jacobian(name):
    flow, x = trained(SIZES[name]), images(SIZES[name], 1)
    n = x.numel()
    for level in some_levels():
        at = flow.at(level)
        z, logdet = at.encode(x)
        dense = torch.autograd.functional.jacobian(lambda x, at=at: at.encode(x)[0], x)
        torch.testing.assert_close(torch.linalg.slogdet(dense.reshape(n, n))[1], logdet[0])
        dense = torch.autograd.functional.jacobian(lambda z, at=at: at.decode(z)[0], z)
        torch.testing.assert_close(torch.linalg.slogdet(dense.reshape(n, n))[1], -logdet[0])


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_decode_inverts_encode_at_each_level(config, batch):
    flow, x = trained(config), images(config, batch)
    for level in some_levels():
        z, logdet = flow.at(level).encode(x)
        back, other = flow.at(level).decode(z)
        torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-8)
        torch.testing.assert_close(other, -logdet, rtol=1e-8, atol=1e-8)


def test_it_starts_as_normal_pixels_whose_variances_add_up():
    flow, x = tarflow(SIZES["grey"]).double(), images(SIZES["grey"], 3)
    for level in some_levels():
        normal = torch.distributions.Normal(0.0, math.sqrt(1 + level**2 - RANGE[0] ** 2))
        want = normal.log_prob(x).flatten(1).sum(1)
        torch.testing.assert_close(flow.at(level).log_prob(x), want)


def test_levels_differ_and_each_image_may_have_its_own():
    flow, x = trained(SIZES["grey"]), images(SIZES["grey"], 3)
    levels = some_levels()
    each = flow.at_each(torch.tensor(levels, dtype=torch.float64))
    found = each.log_prob(x)
    alone = torch.cat([flow.at(level).log_prob(x[i : i + 1]) for i, level in enumerate(levels)])
    torch.testing.assert_close(found, alone)
    at = [flow.at(level).log_prob(x) for level in levels]
    assert min((at[i] - at[j]).abs().min() for i, j in ((0, 2), (1, 2))) > 1e-3
    torch.testing.assert_close(each.decode(each.encode(x)[0])[0], x, rtol=1e-8, atol=1e-8)


def test_the_levels_of_a_flow_share_its_weights_and_leave_it_as_it_is():
    flow, x = trained(SIZES["grey"]), images(SIZES["grey"], 2)
    state, want, config = copy.deepcopy(flow.state_dict()), flow.log_prob(x), flow.config
    flow.info = {"data": "none", "bits_per_dim": 3.0, "log_prob_peak": 10.0}
    at = flow.at(0.5)
    assert flow.config is config and config.smoothing == 0.08 and at.config.smoothing == 0.5
    assert at.config.levels == flow.levels == RANGE and at.info == {"data": "none"}
    assert flow.at(0.08).info == flow.info and len(flow.info) == 3
    assert all(p is q for p, q in zip(at.parameters(), flow.parameters()))
    assert torch.equal(flow.log_prob(x), want) and torch.equal(flow.at(0.08).log_prob(x), want)
    assert torch.equal(at.at(0.08).log_prob(x), want)
    assert all(torch.equal(v, state[k]) for k, v in flow.state_dict().items())
    before = at.log_prob(x)
    with torch.no_grad():
        flow.layers[0].mean += 1
        flow.layers[1].conditioner.last.bias += 0.1
    assert not torch.isclose(at.log_prob(x), before).any()
    torch.testing.assert_close(flow.at(0.5).log_prob(x), at.log_prob(x))
    assert flow.float().at(0.5).dtype == at.dtype == torch.float32


def test_threads_may_ask_for_levels_of_one_flow():
    flow, x = trained(SIZES["grey"]), images(SIZES["grey"], 2)
    levels = [level for _ in range(4) for level in some_levels()]
    want, found = [flow.at(level).log_prob(x) for level in levels], [None] * len(levels)

    def ask(i: int) -> None:
        for _ in range(5):
            found[i] = flow.at(levels[i]).log_prob(x)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(levels))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(found, want))


def test_gradients_at_a_level():
    flow, x = trained(SIZES["colour"]).at(0.2), images(SIZES["colour"], 1).requires_grad_()
    assert torch.autograd.gradcheck(flow.log_prob, x)
    z = torch.randn(1, x.numel(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(flow.decode, z)
    flow.log_prob(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())
    network = flow.layers[1].conditioner.of_level
    assert all(p.grad.abs().max() > 0 for p in network.parameters())


def test_frozen_saved_pickled_and_copied_at_a_level(tmp_path):
    config = SIZES["grey"]
    flow, x = trained(config, torch.float32), images(config, 3, torch.float32)
    at, path = flow.at(0.4), tmp_path / "flow.safetensors"
    want = at.log_prob(x)
    ff.save_flow(flow, path)
    again = ff.load_flow(path)
    assert again.config == config and again.levels == RANGE
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x))
    ff.save_flow(at, path)
    saved = ff.load_flow(path)
    assert saved.config == at.config
    torch.testing.assert_close(saved.at(0.08).log_prob(x), flow.log_prob(x))
    copies = [saved, again.at(0.4), copy.deepcopy(at), copy.deepcopy(flow).at(0.4), at.freeze()]
    for other in [*copies, pickle.loads(pickle.dumps(at)), pickle.loads(pickle.dumps(at.freeze()))]:
        torch.testing.assert_close(other.log_prob(x), want, rtol=1e-4, atol=1e-3)
    assert at.freeze().config.smoothing == 0.4 and at.sample(2).shape == (2, 1, 8, 12)
    assert ff.check_flow(at).passed, ff.check_flow(at)


def test_a_prior_and_a_noise_model_at_a_level():
    flow = trained(TarFlowConfig((1, 8, 8), 4, 8, 2, 1, 2, levels=RANGE), torch.float32)
    at, law = flow.at(0.5), ff.noise.Gaussian(0.1)
    y = at.sample(2) + 0.1 * torch.randn(2, 1, 8, 8)
    options = {"steps": 10, "progress": False}
    found = ff.reconstruct(y, ff.operators.Identity(), at, law, **options)
    torch.testing.assert_close(found.log_prior, at.log_prob(found.x), rtol=1e-3, atol=1e-2)
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(ff.PatchPrior(at, stride=8).log_prob(x), at.log_prob(x))
    torch.testing.assert_close(ff.noise.FlowNoise(at).log_prob(x), at.log_prob(x))


def test_noise_of_training_is_that_of_the_level():
    flow = tarflow(TarFlowConfig((1, 16, 16), 4, 8, 1, 1, 2, levels=(0.05, 0.5)))
    x = torch.rand(64, 1, 16, 16)
    for level in (0.05, 0.5):
        noise = flow.at(level).dequantise(x, seed=random.randrange(2**40)) - x
        assert abs(noise.std().item() / level - 1) < 0.05


def test_variances_of_images_and_noise_add_up():
    std, clean = torch.tensor([0.0, 0.3]).view(1, 1, 2), torch.randn(20_000, 1, 1, 2)
    for level in (0.1, 0.4):
        layer = NoisyStandardise((1, 1, 2), 0.1)
        layer.level = level
        layer.initialise(0.5 + std * clean + level * torch.randn_like(clean), floor=level)
        want = (std.square() + 0.1**2).sqrt()
        torch.testing.assert_close(layer.std, want, rtol=0, atol=0.04)
        assert layer.std.min() >= 0.1


def test_what_cannot_be_is_named():
    make = lambda **options: TarFlowConfig((1, 8, 8), **options)
    for wrong in (
        (0.2, 0.1),
        (0.0, 0.5),
        (0.1,),
        0.3,
        (0.05, math.inf),
        (True, 2),
        "ab",
        (0.1, 0.1),
    ):
        assert_names("levels", lambda wrong=wrong: make(levels=wrong))
    assert_names("smoothing", lambda: make(levels=(0.1, 0.5)))
    assert_names("support", lambda: make(levels=RANGE, support="bounded"))
    assert make(levels=[0.05, 1]).levels == (0.05, 1.0)
    flow = tarflow(SIZES["two pixels"])
    for wrong in (0.02, 0.61, -1, math.nan, "0.1", None, True, torch.tensor([0.1, 0.2])):
        assert_names("std", lambda wrong=wrong: flow.at(wrong))
    config = ff.RealNVPConfig((1, 8, 8), scales=1, hidden=4, blocks=0)
    plain = (tarflow(make(width=8, heads=2)), ff.realnvp(config), Flow([], FlowConfig((1, 2, 2))))
    for other in plain:
        assert other.levels is None
        assert "levels" in assert_names("flow", lambda other=other: other.at(0.1))


def test_without_levels_nothing_changes():
    """The same names in a file, and the same weights from a seed."""
    config = TarFlowConfig((1, 8, 8), width=8, heads=2)
    assert "levels" not in config.to_dict()
    torch.manual_seed(3)
    plain = tarflow(config)
    torch.manual_seed(3)
    blocks = [type(plain.layers[1])((1, 8, 8), 4, 8, 3, 2, i % 2 == 1) for i in range(4)]
    for own, other in zip(plain.layers[1:], blocks):
        other = other.state_dict()
        assert own.state_dict().keys() == other.keys()
        assert all(torch.equal(v, other[k]) for k, v in own.state_dict().items())
    assert not [name for name in plain.state_dict() if "level" in name]


def test_it_learns_the_density_of_images_with_noise_on_them(tmp_path):
    """Of x ~ N(1/2, s^2) with neighbours alike: x + std e is normal, its covariance known."""
    mixing = 0.15 * torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    draw = lambda n: 0.5 + torch.randn(n, 2) @ mixing.T
    pixels = (255 * draw(4096)).round().clamp(0, 255).to(torch.uint8).view(-1, 1, 1, 2)
    config = TarFlowConfig((1, 1, 2), 1, 16, 2, 1, 2, levels=(0.05, 0.5))
    how = FlowTrainConfig(16, 256, 1e-2, warmup=10, schedule="cosine", penalty=0.0, ema=0.95)
    run = FlowTrainer(config, how, pixels[:4000], pixels[4000:], tmp_path, progress=False)
    result = run.run(evaluate_every=100)
    assert result["bits_per_dim_0.05"] < result["bits_per_dim_0.158"] < result["bits_per_dim_0.5"]
    for level in (0.05, 0.158, 0.5):
        covariance = mixing @ mixing.T + level**2 * torch.eye(2)
        exact = torch.distributions.MultivariateNormal(torch.full((2,), 0.5), covariance)
        x = exact.sample((2000,))
        with torch.no_grad():
            found = run.model.at(level).log_prob(x.view(-1, 1, 1, 2))
        divergence = (exact.log_prob(x) - found).mean().item()
        assert abs(divergence) < 0.06, level
