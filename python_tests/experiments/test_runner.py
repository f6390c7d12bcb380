"""The runner: every planned row, honest numbers, the same ones again, no work done twice."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import assert_names

import flowinv_fast as ff
from flowinv_fast import noise
from flowinv_fast.data import sample_images
from flowinv_fast.experiments import methods, report, runner, uncertainty
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.datasets import DATASETS
from flowinv_fast.experiments.methods import METHODS
from flowinv_fast.experiments.runner import reproduce
from flowinv_fast.experiments.task import Inputs
from flowinv_fast.experiments.tasks import TASKS, shipped
from flowinv_fast.reconstruction.solvers import Status

TINY = ReproduceConfig(
    ("digits", "sensitivity"), images=2, tuning_images=1, steps=3, restarts=1, chunk=2, quick=True
)
BM3D = all(importlib.util.find_spec(name) for name in ("deepinv", "ptwt"))
SSIM = importlib.util.find_spec("torchmetrics") is not None
NAMES = ("adam", "lbfgs", "latent-first", "smoothed", "tempered", "annealed")
STRATEGIES = [f"map-{name}" for name in NAMES]
EVERYWHERE = ["noisy", "map", "csgm-gan", "csgm-vae", "asim"]
VARIANTS = ["map-latent", "mle-gan", "mle-vae", "asim-proxy", "asim-norm"]


def reads(path: Path) -> object:
    """Strict JSON: no NaN, no Infinity."""

    def refuse(word):
        raise ValueError(f"{path}: {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def timeless(value: object) -> object:
    """All but the seconds."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, (list, tuple)) else value


def row_of(result: dict, task: str, method: str) -> dict:
    (row,) = [r for r in result["rows"] if (r["task"], r["method"]) == (task, method)]
    return row


def only(monkeypatch, *names: str) -> None:
    """Every setting is met by these methods."""
    monkeypatch.setattr(runner, "chosen_methods", lambda setting: [METHODS[n] for n in names])


# --- one real run, small --------------------------------------------------------------------------


def small_grids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two values for each parameter, and no uncertainty."""
    for name, method in METHODS.items():
        monkeypatch.setitem(METHODS, name, replace(method, grid=method.grid[:2]))
    draws = {"samples": 1, "warm_up": 2, "z": 1.0, "acceptance": 1.0, "top": 1.0}
    pictures = dict.fromkeys(("truth", "y", "mean", "std"), np.zeros((2, 1, 28, 28), np.float32))
    monkeypatch.setattr(uncertainty, "posterior", lambda *a: (draws, pictures))
    monkeypatch.setattr(uncertainty, "bound", lambda *a: {"std": 0.2, "images": []})


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run, and what every solve of its test images was given and answered."""
    folder, seen = tmp_path_factory.mktemp("run"), {}
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        for name, method in METHODS.items():

            def solve(context, setting, y, value, method=method):
                answer = method.solve(context, setting, y, value)
                seen.setdefault((setting.task, method.name, value, len(y)), (y, answer))
                return answer

            patch.setitem(METHODS, name, replace(method, solve=solve))
        result = reproduce(TINY, folder, False)
    return SimpleNamespace(folder=folder, result=result, seen=seen)


def test_what_a_run_leaves(run):
    assert reads(run.folder / "results.json") == json.loads(json.dumps(run.result))
    assert ReproduceConfig.load(run.folder / "config.toml") == TINY
    left = {p.name for p in run.folder.iterdir()} - {"sensitivity-over-weight.png"}
    pictures = {"digits.png", "posterior.png"}
    assert left == {"cells", "config.toml", "results.json", "report.html"} | pictures
    assert not list(run.folder.rglob("*.tmp*"))
    for path in run.folder.rglob("*.json"):
        reads(path)


def test_rows_of_a_real_run(run):
    """Images in order, with all that the method has to tell; tuned values are of the grid."""
    for row in run.result["rows"]:
        assert [image["image"] for image in row["images"]] == [0, 1]
        want = {"image", "seconds", "psnr"} | ({"ssim"} if SSIM else set())
        if row["method"].split("-")[0] in ("map", "mle", "csgm", "asim"):
            want |= {"loss", "log_noise", "log_prior", "steps", "status"}
        if row["method"].startswith("map"):
            want |= {"gap", "prior_overshoot"}
        assert all(set(image) == want for image in row["images"]), row["method"]
        assert all(np.isfinite(image["psnr"]) for image in row["images"])
        method = METHODS[row["method"]]
        assert row["title"] == method.title and row["parameter"] == method.parameter
        if row["task"] != "sensitivity":
            assert row["value"] in method.grid[:2]
    for facts in run.result["tuned"]:
        assert facts["value"] in facts["grid"] and len(facts["grid"]) == 2
    betas = [r["value"] for r in run.result["rows"] if r["task"] == "sensitivity"]
    assert betas == [1 / 16, 1, 16, 0.1 / 16, 0.1, 1.6]


def test_every_method_meets_the_same_measurement(run):
    for task in TINY.tasks:
        ys = [y for (t, *_, count), (y, _) in run.seen.items() if t == task and count == 2]
        assert len(ys) > 5 and all(torch.equal(y, ys[0]) for y in ys)
    truth = sample_images("fashion-28", 2)
    y, _ = run.seen["digits", "noisy", 1.0, 2]
    residual = (y - 0.5 * truth)[:, None]
    distance = (residual - 0.5 * sample_images("mnist-28")).abs().flatten(2).amax(2)
    assert (distance.amin(1) < 1e-6).all()  # half a real digit


def test_psnr_is_that_of_the_pictures(run):
    """Pixels of the pictures are off by half a grey level at most, and so is the error's RMS."""
    seen = 0
    for path in run.folder.glob("cells/*_test_0.npz"):
        with np.load(path) as kept:
            x, truth = kept["x"] / 255, kept["truth"] / 255
        rms = np.sqrt(((x - truth) ** 2).reshape(2, -1).mean(1))
        told = [10 ** (-row["psnr"] / 20) for row in reads(path.with_suffix(".json"))["value"]]
        np.testing.assert_allclose(told, rms, rtol=0, atol=0.5 / 255 + 1e-5)
        np.testing.assert_allclose(truth, sample_images("fashion-28", 2).numpy(), atol=1e-6)
        seen += 1
    assert seen == len(run.result["rows"])


@pytest.mark.parametrize("task", TINY.tasks)
def test_loss_and_gap(run, task):
    """Both losses again, from the densities alone."""
    truth, flow = sample_images("fashion-28", 2), ff.load_flow("fashion-28")
    if task == "digits":
        f, model = lambda x: 0.5 * x, noise.FlowNoise(ff.load_flow("digits-noise-28"), 0.5)
    else:
        f = ff.operators.GaussianSensing(200, (1, 28, 28), TINY.seed)
        model = noise.Sinusoidal.measurements(0.3, 0.3)
    checked = 0
    for row in run.result["rows"]:
        if row["task"] != task or not row["method"].startswith("map"):
            continue
        beta = row["value"]
        y, answer = run.seen[task, row["method"], beta, 2]
        with torch.no_grad():
            noise_found, noise_true = (model.log_prob(y - f(x)) for x in (answer.x, truth))
            prior_found, prior_true = (flow.log_prob(x) for x in (answer.x, truth))
        told = lambda key, row=row: torch.tensor([image[key] for image in row["images"]])
        # Terms of thousands of nats, rounded in float32 and to four decimals.
        close = dict(rtol=1e-4, atol=0.05)
        torch.testing.assert_close(told("log_noise"), noise_found, **close)
        torch.testing.assert_close(told("log_prior"), prior_found, **close)
        torch.testing.assert_close(told("loss"), -noise_found - beta * prior_found, **close)
        size = noise_true.abs() + beta * prior_true.abs() + told("loss").abs()
        want = told("loss") + noise_true + beta * prior_true
        assert ((told("gap") - want).abs() <= 1e-4 * size + 0.05).all(), row["method"]
        checked += 1
    assert checked == (8 if task == "digits" else 3)


def test_again_in_another_folder(run, tmp_path, monkeypatch):
    """All but the seconds is the same: results, cells, pictures, report."""
    small_grids(monkeypatch)
    reproduce(TINY, tmp_path, False)
    names = lambda folder: sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert names(tmp_path) == names(run.folder)
    for name in names(tmp_path):
        one, other = tmp_path / name, run.folder / name
        if name.suffix == ".json":
            assert timeless(reads(one)) == timeless(reads(other)), name
        elif name.suffix == ".npz":
            with np.load(one) as a, np.load(other) as b:
                assert all(np.array_equal(a[key], b[key]) for key in {*a, *b}), name
        else:
            assert one.read_bytes() == other.read_bytes(), name


def stopped(*arguments, **options):
    raise AssertionError("work done twice")


def test_a_finished_folder_costs_nothing(run, monkeypatch):
    small_grids(monkeypatch)
    for name in ("posterior", "bound"):
        monkeypatch.setattr(uncertainty, name, stopped)
    for name, method in METHODS.items():
        monkeypatch.setitem(METHODS, name, replace(method, solve=stopped))
    before = {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}
    assert reproduce(TINY, run.folder, False) == run.result
    assert before == {p: p.read_bytes() for p in run.folder.rglob("*") if p.is_file()}


# --- the plan -------------------------------------------------------------------------------------


def planned(tasks: tuple[str, ...]) -> dict[tuple[str, str], list[str]]:
    """(task, setting) to the methods wanted, by hand."""
    bm3d = ["bm3d"] if BM3D else []
    every = {
        ("digits", ""): EVERYWHERE + VARIANTS + STRATEGIES + bm3d + ["wiener"],
        ("cs-sinusoidal", "m = 100"): EVERYWHERE + ["lasso", "wiener"],
        ("cs-sinusoidal", "m = 300"): EVERYWHERE + VARIANTS + ["map-image", "lasso", "wiener"],
        ("denoise-gaussian", ""): EVERYWHERE + VARIANTS + bm3d + ["wiener"],
        ("denoise-sinusoidal", "c = 0.1"): EVERYWHERE + bm3d + ["wiener"],
        ("denoise-sinusoidal", "c = 0.3"): EVERYWHERE + VARIANTS + bm3d + ["wiener"],
        ("denoise-radial", ""): EVERYWHERE + VARIANTS + bm3d + ["wiener"],
        ("cs-1bit", "m = 200"): EVERYWHERE + ["lasso"],
        ("cs-1bit", "m = 784"): EVERYWHERE + VARIANTS + ["lasso"],
        ("cs-1bit", "m = 784, level = 4"): EVERYWHERE + ["lasso"],
        ("sensitivity", ""): ["map"] * 3 + ["asim"] * 3,
        ("ood", "c = 0.2"): ["noisy", "map", "asim", "csgm-gan", *bm3d, "wiener"],
    }
    return {key: sorted(names) for key, names in every.items() if key[0] in tasks}


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_every_row_is_there(tmp_path, monkeypatch, no_solves, chunk):
    """All methods that fit, at every setting, on all images, after as many trials each."""
    monkeypatch.setattr(report, "write", lambda *a: None)
    config = replace(TINY, tasks=tuple(TASKS), images=3, tuning_images=2, chunk=chunk)
    result = reproduce(config, tmp_path, False)
    found: dict = {}
    for row in result["rows"]:
        found.setdefault((row["task"], row["setting"]), []).append(row["method"])
        assert [image["image"] for image in row["images"]] == [0, 1, 2]
    assert {key: sorted(names) for key, names in found.items()} == planned(tuple(TASKS))
    assert list(dict.fromkeys(row["task"] for row in result["rows"])) == list(TASKS)
    pieces = lambda count: -(-count // chunk)
    trials = sum(len(facts["grid"]) for facts in result["tuned"])
    assert all(len(facts["grid"]) == 4 for facts in result["tuned"])
    assert len(no_solves) == pieces(2) * trials + pieces(3) * len(result["rows"])
    tuned = [(f["setting"], f["method"]) for f in result["tuned"]]
    want = [
        (f"{task}, {setting}" if setting else task, name)
        for (task, setting), names in planned(tuple(TASKS)).items()
        if task != "sensitivity"
        for name in names
        if name != "noisy" and name not in STRATEGIES
    ]
    assert sorted(tuned) == sorted(want)
    assert result["config"]["chunk"] == chunk and result["version"]


def test_full_sweeps(tmp_path, monkeypatch, no_solves):
    """Five weights around either default; five levels."""
    monkeypatch.setattr(report, "write", lambda *a: None)
    tasks = ("sensitivity", "denoise-sinusoidal")
    result = reproduce(replace(TINY, tasks=tasks, quick=False), tmp_path, False)
    rows = [row for row in result["rows"] if row["task"] == tasks[0]]
    values = lambda method: [row["value"] for row in rows if row["method"] == method]
    assert values("map") == [1 / 16, 1 / 4, 1.0, 4.0, 16.0]
    np.testing.assert_allclose(values("asim"), [0.1 / 16, 0.1 / 4, 0.1, 0.4, 1.6])
    assert sum(r["task"] == tasks[1] and r["method"] == "map" for r in result["rows"]) == 5


def test_bm3d_is_left_out_without_its_packages(monkeypatch):
    find = importlib.util.find_spec
    for missing in ("deepinv", "ptwt"):
        without = lambda name, gone=missing: None if name == gone else find(name)
        monkeypatch.setattr(importlib.util, "find_spec", without)
        setting = shipped("denoise-radial", quick=True)[0]
        names = [method.name for method in methods.chosen_methods(setting)]
        assert "bm3d" not in names and "map" in names


def test_colour_has_no_generators_and_no_wiener_filter():
    inputs = Inputs(DATASETS["photo-64"], 0, sample_images("mnist-28"))
    setting = TASKS["denoise-radial"].build(inputs)[0]
    names = {method.name for method in methods.chosen_methods(setting)}
    assert names >= {"noisy", "map", "asim"}
    assert not any(name.startswith(("csgm", "mle", "wiener")) for name in names)


def test_the_best_value_on_the_tuning_images_is_taken(tmp_path, monkeypatch, no_uncertainty):
    """Grey images of eight levels: the one nearest to the tuning images', in mean PSNR."""
    grid = tuple(np.random.default_rng().permutation(np.linspace(0, 1, 8)).tolist())

    def grey(context, setting, y, value):
        return methods.Answer(torch.full((len(y), 1, 28, 28), value))

    monkeypatch.setitem(METHODS, "map", replace(METHODS["map"], grid=grid, solve=grey))
    only(monkeypatch, "map", "noisy")
    for name in ("fashion-28", "mnist-28"):
        config = replace(TINY, tasks=("denoise-radial",), dataset=name, tuning_images=5)
        result = reproduce(config, tmp_path / name, False)
        images = sample_images(name)[-5:].double().numpy()
        score = [(-10 * np.log10(((v - images) ** 2).reshape(5, -1).mean(1))).mean() for v in grid]
        row = row_of(result, "denoise-radial", "map")
        assert row["value"] == grid[int(np.argmax(score))]
        test = sample_images(name)[:2].double().numpy()
        want = -10 * np.log10(((row["value"] - test) ** 2).reshape(2, -1).mean(1))
        np.testing.assert_allclose([i["psnr"] for i in row["images"]], want, atol=1e-3)


def test_out_of_distribution_images_are_the_other_data_sets(tmp_path, monkeypatch, no_uncertainty):
    only(monkeypatch, "noisy")
    reproduce(replace(TINY, tasks=("ood", "denoise-radial")), tmp_path, False)
    for name, kept in (("ood_c=0.2", "mnist-28"), ("denoise-radial", "fashion-28")):
        with np.load(tmp_path / "cells" / f"{name}_noisy_1_test_0.npz") as arrays:
            np.testing.assert_allclose(arrays["truth"] / 255, sample_images(kept, 2), atol=1e-6)


# --- chunks, folders, interruptions ---------------------------------------------------------------


def test_chunks_do_not_change_the_rows(tmp_path, monkeypatch, no_uncertainty):
    """Of methods whose solve draws nothing: the noise is an image's own, the rest is rounding."""
    only(monkeypatch, "noisy", "map", "map-latent", "asim", "asim-proxy")
    config = replace(TINY, tasks=("denoise-radial",), images=3)
    results = [reproduce(replace(config, chunk=c), tmp_path / str(c), False) for c in (1, 2, 3)]
    for rows in zip(*(result["rows"] for result in results)):
        assert len({row["value"] for row in rows}) == 1
        for images in zip(*(row["images"] for row in rows)):
            for key in images[0].keys() - {"seconds", "status"}:
                values = [float(image[key]) for image in images]
                np.testing.assert_allclose(values, values[0], rtol=1e-4, atol=0.05, err_msg=key)


def test_the_seed_changes_the_noise_alone(tmp_path, monkeypatch, no_solves):
    only(monkeypatch, "noisy")
    config = replace(TINY, tasks=("denoise-radial", "cs-sinusoidal"))
    found = [reproduce(replace(config, seed=s), tmp_path / str(s), False) for s in (1, 2)]
    psnrs = lambda result: [i["psnr"] for row in result["rows"] for i in row["images"]]
    assert not set(psnrs(found[0])) & set(psnrs(found[1]))
    assert len(set(psnrs(found[0]))) == 6  # every image and setting has noise of its own


def test_a_folder_of_another_configuration_is_refused(tmp_path, no_solves):
    config = replace(TINY, tasks=("denoise-radial",))
    result = reproduce(config, tmp_path, False)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    for change in ({"seed": 1}, {"images": 1}, {"chunk": 1}, {"quick": False}, {"tasks": ("ood",)}):
        other = replace(config, **change)
        message = assert_names("folder", lambda other=other: reproduce(other, tmp_path, False))
        assert str(tmp_path) in message
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert reproduce(config, tmp_path, False) == result


def test_files_that_cannot_be_used_leave_the_folder(tmp_path, no_solves):
    """So that the same folder can be named again with the right files."""
    np.save(tmp_path / "few.npy", np.zeros((500, 28, 28), np.uint8))
    file, folder = str(tmp_path / "few.npy"), tmp_path / "new"
    bad = replace(TINY, tasks=("denoise-radial",), test_file=file, tuning_file=file)
    assert_names("test_file", lambda: reproduce(bad, folder, False))
    assert not folder.exists()
    reproduce(replace(bad, test_file="", tuning_file=""), folder, False)


@pytest.mark.parametrize("jobs", [0, -1, 1.5])
def test_bad_jobs_are_named(tmp_path, jobs):
    assert_names("jobs", lambda: reproduce(TINY, tmp_path / "new", False, jobs))
    assert not (tmp_path / "new").exists()


def test_what_is_missing_is_done_again_and_nothing_else(tmp_path, no_solves, seed):
    config = replace(TINY, tasks=("denoise-radial",), images=4, chunk=1)
    result = reproduce(config, tmp_path, False)
    calls = len(no_solves)
    cells = sorted(p for p in (tmp_path / "cells").glob("*_*.json"))
    assert len(cells) == calls
    chosen = np.random.default_rng(seed).choice(len(cells), 5, False)
    for i in chosen:
        cells[i].unlink()
    (tmp_path / "results.json").unlink()
    no_solves.clear()
    again = reproduce(config, tmp_path, False)
    assert len(no_solves) == 5 and timeless(again) == timeless(result)


def test_a_solve_that_fails_is_null(tmp_path, monkeypatch, no_uncertainty):
    """Infinite losses are no JSON; the median gap is over what was found."""

    def fails(context, setting, y, value):
        lost = torch.tensor([torch.inf, 3.0])[: len(y)]
        found = SimpleNamespace(
            loss=lost,
            log_noise=-lost,
            log_prior=torch.zeros(len(y)),
            steps=torch.zeros(len(y)),
            prior_overshoot=None,
            status=[Status.FAILED, Status.MAX_STEPS][: len(y)],
        )
        return methods.Answer(setting.naive(y), found)

    monkeypatch.setitem(METHODS, "map", replace(METHODS["map"], solve=fails))
    only(monkeypatch, "noisy", "map")
    result = reproduce(replace(TINY, tasks=("digits",)), tmp_path, False)
    first, second = row_of(reads(tmp_path / "results.json"), "digits", "map")["images"]
    assert first["loss"] is first["log_noise"] is first["gap"] is None
    assert second["loss"] == 3.0 and "prior_overshoot" not in second
    assert (first["status"], second["status"]) == ("FAILED", "MAX_STEPS")
    assert ("Solves whose loss was not finite", "1 of 2") in report.claims(result)
    assert (f"median gap {second['gap']:+.1f} nats") in dict(report.claims(result)).values()


def test_progress_on_request(tmp_path, no_solves, capsys):
    config = replace(TINY, tasks=("denoise-radial",))
    reproduce(config, tmp_path / "quiet", False)
    assert capsys.readouterr() == ("", "")
    reproduce(config, tmp_path / "loud", True)
    assert "tuning" in (told := capsys.readouterr().err) and "test" in told and "cell" in told


# --- processes ------------------------------------------------------------------------------------

CHEAP = ReproduceConfig(
    ("sensitivity",), images=4, tuning_images=1, steps=8, restarts=1, chunk=1, quick=True
)


@pytest.fixture(scope="module")
def cheap(tmp_path_factory):
    """What one process finds."""
    with pytest.MonkeyPatch.context() as patch:
        small_grids(patch)
        return reproduce(CHEAP, tmp_path_factory.mktemp("cheap"), False)


def children(pid: int) -> set[int]:
    """Processes below a process, as Linux tells them."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    own = {int(word) for word in path.read_text().split()} if path.exists() else set()
    return own.union(*map(children, own))


def running(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_run_takes_its_workers_along_and_goes_on(tmp_path, monkeypatch, cheap):
    """kill -9 while two workers are at it: they end, and one process finishes with the same."""
    CHEAP.save(tmp_path / "own.toml")
    command = [sys.executable, "-m", "flowinv_fast.cli", "reproduce", "--quiet"]
    command += ["--config", str(tmp_path / "own.toml"), "--out", str(tmp_path / "run")]
    command += ["--jobs", "2", "--threads", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    cells = tmp_path / "run" / "cells"
    while process.poll() is None and not list(cells.glob("sens*[0-9].json")):
        time.sleep(0.005)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert process.returncode == -signal.SIGKILL, process.stderr.read()
    assert len(workers) >= 2
    for _ in range(3000):  # a minute, so as not to hang
        if not any(map(running, workers)):
            break
        time.sleep(0.02)
    left = [pid for pid in workers if running(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
    done = {p: p.stat().st_mtime_ns for p in cells.glob("*.json")}
    assert 0 < len(done) < 24
    small_grids(monkeypatch)
    found = reproduce(CHEAP, tmp_path / "run", False)
    assert timeless(found["rows"]) == timeless(cheap["rows"])
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
