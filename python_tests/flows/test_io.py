"""Weights files: exact round trip, provenance, and every way a file can be wrong."""

from __future__ import annotations

import json
import pickle
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from helpers import assert_names
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import flowinv_fast
from flowinv_fast._base.errors import ArgumentError
from flowinv_fast.data import sample_images
from flowinv_fast.flows import (
    AffineCoupling,
    ChannelMixing,
    Flow,
    FlowConfig,
    GlowConfig,
    RealNVPConfig,
    Standardise,
    available_flows,
    build_flow,
    io,
    load_flow,
    save_flow,
)
from flowinv_fast.flows.multi_scale import multi_scale_layers

CONFIGS = [
    RealNVPConfig((1, 8, 8), scales=2, hidden=4, blocks=1, support="bounded"),
    GlowConfig((1, 8, 8), scales=2, hidden=4, blocks=1, prior_hidden=3),
    GlowConfig((1, 8, 8), scales=2, hidden=4, blocks=1, mixing=False),
]


@pytest.fixture(params=CONFIGS, ids=["realnvp", "glow", "glow-unmixed"])
def flow(request) -> Flow:
    flow = build_flow(request.param)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def test_round_trip_is_exact(flow, tmp_path):
    save_flow(flow, tmp_path / "a.safetensors", {"data": "none", "bits_per_dim": 3.5})
    again = load_flow(tmp_path / "a.safetensors")
    assert type(again.config) is type(flow.config) and again.config == flow.config
    assert repr(again) == repr(flow)
    assert again.info["bits_per_dim"] == 3.5
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
    keys = [k for k in flow.state_dict() if k.endswith(("mean", "std"))]
    with safe_open(tmp_path / "h.safetensors", framework="pt") as file:
        assert len(keys) == 2 and all(file.get_tensor(k).dtype == torch.float32 for k in keys)
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
    for header in ("{", "[1]", '{"format": "flowinv_fast.flow.1"}'):
        paths.append(tmp_path / f"header-{len(paths)}.safetensors")
        save_file(load_file(good), paths[-1], metadata={"flowinv_fast": header})
    for path in paths:
        assert str(path) in assert_names("name_or_path", lambda path=path: load_flow(path))


def test_files_of_other_layers(flow, tmp_path):
    """A tensor is missing, of another shape, or too many; or nothing of that name is built."""
    good = tmp_path / "good.safetensors"
    save_flow(flow, good)
    with safe_open(good, framework="pt") as file:
        header = json.loads(file.metadata()["flowinv_fast"])
    name = next(key for key in flow.state_dict() if key.endswith("conditioner.first.direction"))

    def refused(words: str, tensors: dict, **changes) -> None:
        changed = json.dumps({**header, **changes})
        save_file(tensors, tmp_path / "bad.safetensors", metadata={"flowinv_fast": changed})
        assert words in assert_names(
            "name_or_path", lambda: load_flow(tmp_path / "bad.safetensors")
        )

    whole = load_file(good)
    refused(f"no tensor {name}", {k: t for k, t in whole.items() if k != name})
    refused(f"tensor {name} is of shape (1,), not (4, ", {**whole, name: torch.zeros(1)})
    refused("tensor layers.99.mean is unknown", {**whole, "layers.99.mean": torch.zeros(1)})
    refused("'maf' is none of realnvp, glow", whole, architecture="maf")
    refused("scales", whole, config={**header["config"], "scales": 0})
    refused("depth", whole, config={**header["config"], "depth": 3})


def test_flows_that_no_file_could_bring_back(tmp_path):
    """Of layers of one's own, or of other layers than the config stands for."""
    own = Flow([Standardise((1, 8, 8))], FlowConfig((1, 8, 8)))
    path = tmp_path / "flow.safetensors"
    assert "realnvp or glow" in assert_names("flow", lambda: save_flow(own, path))
    config = CONFIGS[0]

    class Mine(Flow):
        pass

    layers = multi_scale_layers(config)
    wider = multi_scale_layers(replace(config, hidden=config.hidden + 1))
    for other in (Flow(layers[:-1], config), Mine(layers, config), Flow(wider, config)):
        assert_names("flow", lambda other=other: save_flow(other, path))
    layers[2] = type("Mine", (AffineCoupling,), {})(1, 4, 1)
    assert_names("flow", lambda: save_flow(Flow(layers, config), path))
    assert not path.exists()


def test_an_architecture_of_ones_own_is_entered_in_the_table(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Config(FlowConfig):
        turns: int = 1

    def build(config: Config) -> Flow:
        return Flow([ChannelMixing(3) for _ in range(config.turns)], config)

    monkeypatch.setitem(io.ARCHITECTURES, "turns", (Config, build))
    flow = build(Config((3, 2, 2), turns=2))
    save_flow(flow, tmp_path / "flow.safetensors")
    again = load_flow(tmp_path / "flow.safetensors")
    x = torch.rand(2, 3, 2, 2)
    assert isinstance(again.config, Config) and torch.equal(again.encode(x)[0], flow.encode(x)[0])


def test_saving_draws_no_random_numbers(flow, tmp_path):
    before = torch.get_rng_state()
    save_flow(flow, tmp_path / "flow.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn, "float16"]
)
def test_a_type_that_holds_no_weights_is_refused(flow, tmp_path, dtype):
    path = tmp_path / "flow.safetensors"
    assert "float16" in assert_names("dtype", lambda: save_flow(flow, path, dtype=dtype))
    assert not any(tmp_path.iterdir())


def test_a_weight_beyond_the_type_is_refused_before_anything_is_written(flow, tmp_path):
    path = tmp_path / "flow.safetensors"
    with torch.no_grad():
        flow.gains()[0][0] = 1e5
    message = assert_names("weights", lambda: save_flow(flow, path, dtype=torch.float16))
    assert "gain" in message and "float16" in message and not any(tmp_path.iterdir())
    save_flow(flow, path, dtype=torch.bfloat16)
    assert load_flow(path).gains()[0][0] > 9e4


def test_unknown_name_lists_the_shipped_flows():
    with pytest.raises(ArgumentError, match="fashion-28"):
        load_flow("no-such-flow")


IMAGES = {
    "digits-noise-28": "mnist-28",
    "mnist-28": "mnist-28",
    "fashion-28": "fashion-28",
    "fashion-28-tarflow": "fashion-28",
    "photo-64-small": "photo-64",
    "photo-patch-16-tarflow": "photo-64",
}


def own_images(flow, name):
    """Shipped images of its kind; of their middle for a flow of patches."""
    _, height, width = flow.shape
    images = sample_images(IMAGES[name])
    top, left = ((n - size) // 2 for n, size in zip(images.shape[2:], (height, width)))
    return images[:, :, top : top + height, left : left + width].contiguous()


@pytest.mark.parametrize("name", IMAGES)
def test_shipped_flows(name):
    """On real test images: the round trip, the log-determinant, and a density above noise's."""
    info = available_flows()[name]
    photographs = name.startswith("photo")
    assert info["bits_per_dim"] > 0
    assert info["held_out_images"] == (500 if photographs else 10000)
    assert {"data", "licence", "command", "seconds", "hardware"} <= set(info)
    flow = load_flow(name)
    x = flow.dequantise(own_images(flow, name), seed=torch.randint(2**31, ()).item())
    with torch.no_grad():
        z, encode_logdet = flow.encode(x.clone())
        back, decode_logdet = flow.decode(z.clone())
        score, noise_score = flow.log_prob(x), flow.log_prob(torch.rand_like(x))
    assert (back - x).abs().max() < 1e-4
    torch.testing.assert_close(encode_logdet, -decode_logdet, rtol=1e-4, atol=0.05)
    assert (score > noise_score).all()
    # 32 images against the recorded mean: within a coarse band, crops differ most.
    band = 1.5 if "patch" in name else 0.8 if photographs else 0.3
    assert abs(flow.bits_per_dim(score).mean() - info["bits_per_dim"]) < band


def test_shipped_flows_are_small():
    assert set(available_flows()) == set(IMAGES)
    folder = Path(flowinv_fast.__file__).parent / "data" / "weights"
    in_a_wheel = [len(zlib.compress(path.read_bytes())) for path in folder.iterdir()]
    assert max(in_a_wheel) < 8e6 and sum(in_a_wheel) < 20e6
