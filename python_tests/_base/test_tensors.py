"""Seeds and streams, and parameters that broadcast or have a row per image."""

from __future__ import annotations

import pytest
import torch
from helpers import assert_names

from flowinv_fast import ops
from flowinv_fast._base.tensors import SEEDS, Stream, check_broadcast, check_seed, cut


@pytest.mark.parametrize("seed", [-1, SEEDS, 1.0, True, None])
def test_what_is_no_seed_is_named(seed):
    assert "2^63" in assert_names("seed", lambda: check_seed("f", seed))
    assert_names("offset", lambda: check_seed("f", 0, seed))
    check_seed("f", SEEDS - 1, SEEDS - 1)
    assert "2^40" in assert_names("seed", lambda: check_seed("f", 2**40, seeds=2**40))


def test_streams_of_one_seed_draw_different_numbers():
    drawn = [ops.random_bits(8, stream.of(2**40 - 1)).tolist() for stream in Stream]
    assert len({tuple(numbers) for numbers in drawn}) == len(Stream)


def test_rows_of_a_parameter():
    rows, shape = torch.randn(5, 1, 2, 2), (5, 1, 2, 2)
    assert torch.equal(cut(rows, slice(1, 3), shape), rows[1:3])
    for whole in (0.5, torch.randn(2, 2), torch.randn(1, 1, 2, 2)):
        assert cut(whole, slice(1, 3), shape) is whole


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3, 4, 5)])
def test_what_does_not_broadcast_is_named(shape):
    check_broadcast("f", "std", torch.ones(3, 1, 1), (2, 3, 4, 5))
    assert_names("std", lambda: check_broadcast("f", "std", torch.ones(shape), (2, 3, 4, 5)))
