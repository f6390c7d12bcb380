"""Weights files: exact round trip, provenance, and every way a file can be wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from helpers import assert_names
from safetensors.torch import load_file, save_file

import flowinv_fast
from flowinv_fast._base.errors import ArgumentError
from flowinv_fast.data import sample_images
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
    (tmp_path / "plain").touch()
    modes = [(tmp_path / name).stat().st_mode for name in ("a.safetensors", "plain")]
    assert modes[0] == modes[1]


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
    paths = [cut, pickled, other, folder, tmp_path / "missing.safetensors"]
    for header in ("{", "[1]", '{"format": "flowinv_fast.realnvp.1"}'):
        paths.append(tmp_path / f"header-{len(paths)}.safetensors")
        save_file(load_file(good), paths[-1], metadata={"flowinv_fast": header})
    for path in paths:
        assert str(path) in assert_names("name_or_path", lambda path=path: load_flow(path))


def test_unknown_name_lists_the_shipped_flows():
    with pytest.raises(ArgumentError, match="fashion-28"):
        load_flow("no-such-flow")


IMAGES = {
    "digits-noise-28": "mnist-28", "mnist-28": "mnist-28", "fashion-28": "fashion-28",
    "photo-64-small": "photo-64",
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_flows(name):
    """On real test images: the round trip, the log-determinant, and a density above noise's."""
    info = available_flows()[name]
    photographs = name == "photo-64-small"
    assert info["bits_per_dim"] > 0
    assert info["held_out_images"] == (500 if photographs else 10000)
    assert {"data", "licence", "command", "seconds", "hardware"} <= set(info)
    flow = load_flow(name)
    x = flow.dequantise(sample_images(IMAGES[name]), seed=torch.randint(2**31, ()).item())
    with torch.no_grad():
        z, encode_logdet = flow.encode(x.clone())
        back, decode_logdet = flow.decode(z.clone())
        score, noise_score = flow.log_prob(x), flow.log_prob(torch.rand_like(x))
    assert (back - x).abs().max() < 1e-4
    torch.testing.assert_close(encode_logdet, -decode_logdet, rtol=1e-4, atol=0.05)
    assert (score > noise_score).all()
    # 32 images against the recorded mean: within a coarse band, crops differ most.
    band = 0.8 if photographs else 0.3
    assert abs(flow.bits_per_dim(score).mean() - info["bits_per_dim"]) < band


def test_shipped_flows_are_small():
    assert set(available_flows()) == set(IMAGES)
    folder = Path(flowinv_fast.__file__).parent / "data" / "weights"
    assert max(p.stat().st_size for p in folder.iterdir()) < 8e6
    assert sum(p.stat().st_size for p in folder.iterdir()) < 10e6
