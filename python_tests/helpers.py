"""Tolerances and reference computations that several tests share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from flowinv_fast import ArgumentError


def tolerance(dtype: torch.dtype, n: int = 1) -> dict[str, float]:
    """Bounds for a result of n rounded operations of size about one.

    16 eps sqrt(n): independent roundings add up like a random walk, and 16 leaves room for the
    few roundings inside each of them (an exponential, a logarithm, a quotient).
    """
    bound = 16 * torch.finfo(dtype).eps * max(1, n) ** 0.5
    return {"rtol": bound, "atol": bound}


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values as a view whose last dimension has stride 2."""
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


def assert_names(argument: str, call: Callable[[], object]) -> str:
    """The call raises one ArgumentError that names this argument; returns its message."""
    with pytest.raises(ArgumentError) as caught:
        call()
    assert caught.value.argument == argument
    return str(caught.value)
