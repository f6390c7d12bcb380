"""Which images are trained on and which are held out, from files and folders."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import assert_names
from PIL import Image

from flowinv_fast.data import Crops, Stored
from flowinv_fast.training import split
from flowinv_fast.training.split import split_folder, training_images


def make_pictures(folder, levels, size=(24, 20)) -> None:
    folder.mkdir(parents=True)
    for i, level in enumerate(levels):
        Image.new("L", size, level).save(folder / f"{i}.png")


@pytest.mark.parametrize("part", ["test", "val", "valid", "validation"])
def test_a_folder_with_parts_is_split_so(tmp_path, part):
    (tmp_path / "train").mkdir()
    assert split_folder(tmp_path) == (tmp_path, None)
    (tmp_path / part).mkdir()
    assert split_folder(tmp_path) == (tmp_path / "train", tmp_path / part)
    assert split_folder(tmp_path, tmp_path / "own") == (tmp_path / "train", tmp_path / "own")
    assert split_folder(tmp_path / part, tmp_path) == (tmp_path / part, tmp_path)


def test_the_last_part_is_held_out_or_none(tmp_path):
    images = np.random.default_rng().integers(0, 256, (20, 6, 5), np.uint8)
    np.save(tmp_path / "x.npy", images)
    source, held_out = training_images(tmp_path / "x.npy", fraction=0.15, flips=True, seed=4)
    assert isinstance(source, Stored) and (source.flips, source.seed) == (True, 4)
    assert source.shape == (1, 6, 5)
    assert torch.equal(torch.cat([source.images, held_out])[:, 0], torch.from_numpy(images))
    assert len(held_out) == 3
    source, held_out = training_images(tmp_path / "x.npy")
    assert len(source) == 20 and held_out is None
    for fraction in (0, 1, -0.1):
        run = lambda fraction=fraction: training_images(tmp_path / "x.npy", fraction=fraction)
        assert_names("--held-out-fraction", run)


def test_held_out_images_take_the_size_of_the_others(tmp_path):
    make_pictures(tmp_path / "train", [10, 20, 30])
    make_pictures(tmp_path / "test", [200], (31, 17))
    source, held_out = training_images(tmp_path, size=(1, 8, 8), fraction=0.5)
    assert len(source) == 3 and held_out.shape == (1, 1, 8, 8) and (held_out == 200).all()
    source, held_out = training_images(tmp_path)
    assert source.shape == (3, 20, 24) and held_out.shape == (1, 3, 20, 24)


def test_patches_are_of_a_strip_or_of_other_pictures(tmp_path, monkeypatch):
    """Full size: a crop of resized pictures would not show every level of a step."""
    monkeypatch.setattr(split, "HELD_OUT_CROPS", 7)
    (tmp_path / "train").mkdir()
    for i in range(5):
        column = np.repeat(np.r_[np.full(25, 10 + i), np.full(5, 200)].astype(np.uint8), 40)
        Image.fromarray(column.reshape(30, 40)).save(tmp_path / "train" / f"{i}.png")
    options = {"size": (1, 5, 5), "patches": True, "fraction": 0.1, "seed": 3}
    source, held_out = training_images(tmp_path / "train", **options)
    assert source.levels == 5 and set(source.batch(0, 99).unique().tolist()) == set(range(10, 15))
    assert held_out.shape == (7, 1, 5, 5) and (held_out == 200).all()
    make_pictures(tmp_path / "test", [90])
    source, held_out = training_images(tmp_path, **options)
    assert source.batch(0, 99).max() == 200 and (held_out == 90).all()


def test_crops_are_of_other_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(split, "HELD_OUT_CROPS", 7)
    make_pictures(tmp_path / "train", [10, 20])
    options = {"size": (3, 8, 8), "crops": True, "seed": 3}
    assert_names("--held-out", lambda: training_images(tmp_path / "train", **options))
    make_pictures(tmp_path / "test", [200])
    source, held_out = training_images(tmp_path, **options)
    assert isinstance(source, Crops) and source.seed == 3 and source.batch(0, 9).max() <= 20
    assert held_out.shape == (7, 3, 8, 8) and (held_out == 200).all()
