"""Reading image collections as one uint8 tensor, and writing PNG files."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from .._base.errors import DataError, is_whole, require
from .._base.files import reading, whole_file
from .arrays import load_idx, load_npy
from .pictures import SUFFIXES, picture_files, read_picture, require_room


def load_images(path: str | os.PathLike, size: tuple[int, int, int] | None = None) -> Tensor:
    """Read a collection of images.

    Args:
        path: an IDX file (.gz or not), a .npy file (N, H, W), (N, H, W, C) or (N, C, H, W) of
            uint8, a picture, or a folder of pictures (searched recursively, in sorted order;
            hidden files and others are left out, of which a warning tells). What 16 bits, floats,
            palettes and alpha become, and which pictures are refused: ``pictures.read_picture``.
        size: (C, H, W) wanted, C 1 or 3; pictures are centre-cropped to the aspect ratio and
            resampled (Lanczos), grey and colour turned into one another. IDX and .npy files must
            have this size already. Without it pictures are read in colour, and must all have the
            size of the first.
    Returns:
        uint8 tensor (N, C, H, W).
    Raises:
        ArgumentError: another size than wanted.
        DataError: nothing readable there, pictures of several sizes, or more images than half of
            the free memory holds; the message names the file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_png(torch.ones(3, 8, 12), f"{folder}/white.png")
    ...     load_images(folder, (1, 4, 4)).shape
    torch.Size([1, 1, 4, 4])
    """
    require(os.fspath(path) != "", "load_images", "path", "a file or folder", "no name")
    path = Path(path)
    if size is not None:
        good = len(size) == 3 and all(is_whole(n, 1) for n in size) and size[0] in (1, 3)
        require(good, "load_images", "size", "(C, H, W), C 1 or 3", size)
    if os.path.isdir(path) or path.suffix.lower() in SUFFIXES:
        return _load_pictures(path, size)
    images = torch.from_numpy((load_npy if path.suffix == ".npy" else load_idx)(path))
    found = tuple(images.shape[1:])
    good = size is None or found == tuple(size)
    got = f"{path} with images of size {found}"
    require(good, "load_images", "path", f"images of size {size}", got)
    return images


def require_images(
    function: str,
    argument: str,
    images: Any,
    shape: tuple[int, ...],
    least: int = 1,
    dtype: torch.dtype = torch.uint8,
) -> None:
    """Refuse anything but at least so many images (N, C, H, W) of this shape, uint8 or finite."""
    kind = str(dtype).removeprefix("torch.")
    wanted = f"{kind} of shape (N, {', '.join(map(str, shape))}), N at least {least}"
    require(isinstance(images, Tensor), function, argument, wanted, type(images).__name__)
    good = images.dtype == dtype and tuple(images.shape[1:]) == tuple(shape)
    got = f"{images.dtype} of shape {tuple(images.shape)}"
    require(good and len(images) >= least, function, argument, wanted, got)
    finite = not dtype.is_floating_point or bool(images.isfinite().all())
    require(finite, function, argument, "finite numbers", "some that are not")


def _load_pictures(path: Path, size: tuple[int, int, int] | None) -> Tensor:
    """A picture or a folder of them, of this size or of that of the first, in one allocation."""
    files = picture_files("load_images", "path", path)
    channels = size[0] if size else 3
    images: Tensor | None = None
    for index, file in enumerate(files):
        picture = read_picture("load_images", "path", file, channels)
        if images is None:
            height, width = size[1:] if size else (picture.height, picture.width)
            shape = (len(files), channels, height, width)
            require_room("load_images", "path", path, math.prod(shape))
            images = torch.empty(shape, dtype=torch.uint8)
        if size is None and picture.size != (width, height):
            wrong = (
                f"it has {picture.width} x {picture.height} pixels, and {files[0]} has {width} x "
                f"{height}; give the size that all shall have (--size)"
            )
            raise DataError("load_images", "path", file, wrong)
        with reading("load_images", "path", file):
            images[index] = torch.from_numpy(_fit(picture, height, width))
    assert images is not None  # no folder without pictures comes here
    return images


def _fit(picture: Image.Image, height: int, width: int) -> np.ndarray:
    scale = max(height / picture.height, width / picture.width)
    box_height, box_width = height / scale, width / scale
    top, left = (picture.height - box_height) / 2, (picture.width - box_width) / 2
    box = (left, top, left + box_width, top + box_height)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    array = np.array(picture)
    return array[None] if picture.mode == "L" else array.transpose(2, 0, 1)


def image_grid(images: Tensor, columns: int | None = None, pad: int = 1) -> Tensor:
    """Tile images (N, C, H, W) in [0, 1] into one image (C, height, width), with white gaps.

    Args:
        images: (N, C, H, W) in [0, 1], placed row by row.
        columns: images in a row; None makes the grid about square.
        pad: pixels of the gaps and of the frame.
    Returns:
        (C, R (H + pad) + pad, columns (W + pad) + pad) like images, R the number of rows.

    >>> image_grid(torch.zeros(6, 1, 28, 28), columns=3).shape
    torch.Size([1, 59, 88])
    """
    count, channels, height, width = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    grid = images.new_ones(channels, rows * (height + pad) + pad, columns * (width + pad) + pad)
    for i, image in enumerate(images):
        top = pad + (i // columns) * (height + pad)
        left = pad + (i % columns) * (width + pad)
        grid[:, top : top + height, left : left + width] = image
    return grid


def fit_images(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images (B, C, H, W) at another size: bilinear, channels averaged and repeated."""
    if images.shape[1] != shape[0]:
        images = images.mean(1, keepdim=True).expand(-1, shape[0], -1, -1)
    if tuple(images.shape[2:]) != tuple(shape[1:]):
        images = F.interpolate(images, shape[1:], mode="bilinear", antialias=True)
    return images


def to_picture(image: Tensor, zoom: int = 1) -> Image.Image:
    """An image as an 8-bit picture of PIL.

    Args:
        image: (C, H, W), clipped to [0, 1]; C is 1 (grey) or 3 (colour).
        zoom: width and height in the picture of every pixel, at least 1.

    >>> to_picture(torch.tensor([[[0.0, 1.0, 0.5]]]), zoom=2).size  # width, height
    (6, 2)
    """
    array = (image.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    array = array.repeat(zoom, 1).repeat(zoom, 2)
    return Image.fromarray(array[0] if array.shape[0] == 1 else array.transpose(1, 2, 0))


def save_png(image: Tensor, path: str | os.PathLike, zoom: int = 1) -> None:
    """Write an image as an 8-bit PNG file, which appears whole or not at all.

    Args:
        image: (C, H, W), clipped to [0, 1]; C is 1 (grey) or 3 (colour).
        path: file to write, in a folder that exists.
        zoom: width and height in the file of every pixel, at least 1.
    Raises:
        OSError: the file cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_png(torch.ones(1, 2, 3), f"{folder}/white.png")
    ...     load_images(folder).shape  # folders are read in colour
    torch.Size([1, 3, 2, 3])
    """
    with whole_file(path) as temporary:
        to_picture(image, zoom).save(temporary, format="PNG")


def sample_images(name: str, count: int | None = None) -> Tensor:
    """Shipped test images: the first of the paper's selection, or crops of test photographs.

    Args:
        name: "fashion-28", "mnist-28" or "photo-64".
        count: how many, at most 32; None is all 32.
    Returns:
        float32 (count, 1, 28, 28) or (count, 3, 64, 64) in [0, 1].
    Raises:
        ArgumentError: an unknown name.

    >>> sample_images("fashion-28", 4).shape
    torch.Size([4, 1, 28, 28])
    """
    folder = Path(__file__).parent / "samples"
    names = sorted(path.stem for path in folder.glob("*.npy"))
    require(name in names, "sample_images", "name", f"one of {names}", repr(name))
    return load_images(folder / f"{name}.npy")[:count].float() / 255
