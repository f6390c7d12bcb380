"""The paper's tasks as problems: which operator, which noise, at which settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import noise, operators, ops
from .._base.errors import require
from ..data import Crops, load_images, sample_images
from ..data.images import fit_images
from ..flows import load_flow
from ..reconstruction.objectives import MAP
from ..reconstruction.reconstruct import measure
from ..reconstruction.strategies import tempered
from .config import ReproduceConfig
from .signals import SHAPE, SIGNALS, Signal

# Digits over 64 x 64, one a quarter: channel, top, left.
_PLACES = ((0, 2, 3), (1, 4, 34), (2, 34, 2), (0, 33, 35))


class RealDigits:
    """Real handwritten digits over images, halved: what the digit flow is a model of."""

    def __init__(self, digits: Tensor):
        self.digits = digits

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Digits of shape (B, 1, 28, 28), drawn with replacement."""
        chosen = torch.randint(len(self.digits), (shape[0],), generator=generator)
        return 0.5 * self.digits[chosen]


class PlacedDigits:
    """Real handwritten digits, halved, at the places of a law; its Gaussian on all other pixels."""

    def __init__(self, digits: Tensor, law: noise.PlacedFlowNoise):
        self.digits, self.law = digits, law

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Noise of shape (B, C, H, W), digits drawn with replacement."""
        places = self.law.places.expand(shape[0], -1, 3)
        chosen = torch.randint(len(self.digits), places.shape[:2], generator=generator)
        patches = 0.5 * self.digits[chosen][:, :, 0]
        rest = self.law.std * torch.randn(shape, generator=generator)
        covered = ops.scatter_patches(torch.ones_like(patches), places, tuple(shape[1:]))
        digits = ops.scatter_patches(patches, places, tuple(shape[1:]))
        return torch.where(covered > 0, digits, rest)


@dataclass(frozen=True)
class Problem:
    """One task at one setting.

    Args:
        task: of ``config.TASKS``. setting: the swept numbers, as text for tables ("" if none).
        at: position on every axis that the task is swept over.
        operator, noise: f, and the law the methods are told.
        drawn: the law noise is drawn from, where it is not the model (real digits).
        preview: measurement to an image: the "noisy input".
        std: noise standard deviations, broadcastable to y, for Gaussian-type noise; mean: of it.
        linear: (A, A^T) where f is linear or a sign of a linear map.
        ours: options of ``reconstruct`` for MAP.
        images: whose test images; "" is the signal's own.
        middle: whether this setting is the one where variants of methods are shown too.
        signal: what the images are.
    """

    task: str
    setting: str
    at: dict[str, float]
    operator: Any
    noise: Any
    drawn: Any
    preview: Callable[[Tensor], Tensor]
    std: Tensor
    mean: float
    linear: tuple[Callable, Callable]
    ours: dict = field(default_factory=dict)
    images: str = ""
    middle: bool = True
    signal: Signal = SIGNALS["fashion-28"]

    @property
    def title(self) -> str:
        return f"{self.task}, {self.setting}" if self.setting else self.task

    def measurements(self, truth: Tensor, seeds: list[int]) -> Tensor:
        """y for these images, each with a seed of its own: the same for every method."""
        return torch.cat([
            measure(x[None], self.operator, self.drawn, torch.Generator().manual_seed(seed))
            for x, seed in zip(truth, seeds)
        ])  # fmt: skip


def problems(task: str, config: ReproduceConfig, digits: Tensor) -> list[Problem]:
    """The problems of a task, in the order of its sweep."""
    signal = SIGNALS[config.signal]
    return [replace(p, signal=signal) for p in _problems(task, config, signal, digits)]


def _problems(task: str, config: ReproduceConfig, signal: Signal, digits: Tensor) -> list[Problem]:
    quick, seed, shape = config.quick, config.seed, signal.shape
    if task == "digits":
        return [_digits(digits, shape)]
    if task == "sensitivity":
        return [replace(_sensing(signal.middle[0], shape, seed), task=task, setting="", at={})]
    if task == "cs-sinusoidal":
        sizes = signal.sensing[quick]
        return [replace(_sensing(m, shape, seed), middle=m == signal.middle[quick]) for m in sizes]
    if task == "denoise-gaussian":
        return [_denoising(task, "", {}, noise.Gaussian(0.1), shape)]
    if task == "denoise-sinusoidal":
        levels = (0.1, 0.3) if quick else (0.05, 0.1, 0.2, 0.3, 0.4)
        middle = 0.3 if quick else 0.2
        return [replace(_rows(task, c, shape), middle=c == middle) for c in levels]
    if task == "denoise-radial":
        return [_denoising(task, "", {}, noise.Radial(level=1.0), shape)]
    if task == "cs-1bit":
        sizes = signal.one_bit[quick]
        most = sizes[-1]
        sweep = [(m, 1.0) for m in sizes]
        sweep += [(most, c) for c in ((4.0,) if quick else (0.25, 4.0))]
        return [
            replace(_one_bit(m, c, most, shape, seed), middle=(m, c) == (most, 1.0))
            for m, c in sweep
        ]
    if task == "ood":
        return [replace(_rows(task, 0.2, shape), images=signal.other)]
    raise AssertionError(task)


def _digits(digits: Tensor, shape: tuple[int, int, int]) -> Problem:
    flow = load_flow("digits-noise-28").freeze()
    halves = operators.Scale(0.5)
    if shape == SHAPE:
        law, drawn = noise.FlowNoise(flow, scale=0.5), RealDigits(digits)
        seen, ours = 0.5 * digits, {"restarts": 2}
    else:
        law = noise.PlacedFlowNoise(flow, torch.tensor(_PLACES), 0.01, scale=0.5)
        drawn, ours = PlacedDigits(digits, law), {"strategy": "adam", "lr": 0.2}
        seen = drawn.sample((256, *shape), torch.Generator().manual_seed(0))
    return Problem(
        "digits", "", {}, halves, law, drawn, lambda y: 2 * y,
        seen.std(0, keepdim=True).clamp_min(1e-3), float(seen.mean()), (halves, halves.adjoint),
        {"objective": MAP(space="image"), **ours},
    )  # fmt: skip


def _denoising(task: str, setting: str, at: dict[str, float], law: Any, shape: tuple) -> Problem:
    same = operators.Identity()
    std = law.std_like(torch.zeros(1, *shape))
    return Problem(
        task, setting, at, same, law, law, lambda y: y, std, law.mean, (same, same),
        {"objective": MAP(space="image"), "strategy": "adam"},
    )  # fmt: skip


def _rows(task: str, c: float, shape: tuple[int, int, int]) -> Problem:
    law = noise.Sinusoidal(level=c, form="exp")
    return _denoising(task, f"c = {c:g}", {"c": c}, law, shape)


def _sensing(m: int, shape: tuple[int, int, int], seed: int) -> Problem:
    operator = operators.GaussianSensing(m, shape, seed)
    law = noise.Sinusoidal.measurements(level=0.3, mean=0.3)
    return Problem(
        "cs-sinusoidal", f"m = {m}", {"measurements m": m}, operator, law, law, operator.adjoint,
        law.std_like(torch.zeros(1, m)), law.mean, (operator, operator.adjoint),
        {"objective": MAP(), "strategy": "lbfgs", "lr": 0.1},
    )  # fmt: skip


def _one_bit(m: int, level: float, most: int, shape: tuple[int, int, int], seed: int) -> Problem:
    operator = operators.SignSensing(m, shape, seed)
    law = noise.Sinusoidal.measurements(level=level, mean=0.5)
    at = {"measurements m": m} if level == 1 else {}
    if m == most:
        at["noise level"] = level
    # Signs of a large image leave pixels free that only the coarse latents reach.
    ours = {"objective": MAP(space="image"), "strategy": tempered(0.1), "lr": 0.05}
    if shape != SHAPE:
        ours = {"objective": MAP(), "strategy": tempered(0.1), "lr": 0.1}
    return Problem(
        "cs-1bit", f"m = {m}" + ("" if level == 1 else f", level = {level:g}"), at, operator, law,
        law, operator.guess, law.std_like(torch.zeros(1, m)), law.mean,
        (operator.linear, operator.adjoint), ours,
    )  # fmt: skip


# --- images ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Images:
    """Test images, tuning images, and the digits of the digit noise."""

    test: Tensor
    tuning: Tensor
    digits: Tensor

    @classmethod
    def of(cls, config: ReproduceConfig) -> Images:
        """A signal's own images."""
        files = config.test_file, config.tuning_file
        digits = sample_images("mnist-28")
        if config.digit_file:
            digits = paper_selection("digit_file", config.digit_file, 1000)
        return cls(*_pair(config, SIGNALS[config.signal], "test_file", *files), digits)

    @classmethod
    def other(cls, config: ReproduceConfig) -> Images:
        """Images out of the signal's distribution, in its shape."""
        signal = SIGNALS[config.signal]
        files = config.other_file, config.other_file
        pair = _pair(config, SIGNALS[signal.other], "other_file", *files)
        return cls(*(fit_images(images, signal.shape) for images in pair), torch.empty(0))


def _pair(
    config: ReproduceConfig, signal: Signal, argument: str, test: str, tuning: str
) -> tuple[Tensor, Tensor]:
    """Test and tuning images, of files or of the shipped ones; none is in both."""
    if not test:
        images = sample_images(signal.images)
        return images[: config.images], images[-config.tuning_images :]
    found = paper_selection(argument, test, config.images, signal)
    pool = _collection(tuning, signal)
    left = np.arange(len(pool))
    if Path(tuning).samefile(test):
        require(not signal.crops, "reproduce", "tuning_file", "other photographs than test_file",
                tuning)  # fmt: skip
        left = np.setdiff1d(left, _selected(signal))
    wanted = f"{config.tuning_images} images outside the test set"
    require(len(left) >= config.tuning_images, "reproduce", "tuning_file", wanted, len(left))
    chosen = np.random.RandomState(config.seed + 1).choice(left, config.tuning_images, False)
    return found, _floats(pool, chosen)


def _collection(path: str | Path, signal: Signal) -> Tensor:
    """The images of a file or folder; of photographs as many crops as the paper's test set has, of
    faces the last ones, which training holds out."""
    if signal.crops and Path(path).is_dir():
        return Crops(path, signal.shape).take(signal.selection[0], 1)
    images = load_images(path, signal.shape)
    return images if signal.images else images[-signal.selection[0] :]


def _selected(signal: Signal) -> np.ndarray:
    """The paper's test images, by number."""
    return np.random.RandomState(0).choice(*signal.selection, False)


def _floats(images: Tensor, chosen: np.ndarray) -> Tensor:
    return images[torch.from_numpy(chosen)].float() / 255


def paper_selection(
    argument: str, path: str | Path, count: int, signal: Signal = SIGNALS["mnist-28"]
) -> Tensor:
    """The first ``count`` of the paper's test images, (count, C, H, W) in [0, 1]."""
    images = _collection(path, signal)
    total, most = signal.selection
    require(len(images) >= total and count <= most, "reproduce", argument,
            f"{total:,} test images, of which at most {most:,} are taken",
            f"{len(images)} images, {count} wanted")  # fmt: skip
    return _floats(images, _selected(signal)[:count])


def loss_of_truth(truth: Tensor, y: Tensor, problem: Any, prior: Any, beta: float = 1.0) -> Tensor:
    """MAP loss of the true images, (B,): what an ideal optimiser must not exceed."""
    goal = MAP(beta, "image")
    with torch.no_grad():
        return goal.evaluate(y, problem.operator, prior, problem.noise, truth).loss


def rms(std: Tensor) -> float:
    """One number for a pattern of standard deviations."""
    return math.sqrt(float(std.double().square().mean()))
