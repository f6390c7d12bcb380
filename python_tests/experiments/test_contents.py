"""Cells of an interrupted run, of other images or weights, and damaged ones are never taken as
done; what a run does without is told."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_names
from interrupts import interrupt_at

from flowinv_fast import ArgumentError, RealNVPConfig, load_flow, realnvp, save_flow
from flowinv_fast.data import sample_images
from flowinv_fast.experiments import methods, report, runner, uncertainty
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.methods import METHODS
from flowinv_fast.experiments.runner import reproduce

ONE = ReproduceConfig(
    ("denoise-radial",), images=2, tuning_images=1, steps=6, restarts=1, chunk=1, quick=True
)


def timeless(value: object) -> object:
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, (list, tuple)) else value


def only(monkeypatch, *names: str) -> None:
    monkeypatch.setattr(runner, "chosen_methods", lambda setting: [METHODS[n] for n in names])


def told(call) -> tuple[object, list[str]]:
    """What a call returns, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call()
    return found, [str(warning.message) for warning in caught]


# --- interrupted ----------------------------------------------------------------------------------


def test_a_cell_that_was_cut_is_solved_again(tmp_path, monkeypatch, no_uncertainty, seed):
    """Ctrl-C at a random step of a random solve: the next run ends with the same numbers."""
    monkeypatch.setattr(report, "write", lambda *a: None)
    for name in ("map", "asim"):
        monkeypatch.setitem(METHODS, name, replace(METHODS[name], grid=METHODS[name].grid[:2]))
    only(monkeypatch, "map", "asim")
    whole = reproduce(ONE, tmp_path / "whole", False)
    cut = 1 + int(np.random.default_rng(seed).integers(2 * 2 * 6 + 2 * 2 * 6))
    with monkeypatch.context() as patch:
        interrupt_at(patch, cut)
        with pytest.raises(KeyboardInterrupt):
            reproduce(ONE, tmp_path / "cut", False)
    assert not (tmp_path / "cut" / "results.json").exists()
    done = {p.name: p.read_bytes() for p in (tmp_path / "cut" / "cells").glob("*.json")}
    same = lambda name: json.loads((tmp_path / "whole" / "cells" / name).read_bytes())
    assert all(timeless(json.loads(text)) == timeless(same(n)) for n, text in done.items())
    again = reproduce(ONE, tmp_path / "cut", False)
    assert timeless(again) == timeless(whole)
    kept = tmp_path / "cut" / "cells"
    assert all((kept / name).read_bytes() == text for name, text in done.items())


def test_an_interrupted_solve_is_no_bound(monkeypatch):
    flow, truth = load_flow("mnist-28"), sample_images("mnist-28", 1)
    interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        uncertainty.bound(flow, truth, 3, 0)


def test_only_one_place_calls_reconstruct():
    """``solved`` looks at the status; a call that does not would keep what is half solved."""
    folder = Path(methods.__file__).parent
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in getattr(node, "names", []) if isinstance(a, ast.alias)]
            assert path.name == "solving.py" or not {"reconstruct", "separate"} & set(names), path


# --- other contents -------------------------------------------------------------------------------


def test_other_images_of_the_same_number(tmp_path, monkeypatch, no_solves):
    """Under the same name of file: everything is solved again, and it is said why."""
    monkeypatch.setattr(report, "write", lambda *a: None)
    file, dice = tmp_path / "x.npy", np.random.default_rng()
    file.touch()
    config = replace(ONE, test_file=str(file), tuning_file=str(file))
    only(monkeypatch, "noisy", "map", "wiener")
    results = []
    for i in range(2):
        np.save(file, dice.integers(0, 256, (10_000, 28, 28), np.uint8))
        results.append(told(lambda: reproduce(config, tmp_path / "run", False)))
        calls = len(no_solves)
        assert calls == 2 * 4 + 3 * 2
        no_solves.clear()
        assert reproduce(config, tmp_path / "run", False) == results[-1][0] and not no_solves
        fresh, _ = told(lambda i=i: reproduce(config, tmp_path / f"fresh-{i}", False))
        assert timeless(fresh["rows"]) == timeless(results[-1][0]["rows"])
        no_solves.clear()
    assert results[0][0]["rows"] != results[1][0]["rows"]
    (message,) = [m for m in results[1][1] if "tuning" in m]
    assert "images (other contents)" in message and "solved again" in message


def test_a_replaced_flow_file(tmp_path, monkeypatch, no_solves):
    """Methods that use it are solved again, the others are not."""
    monkeypatch.setattr(report, "write", lambda *a: None)
    file = tmp_path / "flow.safetensors"
    flow = realnvp(RealNVPConfig((1, 28, 28), scales=1, hidden=4, blocks=0))
    save_flow(flow, file)
    config = replace(ONE, flow=str(file))
    only(monkeypatch, "noisy", "map", "csgm-gan")
    reproduce(config, tmp_path / "run", False)
    no_solves.clear()
    with torch.no_grad():
        next(p for p in flow.parameters() if p.numel() > 1).add_(1e-3)
    save_flow(flow, file)
    _, messages = told(lambda: reproduce(config, tmp_path / "run", False))
    assert {name for _, name, _, _ in no_solves} == {"map"} and len(no_solves) == 4 + 2
    assert any("prior (other contents)" in m and "_map_" in m for m in messages)
    no_solves.clear()
    reproduce(config, tmp_path / "run", False)
    assert not no_solves


def test_cells_of_another_configuration_without_its_file(tmp_path, monkeypatch, no_solves):
    """config.toml was taken away: its cells still know what they are of."""
    monkeypatch.setattr(report, "write", lambda *a: None)
    only(monkeypatch, "noisy", "map")
    reproduce(ONE, tmp_path, False)
    (tmp_path / "config.toml").unlink()
    no_solves.clear()
    _, messages = told(lambda: reproduce(replace(ONE, steps=7, seed=3), tmp_path, False))
    assert len(no_solves) == 4 + 2 * 2
    assert any("steps (6, now 7)" in m and "seed (0, now 3)" in m for m in messages)


def test_another_configuration_says_what_differs(tmp_path, no_solves, monkeypatch):
    monkeypatch.setattr(report, "write", lambda *a: None)
    only(monkeypatch, "noisy")
    reproduce(ONE, tmp_path, False)
    message = assert_names("folder", lambda: reproduce(replace(ONE, steps=9), tmp_path, False))
    assert "another steps (6, now 9)" in message and "seed" not in message


DAMAGES = {
    "truncated": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "no JSON": lambda raw: b"\xff" + raw[1:],
    "of another kind": lambda raw: b"[1, 2]",
    "nested": lambda raw: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cells_are_solved_again_and_named(tmp_path, monkeypatch, no_solves, damage):
    monkeypatch.setattr(report, "write", lambda *a: None)
    only(monkeypatch, "noisy", "map")
    result = reproduce(ONE, tmp_path, False)
    names = ["denoise-radial_map_1_tuning_0.json", "denoise-radial_noisy_1_test_1.json"]
    names += ["denoise-radial_noisy_1_test_0.npz", "posterior.json", "posterior.npz"]
    no_solves.clear()
    for name in names:
        path = tmp_path / "cells" / name
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    again, messages = told(lambda: reproduce(ONE, tmp_path, False))
    assert timeless(again) == timeless(result)
    assert len(no_solves) == 3
    for name in ("map_1_tuning_0", "noisy_1_test_1", "noisy_1_test_0", "posterior"):
        assert any(name in message and "damaged" in message for message in messages), name


def test_damaged_results_are_named(tmp_path):
    for content in ("", "[]", '{"rows": []}', "\x00", '{"config": {}, "rows": [1], "tuned": [], '
                    '"posterior": {}, "bound": {}}', "[" * 100_000):  # fmt: skip
        (tmp_path / "results.json").write_text(content)
        assert str(tmp_path) in assert_names("folder", lambda: report.report(tmp_path))
    (tmp_path / "results.json").unlink()
    for raw in (b"", b"\x1f\x8b", b"\x1f\x8b\x08\x00" + bytes(30)):
        (tmp_path / "results.json.gz").write_bytes(raw)
        assert str(tmp_path) in assert_names("folder", lambda: report.report(tmp_path))


def test_a_configuration_of_bytes_that_are_no_text(tmp_path):
    """A path that TOML cannot hold is refused before anything is done."""
    path = tmp_path / "\udcff.npy"
    path.touch()
    for name in ("test_file", "flow"):
        with pytest.raises(ArgumentError, match=name):
            ReproduceConfig(("ood",), tuning_file=str(path), **{name: str(path)})
    (tmp_path / "own.toml").write_text("steps = ")
    with pytest.raises(ArgumentError, match=re.escape(str(tmp_path / "own.toml"))):
        ReproduceConfig.load(tmp_path / "own.toml")


# --- told -----------------------------------------------------------------------------------------


def test_what_is_left_out_is_told(tmp_path, monkeypatch, no_solves):
    """BM3D without its packages: in a warning, in results.json and in the report."""
    find = importlib.util.find_spec
    gone = ("deepinv", "torchmetrics")
    without = lambda name, *more: None if name in gone else find(name, *more)
    monkeypatch.setattr(importlib.util, "find_spec", without)
    monkeypatch.setattr(runner, "_ssim", lambda *given: None)
    result, messages = told(lambda: reproduce(replace(ONE, images=1), tmp_path, False))
    (bm3d,) = [m for m in messages if "bm3d" in m]
    assert "denoise-radial" in bm3d and "deepinv" in bm3d and "flowinv_fast[baselines]" in bm3d
    assert any("ssim" in m and "flowinv_fast[metrics]" in m for m in messages)
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["left_out"] == result["left_out"]
    reasons = {row["method"]: row["reason"] for row in kept["left_out"]}
    assert "deepinv" in reasons["bm3d"] and "torchmetrics" in reasons["ssim"]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert reasons["bm3d"].replace("'", "&#x27;") in page
    assert not any(row["method"] == "bm3d" for row in kept["rows"])
    assert set(kept["sha256"]) == {"test", "tuning", "digits", "flow", "gan", "vae"}
