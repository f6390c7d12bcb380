"""Training: learns, resumes bit for bit, survives interruption, refuses what it cannot use."""

from __future__ import annotations

import json

import pytest
import torch

from flowinv_fast.data import sample_images
from flowinv_fast.errors import ArgumentError
from flowinv_fast.flows import RealNVPConfig, load_flow
from flowinv_fast.flows.coupling import AffineCoupling
from flowinv_fast.flows.train import TrainConfig, Trainer


def stripes(n: int, seed: int) -> torch.Tensor:
    """Images with one bright column: far from the identity flow's density."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 30, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images[torch.arange(n), 0, :, torch.randint(0, 8, (n,), generator=generator)] = 220
    return images


CONFIG = RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1, smoothing=0.05)
OPTIONS = {"batch": 32, "warmup": 5, "ema": 0.9, "lr": 3e-3}


def trainer(folder, epochs, config=CONFIG, **options) -> Trainer:
    options = TrainConfig(epochs=epochs, **{**OPTIONS, **options})
    return Trainer(config, options, stripes(256, 0), stripes(64, 1), folder, progress=False)


@pytest.mark.parametrize("support", ["bounded", "unbounded"])
def test_learns(tmp_path, support):
    config = RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1, support=support)
    first = trainer(tmp_path, 8, config)
    before = first.evaluate()["bits_per_dim"]
    after = first.run(evaluate_every=100)["bits_per_dim"]
    assert after < before - 0.1
    assert load_flow(tmp_path / "flow.safetensors").info["bits_per_dim"] == after
    assert (tmp_path / "samples.png").stat().st_size > 0


def test_round_trip_at_34_couplings_with_trained_weights(tmp_path):
    """6 scales at 64 x 64, the depth of the paper's colour prior, in float32."""
    samples = torch.cat([sample_images("fashion-28"), sample_images("mnist-28")])
    images = torch.nn.functional.interpolate(samples, (64, 64), mode="bilinear")
    images = (255 * images).round().to(torch.uint8)
    config = RealNVPConfig((1, 64, 64), scales=6, hidden=8, blocks=1, smoothing=0.05)
    options = TrainConfig(epochs=8, batch=8, warmup=5, ema=0.9, lr=2e-3)
    run = Trainer(config, options, images[:56], images[56:], tmp_path, progress=False)
    before = run.evaluate()["bits_per_dim"]
    assert run.run(evaluate_every=100)["bits_per_dim"] < before - 0.5
    flow = load_flow(tmp_path / "flow.safetensors")
    couplings = [m for m in flow.modules() if isinstance(m, AffineCoupling)]
    assert len(couplings) == 34 and all(m.gain.abs().max() > 1e-3 for m in couplings)
    x = flow.dequantise(images[56:] / 255, 1)
    with torch.no_grad():
        z, logdet = flow.encode(x.clone())
        back, decode_logdet = flow.decode(z)
    assert (back - x).abs().max() < 1e-4
    torch.testing.assert_close(decode_logdet, -logdet, rtol=1e-5, atol=0.01)


def test_resumes_bit_for_bit(tmp_path):
    trainer(tmp_path / "whole", 2).run()
    trainer(tmp_path / "parts", 1).run()
    trainer(tmp_path / "parts", 2).run()
    whole, parts = (
        load_flow(tmp_path / name / "flow.safetensors").state_dict() for name in ("whole", "parts")
    )
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_interruption_keeps_what_was_learnt(tmp_path, monkeypatch):
    run = trainer(tmp_path, 5)
    step = run._train_step

    def interrupt_at_ten():
        if run.step == 10:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(run, "_train_step", interrupt_at_ten)
    assert run.run()["step"] == 10
    assert trainer(tmp_path, 5).step == 10


def test_another_configuration_is_refused(tmp_path):
    trainer(tmp_path, 1).evaluate()
    with pytest.raises(ArgumentError, match="folder"):
        trainer(tmp_path, 1, lr=1e-4)
    (tmp_path / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(ArgumentError, match="folder"):
        trainer(tmp_path, 1)


def test_wrong_images_are_refused(tmp_path):
    options = TrainConfig()
    for images in (torch.rand(4, 1, 8, 8), stripes(4, 0)[:, :, :4], stripes(0, 0)):
        with pytest.raises(ArgumentError, match="images"):
            Trainer(CONFIG, options, images, stripes(4, 0), tmp_path)


def test_log_has_one_line_per_evaluation(tmp_path):
    trainer(tmp_path, 3).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]


def test_global_random_state_is_untouched(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trainer(tmp_path, 0.2).run()
    assert torch.equal(before, torch.get_rng_state())
