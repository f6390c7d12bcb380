"""Test images, tuning images and digits of a run: the paper's selection, or the shipped ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .._base.errors import require
from ..data import Crops, load_images, sample_images
from ..data.images import fit_images
from .config import ReproduceConfig
from .datasets import DATASETS, Dataset


@dataclass(frozen=True)
class Images:
    """The images of a run, in [0, 1].

    Args:
        test: test images (B, C, H, W).
        tuning: images that parameters are chosen on, none of them a test image.
        digits: real digits of the digit noise (M, 1, 28, 28); none for other images.
    """

    test: Tensor
    tuning: Tensor
    digits: Tensor

    @classmethod
    def of(cls, config: ReproduceConfig) -> Images:
        """A data set's own images.

        Raises:
            ArgumentError: files that hold too few images, or none.
        """
        dataset, files = DATASETS[config.dataset], (config.test_file, config.tuning_file)
        digits = sample_images("mnist-28")
        if config.digit_file:
            digits = paper_selection("digit_file", config.digit_file, 1000)
        return cls(*_pair(config, dataset, "test_file", *files), digits)

    @classmethod
    def other(cls, config: ReproduceConfig) -> Images:
        """Images of the other data set, in the shape of the data set.

        Raises:
            ArgumentError: a file that holds too few images, or none.
        """
        dataset, file = DATASETS[config.dataset], config.other_file
        test, tuning = _pair(config, DATASETS[dataset.other], "other_file", file, file)
        fitted = lambda images: fit_images(images, dataset.shape)
        return cls(fitted(test), fitted(tuning), torch.empty(0))


def paper_selection(
    argument: str, path: str | Path, count: int, dataset: Dataset = DATASETS["mnist-28"]
) -> Tensor:
    """The first ``count`` of the paper's test images (docs/method.md, section 9).

    Args:
        argument: name of the path, for errors.
        path: a file or folder that holds the test images.
        count: how many.
        dataset: whose selection.
    Returns:
        (count, C, H, W) in [0, 1].
    Raises:
        ArgumentError: fewer images than the selection is drawn from, or more wanted than it has.
    """
    images = _collection(path, dataset)
    total, most = dataset.selection
    wanted = f"{total:,} test images, of which at most {most:,} are taken"
    good = len(images) >= total and count <= most
    require(good, "reproduce", argument, wanted, f"{len(images)} images, {count} wanted")
    return _floats(images, _selected(dataset)[:count])


def _pair(
    config: ReproduceConfig, dataset: Dataset, argument: str, test: str, tuning: str
) -> tuple[Tensor, Tensor]:
    """Test and tuning images, of files or of the shipped ones; none is in both."""
    if not test:
        images = sample_images(dataset.images)
        return images[: config.images], images[-config.tuning_images :]
    found = paper_selection(argument, test, config.images, dataset)
    pool = _collection(tuning, dataset)
    left = np.arange(len(pool))
    if Path(tuning).samefile(test):
        wanted = "other photographs than test_file"
        require(not dataset.crops, "reproduce", "tuning_file", wanted, tuning)
        left = np.setdiff1d(left, _selected(dataset))
    wanted = f"{config.tuning_images} images outside the test set"
    enough = len(left) >= config.tuning_images
    require(enough, "reproduce", "tuning_file", wanted, len(left))
    chosen = np.random.RandomState(config.seed + 1).choice(left, config.tuning_images, False)
    return found, _floats(pool, chosen)


def _collection(path: str | Path, dataset: Dataset) -> Tensor:
    """The images of a file or folder, uint8 (M, C, H, W).

    Of photographs as many crops as the paper's test set has images; of faces the last ones, which
    training holds out.
    """
    if dataset.crops and Path(path).is_dir():
        return Crops(path, dataset.shape).take(dataset.selection[0], 1)
    images = load_images(path, dataset.shape)
    return images if dataset.images else images[-dataset.selection[0] :]


def _selected(dataset: Dataset) -> np.ndarray:
    """The paper's test images, by number."""
    return np.random.RandomState(0).choice(*dataset.selection, False)


def _floats(images: Tensor, chosen: np.ndarray) -> Tensor:
    return images[torch.from_numpy(chosen)].float() / 255
