"""Seeds and streams, and what broadcasts."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import assert_names

import flowinv_fast as ff
from flowinv_fast import ops
from flowinv_fast._base.tensors import (
    RESTARTS,
    SEEDS,
    STEPS,
    Stream,
    annealing_stream,
    check_broadcast,
    check_seed,
    known_device,
    start_stream,
    stream_offset,
)


@pytest.mark.parametrize("seed", [-1, SEEDS, 1.0, True, None])
def test_what_is_no_seed_is_named(seed):
    assert "2^63" in assert_names("seed", lambda: check_seed("f", seed))
    assert_names("offset", lambda: check_seed("f", 0, seed))
    check_seed("f", SEEDS - 1, SEEDS - 1)
    assert "2^40" in assert_names("seed", lambda: check_seed("f", 2**40, seeds=2**40))


def test_streams_of_one_seed_draw_different_numbers():
    drawn = [ops.random_bits(8, stream.of(2**40 - 1)).tolist() for stream in Stream]
    assert len({tuple(numbers) for numbers in drawn}) == len(Stream)


@pytest.mark.parametrize("shape", [(3,), (2, 2, 3, 4, 5)])
def test_what_does_not_broadcast_is_named(shape):
    check_broadcast("f", "std", torch.ones(3, 1, 1), (2, 3, 4, 5))
    assert_names("std", lambda: check_broadcast("f", "std", torch.ones(shape), (2, 3, 4, 5)))


def test_no_two_steps_share_random_numbers():
    """The parts of Philox's offsets of starts and annealing steps do not overlap."""
    assert annealing_stream(0, 2**14) != annealing_stream(1, 0)
    chosen = [
        0,
        1,
        2**14 - 2,
        2**14 - 1,
        2**14,
        2**15,
        STEPS - 1,
        *random.sample(range(STEPS), 300),
    ]
    restarts = [0, 1, 2, RESTARTS - 1, random.randrange(RESTARTS)]
    streams = {start_stream(r) for r in restarts}
    streams |= {annealing_stream(r, s) for r in restarts for s in chosen}
    assert len(streams) == len(set(restarts)) * (1 + len(set(chosen)))
    assert all(0 <= stream_offset(s, 2**20, 784) < 2**63 for s in streams)
    assert stream_offset(annealing_stream(2, 5), 3, 8) == (((3 << 14) + 6) << 36) + 6
    assert_names("steps", lambda: annealing_stream(0, STEPS))
    assert_names("restarts", lambda: start_stream(RESTARTS))


@pytest.mark.parametrize("device", ["x", "cuda:99", "cpu:x", 1.5, "", ["cpu"]])
def test_a_device_that_is_not_there_is_named(device, tmp_path):
    flow = ff.realnvp(ff.RealNVPConfig((1, 8, 8), scales=1, hidden=4, blocks=0))
    (tmp_path / "found").touch()
    calls = [
        lambda: ops.random_bits(3, 0, device=device),
        lambda: ops.transformed_map(1, 2, 2, "channel_first", device),
        lambda: ff.noise.Gaussian(0.1).sample((1, 2), device=device),
        lambda: flow.freeze(device=device),
        lambda: ff.load_flow("mnist-28", device),
        lambda: ff.generators.load_generator("fashion-vae-28", device),
        lambda: ff.Reconstruction.load(tmp_path / "found", device),
    ]
    for call in calls:
        assert "cpu" in assert_names("device", call)


@pytest.mark.parametrize("mask", ["none", 0, None, ["channel_first"]])
def test_a_mask_that_is_none_is_named(mask):
    assert "channel_first" in assert_names("mask", lambda: ops.transformed_map(1, 2, 2, mask))


@pytest.mark.parametrize("device", [10**30, 2**40, -5, "home", 3.5])
def test_what_is_no_device_is_named(device):
    assert_names("device", lambda: known_device("f", device))
