"""Recordings: every kind gives the numbers that another library wrote, or one error by name."""

from __future__ import annotations

import io
import os
import random
import shutil
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from flowinv_fast import ArgumentError, DataError
from flowinv_fast.data import load_recordings
from flowinv_fast.data import pictures as pictures_module

h5py = pytest.importorskip("h5py")
zarr = pytest.importorskip("zarr")
tifffile = pytest.importorskip("tifffile")
fits = pytest.importorskip("astropy.io.fits")

SHAPE = (5, 7, 9)


@pytest.fixture
def draw(seed) -> Callable[..., np.ndarray]:
    generator = np.random.default_rng(seed)
    return lambda *shape: generator.standard_normal(shape).astype(np.float32)


def _npy(path: Path, array: np.ndarray) -> None:
    with open(path, "wb") as file:  # by its name numpy would add .npy
        np.save(file, array)


def _hdf5(path: Path, array: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file["entry/data"] = array
        file["about"] = "text"
        file["gain"] = 2.5


def _zarr(path: Path, array: np.ndarray) -> None:
    rows = (max(1, len(array) // 2), *array.shape[1:])
    zarr.create_array(path, data=array, chunks=rows, overwrite=True)


def _zarr_zip(path: Path, array: np.ndarray) -> None:
    store = zarr.storage.ZipStore(path, mode="w")
    zarr.create_group(store).create_array("data", data=array)
    store.close()


def _tiff(path: Path, array: np.ndarray) -> None:
    tifffile.imwrite(path, array, photometric="minisblack")


def _fits(path: Path, array: np.ndarray) -> None:
    fits.PrimaryHDU(array).writeto(path, checksum=True, overwrite=True)


SAVE: dict[str, Callable[[Path, np.ndarray], None]] = {
    "a.npy": _npy,
    "a.npz": lambda path, array: np.savez_compressed(path, a=array),
    "a.h5": _hdf5,
    "a.HDF5": _hdf5,
    "a.zarr": _zarr,
    "a.zarr.zip": _zarr_zip,
    "a.tif": _tiff,
    "a.TIFF": lambda path, array: tifffile.imwrite(path, array, compression="zlib"),
    "a.fits": _fits,
    "a.fit": lambda path, array: fits.HDUList(
        [fits.PrimaryHDU(), fits.ImageHDU(array), fits.BinTableHDU()]
    ).writeto(path, overwrite=True),
    "a.fits.gz": _fits,
}


def refused(path: Path, kind: type[Exception] = DataError, **options) -> str:
    with pytest.raises(kind) as caught:
        load_recordings(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


# --- kinds and shapes -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAVE)
def test_round_trip(tmp_path, draw, name):
    path = tmp_path / name
    for array in (draw(*SHAPE), draw(4, 2, 7, 9)):
        SAVE[name](path, array)
        found = load_recordings(path)
        assert found.dtype == torch.float32 and found.is_contiguous()
        assert np.array_equal(found, array.reshape(len(array), -1, 7, 9))


@pytest.mark.parametrize("name", SAVE)
@pytest.mark.parametrize("dtype", [">f4", "<f8", ">f8", ">i2", "<u2", "u1", "<u4"])
def test_numbers(tmp_path, draw, name, dtype):
    path = tmp_path / name
    values = np.abs(draw(*SHAPE) * 20).astype(dtype)
    if name.endswith(".TIFF"):
        values = values.astype(values.dtype.newbyteorder("="))
    SAVE[name](path, values)
    if values.dtype.kind == "f":
        assert np.array_equal(load_recordings(path)[:, 0], values.astype(np.float32))
        return
    text = refused(path, ArgumentError)
    assert "load_recordings: unit: expected the number" in text
    numbers = f"whole numbers of {values.dtype.name} from {values.min()} to {values.max()}"
    assert numbers in text
    found = load_recordings(path, unit=50.0)
    rounded = found[:, 0].double() * 50 - torch.from_numpy(values.astype(np.float64))
    assert rounded.abs().max() < 0.5001 and rounded.abs().max() > 0.4
    assert abs(rounded.mean()) < 5 * (1 / 12 / values.size) ** 0.5
    assert torch.equal(found, load_recordings(path, unit=50.0))


@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_orders_and_layouts(tmp_path, draw, name, order):
    path = tmp_path / name
    wanted = {
        (8, 6): lambda a: a,
        (8, 6, 5): lambda a: a[:, None],
        (8, 3, 6, 5): lambda a: a,
        (8, 2, 6, 3): lambda a: a.transpose(0, 3, 1, 2),
        (8, 6, 5, 1): lambda a: a.transpose(0, 3, 1, 2),
        (8, 6, 5, 4): lambda a: a.transpose(0, 3, 1, 2),
        (8, 4, 5, 4): lambda a: a,
        (8, 6, 5, 2): lambda a: a,
    }
    for shape, arranged in wanted.items():
        array = draw(*shape)
        SAVE[name](path, np.asarray(array, order=order))
        assert np.array_equal(load_recordings(path), arranged(array))
    for shape in ((), (8,), (1, 2, 3, 4, 5)):
        SAVE[name](path, draw(*shape))
        assert (
            "no array of numbers" in refused(path) if shape == () else "of shape" in refused(path)
        )


def test_tiff_and_fits_of_one_image(tmp_path, draw):
    grey, colour = draw(7, 9), draw(3, 7, 9)
    for name in ("a.tif", "a.fits", "a.fits.gz"):
        SAVE[name](tmp_path / name, grey)
        assert np.array_equal(load_recordings(tmp_path / name), grey[None, None])
    path = tmp_path / "b.tif"
    tifffile.imwrite(path, colour.transpose(1, 2, 0), photometric="rgb")
    assert np.array_equal(load_recordings(path), colour[None])
    tifffile.imwrite(path, colour, photometric="rgb", planarconfig="separate")
    assert np.array_equal(load_recordings(path), colour[None])
    several = draw(4, 7, 9, 3)
    tifffile.imwrite(path, several, photometric="rgb", metadata=None)
    assert np.array_equal(load_recordings(path), several.transpose(0, 3, 1, 2))
    levels = np.arange(63, dtype=np.uint16).reshape(1, 7, 9)
    tifffile.imwrite(path, levels, imagej=True)
    assert np.array_equal((load_recordings(path, unit=1)[0, 0]).round(), levels[0])
    fits.PrimaryHDU(grey[0]).writeto(tmp_path / "line.fits")
    assert "of shape (9,)" in refused(tmp_path / "line.fits")


def test_tiff_of_no_intensities(tmp_path, draw):
    path, levels = tmp_path / "a.tif", np.zeros((7, 9), np.uint8)
    tifffile.imwrite(path, levels, photometric="palette", colormap=np.zeros((3, 256), np.uint16))
    assert "PALETTE" in refused(path, unit=1)
    tifffile.imwrite(path, levels, photometric="miniswhite")
    assert "MINISWHITE" in refused(path, unit=1)


def test_fits_that_are_scaled_or_packed(tmp_path, draw):
    path, counts = tmp_path / "a.fits", np.round(np.abs(draw(*SHAPE)) * 50)
    hdu = fits.PrimaryHDU(counts.copy())
    hdu.scale("int16", bzero=3)
    hdu.writeto(path)
    assert "float" in refused(path, ArgumentError)
    assert np.array_equal(load_recordings(path, unit=1)[:, 0].round(), counts)
    packed = fits.CompImageHDU(counts.astype(np.int32), compression_type="RICE_1", name="SCI")
    fits.HDUList([fits.PrimaryHDU(), packed]).writeto(path, overwrite=True, checksum=True)
    assert np.array_equal(load_recordings(path, unit=1)[:, 0].round(), counts)


# --- several arrays -------------------------------------------------------------------------------


def test_dataset(tmp_path, draw):
    dark, flat = draw(*SHAPE), draw(4, 6)
    np.savez(tmp_path / "a.npz", dark=dark, flat=flat)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["entry/dark"], file["flat"] = dark, flat
    group = zarr.create_group(tmp_path / "a.zarr")
    group.create_group("entry").create_array("dark", data=dark)
    group.create_array("flat", data=flat)
    for name, one in (("a.npz", "dark"), ("a.h5", "entry/dark"), ("a.zarr", "entry/dark")):
        path = tmp_path / name
        assert np.array_equal(load_recordings(path, dataset=one)[:, 0], dark)
        assert np.array_equal(load_recordings(path, dataset="flat"), flat)
        text = refused(path)
        assert "load_recordings: dataset:" in text and f"'{one}'" in text and "'flat'" in text
        assert "did you mean flat?" in refused(path, dataset="flatt")
    path = tmp_path / "a.fits"
    hdus = [fits.PrimaryHDU(dark), fits.ImageHDU(flat, name="FLAT"), fits.ImageHDU(flat, name="X")]
    fits.HDUList(hdus).writeto(path)
    assert np.array_equal(load_recordings(path, dataset="0")[:, 0], dark)
    for name in ("FLAT", "1", "2"):
        assert np.array_equal(load_recordings(path, dataset=name), flat[None, None])
    assert "'FLAT'" in refused(path)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        writer.write(dark)
        writer.write(flat)
    assert np.array_equal(load_recordings(path, dataset="0")[:, 0], dark)
    assert "['0', '1']" in refused(path)
    np.save(tmp_path / "a.npy", dark)
    assert "one without name" in refused(tmp_path / "a.npy", dataset="dark")


def test_files_without_numbers(tmp_path, draw):
    path = tmp_path / "a.npz"
    np.savez(path, a=np.array(["text"]), b=np.array([{}]), c=np.ones((3, 4), bool))
    assert "no array of numbers, but <U4, bool, object" in refused(path)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = h5py.Empty("f4")
    assert "nothing else" in refused(tmp_path / "a.h5")
    fits.PrimaryHDU().writeto(tmp_path / "a.fits")
    refused(tmp_path / "a.fits")
    np.save(tmp_path / "a.npy", np.array([{}]))
    assert "object" in refused(tmp_path / "a.npy")


def test_hdf5_whose_numbers_lie_elsewhere(tmp_path, draw):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource("none.h5", "a", SHAPE)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_virtual_dataset("a", layout)
    assert "in other files" in refused(tmp_path / "a.h5")


# --- folders --------------------------------------------------------------------------------------


def test_folder(tmp_path, draw):
    one, line = draw(7, 9), draw(6)
    parts = {f"{2 * i}-{name}": draw(3, 1, 7, 9) for i, name in enumerate(SAVE)}
    for name, array in parts.items():
        SAVE[name.partition("-")[2]](tmp_path / name, array)
    (tmp_path / "99").mkdir()
    np.save(tmp_path / "99/one.npy", one)
    for name in ("notes.txt", ".hidden.npy"):
        (tmp_path / name).write_text("")
    with pytest.warns(UserWarning, match="left out 2 files .* no recordings by their name"):
        found = load_recordings(tmp_path)
    assert np.array_equal(found, np.concatenate([*parts.values(), one[None, None]]))
    np.save(tmp_path / "99/two.npy", line)
    with pytest.raises(DataError, match=r"two.npy: its recordings are of size \(6,\), those of .*"):
        load_recordings(tmp_path)
    np.save(tmp_path / "99/one.npy", line)
    assert np.array_equal(load_recordings(tmp_path / "99"), [line, line])
    (tmp_path / "empty").mkdir()
    assert "a folder with recordings (" in refused(tmp_path / "empty", ArgumentError)


def test_rounding_is_undone_independently_in_every_file(tmp_path):
    for name in "ab":
        np.save(tmp_path / f"{name}.npy", np.full((7, 9), 5, np.uint8))
    first, second = load_recordings(tmp_path, unit=1)
    assert not torch.equal(first, second)


# --- numbers that are refused ---------------------------------------------------------------------


@pytest.mark.parametrize("unit", [0, -1, float("nan"), float("inf"), True, "255"])
def test_units_that_are_none(tmp_path, unit):
    with pytest.raises(ArgumentError, match="load_recordings: unit: expected a finite number"):
        load_recordings(tmp_path, unit=unit)


def test_units_of_floats(tmp_path, draw):
    path, array = tmp_path / "a.npy", draw(*SHAPE)
    np.save(path, array)
    assert np.allclose(load_recordings(path, unit=4)[:, 0], array / 4, rtol=1e-6)
    np.save(path, np.round(array * 100).astype(np.float16))
    assert "whole numbers of float16" in refused(path, ArgumentError)
    assert np.array_equal(load_recordings(path, unit=1)[:, 0].round(), np.round(array * 100))


def test_numbers_that_are_not_finite(tmp_path, draw):
    path, array = tmp_path / "a.npy", draw(*SHAPE)
    array[2, 3, 4], array[4, 0, 1] = np.nan, np.inf
    np.save(path, array)
    wanted = "2 of its 315 numbers are not finite in float32, the first at (2, 0, 3, 4)"
    assert wanted in refused(path)
    np.save(path, np.where(np.arange(9) < 4, 1.5, -1.5e300)[None].repeat(5, 0))
    assert "25 of its 45" in refused(path) and "first at (0, 4)" in refused(path)
    np.save(path, array + 1j)
    assert "complex64; save real and imaginary part as two channels" in refused(path)


@pytest.mark.parametrize("name", [n for n in SAVE if n not in ("a.tif", "a.TIFF")])
def test_no_recordings(tmp_path, name):
    try:
        SAVE[name](tmp_path / name, np.zeros((0, 7, 9), np.float32))
    except (ValueError, ZeroDivisionError):
        pytest.skip("nobody can write such a file")
    text = refused(tmp_path / name)
    assert "no recordings" in text or "no array of numbers" in text


# --- damaged files --------------------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


@pytest.mark.filterwarnings("ignore::UserWarning")  # of astropy and zarr
@pytest.mark.parametrize("name", SAVE)
def test_damaged_files(tmp_path, draw, name, seed):
    """Cut ones are refused or whole anyway; others give an error by name, or as many numbers."""
    path, array, dice = tmp_path / name, draw(*SHAPE), random.Random(seed)
    for index in range(20):
        shutil.rmtree(path, ignore_errors=True)
        SAVE[name](path, array)
        file = dice.choice(files_of(path))
        raw = bytearray(file.read_bytes())
        cut = index % 2 == 0
        if cut:
            del raw[dice.randrange(len(raw)) :]
        elif name.lower().endswith(("h5", "hdf5")):  # its library may crash: numbers alone
            start = raw.find(array.tobytes())
            raw[start + dice.randrange(array.nbytes)] ^= 1 << dice.randrange(8)
        else:
            for _ in range(dice.randint(1, 3)):
                raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        file.write_bytes(raw)
        try:
            found = load_recordings(path)
        except ArgumentError as error:
            assert str(path) in str(error)
        else:
            assert found.dtype == torch.float32 and bool(torch.isfinite(found).all())
            if cut or name in ("a.npz", "a.fits.gz"):  # these have check sums
                assert np.array_equal(found.reshape(SHAPE), array)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of astropy and zarr
@pytest.mark.parametrize("name", SAVE)
def test_garbage(tmp_path, name, seed):
    for content in (b"", b"\0" * 999, random.Random(seed).randbytes(5000)):
        if name == "a.zarr":
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "zarr.json").write_bytes(content)
        else:
            (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)


def test_missing_chunks_and_strips_are_not_zeros(tmp_path, draw):
    path = tmp_path / "a.zarr"
    _zarr(path, draw(*SHAPE))
    shutil.rmtree(path / "c" / "1")
    assert "2 of its 3 chunks" in refused(path)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, draw(7, 9), rowsperstrip=4, metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        lengths = file.pages[0].tags["StripByteCounts"]
        lengths.overwrite([lengths.value[0], 0])
    assert "it is cut" in refused(path)


def test_stated_sizes_are_checked_before_memory_is_taken(tmp_path, monkeypatch, draw):
    """A zip bomb, and shapes of which the file has nothing."""
    monkeypatch.setattr(pictures_module, "available_memory", lambda: 2**26)
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2048, 2048), }".ljust(117)
    head = b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header + b"\n"
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("a.npy", "w") as member:
            member.write(head)
            for _ in range(32):
                member.write(bytes(2**22))
    (tmp_path / "bomb.npz").write_bytes(bomb.getvalue())
    with zipfile.ZipFile(tmp_path / "liar.npz", "w") as archive:
        archive.writestr("a.npy", head)
    (tmp_path / "liar.npy").write_bytes(head)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("a", (2**14, 2**12, 2**12), "f4", chunks=(1, 64, 64))
    zarr.create_array(tmp_path / "a.zarr", shape=(2**14, 2**12, 2**12), dtype="f4")
    tracemalloc.start()
    for name in ("bomb.npz", "a.h5", "a.zarr"):
        assert "of which at most half is used; give fewer" in refused(tmp_path / name)
    for name in ("liar.npz", "liar.npy"):
        assert "it is cut" in refused(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


def test_a_folder_that_memory_does_not_hold(tmp_path, monkeypatch, draw):
    for name in "abcd":
        np.save(tmp_path / f"{name}.npy", draw(64, 32, 32))
    monkeypatch.setattr(pictures_module, "available_memory", lambda: 2 * 3 * 4 * 2**16)
    assert load_recordings(tmp_path / "a.npy").shape == (64, 1, 32, 32)
    refused(tmp_path)


# --- places and packages --------------------------------------------------------------------------


def test_places_that_are_none(tmp_path):
    assert "its name ends in none of .npy" in refused(Path(__file__))
    os.mkfifo(tmp_path / "pipe.npy")
    assert "it is a pipe" in refused(tmp_path / "pipe.npy")
    (tmp_path / "a.zarr").write_text("")
    assert "it is a file, not a folder" in refused(tmp_path / "a.zarr")
    for name in ("none", "none.npy", "none.zarr", "a\0b.h5"):
        refused(tmp_path / name)
    with pytest.raises(ArgumentError, match="no name"):
        load_recordings("")
    with pytest.raises(ArgumentError, match="dataset: expected a name"):
        load_recordings(tmp_path, dataset=1)


@pytest.mark.parametrize("beside", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize(
    "name,module",
    [("a.h5", "h5py"), ("a.zarr", "zarr"), ("a.tif", "tifffile"), ("a.fits", "astropy.io.fits")],
)
def test_missing_packages(tmp_path, monkeypatch, draw, name, module, beside):
    SAVE[name](tmp_path / name, draw(*SHAPE))
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'flowinv_fast\[recordings\]'") as caught:
        load_recordings(tmp_path if beside else tmp_path / name)
    assert f"needs {module.partition('.')[0]}" in str(caught.value)


def test_rounding_does_not_cancel_in_differences(tmp_path):
    """Nor is a clean signal dithered where it shall not be."""
    a = np.random.default_rng().integers(90, 110, (20, 1, 8, 8)).astype(np.uint16)
    np.save(tmp_path / "a.npy", a)
    np.save(tmp_path / "b.npy", a + 1)
    first, second = (load_recordings(tmp_path / f"{n}.npy", unit=1) for n in "ab")
    gap = second - first - 1
    assert gap.std() > 0.3 and torch.equal(first, load_recordings(tmp_path / "a.npy", unit=1))
    plain = load_recordings(tmp_path / "a.npy", unit=2, dither=False)
    assert np.array_equal(plain.numpy(), a / 2)
