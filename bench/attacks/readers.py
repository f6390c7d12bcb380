"""The kinds of files that mutants.py attacks, and independent readings of them."""

from __future__ import annotations

import ast
import functools
import gzip
import io
import struct
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import flowinv_fast as ff
from flowinv_fast import generators
from flowinv_fast.data import load_images
from flowinv_fast.experiments.cells import load_arrays, save_arrays
from flowinv_fast.experiments.config import ReproduceConfig

from .engine import Wrong
from .weights import (
    NUMBERS,
    check_reconstruction,
    check_weights,
    edit_weights,
    flow_files,
    generator_files,
    reads,
    results,
    saved,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# --- images ---------------------------------------------------------------------------------------


def idx(data: bytes) -> np.ndarray:
    """Images (N, 1, H, W) of an IDX file, gzipped or not; ValueError where it is none."""
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError from error
    if data[:4] != b"\x00\x00\x08\x03" or len(data) < 16:
        raise ValueError("no IDX")
    sizes = struct.unpack(">3I", data[4:16])
    if len(data) - 16 != sizes[0] * sizes[1] * sizes[2] or 0 in sizes:
        raise ValueError("another length")
    return np.frombuffer(data, np.uint8, offset=16).reshape(sizes[0], 1, *sizes[1:])


def npy(data: bytes) -> np.ndarray:
    """The array of a .npy file, by its specification; ValueError where it is none."""
    if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\x01\x00", b"\x02\x00", b"\x03\x00"):
        raise ValueError("no .npy")
    wide = data[6] > 1
    (size,) = struct.unpack("<I" if wide else "<H", data[8 : 12 if wide else 10])
    start = (12 if wide else 10) + size
    text = data[start - size : start].decode("utf8" if data[6] == 3 else "l1")
    header = ast.literal_eval(text.strip())
    dtype, shape = np.dtype(header["descr"]), header["shape"]
    count = int(np.prod(shape, dtype=object))
    if dtype.hasobject or len(data) - start < count * dtype.itemsize:
        raise ValueError("too short")
    flat = np.frombuffer(data, dtype, count, start)
    return flat.reshape(shape, order="F" if header["fortran_order"] else "C")


def npy_images(data: bytes) -> np.ndarray:
    """uint8 images (N, C, H, W) of a .npy file; ValueError where it holds none."""
    try:
        array = npy(data)
    except Exception as error:
        raise ValueError from error
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or 0 in array.shape:
        raise ValueError("no images")
    if array.ndim == 3:
        array = array[:, None]
    elif array.shape[-1] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1] not in (1, 3):
        raise ValueError("no images")
    return np.ascontiguousarray(array)


def edit_sizes(data: bytes, provider: Any) -> bytes:
    """Another number, of one to eight bytes and either order, somewhere near the beginning."""
    form = provider.PickValueInList(["B", ">H", "<H", ">I", "<I", "<Q"])
    size = struct.calcsize(form)
    at = provider.ConsumeIntInRange(0, max(0, min(len(data), 160) - size))
    number = provider.PickValueInList(list(NUMBERS)) % 256**size
    return data[:at] + struct.pack(form, number) + data[at + size :]


def edit_gzip(data: bytes, provider: Any) -> bytes:
    """A change below the compression, or of the sizes."""
    if data[:2] == b"\x1f\x8b" and provider.ConsumeBool():
        try:
            return gzip.compress(edit_sizes(gzip.decompress(data), provider), 1)
        except (OSError, EOFError, zlib.error):
            return data
    return edit_sizes(data, provider)


@functools.cache
def idx_files() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    plain = b"\x00\x00\x08\x03" + struct.pack(">3I", 3, 4, 5) + pixels.tobytes()
    empty = b"\x00\x00\x08\x03" + struct.pack(">3I", 1, 1, 1) + b"\x07"
    return [plain, gzip.compress(plain), empty, gzip.compress(bytes(200_000))[:400] + plain]


def _valid_only(files: list[bytes], valid: Any) -> list[bytes]:
    return [data for data in files if valid(data)]


@functools.cache
def npy_files() -> list[bytes]:
    random = np.random.default_rng(0)
    files = []
    for shape in ((2, 4, 5), (2, 1, 4, 5), (2, 4, 5, 3)):
        for order in "CF":
            buffer = io.BytesIO()
            array = random.integers(0, 256, shape, np.uint8)
            np.save(buffer, np.asarray(array, order=order))
            files.append(buffer.getvalue())
    return files


@functools.cache
def npz_files() -> list[bytes]:
    random, files = np.random.default_rng(0), []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.npz"
        for shape in ((2, 1, 4, 4), (3,)):
            arrays = {"x": random.random(shape, np.float32), "y": np.arange(4)}
            save_arrays(path, arrays)
            files.append(path.read_bytes())
            np.savez(path, **arrays)
            files.append(path.read_bytes())
    return files


def check_npz(data: bytes, found: dict[str, np.ndarray]) -> None:
    """Every array is what the member of the archive says, its checksum included."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [n.removesuffix(".npy") for n in archive.namelist()]
        reads(sorted(set(names)), sorted(found), "the names of the arrays")
        for name in archive.namelist():
            reads(npy(archive.read(name)), found[name.removesuffix(".npy")], f"array {name}")


def check_images(parse: Any) -> Any:
    """The tensor is what this reading says."""

    def check(data: bytes, found: torch.Tensor) -> None:
        try:
            wanted = parse(data)
        except ValueError as error:
            raise Wrong("a damaged file taken in silence: an independent reading fails") from error
        if found.dtype != torch.uint8 or type(found) is not torch.Tensor:
            raise Wrong(f"another type: {found.dtype}")
        reads(wanted, found.numpy(), "the images")

    return check


def valid(parse: Any) -> Any:
    """Whether this reading finds nothing wrong."""

    def must(data: bytes) -> bool:
        try:
            return parse(data).size > 0
        except ValueError:
            return False

    return must


@functools.cache
def picture_files() -> list[bytes]:
    random, files = np.random.default_rng(0), []
    grey, colour = (random.integers(0, 256, s, np.uint8) for s in ((6, 5), (6, 5, 3)))
    plain = Image.fromarray(grey), Image.fromarray(colour)
    deep = Image.fromarray(random.integers(0, 65536, (6, 5), np.uint16))
    clear = plain[1].convert("RGBA")  # its alpha says opaque
    palette, black = plain[1].convert("P", colors=8), plain[0].convert("1")
    formats = {
        "PNG": (*plain, deep, clear, palette, black),
        "JPEG": plain,
        "BMP": (*plain, palette),
    }
    formats |= {"GIF": (palette,), "TIFF": (*plain, deep), "WEBP": (plain[1],), "PPM": plain}
    for name, pictures in formats.items():
        for picture in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, format=name)
            files.append(buffer.getvalue())
    turned, buffer = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6
    plain[1].save(buffer, format="JPEG", exif=turned)
    return [*files, buffer.getvalue()]


def check_picture(data: bytes, found: torch.Tensor) -> None:
    """One picture in 8 bits of three channels; a plain one unturned has Pillow's own pixels."""
    if found.dtype != torch.uint8 or found.dim() != 4 or tuple(found.shape[:2]) != (1, 3):
        raise Wrong(f"another shape: {found.dtype} {tuple(found.shape)}")
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        if picture.getexif().get(0x0112, 1) != 1 or "transparency" in picture.info:
            return
        if picture.mode not in ("1", "L", "P", "RGB"):
            return
        wanted = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None]
    reads(np.ascontiguousarray(wanted), found.numpy(), "the picture")


def edit_picture(data: bytes, provider: Any) -> bytes:
    """Another number at the beginning; in a PNG the checksum of its header is made good."""
    data = edit_sizes(data, provider)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and provider.ConsumeBool():
        check = struct.pack(">I", zlib.crc32(data[12:29]))
        data = data[:29] + check + data[33:]
    return data


# --- configurations -------------------------------------------------------------------------------


@functools.cache
def toml_files() -> list[bytes]:
    configs = [
        ReproduceConfig(),
        ReproduceConfig(("denoise-radial",), images=2, tuning_images=1, steps=3, quick=True),
        ReproduceConfig(seed=7, flow="mnist-28", restarts=3),
    ]
    return [saved(config.save) for config in configs] + [b"", b"steps = 3\nimages = 4\n"]


def edit_toml(data: bytes, provider: Any) -> bytes:
    """Another value, or name, on some line."""
    lines = data.split(b"\n")
    at = provider.ConsumeIntInRange(0, len(lines) - 1)
    name, equals, _ = lines[at].partition(b" = ")
    values = [
        b"-1",
        b"0",
        b"1.5",
        b"nan",
        b"inf",
        b"true",
        b'""',
        b"[]",
        b"{}",
        b"99999999999999999",
    ]
    values += [b'"x"', b"[1, 2]", b"1979-05-27", b"0x10", b"'a'", b'["denoise-radial"]', b"\xff"]
    how = provider.ConsumeIntInRange(0, 4)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.append(lines[at])
    elif how == 2:
        lines[at] = name + b"s" + equals + b"1"
    else:
        lines[at] = name + b" = " + provider.PickValueInList(values)
    return b"\n".join(lines)


def universal(data: bytes) -> str:
    """Text with any line ends, as open() reads it."""
    return data.decode().replace("\r\n", "\n").replace("\r", "\n")


def check_toml(data: bytes, found: ReproduceConfig) -> None:
    """The configuration is the file's values and, for the rest, the defaults."""
    wanted = tomllib.loads(universal(data))
    for name, default in vars(ReproduceConfig()).items():
        value = wanted.pop(name, default)
        value = tuple(value) if isinstance(value, list) else value
        if type(getattr(found, name)) is not type(value):
            raise Wrong(f"another type of {name}: {getattr(found, name)!r}")
        reads(value, getattr(found, name), name)
    reads({}, wanted, "unknown keys")


def toml_is_valid(data: bytes) -> bool:
    """Whether it says the same as one of the files that were written."""
    try:
        found = repr(tomllib.loads(universal(data)))
    except (ValueError, RecursionError):
        return False
    return any(found == repr(tomllib.loads(seed.decode())) for seed in toml_files())


def never(data: bytes) -> bool:
    """Weights and pictures: a mutant may always be refused, but for an unchanged one."""
    return any(data in seeds() for seeds in (flow_files, generator_files, picture_files, npz_files))


KINDS: dict[str, dict[str, Any]] = {
    "flows": {
        "title": "weights of flows",
        "name": "mutant.safetensors",
        "seeds": flow_files,
        "load": ff.load_flow,
        "check": check_weights,
        "must": never,
        "edit": edit_weights,
        "rate": 250.0,
        "count": 70_000,
    },
    "generators": {
        "title": "weights of generators",
        "name": "mutant.safetensors",
        "seeds": generator_files,
        "load": generators.load_generator,
        "check": check_weights,
        "must": never,
        "edit": edit_weights,
        "rate": 350.0,
        "count": 20_000,
    },
    "results": {
        "title": "saved reconstructions",
        "name": "mutant.safetensors",
        "seeds": lambda: [saved(found.save) for found in results()],
        "load": ff.Reconstruction.load,
        "check": check_reconstruction,
        "must": lambda data: False,
        "edit": edit_weights,
        "rate": 1000.0,
        "count": 10_000,
    },
    "pictures": {
        "title": "pictures",
        "name": "pictures/mutant.png",
        "seeds": picture_files,
        "load": load_images,
        "check": check_picture,
        "must": never,
        "edit": edit_picture,
        "megabytes": 600,  # Pillow refuses more than 179 million pixels
        "rate": 400.0,
    },
    "idx": {
        "title": "IDX and IDX.gz",
        "name": "mutant.idx",
        "seeds": lambda: _valid_only(idx_files(), valid(idx)),
        "load": load_images,
        "check": check_images(idx),
        "must": valid(idx),
        "edit": edit_gzip,
        "rate": 1500.0,
    },
    "npy": {
        "title": "NPY",
        "name": "mutant.npy",
        "seeds": npy_files,
        "load": load_images,
        "check": check_images(npy_images),
        "must": lambda data: data in npy_files(),
        "edit": edit_sizes,
        "rate": 1500.0,
    },
    "npz": {
        "title": "NPZ",
        "name": "mutant.npz",
        "seeds": npz_files,
        "load": load_arrays,
        "check": check_npz,
        "must": never,
        "edit": edit_sizes,
        "rate": 600.0,
    },
    "toml": {
        "title": "TOML configurations",
        "name": "mutant.toml",
        "seeds": toml_files,
        "load": ReproduceConfig.load,
        "check": check_toml,
        "must": toml_is_valid,
        "edit": edit_toml,
        "rate": 1000.0,
    },
}
