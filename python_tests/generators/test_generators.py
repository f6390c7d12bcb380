"""Generators: shapes, weights files and every way they can be wrong, use as priors."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from helpers import assert_names
from safetensors.torch import load_file, save_file

import flowinv_fast as ff
from flowinv_fast import noise, operators
from flowinv_fast.data import sample_images
from flowinv_fast.generators import (
    DCGAN,
    VAE,
    GeneratorConfig,
    available_generators,
    load_generator,
    save_generator,
)
from flowinv_fast.generators.nets import companion, make

KINDS = {"dcgan": DCGAN, "vae": VAE}


def small(kind: str = "vae", side: int = 8, channels: int = 1) -> GeneratorConfig:
    return GeneratorConfig((channels, side, side), kind, latent_dim=6, width=4)


def moved(config: GeneratorConfig) -> torch.nn.Module:
    """A generator with every weight and running average away from where it starts."""
    generator = make(config)
    generator.train()(torch.randn(20, config.latent_dim))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return generator.eval()


# --- the maps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [8, 14, 28, 32, 56, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_range(kind, side, channels):
    config = small(kind, side, channels)
    generator = make(config)
    assert type(generator) is KINDS[kind]
    assert generator.latent_dim == 6 and generator.shape == (channels, side, side)
    x = generator(3 * torch.randn(5, 6))
    assert x.shape == (5, channels, side, side) and ((x > 0) & (x < 1)).all()
    outputs = {"dcgan": 1, "vae": 12}[kind]
    assert companion(config)(x).shape == (5, outputs)


def test_width_doubles_at_every_halving():
    convolutions = [m for m in make(small(side=32)).modules() if hasattr(m, "kernel_size")]
    assert [m.in_channels for m in convolutions] == [16, 8, 4]


def test_images_do_not_influence_one_another_in_evaluation():
    generator, z = moved(small()), torch.randn(4, 6)
    torch.testing.assert_close(generator(z)[2], generator(z[2:3])[0])


def test_sample_is_the_image_of_normal_latents():
    generator = moved(small())
    seeded = lambda: torch.Generator().manual_seed(3)
    x = generator.sample(7, seeded())
    assert torch.equal(x, generator(torch.randn(7, 6, generator=seeded()))) and not x.requires_grad
    assert generator.sample(0).shape == (0, 1, 8, 8)


BAD_CONFIG = {
    "shape-number": ("shape", {"shape": 28}),
    "shape-rank": ("shape", {"shape": (28, 28)}),
    "shape-zero": ("shape", {"shape": (0, 28, 28)}),
    "shape-half": ("shape", {"shape": (1, 28.5, 28.5)}),
    "shape-text": ("shape", {"shape": ("a", "b", "c")}),
    "shape-oblong": ("shape", {"shape": (1, 28, 32)}),
    "shape-side": ("shape", {"shape": (1, 24, 24)}),
    "shape-small": ("shape", {"shape": (1, 7, 7)}),
    "kind": ("kind", {"kind": "flow"}),
    "latent_dim": ("latent_dim", {"latent_dim": 0}),
    "latent_dim-half": ("latent_dim", {"latent_dim": 2.5}),
    "width": ("width", {"width": 0}),
    "width-type": ("width", {"width": "wide"}),
}


@pytest.mark.parametrize("case", BAD_CONFIG)
def test_bad_config_is_named(case):
    argument, change = BAD_CONFIG[case]
    assert_names(argument, lambda: GeneratorConfig(**{"shape": (1, 28, 28), **change}))


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_is_exact(kind, tmp_path):
    generator, path = moved(small(kind, 28, 3)), tmp_path / "a.safetensors"
    save_generator(generator, path, {"data": "none"})
    again = load_generator(path)
    assert type(again) is KINDS[kind] and again.config == generator.config
    assert again.info == {"data": "none"} and not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert set(again.state_dict()) == set(generator.state_dict())
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    z = torch.randn(3, 6)
    assert torch.equal(again(z), generator(z))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_half_storage_is_half_as_large_and_nearly_the_same(tmp_path):
    generator, z = moved(small(side=32)), torch.randn(3, 6)
    for name, dtype in (("h", torch.float16), ("f", None)):
        save_generator(generator, tmp_path / name, dtype=dtype)
    half, whole = ((tmp_path / name).stat().st_size for name in "hf")
    assert half < 0.75 * whole
    again = load_generator(tmp_path / "h")
    assert all(p.dtype == torch.float32 for p in again.parameters())
    torch.testing.assert_close(again(z), generator(z), rtol=0, atol=0.02)


def with_header(path: Path, text: str, good: Path) -> Path:
    """The weights of a good file under another header."""
    save_file(load_file(good), path, metadata={"flowinv_fast": text})
    return path


def test_wrong_files(tmp_path):
    good = tmp_path / "good.safetensors"
    save_generator(moved(small()), good)
    raw = good.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    at = 8 + int(torch.randint(length - 20, ()))
    texts = {
        "cut.safetensors": raw[:-100],
        "cut-in-header.safetensors": raw[: length // 2],
        "empty.safetensors": b"",
        "longer.safetensors": raw + bytes(10),
        "damaged.safetensors": raw[:at] + b"\xff\x00\xff" + raw[at + 3 :],
        "pickled.safetensors": pickle.dumps({"a": 1}),
    }
    paths = [tmp_path / "missing.safetensors", tmp_path / "folder"]
    (tmp_path / "folder").mkdir()
    for name, content in texts.items():
        (tmp_path / name).write_bytes(content)
        paths.append(tmp_path / name)
    flow = ff.realnvp(ff.RealNVPConfig((1, 4, 4), scales=1, hidden=2, blocks=0))
    ff.save_flow(flow, tmp_path / "flow.safetensors")
    save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    paths += [tmp_path / "flow.safetensors", tmp_path / "other.safetensors"]
    header = {"format": "flowinv_fast.generator.1", "config": small().to_dict(), "info": {}}
    changed = {
        "not-json": "{",
        "a-list": "[1]",
        "another-format": json.dumps({**header, "format": "flowinv_fast.generator.9"}),
        "no-config": json.dumps({"format": header["format"], "info": {}}),
        "no-info": json.dumps({"format": header["format"], "config": header["config"]}),
        "config-not-a-dict": json.dumps({**header, "config": 3}),
        "unknown-field": json.dumps({**header, "config": {**header["config"], "depth": 3}}),
        "impossible": json.dumps({**header, "config": {**header["config"], "shape": [1, 9, 9]}}),
        "other-width": json.dumps({**header, "config": {**header["config"], "width": 8}}),
    }
    for name, text in changed.items():
        paths.append(with_header(tmp_path / f"{name}.safetensors", text, good))
    for path in paths:
        message = assert_names("name_or_path", lambda path=path: load_generator(path))
        assert str(path) in message and message.startswith("load_generator: ")
    assert load_generator(with_header(tmp_path / "same", json.dumps(header), good)).info == {}


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path, generator = tmp_path / "a.safetensors", moved(small())
    save_generator(generator, path)
    before = path.read_bytes()

    def fails_half_way(tensors, name, metadata):
        Path(name).write_bytes(b"half")
        raise OSError("no space left")

    with pytest.raises(TypeError):
        save_generator(moved(small()), path, {"not": {"for": object()}})
    monkeypatch.setattr("flowinv_fast._base.weights.save_file", fails_half_way)
    with pytest.raises(OSError, match="no space left"):
        save_generator(moved(small()), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_integers_hold_no_weights(tmp_path):
    generator = make(small())
    path = tmp_path / "generator.safetensors"
    assert_names("dtype", lambda: save_generator(generator, path, dtype=torch.int8))
    with torch.no_grad():
        next(generator.parameters()).view(-1)[0] = 1e6
    assert_names("weights", lambda: save_generator(generator, path, dtype=torch.float16))
    assert not any(tmp_path.iterdir())


def test_draws_in_training_mode_are_refused():
    """They would mix with one another, and the batch normalisation would learn from them."""
    generator = make(small()).train()
    before = {k: v.clone() for k, v in generator.state_dict().items()}
    assert "eval()" in assert_names("generator", lambda: generator.sample(3))
    assert all(torch.equal(v, before[k]) for k, v in generator.state_dict().items())


def test_unknown_name_lists_the_shipped_generators():
    message = assert_names("name_or_path", lambda: load_generator("no-such-generator"))
    assert all(name in message for name in available_generators())


# --- the shipped ones, as priors -----------------------------------------------------------------

SHIPPED = sorted(available_generators())


def images_like(name: str, count: int | None = None) -> torch.Tensor:
    """Real images of the kind that a shipped generator learnt."""
    return sample_images(f"{name.split('-')[0]}-28", count)


def test_what_is_shipped_says_where_it_is_from():
    assert {"fashion-dcgan-28", "fashion-vae-28"} <= set(SHIPPED)
    for info in available_generators().values():
        assert {"data", "licence", "hardware", "seconds", "training", "loss"} <= set(info)
    folder = Path(ff.__file__).parent / "data" / "generators"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 2e6


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_generators_draw_what_they_learnt(name):
    """Draws are brighter and darker where real images are: pixel means correlate."""
    generator, real = load_generator(name), images_like(name)
    assert type(generator) is KINDS[name.split("-")[1]]
    assert generator.info == available_generators()[name]
    x = generator.sample(200)
    assert x.shape == (200, 1, 28, 28) and x.std(0).mean() > 0.05  # not one image
    means = torch.stack([x.mean(0).flatten(), real.mean(0).flatten()])
    assert torch.corrcoef(means)[0, 1] > 0.8


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("goal", [ff.MLE(), ff.CSGM(lam=0.1)])
def test_shipped_generators_reconstruct(name, goal):
    """A few steps lower the loss, which is that of the image returned."""
    generator, operator = load_generator(name), operators.GaussianSensing(100, (1, 28, 28))
    y, law = operator(images_like(name, 2)), noise.Gaussian(0.1)
    options = {"objective": goal, "steps": 15, "seed": torch.randint(2**31, ()).item()}
    got = ff.reconstruct(y, operator, generator, law, progress=False, **options)
    assert (got.loss < got.history[0]).all()
    torch.testing.assert_close(got.x, generator(got.z))
    error = (y - operator(got.x)).square().sum(1)
    want = error + 0.1 * got.z.square().sum(1) if goal.name == "csgm" else -law.log_prob(got.noise)
    torch.testing.assert_close(got.loss, want, rtol=1e-4, atol=1e-3)
