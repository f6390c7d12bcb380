"""Where training images come from: stored ones in a shuffled order, or fresh crops."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import ops
from .._base.errors import DataError, is_whole, require
from .._base.identity import digest
from .._base.tensors import Stream
from .images import require_images
from .pictures import open_pictures, require_room


class Stored:
    """Images in memory, each once an epoch, in an order that seed and epoch fix.

    Args:
        images: uint8 (N, C, H, W), N at least 1; or float32, real numbers of any range.
        flips: mirror every image left to right with probability 1/2.
        seed: of order and flips, below 2^40.
    Raises:
        ArgumentError: anything else, or numbers that are not finite.

    >>> stored = Stored(torch.zeros(10, 1, 28, 28, dtype=torch.uint8))
    >>> len(stored), stored.batch(step=0, size=4).shape
    (10, torch.Size([4, 1, 28, 28]))
    """

    def __init__(self, images: Tensor, flips: bool = False, seed: int = 0):
        good = isinstance(images, Tensor) and images.dim() == 4
        got = getattr(images, "shape", type(images).__name__)
        require(good, "Stored", "images", "uint8 of shape (N, C, H, W)", got)
        kind = torch.float32 if images.dtype == torch.float32 else torch.uint8
        require_images("Stored", "images", images, images.shape[1:], dtype=kind)
        self.images, self.flips, self.seed = images, flips, seed
        self.shape = tuple(images.shape[1:])
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Stored:
        """The same images on a device."""
        return Stored(self.images.to(device), self.flips, self.seed)

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Tensor:
        """Images of a step, uint8 (B, C, H, W); ``part`` of its ``size``."""
        epoch, position = divmod(step, max(1, len(self) // size))
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(len(self), generator=generator)
            self._order = epoch, order.to(self.images.device)
        images = self.images[self._order[1][position * size :][:size][part]]
        if not self.flips:
            return images
        seed = Stream.FLIPS.of(self.seed)
        draws = _uniform(size, 1, seed, step, images.device)[part, 0]
        return _flipped(images, draws[: len(images)])

    def describe(self) -> dict:
        """What must agree for a run to be continued."""
        return {"images": len(self), "flips": self.flips, "sha256": digest(self.images)}


class Crops:
    """Square crops of photographs, drawn anew at every step.

    A photograph is resized so that its shorter side has each of ``sides`` pixels (never enlarged);
    a crop is a window of one of these pictures, which one, its place and its left-right flip drawn
    uniformly by counter-based random numbers: (seed, step) fix a batch. All sides of all
    photographs lie in memory, on the device where crops are wanted.

    Args:
        folder: pictures, searched recursively in sorted order; or one picture.
        size: (C, H, W) of a crop, C 1 or 3.
        sides: shorter sides in pixels, none below the crop's; by default 1, 1.5, 2, 3 and 4 times
            its longer side. Empty: the photographs as they are.
        epoch: crops that count as an epoch.
        flips: mirror half of the crops.
        seed: of everything drawn, below 2^40.
    Raises:
        ArgumentError: no pictures there, or bad sizes.
        DataError: a picture that is refused (see ``pictures.read_picture``) or smaller than a crop,
            or more pixels than half of the free memory holds.

    >>> import tempfile
    >>> from flowinv_fast.data import save_png
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_png(torch.ones(3, 9, 12), f"{folder}/photograph.png")
    ...     Crops(folder, size=(3, 4, 4)).batch(step=0, size=5).shape
    torch.Size([5, 3, 4, 4])
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        size: tuple[int, int, int] = (3, 64, 64),
        sides: tuple[int, ...] | None = None,
        epoch: int = 10_000,
        flips: bool = True,
        seed: int = 0,
    ):
        self.shape = tuple(size)
        self.epoch, self.flips, self.seed = epoch, flips, seed
        good = len(self.shape) == 3 and self.shape[0] in (1, 3) and min(self.shape) >= 1
        require(good, "Crops", "size", "(C, H, W), C 1 or 3", size)
        least = max(self.shape[1:])
        if sides is None:
            sides = tuple(math.ceil(k * least / 2) for k in (2, 3, 4, 6, 8))
        self.sides = tuple(sides)
        good = all(is_whole(s, least) for s in self.sides)
        require(good, "Crops", "sides", f"integers of at least {least}", sides)
        require(is_whole(epoch, 1), "Crops", "epoch", "an integer of at least 1", epoch)
        pixels, windows, start = [], [], 0
        for file, picture in open_pictures("Crops", "folder", folder, self.shape[0]):
            for level in self._levels(file, picture):
                height, width = level.shape[:2]
                windows.append((start, height, width))
                pixels.append(level.reshape(-1, self.shape[0]))
                start += height * width
            require_room("Crops", "folder", folder, start * self.shape[0])  # for the copy below
        self.levels = len(windows)
        self._pixels = torch.from_numpy(np.concatenate(pixels))
        self._windows = torch.tensor(windows)

    def _levels(self, file: Path, picture: Image.Image) -> list[np.ndarray]:
        short, least = min(picture.size), min(self.sides, default=max(self.shape[1:]))
        sides = [s for s in self.sides or (short,) if least <= s <= short]
        if not sides:
            size = f"{picture.width} x {picture.height}"
            wrong = f"it has {size} pixels, and crops want at least {least} a side"
            raise DataError("Crops", "folder", file, wrong)
        levels = []
        for side in sides:
            width, height = (max(side, round(n * side / short)) for n in picture.size)
            resized = np.asarray(picture.resize((width, height), Image.Resampling.LANCZOS))
            levels.append(resized.reshape(height, width, -1))
        return levels

    def __len__(self) -> int:
        return self.epoch

    def to(self, device: torch.device | str) -> Crops:
        """The same photographs on a device."""
        moved = Crops.__new__(Crops)
        moved.__dict__ = dict(self.__dict__)
        moved._pixels, moved._windows = self._pixels.to(device), self._windows.to(device)
        return moved

    def parted(self, share: float) -> tuple[Crops, Crops]:
        """Crops of all rows but the lowest, and of the lowest alone: they have no pixel in common.

        Args:
            share: of a picture's rows, in (0, 1), that are the lowest; at least those of a crop.
        Raises:
            ArgumentError: another share, or one that leaves no crop above.
        """
        start, rows, columns = self._windows.T
        lowest = (share * rows).round().long().clamp_min(self.shape[1])
        rows = rows - lowest
        good = 0 < share < 1 and bool((rows >= self.shape[1]).all())
        wanted = f"a share in (0, 1) that leaves {self.shape[1]} rows of every picture"
        require(good, "Crops.parted", "share", wanted, share)
        above, below = self.to(self._pixels.device), self.to(self._pixels.device)
        above._windows = torch.stack([start, rows, columns], 1)
        below._windows = torch.stack([start + rows * columns, lowest, columns], 1)
        return above, below

    def batch(self, step: int, size: int, part: slice = slice(None)) -> Tensor:
        """Crops of a step, uint8 (B, C, H, W); ``part`` of its ``size``."""
        _, height, width = self.shape
        device = self._pixels.device
        seed = Stream.CROPS.of(self.seed)
        which, top, left, flip = _uniform(size, 4, seed, step, device)[part].T
        start, rows, columns = self._windows[(which * len(self._windows)).long()].T
        top = (top * (rows - height + 1)).long()
        left = (left * (columns - width + 1)).long()
        down = torch.arange(height, device=device)[:, None] * columns[:, None, None]
        across = torch.arange(width, device=device)
        places = (start + top * columns + left)[:, None, None] + down + across
        images = self._pixels[places].permute(0, 3, 1, 2).contiguous()
        return _flipped(images, flip) if self.flips else images

    def take(self, count: int, seed: int) -> Tensor:
        """A fixed collection of crops, uint8 (count, C, H, W), by a seed of its own."""
        other = self.to(self._pixels.device)
        other.seed = seed
        return other.batch(0, count)

    def describe(self) -> dict:
        """What must agree for a run to be continued."""
        return {
            "crops_of": self.levels,
            "sides": self.sides,
            "flips": self.flips,
            "epoch": self.epoch,
            "sha256": digest([self._pixels, self._windows]),
        }


def _uniform(rows: int, columns: int, seed: int, step: int, device: torch.device) -> Tensor:
    """float64 (rows, columns) in [0, 1), a block of the Philox stream to each step."""
    offset = step * math.ceil(rows * columns / 4)
    bits = ops.random_bits(rows * columns, seed, offset, device=device)
    return bits.view(rows, columns).double() / 2**32


def _flipped(images: Tensor, draws: Tensor) -> Tensor:
    return torch.where(draws[:, None, None, None] < 0.5, images.flip(3), images)
