"""What a task of the experiments is: an inverse problem, at one setting or at several."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .._base.errors import require
from ..protocols import Flow, ForwardOperator, NoiseModel, Sampled
from ..reconstruction.objectives import MAP
from ..reconstruction.reconstruct import measure
from .cells import setting_title
from .datasets import DATASETS, Dataset
from .methods import METHODS

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Setting:
    """One inverse problem: what is measured, under which noise, and how MAP is run on it.

    The last five are filled in by the task that the setting is of.

    Args:
        operator: the forward operator f.
        noise: the noise model that methods are given.
        noise_source: what noise is drawn from; it differs from the model for real digits.
        naive: measurements (B, ...) to images (B, C, H, W), as one would show them unsolved.
        std: standard deviation of the noise, broadcastable to y; for baselines.
        mean: of the noise, for baselines.
        linear: f and its transpose; for a sign of a linear map, that map's.
        map_settings: options of ``reconstruct`` for MAP; "space" is that of the objective.
        other_images: whether the images are those of the other data set.
        task: name of the task.
        label: the swept numbers, as text for tables; "" where nothing is swept.
        at: position on every axis that the task is swept over, by the axis's name.
        representative: whether the variants of methods, too, are run at this setting.
        dataset: what the images are.
        methods: names of the task's methods.
    """

    operator: ForwardOperator
    noise: NoiseModel
    noise_source: Sampled
    naive: Callable[[Tensor], Tensor]
    std: Tensor
    mean: float
    linear: tuple[Linear, Linear]
    map_settings: Mapping[str, Any] = field(default_factory=dict)
    other_images: bool = False
    task: str = ""
    label: str = ""
    at: Mapping[str, float] = field(default_factory=dict)
    representative: bool = True
    dataset: Dataset = DATASETS["fashion-28"]
    methods: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Task and label."""
        return setting_title(self.task, self.label)

    def seeds(self, seed: int, part: str, first: int, count: int) -> list[int]:
        """Of the noise on so many images of a part ("test", "tuning"), from the first on.

        The same for every method, prior and size of the chunks.
        """
        text = f"{seed} {self.task} {self.label} {part}"
        digests = [hashlib.sha256(f"{text} {first + i}".encode()) for i in range(count)]
        return [int(digest.hexdigest()[:8], 16) for digest in digests]

    def measurements(self, truth: Tensor, seeds: list[int]) -> Tensor:
        """y (B, ...) of images (B, C, H, W), each by its own seed: the same for every method."""
        one = lambda x, seed: measure(
            x[None], self.operator, self.noise_source, torch.Generator().manual_seed(seed)
        )
        return torch.cat([one(x, seed) for x, seed in zip(truth, seeds)])

    @torch.no_grad()
    def loss_of_truth(self, truth: Tensor, y: Tensor, prior: Flow, beta: float = 1.0) -> Tensor:
        """MAP loss of the true images, (B,): what an ideal optimiser does not exceed."""
        objective = MAP(beta, space="image")
        return objective.evaluate(y, self.operator, prior, self.noise, truth).loss


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Args:
        values: the numbers of the setting, by name; ``Task.about`` may tell them.
        label, at, representative: as in ``Setting``.
    """

    values: Mapping[str, float] = field(default_factory=dict)
    label: str = ""
    at: Mapping[str, float] = field(default_factory=dict)
    representative: bool = True


@dataclass(frozen=True)
class Inputs:
    """What the settings of a task are made from.

    Args:
        dataset: the images and their priors.
        seed: of sensing matrices.
        digits: real handwritten digits (M, 1, 28, 28) in [0, 1], for the digit noise.
    """

    dataset: Dataset
    seed: int
    digits: Tensor


@dataclass(frozen=True)
class Task:
    """An experiment: an inverse problem, what it is swept over, and who takes part.

    Args:
        name: as given on the command line.
        about: one sentence or more for the report. It may hold names of the numbers of the
            representative point in braces, as "{m:g}", and "{other}", the other data set's name.
        settings: numbers of a point, and inputs, to the setting there.
        methods: names of the methods, in the order of the tables. Those that are variants run at
            the representative setting only, and none runs where its ``fits`` says no.
        sweep: data set, and whether the sweep is the short one, to the points; exactly one is
            representative.
        tuned: whether methods run at the value that is best on tuning images; False runs them at
            each of their ``weights`` instead.
    Raises:
        ArgumentError: no description, one that tells a number that is not there, an unknown
            method, or a sweep without exactly one representative point.
    """

    name: str
    about: str
    settings: Callable[[Mapping[str, float], Inputs], Setting]
    methods: tuple[str, ...]
    sweep: Callable[[Dataset, bool], list[Point]] = lambda dataset, quick: [Point()]
    tuned: bool = True

    def __post_init__(self) -> None:
        named = f"Task {self.name!r}"
        described = self.about.strip().endswith(".")
        require(described, named, "about", "one sentence or more, for the report", self.about)
        unknown = [method for method in self.methods if method not in METHODS]
        require(not unknown, named, "methods", f"names of {list(METHODS)}", unknown)
        for dataset in DATASETS.values():
            for quick in (False, True):
                points = self.sweep(dataset, quick)
                count = sum(point.representative for point in points)
                wanted = "exactly one representative point"
                require(count == 1, named, "sweep", wanted, f"{count} for {dataset.name}")
                self._check_sentence(dataset, quick)

    def _check_sentence(self, dataset: Dataset, quick: bool) -> None:
        try:
            problem = ""
            self.sentence(dataset, quick)
        except (KeyError, IndexError, ValueError) as error:
            problem = str(error)
        wanted = "numbers of the representative point"
        require(not problem, f"Task {self.name!r}", "about", wanted, problem)

    def sentence(self, dataset: Dataset, quick: bool) -> str:
        """``about`` with the numbers of the representative point."""
        points = self.sweep(dataset, quick)
        values = next(point.values for point in points if point.representative)
        return self.about.format(other=dataset.other, **values)

    def build(self, inputs: Inputs, quick: bool = False) -> list[Setting]:
        """The settings, in the order of the sweep."""
        return [
            replace(
                self.settings(point.values, inputs),
                task=self.name,
                label=point.label,
                at=point.at,
                representative=point.representative,
                dataset=inputs.dataset,
                methods=self.methods,
            )
            for point in self.sweep(inputs.dataset, quick)
        ]
