"""What is reconstructed: images, and the priors that are shipped, or trained, for them."""

from __future__ import annotations

import math
from dataclasses import dataclass

SHAPE = (1, 28, 28)


@dataclass(frozen=True)
class Signal:
    """Images, their priors, and how the sensing tasks are swept for their size.

    Args:
        shape: (C, H, W).
        images: name of the shipped test images, "" where there are none.
        flow: name of the flow that is the prior.
        generators: names of the DCGAN and the VAE, () where there are none.
        other: signal whose images are out of distribution.
        selection: of the paper: how many images a test set has, how many are taken.
        crops: a folder of test images holds photographs, of which crops are taken.
        sensing, one_bit: numbers of measurements, all of them and the short sweep.
        middle: the number of ``sensing`` that the other tasks take, in either sweep.
    """

    shape: tuple[int, int, int]
    images: str
    flow: str
    generators: tuple[str, ...]
    other: str
    selection: tuple[int, int]
    crops: bool = False
    sensing: tuple[tuple[int, ...], tuple[int, ...]] = ((50, 100, 200, 400), (100, 300))
    one_bit: tuple[tuple[int, ...], tuple[int, ...]] = ((200, 400, 784), (200, 784))
    middle: tuple[int, int] = (200, 300)

    @property
    def large(self) -> bool:
        """Too many numbers for a covariance, or for hundreds of Hessian-vector products."""
        return math.prod(self.shape) > 4096


_COLOUR = {
    "shape": (3, 64, 64), "generators": (), "other": "fashion-28", "selection": (3000, 100),
    "sensing": ((500, 1000, 2500, 5000), (500, 2500)), "middle": (2500, 2500),
    "one_bit": ((1000, 2500, 5000), (1000, 5000)),
}  # fmt: skip
SIGNALS = {
    "fashion-28": Signal(SHAPE, "fashion-28", "fashion-28", ("fashion-dcgan-28", "fashion-vae-28"),
                         "mnist-28", (10000, 1000)),
    "mnist-28": Signal(SHAPE, "mnist-28", "digits-noise-28", ("mnist-dcgan-28", "mnist-vae-28"),
                       "fashion-28", (10000, 1000)),
    "photo-64": Signal(images="photo-64", flow="photo-64-small", crops=True, **_COLOUR),
    "celeba-hq-64": Signal(images="", flow="celeba-hq-64", **_COLOUR),
}  # fmt: skip
