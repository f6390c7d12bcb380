"""The classical baselines against scikit-learn, numpy's formulas, and their own noise."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from helpers import assert_names, strided

from flowinv_fast import operators
from flowinv_fast.baselines import bm3d, lasso_dct, wiener
from flowinv_fast.data import sample_images
from flowinv_fast.metrics import psnr

SHAPE = (2, 4, 4)
SIZE = math.prod(SHAPE)


def dct_basis(height: int, width: int) -> np.ndarray:
    """Columns: the orthonormal two-dimensional DCT-II's images, row after row, from its cosines."""

    def cosines(n: int) -> np.ndarray:
        k, i = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
        scale = np.where(k == 0, math.sqrt(1 / n), math.sqrt(2 / n))
        return scale * np.cos(math.pi * (i + 0.5) * k / n)

    return np.kron(cosines(height), cosines(width)).T


def random_images(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Correlated pixels, a mean that is not zero."""
    mixing = torch.randn(SIZE, SIZE, dtype=dtype) / 4
    return (torch.randn(count, SIZE, dtype=dtype) @ mixing + torch.rand(SIZE)).view(-1, *SHAPE)


# --- LASSO ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, alpha", [("fashion-28", 1e-3), ("mnist-28", 1e-4)])
def test_lasso_is_scikit_learns(name, alpha):
    linear_model = pytest.importorskip("sklearn.linear_model")
    truth = sample_images(name)[torch.randint(32, (1,))].double()
    operator = operators.GaussianSensing(300, (1, 28, 28), torch.randint(2**31, ()).item())
    y = operator(truth)
    y = y + 0.02 * torch.randn_like(y)
    basis = dct_basis(28, 28)
    solver = linear_model.Lasso(alpha, fit_intercept=False, tol=1e-8, max_iter=100_000)
    solver.fit(operator.matrix.double().numpy() @ basis, y[0].numpy())
    want = torch.from_numpy(basis @ solver.coef_).view(1, 1, 28, 28)
    got = lasso_dct(y, operator, operator.adjoint, (1, 28, 28), alpha, steps=1000)
    assert (psnr(got, truth) - psnr(want, truth)).abs() < 0.05
    coefficients = basis.T @ got.flatten().numpy()
    assert np.abs(coefficients - solver.coef_).max() < 0.005 * np.abs(solver.coef_).max()
    assert 20 < np.count_nonzero(solver.coef_) < 784  # neither all nor nothing


def test_lasso_of_the_identity_is_a_soft_threshold():
    """Every channel in its own basis; the noise's mean taken off first."""
    same, alpha, mean = operators.Identity(), 0.01, torch.randn(SHAPE).double()
    y, basis = torch.randn(3, *SHAPE, dtype=torch.float64), torch.from_numpy(dct_basis(4, 4))
    coefficients = (y - mean).flatten(2) @ basis
    kept = coefficients.sign() * (coefficients.abs() - SIZE * alpha).clamp_min(0)
    got = lasso_dct(y, same, same.adjoint, SHAPE, alpha, mean, steps=200)
    torch.testing.assert_close(got, (kept @ basis.T).view(-1, *SHAPE), rtol=1e-6, atol=1e-6)
    assert (kept == 0).any() and (kept != 0).any()


def test_lasso_without_weight_is_least_squares():
    operator = operators.GaussianSensing(4 * SIZE, SHAPE, torch.randint(2**31, ()).item())
    y = torch.randn(3, 4 * SIZE, dtype=torch.float64)
    want = np.linalg.lstsq(operator.matrix.double().numpy(), y.T.numpy() - 0.3, rcond=None)[0]
    got = lasso_dct(y, operator, operator.adjoint, SHAPE, 0, 0.3, steps=300)
    torch.testing.assert_close(got.flatten(1), torch.from_numpy(want.T), rtol=1e-6, atol=1e-6)


def test_so_heavy_a_weight_leaves_nothing():
    operator = operators.GaussianSensing(10, SHAPE)
    got = lasso_dct(torch.rand(2, 10), operator, operator.adjoint, SHAPE, 100.0, steps=5)
    assert torch.equal(got, torch.zeros(2, *SHAPE))


def test_lasso_of_several_images_equals_one_by_one():
    operator = operators.GaussianSensing(20, SHAPE, torch.randint(2**31, ()).item())
    y = torch.randn(4, 20)
    solve = lambda y: lasso_dct(y, operator, operator.adjoint, SHAPE, 0.01, steps=100)
    together = solve(y)
    assert together.dtype == y.dtype and together.shape == (4, *SHAPE)
    for i in range(4):
        torch.testing.assert_close(solve(y[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-5)
    assert torch.equal(solve(strided(y).requires_grad_()), together)
    assert solve(y[:0]).shape == (0, *SHAPE)


BAD_LASSO = {
    "y-type": ("y", {"y": [1.0]}),
    "y-int": ("y", {"y": torch.zeros(2, 10, dtype=torch.int64)}),
    "y-shape": ("y", {"y": torch.zeros(2, 11)}),
    "shape": ("shape", {"shape": (4, 4)}),
    "alpha-negative": ("alpha", {"alpha": -1e-3}),
    "alpha-nan": ("alpha", {"alpha": math.nan}),
    "alpha-inf": ("alpha", {"alpha": math.inf}),
    "alpha-type": ("alpha", {"alpha": "small"}),
    "steps": ("steps", {"steps": 0}),
    "steps-type": ("steps", {"steps": 2.5}),
}


@pytest.mark.parametrize("case", BAD_LASSO)
def test_bad_argument_of_lasso_is_named(case):
    argument, change = BAD_LASSO[case]
    operator = operators.GaussianSensing(10, SHAPE)
    call = {
        "y": torch.zeros(2, 10),
        "operator": operator,
        "adjoint": operator.adjoint,
        "shape": SHAPE,
        "alpha": 0.1,
        "steps": 2,
        **change,
    }
    assert_names(argument, lambda: lasso_dct(**call))


# --- Wiener --------------------------------------------------------------------------------------


def posterior_mean(y, matrix, images, variances, offset):
    """numpy's C A^T (A C A^T + S)^-1, C the images' covariance and a thousandth of its mean."""
    flat = images.flatten(1).double().numpy()
    covariance = np.cov(flat, rowvar=False)
    covariance = covariance + 1e-3 * covariance.diagonal().mean() * np.eye(len(covariance))
    mu = flat.mean(0)
    gain = covariance @ matrix.T
    gain = gain @ np.linalg.inv(matrix @ covariance @ matrix.T + np.diag(variances))
    residual = y.flatten(1).double().numpy() - mu @ matrix.T - offset
    return torch.from_numpy(mu + residual @ gain.T).view(-1, *images.shape[1:])


@pytest.mark.parametrize("count", [5, 200])
@pytest.mark.parametrize("level", ["number", "each"])
def test_wiener_is_the_gaussian_posterior_mean(count, level):
    """With fewer images than pixels, and with many; one std, and one per measurement."""
    m = 11
    operator = operators.GaussianSensing(m, SHAPE, torch.randint(2**31, ()).item())
    images, y = random_images(count), torch.randn(3, m, dtype=torch.float64)
    std = 0.3 if level == "number" else torch.rand(m).double() + 0.05
    mean = torch.randn(m).double()
    want = posterior_mean(
        y, operator.matrix.double().numpy(), images, np.broadcast_to(std, m) ** 2, mean.numpy()
    )
    got = wiener(y, operator, images, std, mean)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)
    single = wiener(y.float(), operator, images.float(), std, mean.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), want, rtol=1e-3, atol=1e-3)


def test_wiener_of_masked_images():
    """Measurements shaped like images; a std with a row for all images."""
    mask = (torch.rand(SHAPE) < 0.6).double()
    images, y = random_images(60), torch.randn(2, *SHAPE, dtype=torch.float64)
    std = torch.rand(1, *SHAPE).double() + 0.1
    got = wiener(y, operators.Inpaint(mask), images, std)
    want = posterior_mean(
        y, np.diag(mask.flatten().numpy()), images, std.flatten().numpy() ** 2, 0.0
    )
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-8)


def test_wiener_trusts_exact_measurements_and_ignores_lost_ones():
    images, y = random_images(200), torch.randn(2, *SHAPE, dtype=torch.float64)
    std = torch.full(SHAPE, 1e6).double()
    std[:, :2] = 0
    got = wiener(y, operators.Identity(), images, std)
    torch.testing.assert_close(got[:, :, :2], y[:, :, :2], rtol=1e-6, atol=1e-6)
    assert (got - y)[:, :, 2:].abs().max() > 0.1


def test_wiener_of_no_images():
    got = wiener(torch.zeros(0, SIZE), lambda x: x.flatten(1), random_images(3).float(), 0.1)
    assert got.shape == (0, *SHAPE) and got.dtype == torch.float32


BAD_WIENER = {
    "y-type": ("y", {"y": [1.0]}),
    "y-int": ("y", {"y": torch.zeros(2, 10, dtype=torch.int64)}),
    "y-shape": ("y", {"y": torch.zeros(2, 11)}),
    "images-type": ("images", {"images": [1.0]}),
    "images-one": ("images", {"images": torch.zeros(1, *SHAPE)}),
    "images-shape": ("images", {"images": torch.zeros(5, SIZE)}),
    "std-negative": ("std", {"std": -0.1}),
    "std-nan": ("std", {"std": math.nan}),
    "std-per-image": ("std", {"std": torch.ones(2, 10)}),
    "std-shape": ("std", {"std": torch.ones(9)}),
    "std-type": ("std", {"std": "loud"}),
}


@pytest.mark.parametrize("case", BAD_WIENER)
def test_bad_argument_of_wiener_is_named(case):
    argument, change = BAD_WIENER[case]
    call = {
        "y": torch.zeros(2, 10),
        "operator": operators.GaussianSensing(10, SHAPE),
        "images": random_images(5).float(),
        "std": 0.1,
        **change,
    }
    assert_names(argument, lambda: wiener(**call))


# --- BM3D ----------------------------------------------------------------------------------------


@pytest.fixture
def deepinv():
    """BM3D's own package, and the wavelets that it needs."""
    pytest.importorskip("ptwt")
    return pytest.importorskip("deepinv")


def noisy(count: int, std: float | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    truth = sample_images("fashion-28")[torch.randperm(32)[:count]]
    return truth, truth + torch.as_tensor(std).view(-1, 1, 1, 1) * torch.randn_like(truth)


def test_bm3d_denoises_real_images(deepinv):
    truth, y = noisy(3, 0.2)
    got = bm3d(y, 0.2)
    assert got.shape == y.shape and got.dtype == y.dtype and not got.requires_grad
    assert (psnr(got, truth) - psnr(y, truth)).mean() > 3
    double = bm3d(y[:1].double(), 0.2)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double[0].float(), got[0], rtol=1e-4, atol=1e-4)


def test_bm3d_takes_each_images_own_level(deepinv):
    stds = torch.tensor([0.05, 0.2])
    _, y = noisy(2, stds)
    got = bm3d(y, stds)
    for i in range(2):
        alone = bm3d(y[i : i + 1], stds[i].item())[0]
        torch.testing.assert_close(got[i], alone, rtol=1e-5, atol=1e-5)
    assert (bm3d(y[:1], 0.2) - got[:1]).abs().max() > 0.01


def test_bm3d_of_no_images(deepinv):
    assert bm3d(torch.zeros(0, 1, 28, 28), 0.1).shape == (0, 1, 28, 28)


@pytest.mark.parametrize("missing", ["deepinv.models", "ptwt"])
def test_bm3d_without_its_packages_names_the_extra(missing, monkeypatch):
    if missing == "ptwt":
        pytest.importorskip("deepinv")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"pip install 'flowinv_fast\[baselines\]'"):
        bm3d(torch.zeros(1, 1, 28, 28), 0.1)


IMAGES = torch.zeros(2, 1, 8, 8)
BAD_BM3D = {
    "y-type": ("y", {"y": [1.0]}),
    "y-rank": ("y", {"y": torch.zeros(8, 8)}),
    "y-small": ("y", {"y": torch.zeros(2, 1, 8, 7)}),
    "y-int": ("y", {"y": IMAGES.to(torch.uint8)}),
    "std-negative": ("std", {"std": -0.1}),
    "std-nan": ("std", {"std": math.nan}),
    "std-inf": ("std", {"std": math.inf}),
    "std-shape": ("std", {"std": torch.ones(3)}),
    "std-map": ("std", {"std": torch.ones(2, 1, 8, 8)}),
    "std-type": ("std", {"std": "loud"}),
}


@pytest.mark.parametrize("case", BAD_BM3D)
def test_bad_argument_of_bm3d_is_named(case):
    """Before anything is imported."""
    argument, change = BAD_BM3D[case]
    assert_names(argument, lambda: bm3d(**{"y": IMAGES, "std": 0.1, **change}))
