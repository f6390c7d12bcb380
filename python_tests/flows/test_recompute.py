"""Recomputed couplings: plain autograd's gradients, whatever the length of the run kept once."""

from __future__ import annotations

import random
import weakref

import pytest
import torch
from helpers import randomise, strided, tolerance

from flowinv_fast.flows import (
    AffineCoupling,
    Flow,
    FlowConfig,
    GlowConfig,
    RealNVPConfig,
    Standardise,
    glow,
    realnvp,
)
from flowinv_fast.flows.recompute import encode_recomputed

SUPPORTS = ["bounded", "unbounded"]


@pytest.fixture
def dice(seed) -> random.Random:
    return random.Random(seed)


def fresh(dice, scales, support="unbounded", dtype=torch.float64) -> Flow:
    """A random small flow away from the identity; one scale takes odd sizes too."""
    size = lambda: dice.randint(1, 6) if scales == 1 else 2 ** (scales - 1) * dice.randint(1, 2)
    shape = (dice.randint(1, 3), size(), size())
    sizes = dice.randint(1, 6), dice.randint(0, 2)
    if dice.random() < 0.5:
        flow = realnvp(RealNVPConfig(shape, scales, *sizes, support=support))
    else:
        chosen = {"mixing": dice.random() < 0.7, "conditional_prior": dice.random() < 0.7}
        prior = {"prior_hidden": dice.randint(1, 4), "prior_blocks": dice.randint(0, 1)}
        flow = glow(GlowConfig(shape, scales, *sizes, support=support, **chosen, **prior))
    return randomise(flow).to(dtype)


def gradients(flow, x, recompute, autocast=False) -> list:
    """Gradients of a random scalar of log p and z: to x, then to every parameter."""
    flow.recompute = recompute
    flow.zero_grad(set_to_none=True)
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        z, logdet = flow.encode(x)
    generator = torch.Generator().manual_seed(1)
    weights, more = (
        torch.randn(out.shape, generator=generator, dtype=torch.float64) for out in (z, logdet)
    )
    ((weights * z).sum() + (more * logdet).sum()).backward()
    return [x.grad, *(p.grad for p in flow.parameters())]


def assert_same(grads, expected, bound) -> None:
    assert len(grads) == len(expected)
    for grad, other in zip(grads, expected):
        atol = bound * (other.abs().max().item() if other.numel() else 0)
        torch.testing.assert_close(grad, other, rtol=bound, atol=atol)


def distance(grads, truth) -> float:
    """Of all gradients together, relative to the true ones."""
    flat = [torch.cat([g.double().flatten() for g in gs]) for gs in (grads, truth)]
    return ((flat[0] - flat[1]).norm() / flat[1].norm()).item()


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("scales", [1, 3])
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_gradients_are_plain_autograds(dice, scales, support, batch):
    for _ in range(2):
        flow = fresh(dice, scales, support)
        x = torch.rand(batch, *flow.shape, dtype=torch.float64)
        expected = gradients(flow, x, recompute=False)
        assert_same(gradients(flow, x, recompute=True), expected, 1e-9)
        turned = x.transpose(2, 3).contiguous().transpose(2, 3)
        for other in (strided(x), turned):
            assert_same(gradients(flow, other, recompute=True), expected, 1e-9)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("scales", [1, 3])
def test_float32_loses_no_more_than_plain_autograd(dice, scales, support):
    flow = fresh(dice, scales, support)
    x = torch.rand(4, *flow.shape, dtype=torch.float64)
    truth = gradients(flow, x, recompute=False)
    plain, recomputed = (gradients(flow.float(), x.float(), way) for way in (False, True))
    assert distance(plain, truth) < 1e-4
    assert distance(recomputed, truth) < 4 * distance(plain, truth) + 1e-6


@pytest.mark.parametrize("support", SUPPORTS)
def test_bf16_loses_no_more_than_plain_bf16(dice, support):
    """A mean over flows: for one alone, either of two rounding errors may be the lucky one."""
    plain = recomputed = 0.0
    for _ in range(5):
        flow = fresh(dice, 3, support, torch.float32)
        x = torch.rand(4, *flow.shape)
        truth = gradients(flow, x, recompute=False)
        plain += distance(gradients(flow, x, False, autocast=True), truth)
        recomputed += distance(gradients(flow, x, True, autocast=True), truth)
    assert 1e-4 < plain and recomputed < 2 * plain + 1e-3


def test_the_backward_pass_computes_as_the_forward_pass_did(dice):
    """Outside of the region too: another precision would invert another map."""
    flow, seen = fresh(dice, 3, dtype=torch.float32), []
    couplings = [layer for layer in flow.layers if isinstance(layer, AffineCoupling)]
    for coupling in couplings:
        coupling.conditioner.register_forward_hook(lambda m, x, raw: seen.append(raw.dtype))
    gradients(flow, torch.rand(2, *flow.shape), recompute=True, autocast=True)
    assert seen == [torch.bfloat16] * 2 * len(couplings)


def test_backward_inside_the_autocast_region(dice):
    """Autocast keeps its copies of weights until the region ends; the gradient is the same."""
    flow = fresh(dice, 3, dtype=torch.float32)
    x = torch.rand(3, *flow.shape)
    expected = gradients(flow, x, recompute=True, autocast=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(gradients(flow, x, recompute=True, autocast=True), expected, 1e-6)


@pytest.mark.parametrize("support", SUPPORTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_is_the_same(dice, support, dtype):
    flow = fresh(dice, 3, support, dtype)
    x = torch.rand(3, *flow.shape, dtype=dtype)
    plain = flow.log_prob(x)
    flow.recompute = True
    torch.testing.assert_close(flow.log_prob(x), plain, **tolerance(dtype))


def run(couplings, channels=2) -> list:
    """A run of couplings with random gains."""
    masks = ["checkerboard_even", "checkerboard_odd", "channel_first", "channel_second"]
    made = [AffineCoupling(channels, 4, 1, masks[i % 4]).double() for i in range(couplings)]
    for coupling in made:
        torch.nn.init.normal_(coupling.gain, std=0.3)
    return made


def encode_plain(couplings, x, logdet):
    for coupling in couplings:
        x, logdet = coupling.encode(x, logdet)
    return x, logdet


LOSSES = {
    "both": lambda z, logdet: z.sin().sum() + (logdet**2).sum(),
    "z": lambda z, logdet: z.sin().sum(),
    "logdet": lambda z, logdet: (logdet**2).sum(),
}


@pytest.mark.parametrize("used", LOSSES)
def test_gradients_reach_image_and_logdet_from_either_output(used):
    couplings, found = run(5), []
    start = torch.randn(3, 2, 5, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    for encode in (encode_plain, encode_recomputed):
        inputs = [value.clone().requires_grad_() for value in start]
        loss = LOSSES[used](*encode(couplings, 2 * inputs[0], 3 * inputs[1]))
        found.append(torch.autograd.grad(loss, inputs[:1] if used == "z" else inputs))
    assert_same(found[1], found[0], 1e-9)


class Held:
    """A tensor that autograd keeps for as long as this lives."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept(encode, couplings, x) -> int:
    """Bytes that wait for the backward pass once encode is through, weights left out."""
    weights = {p.data_ptr() for coupling in couplings for p in coupling.parameters()}
    alive = weakref.WeakSet()

    def pack(tensor):
        alive.add(held := Held(tensor.detach()))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        outputs = encode(couplings, x, torch.zeros(len(x), dtype=x.dtype))
    assert outputs[0].grad_fn is not None
    return sum(h.tensor.nbytes for h in alive if h.tensor.data_ptr() not in weights)


def test_what_is_kept_does_not_grow_with_the_run():
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64)
    short, long = run(2), run(12)
    assert kept(encode_plain, long, x) > 5 * kept(encode_plain, short, x)
    assert kept(encode_recomputed, long, x) == kept(encode_recomputed, short, x) == x.nbytes


class Mirrored(AffineCoupling):
    """A user's coupling with a map of its own, which encode_backward does not know."""

    def encode(self, x, logdet):
        return super().encode(x.flip(3), logdet)


def test_a_subclass_with_its_own_map_is_not_recomputed():
    couplings = [AffineCoupling(1, 4, 1), Mirrored(1, 4, 1), AffineCoupling(1, 4, 1)]
    flow = Flow([Standardise((1, 4, 4)), *couplings], FlowConfig((1, 4, 4))).double()
    x = torch.rand(3, 1, 4, 4, dtype=torch.float64)
    randomise(flow)
    expected = gradients(flow, x, recompute=False)
    assert_same(gradients(flow, x, recompute=True), expected, 1e-9)


def test_second_derivatives_are_refused(dice):
    flow = fresh(dice, 1)
    flow.recompute = True
    x = torch.rand(2, *flow.shape, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(flow.log_prob(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("frozen", ["all", "gains", "conditioners", "some"])
def test_frozen_weights_get_no_gradient(dice, frozen):
    flow = fresh(dice, 3)
    for coupling in (m for m in flow.modules() if isinstance(m, AffineCoupling)):
        if frozen != "conditioners":
            coupling.gain.requires_grad_(frozen == "some" and dice.random() < 0.5)
        if frozen != "gains":
            for parameter in coupling.conditioner.parameters():
                parameter.requires_grad_(frozen == "some" and dice.random() < 0.5)
    x = torch.rand(2, *flow.shape, dtype=torch.float64)
    expected, grads = (gradients(flow, x, way) for way in (False, True))
    missing = [grad is None for grad in expected]
    assert any(missing) and [grad is None for grad in grads] == missing
    present = lambda values: [value for value in values if value is not None]
    assert_same(present(grads), present(expected), 1e-9)


def test_weights_changed_by_a_fused_optimiser_are_seen(dice):
    """Such an optimiser leaves versions alone, by which folded weights are kept."""
    flow = fresh(dice, 3)
    x = torch.rand(2, *flow.shape, dtype=torch.float64)
    optimiser = torch.optim.Adam(flow.parameters(), 0.1, fused=True)
    for _ in range(2):
        gradients(flow, x, recompute=True)
        optimiser.step()
    expected = gradients(flow, x, recompute=False)
    assert_same(gradients(flow, x, recompute=True), expected, 1e-9)


def test_the_inputs_stay_as_they_were():
    x, logdet = torch.randn(2, 2, 4, 4, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    before = x.clone(), logdet.clone()
    encode_recomputed(run(3), x, logdet)[0].sum().backward()
    assert torch.equal(x, before[0]) and torch.equal(logdet, before[1])
