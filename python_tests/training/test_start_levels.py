"""A flow of levels that begins at the weights of a flow of one: the same density at that level."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import assert_names
from torch.testing import assert_close

from flowinv_fast.cli import main
from flowinv_fast.flows import Flow, TarFlowConfig, load_flow, save_flow, tarflow
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer

S = 0.2
CONFIG = TarFlowConfig((1, 8, 8), width=16, blocks=2, layers=1, heads=2, smoothing=S)
RANGES = {"inside": (0.05, 0.5), "lowest": (S, 0.5), "above": (0.05, 0.1), "below": (0.3, 0.5)}
OPTIONS = FlowTrainConfig(epochs=2, batch=16, warmup=2, ema=0.5, penalty=0.0)


def trained(config: TarFlowConfig) -> Flow:
    """As if it had learnt: no weight is zero, and some pixels are always the same but for noise."""
    flow = tarflow(config).eval()
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.3 / math.sqrt(p.shape[-1]) * torch.randn_like(p)
        flow.layers[0].mean.normal_()
        flow.layers[0].std.uniform_(S, 1.5)[:, :2] = S
    return flow


def images(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)


def trainer(folder, levels, start, pixels=None, **sizes) -> FlowTrainer:
    smoothing = None if levels is None else levels[0]
    config = replace(CONFIG, levels=levels, smoothing=smoothing or S, **sizes)
    pixels = images(48) if pixels is None else pixels
    return FlowTrainer(config, OPTIONS, pixels, pixels[:8], folder, progress=False, start=start)


@pytest.mark.parametrize("where", RANGES)
def test_it_is_the_flow_of_one_level_at_that_level(tmp_path, where):
    start, levels, x = trained(CONFIG), RANGES[where], torch.rand(16, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    run = trainer(tmp_path, levels, start)
    for flow in (run.flow, run.average):
        with torch.no_grad():  # at_each takes a level that is not in the range, too
            found, want = flow.at_each(S).log_prob(x), start.log_prob(x)
            assert_close(found, want, rtol=1e-5, atol=1e-3)
            if levels[0] <= S <= levels[1]:
                assert torch.equal(flow.at(S).log_prob(x), found)
        least, mean = flow.layers[0].std, flow.layers[0].mean
        assert_close(least.square(), before["layers.0.std"].square() - S**2 + levels[0] ** 2)
        assert torch.equal(mean, before["layers.0.mean"])
    assert all(torch.equal(start.state_dict()[name], before[name]) for name in before)


def test_at_another_level_only_the_standardisation_is_another(tmp_path):
    start, x = trained(CONFIG), torch.rand(16, 1, 8, 8)
    flow = trainer(tmp_path, RANGES["inside"], start).flow
    for level in (0.05, 0.11, 0.5):
        std = (start.layers[0].std.square() - S**2 + level**2).sqrt()
        same = trained(replace(CONFIG, smoothing=level))
        same.load_state_dict({**start.state_dict(), "layers.0.std": std})
        with torch.no_grad():
            found = flow.at(level).log_prob(x)
            assert_close(found, same.log_prob(x), rtol=1e-5, atol=1e-3)
            assert found.isfinite().all()


def test_a_standard_deviation_is_never_below_the_lowest_level(tmp_path):
    start = trained(CONFIG)
    start.layers[0].std.fill_(S / 2)
    assert_close(trainer(tmp_path, (0.05, 0.5), start).flow.layers[0].std.unique().item(), 0.05)


def test_the_reverse_and_other_sizes_are_refused(tmp_path):
    levels = RANGES["inside"]
    several = trained(replace(CONFIG, levels=levels))
    told = assert_names("start", lambda: trainer(tmp_path, None, several))
    assert "a flow of TarFlowConfig(" in told and "levels=None" in told and str(levels) in told
    assert_names("start", lambda: trainer(tmp_path, (0.05, 0.4), several))
    one = trained(CONFIG)
    for other in ({"width": 8}, {"blocks": 3}, {"layers": 2}, {"heads": 4}, {"bits": 5}):
        assert_names("start", lambda other=other: trainer(tmp_path, levels, one, **other))
    assert not any(tmp_path.iterdir())


def test_it_learns_and_resumes_bit_for_bit(tmp_path):
    start, pixels, steps = trained(CONFIG), images(48), iter(range(4))
    make = lambda folder: trainer(tmp_path / folder, RANGES["inside"], start, pixels)
    whole = make("whole")
    whole.run()
    moved = [p for name, p in whole.flow.named_parameters() if "of_level.inside.4" in name]
    assert len(moved) == 4 and all(p.abs().max() > 0 for p in moved)
    assert make("parts").run(stop=lambda: next(steps, None) is None)["step"] == 4
    make("parts").run()
    found, want = (load_flow(tmp_path / name / "flow.safetensors") for name in ("parts", "whole"))
    for name, tensor in want.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    several = trained(replace(CONFIG, levels=RANGES["inside"]))
    for other in (trained(CONFIG), several):
        again = lambda other=other: trainer(tmp_path / "parts", RANGES["inside"], other, pixels)
        assert "another start" in assert_names("folder", again)


def test_from_the_command_line_and_with_the_same_command_again(tmp_path, capsys):
    np.save(tmp_path / "x.npy", images(40)[:, 0].numpy())
    save_flow(trained(CONFIG), tmp_path / "one.safetensors", {"data": "none"})
    sizes = "--model tarflow --width 16 --blocks 2 --layers 1 --heads 2 --batch 8 --threads 1"
    common = ["train", "--data", str(tmp_path / "x.npy"), *sizes.split(), "--quiet"]
    start = ["--start", str(tmp_path / "one.safetensors")]
    command = [*common, *start, "--levels", "0.05", "0.5", "--out", str(tmp_path / "run")]
    command += ["--epochs", "2", "--minutes"]
    assert main([*command, "0"]) == 0
    assert "held-out images, epoch 0." in capsys.readouterr().out
    assert main([*command, "inf"]) == 0
    assert "held-out images, epoch 2;" in capsys.readouterr().out
    flow = load_flow(tmp_path / "run" / "flow.safetensors")
    assert flow.levels == (0.05, 0.5) and flow.info["start"] == {"data": "none"}
    save_flow(flow, tmp_path / "several.safetensors")
    start = ["--start", str(tmp_path / "several.safetensors"), "--out", str(tmp_path / "other")]
    assert main([*common, *start]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("flowinv-fast train: FlowTrainer: start: expected a flow of TarFlowCon")
