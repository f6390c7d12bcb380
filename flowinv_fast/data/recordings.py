"""Recordings of noise or of measurements, from the formats that laboratories keep them in."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._base.errors import DataError, did_you_mean, is_real, require
from .._base.files import reading
from .arrays import check_length, npy_header, read_bytes
from .pictures import files_below, require_room

_NAME = "load_recordings"
_PIECE = 2**20  # numbers converted at once
_FOLDER = ".zarr"  # the kind whose recordings are folders


def load_recordings(
    path: str | os.PathLike,
    *,
    unit: float | None = None,
    dataset: str | None = None,
    dither: bool = True,
) -> Tensor:
    """Read recordings of noise, or measurements, as they come from a laboratory.

    An array is (N, D) for vectors, (N, H, W), (N, C, H, W), or (N, H, W, C) with C 1, 3 or 4 (where
    it could be both, (N, C, H, W)). In TIFF and FITS two dimensions are one image, and the samples
    of a colour TIFF are its channels. Floats are kept as they are. Whole numbers, be they stored
    as integers or as floats, are taken as (value + u) / unit with u uniform in [-1/2, 1/2), from a
    seed that is their content's: noise that is rounded has no density.

    Args:
        path: a file, by its name .npy, .npz, .h5 or .hdf5, .zarr (a folder) or .zarr.zip, .tif or
            .tiff, .fits, .fit or .fits.gz; or a folder of such files, searched recursively and put
            one after another, numbers in names sorted by value (hidden files and others are left
            out, of which a warning tells), where a .npy file may also be one image (H, W) or one
            vector (D,). All but the first two need ``pip install 'flowinv_fast[recordings]'``.
        unit: the positive number that all are divided by (255, 65535, the counts of a unit);
            whole numbers need one.
        dataset: which array of a file is meant, where it has several: a name, with its groups for
            HDF5 and zarr ("entry/data"), or the number of a FITS extension or of a TIFF series.
        dither: add u to whole numbers; not to those of a clean signal, or where they are wanted as
            they are.
    Returns:
        float32 tensor (N, C, H, W) or (N, D), finite.
    Raises:
        ArgumentError: whole numbers without a unit, or a folder without recordings.
        DataError: a damaged file, another kind, dtype, shape or size than said, numbers that are
            not finite in float32, no array of that name, several and no name, or more than half of
            the free memory holds; the message names the file.
        ImportError: the package that reads such files is missing; the message names it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/dark.npy", np.full((5, 7, 9), 98, np.uint16))
    ...     noise = load_recordings(f"{folder}/dark.npy", unit=65535)
    >>> noise.shape, noise.dtype, round(65535 * noise.mean().item())
    (torch.Size([5, 1, 7, 9]), torch.float32, 98)
    """
    require(os.fspath(path) != "", _NAME, "path", "a file or folder", "no name")
    good = unit is None or is_real(unit) and unit > 0
    require(good, _NAME, "unit", "a finite number above 0", repr(unit))
    good = dataset is None or isinstance(dataset, str) and dataset != ""
    require(good, _NAME, "dataset", "a name", repr(dataset))
    path = Path(path)
    if path.name.lower().endswith(_FOLDER) or not os.path.isdir(path):
        return _floats(path, _array(path, dataset), unit, 0 if dither else None)
    files = files_below(_NAME, "path", path, "recordings", _KINDS, (_FOLDER,))
    parts: list[Tensor] = []
    for file in files:
        array = _array(file, dataset, beside=True)
        found, wanted = array.shape[1:], parts[0].shape[1:] if parts else array.shape[1:]
        if found != wanted:
            wrong = f"its recordings are of size {found}, those of {files[0]} {tuple(wanted)}"
            raise DataError(_NAME, "path", file, wrong)
        parts.append(_floats(file, array, unit, len(parts) if dither else None))
        _require_room(path, 4 * sum(part.numel() for part in parts))  # for the copy below
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _require_room(path: Path, size: int) -> None:
    require_room(_NAME, "path", path, size, "recordings", "give fewer or smaller ones")


# --- numbers --------------------------------------------------------------------------------------


def _floats(path: Path, array: np.ndarray, unit: float | None, number: int | None) -> Tensor:
    """The numbers as ``load_recordings`` gives them; u is that of this ``number``, None: none."""
    rows = max(1, _PIECE // math.prod(array.shape[1:]))
    parts = [slice(start, start + rows) for start in range(0, len(array), rows)]
    whole = all(_is_whole(array[part]) for part in parts)
    if whole and unit is None:
        wanted = "the number that the measurements are divided by (255, 65535, counts a unit)"
        numbers = f"whole numbers of {array.dtype.name} from {array.min()} to {array.max()}"
        require(False, _NAME, "unit", wanted, f"None, and {path} has {numbers}")
    draws = _draws(array[parts[0]], number) if whole and number is not None else None
    out = torch.empty(array.shape, dtype=torch.float32, device="cpu")
    bad, first = 0, ()
    for part in parts:
        piece = array[part]
        with np.errstate(all="ignore"):
            if unit is not None:
                piece = piece.astype(np.float64)
                if draws is not None:
                    piece += _uniform(piece.shape, draws) - 0.5
                piece /= unit
            out.numpy()[part] = piece
        wrong = (~torch.isfinite(out[part])).nonzero()
        if len(wrong) and not bad:
            first = (part.start + int(wrong[0, 0]), *wrong[0, 1:].tolist())
        bad += len(wrong)
    if bad:
        wanted = f"{bad:,} of its {out.numel():,} numbers are not finite in float32"
        raise DataError(_NAME, "path", path, f"{wanted}, the first at {first}")
    return out


def _is_whole(numbers: np.ndarray) -> bool:
    if numbers.dtype.kind in "iu":
        return True
    return bool(np.isfinite(numbers).all()) and np.array_equal(numbers, np.rint(numbers))


def _draws(numbers: np.ndarray, number: int) -> torch.Generator:
    """Seeded by content: always the same for a file, and not the same for two of which one is taken
    off the other; nor for two of equal content in a folder, by their ``number``."""
    content = hashlib.sha256(numbers.tobytes() + number.to_bytes(8, "little"))
    seed = int.from_bytes(content.digest()[:8], "little")
    return torch.Generator().manual_seed(seed % 2**63)


def _uniform(shape: tuple[int, ...], draws: torch.Generator) -> np.ndarray:
    return torch.rand(shape, generator=draws, dtype=torch.float64, device="cpu").numpy()


# --- files ----------------------------------------------------------------------------------------


class _Stored(NamedTuple):
    """An array as its file states it, before it is read."""

    names: tuple[str, ...]  # all of one meaning; () in files of one array
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


_Reader = Callable[[Any, Path], AbstractContextManager[list[_Stored]]]


def _array(path: Path, dataset: str | None, beside: bool = False) -> np.ndarray:
    """The array that is meant, as (N, C, H, W) or (N, D); ``beside`` others in a folder."""
    name = path.name.lower()
    kinds = (kind for suffix, kind in _KINDS.items() if name.endswith(suffix))
    module, reader = next(kinds, ("zipfile", _unknown))
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        need = f"needs {module.partition('.')[0]}: pip install 'flowinv_fast[recordings]'"
        raise ImportError(f"{_NAME}: path: {path} {need}") from error
    with reading(_NAME, "path", path, name.endswith(_FOLDER)), reader(package, path) as stored:
        one = _chosen(path, stored, dataset)
        if one.dtype.kind == "c":
            raise ValueError(
                f"its numbers are {one.dtype}; save real and imaginary part as two channels"
            )
        if min(one.shape) < 1:
            raise ValueError(f"it holds no recordings: its shape is {one.shape}")
        _require_room(path, math.prod(one.shape) * (one.dtype.itemsize + 4))
        array = one.read()
        if beside and name.endswith(".npy") and array.ndim < 3:
            array = array[None]
        return _arranged(array)


def _chosen(path: Path, stored: list[_Stored], dataset: str | None) -> _Stored:
    numeric = [one for one in stored if one.dtype.kind in "iufc" and one.shape]
    found = [one for one in numeric if dataset is None or dataset in one.names]
    if len(found) == 1:
        return found[0]
    names = [name for one in numeric for name in one.names]
    if not numeric:
        has = ", ".join(sorted({str(one.dtype) for one in stored if one.shape})) or "nothing else"
        wrong = f"it has no array of numbers, but {has}"
    elif dataset is not None and not found:
        wrong = f"it has no array {did_you_mean(dataset, names)}, but {names or 'one without name'}"
    else:
        wrong = f"it has several arrays, of which dataset shall name one: {names}"
    raise DataError(_NAME, "dataset", path, wrong)


def _arranged(array: np.ndarray) -> np.ndarray:
    if array.ndim == 2:
        return array
    if array.ndim == 3:
        return array[:, None]
    if array.ndim == 4:
        last = array.shape[3] in (1, 3, 4) and array.shape[1] not in (1, 3, 4)
        return array.transpose(0, 3, 1, 2) if last else array
    raise ValueError(
        f"it is of shape {array.shape}, not (N, D), (N, H, W), (N, C, H, W), or (N, H, W, C) with "
        "C 1, 3 or 4"
    )


def _unknown(_: Any, path: Path) -> AbstractContextManager[list[_Stored]]:
    raise ValueError(f"its name ends in none of {', '.join(_KINDS)}")


# --- kinds: each says what a file holds, and reads what is asked for ------------------------------


@contextmanager
def _npy(_: Any, path: Path) -> Iterator[list[_Stored]]:
    with open(path, "rb") as file:
        yield [_npy_stored((), file, os.path.getsize(path))]


def _npy_stored(names: tuple[str, ...], file: IO[bytes], length: int) -> _Stored:
    shape, by_columns, dtype = npy_header(file)
    if dtype.kind in "iufc" and min(shape, default=1) > 0:
        check_length(shape, math.prod(shape) * dtype.itemsize, length - file.tell())

    def read() -> np.ndarray:
        data = read_bytes(file, shape, math.prod(shape) * dtype.itemsize).view(dtype)
        return data.reshape(shape, order="F" if by_columns else "C")

    return _Stored(names, shape, dtype, read)


@contextmanager
def _npz(zipfile: Any, path: Path) -> Iterator[list[_Stored]]:
    """Members are unpacked one at a time, to the length that the archive states and no further."""
    with zipfile.ZipFile(path) as archive:

        def stored(member: Any) -> _Stored:
            names = (member.filename.removesuffix(".npy"),)
            with archive.open(member) as file:
                found = _npy_stored(names, file, member.file_size)

            def read() -> np.ndarray:
                with archive.open(member) as file:
                    return _npy_stored(names, file, member.file_size).read()

            return found._replace(read=read)

        yield [stored(member) for member in archive.infolist()]


@contextmanager
def _hdf5(h5py: Any, path: Path) -> Iterator[list[_Stored]]:
    stored = []

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            read = partial(_hdf5_numbers, item)
            stored.append(_Stored((name,), item.shape or (), item.dtype, read))

    with h5py.File(path, "r") as file:
        file.visititems(note)
        yield stored


def _hdf5_numbers(item: Any) -> np.ndarray:
    if item.external or item.is_virtual:
        raise ValueError("its numbers lie in other files; give those")
    return item[...]


@contextmanager
def _zarr(zarr: Any, path: Path) -> Iterator[list[_Stored]]:
    packed = not os.path.isdir(path)
    store: Any = zarr.storage.ZipStore(path, mode="r") if packed else path
    with closing(store) if packed else nullcontext():
        root = zarr.open(store, mode="r")
        arrays = [((), root)] if hasattr(root, "shape") else list(_zarr_arrays(root, ""))
        yield [
            _Stored(names, array.shape, np.dtype(array.dtype), partial(_zarr_numbers, array))
            for names, array in arrays
        ]


def _zarr_arrays(group: Any, above: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, array in group.arrays():
        yield (above + name,), array
    for name, below in group.groups():
        yield from _zarr_arrays(below, f"{above}{name}/")


def _zarr_numbers(array: Any) -> np.ndarray:
    there, wanted = array.nchunks_initialized, array.nchunks
    if there < wanted:  # zarr would fill them
        raise ValueError(f"it is cut: it has {there:,} of its {wanted:,} chunks")
    return np.asarray(array[...])


@contextmanager
def _tiff(tifffile: Any, path: Path) -> Iterator[list[_Stored]]:
    log, refusal = logging.getLogger("tifffile"), _Refusal(logging.WARNING)
    log.addHandler(refusal)
    try:
        with tifffile.TiffFile(path) as file:
            yield [
                _Stored((str(number),), one.shape, np.dtype(one.dtype), partial(_tiff_numbers, one))
                for number, one in enumerate(file.series)
                if one.dtype is not None
            ]
    finally:
        log.removeHandler(refusal)


class _Refusal(logging.Handler):
    """What tifffile would repair, or fill with zeros, is an error."""

    def emit(self, record: logging.LogRecord) -> None:
        raise ValueError(record.getMessage())


def _tiff_numbers(series: Any) -> np.ndarray:
    meaning = getattr(series.keyframe.photometric, "name", "unknown")
    if meaning not in ("MINISBLACK", "RGB", "CFA", "LINEAR_RAW"):
        raise ValueError(f"its numbers are no intensities, but {meaning}")
    for page in series.pages:
        if page is None or 0 in (*page.dataoffsets, *page.databytecounts):
            raise ValueError("it is cut: it has no numbers for some of its pixels")
    array = series.asarray()
    if "S" not in series.axes:
        return array[None] if array.ndim == 2 else array
    array = np.moveaxis(array, series.axes.index("S"), -3)
    return array[None] if array.ndim == 3 else array


@contextmanager
def _fits(fits: Any, path: Path) -> Iterator[list[_Stored]]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path) as packed:  # up to the check sum, where astropy does not come
            while packed.read(_PIECE):
                pass
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="(?s).*(truncated|corrupted)")
        with fits.open(path, memmap=False) as file:
            yield [
                _Stored((hdu.name, str(number)), hdu.shape, np.dtype(float), partial(_hdu, hdu))
                for number, hdu in enumerate(file)
                if getattr(hdu, "is_image", False)
            ]


def _hdu(hdu: Any) -> np.ndarray:
    if 0 in (hdu.verify_datasum(), hdu.verify_checksum()):
        raise ValueError("its numbers do not fit its check sum")
    return hdu.data[None] if hdu.data.ndim == 2 else hdu.data


_KINDS: dict[str, tuple[str, _Reader]] = {
    ".npy": ("numpy", _npy),
    ".npz": ("zipfile", _npz),
    ".h5": ("h5py", _hdf5),
    ".hdf5": ("h5py", _hdf5),
    ".zarr": ("zarr", _zarr),
    ".zarr.zip": ("zarr", _zarr),
    ".tif": ("tifffile", _tiff),
    ".tiff": ("tifffile", _tiff),
    ".fits": ("astropy.io.fits", _fits),
    ".fit": ("astropy.io.fits", _fits),
    ".fits.gz": ("astropy.io.fits", _fits),
}
