"""Reading IDX files, arrays and folders; writing PNG files."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from flowinv_fast._base.errors import ArgumentError
from flowinv_fast.data import image_grid, load_images, save_png


def idx(images: np.ndarray) -> bytes:
    header = b"\x00\x00\x08\x03" + np.array(images.shape, ">u4").tobytes()
    return header + images.tobytes()


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng().integers(0, 256, (5, 7, 9), dtype=np.uint8)


@pytest.mark.parametrize("compress", [False, True])
def test_idx(tmp_path, images, compress):
    path = tmp_path / "images-idx3-ubyte"
    path.write_bytes(gzip.compress(idx(images)) if compress else idx(images))
    assert torch.equal(load_images(path), torch.from_numpy(images)[:, None])


@pytest.mark.parametrize("cut", [3, 10, 40])
def test_truncated_idx(tmp_path, images, cut):
    path = tmp_path / "images"
    path.write_bytes(idx(images)[:-cut] if cut != 10 else idx(images)[:10])
    with pytest.raises(ArgumentError, match="path"):
        load_images(path)


def test_truncated_gzip(tmp_path, images):
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx(images))[:-20])
    with pytest.raises(ArgumentError, match="path"):
        load_images(path)


def test_npy_layouts(tmp_path, images):
    colour = np.random.default_rng().integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    np.save(tmp_path / "grey.npy", images)
    np.save(tmp_path / "last.npy", colour)
    np.save(tmp_path / "first.npy", colour.transpose(0, 3, 1, 2))
    np.save(tmp_path / "float.npy", images / 255)
    assert load_images(tmp_path / "grey.npy").shape == (5, 1, 7, 9)
    assert torch.equal(load_images(tmp_path / "last.npy"), load_images(tmp_path / "first.npy"))
    with pytest.raises(ArgumentError, match="float64"):
        load_images(tmp_path / "float.npy")


def test_npy_never_unpickles(tmp_path):
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ArgumentError, match="path"):
        load_images(tmp_path / "object.npy")


def test_folder(tmp_path):
    for i, size in enumerate([(40, 30), (30, 40), (64, 64)]):
        Image.new("RGB", size, (10 * i, 20, 30)).save(tmp_path / f"{i}.png")
    loaded = load_images(tmp_path, (3, 16, 16))
    assert loaded.shape == (3, 3, 16, 16)
    assert loaded[:, 0, 0, 0].tolist() == [0, 10, 20]
    assert load_images(tmp_path, (1, 8, 4)).shape == (3, 1, 8, 4)
    (tmp_path / "9.png").write_bytes(b"not a picture")
    with pytest.raises(ArgumentError, match="9.png"):
        load_images(tmp_path, (3, 16, 16))


def test_missing_and_empty(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ArgumentError, match="path"):
            load_images(path)


def test_png_round_trip(tmp_path):
    image = torch.rand(3, 5, 6)
    save_png(image, tmp_path / "a.png")
    again = load_images(tmp_path, (3, 5, 6))[0].float() / 255
    assert (again - image).abs().max() <= 0.5 / 255 + 1e-6
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_image_grid():
    grid = image_grid(torch.zeros(5, 1, 2, 3), columns=3)
    assert grid.shape == (1, 2 * 3 + 1, 3 * 4 + 1)
    assert grid.sum() == grid.numel() - 5 * 6
