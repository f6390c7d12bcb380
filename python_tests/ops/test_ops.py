"""What every operation owes: the reference's values, gradients, and the rules of torch.library."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import assert_derivatives, strided, tolerance
from op_cases import CASES, IDS

from flowinv_fast import ops

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
each_op = pytest.mark.parametrize("case", CASES, ids=IDS)


@pytest.fixture(autouse=True)
def shapes(seed):
    random.seed(seed)


def tensors_of(result) -> list[torch.Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def as_double(arguments):
    lift = lambda a: a.double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a
    return [lift(a) for a in arguments]


def leaves(arguments):
    """Copies of the floating-point tensors that want a gradient, and the other arguments."""
    wanted = lambda a: isinstance(a, torch.Tensor) and a.is_floating_point()
    return [a.clone().requires_grad_() if wanted(a) else a for a in arguments]


def compare(actual, expected, dtype, n):
    for got, want in zip(tensors_of(actual), tensors_of(expected), strict=True):
        assert got.shape == want.shape
        if not got.is_floating_point():
            assert torch.equal(got, want)
            continue
        scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
        bounds = tolerance(min((dtype, got.dtype), key=lambda t: -torch.finfo(t).eps), n)
        bounds["atol"] *= scale
        torch.testing.assert_close(got.double(), want.double(), **bounds)


@each_op
def test_equals_the_reference_on_200_random_shapes(case, device):
    """In float32 and float64, against the reference in float64 (float32 for random numbers)."""
    for _ in range(100):
        for dtype in (torch.float32, torch.float64):
            arguments = case.draw(dtype, device)
            lifted = as_double(arguments)
            if "quantise" in case.name:  # a tie broken by rounding would move a whole level
                lifted = arguments
            n = max(a.numel() for a in arguments if isinstance(a, torch.Tensor))
            compare(case.op(*arguments), case.twin(*lifted), dtype, n)


@each_op
@pytest.mark.parametrize("dtype", FLOATS[2:], ids=str)
def test_half_storage_computes_in_float32(case, dtype, device):
    for _ in range(20):
        arguments = case.draw(dtype, device)
        lifted = arguments if "quantise" in case.name else as_double(arguments)
        n = max(a.numel() for a in arguments if isinstance(a, torch.Tensor))
        expected = case.twin(*lifted)
        # Outputs are rounded once to storage; sums stay in float32.
        for got, want in zip(tensors_of(case.op(*arguments)), tensors_of(expected), strict=True):
            if not got.is_floating_point():
                assert torch.equal(got, want)
                continue
            eps = torch.finfo(got.dtype).eps
            scale = max(1.0, want.abs().max().item()) if want.numel() else 1.0
            bound = (2 * eps + tolerance(torch.float32, n)["rtol"]) * scale
            torch.testing.assert_close(got.double(), want.double(), rtol=0, atol=bound)


@each_op
def test_rules_of_torch_library(case, device):
    """Schema, fake and autograd registration, with and without gradients."""
    for batch in (0, 2):
        arguments = case.draw(torch.float64, device, batch)
        torch.library.opcheck(case.op, arguments)
        if case.differentiable:
            torch.library.opcheck(case.op, leaves(arguments))


def differentiable_inputs(case, device):
    while True:
        arguments = list(case.draw(torch.float64, device, 2))
        if sum(a.numel() for a in arguments if isinstance(a, torch.Tensor)) < 400:
            break
    for i, a in enumerate(arguments):
        if isinstance(a, torch.Tensor) and a.is_floating_point():
            arguments[i] = a.requires_grad_()
    return arguments


smooth = pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.differentiable and "quantise" not in c.name],
    ids=[i for c, i in zip(CASES, IDS) if c.differentiable and "quantise" not in c.name],
)


@smooth
def test_first_and_second_derivatives(case, device):
    arguments = differentiable_inputs(case, device)
    assert_derivatives(case.op, arguments)
    assert_derivatives(case.op, arguments, second=True, atol=1e-4)


@each_op
def test_strides_do_not_matter(case, device):
    for _ in range(10):
        arguments = case.draw(torch.float32, device, 3)
        views = [strided(a) if isinstance(a, torch.Tensor) and a.dim() else a for a in arguments]
        for got, want in zip(
            tensors_of(case.op(*views)), tensors_of(case.op(*arguments)), strict=True
        ):
            assert torch.equal(got, want)


@each_op
def test_same_bits_for_every_thread_count(case):
    before = torch.get_num_threads()
    try:
        for _ in range(5):
            arguments = case.draw(torch.float32, torch.device("cpu"), 200)
            results = []
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                results.append(tensors_of(case.op(*arguments)))
            for other in results[1:]:
                assert all(torch.equal(a, b) for a, b in zip(results[0], other))
    finally:
        torch.set_num_threads(before)


@each_op
def test_every_output_is_written(case, device):
    """Deterministic mode fills fresh memory with NaN, so an unwritten element would show."""
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(10):
            arguments = case.draw(torch.float32, device, 3)
            for out in tensors_of(case.op(*arguments)):
                assert not out.is_floating_point() or torch.isfinite(out).all()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", [c.name for c in CASES if not c.differentiable])
def test_missing_gradients_raise(name):
    case = next(c for c in CASES if c.name == name)
    arguments = leaves(case.draw(torch.float32, torch.device("cpu"), 2))
    outputs = [
        o for o in tensors_of(case.op(*arguments)) if o.is_floating_point() and o.requires_grad
    ]
    if outputs:
        with pytest.raises(NotImplementedError, match="no gradient"):
            outputs[0].sum().backward()


def test_forward_mode_derivatives_raise():
    """Torch takes the tangent of an op without a forward-mode derivative for zero."""
    x = torch.rand(2, 2, 4, 4)
    raw, gain, logdet = torch.rand(2, 4, 4, 4), torch.rand(2), torch.zeros(2)
    couple = lambda raw: ops.affine_coupling_encode(x, raw, gain, logdet, "checkerboard_even")
    for function, at in (
        (ops.squeeze, x),
        (couple, raw),
        (lambda x: ops.standard_normal_log_prob(x.flatten(1)), x),
    ):
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            torch.func.jvp(function, (at,), (torch.ones_like(at),))
        with torch.autograd.forward_ad.dual_level():
            function(at)
