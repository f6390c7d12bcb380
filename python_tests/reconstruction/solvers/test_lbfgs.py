"""L-BFGS: known minima, images that do not influence one another, ends."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from flowinv_fast.reconstruction.objectives import Terms
from flowinv_fast.reconstruction.solvers import Status, lbfgs


def terms(loss: torch.Tensor) -> Terms:
    return Terms(loss, -loss, torch.zeros_like(loss))


def rosenbrock(x: torch.Tensor) -> Terms:
    rough, smooth = x[:, 1:] - x[:, :-1] ** 2, 1 - x[:, :-1]
    return terms((100 * rough**2 + smooth**2).sum(1))


class Quadratics:
    """(x - centre)^T H (x - centre) / 2, an H of condition 1e4 for each image."""

    def __init__(self, batch: int, size: int):
        self.centre = torch.randn(batch, size, dtype=torch.float64)
        basis = torch.linalg.qr(torch.randn(batch, size, size, dtype=torch.float64))[0]
        self.hessian = basis @ torch.diag(torch.logspace(-2, 2, size).double()) @ basis.mT

    def __call__(self, x):
        away = (x - self.centre)[:, :, None]
        return terms(0.5 * (away.mT @ self.hessian @ away)[:, 0, 0])


def test_ill_conditioned_quadratics_in_far_fewer_steps_than_their_condition():
    """scipy's L-BFGS-B is at about 1e-6 after 150 evaluations of such a one."""
    problem = Quadratics(4, 12)
    found = lbfgs(problem, torch.randn(4, 12, dtype=torch.float64), steps=300)
    assert found.terms.loss.max() < 1e-6
    torch.testing.assert_close(found.terms.loss, problem(found.best).loss)


def test_rosenbrock_as_scipy():
    start = 0.3 * torch.randn(3, 6, dtype=torch.float64)
    found = lbfgs(rosenbrock, start, steps=400)
    for x0, loss in zip(start.numpy(), found.terms.loss.tolist()):
        theirs = scipy.optimize.minimize(
            scipy.optimize.rosen, x0, jac=scipy.optimize.rosen_der, method="L-BFGS-B"
        )
        # Either may end in the local minimum near (-1, 1, ..., 1); both are stationary.
        assert min(abs(loss - theirs.fun), loss) < 1e-6
    slope = np.abs([scipy.optimize.rosen_der(x) for x in found.best.numpy()]).max()
    assert slope < 1e-4
    assert found.status == [Status.CONVERGED] * 3


def test_the_loss_never_rises_and_the_start_is_not_changed():
    start = torch.randn(5, 8, dtype=torch.float64)
    before = start.clone()
    found = lbfgs(rosenbrock, start, steps=60)
    assert torch.equal(start, before)
    assert (found.history.diff(dim=0) <= 0).all()
    assert (found.history[0] <= rosenbrock(start).loss).all()
    assert (found.steps <= 60).all()


def test_together_equals_alone_and_inactive_images_stay():
    problem, start = Quadratics(3, 7), torch.randn(3, 7, dtype=torch.float64)
    active = torch.tensor([True, False, True])
    found = lbfgs(problem, start, steps=40, active=active)
    assert torch.equal(found.best[1], start[1])
    for i in (0, 2):
        own = Quadratics(1, 7)
        own.centre, own.hessian = problem.centre[i : i + 1], problem.hessian[i : i + 1]
        alone = lbfgs(own, start[i : i + 1], steps=40)
        torch.testing.assert_close(found.best[i], alone.best[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), (2, 1, 3, 3)])
def test_any_shape(shape):
    square = lambda x: terms((x - 1).square().flatten(1).sum(1))
    found = lbfgs(square, torch.zeros(shape, dtype=torch.float64), steps=20)
    torch.testing.assert_close(found.best, torch.ones(shape, dtype=torch.float64))


def test_a_wall_is_not_crossed_and_a_bad_start_fails():
    """x - log x has its minimum at 1 and is NaN on the left of 0."""
    barrier = lambda x: terms((x - x.log()).sum(1))
    start = torch.tensor([[1e-3, 2.0], [-1.0, 1.0]], dtype=torch.float64)
    found = lbfgs(barrier, start, steps=80)
    torch.testing.assert_close(found.best[0], torch.ones(2).double(), rtol=0, atol=1e-5)
    assert found.status[1] is Status.FAILED
    assert math.isfinite(found.terms.loss[0])


def test_interrupt_keeps_the_best():
    def impatient(step, losses, x):
        if step == 7:
            raise KeyboardInterrupt

    found = lbfgs(rosenbrock, torch.randn(2, 6).double(), steps=100, callback=impatient)
    assert found.status == [Status.INTERRUPTED] * 2
    assert len(found.history) == 8 and found.steps.tolist() == [8, 8]


def test_what_a_callback_gets_is_its_own():
    start, kept = torch.randn(2, 6).double(), []

    def spoil(step, losses, x):
        kept.append((losses.clone(), x.clone()))
        losses.zero_(), x.zero_()

    got, want = (
        lbfgs(rosenbrock, start, steps=20, callback=spoil),
        lbfgs(rosenbrock, start, steps=20),
    )
    assert torch.equal(got.best, want.best) and torch.equal(got.history, want.history)
    assert all(torch.equal(rosenbrock(x).loss, losses) for losses, x in kept)
