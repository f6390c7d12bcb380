"""IDX and .npy files: exactly the bytes that they state, or one error; bombs are not unpacked."""

from __future__ import annotations

import gzip
import io
import os
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowinv_fast._base.errors import DataError
from flowinv_fast.data import load_images

SHAPE = (5, 7, 9)


def refused(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_images(path)
    assert caught.value.argument == "path" and str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def images(seed) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, SHAPE, dtype=np.uint8)


def idx(images: np.ndarray, shape: tuple = SHAPE) -> bytes:
    return b"\x00\x00\x08\x03" + struct.pack(">3I", *shape) + images.tobytes()


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_idx_of_another_length_than_it_states(tmp_path, images, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(idx(images) + b"\0"))
    assert "goes on after the 315 bytes" in refused(path)
    path.write_bytes(pack(idx(images)[:-1]))
    assert "it is cut" in refused(path)
    for shape in ((2**32 - 1,) * 3, (2**20, 2**10, 2**10), (0, 7, 9), (5, 0, 9)):
        path.write_bytes(pack(idx(images, shape)))
        assert "it is cut" in refused(path) or "no images" in refused(path)
    path.write_bytes(pack(b""))
    assert "neither an IDX" in refused(path)


def test_packed_files_are_unpacked_to_the_stated_size_only(tmp_path, images):
    path = tmp_path / "bomb"
    path.write_bytes(gzip.compress(idx(images) + bytes(2**26), 1))
    tracemalloc.start()
    assert "goes on" in refused(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_packed_files_that_are_damaged(tmp_path, images):
    path, good = tmp_path / "a.gz", gzip.compress(idx(images))
    path.write_bytes(good + b"more")
    refused(path)
    path.write_bytes(good[:-5] + bytes([good[-5] ^ 1]) + good[-4:])  # the check sum
    refused(path)
    middle = len(good) // 2
    path.write_bytes(good[:middle] + bytes(8) + good[middle + 8 :])  # zlib.error
    refused(path)


def npy(array: np.ndarray, tail: bytes = b"") -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue() + tail


def header(text: str, data: bytes = b"") -> bytes:
    text = text.ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode() + data


def test_npy_in_both_orders(tmp_path, images):
    path = tmp_path / "a.npy"
    colour = np.random.default_rng(images[0, 0, 0]).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    for array in (images, np.asfortranarray(images), images[::-1]):
        np.save(path, array)
        assert np.array_equal(load_images(path)[:, 0], array)
    for array in (colour, np.asfortranarray(colour)):
        np.save(path, array)
        assert np.array_equal(load_images(path), colour.transpose(0, 3, 1, 2))
    path.write_bytes(header("{'descr': '>u1', 'fortran_order': False, 'shape': (1, 1, 2)}", b"ab"))
    assert load_images(path).flatten().tolist() == [97, 98]
    load_images(path).fill_(0)  # memory of its own


def test_npy_that_is_refused(tmp_path, images):
    path = tmp_path / "a.npy"
    form = "{{'descr': '|u1', 'fortran_order': False, 'shape': {}}}".format
    files = {
        "goes on after": npy(images, b"\0"),
        "it is cut": npy(images)[:-1],
        "takes 1,000,000,000,000 bytes": header(form((10**4,) * 3), b"ab"),
        "no images": npy(images[:0]),
        "shape is (-1": header(form((-1, 2, -3)), b"abcdef"),
        "of shape (5, 7)": npy(images[..., 0]),
        "are object": npy(images.astype(object)),
        "are >u2": npy(images.astype(">u2")),
        "are float64": npy(images / 255),
        "magic": b"PK\x03\x04" + bytes(99),
        "version (3, 0)": b"\x93NUMPY\x03\x00" + struct.pack("<I", 9) + bytes(9),
        "EOF": b"\x93NUMPY\x01\x00" + struct.pack("<H", 999) + b"{",
        "multi-line": header("(" * 110),
    }
    for word, content in files.items():
        path.write_bytes(content)
        assert word in refused(path)


def test_places_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    assert "it is a pipe" in refused(tmp_path / "pipe.npy")
    assert "it is a device" in refused(Path("/dev/zero"))
    (tmp_path / "folder.npy").mkdir()
    for name in ("a\0b", "a" * 300, "none"):
        refused(tmp_path / name)


CONTENTS = {"a.gz": lambda a: gzip.compress(idx(a)), "a": idx, "a.npy": npy}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(sorted(CONTENTS)), data=st.data())
def test_damaged_bytes(tmp_path_factory, name, data):
    raw = bytearray(CONTENTS[name](np.arange(315, dtype=np.uint8).reshape(SHAPE)))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(150, len(raw) - 1)))
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(0), st.integers(0, len(raw))))
    bad = tmp_path_factory.getbasetemp() / name
    bad.write_bytes(bytes(raw[: len(raw) - cut]))
    try:
        found = load_images(bad)
    except DataError as error:
        assert str(bad) in str(error)
    else:
        assert found.dtype == torch.uint8 and found.numel() == 315
