"""Arrays of images on disk: IDX files, packed or not, and .npy files."""

from __future__ import annotations

import gzip
import math
import os
import struct
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from .._base.files import reading
from .pictures import require_room

_PIECE = 2**24  # bytes read at once
_PACKED = b"\x1f\x8b"
_MOST_PACKED = 1032  # bytes that a byte of deflate stands for, at most


def load_idx(path: Path) -> np.ndarray:
    """The IDX format of MNIST: 0, 0, type code, rank, big-endian sizes, data; uint8 (N, 1, H, W).

    Of a packed file only as much is unpacked as its sizes say.

    Raises:
        DataError: another format, another length than it states, or more than memory holds.
    """
    with reading("load_images", "path", path), open(path, "rb") as raw:
        length, packed = os.path.getsize(path), raw.read(2) == _PACKED
        raw.seek(0)
        with gzip.open(raw) if packed else raw as file:
            head = file.read(16)
            if len(head) < 16 or head[:4] != b"\x00\x00\x08\x03":
                raise ValueError(
                    "it is neither an IDX file of uint8 images (rank 3) nor, by its name, a .npy "
                    "array or a picture"
                )
            shape = struct.unpack(">3I", head[4:])
            most = _MOST_PACKED * length if packed else length - 16
            return _read(path, file, shape, most).reshape(shape[0], 1, *shape[1:])


def load_npy(path: Path) -> np.ndarray:
    """A .npy file of uint8 (N, H, W), (N, C, H, W) or (N, H, W, C), as (N, C, H, W).

    An array that could be of both layouts is taken as (N, C, H, W). Nothing is unpickled.

    Raises:
        DataError: another format, dtype, shape or length, or more than memory holds.
    """
    with reading("load_images", "path", path), open(path, "rb") as file:
        shape, by_columns, dtype = npy_header(file)
        wanted = "not uint8 (N, H, W), (N, C, H, W) or (N, H, W, C) with C 1 or 3"
        if dtype != np.uint8:
            raise ValueError(f"its numbers are {dtype}, {wanted}")
        first = len(shape) == 4 and shape[1] in (1, 3)
        last = len(shape) == 4 and shape[3] in (1, 3) and not first
        if len(shape) != 3 and not first and not last:
            raise ValueError(f"it is of shape {shape}, {wanted}")
        data = _read(path, file, shape, os.path.getsize(path) - file.tell())
        data = data.reshape(shape, order="F" if by_columns else "C")
        if len(shape) == 3:
            data = data[:, None]
        return np.ascontiguousarray(data.transpose(0, 3, 1, 2) if last else data)


def npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """(shape, whether the first index runs fastest, dtype) of a .npy file, read up to its numbers.

    Raises:
        ValueError: another format.
    """
    version = npy.read_magic(file)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"it is of .npy version {version}, which holds no plain numbers")
    return read[version](file)


def _read(
    path: Path, file: IO[bytes] | gzip.GzipFile, shape: tuple[int, ...], most: int
) -> np.ndarray:
    """The bytes of an array of this shape, if the file has as many and no more."""
    if min(shape) < 1:
        raise ValueError(f"it holds no images: its shape is {tuple(shape)}")
    check_length(shape, math.prod(shape), most)
    require_room("load_images", "path", path, math.prod(shape))
    return read_bytes(file, shape, math.prod(shape))


def check_length(shape: tuple[int, ...], size: int, most: int) -> None:
    """ValueError where an array of this shape takes more bytes than a file can have."""
    if size > most:
        raise ValueError(
            f"it is cut: its shape {tuple(shape)} takes {size:,} bytes, it has {most:,}"
        )


def read_bytes(file: IO[bytes] | gzip.GzipFile, shape: tuple[int, ...], size: int) -> np.ndarray:
    """The bytes of an array of this shape; ValueError unless the file ends just behind them."""
    data = np.empty(size, np.uint8)
    view, done = memoryview(data.data), 0
    while done < size:
        got = file.readinto(view[done : done + _PIECE])  # type: ignore[union-attr]
        if not got:
            raise ValueError(f"it is cut: it ends after {done:,} of {size:,} bytes")
        done += got
    if file.read(1):
        raise ValueError(f"it goes on after the {size:,} bytes of its shape {tuple(shape)}")
    return data
