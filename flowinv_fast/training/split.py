"""Which images are trained on, and which are held out."""

from __future__ import annotations

import os
from pathlib import Path

from torch import Tensor

from .._base.errors import require
from ..data.images import load_images
from ..data.sources import Crops, Stored

HELD_OUT_CROPS = 500
_TEST_PARTS = ("test", "val", "valid", "validation")


def split_folder(
    data: str | os.PathLike[str], held_out: str | os.PathLike[str] | None = None
) -> tuple[Path, Path | None]:
    """Where the training images are, and the held-out ones, if these lie apart.

    Args:
        data: a file or a folder; a folder with the parts train and test (or val, valid,
            validation) is split so.
        held_out: where held-out images are; overrules the folder's part.
    Returns:
        Both places, the second None where no held-out images lie apart.
    """
    data = Path(data)
    parts = [data / name for name in _TEST_PARTS if (data / name).is_dir()]
    if parts and (data / "train").is_dir():
        data, held_out = data / "train", held_out or parts[0]
    return data, Path(held_out) if held_out else None


def training_images(
    data: str | os.PathLike[str],
    held_out: str | os.PathLike[str] | None = None,
    *,
    size: tuple[int, int, int] | None = None,
    crops: bool = False,
    patches: bool = False,
    flips: bool = False,
    fraction: float | None = None,
    seed: int = 0,
) -> tuple[Stored | Crops, Tensor | None]:
    """Training images as a source, and held-out images of the same size.

    Args:
        data: an IDX file, a .npy array or a folder of pictures, see ``split_folder``.
        held_out: the same for held-out images; None: the folder's part, or ``fraction``.
        size: (C, H, W) wanted; None: that of the data (for crops 3 x 64 x 64).
        crops: random crops of the pictures of a folder; held-out crops want pictures of their own.
        patches: the same of the pictures as they are, not resized; where no images lie apart, crops
            of the lowest ``fraction`` of the rows of every picture are held out.
        flips: mirror half of the training images (of crops always).
        fraction: last part of ``data`` that is held out where no images lie apart, in (0, 1); None:
            then none are held out.
        seed: of order, flips and crops, below 2^40.
    Returns:
        The source, and uint8 (M, C, H, W) or None.
    Raises:
        ArgumentError: nothing readable there, images of another size, or nothing to hold out.
    """
    place, apart = split_folder(data, held_out)
    if patches and apart is None and fraction is not None:
        above, below = Crops(place, size or (3, 16, 16), (), seed=seed).parted(fraction)
        return above, below.take(HELD_OUT_CROPS, 1)
    if crops or patches:
        wanted = "a folder of other photographs (or --data with the parts train and test)"
        require(apart is not None, "train", "--held-out", wanted, "none")
        size, sides = size or (3, 64, 64), () if patches else None
        source, other = (Crops(folder or "", size, sides, seed=seed) for folder in (place, apart))
        return source, other.take(HELD_OUT_CROPS, 1)
    images = load_images(place, size)
    if apart is not None:
        channels, height, width = images.shape[1:]
        return Stored(images, flips, seed), load_images(apart, (channels, height, width))
    if fraction is None:
        return Stored(images, flips, seed), None
    require(0 < fraction < 1, "train", "--held-out-fraction", "a number in (0, 1)", fraction)
    count = max(1, round(fraction * len(images)))
    return Stored(images[:-count], flips, seed), images[-count:]
