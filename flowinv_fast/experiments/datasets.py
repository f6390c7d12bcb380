"""What is reconstructed: images, and the priors that are shipped, or trained, for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

Shape = tuple[int, int, int]
GREY: Shape = (1, 28, 28)
COLOUR: Shape = (3, 64, 64)


@dataclass(frozen=True)
class Dataset:
    """Images, their priors, and how the sensing tasks are swept for their size.

    Args:
        name: as given on the command line.
        shape: (C, H, W).
        images: name of the shipped test images, "" where there are none.
        flow: name of the flow that is the prior.
        other: name of the data set whose images are out of distribution.
        selection: the paper's test images: how many the test set has, how many are taken.
        generators: names of the DCGAN and the VAE, () where there are none.
        crops: whether a folder of test images holds photographs, of which crops are taken.
        sensing, one_bit: numbers of measurements: the full sweep, and the short one.
        representative: which of the numbers in ``sensing`` stands for all of them, in either sweep.

    >>> DATASETS["photo-64"].large, DATASETS["fashion-28"].large
    (True, False)
    """

    name: str
    shape: Shape
    images: str
    flow: str
    other: str
    selection: tuple[int, int]
    generators: tuple[str, ...] = ()
    crops: bool = False
    sensing: tuple[tuple[int, ...], tuple[int, ...]] = ((50, 100, 200, 400), (100, 300))
    one_bit: tuple[tuple[int, ...], tuple[int, ...]] = ((200, 400, 784), (200, 784))
    representative: tuple[int, int] = (200, 300)

    @property
    def large(self) -> bool:
        """Too many numbers for a covariance, or for hundreds of Hessian-vector products."""
        return math.prod(self.shape) > 4096


def _grey(name: str, flow: str, kind: str, other: str) -> Dataset:
    generators = (f"{kind}-dcgan-28", f"{kind}-vae-28")
    return Dataset(name, GREY, name, flow, other, (10_000, 1_000), generators)


def _colour(name: str, images: str, flow: str, crops: bool) -> Dataset:
    return Dataset(
        name,
        COLOUR,
        images,
        flow,
        "fashion-28",
        (3_000, 100),
        crops=crops,
        sensing=((500, 1000, 2500, 5000), (500, 2500)),
        one_bit=((1000, 2500, 5000), (1000, 5000)),
        representative=(2500, 2500),
    )


DATASETS = {
    dataset.name: dataset
    for dataset in (
        _grey("fashion-28", "fashion-28", "fashion", "mnist-28"),
        _grey("mnist-28", "digits-noise-28", "mnist", "fashion-28"),
        _colour("photo-64", "photo-64", "photo-64-small", True),
        _colour("celeba-hq-64", "", "celeba-hq-64", False),
    )
}
