"""The public functions over the ops: checks in words, in-place forms, Adam, torch.compile."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import assert_names

from flowinv_fast import ops
from flowinv_fast._base import backend
from flowinv_fast.ops._kernel import Kernel

MASKS = list(ops.MASKS)


def coupling(mask, dtype=torch.float64, batch=3, channels=4, size=(5, 6)):
    gains = channels if mask.startswith("checker") else channels // 2
    x = torch.randn(batch, channels, *size, dtype=dtype)
    raw = torch.randn(batch, 2 * gains, *size, dtype=dtype)
    return x, raw, torch.randn(gains, dtype=dtype), torch.randn(batch, dtype=dtype)


@pytest.mark.parametrize("mask", MASKS)
def test_coupling_inverts_and_its_logdet_is_the_jacobian(mask):
    x, raw, gain, logdet = coupling(mask, batch=1, channels=2, size=(3, 3))
    z, forward = ops.affine_coupling_encode(x, raw, gain, logdet, mask)
    back, total = ops.affine_coupling_decode(z, raw, gain, forward, mask)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(total, logdet)
    dense = torch.autograd.functional.jacobian(
        lambda v: ops.affine_coupling_encode(v.view_as(x), raw, gain, logdet, mask)[0].flatten(),
        x.flatten(),
    )
    torch.testing.assert_close(forward - logdet, torch.linalg.slogdet(dense)[1][None])


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_in_place_coupling(mask, direction):
    x, raw, gain, logdet = coupling(mask, torch.float32)
    want = getattr(ops, f"affine_coupling_{direction}")(x, raw, gain, logdet, mask)
    y, total = x.clone(), logdet.clone()
    getattr(ops, f"affine_coupling_{direction}_")(y, raw, gain, total, mask)
    assert torch.equal(y, want[0]) and torch.equal(total, want[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_adam_equals_torchs(dtype):
    """Several steps against torch.optim.Adam; a frozen image and a NaN loss change nothing."""
    x = torch.randn(4, 3, 5, dtype=dtype)
    twin = x.clone().requires_grad_()
    optimiser = torch.optim.Adam([twin], lr=0.05)
    exp_avg, exp_avg_sq, best = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
    best_loss = torch.full((4,), math.inf, dtype=dtype)
    active = torch.tensor([True, True, False, True])
    start, lowest = x.clone(), {}
    rates = ops.adam_rates(torch.full((7,), 0.05))
    for step in range(7):
        grad = torch.randn_like(x)
        loss = torch.randn(4, dtype=dtype)
        loss[3] = math.nan
        for i in range(2):
            if loss[i] < lowest.get(i, (math.inf,))[0]:
                lowest[i] = (loss[i].item(), x[i].clone())
        twin.grad = grad.clone()
        optimiser.step()
        ops.adam_step_(x, grad, exp_avg, exp_avg_sq, best, loss, best_loss, active, rates[step])
    torch.testing.assert_close(x[:2], twin.detach()[:2])
    assert torch.equal(x[2:], start[2:]) and (best_loss[2:] == math.inf).all()
    for i in range(2):
        assert best_loss[i].item() == lowest[i][0] and torch.equal(best[i], lowest[i][1])


def test_adam_on_an_empty_batch():
    empty, loss = torch.zeros(0, 3), torch.zeros(0)
    images = [empty.clone() for _ in range(5)]
    ops.adam_step_(*images, loss, loss.clone(), torch.zeros(0) > 0, torch.ones(2).double())


def test_factor_out_and_in():
    x = torch.randn(2, 6, 3, 5)
    kept, latent = ops.factor_out(x)
    assert kept.data_ptr() == x.data_ptr()  # a view
    assert torch.equal(ops.factor_in(kept, latent), x)


def test_compiled_by_inductor():
    """One compiled function over several ops equals eager, values and gradients."""
    x, raw, gain, logdet = coupling("checkerboard_odd", torch.float32)

    def loss(x, raw):
        z, total = ops.affine_coupling_encode(x, raw, gain, logdet, "checkerboard_odd")
        z = ops.squeeze(ops.unsqueeze(z))
        return (ops.standard_normal_log_prob(z.flatten(1)) + total).sum()

    def run(function):
        leaves = [x.clone().requires_grad_(), raw.clone().requires_grad_()]
        value = function(*leaves)
        return value.detach(), *torch.autograd.grad(value, leaves)

    for got, want in zip(run(torch.compile(loss, fullgraph=True)), run(loss)):
        torch.testing.assert_close(got, want)


def test_sums_over_images_accumulate_in_float32():
    """A million half-precision elements: summed in their own type the result would stall."""
    z = torch.ones(1, 1_000_000, dtype=torch.bfloat16)
    got = ops.standard_normal_log_prob(z)
    want = -0.5 * 1_000_000 * (1 + math.log(2 * math.pi))
    assert got.dtype == torch.float32 and abs(got.item() / want - 1) < 1e-5


X, RAW, GAIN, LOGDET = coupling("channel_first", torch.float32)
IMAGE = torch.zeros(2, 1, 4, 4)
PLACES = torch.zeros(2, 1, 3, dtype=torch.int64)
FIVE = [IMAGE.clone() for _ in range(5)]
VALUES = torch.zeros(2), torch.zeros(2), torch.ones(2) > 0
RATES = torch.ones(2).double()
encode = lambda *a: lambda: ops.affine_coupling_encode(*a)
BAD = {
    "x-type": ("x", encode([1], RAW, GAIN, LOGDET, "channel_first")),
    "x-int": ("x", encode(X.long(), RAW, GAIN, LOGDET, "channel_first")),
    "x-rank": ("x", encode(X[0], RAW, GAIN, LOGDET, "channel_first")),
    "x-channels": ("x", encode(X[:, :3], RAW, GAIN, LOGDET, "channel_first")),
    "raw-shape": ("raw", encode(X, RAW[:, :3], GAIN, LOGDET, "channel_first")),
    "raw-dtype": ("raw", encode(X, RAW.double(), GAIN, LOGDET, "channel_first")),
    "raw-device": ("raw", encode(X, RAW.to("meta"), GAIN, LOGDET, "channel_first")),
    "gain": ("gain", encode(X, RAW, GAIN[:1], LOGDET, "channel_first")),
    "logdet": ("logdet", encode(X, RAW, GAIN, LOGDET[:1], "channel_first")),
    "mask": ("mask", encode(X, RAW, GAIN, LOGDET, "channels")),
    "alpha": ("alpha", lambda: ops.logit_encode(IMAGE, torch.zeros(2), 0.7)),
    "levels": ("levels", lambda: ops.dequantise(IMAGE, 1, 0)),
    "seed": ("seed", lambda: ops.dequantise(IMAGE, 256, -1)),
    "offset": ("offset", lambda: ops.random_bits(3, 0, -1)),
    "n": ("n", lambda: ops.random_bits(-1, 0)),
    "squeeze": ("x", lambda: ops.squeeze(torch.zeros(1, 1, 3, 4))),
    "unsqueeze": ("x", lambda: ops.unsqueeze(torch.zeros(1, 3, 2, 2))),
    "factor": ("x", lambda: ops.factor_out(torch.zeros(1, 3, 2, 2))),
    "fx-shape": ("y", lambda: ops.gaussian_log_prob(torch.zeros(2, 1, 4, 5), IMAGE)),
    "std-shape": ("std", lambda: ops.gaussian_log_prob(IMAGE, IMAGE, 0.0, torch.ones(3))),
    "places-range": ("places", lambda: ops.gather_patches(IMAGE, PLACES + 3, (2, 2))),
    "places-type": ("places", lambda: ops.gather_patches(IMAGE, PLACES.float(), (2, 2))),
    "size": ("size", lambda: ops.gather_patches(IMAGE, PLACES, (5, 2))),
    "kind": ("kind", lambda: ops.sigma_map(torch.ones(2), (1, 4, 4), "square")),
    "bank": ("bank", lambda: ops.digit_overlay(torch.zeros(2, 5, 5), (1, 1, 4, 4), 1, 0)),
    "count": ("count", lambda: ops.digit_overlay(torch.zeros(2, 2, 2), (1, 1, 4, 4), -1, 0)),
    "bits": ("bits", lambda: ops.quantise_ste(IMAGE, 0, -1.0, 1.0)),
    "rates": ("rates", lambda: ops.adam_step_(*FIVE, *VALUES, torch.ones(2))),
    "lr": ("lr", lambda: ops.adam_rates(torch.tensor([0.1, -0.1]))),
    "best": ("best", lambda: ops.adam_step_(*FIVE[:4], IMAGE.mT, *VALUES, RATES)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_argument_is_named(case):
    assert_names(*BAD[case])


def test_the_compiled_module_refuses_what_would_leave_memory():
    """Called past the checks of Python: short tensors and absurd sizes are errors, not crashes."""
    z, out = torch.randn(1, 4), torch.zeros(1)
    call = lambda batch, n, source: backend._C.standard_normal_log_prob(
        batch, n, source, backend.arg(out), (0, 0, 0), (-1, 1, 0)
    )
    call(1, 4, backend.arg(z))
    torch.testing.assert_close(out, torch.distributions.Normal(0, 1).log_prob(z).sum(1))
    good = backend.arg(z)
    sizes = ((1, 5, good), (2, 4, good), (-1, 4, good), (2**40, 2**40, good))
    tensors = ((1, 4, (0, 4, 0)), (1, 4, (good[0], 4, 4)), (1, 4, (good[0], 4, 99)))
    for bad in (*sizes, *tensors):
        with pytest.raises(ValueError):
            call(*bad)
    for bad in ((1, 4, good[:2]), (1, 4, 7), (1.5, 4, good)):
        with pytest.raises(TypeError):
            call(*bad)
    with pytest.raises(TypeError):
        backend._C.standard_normal_log_prob(1, 4, good)


def test_every_op_has_a_twin():
    """But for the frozen flow, which is compared with the flow that it was made from."""
    names = {n for n in dir(torch.ops.flowinv_fast) if not n.startswith("_")} - {"name"}
    for name in names:
        assert name.startswith("frozen_flow") or callable(ops.twin(name)), name


def test_a_schema_that_lacks_a_field_of_its_kernel_is_an_error():
    with pytest.raises(TypeError, match="log_prob"):
        Kernel("standard_normal_log_prob", "f(Tensor z) -> Tensor out", lambda z: z.shape)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_in_place_coupling_keeps_the_rules_of_torch_library(mask, direction):
    op = getattr(torch.ops.flowinv_fast, f"affine_coupling_{direction}_").default
    torch.library.opcheck(op, (*coupling(mask), ops.MASKS[mask]))


def test_adam_keeps_the_rules_of_torch_library():
    images, values = [torch.rand(3, 2, 5) for _ in range(5)], [torch.rand(3) for _ in range(2)]
    active = torch.tensor([True, False, True])
    op = torch.ops.flowinv_fast.adam_step_.default
    torch.library.opcheck(op, (*images, *values, active, torch.rand(2).double(), 0.9, 0.999, 1e-8))


@pytest.mark.parametrize("bits", [1, 3])
def test_quantiser_is_straight_through(bits):
    x = (2 * torch.randn(4, 3, 7, dtype=torch.float64)).requires_grad_()
    levels = torch.linspace(-1, 1.5, 2**bits, dtype=torch.float64)
    out = ops.quantise_ste(x, bits, -1.0, 1.5)
    nearest = levels[(x.detach()[..., None] - levels).abs().argmin(-1)]
    torch.testing.assert_close(out.detach(), nearest)
    weight = torch.randn_like(x)
    (grad,) = torch.autograd.grad((out * weight).sum(), x)
    assert torch.equal(grad, weight)
    assert torch.equal(ops.sign_ste(torch.tensor([-2.0, 0.0, 3.0])), torch.tensor([-1.0, 1.0, 1.0]))
