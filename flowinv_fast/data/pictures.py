"""Pictures in any format, read as 8-bit grey or colour: what each kind means, or why it is refused.

This is the only place that decodes pictures; PIL does, and what it would guess is settled here.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps

from .._base.errors import DataError, require
from .._base.files import in_words, reading
from .._base.memory import available_memory

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no other decoder sees a file
_SHARE = 0.5  # of the free memory, that images may take
_BITS, _SAMPLE_FORMAT = 258, 339  # tags of TIFF


def open_pictures(
    function: str, argument: str, path: str | os.PathLike, channels: int
) -> Iterator[tuple[Path, Image.Image]]:
    """A picture, or those of a folder and its subfolders, numbers in names sorted by value.

    Hidden files (the ``._x`` of macOS among them) and those that are no pictures by their name are
    left out, of which a warning tells.

    Args:
        function, argument: where the path was given.
        path: a picture or a folder.
        channels: 1 (grey) or 3 (colour).
    Returns:
        Each file with its picture, upright, in mode "L" or "RGB".
    Raises:
        DataError: no pictures there, or one that cannot be read; see ``read_picture``.
    """
    for file in picture_files(function, argument, path):
        yield file, read_picture(function, argument, file, channels)


def picture_files(function: str, argument: str, path: str | os.PathLike) -> list[Path]:
    """The files of ``open_pictures``."""
    if not os.path.isdir(path):
        return [Path(path)]
    return files_below(function, argument, path, "pictures", SUFFIXES)


def files_below(
    function: str,
    argument: str,
    path: str | os.PathLike,
    what: str,
    suffixes: Collection[str],
    whole: tuple[str, ...] = (),
) -> list[Path]:
    """What ends in one of these in a folder and its subfolders, as ``open_pictures`` searches.

    Args:
        function, argument: where the path was given.
        path: a folder.
        what: is wanted, for the messages.
        suffixes: in lower case.
        whole: those of them that folders have, which are found rather than searched.
    Raises:
        ArgumentError: nothing there.
        DataError: a folder that cannot be searched.
    """
    found: list[Path] = []
    others: list[str] = []

    def refuse(error: OSError) -> None:
        raise DataError(function, argument, error.filename, in_words(error))

    for folder, folders, names in os.walk(os.fspath(path), onerror=refuse):
        below = {n for n in folders if not _hidden(n) and not Path(folder, n).is_symlink()}
        wanted = {n for n in below if n.lower().endswith(whole)} if whole else set()
        wanted |= {n for n in names if not _hidden(n) and n.lower().endswith(tuple(suffixes))}
        found += [Path(folder, name) for name in wanted]
        others += sorted({*folders, *names} - below - wanted)
        folders[:] = below - wanted
    kinds = f"a folder with {what} ({', '.join(sorted(suffixes))})"
    require(len(found) > 0, function, argument, kinds, f"{os.fspath(path)}, without any")
    if others:
        warnings.warn(
            f"{function}: {argument}: {os.fspath(path)}: left out {len(others)} files or folders "
            f"that are hidden, links to folders, or no {what} by their name, {others[0]!r} for one",
            stacklevel=4,
        )
    return sorted(found, key=_by_number)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _by_number(path: Path) -> list[tuple[bool, int, str]]:
    return [
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.split(r"(\d+)", str(path))
    ]


def read_picture(
    function: str, argument: str, path: str | os.PathLike, channels: int
) -> Image.Image:
    """One picture, upright, with 8 bits a channel.

    White is 255: of 16 bits, 65535 becomes 255 with rounding (of 16-bit colour PIL keeps the upper
    8 bits), of floats 1. The orientation that a camera noted is applied. Palettes are looked up.
    An alpha channel is dropped where all of it is opaque. Colour becomes grey by the weights of
    ITU-R 601 (0.299, 0.587, 0.114), grey becomes colour by repetition; colour profiles are not
    applied. Of the several pictures of a telephone's JPEG (MPO) the first is taken.

    Args:
        function, argument: where the path was given.
        path: the picture.
        channels: 1 (grey) or 3 (colour).
    Raises:
        DataError: a damaged file; more than PIL's MAX_IMAGE_PIXELS pixels; several frames or pages;
            transparent pixels; floats outside [0, 1]; a kind without a stated white (integers of
            12 or 32 bits, signed ones) or without stated colours (CMYK, LAB).
    """
    with reading(function, argument, path), open(path, "rb") as file, _opened(file) as picture:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and picture.width * picture.height > limit:
            size = f"{picture.width} x {picture.height}"
            raise ValueError(f"it has {size} pixels, more than {limit:,}, PIL's MAX_IMAGE_PIXELS")
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
        if frames != 1:
            raise ValueError(f"it has {frames} frames or pages; save one of them by itself")
        _check_white(picture)
        _check_covered(picture)
        picture.load()
        ImageOps.exif_transpose(picture, in_place=True)
        return _levels(picture).convert("L" if channels == 1 else "RGB")


def _opened(file: IO[bytes]) -> Image.Image:
    """A picture of an open file: by its name PIL would map it into memory, unchecked."""
    Image.open(file, formats=_FORMATS).verify()  # the check sums of a PNG
    file.seek(0)
    return Image.open(file, formats=_FORMATS)


def _check_covered(picture: Image.Image) -> None:
    """ValueError where the strips of a TIFF leave pixels out, which PIL would not set."""
    boxes = [tile[1] for tile in getattr(picture, "tile", [])] if picture.format == "TIFF" else []
    covered = sum((right - left) * (low - top) for left, top, right, low in boxes)
    if boxes and covered < picture.width * picture.height:
        raise ValueError(f"it is cut: it has {covered:,} of its pixels")


def _check_white(picture: Image.Image) -> None:
    """ValueError where the largest value that a pixel may have is not known."""
    mode, tags = picture.mode, getattr(picture, "tag_v2", {})
    bits, kinds = tags.get(_BITS, (16,)), tags.get(_SAMPLE_FORMAT, (1,))
    if mode.startswith("I;16") and set(bits) != {16}:
        raise ValueError(f"its pixels have {bits[0]} bits; save it with 8 or 16")
    if mode != "F" and set(kinds) != {1}:
        raise ValueError("its pixels are signed integers; save it with 8 or 16 bits without sign")
    if mode == "I" and picture.format not in ("PNG", "PPM"):  # of these PIL makes 16 bits
        raise ValueError("its pixels have 32 bits, and no stated white; save it with 8 or 16")


def _levels(picture: Image.Image) -> Image.Image:
    """A loaded picture in mode "L" or "RGB"."""
    mode, key = picture.mode, picture.info.get("transparency")
    if mode == "I" or mode.startswith("I;16"):
        levels = np.asarray(picture).astype(np.int64)
        if key is not None and bool((levels == key).any()):
            raise ValueError(_TRANSPARENT)
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8))  # 257 = 65535 / 255
    if mode == "F":
        values = np.asarray(picture)
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # neither do NaNs pass
            raise ValueError(f"its pixels are floats in [{low:g}, {high:g}], not in [0, 1]")
        return Image.fromarray((255 * values).round().astype(np.uint8))
    if mode in ("P", "PA", "LA", "RGBA") or key is not None:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema()[0] != 255:
            raise ValueError(_TRANSPARENT)
        return picture.convert("RGB")
    if mode not in ("1", "L", "RGB", "YCbCr"):
        raise ValueError(f"its pixels are {mode}, whose colours are not stated; save it as RGB")
    return picture if mode in ("L", "RGB") else picture.convert("L" if mode == "1" else "RGB")


_TRANSPARENT = "it is transparent in places; lay it on a background and save it without alpha"


_ADVICE = "give a smaller size (--size) or fewer images, or take crops (--crops)"


def require_room(
    function: str,
    argument: str,
    path: str | os.PathLike,
    size: int,
    what: str = "images",
    advice: str = _ADVICE,
) -> None:
    """Refuse what takes so many bytes if it would fill more than half of the free memory."""
    free = available_memory()
    if free is not None and size > _SHARE * free:
        wrong = (
            f"its {what} take {size / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free, of which at "
            f"most half is used; {advice}"
        )
        raise DataError(function, argument, path, wrong)
