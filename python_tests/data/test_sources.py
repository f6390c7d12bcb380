"""Sources of training images: stored ones in an order, crops as exact windows of photographs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import assert_names
from PIL import Image

from flowinv_fast.data import Crops, Stored, load_images
from flowinv_fast.data.pictures import open_pictures

SIZES = [(23, 17), (14, 30), (16, 16)]  # of pictures, width first
SIZE, SIDES = (3, 6, 9), (10, 14)


def picture(width, height, mode="RGB") -> Image.Image:
    """Noise: no two windows are alike."""
    channels = [3] * (mode == "RGB")
    pixels = torch.randint(0, 256, (height, width, *channels), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy(), mode)


@pytest.fixture
def pictures(tmp_path) -> list:
    """Three pictures, one of them deeper in the folder."""
    made = [picture(*size) for size in SIZES]
    (tmp_path / "more").mkdir()
    for name, one in zip(("1.png", "2.png", "more/3.png"), made):
        one.save(tmp_path / name)
    return made


def windows(one, size, side) -> torch.Tensor:
    """Every window of a picture resized to this shorter side, (rows, columns, C, H, W)."""
    factor = side / min(one.size)
    resized = one.resize([round(n * factor) for n in one.size], Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(resized)).view(resized.height, resized.width, -1)
    assert min(resized.size) == side
    unfolded = pixels.unfold(0, size[1], 1).unfold(1, size[2], 1)
    assert unfolded.shape[2:] == size
    return unfolded


def all_windows(pictures, size, sides) -> dict:
    """Bytes of each window and its mirror to (level, how many windows and mirrors it has)."""
    found = {}
    levels = [(p, side) for p in pictures for side in sides if side <= min(p.size)]
    for level, (one, side) in enumerate(levels):
        cut = windows(one, size, side).reshape(-1, *size)
        for window in [*cut, *cut.flip(3)]:
            found[window.contiguous().numpy().tobytes()] = level, 2 * len(cut)
    return found


def keys(images) -> list:
    return [image.contiguous().numpy().tobytes() for image in images]


def test_every_crop_is_a_window_or_its_mirror(tmp_path, pictures):
    crops = Crops(tmp_path, SIZE, SIDES)
    batch = crops.batch(3, 200)
    assert batch.dtype == torch.uint8 and batch.shape == (200, *SIZE) and batch.is_contiguous()
    windows = all_windows(pictures, SIZE, SIDES)
    assert {windows[key][0] for key in keys(batch)} == set(range(6))
    straight = Crops(tmp_path, SIZE, SIDES, flips=False).batch(3, 200)
    mirrored = torch.tensor([not torch.equal(a, b) for a, b in zip(batch, straight)])
    assert torch.equal(batch[mirrored], straight[mirrored].flip(3))
    assert 60 < mirrored.sum() < 140


def test_crops_are_drawn_uniformly(tmp_path, pictures):
    """Chi-square over all windows and mirrors of all levels; the bound fails once in 10^7."""
    count, size = 30_000, (3, 9, 9)
    windows = all_windows(pictures, size, SIDES)
    levels = len({level for level, _ in windows.values()})
    hits = dict.fromkeys(windows, 0)
    for step in range(3):
        for key in keys(Crops(tmp_path, size, SIDES).batch(step, count // 3)):
            hits[key] += 1
    expected = np.array([count / levels / n for _, n in windows.values()])
    chi_square = ((np.array(list(hits.values())) - expected) ** 2 / expected).sum()
    assert expected.min() > 5 and abs(expected.sum() - count) < 1e-6
    assert chi_square < scipy.stats.chi2.isf(1e-7, len(windows) - 1)


def test_seed_and_step_fix_a_batch(tmp_path, pictures):
    crops = Crops(tmp_path, SIZE, SIDES, seed=5)
    batch = crops.batch(7, 16)
    assert torch.equal(batch, Crops(tmp_path, SIZE, SIDES, seed=5).batch(7, 16))
    assert not torch.equal(batch, crops.batch(8, 16))
    assert not torch.equal(batch, Crops(tmp_path, SIZE, SIDES, seed=6).batch(7, 16))
    others = {key for step in range(8, 12) for key in keys(crops.batch(step, 16))}
    assert len(others) > 40, "steps repeat one another"


def test_parts_of_a_batch_of_crops(tmp_path, pictures):
    crops = Crops(tmp_path, SIZE, SIDES)
    whole = crops.batch(2, 12)
    for part in (slice(0, 4), slice(4, 8), slice(8, 12), slice(3, 3)):
        assert torch.equal(crops.batch(2, 12, part), whole[part])


def test_taken_crops_are_fixed_by_their_own_seed(tmp_path, pictures):
    crops = Crops(tmp_path, SIZE, SIDES, seed=5)
    taken = crops.take(20, 3)
    assert torch.equal(taken, Crops(tmp_path, SIZE, SIDES, seed=9).take(20, 3))
    assert torch.equal(taken[:8], crops.take(20, 3)[:8]) and crops.seed == 5
    assert not torch.equal(taken, crops.take(20, 4))
    assert set(keys(taken)) <= set(all_windows(pictures, SIZE, SIDES))


def test_gray_crops(tmp_path, pictures):
    gray = [one.convert("L") for one in pictures]
    batch = Crops(tmp_path, (1, 6, 9), SIDES).batch(0, 50)
    assert set(keys(batch)) <= set(all_windows(gray, (1, 6, 9), SIDES))


def test_pictures_are_never_enlarged(tmp_path, pictures):
    """Sides above a picture's own are left out: 14, 16 and 17 pixels against 14 and 17."""
    batch = Crops(tmp_path, (3, 14, 14), (14, 17)).batch(0, 400)
    windows = all_windows(pictures, (3, 14, 14), (14, 17))
    assert {windows[key][0] for key in keys(batch)} == {0, 1, 2, 3}


def test_crops_of_the_pictures_as_they_are(tmp_path, pictures):
    """And of two parts that have no row in common: the lowest has a crop's rows at least."""
    crops = Crops(tmp_path, SIZE, (), flips=False)
    rows = [np.array(one).transpose(2, 0, 1) for one in pictures]
    cut = [torch.from_numpy(r).unfold(1, 6, 1).unfold(2, 9, 1) for r in rows]

    def of(tops):
        return {
            w.contiguous().numpy().tobytes()
            for c, part in zip(cut, tops)
            for w in c[:, part].permute(1, 2, 0, 3, 4).reshape(-1, *SIZE)
        }

    assert set(keys(crops.batch(0, 400))) <= of([slice(None)] * 3)
    above, below = crops.parted(0.3)  # of 17, 30 and 16 rows: 6, 9 and 6
    assert set(keys(above.batch(0, 400))) <= of([slice(0, h - n - 5) for h, n in HELD])
    assert set(keys(below.take(400, 1))) <= of([slice(h - n, None) for h, n in HELD])
    assert len({above.describe()["sha256"], below.describe()["sha256"]}) == 2


HELD = [(17, 6), (30, 9), (16, 6)]


def test_what_crops_refuse(tmp_path, pictures):
    assert "14 x 30" in assert_names("folder", lambda: Crops(tmp_path, (3, 15, 15), (15, 17)))
    for sides in ((8,), (12, 8), (10.5,), (True,)):
        assert_names("sides", lambda sides=sides: Crops(tmp_path, SIZE, sides))
    assert "14 x 30" in assert_names("folder", lambda: Crops(tmp_path, (3, 15, 15), ()))
    for share in (0, 1, 0.8):
        assert_names("share", lambda share=share: Crops(tmp_path, SIZE, ()).parted(share))
    for size in ((2, 6, 9), (3, 6), (3, 0, 9)):
        assert_names("size", lambda size=size: Crops(tmp_path, size, SIDES))
    assert_names("epoch", lambda: Crops(tmp_path, SIZE, SIDES, epoch=0))
    (tmp_path / "none").mkdir()
    assert_names("folder", lambda: Crops(tmp_path / "none", SIZE, SIDES))
    (tmp_path / "2.png").write_bytes(b"no picture")
    assert "2.png" in assert_names("folder", lambda: Crops(tmp_path, SIZE, SIDES))


def numbered(count, channels=1) -> torch.Tensor:
    """Images that tell which one they are by their first pixel, and are no mirrors of others."""
    images = torch.randint(0, 256, (count, channels, 4, 5), dtype=torch.uint8)
    images[:, 0, 0, 0] = images[:, 0, 0, 4] = torch.arange(count, dtype=torch.uint8)
    return images


def order(source, epoch, size) -> list:
    steps = len(source) // size
    batches = [source.batch(epoch * steps + i, size) for i in range(steps)]
    return torch.cat(batches)[:, 0, 0, 0].tolist()


def test_stored_images_come_once_an_epoch():
    images = numbered(60)
    source = Stored(images, seed=3)
    first, second = order(source, 0, 6), order(source, 1, 6)
    assert sorted(first) == sorted(second) == list(range(60)) and first != second
    assert first == order(Stored(images, seed=3), 0, 6) == order(source, 0, 6)
    assert first != order(Stored(images, seed=4), 0, 6)
    assert order(source, 0, 7) == first[:56], "what is left over waits for the next epoch"
    assert torch.equal(source.batch(0, 60), images[torch.tensor(first)])


@pytest.mark.parametrize("flips", [False, True])
def test_parts_of_a_batch_of_stored_images(flips):
    source = Stored(numbered(40, 3), flips, seed=1)
    whole = source.batch(5, 12)
    for part in (slice(0, 4), slice(4, 8), slice(8, 12)):
        assert torch.equal(source.batch(5, 12, part), whole[part])


@pytest.mark.parametrize("flips", [False, True])
def test_a_batch_of_more_images_than_there_are(flips):
    images = Stored(numbered(5), flips).batch(3, 8)
    assert sorted(images[:, 0, 0, 0].tolist()) == list(range(5))


def test_half_of_the_stored_images_are_mirrored():
    images = numbered(200)
    source, mirrored = Stored(images, flips=True, seed=8), []
    for epoch in range(2):
        batch = source.batch(epoch, 200)
        assert torch.equal(batch, Stored(images, flips=True, seed=8).batch(epoch, 200))
        batch = batch[batch[:, 0, 0, 0].argsort()]
        flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(batch, images)])
        assert torch.equal(batch[flipped], images[flipped].flip(3))
        assert 60 < flipped.sum() < 140
        mirrored.append(flipped)
    assert not torch.equal(*mirrored)


@pytest.mark.parametrize(
    "images",
    [
        torch.rand(4, 1, 8, 8).double(),
        torch.zeros(4, 8, 8).byte(),
        torch.zeros(0, 1, 8, 8).byte(),
        [1, 2],
    ],
    ids=["doubles", "rank", "none", "list"],
)
def test_what_stored_refuses(images):
    assert_names("images", lambda: Stored(images))


def test_pictures_come_by_number(tmp_path):
    names = ["2.png", "10.png", "a/1.png", "a/01.png", "a/9.jpg", "a/b10c2.png", "a/b10c10.png"]
    (tmp_path / "a").mkdir()
    for i, name in enumerate(reversed(names)):
        Image.new("L", (4, 4), 20 * i).save(tmp_path / name, quality=100)
    levels = [p.getpixel((0, 0)) for _, p in open_pictures("f", "folder", tmp_path, 1)]
    assert levels == [120, 100, 60, 80, 40, 20, 0]
    assert load_images(tmp_path, (1, 4, 4))[:, 0, 0, 0].tolist() == levels
