"""Trainings that fail: what is no number ends them, and nothing is mixed or lost."""

from __future__ import annotations

import json
import math
import shutil
import warnings

import numpy as np
import pytest
import torch
from helpers import assert_names
from safetensors import safe_open
from safetensors.torch import save_file

from flowinv_fast import ArgumentError, RealNVPConfig, SolverError, realnvp
from flowinv_fast.cli import main
from flowinv_fast.data import Crops, save_png
from flowinv_fast.generators import GeneratorConfig
from flowinv_fast.training.flow import FlowTrainConfig, FlowTrainer
from flowinv_fast.training.generator import GeneratorTrainConfig, GeneratorTrainer

CONFIG = RealNVPConfig((1, 8, 8), scales=1, hidden=4, blocks=0)


def pictures(count: int = 48) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8)


def trainer(folder, images, held_out=None, epochs=1, start=None, **options) -> FlowTrainer:
    how = FlowTrainConfig(**{"epochs": epochs, "batch": 16, "lr": 1e-3, "warmup": 0, **options})
    held_out = images[:8] if held_out is None else held_out
    return FlowTrainer(CONFIG, how, images, held_out, folder, progress=False, start=start)


def log(folder) -> list[dict]:
    refuse = lambda word: pytest.fail(f"{word} is no JSON")
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


# --- what is no number ----------------------------------------------------------------------------


def test_a_flow_that_diverges_is_an_error(tmp_path, monkeypatch, capsys):
    """Weights that explode within a few steps; what the last epoch left stays, and is named."""
    np.save(tmp_path / "x.npy", pictures(60)[:, 0].numpy())
    options = "--batch 9 --hidden 4 --blocks 1 --scales 1 --warmup 0 --quiet --epochs".split()
    call = ["train", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), *options]
    assert main([*call, "1"]) == 0
    file = tmp_path / "run" / "flow.safetensors"
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    monkeypatch.setattr(FlowTrainer, "_lr", lambda self: 1e30)
    capsys.readouterr()
    assert main([*call, "3"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "smaller lr" in line and str(file) in line and "step 6" in line
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    assert all(math.isfinite(row["bits_per_dim"]) for row in log(tmp_path / "run"))
    assert main([*call[:4], str(tmp_path / "new"), *call[5:], "1"]) == 1
    assert "no weights were saved" in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


def test_a_generator_whose_held_out_loss_is_no_number(tmp_path, monkeypatch):
    images = pictures()
    how = GeneratorTrainConfig(epochs=1, batch=16)
    config = GeneratorConfig((1, 8, 8), "vae", latent_dim=2, width=4)
    run = GeneratorTrainer(config, how, images, images[:4], tmp_path, progress=False)
    monkeypatch.setattr(run, "_held_out_loss", lambda *given: math.nan)
    with pytest.raises(SolverError, match="held_out_loss is nan at step 3"):
        run.run()
    assert not list(tmp_path.iterdir())


def test_a_state_that_is_not_finite_is_not_kept(tmp_path):
    run = trainer(tmp_path, pictures())
    run.run()
    before = (tmp_path / "state.safetensors").read_bytes()
    with torch.no_grad():
        next(run.average.parameters()).fill_(math.nan)
    with pytest.raises(SolverError, match="average"):
        run._save_state()
    assert (tmp_path / "state.safetensors").read_bytes() == before


@pytest.mark.parametrize("name", ["minutes", "evaluate_every", "save_minutes"])
def test_times_that_are_no_times(tmp_path, name):
    """NaN minutes never end."""
    run = trainer(tmp_path, pictures())
    for value in (math.nan, -1.0, "5"):
        assert_names(name, lambda value=value: run.run(**{name: value}))


def test_options_that_are_no_numbers():
    bad = {
        "penalty": (math.inf, math.nan, -1),
        "gain_lr": (math.inf, math.nan, 0),
        "max_grad_norm": (math.nan, 0),
        "ema": (math.nan, 1, -0.5),
        "halve_every": (math.nan, math.inf, 0),
        "warmup": (math.nan, 1.5, -1, math.inf),
        "lr": (True, math.inf),
    }
    for name, values in bad.items():
        for value in values:
            assert_names(name, lambda n=name, v=value: FlowTrainConfig(**{n: v}))


# --- another training -----------------------------------------------------------------------------


def test_other_images_of_the_same_number_are_refused(tmp_path):
    """Training or held-out ones: the state is that of the first ones."""
    images, held_out = pictures(), pictures(8)
    trainer(tmp_path, images, held_out).run()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = images.clone()
    other[17, 0, 3, 5] ^= 1
    told = assert_names("folder", lambda: trainer(tmp_path, other, held_out, 2))
    assert "another training images" in told and "held-out" not in told
    told = assert_names("folder", lambda: trainer(tmp_path, images, pictures(8), 2))
    assert "another held-out images" in told and "training images" not in told
    told = assert_names("folder", lambda: trainer(tmp_path, images, held_out, 2, precision="bf16"))
    assert "precision (fp32, now bf16)" in told
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert trainer(tmp_path, images, held_out, 2).run()["step"] == 6


def test_other_photographs_of_the_same_number_are_refused(tmp_path):
    folder = tmp_path / "photographs"
    folder.mkdir()
    config = RealNVPConfig((3, 8, 8), scales=1, hidden=4, blocks=0)
    how = FlowTrainConfig(epochs=1, batch=8, warmup=0)

    def made():
        crops = Crops(folder, (3, 8, 8), (8,), epoch=16)
        held_out = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
        return FlowTrainer(config, how, crops, held_out, tmp_path / "run", progress=False)

    save_png(torch.rand(3, 12, 12), folder / "0.png")
    made().run()
    save_png(torch.rand(3, 12, 12), folder / "0.png")
    assert "training images" in assert_names("folder", made)


def test_another_start_is_refused(tmp_path):
    """Its weights would not be looked at."""
    images = pictures()
    starts = [realnvp(CONFIG) for _ in range(2)]
    for start in starts:
        with torch.no_grad():
            for p in start.parameters():
                p.normal_(0, 0.01)
    trainer(tmp_path, images, start=starts[0]).run()
    for start in (starts[1], None):
        told = assert_names("folder", lambda start=start: trainer(tmp_path, images, start=start))
        assert "another start" in told
    trainer(tmp_path, images, start=starts[0])


def test_a_state_of_another_version_is_told(tmp_path):
    images = pictures()
    trainer(tmp_path, images).run()
    path = tmp_path / "state.safetensors"
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["trainer"])
    header["versions"] = {"flowinv_fast": "0.0.1", "torch": torch.__version__}
    save_file(tensors, path, metadata={"trainer": json.dumps(header)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert trainer(tmp_path, images, epochs=2).step == 3
    (message,) = [str(w.message) for w in caught if "state.safetensors" in str(w.message)]
    assert "flowinv_fast (0.0.1, now " in message and "torch" not in message


def test_damaged_states_are_refused_by_name(tmp_path):
    images, path = pictures(), tmp_path / "state.safetensors"
    trainer(tmp_path, images).run()
    whole = path.read_bytes()
    for raw in (b"", whole[:50], whole[:-9], b"\xff" * 100):
        path.write_bytes(raw)
        assert str(path) in assert_names("folder", lambda: trainer(tmp_path, images))
    for header in ("[", "{}", '{"identity": 3}', "[[[[" * 9999):
        save_file({"x": torch.zeros(1)}, path, metadata={"trainer": header})
        assert str(path) in assert_names("folder", lambda: trainer(tmp_path, images))
    path.write_bytes(whole)
    assert trainer(tmp_path, images).step == 3


# --- the log --------------------------------------------------------------------------------------


def test_the_log_has_each_step_once(tmp_path):
    """A run that is killed after a line of the log, before its state, writes that line again."""
    images, state = pictures(), tmp_path / "state.safetensors"
    trainer(tmp_path, images).run()
    shutil.copy(state, tmp_path / "first")
    trainer(tmp_path, images, epochs=2).run()
    shutil.copy(tmp_path / "first", state)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 9, "bits')  # and one was cut
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, images, epochs=3).run()
    assert [row["step"] for row in log(tmp_path)] == [3, 6, 9]
    assert any("log.jsonl: 1 damaged line" in str(w.message) for w in caught)


def test_images_without_a_difference_are_told(tmp_path):
    images = torch.full((48, 1, 8, 8), 7, dtype=torch.uint8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = trainer(tmp_path, images)
    assert any("all the same" in str(w.message) for w in caught)
    assert math.isfinite(run.run()["bits_per_dim"])


# --- the card -------------------------------------------------------------------------------------


def test_a_card_of_facts_that_are_no_numbers(tmp_path):
    """A flow whose header holds NaN: null in the JSON, and a page."""
    from flowinv_fast.training.card import write_card

    flow = realnvp(CONFIG).eval()
    flow.info = {"seconds": math.nan, "data": "prüfung \udcff"}
    write_card(flow, pictures(8), tmp_path, "mine", other="fashion-28", progress=False)
    refuse = lambda word: pytest.fail(f"{word} is no JSON")
    facts = json.loads((tmp_path / "mine.json").read_text("utf-8"), parse_constant=refuse)
    assert facts["training"]["seconds"] is None
    assert "prüfung" in (tmp_path / "mine.md").read_text("utf-8")


def test_one_training_to_a_folder(tmp_path, monkeypatch):
    first = trainer(tmp_path, pictures())
    second = trainer(tmp_path, pictures())
    step = first._train_step

    def meanwhile():
        with pytest.raises(ArgumentError, match="in use by process"):
            second.run()
        return step()

    monkeypatch.setattr(first, "_train_step", meanwhile)
    assert first.run()["step"] == 3
