"""The frozen engine against the float64 flow, in value, log-determinant and gradient."""

from __future__ import annotations

import copy
import math
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import assert_names, standardisation, strided

import flowinv_fast as ff
from flowinv_fast import Flow, GlowConfig, RealNVPConfig, glow, realnvp
from flowinv_fast._base import backend
from flowinv_fast.flows import AffineCoupling, FactorOut, FlowConfig, Layer, Squeeze, Standardise

# Odd sides, one channel and many, no block and several, hidden widths off the engine's blocks.
SHAPES = [
    ((1, 28, 28), {"hidden": 32, "scales": 3, "blocks": 2}),
    ((3, 32, 32), {"hidden": 20, "scales": 2, "blocks": 1}),
    ((2, 7, 5), {"hidden": 16, "scales": 1, "blocks": 1}),
    ((1, 1, 3), {"hidden": 3, "scales": 1, "blocks": 0}),
    ((1, 20, 12), {"hidden": 48, "scales": 3, "blocks": 3}),
    ((1, 28, 28), {"hidden": 16, "scales": 3, "blocks": 1, "mixing": True}),
    ((3, 8, 12), {"hidden": 8, "scales": 2, "blocks": 0, "mixing": False, "prior_blocks": 2}),
    ((3, 8, 12), {"hidden": 8, "scales": 3, "blocks": 1, "mixing": True, "early_squeeze": True}),
]
needs_bf16 = pytest.mark.skipif(
    backend._C is None or not backend._C.cpu_bf16(), reason="no bf16 products on this CPU"
)


def random_flow(shape, gain: float = 1.0, **config) -> Flow:
    """A RealNVP, or a Glow where its options are given, of random weights: see ``scramble``."""
    if {"mixing", "conditional_prior"} & set(config):
        return scramble(glow(GlowConfig(shape=shape, **config)), gain)
    return scramble(realnvp(RealNVPConfig(shape=shape, **config)), gain)


def scramble(flow: Flow, gain: float = 1.0) -> Flow:
    """Every parameter random, raw scales of ordinary size, s up to the gain."""
    with torch.no_grad():
        for name, p in flow.named_parameters():
            if name.endswith("bias"):
                p.normal_().mul_(0.1)
            elif name.endswith("last.gain"):
                p.fill_(0.5)
            elif name.endswith(("lower", "upper", "log_size")):
                p.add_(0.1 * torch.randn_like(p))
        for bound in flow.gains():
            bound.uniform_(-gain, gain)
        standardisation(flow).mean.normal_()
        standardisation(flow).std.uniform_(0.5, 2)
    return flow.eval().requires_grad_(False)


def results(apply, variable: torch.Tensor, weights: tuple) -> list[torch.Tensor]:
    """Output, log-determinant, and the gradient of their sum by weights."""
    variable = variable.clone().requires_grad_()
    out, logdet = apply(variable)
    loss = (out * weights[0]).sum() + (logdet * weights[1]).sum()
    (grad,) = torch.autograd.grad(loss, variable)
    return [out.detach(), logdet.detach(), grad]


def errors(flow, frozen, decode: bool, batch: int, device="cpu") -> torch.Tensor:
    """(3, B): each image's relative error against the float64 flow, worst over the tensor, in the
    output, the log-determinant and the gradient."""
    variable = torch.randn(batch, *([math.prod(flow.shape)] if decode else flow.shape))
    if not decode and flow.config.support == "bounded":
        variable = torch.rand_like(variable)
    elif decode:
        variable *= 0.7
    double = copy.deepcopy(flow).double()
    which = "decode" if decode else "encode"
    shape = flow.shape if decode else (math.prod(flow.shape),)
    weights = (torch.randn(batch, *shape), torch.randn(batch))
    want = results(getattr(double, which), variable.double(), [w.double() for w in weights])
    got = results(getattr(frozen, which), variable.to(device), [w.to(device) for w in weights])
    worst = lambda t: t.reshape(batch, -1).abs().amax(1) if batch else t.new_zeros(0)
    # A log-determinant is a sum that may cancel: near zero its error counts in nats.
    sizes = [worst(want[0]), worst(want[1]).clamp_min(1), worst(want[2])]
    return torch.stack([worst(g.cpu().double() - w) / n for g, w, n in zip(got, want, sizes)])


def assert_exact(errors: torch.Tensor, bound: float, one_gradient: float = 0.1) -> None:
    """All values, and most gradients: rounding may turn the sign of one ReLU among the thousands of
    an image, which moves its gradient by a step that no precision removes."""
    assert torch.isfinite(errors).all()
    if errors.numel() == 0:
        return
    value, logdet, gradient = errors
    assert max(value.max(), logdet.max(), gradient.median()) < bound
    assert gradient.max() < one_gradient


@pytest.mark.parametrize("row", range(3))
def test_the_comparison_refuses_nan(row):
    errors = torch.zeros(3, 4)
    assert_exact(errors, 1e-5)
    errors[row, row] = math.nan
    with pytest.raises(AssertionError):
        assert_exact(errors, 1e-5)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("shape,config", SHAPES, ids=lambda p: str(p))
def test_equals_the_float64_flow(shape, config, decode, device):
    for gain, bound in ((0.3, 2e-5), (1.0, 2e-4)):
        flow = random_flow(shape, gain, **config)
        frozen = flow.freeze(device=device)
        found = [errors(flow, frozen, decode, batch, device) for batch in (0, 1, 7, 7)]
        assert found[0].shape == (3, 0)
        assert_exact(torch.cat(found, 1), bound)


def test_large_gains_are_as_good_as_float32_torch(device):
    """Gain 8: exp(8) a coupling, so float32 itself is far off; ours may be no further."""
    for trial in range(3):
        flow = random_flow((1, 12, 12), 8.0, hidden=16, scales=1, blocks=1)
        frozen = flow.freeze(device=device)
        for decode in (True, False):
            torch.manual_seed(trial)
            ours = errors(flow, frozen, decode, 7, device)
            torch.manual_seed(trial)
            eager = errors(flow, copy.deepcopy(flow).to(device), decode, 7, device)
            assert (ours.median(1).values <= 10 * eager.median(1).values + 1e-4).all()


@pytest.mark.parametrize("name", sorted(ff.available_flows()))
def test_shipped_flows(name, device):
    flow = ff.load_flow(name)
    frozen = flow.freeze(device=device)
    for decode in (True, False):
        assert_exact(errors(flow, frozen, decode, 9, device), 1e-3)
    x = flow.sample(3, 0.7).to(device)
    z, logdet = frozen.encode(x)
    back, opposite = frozen.decode(z)
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(opposite, -logdet, atol=1e-2, rtol=1e-5)
    torch.testing.assert_close(
        frozen.log_prob(x).cpu(), flow.log_prob(x.cpu()), atol=1e-2, rtol=1e-5
    )


@pytest.mark.parametrize("options", [{}, {"mixing": True}])
def test_bounded_support(options):
    sizes = {"hidden": 16, "scales": 2, "blocks": 1}
    flow = random_flow((1, 8, 8), 0.3, support="bounded", **sizes, **options)
    assert flow.freeze().compiled == backend.native(torch.empty(0))
    for decode in (True, False):
        assert_exact(errors(flow, flow.freeze(), decode, 9), 2e-4)


@needs_bf16
def test_bf16_is_close_and_float32_outside_the_conditioners():
    flow = ff.load_flow("fashion-28")
    frozen = flow.freeze("bf16")
    x = flow.sample(8, 0.7)
    z, logdet = frozen.encode(x)
    assert z.dtype == logdet.dtype == torch.float32
    want = flow.log_prob(x)
    assert ((frozen.log_prob(x) - want).abs() / want.abs()).max() < 0.02
    back, _ = frozen.decode(z)
    assert (back - x).abs().max() < 0.05
    assert not torch.equal(frozen.log_prob(x), flow.freeze().log_prob(x))


def test_any_batch_thread_count_and_thread_give_the_same_bits():
    flow = random_flow((1, 28, 28), hidden=16, scales=2, blocks=1)
    frozen, before = flow.freeze(), torch.get_num_threads()
    z = torch.randn(9, 784)
    weights = (torch.randn(9, 1, 28, 28), torch.randn(9))
    want = results(frozen.decode, z, weights)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, want, results(frozen.decode, z, weights)))
    finally:
        torch.set_num_threads(before)
    i = random.randrange(9)
    one = results(frozen.decode, z[i : i + 1], (weights[0][i : i + 1], weights[1][i : i + 1]))
    assert all(torch.equal(a[i : i + 1], b) for a, b in zip(want, one))
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: results(frozen.decode, z, weights), range(8)):
            assert all(map(torch.equal, want, got))


def test_non_contiguous_and_nan():
    flow = random_flow((1, 8, 8), hidden=16, scales=1, blocks=1)
    frozen = flow.freeze()
    x = torch.randn(3, 1, 8, 8)
    for a, b in zip(frozen.encode(strided(x)), frozen.encode(x)):
        assert torch.equal(a, b)
    x[1, 0, 4, 4] = float("nan")
    z, logdet = frozen.encode(x)
    assert torch.isfinite(z[[0, 2]]).all() and torch.isfinite(logdet[[0, 2]]).all()
    assert torch.isnan(z[1]).any() and torch.isnan(logdet[1])


def test_weights_are_fixed_at_freezing():
    flow = random_flow((1, 4, 4), hidden=8, scales=1, blocks=1)
    frozen, z = flow.freeze(), torch.randn(2, 16)
    want = frozen.decode(z)[0]
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(1)
    assert torch.equal(frozen.decode(z)[0], want)
    assert not torch.allclose(flow.decode(z)[0], want)


def test_memory_is_the_sign_bits_and_two_numbers():
    """0.19 MB at M and 1.3 MB at C within 1.3 times, and that is what the graph holds."""
    for shape, bound in (((1, 28, 28), 0.19e6), ((3, 64, 64), 1.3e6)):
        frozen = realnvp(RealNVPConfig(shape=shape)).freeze()
        assert 0.5 * bound < frozen.saved_bytes < 1.3 * bound
    held = []
    hooks = torch.autograd.graph.saved_tensors_hooks(
        lambda t: held.append(t.numel() * t.element_size()) or t, lambda t: t
    )
    z = torch.randn(2, 3 * 64 * 64, requires_grad=True)
    with hooks:
        frozen.decode(z)
    assert sum(held) == 2 * frozen.saved_bytes
    with hooks, torch.no_grad():
        held.clear()
        frozen.decode(z)
    assert not held


class Mirrored(Flow):
    """A user's flow: images are mirrored first."""

    def encode(self, x):
        return super().encode(x.flip(3))

    def decode(self, z):
        x, logdet = super().decode(z)
        return x.flip(3), logdet


class Wider(Flow):
    """A user's flow with another distribution of latents."""

    def log_prob(self, x):
        z, logdet = self.encode(x)
        return torch.distributions.Laplace(0.0, 1.0).log_prob(z).sum(1) + logdet


class Named(Flow):
    """A user's flow with the map of any other."""

    name = "mine"


class Turned(Layer):
    """A user's layer, which the engine does not know."""

    def encode(self, x, logdet):
        return -x, logdet

    def decode(self, z, logdet):
        return -z, logdet


def small_layers(*front: Layer) -> list[Layer]:
    couplings = [AffineCoupling(4, 8, 1, f"channel_{half}") for half in ("first", "second")]
    return [*front, Standardise((1, 4, 4)), Squeeze(), *couplings, FactorOut()]


@pytest.mark.parametrize("kind", [Mirrored, Wider, Named])
def test_a_subclass_keeps_its_own_methods(kind):
    """On the engine where it overrides none of the map's, else as it is."""
    flow = scramble(kind(small_layers(), FlowConfig((1, 4, 4))))
    frozen = flow.freeze()
    assert frozen.compiled == (kind is Named)
    x = torch.randn(3, 1, 4, 4)
    torch.testing.assert_close(frozen.encode(x), flow.encode(x))
    torch.testing.assert_close(frozen.decode(x.flatten(1)), flow.decode(x.flatten(1)))
    torch.testing.assert_close(frozen.log_prob(x), flow.log_prob(x))
    draws = [f.sample(2, generator=torch.Generator().manual_seed(1)) for f in (flow, frozen)]
    torch.testing.assert_close(*draws)


def test_layers_that_the_engine_does_not_know():
    """In front of the others they run as they are; elsewhere the flow runs on plain torch."""
    config = FlowConfig((1, 4, 4))
    front = scramble(Flow(small_layers(Turned(), Turned()), config), 0.3)
    behind = scramble(Flow([*small_layers(), Turned()], config), 0.3)
    strange = Flow(small_layers(), config)
    strange.layers[2].conditioner = torch.nn.Conv2d(2, 4, 1)
    watched = Flow(small_layers(), config)
    watched.conditioners()[0].blocks.register_forward_hook(lambda module, inputs, h: 2 * h)
    assert front.freeze().compiled and not scramble(watched).freeze().compiled
    assert not behind.freeze().compiled and not scramble(strange).freeze().compiled
    for flow in (front, behind, strange, watched):
        for decode in (True, False):
            assert_exact(errors(flow, flow.freeze(), decode, 9), 2e-5)
    x = torch.randn(2, 1, 4, 4)
    kept = x.clone()
    with torch.no_grad():
        front.freeze().encode(x)
    assert torch.equal(x, kept)


def test_bad_arguments():
    flow = random_flow((1, 4, 4), hidden=8, scales=1, blocks=1)
    assert_names("precision", lambda: flow.freeze("fp16"))
    assert_names("flow", lambda: copy.deepcopy(flow).double().freeze())
    frozen = flow.freeze()
    assert_names("z", lambda: frozen.decode(torch.zeros(2, 15)))
    assert_names("z", lambda: frozen.decode(torch.zeros(2, 16, dtype=torch.float64)))
    assert_names("x", lambda: frozen.encode(torch.zeros(1, 4, 4)))
    assert_names("n", lambda: frozen.sample(-1))
    assert "1 x 4 x 4" in repr(frozen) and "fp32" in repr(frozen)
    assert frozen.sample(0).shape == (0, 1, 4, 4)


def test_plain_torch_where_the_kernels_are_not_wanted(monkeypatch):
    flow = random_flow((1, 4, 4), 0.3, hidden=8, scales=1, blocks=1)
    monkeypatch.setattr(backend, "choice", "torch")
    frozen = flow.freeze()
    assert not frozen.compiled and frozen.saved_bytes == 0
    assert_exact(errors(flow, frozen, True, 9), 2e-5)
    assert 1e-5 < errors(flow, flow.freeze("bf16"), True, 9)[0].max() < 0.1
