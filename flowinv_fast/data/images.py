"""Reading image collections as one uint8 tensor, and writing PNG files."""

from __future__ import annotations

import gzip
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from .._base.errors import ArgumentError, require
from .._base.files import whole_file

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


def load_images(path: str | os.PathLike, size: tuple[int, int, int] | None = None) -> Tensor:
    """Read a collection of images.

    Args:
        path: an IDX file (.gz or not), a .npy file (N, H, W), (N, H, W, C) or (N, C, H, W) of
            uint8, or a folder of pictures (searched recursively, in sorted order).
        size: (C, H, W) wanted; pictures of a folder are centre-cropped to the aspect ratio and
            resampled (Lanczos); C is 1 or 3. IDX and .npy files must have this size already.
            Without it a folder takes the size of its first picture, in colour.
    Returns:
        uint8 tensor (N, C, H, W).
    Raises:
        ArgumentError: nothing readable there, or another size than wanted.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_png(torch.ones(3, 8, 12), f"{folder}/white.png")
    ...     load_images(folder, (1, 4, 4)).shape
    torch.Size([1, 1, 4, 4])
    """
    path = Path(path)
    require(path.exists(), "load_images", "path", "an existing file or folder", str(path))
    if path.is_dir():
        return _load_folder(path, size)
    images = _load_npy(path) if path.suffix == ".npy" else _load_idx(path)
    found = tuple(images.shape[1:])
    good = size is None or found == tuple(size)
    got = f"{path} with images of size {found}"
    require(good, "load_images", "path", f"images of size {size}", got)
    return images


def require_images(
    function: str, argument: str, images: Any, shape: tuple[int, ...], least: int = 1
) -> None:
    """Refuse anything but at least so many uint8 images (N, C, H, W) of this shape."""
    wanted = f"uint8 of shape (N, {', '.join(map(str, shape))}), N at least {least}"
    require(isinstance(images, Tensor), function, argument, wanted, type(images).__name__)
    good = images.dtype == torch.uint8 and tuple(images.shape[1:]) == tuple(shape)
    got = f"{images.dtype} of shape {tuple(images.shape)}"
    require(good and len(images) >= least, function, argument, wanted, got)


def _load_idx(path: Path) -> Tensor:
    """The IDX format of MNIST: 0, 0, type code, rank, big-endian sizes, data."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise ArgumentError(
                "load_images", "path", "a whole gzip file", f"{path}: {error}"
            ) from None
    wanted = "an IDX file of uint8 images (rank 3), a .npy file or a folder"
    good = len(raw) >= 16 and raw[:4] == b"\x00\x00\x08\x03"
    require(good, "load_images", "path", wanted, str(path))
    count, height, width = np.frombuffer(raw, ">u4", 3, 4).astype(int).tolist()
    complete = len(raw) == 16 + count * height * width
    wanted = f"{count} images of {height} x {width}"
    got = f"{path} with {len(raw) - 16} bytes of data"
    require(complete, "load_images", "path", wanted, got)
    data = np.frombuffer(raw, np.uint8, offset=16).reshape(count, 1, height, width)
    return torch.from_numpy(data.copy())


def _load_npy(path: Path) -> Tensor:
    try:
        data = np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ArgumentError("load_images", "path", "a .npy array", f"{path}: {error}") from None
    wanted = "a uint8 array (N, H, W), (N, H, W, C) or (N, C, H, W) with C 1 or 3"
    require(data.dtype == np.uint8, "load_images", "path", wanted, f"{path} of {data.dtype}")
    if data.ndim == 3:
        data = data[:, None]
    elif data.ndim == 4 and data.shape[-1] in (1, 3) and data.shape[1] not in (1, 3):
        data = data.transpose(0, 3, 1, 2)
    good = data.ndim == 4 and data.shape[1] in (1, 3)
    require(good, "load_images", "path", wanted, f"{path} of shape {data.shape}")
    return torch.from_numpy(np.ascontiguousarray(data))


def open_pictures(function: str, argument: str, folder: str | os.PathLike) -> Iterator[Image.Image]:
    """The pictures of a folder and its subfolders, numbers in names sorted by value.

    Raises:
        ArgumentError: no pictures there, or one that cannot be read.
    """
    folder = Path(folder)
    files = [p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES]
    require(len(files) > 0, function, argument, "a folder with pictures", str(folder))
    by_number = lambda path: [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", str(path))
    ]
    for file in sorted(files, key=by_number):
        try:
            with Image.open(file) as picture:
                picture.load()
                yield picture
        except (UnidentifiedImageError, OSError) as error:
            raise ArgumentError(
                function, argument, "readable pictures", f"{file}: {error}"
            ) from None


def _load_folder(path: Path, size: tuple[int, int, int] | None) -> Tensor:
    pictures = []
    for picture in open_pictures("load_images", "path", path):
        if size is None:
            size = (3, picture.height, picture.width)
        pictures.append(_fit(picture, size))
    return torch.from_numpy(np.stack(pictures))


def _fit(picture: Image.Image, size: tuple[int, int, int]) -> np.ndarray:
    channels, height, width = size
    picture = picture.convert("L" if channels == 1 else "RGB")
    scale = max(height / picture.height, width / picture.width)
    box_height, box_width = height / scale, width / scale
    top, left = (picture.height - box_height) / 2, (picture.width - box_width) / 2
    box = (left, top, left + box_width, top + box_height)
    picture = picture.resize((width, height), Image.Resampling.LANCZOS, box=box)
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


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
