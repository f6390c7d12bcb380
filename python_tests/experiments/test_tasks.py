"""The paper's tasks: noise and operators in numpy, measurements, the choice of images."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import assert_names

from flowinv_fast.data import sample_images
from flowinv_fast.data.images import fit_images
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.datasets import DATASETS
from flowinv_fast.experiments.datasets import GREY as SHAPE
from flowinv_fast.experiments.images import Images, paper_selection
from flowinv_fast.experiments.methods import rms
from flowinv_fast.experiments.task import Inputs, Point, Setting, Task
from flowinv_fast.experiments.tasks import TASKS

CONFIG = ReproduceConfig(images=24)
DIGITS = sample_images("mnist-28")
SIDE = 28


def of(
    task: str, dataset: str = "fashion-28", seed: int = 0, quick: bool = False, digits=DIGITS
) -> list[Setting]:
    return TASKS[task].build(Inputs(DATASETS[dataset], seed, digits), quick)


def images(count: int) -> torch.Tensor:
    """Of a multiple of 1/256, so that halves and sums of them are exact."""
    return torch.randint(0, 257, (count, *SHAPE)) / 256


def drawn(setting, truth: torch.Tensor) -> torch.Tensor:
    return setting.measurements(truth, [random.randrange(2**31) for _ in truth])


# --- the noise models, by the formulas of docs/method.md, section 4 -------------------------------


def wave(count: int) -> np.ndarray:
    """exp(sin(2 pi k / 16)) / e, at most 1."""
    return np.exp(np.sin(2 * np.pi * np.arange(count) / 16)) / np.e


def rows(c: float) -> np.ndarray:
    column = np.clip(c * wave(SIDE), 0.001, 1.0)
    return np.tile(column[:, None], (1, SIDE))[None]


def disc() -> np.ndarray:
    step = np.arange(SIDE) - 13
    return np.clip(np.exp(-0.005 * (step[:, None] ** 2 + step**2)), 0.001, 1.0)[None]


def sensed(level: float):
    """The largest variance, that of k = 4, is the level."""
    return lambda m: np.sqrt(level) * wave(m)


# task: (setting, std, mean, measurements or None)
NOISES = {
    "cs-sinusoidal": [(f"m = {m}", sensed(0.3)(m), 0.3, m) for m in (50, 100, 200, 400)],
    "denoise-gaussian": [("", np.full((1, 28, 28), 0.1), 0.0, None)],
    "denoise-sinusoidal": [(f"c = {c}", rows(c), 0.0, None) for c in (0.05, 0.1, 0.2, 0.3, 0.4)],
    "denoise-radial": [("", disc(), 0.0, None)],
    "cs-1bit": [
        ("m = 200", sensed(1.0)(200), 0.5, 200),
        ("m = 400", sensed(1.0)(400), 0.5, 400),
        ("m = 784", sensed(1.0)(784), 0.5, 784),
        ("m = 784, level = 0.25", sensed(0.25)(784), 0.5, 784),
        ("m = 784, level = 4", sensed(4.0)(784), 0.5, 784),
    ],
    "sensitivity": [("", sensed(0.3)(200), 0.3, 200)],
    "ood": [("c = 0.2", rows(0.2), 0.0, None)],
}


@pytest.mark.parametrize("task", NOISES)
def test_noise_is_the_papers(task):
    """What methods are told, what is drawn, and the pattern that baselines get."""
    found = of(task)
    assert [p.label for p in found] == [facts[0] for facts in NOISES[task]]
    for setting, (_, std, mean, _) in zip(found, NOISES[task]):
        np.testing.assert_allclose(setting.std.expand(1, *std.shape)[0], std, rtol=1e-5)
        assert setting.mean == mean
        assert math.isclose(rms(setting.std), np.sqrt((std**2).mean()), rel_tol=1e-5)
        residual = torch.randn(3, *std.shape) * torch.from_numpy(std).float() + mean
        want = scipy.stats.norm(mean, std).logpdf(residual.double().numpy())
        got = setting.noise.log_prob(residual)
        np.testing.assert_allclose(got, want.reshape(3, -1).sum(1), rtol=1e-5, atol=0.05)
        truth = torch.rand(40, *SHAPE)
        delta = (drawn(setting, truth) - setting.operator(truth)).double().numpy()
        z = (delta - mean) / std
        # Means of n standard normals and of their squares, within six standard deviations.
        assert abs(z.mean()) < 6 / z.size**0.5 and abs((z**2).mean() - 1) < 6 * (2 / z.size) ** 0.5
        # Its own pattern, not another of the same size.
        if std.std() > 0:
            assert np.corrcoef((delta - mean).std(0).ravel(), std.ravel())[0, 1] > 0.8


@pytest.mark.parametrize("task", ["cs-sinusoidal", "cs-1bit", "sensitivity"])
def test_sensing_matrices(task):
    """(m, N), entries N(0, 1 / m), of the seed; one bit is the sign of it."""
    for setting, (*_, m) in zip(of(task), NOISES[task]):
        forward, adjoint = setting.linear
        matrix = forward(torch.eye(784).view(784, *SHAPE)).T
        assert matrix.shape == (m, 784)
        spread = matrix.double().square().mean().item()
        assert abs(matrix.mean()) < 6 / (m * 784 * m) ** 0.5
        assert abs(spread * m - 1) < 6 * (2 / (m * 784)) ** 0.5
        x, y = torch.rand(3, *SHAPE), torch.randn(3, m)
        product = x.flatten(1) @ matrix.T
        got = setting.operator(x)
        if task == "cs-1bit":
            sure = product.abs() > 1e-4
            assert set(got.unique().tolist()) == {-1.0, 1.0}
            assert torch.equal(got[sure], product.sign()[sure])
        else:
            torch.testing.assert_close(got, product, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(adjoint(y).flatten(1), y @ matrix, rtol=1e-4, atol=1e-4)
        assert setting.naive(y).shape == (3, *SHAPE)
    one, other = (of(task, seed=seed)[0].linear[0](x) for seed in (1, 2))
    assert not torch.allclose(one, other)
    assert torch.equal(one, of(task, seed=1)[0].linear[0](x))


@pytest.mark.parametrize(
    "task", ["denoise-gaussian", "denoise-sinusoidal", "denoise-radial", "ood"]
)
def test_denoising_measures_the_image_itself(task):
    for setting in of(task):
        x = torch.randn(2, *SHAPE)
        for f in (setting.operator, *setting.linear, setting.naive):
            assert torch.equal(f(x), x)


def test_digits_halve_the_image_and_add_half_a_digit():
    """y = 0.5 x + 0.5 digit; the model is a scaled flow over whole digits, 2 y the naive image."""
    digits, truth = images(5), images(30)
    (setting,) = of("digits", digits=digits)
    y = drawn(setting, truth)
    residual = y - 0.5 * truth
    same = (residual[:, None] == 0.5 * digits).flatten(2).all(2)
    assert (same.sum(1) == 1).all()
    assert len(same.float().argmax(1).unique()) > 1  # not always the same digit
    assert torch.equal(setting.operator(truth), 0.5 * truth)
    assert torch.equal(setting.naive(y), 2 * y)
    np.testing.assert_allclose(setting.std[0], (0.5 * digits.double()).std(0), rtol=1e-5)
    assert math.isclose(setting.mean, 0.5 * digits.double().mean(), rel_tol=1e-5)
    # The density of half a digit is that of the digit, times 2 for every pixel.
    from flowinv_fast import load_flow

    want = load_flow("digits-noise-28").log_prob(2 * residual) + 784 * math.log(2)
    torch.testing.assert_close(setting.noise.log_prob(residual), want, rtol=1e-4, atol=0.1)


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("task", TASKS)
def test_one_setting_is_representative_and_names_differ(task, quick):
    found = of(task, quick=quick)
    assert sum(setting.representative for setting in found) == 1
    assert len({setting.title for setting in found}) == len(found)
    assert all(setting.task == task and task in setting.title for setting in found)
    assert {setting.other_images for setting in found} == {task == "ood"}


def test_short_sweeps():
    settings = lambda task: [setting.label for setting in of(task, quick=True)]
    assert settings("cs-sinusoidal") == ["m = 100", "m = 300"]
    assert settings("denoise-sinusoidal") == ["c = 0.1", "c = 0.3"]
    assert settings("cs-1bit") == ["m = 200", "m = 784", "m = 784, level = 4"]


def test_places_on_the_axes():
    """Over m at one noise level, over the level at one m; the representative one is on both."""
    at = [setting.at for setting in of("cs-1bit")]
    assert at == [
        {"measurements m": 200},
        {"measurements m": 400},
        {"measurements m": 784, "noise level": 1.0},
        {"noise level": 0.25},
        {"noise level": 4.0},
    ]
    assert [p.at for p in of("cs-sinusoidal")] == [
        {"measurements m": m} for m in (50, 100, 200, 400)
    ]
    assert [p.at["c"] for p in of("denoise-sinusoidal")] == [0.05, 0.1, 0.2, 0.3, 0.4]
    assert [p.at for p in of("sensitivity")] == [{}] == [p.at for p in of("denoise-radial")]


# --- what a task has to tell ----------------------------------------------------------------------


def task_of(about: str, **changes) -> Task:
    given = {"sweep": lambda dataset, quick: [Point({"m": 2})], **changes}
    return Task("rain", about, lambda values, inputs: None, ("noisy", "map"), **given)


def test_a_task_without_a_description_cannot_be_made():
    """Nor one that tells a number its sweep does not have."""
    assert (
        task_of("It rains, {m:g} drops.").sentence(DATASETS["mnist-28"], True).endswith("2 drops.")
    )
    for about in ("", " ", "It rains", "{k} drops.", "{m drops.", "{} drops."):
        assert "rain" in assert_names("about", lambda about=about: task_of(about))
    replaced = lambda **changes: replace(task_of("It rains."), **changes)
    assert "'snow'" in assert_names("methods", lambda: replaced(methods=("map", "snow")))
    for points in ([], [Point(), Point()], [Point(representative=False)]):
        assert_names("sweep", lambda p=points: replaced(sweep=lambda dataset, quick: p))


def test_sentences_tell_the_numbers_of_the_data_set():
    told = lambda task, name, quick=False: TASKS[task].sentence(DATASETS[name], quick)
    assert "m = 200," in told("sensitivity", "fashion-28")
    assert "m = 2500," in told("sensitivity", "photo-64")
    assert "c = 0.2" in told("ood", "fashion-28") and "mnist-28" in told("ood", "fashion-28")
    assert "deviation 0.1." in told("denoise-gaussian", "photo-64", True)
    for task, (name, dataset) in itertools.product(TASKS, DATASETS.items()):
        (setting,) = [s for s in of(task, "fashion-28") if s.representative]
        assert "{" not in told(task, name)
        if "its mean is" in told(task, dataset.name) or "noise of mean" in told(task, name):
            assert f"{setting.mean:g}" in told(task, name)


# --- measurements ---------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_measurements_do_not_depend_on_the_chunks(task, seed):
    """An image's measurement is its own seed's, whatever is measured beside it."""
    setting = of(task, quick=True)[0]
    truth, seeds = torch.rand(7, *SHAPE), random.Random(seed).sample(range(2**31), 7)
    whole = setting.measurements(truth, seeds)
    state = torch.get_rng_state()
    for size in (1, 2, 5):
        parts = [slice(first, first + size) for first in range(0, 7, size)]
        pieces = [setting.measurements(truth[part], seeds[part]) for part in parts]
        assert torch.equal(torch.cat(pieces), whole)
    assert torch.equal(state, torch.get_rng_state())
    others = setting.measurements(truth[:1].expand(7, -1, -1, -1), seeds)
    assert len({tuple(y.flatten().tolist()) for y in others}) > 1


# --- images ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of 28 x 28 images that tell, in their first two pixels, where they stand."""
    folder = tmp_path_factory.mktemp("images")
    numbered = np.zeros((12000, SIDE, SIDE), np.uint8)
    numbered[:, 0, 0], numbered[:, 0, 1] = np.divmod(np.arange(12000), 256)
    np.save(folder / "ten.npy", numbered[:10000])
    np.save(folder / "few.npy", numbered[:500])
    np.save(folder / "more.npy", numbered)
    (folder / "linked.npy").symlink_to(folder / "ten.npy")
    (folder / "inside").mkdir()
    return folder


def places(found: torch.Tensor) -> list[int]:
    pixels = (255 * found[:, 0, 0, :2]).round().long()
    return (256 * pixels[:, 0] + pixels[:, 1]).tolist()


def from_files(folder: Path, tuning: str = "few.npy", test: str = "ten.npy", **changes):
    full = lambda name: str(folder / name)
    config = {"images": 100, "other_file": full(test), **changes}
    return ReproduceConfig(test_file=full(test), tuning_file=full(tuning), **config)


def test_the_papers_selection(folder):
    chosen = places(paper_selection("test_file", folder / "ten.npy", 1000))
    assert chosen[:4] == [9394, 898, 2398, 5906]
    assert sum(chosen) == 5_075_556 and len(set(chosen)) == 1000
    for count in (1, 100):
        assert places(paper_selection("test_file", folder / "more.npy", count)) == chosen[:count]
    config = from_files(folder, digit_file=str(folder / "ten.npy"))
    found, other = Images.of(config), Images.other(config)
    assert places(found.test) == places(other.test) == chosen[:100]
    assert places(found.digits) == chosen
    assert found.test.shape == (100, *SHAPE) and found.test.max() <= 1


@pytest.mark.parametrize("same", ["ten.npy", "inside/../ten.npy", "linked.npy"])
def test_tuning_images_are_no_test_images(folder, same):
    """Where both come from one file, by whatever name, all of the paper's 1,000 are left out."""
    chosen = set(places(paper_selection("test_file", folder / "ten.npy", 1000)))
    for seed in random.sample(range(1000), 3):
        config = from_files(folder, same, seed=seed, tuning_images=500)
        found, other = Images.of(config), Images.other(config)
        for tuning in (places(found.tuning), places(other.tuning)):
            assert len(set(tuning)) == 500 and not chosen & set(tuning)


def test_tuning_images_of_another_file(folder, seed):
    config = from_files(folder, seed=seed, tuning_images=20)
    tuning = places(Images.of(config).tuning)
    assert len(set(tuning)) == 20 and max(tuning) < 500
    assert tuning == places(Images.of(config).tuning)
    assert tuning != places(Images.of(replace(config, seed=seed + 1)).tuning)
    everything = Images.of(replace(config, tuning_images=500)).tuning
    assert sorted(places(everything)) == list(range(500))


@pytest.mark.parametrize("name", [name for name, dataset in DATASETS.items() if dataset.images])
def test_shipped_images(name):
    dataset, other = DATASETS[name], DATASETS[DATASETS[name].other]
    config = ReproduceConfig(dataset=name, images=20, tuning_images=12)
    for found, own in ((Images.of(config), dataset), (Images.other(config), other)):
        want = fit_images(sample_images(own.images), dataset.shape)
        assert torch.equal(torch.cat([found.test, found.tuning]), want)
        assert want.shape[1:] == dataset.shape
    assert torch.equal(Images.of(config).digits, sample_images("mnist-28"))
    assert other.images != dataset.images


def test_too_few_images_are_named(folder):
    ten, few = str(folder / "ten.npy"), str(folder / "few.npy")
    bad = lambda **changes: from_files(folder, **changes)
    message = assert_names("test_file", lambda: Images.of(bad(test="few.npy")))
    assert "500 images" in message
    assert_names("test_file", lambda: Images.of(bad(images=1001)))
    assert_names("digit_file", lambda: Images.of(bad(digit_file=few)))
    assert_names("other_file", lambda: Images.other(bad(other_file=few)))
    assert_names("tuning_file", lambda: Images.of(bad(tuning_images=501)))
    assert_names("tuning_file", lambda: Images.of(bad(tuning=ten, tuning_images=9001)))


def test_images_of_another_size(folder, tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((10000, 2, 2), np.uint8))
    assert_names("path", lambda: Images.of(from_files(folder, test=str(tmp_path / "wide.npy"))))


# --- colour ---------------------------------------------------------------------------------------


def test_colour_digits_lie_at_their_places():
    """Halved digits at the model's places, its small Gaussian elsewhere; the density is the sum."""
    from scipy.stats import norm

    from flowinv_fast import load_flow

    digits, truth = images(5), torch.randint(0, 257, (6, 3, 64, 64)) / 256
    (setting,) = of("digits", "photo-64", digits=digits)
    residual = drawn(setting, truth) - 0.5 * truth
    covered = torch.zeros(3, 64, 64, dtype=torch.bool)
    flow, density, seen = load_flow("digits-noise-28"), 0, set()
    for channel, top, left in setting.noise.places.tolist():
        window = (channel, slice(top, top + 28), slice(left, left + 28))
        assert not covered[window].any()
        covered[window] = True
        patch = residual[:, window[0], window[1], window[2]]
        same = (patch[:, None] - 0.5 * digits[:, 0]).abs().flatten(2).amax(2) < 1e-6
        assert (same.sum(1) == 1).all()
        seen |= set(same.float().argmax(1).tolist())
        density = density + flow.log_prob(2 * patch[:, None]) + 784 * math.log(2)
    assert len(seen) > 1 and len({place[0] for place in setting.noise.places.tolist()}) == 3
    rest = residual[:, ~covered].double().numpy()
    assert abs(rest.std() / 0.01 - 1) < 0.05
    want = density + torch.from_numpy(norm(0, 0.01).logpdf(rest).sum(1)).float()
    torch.testing.assert_close(setting.noise.log_prob(residual), want, rtol=1e-4, atol=0.2)


@pytest.mark.parametrize("task", TASKS)
def test_colour_settings_fit_their_images(task):
    truth = torch.rand(2, 3, 64, 64)
    for setting in of(task, "photo-64", quick=True)[:2]:
        y = drawn(setting, truth)
        assert setting.naive(y).shape == truth.shape
        assert setting.noise.log_prob(y - setting.operator(truth)).isfinite().all()


def test_the_papers_colour_selection(tmp_path):
    """100 of 3,000; a folder of photographs gives as many crops."""
    from PIL import Image

    numbered = np.zeros((3000, 64, 64, 3), np.uint8)
    numbered[:, 0, 0, 0], numbered[:, 0, 1, 0] = np.divmod(np.arange(3000), 256)
    np.save(tmp_path / "faces.npy", numbered)
    faces = DATASETS["celeba-hq-64"]
    chosen = places(paper_selection("test_file", tmp_path / "faces.npy", 100, faces))
    assert chosen[:4] == [311, 1025, 1587, 2941] and sum(chosen) == 136_211
    more = np.concatenate([np.zeros((10, 64, 64, 3), np.uint8), numbered])
    np.save(tmp_path / "more.npy", more)  # training holds out the last 3,000
    assert places(paper_selection("test_file", tmp_path / "more.npy", 100, faces)) == chosen
    (tmp_path / "photographs").mkdir()
    noise = np.random.default_rng().integers(0, 256, (80, 90, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "photographs" / "a.png")
    crops = paper_selection("test_file", tmp_path / "photographs", 5, DATASETS["photo-64"])
    assert crops.shape == (5, 3, 64, 64)
    assert_names("test_file", lambda: ReproduceConfig(dataset="celeba-hq-64"))
    files = {name: str(tmp_path / "photographs") for name in ("test_file", "tuning_file")}
    config = ReproduceConfig(("digits",), "photo-64", 5, 2, **files)
    assert_names("tuning_file", lambda: Images.of(config))
    short = replace(config, dataset="celeba-hq-64").shortened()
    assert short.test_file == files["test_file"] and not config.shortened().test_file


def test_resizing_keeps_the_mean_and_repeats_channels():
    small = torch.rand(3, 1, 28, 28)
    assert fit_images(small, SHAPE) is small
    large = fit_images(small, (3, 64, 64))
    assert large.shape == (3, 3, 64, 64) and torch.equal(large[:, 0], large[:, 2])
    torch.testing.assert_close(large.mean((1, 2, 3)), small.mean((1, 2, 3)), atol=0.02, rtol=0)
