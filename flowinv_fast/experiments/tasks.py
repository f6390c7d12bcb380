"""The paper's tasks, and the inverse problems that they and the demo are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..flows import load_flow
from ..noise import FlowNoise, Gaussian, PlacedFlowNoise, Radial, Sinusoidal
from ..operators import GaussianSensing, Identity, Scale, SignSensing
from ..reconstruction.strategies import tempered
from .datasets import DATASETS, GREY, Dataset, Shape
from .digits import RealDigits
from .methods import STRATEGY_METHODS
from .task import Inputs, Point, Setting, Task

Values = Mapping[str, float]
# Digits over 64 x 64, one a quarter: channel, top row, left column.
PLACES = ((0, 2, 3), (1, 4, 34), (2, 34, 2), (0, 33, 35))
_PLACED_STD = 0.01  # of the noise between placed digits

# --- inverse problems -----------------------------------------------------------------------------


def digits_over(
    digits: Tensor, shape: Shape = GREY, replace: bool = True, frozen: bool = False
) -> Setting:
    """y = 0.5 x + 0.5 digit; over colour images a digit in each quarter.

    Args:
        digits: real digits (M, 1, 28, 28) in [0, 1].
        shape: (C, H, W) of the images.
        replace: whether one digit may lie over two images of a batch.
        frozen: freeze the flow of the noise model here, once for many solves.
    """
    flow, halves = load_flow("digits-noise-28"), Scale(0.5)
    noise: FlowNoise | PlacedFlowNoise
    settings: dict[str, Any] = {"space": "image", "strategy": "annealed"}
    if shape == GREY:
        noise = FlowNoise(flow, scale=0.5)
        source, seen = RealDigits(digits, replace=replace), 0.5 * digits
        settings |= {"strategy": "annealed", "restarts": 2}
    else:
        noise = PlacedFlowNoise(flow, torch.tensor(PLACES), _PLACED_STD, scale=0.5)
        source = RealDigits(digits, noise, replace)
        seen = source.sample((256, *shape), torch.Generator().manual_seed(0))
        settings |= {"strategy": "adam", "lr": 0.2}
    return Setting(
        halves,
        noise.freeze() if frozen else noise,
        source,
        naive=lambda y: 2 * y,
        std=seen.std(0, keepdim=True).clamp_min(1e-3),
        mean=float(seen.mean()),
        linear=(halves, halves.adjoint),
        map_settings=settings,
    )


def denoising(noise: Gaussian, shape: Shape = GREY) -> Setting:
    """y = x + noise of Gaussian type."""
    same = Identity()
    return Setting(
        same,
        noise,
        noise,
        naive=lambda y: y,
        std=noise.std_like(torch.zeros(1, *shape)),
        mean=float(noise.mean),
        linear=(same, same),
        map_settings={"space": "image", "strategy": "adam"},
    )


def sensing(m: int, level: float, mean: float, shape: Shape = GREY, seed: int = 0) -> Setting:
    """y = A x + noise: m Gaussian measurements, sinusoidal noise; the seed is the matrix's."""
    operator = GaussianSensing(m, shape, seed)
    noise = Sinusoidal.measurements(level, mean)
    return Setting(
        operator,
        noise,
        noise,
        naive=operator.adjoint,
        std=noise.std_like(torch.zeros(1, m)),
        mean=mean,
        linear=(operator, operator.adjoint),
        map_settings={"space": "latent", "strategy": "lbfgs", "lr": 0.1},
    )


def one_bit(m: int, level: float, mean: float, shape: Shape = GREY, seed: int = 0) -> Setting:
    """y = sign(A x) + noise: m signs, sinusoidal noise; the seed is the matrix's."""
    operator = SignSensing(m, shape, seed)
    noise = Sinusoidal.measurements(level, mean)
    settings = {"space": "image", "strategy": tempered(0.1, exact=0.2), "lr": 0.05}
    if shape != GREY:  # signs of a large image leave pixels free that only coarse latents reach
        settings |= {"space": "latent", "lr": 0.1}
    return Setting(
        operator,
        noise,
        noise,
        naive=operator.guess,
        std=noise.std_like(torch.zeros(1, m)),
        mean=mean,
        linear=(operator.linear, operator.adjoint),
        map_settings=settings,
    )


# --- settings: the numbers of a point to an inverse problem ---------------------------------------


def _digits(values: Values, inputs: Inputs) -> Setting:
    return digits_over(inputs.digits, inputs.dataset.shape, frozen=True)


def _gaussian(values: Values, inputs: Inputs) -> Setting:
    return denoising(Gaussian(values["std"]), inputs.dataset.shape)


def _rows(values: Values, inputs: Inputs) -> Setting:
    return denoising(Sinusoidal(values["c"], form="exp"), inputs.dataset.shape)


def _rows_of_other_images(values: Values, inputs: Inputs) -> Setting:
    return replace(_rows(values, inputs), other_images=True)


def _radial(values: Values, inputs: Inputs) -> Setting:
    return denoising(Radial(level=1.0), inputs.dataset.shape)


def _sensing(values: Values, inputs: Inputs) -> Setting:
    m, level, mean = int(values["m"]), values["level"], values["mean"]
    return sensing(m, level, mean, inputs.dataset.shape, inputs.seed)


def _one_bit(values: Values, inputs: Inputs) -> Setting:
    m, level, mean = int(values["m"]), values["level"], values["mean"]
    return one_bit(m, level, mean, inputs.dataset.shape, inputs.seed)


# --- sweeps ---------------------------------------------------------------------------------------

_M, _LEVEL = "measurements m", "noise level"


def _over_m(dataset: Dataset, quick: bool) -> list[Point]:
    chosen = dataset.representative[quick]
    numbers = lambda m: {"m": m, "level": 0.3, "mean": 0.3}
    return [Point(numbers(m), f"m = {m}", {_M: m}, m == chosen) for m in dataset.sensing[quick]]


def _one_m(dataset: Dataset, quick: bool) -> list[Point]:
    return [Point({"m": dataset.representative[0], "level": 0.3, "mean": 0.3})]


def _over_c(dataset: Dataset, quick: bool) -> list[Point]:
    levels, chosen = ((0.1, 0.3), 0.3) if quick else ((0.05, 0.1, 0.2, 0.3, 0.4), 0.2)
    return [Point({"c": c}, f"c = {c:g}", {"c": c}, c == chosen) for c in levels]


def _over_m_and_level(dataset: Dataset, quick: bool) -> list[Point]:
    """Over m at noise level 1, and over the level at the largest m, which lies on both axes."""
    numbers = lambda m, level: {"m": m, "level": level, "mean": 0.5}
    *fewer, most = dataset.one_bit[quick]
    points = [Point(numbers(m, 1.0), f"m = {m}", {_M: m}, False) for m in fewer]
    points.append(Point(numbers(most, 1.0), f"m = {most}", {_M: most, _LEVEL: 1.0}))
    for level in (4.0,) if quick else (0.25, 4.0):
        label = f"m = {most}, level = {level:g}"
        points.append(Point(numbers(most, level), label, {_LEVEL: level}, False))
    return points


# --- the tasks ------------------------------------------------------------------------------------

_MAP = ("noisy", "map", "map-latent")
_OTHERS = (
    "mle-gan",
    "mle-vae",
    "csgm-gan",
    "csgm-vae",
    "asim",
    "asim-proxy",
    "asim-norm",
)
_DENOISING = (*_MAP, *_OTHERS, "bm3d", "wiener")

TASKS = {
    task.name: task
    for task in (
        Task(
            "digits",
            "y = 0.5 x + 0.5 digit: real handwritten digits over the image; the noise model is a "
            "flow trained on digits.",
            _digits,
            (*_MAP, *STRATEGY_METHODS, *_OTHERS, "bm3d", "wiener"),
        ),
        Task(
            "cs-sinusoidal",
            "y = A x + noise, A Gaussian; the noise's standard deviation is a sinusoid over the "
            "measurements and its mean is {mean:g}.",
            _sensing,
            (*_MAP, "map-image", *_OTHERS, "lasso", "wiener"),
            _over_m,
        ),
        Task(
            "denoise-gaussian",
            "y = x + white Gaussian noise of standard deviation {std:g}.",
            _gaussian,
            _DENOISING,
            lambda dataset, quick: [Point({"std": 0.1})],
        ),
        Task(
            "denoise-sinusoidal",
            "y = x + noise whose standard deviation, exp(sin) of height c, is the same along each "
            "row.",
            _rows,
            _DENOISING,
            _over_c,
        ),
        Task("denoise-radial", "y = x + noise, strongest at the centre.", _radial, _DENOISING),
        Task(
            "cs-1bit",
            "y = sign(A x) + noise of mean {mean:g} and sinusoidal standard deviation.",
            _one_bit,
            (*_MAP, *_OTHERS, "lasso"),
            _over_m_and_level,
        ),
        Task(
            "sensitivity",
            "Compressed sensing, m = {m:g}, over a grid of weights, the same factors around the "
            "default of each: beta of MAP, gamma of Asim.",
            _sensing,
            ("map", "asim"),
            _one_m,
            tuned=False,
        ),
        Task(
            "ood",
            "2-D sinusoidal noise (c = {c:g}) on images of the other data set, {other}.",
            _rows_of_other_images,
            ("noisy", "map", "asim", "csgm-gan", "bm3d", "wiener"),
            lambda dataset, quick: [Point({"c": 0.2}, "c = 0.2", {"c": 0.2})],
        ),
    )
}


def shipped(name: str, quick: bool = False, seed: int = 0) -> list[Setting]:
    """The settings of a task on the shipped Fashion-MNIST images.

    >>> [setting.label for setting in shipped("denoise-sinusoidal", quick=True)]
    ['c = 0.1', 'c = 0.3']
    """
    from ..data import sample_images  # here, so that the names of the tasks cost no more

    return TASKS[name].build(Inputs(DATASETS["fashion-28"], seed, sample_images("mnist-28")), quick)
