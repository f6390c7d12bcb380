"""Training: learns, resumes bit for bit, survives kills, is shared, refuses what it cannot use."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats
import torch
import torch.distributed as dist
from helpers import assert_names
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from flowinv_fast._base.errors import ArgumentError
from flowinv_fast.cli import main
from flowinv_fast.data import Crops, Stored, sample_images
from flowinv_fast.flows import (
    AffineCoupling,
    GlowConfig,
    RealNVPConfig,
    TarFlowConfig,
    load_flow,
    realnvp,
)
from flowinv_fast.training.config import curve_in_words
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer


def stripes(n: int, seed: int) -> torch.Tensor:
    """Images with one bright column: far from the identity flow's density."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 30, (n, 1, 8, 8), dtype=torch.uint8, generator=generator)
    images[torch.arange(n), 0, :, torch.randint(0, 8, (n,), generator=generator)] = 220
    return images


CONFIG = RealNVPConfig((1, 8, 8), scales=2, hidden=8, blocks=1, smoothing=0.05)
OPTIONS = {"batch": 32, "warmup": 5, "ema": 0.9, "lr": 3e-3}


def trainer(folder, epochs, config=CONFIG, **options) -> FlowTrainer:
    options = FlowTrainConfig(epochs=epochs, **{**OPTIONS, **options})
    return FlowTrainer(config, options, stripes(256, 0), stripes(64, 1), folder, progress=False)


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
    options = FlowTrainConfig(epochs=8, batch=8, warmup=5, ema=0.9, lr=2e-3)
    run = FlowTrainer(config, options, images[:56], images[56:], tmp_path, progress=False)
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


def weights(folder) -> dict:
    return load_flow(folder / "flow.safetensors").state_dict()


def assert_equal(found, expected) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


MIXED = {"precision": "bf16", "recompute": True}


@pytest.mark.parametrize("options", [{}, MIXED], ids=["fp32", "bf16-recompute"])
def test_resumes_bit_for_bit(tmp_path, options):
    trainer(tmp_path / "whole", 2, **options).run()
    trainer(tmp_path / "parts", 1, **options).run()
    trainer(tmp_path / "parts", 2, **options).run()
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


@pytest.mark.parametrize("recompute", [False, True])
def test_a_glow_learns_and_resumes_bit_for_bit(tmp_path, recompute):
    config = GlowConfig((1, 8, 8), scales=2, hidden=8, blocks=1, smoothing=0.05)
    whole = trainer(tmp_path / "whole", 3, config, recompute=recompute)
    before = whole.evaluate()["bits_per_dim"]
    assert whole.run()["bits_per_dim"] < before - 0.02
    trainer(tmp_path / "parts", 1, config, recompute=recompute).run()
    trainer(tmp_path / "parts", 3, config, recompute=recompute).run()
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    with pytest.raises(ArgumentError, match="folder"):
        trainer(tmp_path / "parts", 3)  # a RealNVP


TARFLOW = TarFlowConfig((1, 8, 8), patch=4, width=16, blocks=2, layers=1, heads=2, smoothing=0.05)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_tarflow_learns_and_resumes_bit_for_bit_along_a_cosine(tmp_path, precision):
    options = {"schedule": "cosine", "precision": precision, "penalty": 0.0, "recompute": True}
    whole = trainer(tmp_path / "whole", 4, TARFLOW, **options)
    before = whole.evaluate()["bits_per_dim"]
    assert whole.run()["bits_per_dim"] < before - 0.1
    part, steps = trainer(tmp_path / "parts", 4, TARFLOW, **options), iter(range(11))
    assert part.run(stop=lambda: next(steps, None) is None)["step"] == 11
    trainer(tmp_path / "parts", 4, TARFLOW, **options).run()
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


LEVELS = replace(TARFLOW, levels=(0.03, 0.5))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_flow_of_levels_learns_at_each_and_resumes_bit_for_bit(tmp_path, precision):
    options = {"precision": precision, "penalty": 0.0}
    whole = trainer(tmp_path / "whole", 4, LEVELS, **options)
    names = ["bits_per_dim", "bits_per_dim_0.03", "bits_per_dim_0.122", "bits_per_dim_0.5"]
    before, after = whole.evaluate(), whole.run(evaluate_every=2)
    assert all(after[name] < before[name] - 0.02 for name in names[:3])
    assert after[names[1]] < after[names[0]] < after[names[2]] < after[names[3]]
    logged = json.loads((tmp_path / "whole" / "log.jsonl").read_text().splitlines()[-1])
    assert [logged[name] for name in names] == [after[name] for name in names]
    told = whole._sentence(after)
    assert f"({after[names[1]]:.3f} at 0.03, {after[names[2]]:.3f} at 0.122, " in told
    steps = iter(range(11))
    part = trainer(tmp_path / "parts", 4, LEVELS, **options)
    assert part.run(stop=lambda: next(steps, None) is None)["step"] == 11
    trainer(tmp_path / "parts", 4, LEVELS, **options).run(evaluate_every=2)
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    with pytest.raises(ArgumentError, match="another levels"):
        trainer(tmp_path / "parts", 4, replace(LEVELS, levels=(0.03, 0.4)), **options)
    with pytest.raises(ArgumentError, match="another levels"):
        trainer(tmp_path / "parts", 4, TARFLOW, **options)


def test_each_image_has_noise_of_its_own_level(tmp_path):
    """Log-uniform in the range, anew at every step, and the same however a batch is shared."""
    run = trainer(tmp_path, 1, LEVELS, batch=64)
    images, seen, log_prob = stripes(256, 0)[:64], [], run.log_prob
    run.log_prob = lambda x, level: seen.append((x, level)) or log_prob(x, level)
    for first, count in ((0, 64), (0, 32), (32, 32)):
        run._update(images[first : first + count], first)
    (x, level), *halves = seen
    assert torch.equal(x, torch.cat([half[0] for half in halves]))
    assert torch.equal(level, torch.cat([half[1] for half in halves]))
    noise = (x - images / 255).flatten(1).std(1)
    assert (noise / level).sub(1).abs().max() < 0.5 and (noise / level).sub(1).mean().abs() < 0.05
    found = []
    for run.step in range(50):
        found.append(run._levels(64, 0))
        assert 0.0299 < found[-1].min() and found[-1].max() < 0.5001
    place = torch.cat(found).log().sub(math.log(0.03)).div(math.log(0.5 / 0.03))
    assert len(place.unique()) > 3000
    assert scipy.stats.kstest(place.numpy(), "uniform").statistic < 0.02


def test_a_cosine_ends_at_zero_with_the_epochs_or_the_minutes(tmp_path, monkeypatch):
    run = trainer(tmp_path, 4, schedule="cosine", warmup=0)
    assert run._lr() == OPTIONS["lr"]
    run.step = run.last_step // 2
    assert run._lr() == pytest.approx(OPTIONS["lr"] / 2)
    run.step = run.last_step
    assert run._lr() == pytest.approx(0, abs=1e-12)
    run.step, rates = 0, []
    clock = iter(range(10_000))  # every look at it takes a second
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    step = run._train_step
    monkeypatch.setattr(run, "_train_step", lambda: (rates.append(run._lr()), step())[1])
    run.run(minutes=0.2, evaluate_every=100)
    assert 5 < len(rates) < run.last_step and rates == sorted(rates, reverse=True)
    assert rates[0] == OPTIONS["lr"] and rates[-1] < OPTIONS["lr"] / 20


def test_recomputing_learns_the_same(tmp_path):
    trainer(tmp_path / "plain", 2).run()
    trainer(tmp_path / "recomputed", 2, recompute=True).run()
    plain, recomputed = weights(tmp_path / "plain"), weights(tmp_path / "recomputed")
    torch.testing.assert_close(recomputed, plain, atol=1e-4, rtol=1e-4)


def test_a_step_is_seen_without_gradients(tmp_path):
    """Folded weights are kept while no gradient is wanted, and a step is another weight."""
    run, x = trainer(tmp_path, 1, warmup=0), torch.rand(2, 1, 8, 8)
    for _ in range(3):
        run._train_step()
        with torch.no_grad():
            seen = run.flow.log_prob(x)
        torch.testing.assert_close(seen, run.flow.log_prob(x).detach())


def command(folder, *more) -> list:
    """A training of a small .npy array, as arguments of the command."""
    if not (folder / "x.npy").exists():
        np.save(folder / "x.npy", stripes(240, 0)[:, 0].numpy())
    options = (
        "--hidden 4 --blocks 1 --scales 1 --batch 16 --lr 3e-3 --warmup 5 --ema 0.9 --recompute "
        "--threads 1 --quiet"
    )
    return ["train", "--data", str(folder / "x.npy"), *options.split(), *map(str, more)]


ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def reached(folder) -> int:
    """The step of the state in a folder, 0 if there is none."""
    try:
        with safe_open(folder / "state.safetensors", framework="pt") as file:
            return json.loads(file.metadata()["trainer"])["step"]
    except FileNotFoundError:
        return 0


def test_killed_runs_end_with_the_bits_of_a_whole_one(tmp_path, seed):
    """SIGKILL at random moments, while states are written every few steps."""
    dice, steps = random.Random(seed), []
    options = ["--epochs", "14", "--evaluate-every", "7", "--save-minutes", "0.0005"]
    assert main(command(tmp_path, *options, "--out", tmp_path / "whole")) == 0
    killed = tmp_path / "killed"
    call = [sys.executable, "-m", "flowinv_fast.cli", *command(tmp_path, *options, "--out", killed)]
    for _ in range(3):
        run = subprocess.Popen(call, env=ALONE, stdout=subprocess.DEVNULL)
        try:
            while reached(killed) <= (steps[-1] if steps else 0) and run.poll() is None:
                time.sleep(0.02)
            time.sleep(dice.uniform(0, 0.2))
        finally:
            run.send_signal(signal.SIGKILL)
        if run.wait() == 0:
            break  # through before the kill
        steps.append(reached(killed))
    assert steps and 0 < steps[0] < 14 * 13 and any(step % (7 * 13) for step in steps)
    assert steps == sorted(set(steps)), "every run went on from where the last one was killed"
    assert main(command(tmp_path, *options, "--out", killed)) == 0
    assert_equal(weights(killed), weights(tmp_path / "whole"))


def curve(folder) -> list:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["bits_per_dim"] for line in lines]


def test_two_processes_train_as_one(tmp_path):
    options = ["--epochs", "5", "--out"]
    assert main(command(tmp_path, *options, tmp_path / "one")) == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    call = command(tmp_path, *options, tmp_path / "two", "--device", "cpu")
    call = [sys.executable, *torchrun, "-m", "flowinv_fast.cli", *call]
    done = subprocess.run(call, env=ALONE, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("weights in") == 1 and "Warning" not in done.stderr
    one, two = curve(tmp_path / "one"), curve(tmp_path / "two")
    assert one[0] - one[-1] > 0.02, "nothing was learnt"
    assert two == pytest.approx(one, abs=1e-3)
    torch.testing.assert_close(
        weights(tmp_path / "two"), weights(tmp_path / "one"), atol=1e-3, rtol=1e-3
    )


@pytest.fixture
def first_of_two(monkeypatch) -> None:
    """torch.distributed as the first of two processes sees it, without the other."""
    answers = {
        "is_initialized": True,
        "get_rank": 0,
        "get_world_size": 2,
        "init_process_group": None,
        "destroy_process_group": None,
    }
    for name, value in answers.items():
        monkeypatch.setattr(dist, name, lambda *a, value=value: value)
    monkeypatch.setenv("WORLD_SIZE", "2")


def test_batches_that_processes_cannot_share(tmp_path, capsys, first_of_two):
    call = command(tmp_path, "--device", "cpu", "--out", tmp_path / "run")
    for batch, words in (
        (15, "a multiple of the 2 processes, got 15"),
        (218, "at most the 216 im"),
    ):
        assert main([*call, "--batch", str(batch)]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert (
            line.startswith("flowinv-fast train: FlowTrainer: batch: expected ") and words in line
        )
    assert not (tmp_path / "run").exists()


def test_crops_are_trained_on(tmp_path):
    (tmp_path / "pictures").mkdir()
    for i in range(3):
        pixels = torch.randint(0, 256, (20, 14 + 4 * i, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / f"{i}.png")
    config = RealNVPConfig((3, 8, 8), scales=2, hidden=4, blocks=1)

    def run(folder, epochs, size=(3, 8, 8)):
        crops = Crops(tmp_path / "pictures", size, (8, 12), epoch=64)
        held_out = crops.take(16, 1)
        options = FlowTrainConfig(epochs=epochs, **OPTIONS)
        made = FlowTrainer(config, options, crops, held_out, tmp_path / folder, progress=False)
        return made.run()

    assert run("whole", 3)["step"] == 6 and len(curve(tmp_path / "whole")) == 3
    run("parts", 1.5)
    run("parts", 3)
    assert_equal(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert_names("images", lambda: run("other", 1, (3, 8, 4)))


def test_start_is_where_training_begins(tmp_path):
    before = trainer(tmp_path / "first", 2).run()
    flow = load_flow(tmp_path / "first" / "flow.safetensors")
    images, options = (stripes(200, 2), stripes(64, 1)), FlowTrainConfig(epochs=1, **OPTIONS)
    run = FlowTrainer(CONFIG, options, *images, tmp_path / "second", progress=False, start=flow)
    for weights in (run.flow.state_dict(), run.average.state_dict()):
        assert_equal(weights, flow.state_dict())
    assert run.evaluate()["bits_per_dim"] == before["bits_per_dim"]
    run._train_step()
    assert not torch.equal(next(run.flow.parameters()), next(flow.parameters()))
    for other in ({"hidden": 9}, {"bits": 5}, {"support": "bounded"}):
        start = realnvp(RealNVPConfig(**{**CONFIG.to_dict(), **other}))
        third = tmp_path / "third"
        run = lambda start=start, third=third: FlowTrainer(
            CONFIG, options, *images, third, progress=False, start=start
        )
        assert_names("start", run)
    smoother = replace(CONFIG, smoothing=0.2)
    FlowTrainer(smoother, options, *images, tmp_path / "third", progress=False, start=flow)


@pytest.mark.parametrize("bits", [5, 8])
def test_without_smoothing_grey_levels_are_filled_evenly(tmp_path, bits):
    """All of [0, 1) in 2^bits cells: the cell is the image's, the place in it uniform."""
    config = RealNVPConfig((1, 8, 8), scales=1, hidden=4, blocks=0, bits=bits, smoothing=0.0)
    images = torch.randint(0, 256, (64, 1, 8, 8), dtype=torch.uint8)
    options = FlowTrainConfig(epochs=1, batch=64)
    run = FlowTrainer(config, options, images, images[:4], tmp_path, progress=False)
    inputs, log_prob = [], run.log_prob
    run.log_prob = lambda x: inputs.append(x) or log_prob(x)
    run._train_step()
    cells = inputs[0].double() * 2**bits
    assert torch.equal(cells.floor().int(), (Stored(images).batch(0, 64) >> (8 - bits)).int())
    assert cells.floor().unique().tolist() == list(range(2**bits))
    for part in (cells < 2**bits / 4, cells > 2**bits * 3 / 4):
        place = (cells - cells.floor())[part].numpy()
        assert scipy.stats.kstest(place, "uniform").pvalue > 1e-6


def test_a_run_that_is_stopped_keeps_what_was_learnt(tmp_path, monkeypatch):
    """Asked in the middle of a step: the step is finished, saved, and the run then ends."""
    run = trainer(tmp_path / "cut", 2)
    move, asked = run._move_average, []

    def ask_in_step_ten(decay):
        if run.step == 9:  # the weights have moved, their average not yet
            asked.append(True)
        move(decay)

    monkeypatch.setattr(run, "_move_average", ask_in_step_ten)
    run.run(stop=lambda: bool(asked))
    assert reached(tmp_path / "cut") == 10
    trainer(tmp_path / "cut", 2).run()
    trainer(tmp_path / "whole", 2).run()
    assert_equal(weights(tmp_path / "cut"), weights(tmp_path / "whole"))


def test_training_leaves_the_signals_to_the_program(tmp_path, monkeypatch):
    """A call from Python installs no handler: its own answers, and at once."""
    run, seen = trainer(tmp_path, 1), set()
    own = lambda number, frame: None
    before = signal.signal(signal.SIGTERM, own)
    step = run._train_step
    look = lambda: (seen.update(map(signal.getsignal, (signal.SIGTERM, signal.SIGINT))), step())[1]
    monkeypatch.setattr(run, "_train_step", look)
    try:
        run.run()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == {own, signal.getsignal(signal.SIGINT)}


def test_another_configuration_is_refused(tmp_path):
    trainer(tmp_path, 1).evaluate()
    with pytest.raises(ArgumentError, match="folder"):
        trainer(tmp_path, 1, lr=1e-4)
    (tmp_path / "state.safetensors").write_bytes(b"broken")
    with pytest.raises(ArgumentError, match="folder"):
        trainer(tmp_path, 1)


def test_a_damaged_state_is_named(tmp_path):
    trainer(tmp_path, 1)._train_step()
    run, path = trainer(tmp_path, 1), tmp_path / "state.safetensors"
    run._train_step()
    run._save_state()
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["trainer"])
    of_adam = next(name for name in tensors if name.endswith(".exp_avg") and tensors[name].dim())
    lost = next(name for name in tensors if name.endswith(".direction"))
    for changed, facts in (
        ({k: v for k, v in tensors.items() if k != lost}, header),
        ({**tensors, lost: torch.zeros(1)}, header),
        ({**tensors, of_adam: torch.zeros(7)}, header),
        ({k: v for k, v in tensors.items() if k != of_adam}, header),
        (tensors, {**header, "step": -1}),
        (tensors, {**header, "seconds": "long"}),
        (tensors, {k: v for k, v in header.items() if k != "identity"}),
    ):
        save_file(changed, path, metadata={"trainer": json.dumps(facts)})
        with pytest.raises(ArgumentError, match="state.safetensors"):
            trainer(tmp_path, 1)
    save_file(tensors, path, metadata={"trainer": json.dumps(header)})
    assert trainer(tmp_path, 1).step == 1


def test_wrong_images_are_refused(tmp_path):
    options = FlowTrainConfig()
    for images in (torch.rand(4, 1, 8, 8), stripes(4, 0)[:, :, :4], stripes(0, 0)):
        with pytest.raises(ArgumentError, match="images"):
            FlowTrainer(CONFIG, options, images, stripes(4, 0), tmp_path)


def test_log_has_one_line_per_evaluation(tmp_path):
    trainer(tmp_path, 3).run()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    curve = load_flow(tmp_path / "flow.safetensors").info["curve"].split(", ")
    told = [f"{line['seconds'] / 60:.1f}: {line['bits_per_dim']:.3f}" for line in lines]
    assert curve == told


@pytest.mark.parametrize("count", [0, 1, 19, 20, 21, 200])
def test_a_curve_of_many_evaluations_is_thinned(count):
    lines = [json.dumps({"seconds": 60.0 * i, "bits_per_dim": 9.0 - i}) for i in range(count)]
    points = curve_in_words([*lines, '{"step": 3}']).split(", ")
    assert len(points) <= 21 and points[0] == ("0.0: 9.000" if count else "")
    assert count == 0 or points[-1] == f"{count - 1:.1f}: {10.0 - count:.3f}"


def test_global_random_state_is_untouched(tmp_path):
    torch.manual_seed(7)
    before = torch.get_rng_state()
    trainer(tmp_path, 0.2).run()
    assert torch.equal(before, torch.get_rng_state())
