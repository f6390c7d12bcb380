"""How commands end: exit status, one line of reason, nothing lost, whatever the surroundings."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from interrupts import ended, interrupt_at

from flowinv_fast import cli
from flowinv_fast.cli import main
from flowinv_fast.experiments import demo, runner
from flowinv_fast.flows import load_flow

FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
ROOT = pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="changes the user")


def images(folder: Path, count: int = 64) -> str:
    np.save(folder / "x.npy", np.random.default_rng().integers(0, 256, (count, 8, 8), np.uint8))
    return str(folder / "x.npy")


def training(folder: Path, *more: str) -> list[str]:
    options = "--epochs 2 --batch 16 --quiet".split()
    options += [] if "vae" in more else "--hidden 4 --blocks 1 --scales 1".split()
    return ["train", "--data", str(folder / "x.npy"), "--out", str(folder / "run"), *options, *more]


# --- interrupted ----------------------------------------------------------------------------------


def test_ctrl_c_ends_the_demo(tmp_path, monkeypatch, capsys):
    """In the middle of a solve: no table, no files, 130."""
    (tmp_path / "results.json").write_text("before")
    interrupt_at(monkeypatch, 3)
    handler = signal.getsignal(signal.SIGINT)
    arguments = ["demo", "--tasks", "sinusoidal", "--images", "1", "--out", str(tmp_path)]
    assert main(arguments) == 130
    told = capsys.readouterr()
    assert told.out == "" and "flowinv-fast demo: interrupted" in told.err
    assert "Traceback" not in told.err
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("results.json", "before")]
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("model", ["realnvp", "vae"])
def test_an_interrupted_training_goes_on_with_the_same_bits(tmp_path, monkeypatch, model, number):
    """A signal in the middle of a step; the flow's step has an average to move after it."""
    from flowinv_fast.training.trainer import Trainer

    images(tmp_path)
    more = ["--model", model]
    if model == "vae":
        more += ["--width", "4", "--latent-dim", "3"]
    step, cut = Trainer._train_step, [3]

    def signalled(self):
        if self.step == cut[0]:
            signal.raise_signal(number)
        return step(self)

    monkeypatch.setattr(Trainer, "_train_step", signalled)
    assert main(training(tmp_path, *more)) == 128 + number
    cut[0] = -1
    assert main(training(tmp_path, *more)) == 0
    assert main([*training(tmp_path, *more), "--out", str(tmp_path / "whole")]) == 0
    states = [(tmp_path / name / "state.safetensors").read_bytes() for name in ("run", "whole")]
    names = ("flow.safetensors",) if model == "realnvp" else ("generator.safetensors",)
    assert states and all((tmp_path / "run" / name).exists() for name in names)
    from safetensors.torch import load

    one, other = map(load, states)
    assert one.keys() == other.keys()
    assert all((one[key] == other[key]).all() for key in one)


def of_group(group: int) -> list[str]:
    """Processes of a group that are running, as Linux tells them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its, *_ = path.read_text().rsplit(")")[-1].split()
            if int(its) == group and state != "Z":
                found.append(path.parent.name)
    return found


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ctrl_c_ends_processes_that_share_the_work(tmp_path):
    """A terminal sends it to all of them: 130, one line, no process left, whole cells only."""
    options = "sensitivity --quick --images 4 --steps 40 --jobs 2 --threads 2 --quiet --out run"
    command = [sys.executable, "-m", "flowinv_fast.cli", "reproduce", *options.split()]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    cells = tmp_path / "run" / "cells"
    while process.poll() is None and not list(cells.glob("sens*[0-9].json")):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130
    lines = [line for line in told.splitlines() if "warning" not in line]
    assert len(lines) == 1 and lines[0].startswith("flowinv-fast reproduce: interrupted"), told
    for path in cells.glob("*.json"):
        json.loads(path.read_text())
    for _ in range(1500):  # half a minute for what ends by itself when its parent has
        if not (left := of_group(process.pid)):
            break
        time.sleep(0.02)
    assert not left


# --- the surroundings -----------------------------------------------------------------------------


@FORKS
def test_a_reader_that_leaves_is_no_error():
    for arguments in (["info"], ["--help"]):
        reading, writing = os.pipe()
        os.close(reading)
        found = ended(arguments, out=writing)
        os.close(writing)
        assert found.status in (0, 141) and found.err == "", found


@FORKS
def test_a_full_disk_under_stdout():
    full = os.open("/dev/full", os.O_WRONLY)
    found = ended(["info"], out=full)
    assert found.status == 1 and found.err == "flowinv-fast info: No space left on device\n"
    found = ended(["demo", "--images", "0"], err=full)
    os.close(full)
    assert found.status == 2 and found.out == ""


@FORKS
def test_closed_streams(tmp_path):
    """Also the descriptors: what is opened next must not become stderr."""
    images(tmp_path)
    assert ended(["info"], out=-1).status == 0
    found = ended(training(tmp_path), out=-1, err=-1)
    assert found.status == 0
    assert load_flow(tmp_path / "run" / "flow.safetensors").shape == (1, 8, 8)
    assert ended(["demo", "--images", "0"], out=-1, err=-1).status == 2


@FORKS
def test_an_encoding_that_lacks_letters(tmp_path):
    """ASCII, and names of bytes that are no UTF-8."""
    images(tmp_path)
    for name in ("prüfung", os.fsdecode(b"\xff\xfe")):
        out = str(tmp_path / name)
        found = ended([*training(tmp_path), "--out", out], encoding="ascii")
        assert found.status == 0, found.err
        assert "bits/dim" in found.out and os.path.exists(f"{out}/flow.safetensors")
        found = ended(["report", out], encoding="ascii")
        assert found.status == 2 and found.err.startswith("flowinv-fast report: report: folder:")
    found = ended(
        ["reproduce", "ood", "--flow", os.fsdecode(b"\xff"), "--out", str(tmp_path / "r")]
    )
    assert found.status == 2 and "flow: expected" in found.err and not (tmp_path / "r").exists()


def narrow() -> None:
    os.environ.update(COLUMNS="1", TERM="dumb")


@FORKS
def test_a_narrow_dumb_terminal():
    for command in ([], ["demo"], ["reproduce"], ["train"], ["card"]):
        assert ended([*command, "--help"], before=narrow).status == 0


def nobody() -> None:
    """A user without a name, a home or rights."""
    for name in ("HOME", "FLOWINV_DATA", "XDG_DATA_HOME"):
        os.environ.pop(name, None)
    os.setgroups([])
    os.setgid(54321)
    os.setuid(54321)


@FORKS
@ROOT
def test_a_user_without_rights(tmp_path):
    """Folders that cannot be written to are refused before the work, in one line."""
    images(tmp_path)
    folder = tmp_path
    while folder != folder.parent:  # pytest's folders are the user's own
        folder.chmod(0o755)
        folder = folder.parent
        if folder == Path("/tmp"):
            break
    assert ended(["info"], before=nobody).status == 0
    (tmp_path / "x.npy").chmod(0o644)
    commands = {
        "demo": ["demo", "--out", str(tmp_path)],
        "reproduce": ["reproduce", "ood", "--quick", "--out", str(tmp_path / "new")],
        "train": training(tmp_path),
    }
    for name, arguments in commands.items():
        found = ended(arguments, before=nobody)
        (line,) = [line for line in found.err.splitlines() if "warning" not in line]
        assert found.status == 1 and line.startswith(f"flowinv-fast {name}: {tmp_path}"), found
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


def small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))


@FORKS
def test_a_full_disk_under_a_training(tmp_path):
    """What was saved before stays, no half file is left, and the run goes on when there is room."""
    images(tmp_path)
    assert main(training(tmp_path, "--epochs", "1")) == 0
    before = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    found = ended(training(tmp_path), before=small_files)
    assert found.status == 1 and found.err.startswith("flowinv-fast train: "), found
    assert len(found.err.splitlines()) == 1 and str(tmp_path / "run") in found.err
    after = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[n] == before[n] for n in ("flow.safetensors", "state.safetensors"))
    assert main(training(tmp_path)) == 0


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        OSError(28, "No space left on device", "x"),
        PermissionError(13, "Permission denied", "x"),
    ],
)
def test_errors_of_the_system_are_one_line(tmp_path, monkeypatch, capsys, error):
    def fails(*given):
        raise error

    monkeypatch.setattr(demo, "run_demo", fails)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("flowinv-fast demo: ")
    assert main(["--debug", "demo", "--out", str(tmp_path)]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_mistake_of_the_program_is_not_hidden(tmp_path, monkeypatch):
    def fails(*given):
        raise RuntimeError("a mistake")

    monkeypatch.setattr(demo, "run_demo", fails)
    with pytest.raises(RuntimeError, match="a mistake"):
        main(["demo", "--out", str(tmp_path)])


# --- what is typed --------------------------------------------------------------------------------

BAD_NUMBERS = {
    "demo": {
        "--images": ("0", "33", "-1", "2.5", "nan", "inf", "1e2", "", "9" * 400),
        "--seed": ("-1", "nan", "1.0", "1e99", str(2**31)),
        "--threads": ("0", "-4", "nan", "1000000000"),
    },
    "reproduce ood": {
        "--images": ("0", "-3", "nan"),
        "--steps": ("0", "-2", "1e3", "inf"),
        "--jobs": ("0", "nan", "99999"),
    },
    "train --data x": {
        "--lr": ("0", "-1", "nan", "inf", "-inf", "fast", ""),
        "--minutes": ("-1", "nan", "soon"),
        "--evaluate-every": ("0", "nan", "inf"),
        "--batch": ("0", "1.5", "nan"),
        "--seed": ("-1", str(2**40), "nan"),
        "--epochs": ("0", "nan", "inf"),
        "--bits": ("0", "9"),
        "--ema": ("-0.1", "nan", "2"),
        "--held-out-fraction": ("0", "1", "nan"),
        "--size": ("0", "nan", "99999999"),
    },
    "card mnist-28 --data x": {"--count": ("0", "nan"), "--seed": ("-1", "x")},
}


@pytest.mark.parametrize("command", BAD_NUMBERS)
def test_numbers_out_of_range_are_named_with_their_range(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    name = command.split()[0]
    for option, values in BAD_NUMBERS[command].items():
        for value in values:
            given = [f"{option}={value}"] if option != "--size" else [option, value, "8", "8"]
            assert main([*command.split(), *given]) == 2, (option, value)
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith(f"flowinv-fast {name}: argument {option}: expected a"), line
            assert repr(value) in line and "see flowinv-fast" in line
    assert list(tmp_path.iterdir()) == []


NEAR = {
    "demmo": "did you mean demo?",
    "train --data x --model realnpv": "did you mean realnvp?",
    "train mnist28 --data x --out y": "did you mean mnist-28?",
    "reproduce digit": "did you mean digits?",
    "reproduce ood --dataset fashion": "did you mean fashion-28?",
    "demo --tasks sinusoid": "did you mean sinusoidal?",
}


@pytest.mark.parametrize("typed", NEAR)
def test_the_nearest_name_is_told(typed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(typed.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert NEAR[typed] in line


def test_exit_statuses_are_documented(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    assert all(f"\n  {status} " in told for status in (0, 1, 2, 130, 141))


def test_warnings_about_results_are_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "reproduce", lambda *given: _warned())
    assert main(["reproduce", "ood", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == "flowinv-fast reproduce: warning: take care\n"


def _warned() -> dict:
    import warnings

    warnings.warn("take care", cli.ResultWarning, stacklevel=2)
    return {"rows": []}
