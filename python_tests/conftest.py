"""Fixtures: every test draws fresh random inputs, from a seed that a failure prints."""

from __future__ import annotations

import os
import secrets
import signal

import pytest
import torch

# Tensors here are tiny: one thread is fastest, and does not spin against a busy machine's others.
torch.set_num_threads(1)

# A shell's background job, and all that it starts, ignores Ctrl-C unless told otherwise.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


@pytest.fixture(autouse=True)
def seed(record_property) -> int:
    """A fresh seed; FLOWINV_TEST_SEED repeats a failure."""
    value = int(os.environ.get("FLOWINV_TEST_SEED", secrets.randbelow(2**31)))
    print(f"FLOWINV_TEST_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def modes():
    """A test that leaves torch in another mode fails itself, not those that come after it."""
    look = lambda: (torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device())
    before = look()
    yield
    after = look()
    torch.set_grad_enabled(before[0])
    torch.set_default_dtype(before[1])
    torch.set_default_device(None)
    assert after == before


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """The CPU always, a GPU where there is one."""
    return torch.device(request.param)
