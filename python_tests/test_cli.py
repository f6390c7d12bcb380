"""The command line, run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from flowinv_fast import ArgumentError, __version__, load_flow
from flowinv_fast.cli import main
from flowinv_fast.experiments import report, runner
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.demo import run_demo
from flowinv_fast.experiments.tasks import TASKS
from flowinv_fast.flows import GlowConfig
from flowinv_fast.generators import load_generator
from flowinv_fast.training import flow as train
from flowinv_fast.training import split
from flowinv_fast.training.presets import PRESETS


def test_help_of_every_command(capsys):
    for command in ([], ["demo"], ["reproduce"], ["report"], ["train"], ["card"], ["info"]):
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        assert end.value.code == 0 and "usage: flowinv-fast" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"flowinv-fast {__version__}\n"


def test_parsing_loads_no_command():
    """The modules that compute are loaded by the command that runs."""
    code = (
        "import sys\nfrom flowinv_fast.cli import _parser\n_parser()\n"
        "modules = ('training.flow', 'training.presets', 'training.card', 'experiments.runner')\n"
        "print([name for name in modules if 'flowinv_fast.' + name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_info_lists_the_shipped_flows(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for words in ("CUDA kernels", "fashion-28", "digits-noise-28", "mnist-28", "bits/dim"):
        assert words in printed


def test_demo_writes_a_panel_and_results(tmp_path):
    lines = []
    options = {"images": 1, "names": ["sinusoidal"], "progress": False, "steps": 4}
    result = run_demo(tmp_path, report=lines.append, **options)
    assert any(line.startswith("sinusoidal") for line in lines)
    assert json.loads((tmp_path / "results.json").read_text())["tasks"][0]["name"] == "sinusoidal"
    assert result["steps"] == 4
    panel = Image.open(tmp_path / "panel.png")
    assert panel.width > 4 * 28 and len(np.unique(np.asarray(panel))) > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["panel.png", "results.json"]


def test_errors_are_one_line_and_code_2(capsys, tmp_path):
    assert main(["demo", "--out", str(tmp_path), "--images", "0"]) == 2
    assert main(["demo", "--out", str(tmp_path), "--tasks", "rain"]) == 2
    assert main(["train", "--data", str(tmp_path / "none"), "--out", str(tmp_path)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 3 and all("expected" in line for line in errors)
    with pytest.raises(ArgumentError):
        run_demo(tmp_path, images=33)


def test_train_from_the_command_line(tmp_path):
    """A few steps on a .npy array, in a process of its own, leave loadable weights."""
    np.save(tmp_path / "x.npy", np.random.default_rng().integers(0, 256, (64, 8, 8), np.uint8))
    files = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]
    options = "--epochs 1 --batch 16 --hidden 4 --blocks 1 --scales 2 --quiet".split()
    command = [sys.executable, "-m", "flowinv_fast.cli", "train", *files, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bits/dim" in done.stdout
    assert load_flow(tmp_path / "run" / "flow.safetensors").shape == (1, 8, 8)


def make_pictures(folder, levels, size=(96, 80)) -> None:
    """Numbered pictures of random pixels around these grey levels."""
    folder.mkdir(parents=True)
    for i, level in enumerate(levels):
        pixels = np.random.default_rng().integers(level, level + 6, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")


def test_train_a_preset_and_load_it_by_name(tmp_path, monkeypatch, capsys):
    """A few steps on crops of a folder with the parts train and test, kept in the user's folder."""
    name = "photo-64"
    monkeypatch.setenv("FLOWINV_DATA", str(tmp_path / "own"))
    monkeypatch.setattr(split, "HELD_OUT_CROPS", 20)
    make_pictures(tmp_path / "photos" / "train", [20, 120, 220])
    make_pictures(tmp_path / "photos" / "test", [70])
    options = "--hidden 4 --blocks 1 --batch 2 --epochs 0.001 --quiet".split()
    assert main(["train", name, "--data", str(tmp_path / "photos"), *options]) == 0
    file = tmp_path / "own" / name / "flow.safetensors"
    assert "on 20 held-out images" in capsys.readouterr().out and file.is_file()
    flow = load_flow(name)
    config, preset = flow.config.to_dict(), PRESETS[name].config.to_dict()
    assert config == preset | {"hidden": 4, "blocks": 1} and flow.info["step"] == 5


@pytest.fixture
def trained(monkeypatch) -> list:
    """What a FlowTrainer, which does nothing, was made of."""
    made = []

    class Idle:
        rank = 0
        together = False

        def __init__(self, *given):
            made.append(given)

        def run(self, *given):
            return {"bits_per_dim": 1.0, "held_out_images": 1, "epoch": 1}

    monkeypatch.setattr(train, "FlowTrainer", Idle)
    return made


def test_the_last_tenth_of_a_folder_is_held_out(tmp_path, trained):
    """In the order of the numbers: 10.png comes after 9.png, not after 1.png."""
    make_pictures(tmp_path / "x", range(0, 240, 8), (8, 8))
    assert (
        main(["train", "--data", str(tmp_path / "x"), "--size", "1", "8", "8", "--out", "y"]) == 0
    )
    (_, _, images, held_out, *_) = trained[0]
    levels = [[int(i.min()) // 8 for i in part] for part in (images.images, held_out)]
    assert levels == [list(range(27)), [27, 28, 29]]


def test_parts_of_a_folder_are_told_apart(tmp_path, trained):
    make_pictures(tmp_path / "x" / "train", [10, 20])
    make_pictures(tmp_path / "x" / "val", [200])
    for more in (["--crops"], []):
        options = ["--size", "3", "16", "16", "--out", "y", *more]
        assert main(["train", "--data", str(tmp_path / "x"), *options]) == 0
    for _, _, images, held_out, *_ in trained:
        assert images.batch(0, 2).max() < 30 and held_out.min() >= 190
    assert [type(given[2]).__name__ for given in trained] == ["Crops", "Stored"]


def test_options_change_a_preset(tmp_path, trained):
    np.save(tmp_path / "x.npy", np.zeros((20, 28, 28), np.uint8))
    call = ["train", "mnist-28", "--data", str(tmp_path / "x.npy"), "--out", "y"]
    assert main(call) == 0
    more = "--hidden 8 --gain-lr 0.5 --precision bf16 --recompute --bits 5".split()
    assert main([*call, *more]) == 0
    preset = PRESETS["mnist-28"]
    assert trained[0][:2] == (preset.config, preset.train)
    assert trained[1][:2] == (
        replace(preset.config, hidden=8, bits=5),
        replace(preset.train, gain_lr=0.5, precision="bf16", recompute=True),
    )


def test_patches_are_a_preset(tmp_path, trained):
    """Of five pictures of a folder, by name or by size."""
    make_pictures(tmp_path / "x", range(10, 60, 10), size=(40, 36))
    for more in (["photo-patch-16"], ["--patches", "8"], ["--patches", "8", "--model", "glow"]):
        assert main(["train", *more, "--data", str(tmp_path / "x"), "--out", "y"]) == 0
    preset, small = PRESETS["photo-patch-16"], (3, 8, 8)
    assert trained[0][:2] == (preset.config, preset.train)
    assert trained[1][:2] == (replace(preset.config, shape=small), preset.train)
    assert trained[2][0] == GlowConfig(**{**preset.config.to_dict(), "shape": small})
    for config, _, images, held_out, *_ in trained:
        assert images.levels == 5 and images.shape == held_out.shape[1:] == config.shape


BAD_TRAIN = {
    "patches": (["--patches", "8", "--size", "3", "8", "8"], "--size: expected none beside"),
    "unknown": (["photo-65", "--out", "y"], "PRESET: expected one of"),
    "nowhere": ([], "--out: expected a folder, got none"),
    "shipped": (["photo-64-small"], "--out: expected a folder (a flow named photo-64-small is"),
    "preset-crops": (["photo-64"], "--held-out: expected a folder of other photographs"),
    "crops": (["--crops", "--out", "y"], "--held-out: expected a folder of other photographs"),
    "generator": (["mnist-28", "--model", "vae"], "PRESET: expected none for a vae"),
    "no-held-out": (["--out", "y", "--held-out", "z"], "path: expected"),
    "fraction": (["--out", "y", "--held-out-fraction", "1"], "--held-out-fraction: expected a"),
    "start": (["--out", "y", "--start", "photo-65"], "name_or_path: expected a file or one of"),
}


@pytest.mark.parametrize("case", BAD_TRAIN)
def test_bad_trainings_are_one_line_and_code_2(tmp_path, monkeypatch, trained, capsys, case):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLOWINV_DATA", str(tmp_path / "own"))
    make_pictures(tmp_path / "x", range(10))
    arguments, words = BAD_TRAIN[case]
    assert main(["train", *arguments, "--data", "x"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("flowinv-fast train: ") and words in line
    assert not trained and [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("model", ["dcgan", "vae"])
def test_train_a_generator_from_the_command_line(tmp_path, capsys, model):
    """Minutes that are over after the first epoch; the learning rate is the model's own."""
    images = np.random.default_rng().integers(0, 256, (64, 8, 8), np.uint8)
    np.save(tmp_path / "x.npy", images)
    options = "--epochs 5 --minutes 0 --batch 16 --width 4 --latent-dim 6 --seed 3 --quiet".split()
    command = ["train", "--model", model, "--data", str(tmp_path / "x.npy"), *options]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("1 epochs; weights in") and not printed.err
    generator = load_generator(tmp_path / "run" / "generator.safetensors")
    assert generator.sample(2).shape == (2, 1, 8, 8)
    config, info = generator.config, generator.info
    assert (config.kind, config.latent_dim, config.width) == (model, 6, 4)
    default = {"warmup": 0, "halve_every": None, "precision": "fp32", "compile": False}
    default |= {"schedule": "halving"}
    lr = 2e-4 if model == "dcgan" else 1e-3
    assert info["train_config"] == {"epochs": 5, "batch": 16, "seed": 3, "lr": lr, **default}
    assert info["data"] == str(tmp_path / "x.npy") and info["train_images"] == 64
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out.startswith("2 epochs"), "the same command goes on"
    assert main([*command, "--out", str(tmp_path / "other"), "--lr", "0.003"]) == 0
    again = load_generator(tmp_path / "other" / "generator.safetensors")
    assert again.info["train_config"]["lr"] == 0.003


def test_a_generator_holds_out_what_lies_apart(tmp_path):
    make_pictures(tmp_path / "x" / "train", [10, 20, 30], (8, 8))
    make_pictures(tmp_path / "x" / "test", [200, 210], (8, 8))
    options = "--model vae --width 4 --latent-dim 6 --epochs 1 --quiet".split()
    out = tmp_path / "run"
    assert main(["train", "--data", str(tmp_path / "x"), "--out", str(out), *options]) == 0
    info = load_generator(out / "generator.safetensors").info
    assert info["train_images"] == 3 and info["held_out_images"] == 2 and info["held_out_loss"] > 0


def test_train_a_tarflow_from_the_command_line(tmp_path, capsys):
    """The images of a preset, with an architecture and settings of its own, which options change;
    and its card."""
    np.save(tmp_path / "x.npy", np.random.default_rng().integers(0, 256, (40, 28, 28), np.uint8))
    files = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]
    options = "--model tarflow --width 8 --blocks 2 --layers 1 --heads 2 --patch 7 --batch 16"
    options += " --epochs 1 --quiet"
    assert main(["train", "mnist-28", *files, *options.split()]) == 0
    assert "bits/dim" in capsys.readouterr().out
    flow = load_flow(tmp_path / "run" / "flow.safetensors")
    preset, config = PRESETS["mnist-28"].config, flow.config
    assert type(config).__name__ == "TarFlowConfig"
    assert (config.patch, config.width, config.blocks, config.layers) == (7, 8, 2, 1)
    assert (config.alpha, config.support) == (preset.alpha, preset.support)
    assert flow.info["train_config"]["schedule"] == "cosine"
    files = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "card")]
    assert main(["card", str(tmp_path / "run" / "flow.safetensors"), "--name", "a", *files]) == 0
    page = (tmp_path / "card" / "a.md").read_text()
    assert "other levels" not in page and "TarFlow, 2 autoregressive maps of 7 x 7 patches" in page
    assert "1 causal transformer layers of 8 channels and 2 heads" in page


def test_train_a_tarflow_of_levels_from_the_command_line(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng().integers(0, 256, (40, 8, 8), np.uint8))
    train = ["train", "--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run"), "--quiet"]
    train += "--width 8 --blocks 1 --layers 1 --heads 2 --batch 16 --epochs 1".split()
    for options, word in (
        (["--levels", "0.5", "0.05", "--model", "tarflow"], "levels"),
        (["--levels", "0.05", "--model", "tarflow"], "--levels"),
        (["--levels", "0.2", "0.5", "--model", "tarflow"], "smoothing"),
        (["--levels", "0.05", "0.5", "--model", "tarflow", "--kind", "noise"], "--levels"),
    ):
        assert main([*train, *options]) == 2
        assert word in capsys.readouterr().err
    assert main([*train, "--levels", "0.05", "0.5", "--model", "tarflow"]) == 0
    flow = load_flow(tmp_path / "run" / "flow.safetensors")
    assert flow.levels == (0.05, 0.5) and "bits_per_dim_0.158" in flow.info
    files = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "card")]
    assert main(["card", str(tmp_path / "run" / "flow.safetensors"), "--name", "a", *files]) == 0
    facts = json.loads((tmp_path / "card" / "a.json").read_text())
    assert [row["level"] for row in facts["levels"]] == [0.05, 0.158114, 0.5]
    page = (tmp_path / "card" / "a.md").read_text()
    assert "deviations 0.05 .. 0.5 of the range of grey; told below at 0.08" in page
    assert f"other levels of noise: 0.05: {facts['levels'][0]['bits_per_dim']:.4f} ± " in page


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--levels 0.05 0.5", "--levels: expected none for a realnvp"),
        ("--width 8 --model glow", "--width: expected none for a glow"),
        ("--scales 2 --model tarflow", "--scales: expected none for a tarflow"),
        ("--hidden 8 --model vae", "--hidden: expected none for a vae"),
        ("--penalty 0.1 --model dcgan", "--penalty: expected none for a dcgan"),
        ("--alpha 0.1", "--alpha: expected none with unbounded support"),
        ("--smoothing 0.1 --support bounded", "--smoothing: expected none with bounded support"),
        ("--heads 2 --kind noise", "--heads: expected none for a realnvp"),
    ],
)
def test_options_of_another_model_are_not_ignored(tmp_path, capsys, options, named):
    np.save(tmp_path / "x.npy", np.random.default_rng().integers(0, 256, (20, 8, 8), np.uint8))
    files = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]
    assert main(["train", *files, *options.split()]) == 2
    assert named in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_train_a_glow_from_the_command_line(tmp_path, capsys):
    """With the sizes of a preset, which options change."""
    pytest.importorskip("flowinv_fast.flows.glow")
    np.save(tmp_path / "x.npy", np.random.default_rng().integers(0, 256, (40, 28, 28), np.uint8))
    files = ["--data", str(tmp_path / "x.npy"), "--out", str(tmp_path / "run")]
    options = "--model glow --hidden 4 --blocks 0 --batch 16 --epochs 1 --quiet".split()
    assert main(["train", "mnist-28", *files, *options]) == 0
    assert "bits/dim" in capsys.readouterr().out
    config = load_flow(tmp_path / "run" / "flow.safetensors").config
    assert type(config).__name__ == "GlowConfig"
    preset = PRESETS["mnist-28"].config
    assert (config.hidden, config.blocks, config.scales) == (4, 0, preset.scales)
    assert (config.alpha, config.support) == (preset.alpha, preset.support)


def test_train_a_generator_on_what_it_cannot(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.zeros((4, 9, 9), np.uint8))
    command = ["train", "--model", "vae", "--data", str(tmp_path / "x.npy"), "--quiet"]
    assert main([*command, "--out", str(tmp_path / "run")]) == 2
    assert "shape: expected H = W" in capsys.readouterr().err
    assert main([*command, "--out", str(tmp_path / "run"), "--model", "gan"]) == 2
    assert "'gan'" in (told := capsys.readouterr().err) and "did you mean dcgan?" in told


@pytest.fixture
def configured(monkeypatch) -> list:
    """Calls of reproduce, which does nothing."""
    calls = []

    def reproduce(*given):
        calls.append(given)
        return {"rows": []}

    monkeypatch.setattr(runner, "reproduce", reproduce)
    return calls


def test_reproduce_options(tmp_path, configured, capsys):
    file = str(tmp_path / "images.npy")
    (tmp_path / "images.npy").touch()
    assert main(["reproduce", "--all"]) == 0
    assert capsys.readouterr().out == "wrote reproduction/report.html and results.json\n"
    files = ["--test", file, "--tuning", file, "--digits", file, "--other", file]
    assert main(["reproduce", "ood", "digits", *files]) == 0
    more = "--dataset mnist-28 --images 7 --seed 5 --steps 9 --out x --quiet".split()
    assert main(["reproduce", "cs-1bit", *more]) == 0
    assert main(["reproduce", "cs-1bit", *more, "--quick"]) == 0
    named = {name: file for name in ("test_file", "tuning_file", "digit_file", "other_file")}
    third = ReproduceConfig(("cs-1bit",), "mnist-28", 7, seed=5, steps=9)
    first = ReproduceConfig(tuple(TASKS), images=24)
    second = ReproduceConfig(("ood", "digits"), images=100, **named)
    wanted = [first, second, third, third.shortened()]
    assert [call[0] for call in configured] == wanted
    assert [call[1:3] for call in configured] == [("reproduction", None)] * 2 + [("x", False)] * 2


def test_reproduce_by_a_file(tmp_path, configured):
    config = ReproduceConfig(("sensitivity",), images=3, chunk=2)
    config.save(tmp_path / "own.toml")
    assert main(["reproduce", "--config", str(tmp_path / "own.toml")]) == 0
    assert main(["reproduce", "--config", str(tmp_path / "own.toml"), "--quick"]) == 0
    assert [call[0] for call in configured] == [config, config.shortened()]


BAD_REPRODUCE = {
    "nothing": ([], "TASK: expected names of"),
    "unknown": (["digits", "rain"], "tasks: expected"),
    "twice": (["ood", "ood"], "each once"),
    "dataset": (["ood", "--dataset", "celeba"], "dataset: expected"),
    "images": (
        ["ood", "--images", "0"],
        "argument --images: expected an integer in 1..2,147,483,647, got '0'",
    ),
    "many": (["ood", "--images", "33"], "images: expected"),
    "steps": (["ood", "--steps", "-2"], "--steps: expected"),
    "no-file": (["ood", "--test", "none.npy", "--tuning", "none.npy"], "test_file: expected"),
    "no-tuning": (["ood", "--test", __file__], "tuning_file: expected"),
    "only-tuning": (["ood", "--tuning", __file__], "tuning_file: expected"),
    "no-config": (["--config", "none.toml"], "path: expected a readable file"),
    "bad-config": (["--config", __file__], "path: expected a readable file"),
}


@pytest.mark.parametrize("case", BAD_REPRODUCE)
def test_bad_reproductions_are_one_line_and_code_2(configured, capsys, case):
    arguments, words = BAD_REPRODUCE[case]
    assert main(["reproduce", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("flowinv-fast reproduce: ") and words in line
    assert not configured
    if case == "unknown":
        assert "got rain" in line and all(task in line for task in TASKS)


def test_report_of_a_folder(tmp_path, capsys, monkeypatch):
    calls = []
    monkeypatch.setattr(report, "report", lambda *given: calls.append(given) or "the page")
    assert main(["report", "run"]) == main(["report", "run", "--out", "page"]) == 0
    assert calls == [("run", None), ("run", "page")]
    assert capsys.readouterr().out == 2 * "wrote the page\n"
    monkeypatch.undo()
    assert main(["report", str(tmp_path)]) == 2
    assert "folder: expected one with the results.json" in capsys.readouterr().err


def test_reproduce_refuses_another_ones_folder(tmp_path, capsys):
    ReproduceConfig(("ood",), images=3).save(tmp_path / "config.toml")
    assert main(["reproduce", "ood", "--images", "2", "--out", str(tmp_path), "--quiet"]) == 2
    assert "folder: expected a new one" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
