"""The laws and operators of bench/problem_set.py against closed forms, and the table."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parent.parent / "bench"
SHAPE = (1, 4, 6)


@pytest.fixture(autouse=True)
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))


def test_correlated_noise_has_the_density_of_its_draws():
    from problem_set import Correlated

    law, size = Correlated(SHAPE, std=0.3, width=0.8, floor=0.1), 24
    spectrum = torch.fft.fft2(torch.eye(size).view(size, *SHAPE))
    columns = torch.fft.ifft2(law.power.sqrt() * spectrum).real.view(size, size).double()
    wanted = torch.distributions.MultivariateNormal(torch.zeros(size).double(), columns.T @ columns)
    residual = 0.3 * torch.randn(5, *SHAPE)
    expected = wanted.log_prob(residual.flatten(1).double())
    torch.testing.assert_close(law.log_prob(residual).double(), expected, rtol=1e-4, atol=1e-3)
    drawn = law.sample((4000, *SHAPE), torch.Generator().manual_seed(0))
    assert abs(drawn.std().item() - 0.3) < 0.01


def test_counts_are_scored_as_poissons_and_rates_stay_positive():
    from problem_set import Poisson

    law, rate = Poisson(peak=20.0), torch.rand(3, *SHAPE) + 0.1
    counts = torch.poisson(20 * rate)
    wanted = torch.distributions.Poisson(20 * rate).log_prob(counts).flatten(1).sum(1)
    torch.testing.assert_close(law.log_likelihood(counts / 20, rate), wanted, rtol=1e-4, atol=1e-3)
    below = (-torch.rand(3, *SHAPE)).requires_grad_()
    law.log_likelihood((counts + 1) / 20, below).sum().backward()
    assert (below.grad > 0).all() and torch.isfinite(below.grad).all()


def test_impulses_are_a_density_of_what_replaces_a_pixel():
    """For a pixel x of [0, 1]: the law of y sums to one, but for tails beyond the range."""
    from problem_set import Impulses

    y = (torch.arange(20_000) + 0.5) / 20_000
    law = Impulses(0.3, 0.02)
    density = law.log_prob((y - 0.4).view(-1, 1)).exp()
    assert abs(density.mean().item() - 1) < 1e-3


def test_lines_of_the_spectrum_have_an_adjoint():
    from problem_set import MaskedFourier

    f, x = MaskedFourier((3, 16, 16), 0.5, 4), torch.randn(2, 3, 16, 16)
    y = torch.randn(2, 2, 3, 16, 16)
    assert f.mask.sum() == 8
    torch.testing.assert_close((f(x) * y).sum(), (x * f.adjoint(y)).sum(), rtol=1e-4, atol=1e-3)


def test_the_table_says_what_was_not_run_and_why(monkeypatch):
    from tables import problems

    cell = lambda *psnr: {"psnr": list(psnr)}
    cells = {"default": cell(20.0, 22.0), "map": cell(20.5, 23.5), "BM3D": {"absent": "a denoiser"}}
    row = {"kind": "grey", "problem": "p", "title": "a problem", "cells": cells}
    facts = {"machine": "m", "device": "cpu", "threads": 1, "torch": "t", "commit": "c"}
    result = {"conditions": {**facts, "images": 2, "steps": None}, "rows": [row]}
    (line,) = [line for line in problems(result) if line.startswith("| a problem")]
    filled = [text.strip() for text in line.split("|")[2:-1]]
    assert filled[:3] == ["", "21.00", "22.00 (map)"] and filled[3].startswith("-1.00 ±")
    assert filled[4:] == ["not run", "not run", "not run", "a denoiser", "not run"]
