"""The command line, run as a user would."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flowinv_fast import ArgumentError
from flowinv_fast.cli import main
from flowinv_fast.experiments.demo import run_demo


def test_help_of_every_command(capsys):
    for command in ([], ["demo"], ["train"], ["info"]):
        with pytest.raises(SystemExit) as end:
            main([*command, "--help"])
        assert end.value.code == 0 and "usage: flowinv-fast" in capsys.readouterr().out


def test_info_lists_the_shipped_flows(capsys):
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for words in ("CUDA kernels", "fashion-28", "digits-noise-28", "mnist-28", "bits/dim"):
        assert words in printed


def test_demo_writes_a_panel_and_results(tmp_path):
    lines = []
    result = run_demo(tmp_path, images=1, names=["sinusoidal"], progress=False, report=lines.append,
                      steps=4)  # fmt: skip
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
    from flowinv_fast import load_flow

    np.save(tmp_path / "x.npy", np.random.default_rng().integers(0, 256, (64, 8, 8), np.uint8))
    command = [
        sys.executable, "-m", "flowinv_fast.cli", "train", "--data", str(tmp_path / "x.npy"),
        "--out", str(tmp_path / "run"), "--epochs", "1", "--batch", "16", "--hidden", "4",
        "--blocks", "1", "--scales", "2", "--quiet",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bits/dim" in done.stdout
    assert load_flow(tmp_path / "run" / "flow.safetensors").shape == (1, 8, 8)
