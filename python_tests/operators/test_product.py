"""Products of the sensing matrices: their bits in deterministic mode."""

from __future__ import annotations

import pytest
import torch

from flowinv_fast import operators


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("m", "shape"), [(7, (1, 3, 3)), (300, (3, 20, 21))])
def test_bits_depend_on_neither_threads_nor_the_batch(m, shape, dtype, deterministic, threads):
    f = operators.GaussianSensing(m, shape, seed=3)
    x, y = torch.randn(13, *shape, dtype=dtype), torch.randn(13, m, dtype=dtype)
    kept = []
    for count in (1, 2, 3):
        threads(count)
        kept.append((f(x), f.adjoint(y)))
    for got in kept[1:]:
        assert all(torch.equal(a, b) for a, b in zip(got, kept[0], strict=True))
    for size in (1, 5, 12):
        parts = [
            torch.cat([f(p) for p in x.split(size)]),
            torch.cat([*map(f.adjoint, y.split(size))]),
        ]
        assert all(torch.equal(a, b) for a, b in zip(parts, kept[0], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_exact_products_are_at_least_as_close(dtype, deterministic):
    """To the sum in rational arithmetic: one rounding, and those of the slices' ends."""
    f = operators.GaussianSensing(5, (1, 8, 9), seed=1)
    x = torch.randn(2, 1, 8, 9, dtype=dtype) * torch.logspace(-6, 6, 72).view(8, 9)
    rows = [[int(v * 2**80) for v in row.double().tolist()] for row in f.matrix]
    images = [[int(v * 2**80) for v in image.flatten().double().tolist()] for image in x]
    want = [[sum(map(int.__mul__, r, i)) / 2**160 for r in rows] for i in images]
    want = torch.tensor(want, dtype=torch.float64)
    bound = 2 * torch.finfo(dtype).eps * x.flatten(1).abs().amax(1, keepdim=True).double()
    assert ((f(x).double() - want).abs() <= bound).all()


def test_exact_products_have_gradients_of_every_order(deterministic):
    f = operators.GaussianSensing(5, (1, 2, 3)).double()
    x = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(f, (x,)) and torch.autograd.gradgradcheck(f, (x,))
    fx = f(x)
    y = torch.randn_like(fx)
    (grad,) = torch.autograd.grad(fx, x, y)
    assert torch.equal(grad, f.adjoint(y))


def test_a_changed_matrix_is_cut_anew(deterministic):
    f, x = operators.GaussianSensing(5, (1, 2, 3)), torch.randn(2, 1, 2, 3)
    before = f(x)
    f.load_state_dict({"matrix": 2 * f.matrix})
    assert torch.equal(f(x), 2 * before)


def test_what_is_not_finite_stays_in_its_row(deterministic):
    f, x = operators.GaussianSensing(5, (1, 2, 3)), torch.randn(3, 1, 2, 3)
    clean = f(x)
    x[1, 0, 0, 0] = torch.nan
    x[2] = 0
    got = f(x)
    assert torch.equal(got[0], clean[0]) and got[1].isnan().all() and not got[2].any()
    assert f(x[:0]).shape == (0, 5) and f.adjoint(got[:0]).shape == (0, 1, 2, 3)


def test_a_matrix_written_to_without_a_trace_is_seen(deterministic):
    f, x = operators.GaussianSensing(5, (1, 2, 3)), torch.randn(2, 1, 2, 3)
    before = f(x)
    f.matrix.data.mul_(3.0)
    torch.testing.assert_close(f(x), 3 * before)
