"""Tensors of every kind as arguments of the ops: the numbers of plain ones, or a clear refusal."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from helpers import assert_names
from op_cases import CASES

from flowinv_fast import ArgumentError, ops
from flowinv_fast._base.tensors import FLOATS, accumulate_dtype
from flowinv_fast.ops import (
    FrozenEngine,
    MixingRecord,
    StandardiseRecord,
    frozen_flow_encode,
    twin,
)

BY_NAME = list({case.name: case for case in CASES}.values())


class Tagged(torch.Tensor):
    """A user's subclass that changes nothing."""


def negated(a):
    return torch._neg_view(-a)


def conjugate(a):
    return torch.complex(torch.zeros_like(a), -a).conj().imag


def far_into_memory(a):
    wide = torch.zeros(a.numel() + 7, dtype=a.dtype)
    wide[7:] = a.flatten()
    return wide[7:].view(a.shape)


@pytest.fixture(autouse=True)
def shapes(seed):
    random.seed(seed)


@pytest.mark.parametrize("kind", [negated, conjugate, far_into_memory, torch.nn.Parameter])
@pytest.mark.parametrize("case", BY_NAME, ids=[case.name for case in BY_NAME])
def test_views_and_parameters_are_their_numbers(case, kind):
    plain = case.draw(torch.float32, torch.device("cpu"), 2)
    is_float = lambda a: isinstance(a, torch.Tensor) and a.is_floating_point()
    given = [kind(a) if is_float(a) else a for a in plain]
    with torch.no_grad():
        got, want = case.op(*given), case.op(*plain)
    as_list = lambda result: list(result) if isinstance(result, tuple) else [result]
    assert all(torch.equal(a, b) for a, b in zip(as_list(got), as_list(want), strict=True))


def test_a_packed_weight_may_be_a_negated_view():
    x, weight = torch.rand(2, 2, 3, 3), torch.tensor([[2.0, 1.0], [0.5, -1.0]])
    mean, std = torch.randn(2, 3, 3), torch.rand(2, 3, 3) + 0.5
    size = torch.linalg.slogdet(weight)[1].item()
    encode = lambda *records: frozen_flow_encode(x, FrozenEngine((2, 3, 3), records))
    want = encode(StandardiseRecord(mean, std), MixingRecord(weight, size))
    got = encode(
        StandardiseRecord(negated(mean), negated(std)), MixingRecord(negated(weight), size)
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert_names("mean", lambda: encode(StandardiseRecord(torch.nan * mean, std)))


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, torch.Tensor.to_mkldnn, "nested"])
def test_layouts_without_an_address_for_every_number(change):
    x, logdet = torch.rand(2, 1, 4, 4), torch.zeros(2)
    other = torch.nested.nested_tensor(list(x)) if change == "nested" else change(x)
    engine = FrozenEngine((1, 4, 4), [])
    for call in (
        lambda: ops.squeeze(other),
        lambda: ops.logit_encode(other, logdet, 0.1),
        lambda: ops.gaussian_log_prob(other, x),
        lambda: frozen_flow_encode(other, engine),
    ):
        with pytest.raises(ArgumentError, match="expected a dense tensor, got one of layout"):
            call()


def calls_with_numbers():
    """Calls of the ops, with the names of those arguments that are no tensors."""
    x, places = torch.rand(2, 1, 4, 4), torch.zeros(2, 1, 3, dtype=torch.int64)
    level, logdet, zeros = torch.rand(2), torch.zeros(2), [torch.zeros(2, 3) for _ in range(5)]
    adam = (*zeros, level, level, torch.ones(2, dtype=torch.bool), torch.ones(2).double())
    pattern = {"shape": (1, 4, 4), "kind": "radial", "rate": 2.0, "floor": 0.0, "ceiling": 1.0}
    return [
        (partial(ops.sigma_map, level), pattern),
        (partial(ops.structured_noise, level, level, offset=1), {**pattern, "seed": 3}),
        (partial(ops.digit_overlay, x[:, 0]), {"shape": (2, 1, 4, 4), "count": 2, "seed": 1}),
        (partial(ops.gather_patches, x, places), {"size": (2, 2)}),
        (partial(ops.scatter_patches, x[..., :2], places), {"shape": (1, 4, 4)}),
        (ops.random_bits, {"n": 3, "seed": 1, "offset": 0}),
        (partial(ops.gaussian_noise, std=level), {"mean": 0.0, "shape": (3, 2), "seed": 1}),
        (partial(ops.dequantise, x), {"levels": 8, "seed": 1, "offset": 0}),
        (partial(ops.logit_encode, x, logdet), {"alpha": 0.1}),
        (partial(ops.quantise_ste, x), {"bits": 2, "low": 0.0, "high": 1.0}),
        (partial(ops.gaussian_log_prob, x, x), {"mean": 0.0, "std": 1.0}),
        (partial(coupling, *arguments()), {"mask": "channel_first"}),
        (partial(ops.adam_rates, level), {"beta1": 0.9, "beta2": 0.99}),
        (partial(ops.adam_step_, *adam), {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8}),
        (partial(frozen_flow_encode, x), {"engine": FrozenEngine((1, 4, 4), [])}),
    ]


JUNK = [None, "x", [[1], [1, 2]], float("nan"), 10**400, (2, "a", 3), (2, 2.5, 3, 4)]
JUNK += [{}, object(), 3 + 1j, torch.rand(2, 2).to_sparse(), torch.empty(2, device="meta")]


def test_what_is_no_number_or_size_is_named():
    for call, good in calls_with_numbers():
        if "mask" not in good:
            call(**good)
        for argument in good:
            for junk in JUNK:
                with pytest.raises(ArgumentError) as caught:
                    call(**{**good, argument: junk})
                named = caught.value.argument, str(caught.value)
                assert named[0] in (argument, "high"), (call, argument, junk, named)


def coupling(x, raw, gain, logdet, suffix="", mask="checkerboard_even"):
    return getattr(ops, f"affine_coupling_encode{suffix}")(x, raw, gain, logdet, mask)


def arguments():
    return torch.rand(2, 1, 4, 4), torch.rand(2, 2, 4, 4), torch.rand(1), torch.zeros(2)


def test_results_do_not_inherit_a_users_subclass():
    given = arguments()
    results = coupling(*(a.as_subclass(Tagged) for a in given))
    assert all(type(t) is torch.Tensor for t in results)
    assert all(torch.equal(a, b) for a, b in zip(results, coupling(*given)))
    leaf = given[0].as_subclass(Tagged).requires_grad_()
    coupling(leaf, *given[1:])[0].sum().backward()
    assert leaf.grad is not None


def test_a_batch_of_single_numbers():
    """(B,) are B images of one number each, compiled and in plain torch alike."""
    x, y, zeros = torch.rand(3), torch.rand(3), torch.zeros(3)
    for name, given in (
        ("logit_encode", (x, zeros, 0.1)),
        ("logit_decode", (x, zeros, 0.1)),
        ("standard_normal_log_prob", (x,)),
        ("gaussian_log_prob", (x, y, torch.zeros(()), torch.ones(()))),
    ):
        found, want = getattr(ops, name)(*given), twin(name)(*given)
        torch.testing.assert_close(found, want[0] if name == "gaussian_log_prob" else want)


def test_writing_in_place_is_seen_by_autograd():
    """A tensor that a gradient still needs must not change without a word."""
    x, raw, gain, logdet = arguments()
    factor = torch.rand_like(x).requires_grad_()
    product = (factor * x).sum()  # keeps x
    coupling(x, raw, gain, logdet, "_")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_writing_in_place_refuses_what_would_be_lost():
    x, raw, gain, logdet = arguments()
    with pytest.raises(ArgumentError, match="no_grad"):
        coupling(x, raw.requires_grad_(), gain, logdet, "_")
    raw.requires_grad_(False)
    assert_names("x", lambda: coupling(negated(x), raw, gain, logdet, "_"))
    with pytest.raises(RuntimeError, match="single memory location"):
        coupling(x[:1].expand(2, 1, 4, 4), raw, gain, logdet, "_")
    with pytest.raises(NotImplementedError, match="writes in place"):
        torch.func.vmap(lambda x: coupling(x, raw, gain, logdet, "_"))(x[None].clone())


def test_first_and_second_derivatives_by_torch_func():
    """Of ops whose backward pass is an op, of one that differentiates its twin, and of a linear."""
    x, raw, gain, logdet = (a.double() for a in arguments())
    weights = torch.randn(x.shape, dtype=torch.float64)
    functions = {
        "coupling": lambda raw: coupling(x, raw, gain, logdet)[0].sin() * weights,
        "logit": lambda raw: ops.logit_encode(raw, logdet, 0.1)[0].sin(),
        "squeeze": lambda raw: ops.squeeze(raw).sin(),
        "normal": lambda raw: ops.standard_normal_log_prob(raw).sin(),
    }
    for function in functions.values():
        total = lambda raw, f=function: f(raw).sum()
        want = torch.autograd.functional.hessian(total, raw)
        torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(total))(raw), want)
        loop = torch.stack([torch.func.grad(total)(r) for r in (raw, 0.5 * raw)])
        both = torch.func.vmap(torch.func.grad(total))(torch.stack([raw, 0.5 * raw]))
        torch.testing.assert_close(both, loop)
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.func.jacfwd(total)(raw)
    with pytest.raises(NotImplementedError, match="dequantise has no gradient"):
        torch.func.grad(lambda x: ops.dequantise(x, 4, 0).sum())(x)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_the_logit_at_and_beyond_its_ends(dtype):
    """Compiled and in plain torch alike: what no latent decodes to has no log-determinant."""
    alpha, past = 0.1, 0.1 / 0.8
    ends = [0.0, 1.0, 0.9 * past + 1, -0.9 * past, 1 + 1.1 * past, -1.1 * past, 1e4, -1e4]
    x = torch.tensor([*ends, torch.inf, -torch.inf, torch.nan], dtype=dtype)[:, None].repeat(1, 40)
    x[:, 1:] = torch.rand(len(x), 39, dtype=torch.float64).to(dtype)
    logdet = torch.zeros(len(x), dtype=accumulate_dtype(dtype))
    grads = []
    for encode in (ops.logit_encode, twin("logit_encode")):
        variable = x.clone().requires_grad_()
        z, total = encode(variable, logdet, alpha)
        assert torch.isfinite(total[:4]).all() and (total[4:10] == -torch.inf).all()
        assert torch.isfinite(z[:10]).all() and total[10].isnan() and z[10, 0].isnan()
        assert (z[:10, 0] > 0).tolist() == [i in (1, 2, 4, 6, 8) for i in range(10)]
        given = torch.ones_like(z), torch.ones_like(total)
        (grad,) = torch.autograd.grad((z, total), variable, given)
        assert torch.isfinite(grad[:10]).all() and (grad[4:10, 0] == 0).all()
        grads.append(grad[:10])
    torch.testing.assert_close(*grads, rtol=1e-2, atol=1e-2)


def test_second_derivatives_of_the_logit_beyond_its_ends():
    x = torch.tensor([[2.0, 0.5, -3.0]], dtype=torch.float64, requires_grad=True)
    z, logdet = ops.logit_encode(x, torch.zeros(1, dtype=torch.float64), 0.1)
    (first,) = torch.autograd.grad(z.sin().sum() + logdet.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert torch.isfinite(second).all() and second[0, 1] != 0 == second[0, 0]


def test_places_of_another_layout_are_refused():
    x, places = torch.rand(1, 1, 4, 4), torch.zeros(1, 2, 3, dtype=torch.int64)
    told = assert_names("places", lambda: ops.gather_patches(x, places.to_sparse(), (2, 2)))
    assert "dense" in told
