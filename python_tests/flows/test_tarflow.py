"""TarFlow: an autoregressive map of patches, its determinant, its inverse, and its places."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from helpers import assert_names
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast.flows import Flow, FlowConfig, TarFlowConfig, tarflow
from flowinv_fast.flows.tarflow import AutoregressivePatches, CausalTransformer, attend

SIZES = {
    "grey": TarFlowConfig((1, 8, 12), patch=4, width=16, blocks=3, layers=2, heads=2),
    "colour": TarFlowConfig((3, 4, 6), patch=2, width=12, blocks=2, layers=1, heads=3),
    "bounded": TarFlowConfig((2, 4, 4), 2, 8, 2, 1, 2, support="bounded"),
    "one patch": TarFlowConfig((2, 3, 3), patch=3, width=8, blocks=2, layers=1, heads=1),
    "pixels": TarFlowConfig((1, 3, 5), patch=1, width=8, blocks=2, layers=1, heads=2),
}


def trained(config: TarFlowConfig, dtype: torch.dtype = torch.float64) -> Flow:
    """As if it had learnt: no weight is zero."""
    flow = tarflow(config).to(dtype).eval()
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.3 / math.sqrt(max(p.shape[-1], 1)) * torch.randn_like(p)
    return flow


def images(config: TarFlowConfig, batch: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(batch, *config.shape, dtype=dtype)


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_determinant_of_the_dense_jacobian(config):
    flow, x = trained(config), images(config, 1)
    n = x.numel()
    z, logdet = flow.encode(x)
    dense = torch.autograd.functional.jacobian(lambda x: flow.encode(x)[0], x).reshape(n, n)
    torch.testing.assert_close(torch.linalg.slogdet(dense)[1], logdet[0])
    dense = torch.autograd.functional.jacobian(lambda z: flow.decode(z)[0], z).reshape(n, n)
    torch.testing.assert_close(torch.linalg.slogdet(dense)[1], flow.decode(z)[1][0])


@pytest.mark.parametrize("batch", [0, 1, 5])
@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES)
def test_decoding_one_patch_after_the_other_inverts_one_pass(config, batch):
    flow, x = trained(config), images(config, batch)
    z, logdet = flow.encode(x)
    back, other = flow.decode(z)
    assert z.shape == (batch, math.prod(config.shape)) and back.shape == x.shape
    torch.testing.assert_close(back, x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other, -logdet, rtol=1e-9, atol=1e-9)


def test_round_trip_in_float32():
    config = TarFlowConfig((1, 28, 28), blocks=4)
    flow, x = trained(config, torch.float32), images(config, 4, torch.float32)
    with torch.no_grad():
        assert (flow.decode(flow.encode(x)[0])[0] - x).abs().max() < 1e-4


def test_density_of_two_pixels_integrates_to_one():
    flow = trained(TarFlowConfig((1, 1, 2), patch=1, width=8, blocks=2, layers=1, heads=2))
    drawn = flow.sample(4000).flatten(1)  # as far again as they lie apart there is nothing more
    low, high, std = drawn.amin(0), drawn.amax(0), drawn.std(0)
    sides = [torch.linspace(a - 3 * s, b + 3 * s, 801).double() for a, b, s in zip(low, high, std)]
    x = torch.cartesian_prod(*sides).view(-1, 1, 1, 2)
    with torch.no_grad():
        log_prob = torch.cat([flow.log_prob(part) for part in x.split(100_000)])
    total = log_prob.exp().sum() * math.prod(side[1] - side[0] for side in sides)
    assert abs(total.item() - 1) < 1e-3


@pytest.mark.parametrize("backwards", [False, True])
def test_a_patch_depends_on_those_before_it_alone(backwards):
    layer = AutoregressivePatches((1, 6, 6), 2, 8, 2, 2, backwards).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.3 * torch.randn_like(p)
    x, nothing = torch.randn(1, 1, 6, 6, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    dense = torch.autograd.functional.jacobian(lambda x: layer.encode(x, nothing)[0], x)
    patches = lambda t: t.reshape(3, 2, 3, 2).permute(0, 2, 1, 3).reshape(9, 4)
    rows = torch.stack([patches(row) for row in dense.reshape(36, 36)])  # (36, 9, 4)
    seen = patches(torch.arange(36.0))
    for t in range(9):
        reached = rows[seen[t].long()].abs().amax((0, 2)) > 0
        others = range(t + 1, 9) if not backwards else range(t)
        assert reached[t] and not any(reached[o] for o in others)
        assert all(reached[o] for o in range(9) if o != t and o not in others)


def test_it_starts_as_the_identity():
    config = SIZES["grey"]
    flow, x = tarflow(config), images(config, 3, torch.float32)
    z, logdet = flow.encode(x)
    assert torch.equal(logdet, torch.zeros(3))
    assert torch.equal(z.sort(1).values, x.flatten(1).sort(1).values)


def test_attention_equals_torchs():
    query, key, value = torch.randn(3, 2, 4, 7, 5, dtype=torch.float64)
    for causal in (True, False):
        want = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal)
        torch.testing.assert_close(attend(query, key, value, causal), want)


def test_what_is_remembered_changes_nothing():
    network = CausalTransformer(count=6, size=3, width=8, layers=2, heads=2).double()
    with torch.no_grad():
        for p in network.parameters():
            p += 0.3 * torch.randn_like(p)
    patches, past = torch.randn(2, 5, 3, dtype=torch.float64), network.no_past()
    together = network(patches)
    steps = [network(patches[:, :t], past) for t in range(6)]
    for both, one in zip(together, zip(*steps)):
        torch.testing.assert_close(torch.cat(one, 1), both)


def test_gradients_of_encode_and_decode():
    flow = trained(SIZES["colour"])
    x = images(SIZES["colour"], 1).requires_grad_()
    assert torch.autograd.gradcheck(flow.log_prob, x)
    z = torch.randn(1, x.numel(), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(flow.decode, z)
    assert torch.autograd.gradgradcheck(flow.log_prob, x, atol=1e-4)


def test_frozen_saved_pickled_and_copied(tmp_path):
    flow, x = trained(SIZES["grey"], torch.float32), images(SIZES["grey"], 3, torch.float32)
    want = flow.log_prob(x)
    ff.save_flow(flow, tmp_path / "flow.safetensors")
    copies = [ff.load_flow(tmp_path / "flow.safetensors"), copy.deepcopy(flow)]
    for other in [*copies, pickle.loads(pickle.dumps(flow)), flow.freeze()]:
        torch.testing.assert_close(other.log_prob(x), want)
    assert not flow.freeze().compiled and flow.freeze().sample(2).shape == (2, 1, 8, 12)
    assert ff.check_flow(flow).logdets < 1e-4
    strided = x.flip(3).flip(3).transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(flow.log_prob(strided), want)


def test_bf16_is_near():
    flow, x = trained(SIZES["grey"], torch.float32), images(SIZES["grey"], 3, torch.float32)
    want, near = flow.log_prob(x), flow.freeze(precision="bf16").log_prob(x)
    assert near.dtype == torch.float32
    torch.testing.assert_close(near, want, rtol=0.02, atol=1.0)


@pytest.mark.parametrize("objective", [None, "map"])
def test_a_prior_of_reconstruct(objective):
    flow = trained(SIZES["grey"], torch.float32)
    y = flow.sample(2) + 0.1 * torch.randn(2, 1, 8, 12)
    operator, law = ff.operators.Identity(), ff.noise.Gaussian(0.1)
    options = {"objective": objective, "steps": 30, "progress": False}
    found = ff.reconstruct(y, operator, flow, law, **options)
    torch.testing.assert_close(found.log_prior, flow.log_prob(found.x), rtol=1e-3, atol=1e-2)


def test_the_noise_of_a_measurement():
    law = ff.noise.FlowNoise(trained(TarFlowConfig((1, 8, 8), width=8, blocks=1, layers=1, heads=2),
                                     torch.float32))  # fmt: skip
    residual = torch.randn(3, 1, 8, 8)
    assert law.log_prob(residual).shape == (3,) and law.sample((2, 1, 8, 8)).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("patch", {"patch": 3}), ("patch", {"patch": 0}), ("heads", {"heads": 5}),
        ("width", {"width": -4}), ("blocks", {"blocks": 0}), ("layers", {"layers": 1.5}),
        ("heads", {"heads": True}), ("shape", {"shape": (1, 0, 4)}),
    ],
)  # fmt: skip
def test_sizes_that_cannot_be_are_named(name, values):
    assert_names(name, lambda: TarFlowConfig(**{"shape": (1, 8, 8), **values}))


def test_images_of_another_size_are_named():
    layer = AutoregressivePatches((1, 4, 4), 2, 8, 1, 2)
    config = FlowConfig((1, 4, 8))
    assert_names("shape", lambda: Flow([layer], config))
    assert_names("patch", lambda: AutoregressivePatches((1, 4, 5), 2, 8, 1, 2))
