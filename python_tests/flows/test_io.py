"""Weights files: exact round trip, provenance, and every way a file can be wrong."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from flowinv_fast.errors import ArgumentError
from flowinv_fast.flows import RealNVP, RealNVPConfig, available_flows, load_flow, save_flow


@pytest.fixture
def flow() -> RealNVP:
    flow = RealNVP(RealNVPConfig((1, 8, 8), scales=2, hidden=4, blocks=1, support="bounded"))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def test_round_trip_is_exact(flow, tmp_path):
    save_flow(flow, tmp_path / "a.safetensors", {"data": "none", "bits_per_dim": 3.5})
    again = load_flow(tmp_path / "a.safetensors")
    assert again.config == flow.config and again.info["bits_per_dim"] == 3.5
    for name, tensor in flow.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not again.training and not any(p.requires_grad for p in again.parameters())
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_half_storage_stays_invertible(flow, tmp_path):
    save_flow(flow, tmp_path / "h.safetensors", dtype=torch.float16)
    save_flow(flow, tmp_path / "f.safetensors")
    assert (tmp_path / "h.safetensors").stat().st_size < (tmp_path / "f.safetensors").stat().st_size
    again = load_flow(tmp_path / "h.safetensors", dtype=torch.float64)
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    z, _ = again.encode(x)
    torch.testing.assert_close(again.decode(z)[0], x, atol=1e-10, rtol=0)


def test_wrong_files(flow, tmp_path):
    good = tmp_path / "good.safetensors"
    save_flow(flow, good)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    pickled = tmp_path / "pickled.safetensors"
    pickled.write_bytes(pickle.dumps({"a": 1}))
    other = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(3)}, other)
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (cut, pickled, other, folder, tmp_path / "missing.safetensors"):
        with pytest.raises(ArgumentError) as error:
            load_flow(path)
        assert error.value.argument == "name_or_path" and str(path) in str(error.value)


def test_unknown_name_lists_the_shipped_flows():
    with pytest.raises(ArgumentError, match="fashion-28"):
        load_flow("no-such-flow")


@pytest.mark.parametrize("name", ["digits-noise-28", "fashion-28"])
def test_shipped_flows(name):
    """Each shipped flow inverts, and scores real-looking samples above noise."""
    info = available_flows()[name]
    assert info["bits_per_dim"] > 0 and info["held_out_images"] == 10000
    flow = load_flow(name)
    x = flow.sample(8, 0.7, torch.Generator().manual_seed(0))
    with torch.no_grad():
        z, encode_logdet = flow.encode(x)
        back, decode_logdet = flow.decode(z)
        noise = torch.rand_like(x)
        assert (flow.log_prob(x) > flow.log_prob(noise)).all()
    assert (back - x).abs().max() < 1e-4
    torch.testing.assert_close(encode_logdet, -decode_logdet, rtol=1e-4, atol=0.05)
