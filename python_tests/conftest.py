"""Fixtures: every test draws fresh random inputs, from a seed that a failure prints."""

from __future__ import annotations

import os
import secrets

import pytest
import torch

# Tensors here are tiny: one thread is fastest, and does not spin against a busy machine's others.
torch.set_num_threads(1)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(autouse=True)
def seed(record_property) -> int:
    """A fresh seed; FLOWINV_TEST_SEED repeats a failure."""
    value = int(os.environ.get("FLOWINV_TEST_SEED", secrets.randbelow(2**31)))
    print(f"FLOWINV_TEST_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """The CPU always, a GPU where there is one."""
    return torch.device(request.param)
