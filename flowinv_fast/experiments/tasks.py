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

from .. import noise, objectives, operators
from .._reconstruct import measure
from ..data import load_images, sample_images
from ..errors import require
from ..flows import load_flow
from .config import ReproduceConfig

SHAPE = (1, 28, 28)
# Names of the shipped images, flow, DCGAN and VAE of a signal.
PRIORS = {
    "fashion-28": ("fashion-28", "fashion-28", "fashion-dcgan-28", "fashion-vae-28"),
    "mnist-28": ("mnist-28", "digits-noise-28", "mnist-dcgan-28", "mnist-vae-28"),
}
OTHER = {"fashion-28": "mnist-28", "mnist-28": "fashion-28"}


class RealDigits:
    """Real handwritten digits over images, halved: what the digit flow is a model of."""

    def __init__(self, digits: Tensor):
        self.digits = digits

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Digits of shape (B, 1, 28, 28), drawn with replacement."""
        chosen = torch.randint(len(self.digits), (shape[0],), generator=generator)
        return 0.5 * self.digits[chosen]


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
    quick, seed = config.quick, config.seed
    if task == "digits":
        return [_digits(digits)]
    if task == "sensitivity":
        return [replace(_sensing(200, seed), task=task, setting="", at={})]
    if task == "cs-sinusoidal":
        sizes = (100, 300) if quick else (50, 100, 200, 400)
        return [replace(_sensing(m, seed), middle=m in (200, 300)) for m in sizes]
    if task == "denoise-sinusoidal":
        levels = (0.1, 0.3) if quick else (0.05, 0.1, 0.2, 0.3, 0.4)
        return [replace(_rows(task, c), middle=c == (0.3 if quick else 0.2)) for c in levels]
    if task == "denoise-radial":
        return [_denoising(task, "", {}, noise.Radial(level=1.0))]
    if task == "cs-1bit":
        sweep = [(m, 1.0) for m in ((200, 784) if quick else (200, 400, 784))]
        sweep += [(784, c) for c in ((4.0,) if quick else (0.25, 4.0))]
        return [replace(_one_bit(m, c, seed), middle=(m, c) == (784, 1.0)) for m, c in sweep]
    if task == "ood":
        return [replace(_rows(task, 0.2), images=OTHER[config.signal])]
    raise AssertionError(task)


def _digits(digits: Tensor) -> Problem:
    law = noise.Flow(load_flow("digits-noise-28").freeze(), scale=0.5)
    halves = operators.Scale(0.5)
    drawn = 0.5 * digits
    return Problem(
        "digits", "", {}, halves, law, RealDigits(digits), lambda y: 2 * y,
        drawn.std(0, keepdim=True).clamp_min(1e-3), float(drawn.mean()), (halves, halves.adjoint),
        {"method": "map_image", "restarts": 2},
    )  # fmt: skip


def _denoising(task: str, setting: str, at: dict[str, float], law: Any) -> Problem:
    same = operators.Identity()
    std = law.std_like(torch.zeros(1, *SHAPE))
    return Problem(
        task, setting, at, same, law, law, lambda y: y, std, law.mean, (same, same),
        {"method": "map_image", "strategy": "adam"},
    )  # fmt: skip


def _rows(task: str, c: float) -> Problem:
    return _denoising(task, f"c = {c:g}", {"c": c}, noise.Sinusoidal(level=c, form="exp"))


def _sensing(m: int, seed: int) -> Problem:
    operator = operators.GaussianSensing(m, SHAPE, seed)
    law = noise.Sinusoidal.measurements(level=0.3, mean=0.3)
    return Problem(
        "cs-sinusoidal", f"m = {m}", {"measurements m": m}, operator, law, law, operator.adjoint,
        law.std_like(torch.zeros(1, m)), law.mean, (operator, operator.adjoint),
        {"method": "map_latent", "strategy": "lbfgs", "lr": 0.1},
    )  # fmt: skip


def _one_bit(m: int, level: float, seed: int) -> Problem:
    operator = operators.SignSensing(m, SHAPE, seed)
    law = noise.Sinusoidal.measurements(level=level, mean=0.5)
    at = {"measurements m": m} if level == 1 else {}
    if m == 784:
        at["noise level"] = level
    return Problem(
        "cs-1bit", f"m = {m}" + ("" if level == 1 else f", level = {level:g}"), at, operator, law,
        law, operator.guess, law.std_like(torch.zeros(1, m)), law.mean,
        (operator.linear, operator.adjoint), {"method": "map_image", "tempering": 0.1, "lr": 0.05},
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
        return cls(*_pair(config, PRIORS[config.signal][0], "test_file", *files), digits)

    @classmethod
    def other(cls, config: ReproduceConfig) -> Images:
        """Images out of the signal's distribution."""
        files = config.other_file, config.other_file
        return cls(*_pair(config, OTHER[config.signal], "other_file", *files), torch.empty(0))


def _pair(
    config: ReproduceConfig, shipped: str, argument: str, test: str, tuning: str
) -> tuple[Tensor, Tensor]:
    """Test and tuning images, of files or of the shipped ones; none is in both."""
    if not test:
        images = sample_images(shipped)
        return images[: config.images], images[-config.tuning_images :]
    found = paper_selection(argument, test, config.images)
    pool = load_images(tuning, SHAPE)
    left = np.arange(len(pool))
    if Path(tuning).samefile(test):
        left = np.setdiff1d(left, _SELECTION)
    wanted = f"{config.tuning_images} images outside the test set"
    require(len(left) >= config.tuning_images, "reproduce", "tuning_file", wanted, len(left))
    chosen = np.random.RandomState(config.seed + 1).choice(left, config.tuning_images, False)
    return found, _floats(pool, chosen)


_SELECTION = np.random.RandomState(0).choice(10000, 1000, False)  # the paper's test images


def _floats(images: Tensor, chosen: np.ndarray) -> Tensor:
    return images[torch.from_numpy(chosen)].float() / 255


def paper_selection(argument: str, path: str | Path, count: int) -> Tensor:
    """The first ``count`` of the paper's 1,000 test images, (count, 1, 28, 28) in [0, 1]."""
    images = load_images(path, SHAPE)
    require(len(images) >= 10000 and count <= 1000, "reproduce", argument,
            "10,000 test images, of which at most 1,000 are taken",
            f"{len(images)} images, {count} wanted")  # fmt: skip
    return _floats(images, _SELECTION[:count])


def loss_of_truth(truth: Tensor, y: Tensor, problem: Any, prior: Any, beta: float = 1.0) -> Tensor:
    """MAP loss of the true images, (B,): what an ideal optimiser must not exceed."""
    evaluate = objectives.map_image(y, problem.operator, prior, problem.noise, beta)
    with torch.no_grad():
        return evaluate(truth).loss


def rms(std: Tensor) -> float:
    """One number for a pattern of standard deviations."""
    return math.sqrt(float(std.double().square().mean()))
