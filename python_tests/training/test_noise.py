"""Noise models learnt from recordings and kept on disk."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import assert_names
from safetensors.torch import load_file, save_file
from torch.distributions import Laplace, Normal, StudentT

import flowinv_fast as ff
from flowinv_fast import DataError, metrics, noise, operators
from flowinv_fast.cli import main
from flowinv_fast.data import sample_images
from flowinv_fast.flows import RealNVPConfig, TarFlowConfig
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer
from flowinv_fast.training.noise import noise_config, train_noise

SHAPE = (1, 8, 8)


def random() -> torch.Generator:
    return torch.Generator().manual_seed(int(torch.randint(2**31, ())))


def glitches(count: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Frames of stripes, readout noise and runs of four pixels that are far off."""
    frames = 0.08 * torch.randn(count, 1, size, 1, generator=generator)
    frames = frames + 0.02 * torch.randn(count, 1, size, size, generator=generator)
    places = torch.rand(count, 1, size, size, generator=generator) < 0.02
    for shift in range(4):
        frames += 0.5 * places.roll(shift, 3)
    return frames


# --- real numbers ---------------------------------------------------------------------------------


def trainer(folder, config, images, held_out, **options):
    how = FlowTrainConfig(**{"epochs": 6, "batch": 16, "lr": 3e-3, "warmup": 4, **options})
    return FlowTrainer(config, how, images, held_out, folder, progress=False)


@pytest.mark.parametrize("unit", [1.0, 1e-4, 1e4])
def test_real_numbers_of_any_range_are_learnt(tmp_path, unit):
    """A flow of unit times x has the density of x over unit^N, and learns as well."""
    x = 3 + torch.randn(200, *SHAPE) * torch.linspace(0.2, 2, 8)
    config = RealNVPConfig(SHAPE, scales=2, hidden=8, blocks=1, bits=0, smoothing=0.0)
    run = trainer(tmp_path, config, unit * x[:150], unit * x[150:])
    found = run.run(evaluate_every=3)
    law = Normal(3 * unit, unit * torch.linspace(0.2, 2, 8))
    best = -law.log_prob(unit * x[150:]).mean().item() / np.log(2)
    assert best - 0.05 < found["bits_per_dim"] < best + 0.15
    flow = ff.load_flow(tmp_path / "flow.safetensors")
    assert flow.config.bits == 0 and torch.isfinite(flow.log_prob(unit * x)).all()


def test_the_best_weights_are_kept_of_real_numbers(tmp_path):
    """Twenty recordings are learnt by heart; what is kept is of the evaluation before that."""
    x = torch.randn(40, *SHAPE)
    config = RealNVPConfig(SHAPE, scales=2, hidden=32, blocks=1, bits=0, smoothing=0.0)
    run = trainer(tmp_path, config, x[:20], x[20:], epochs=60, batch=20, ema=0.5)
    run.run(evaluate_every=4)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    bits = [line["bits_per_dim"] for line in log]
    assert bits[-1] > min(bits) + 0.1, "it has to overfit"
    flow = ff.load_flow(tmp_path / "flow.safetensors")
    assert flow.info["step"] == log[bits.index(min(bits))]["step"]
    kept = -flow.log_prob(x[20:]).mean() / (np.log(2) * 64)
    assert abs(kept - min(bits)) < 1e-3


def test_what_is_not_real_numbers_is_refused(tmp_path):
    config = RealNVPConfig(SHAPE, scales=1, hidden=4, blocks=0, bits=0, smoothing=0.0)
    x, bytes_ = torch.randn(20, *SHAPE), torch.zeros(20, *SHAPE, dtype=torch.uint8)
    assert_names("images", lambda: trainer(tmp_path, config, bytes_, x))
    assert_names("held_out", lambda: trainer(tmp_path, config, x, bytes_))
    assert_names("images", lambda: trainer(tmp_path, config, x.double(), x))
    bad = x.clone()
    bad[3, 0, 1, 2] = torch.inf
    assert_names("images", lambda: trainer(tmp_path, config, bad, x))
    assert_names("bits", lambda: RealNVPConfig(SHAPE, bits=0, support="bounded"))
    eight = RealNVPConfig(SHAPE, scales=1, hidden=4, blocks=0)
    assert_names("images", lambda: trainer(tmp_path, eight, x, x))


def test_a_tarflow_of_rows(tmp_path):
    """Images of one row are cut into pieces; encode and decode undo one another."""
    flow = ff.tarflow(TarFlowConfig((2, 1, 12), patch=3, width=8, blocks=2, layers=1, heads=2))
    for p in flow.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    x = torch.randn(5, 2, 1, 12)
    z, logdet = flow.encode(x)
    again, back = flow.decode(z)
    torch.testing.assert_close(again, x, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logdet, -back, atol=1e-4, rtol=1e-4)
    flat = lambda v: flow.encode(v.view(1, 2, 1, 12))[0][0]
    jacobian = torch.autograd.functional.jacobian(flat, x[0].flatten())
    torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], logdet[0], atol=1e-4, rtol=1e-4)
    assert_names("patch", lambda: TarFlowConfig((1, 1, 12), patch=5))
    assert_names("patch", lambda: TarFlowConfig((1, 2, 12), patch=4))


# --- learning -------------------------------------------------------------------------------------


def test_a_law_learnt_from_glitches_beats_the_closed_forms(tmp_path):
    """In likelihood of recordings that nobody saw, and in images: by 1 dB and more."""
    frames = glitches(160, 28, random())
    how = lambda count: FlowTrainConfig(
        12, 16, 5e-3, warmup=10, schedule="cosine", ema=0.9, halve_every=None
    )
    config = lambda shape: RealNVPConfig(shape, 2, 16, 1, bits=0, smoothing=0.0)
    found, check = train_noise(
        frames, tmp_path, config=config, train_config=how, progress=False, seed=3
    )
    assert found.name == "flow" and found.table[0].name == "flow"
    assert found.table[0].nats > found.table[1].nats + 0.1, found
    assert len(check.rows) == 15
    law = ff.load_noise(tmp_path)
    fresh = glitches(8, 28, random())
    torch.testing.assert_close(law.log_prob(fresh), found.best.log_prob(fresh))
    x = sample_images("fashion-28", 4)
    y, prior = x + glitches(4, 28, random()), ff.load_flow("fashion-28")
    psnr = lambda law: metrics.psnr(
        ff.reconstruct(y, operators.Identity(), prior, law, progress=False).x, x
    )
    gain = psnr(law) - psnr(noise.Gaussian(frames.std().item()))
    assert gain.mean() > 1, gain


def test_the_command(tmp_path, capsys):
    """On vectors, in a file of several arrays; the law is loaded from the folder."""
    x = torch.randn(60, 12) * torch.linspace(0.1, 1, 12) + torch.randn(60, 1)
    np.savez(tmp_path / "both.npz", noise=x.numpy(), other=np.zeros(3))
    words = f"train --kind noise --data {tmp_path}/both.npz --out {tmp_path}/out --quiet".split()
    assert main(words) == 2
    assert "['noise', 'other']" in capsys.readouterr().err
    more = "--dataset noise --epochs 3 --hidden 4 --batch 16".split()
    assert main([*words, *more]) == 0
    told = capsys.readouterr().out
    assert "low-rank-gaussian" in told and "load_noise" in told and "statistics" in told
    law = ff.load_noise(tmp_path / "out")
    assert law.log_prob(x).shape == (60,)
    card = json.loads((tmp_path / "out" / "noise.json").read_text())
    assert {row["name"] for row in card["table"]} >= {"flow", "gaussian"}
    assert (
        card["recordings"] == [60, 12] and card["chosen"] in (tmp_path / "out/noise.md").read_text()
    )
    for option in ("--crops", "--flips", "--start digits-noise-28", "--size 1 8 8"):
        assert main([*words, *more, *option.split()]) == 2
        assert option.split()[0] in capsys.readouterr().err
    assert main(["train", "mnist-28", *words[1:]]) == 2
    for option in ("--bits 8", "--support bounded", "--smoothing 0.1"):
        assert main([*words, *more, *option.split()]) == 2
        assert option.split()[0] in capsys.readouterr().err
    assert main([*words[:5], "--quiet"]) == 2 and "--out" in capsys.readouterr().err
    assert main([*"train --unit 255 --data nowhere --out".split(), str(tmp_path / "o")]) == 2
    assert "--unit" in capsys.readouterr().err


def test_a_flow_of_noise_that_follows_the_signal(tmp_path):
    """Recordings at clean images: the flow is of what has unit scale, and is scored at them."""
    clean = torch.rand(60, *SHAPE)
    law = noise.SignalDependent(noise.Gaussian(1.0), [0.0, 1.0], [0.01, 0.3])
    np.save(tmp_path / "noise.npy", law.draw(clean, random()).numpy())
    np.save(tmp_path / "clean.npy", clean.numpy())
    words = f"train --kind noise --data {tmp_path}/noise.npy --clean {tmp_path}/clean.npy"
    words += f" --out {tmp_path}/out --epochs 2 --hidden 4 --quiet"
    assert main(words.split()) == 0
    card = json.loads((tmp_path / "out" / "noise.json").read_text())
    assert "by signal" in card["chosen"] and "by signal" in card["whitened by"]
    found, x = ff.load_noise(tmp_path / "out"), torch.rand(4, *SHAPE)
    score = found.log_likelihood(x + law.draw(x, random()), x)
    assert torch.isfinite(score).all()
    flow = next(row for row in card["table"] if row["name"] == "flow")
    plain = next(row for row in card["table"] if row["name"] == "gaussian")
    assert flow["nats"] > plain["nats"]


def test_small_flows_for_recordings():
    assert noise_config((1, 28, 28)).scales == 2
    for shape in ((1, 1, 17), (2, 7, 8), (1, 1, 1)):
        flow = ff.realnvp(noise_config(shape))
        assert flow.log_prob(torch.randn(2, *shape)).shape == (2,)


# --- files ----------------------------------------------------------------------------------------


def small_flow():
    flow = ff.realnvp(RealNVPConfig(SHAPE, scales=2, hidden=4, blocks=1, bits=0, smoothing=0.0))
    for p in flow.parameters():
        torch.nn.init.normal_(p, 0, 0.1)
    return flow.eval().requires_grad_(False)


LAWS = {
    "gaussian": lambda: noise.Gaussian(0.1, 0.5),
    "pixels": lambda: noise.Gaussian(torch.rand(SHAPE) + 0.1, torch.randn(SHAPE)),
    "stationary": lambda: noise.StationaryGaussian(torch.full(SHAPE, 0.3), torch.randn(SHAPE)),
    "low-rank": lambda: noise.LowRankGaussian(0.0, torch.randn(3, *SHAPE), 0.1),
    "laplace": lambda: noise.FromDistribution(Laplace(0.1, 0.2)),
    "student-t": lambda: noise.FromDistribution(StudentT(3.0, 0.1, 0.2)),
    "flow": lambda: noise.FlowNoise(small_flow(), 0.5, 0.1),
    "whitened": lambda: noise.FlowNoise(small_flow(), whitening=LAWS["low-rank"]()),
    "by signal": lambda: noise.SignalDependent(
        LAWS["whitened"](), [0.1, 0.5, 0.6], [0.2, 0.5, 0.7]
    ),
}


@pytest.mark.parametrize("name", LAWS)
def test_a_law_is_saved_and_loaded(name, tmp_path):
    law, path = LAWS[name](), tmp_path / "noise.safetensors"
    ff.save_noise(law, path, {"data": "none"})
    x = torch.randn(4, *SHAPE)
    for place in (path, tmp_path):
        found = ff.load_noise(place)
        assert type(found) is type(law)
        if name in ("gaussian", "low-rank"):  # to the last bit of a float
            assert (found.std if name == "gaussian" else found.diagonal) == 0.1
        if name == "by signal":
            fx = torch.rand(4, *SHAPE)
            assert torch.equal(found.log_likelihood(x, fx), law.log_likelihood(x, fx))
        else:
            assert torch.equal(found.log_prob(x), law.log_prob(x))


def test_damaged_laws_are_refused_by_name(tmp_path):
    path = tmp_path / "noise.safetensors"
    ff.save_noise(LAWS["whitened"](), path)
    data = path.read_bytes()
    for cut in (0, 7, 200, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(DataError, match="noise.safetensors"):
            ff.load_noise(path)
    path.write_bytes(data)
    tensors = load_file(path)
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    text = header["flowinv_fast"]
    for wrong in ('"kind": "cauchy"', '"kind": 3', '"kind": "gaussian"'):
        save_file(tensors, path, {"flowinv_fast": text.replace('"kind": "flow"', wrong)})
        with pytest.raises(DataError, match="noise.safetensors"):
            ff.load_noise(path)
    negative = {**tensors, "whitening.diagonal": -tensors["whitening.diagonal"]}
    save_file(negative, path, {"flowinv_fast": text})
    with pytest.raises(DataError, match="diagonal"):
        ff.load_noise(path)


def test_laws_that_cannot_be_kept_are_refused(tmp_path):
    path = tmp_path / "noise.safetensors"
    frozen = noise.FlowNoise(small_flow()).freeze()
    for law in (
        frozen,
        noise.Sinusoidal(0.2),
        noise.FromDistribution(Normal(0.0, 1.0)),
        "gaussian",
    ):
        assert_names("model", lambda law=law: ff.save_noise(law, path))
    assert not path.exists()
    assert_names("name_or_path", lambda: ff.load_noise(tmp_path / "none"))


# --- what a flow of whitened recordings begins with -----------------------------------------------


def test_before_the_first_step_it_is_the_closed_form(tmp_path):
    """Also with a dead pixel, and with few recordings: nothing is fitted a second time."""
    x = torch.randn(12, *SHAPE)
    x[:, 0, 3, 4] = 0.37
    found, _ = train_noise(x, tmp_path, minutes=0, progress=False)
    flow, *others = [row for row in found.table if row.name == "flow"]
    base = found.models["flow"].whitening
    same = next(row for row in found.table if found.models[row.name] is not base and row != flow)
    assert not others and same
    torch.testing.assert_close(
        found.models["flow"].log_prob(x), base.log_prob(x).float(), atol=0.05, rtol=5e-3
    )
    assert found.name != "flow" and flow.parameters > base.numbers


def test_overfitting_ends_at_the_closed_form(tmp_path):
    """Twelve recordings of white noise teach nothing: what is kept is what training began with."""
    x = torch.randn(12, *SHAPE)
    config = lambda shape: RealNVPConfig(shape, 2, 16, 1, bits=0, smoothing=0.0)
    how = lambda count: FlowTrainConfig(40, 8, 1e-2, warmup=0, ema=0.0)
    found, _ = train_noise(x, tmp_path, config=config, train_config=how, progress=False)
    nats = {row.name: row.nats for row in found.table}
    assert nats["flow"] > nats["gaussian"] - 0.2 and found.name != "flow"


def test_a_fresh_training_does_not_keep_an_earlier_ones_weights(tmp_path):
    x = torch.randn(40, *SHAPE)
    config = RealNVPConfig(SHAPE, scales=2, hidden=8, blocks=1, bits=0, smoothing=0.0)
    trainer(tmp_path, config, x, x).run()
    (tmp_path / "state.safetensors").unlink()
    y = 3 * torch.randn(40, *SHAPE)
    found = trainer(tmp_path, config, y, y).run()
    kept = ff.load_flow(tmp_path / "flow.safetensors")
    bits = -kept.log_prob(y).mean().item() / (np.log(2) * 64)
    assert abs(bits - found["bits_per_dim"]) < 0.3


def test_samples_that_need_gradients_and_inference_mode(tmp_path):
    x = torch.randn(20, *SHAPE, requires_grad=True)
    how = lambda count: FlowTrainConfig(1, 8)
    train_noise(x, tmp_path / "a", train_config=how, progress=False)
    assert x.grad is None
    with torch.inference_mode():
        train_noise(torch.randn(20, *SHAPE), tmp_path / "b", train_config=how, progress=False)
    law = ff.load_noise(tmp_path / "b")
    assert law.log_prob(torch.randn(2, *SHAPE)).isfinite().all()
    wrong = torch.rand(3, *SHAPE)
    assert_names("clean", lambda: train_noise(x, tmp_path / "c", clean=wrong, progress=False))


def test_layouts_of_a_whitened_flow():
    flow, x = small_flow(), torch.randn(4, *SHAPE)
    law = noise.FlowNoise(flow, whitening=noise.Gaussian(1.0))
    for wrong in (x.reshape(4, 1, 4, 16), x.reshape(4, 8, 8), x.reshape(4, 8, 1, 8)):
        assert_names("residual", lambda w=wrong: law.log_prob(w))
    assert_names("shape", lambda: law.sample((2, 1, 4, 16)))
    torch.testing.assert_close(law.log_prob(x.flatten(1)), law.log_prob(x))
    for own in (
        noise.Gaussian(torch.rand(4, 1, 1, 1) + 0.5),
        noise.Gaussian(1.0, torch.rand(4, 1, 1, 1)),
    ):
        assert_names("whitening", lambda own=own: noise.FlowNoise(flow, whitening=own))
    same = noise.FlowNoise(flow, whitening=noise.Gaussian(torch.ones(1, 1, 1, 1)))
    torch.testing.assert_close(same.log_prob(x), law.log_prob(x))


def test_laws_say_what_they_are():
    told = {name: repr(make()) for name, make in LAWS.items()}
    assert told["gaussian"] == "Gaussian(std=0.1, mean=0.5)"
    assert told["stationary"] == "StationaryGaussian(power=<1 x 8 x 8>, mean=<1 x 8 x 8>)"
    assert (
        told["laplace"]
        == "FromDistribution(Laplace(loc: 0.10000000149011612, scale: 0.20000000298023224))"
    )
    assert told["flow"] == "FlowNoise(Flow of 1 x 8 x 8, scale=0.5, shift=0.1)"
    assert told["whitened"].startswith("FlowNoise(Flow of 1 x 8 x 8, whitening=LowRankGaussian(")
    assert told["by signal"].startswith("SignalDependent(FlowNoise(")
    assert told["by signal"].endswith("std 0.2 at 0.1 to 0.7 at 0.6)")
