"""PSNR against its definition."""

from __future__ import annotations

import pytest
import torch

from flowinv_fast import ArgumentError, metrics


def test_psnr_is_per_image_and_clips():
    truth = torch.rand(3, 2, 5, 7)
    x = truth + 0.3 * torch.randn_like(truth)
    for i, got in enumerate(metrics.psnr(x, truth)):
        error = (x[i].clamp(0, 1) - truth[i]).double().square().mean()
        torch.testing.assert_close(got.double(), -10 * error.log10(), rtol=1e-5, atol=1e-5)


def test_psnr_of_a_known_error():
    truth = torch.full((2, 1, 4, 4), 0.5)
    torch.testing.assert_close(metrics.psnr(truth + 0.1, truth), torch.full((2,), 20.0))
    assert metrics.psnr(truth, truth).isposinf().all()


def test_psnr_refuses_other_shapes():
    with pytest.raises(ArgumentError, match="psnr: x: expected shape"):
        metrics.psnr(torch.zeros(1, 1, 4, 5), torch.zeros(1, 1, 4, 4))
