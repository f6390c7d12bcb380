"""Every kind of picture: read as what it means, or refused by name."""

from __future__ import annotations

import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowinv_fast import ArgumentError
from flowinv_fast._base.errors import DataError
from flowinv_fast.data import Crops, load_images

SHAPE = (6, 9)  # height, width


def draws(high: int, *shape: int, dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(torch.randint(2**31, ()).item()).integers(
        0, high, shape, dtype, endpoint=True
    )


def loaded(path: Path, channels: int = 3) -> np.ndarray:
    """(C, H, W) of the only picture."""
    return load_images(path, (channels, *SHAPE))[0].numpy()


def refused(path: Path, *arguments, names: Path | None = None) -> str:
    with pytest.raises(DataError) as caught:
        load_images(path, *arguments)
    assert caught.value.argument == "path" and str(names or path) in str(caught.value)
    return str(caught.value)


def png16(path: Path, pixels: np.ndarray) -> None:
    """A PNG file of 16-bit colour, which PIL does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))


# --- what is read ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a.png", "a.tif", "big-endian.tif", "a.pgm"])
def test_grey_of_16_bits(tmp_path, kind):
    values = draws(65535, *SHAPE, dtype=np.uint16)
    values[0, :2] = 0, 65535
    picture = Image.fromarray(values)
    if kind == "big-endian.tif":
        picture = Image.frombytes("I;16B", SHAPE[::-1], values.astype(">u2").tobytes())
    if kind == "a.pgm":
        head = b"P5 %d %d 65535\n" % SHAPE[::-1]
        (tmp_path / kind).write_bytes(head + values.astype(">u2").tobytes())
    else:
        picture.save(tmp_path / kind)
    exact = np.floor(values / 257 + 0.5)
    assert np.array_equal(loaded(tmp_path, 1)[0], exact)
    assert np.array_equal(loaded(tmp_path), np.broadcast_to(exact, (3, *SHAPE)))


def test_colour_of_16_bits(tmp_path):
    values = draws(65535, *SHAPE, 3, dtype=np.uint16)
    values[0, 0], values[0, 1] = 0, 65535
    png16(tmp_path / "a.png", values)
    found = loaded(tmp_path).transpose(1, 2, 0)
    assert np.array_equal(found, values >> 8) and abs(found - values / 257).max() < 1


def test_floats_are_in_their_range(tmp_path):
    values = np.random.default_rng().random(SHAPE, np.float32)
    values[0, :2] = 0, 1
    Image.fromarray(values).save(tmp_path / "a.tif")
    assert abs(loaded(tmp_path, 1)[0] - 255 * values).max() <= 0.501
    for wrong in (255 * values, values - 0.5, np.where(values < 0.5, np.nan, values)):
        Image.fromarray(wrong.astype(np.float32)).save(tmp_path / "a.tif")
        assert "not in [0, 1]" in refused(tmp_path, names=tmp_path / "a.tif")


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_orientation_is_applied(tmp_path, orientation, suffix):
    pixels = draws(255, *SHAPE, 3)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=exif)
    upright = UPRIGHT[orientation](pixels)
    found = load_images(tmp_path)[0].permute(1, 2, 0).numpy()
    assert found.shape == upright.shape and np.array_equal(found, upright)


def test_modes_of_eight_bits_and_less(tmp_path):
    path, pixels, grey = tmp_path / "a.png", draws(255, *SHAPE, 3), draws(255, *SHAPE)
    colour = Image.fromarray(pixels)
    bits = draws(1, *SHAPE)
    Image.fromarray(bits.astype(bool)).save(path)
    assert np.array_equal(loaded(path, 1)[0], 255 * bits)
    Image.fromarray(grey).save(path)
    assert np.array_equal(loaded(path), np.stack([grey] * 3))
    few = colour.quantize(7)
    few.save(path)
    assert np.array_equal(loaded(path), np.asarray(few.convert("RGB")).transpose(2, 0, 1))
    colour.save(path)
    luma = pixels @ [0.299, 0.587, 0.114]
    assert abs(loaded(path, 1)[0] - luma).max() <= 0.51
    for mode in ("RGBA", "LA"):
        colour.convert(mode).save(path)
        expected = np.asarray(colour.convert(mode[:-1]))
        expected = expected.transpose(2, 0, 1) if mode == "RGBA" else np.stack([expected] * 3)
        assert np.array_equal(loaded(path), expected), "alpha that is opaque"
    smooth = np.broadcast_to(draws(255, 3), (*SHAPE, 3)).astype(np.uint8)
    Image.fromarray(smooth).save(tmp_path / "b.jpg", quality=100)  # of mode YCbCr inside
    assert abs(loaded(tmp_path / "b.jpg").transpose(1, 2, 0) - smooth.astype(int)).max() <= 3


# --- what is refused ------------------------------------------------------------------------------


def test_transparent_pictures(tmp_path):
    path, pixels = tmp_path / "a.png", draws(255, *SHAPE, 4)
    pixels[..., 3] = 255
    pixels[2, 3, 3] = 254
    for mode in ("RGBA", "LA"):
        Image.fromarray(pixels).convert(mode).save(path)
        assert "transparent" in refused(path)
    few = Image.fromarray(pixels[..., :3]).quantize(7)
    few.save(path, transparency=int(np.asarray(few)[0, 0]))
    assert "transparent" in refused(path)
    Image.fromarray(pixels[..., :3]).save(path, transparency=tuple(map(int, pixels[1, 1, :3])))
    assert "transparent" in refused(path)
    Image.fromarray(pixels[..., 0].astype(np.uint16)).save(path, transparency=int(pixels[1, 1, 0]))
    assert "transparent" in refused(path)


def test_colours_and_depths_that_are_not_stated(tmp_path):
    path, pixels = tmp_path / "a.tif", draws(255, *SHAPE, 3)
    colour = Image.fromarray(pixels)
    colour.convert("CMYK").save(path)
    assert "CMYK" in refused(path)
    colour.convert("CMYK").save(tmp_path / "b.jpg")
    assert "CMYK" in refused(tmp_path / "b.jpg")
    Image.frombytes("LAB", SHAPE[::-1], pixels.tobytes()).save(path)
    assert "LAB" in refused(path)
    Image.fromarray(pixels[..., 0].astype(np.int32)).save(path)
    assert refused(path)
    for tags, word in (({339: 2}, "signed"), ({258: 12}, "12 bits")):
        values = draws(255, 6, 10).astype(np.uint8 if 339 in tags else np.uint16)
        Image.fromarray(values).save(path)
        raw = bytearray(path.read_bytes())
        if 339 in tags:  # what PIL does not write
            Image.fromarray(values).save(path, tiffinfo=tags)
        else:
            at = raw.index(struct.pack("<HHI", 258, 3, 1)) + 8
            raw[at : at + 2] = struct.pack("<H", 12)
            path.write_bytes(bytes(raw))
        assert word in refused(path)


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.png", "a.webp"])
def test_several_frames_or_pages(tmp_path, name):
    frames = [Image.fromarray(draws(255, *SHAPE, 3)) for _ in range(3)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert "3 frames or pages" in refused(tmp_path / name)
    frames[0].save(tmp_path / name)
    assert load_images(tmp_path / name).shape == (1, 3, *SHAPE)


def test_the_first_picture_of_a_telephone_is_its_picture(tmp_path):
    frames = [Image.new("RGB", SHAPE[::-1], (40 + 100 * i, 40, 40)) for i in range(2)]
    frames[0].save(tmp_path / "a.mpo", save_all=True, append_images=frames[1:])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert abs(int(loaded(tmp_path / "a.jpg")[0, 0, 0]) - 40) <= 2


def test_more_pixels_than_the_limit(tmp_path, monkeypatch):
    Image.new("L", (30, 20)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.warns(Image.DecompressionBombWarning):
        assert "30 x 20 pixels" in refused(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 250)
    assert "decompression bomb" in refused(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert load_images(tmp_path / "a.png").shape == (1, 3, 20, 30)


def test_only_decoders_of_pictures_see_a_file(tmp_path):
    """PIL hands PostScript to another program."""
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\n"
    )
    assert "cannot identify" in refused(tmp_path, names=tmp_path / "a.png")


@pytest.mark.parametrize("size", [(2, 6, 9), (4, 6, 9), (0, 6, 9), (3, 6), (3, 0, 9), (3, 6, 9.5)])
def test_sizes_that_are_none(tmp_path, size):
    Image.new("L", (9, 6)).save(tmp_path / "a.png")
    with pytest.raises(ArgumentError) as caught:
        load_images(tmp_path, size)
    assert caught.value.argument == "size"


# --- folders --------------------------------------------------------------------------------------


def test_a_single_picture_is_a_collection_of_one(tmp_path):
    pixels = draws(255, *SHAPE, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = load_images(tmp_path / "a.png")
    assert found.shape == (1, 3, *SHAPE) and np.array_equal(found[0].permute(1, 2, 0), pixels)
    assert load_images(tmp_path / "a.png", (1, 3, 3)).shape == (1, 1, 3, 3)
    assert Crops(tmp_path / "a.png", (1, 3, 3)).batch(0, 4).shape == (4, 1, 3, 3)


def test_hidden_files_are_left_out_with_a_note(tmp_path):
    Image.new("L", (9, 6), 7).save(tmp_path / "b.png")
    for name in (".hidden", "__MACOSX"):
        (tmp_path / name).mkdir()
        Image.new("L", (9, 6), 9).save(tmp_path / name / "a.png")
    (tmp_path / "._b.png").write_bytes(b"\0\5\x16\7 of macOS")
    (tmp_path / "Thumbs.db").write_bytes(b"of Windows")
    (tmp_path / "c.heic").write_bytes(b"a picture of a kind that is not read")
    with pytest.warns(UserWarning, match="left out 5 files"):
        images = load_images(tmp_path, (1, 6, 9))
    assert images.shape == (1, 1, 6, 9) and (images == 7).all()


def test_pictures_of_several_sizes_want_a_size(tmp_path):
    Image.new("L", (9, 6)).save(tmp_path / "1.png")
    Image.new("L", (9, 7)).save(tmp_path / "2.png")
    message = refused(tmp_path, names=tmp_path / "1.png")
    assert str(tmp_path / "2.png") in message and "--size" in message
    assert load_images(tmp_path, (3, 6, 9)).shape == (2, 3, 6, 9)


def test_a_folder_that_memory_does_not_hold(tmp_path, monkeypatch):
    for i in range(4):
        Image.new("L", (50, 40)).save(tmp_path / f"{i}.png")
    from flowinv_fast.data import pictures

    monkeypatch.setattr(pictures, "available_memory", lambda: 4 * 3 * 50 * 40 * 2 - 1)
    message = refused(tmp_path)
    assert "--size" in message and "--crops" in message
    assert load_images(tmp_path, (1, 40, 50)).shape == (4, 1, 40, 50)
    monkeypatch.setattr(pictures, "available_memory", lambda: 100)
    with pytest.raises(DataError, match="--size"):
        Crops(tmp_path, (1, 10, 10))
    np.save(tmp_path / "a.npy", draws(255, 5, 7, 9))
    refused(tmp_path / "a.npy")


def test_pictures_are_held_once(tmp_path):
    """Not in a list and in a tensor."""
    noise = Image.fromarray(draws(255, 300, 300, 3))
    for i in range(8):
        noise.save(tmp_path / f"{i}.bmp")
    tracemalloc.start()
    images = load_images(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]  # of numpy, not of torch
    tracemalloc.stop()
    assert peak < images.numel() / 2


def test_pictures_that_cannot_be_read_are_named(tmp_path):
    Image.new("L", (9, 6)).save(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    assert "it is a pipe" in refused(tmp_path, names=tmp_path / "2.png")
    (tmp_path / "2.png").unlink()
    (tmp_path / "2.png").symlink_to(tmp_path / "2.png")
    refused(tmp_path, names=tmp_path / "2.png")
    (tmp_path / "2.png").unlink()
    good = (tmp_path / "1.png").read_bytes()
    for cut in (20, 30):
        (tmp_path / "2.png").write_bytes(good[:-cut])
        refused(tmp_path, names=tmp_path / "2.png")
    at = good.index(b"IDAT") + 10
    (tmp_path / "2.png").write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
    refused(tmp_path, names=tmp_path / "2.png")
    with pytest.raises(ArgumentError):
        load_images("")


KINDS = ("a.png", "a.gif", "a.tif", "a.bmp", "a.jpg", "a.webp", "a.ppm")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    for name in KINDS:
        Image.fromarray(draws(255, *SHAPE, 3)).save(folder / name)
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(name=st.sampled_from(KINDS), data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes(whole, name, data):
    """Whatever a decoder thinks of them: images of the right kind, or one error."""
    raw = bytearray((whole / name).read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        place = data.draw(
            st.one_of(st.integers(0, min(60, len(raw) - 1)), st.integers(0, len(raw) - 1))
        )
        raw[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(0), st.integers(0, len(raw))))
    bad = whole / f"bad-{name}"
    bad.write_bytes(bytes(raw[: len(raw) - cut]))
    try:
        images = load_images(bad, (3, 4, 4))
    except DataError as error:
        assert str(bad) in str(error)
    else:
        assert images.shape == (1, 3, 4, 4) and images.dtype == torch.uint8


def test_a_tiff_whose_strips_leave_rows_out(tmp_path):
    """PIL leaves the other rows as the memory was."""
    path = tmp_path / "a.tif"
    Image.fromarray(draws(255, *SHAPE)).save(path)
    whole = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", whole, 4)
    (count,) = struct.unpack_from("<H", whole, start)
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from("<H", whole, entry)[0] == 0x0116:  # rows of a strip
            struct.pack_into("<I", whole, entry + 8, 4)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="it is cut"):
        load_images(path)


def test_memory_that_is_over_behind_the_decoder(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    Image.fromarray(draws(255, *SHAPE)).save(path)

    def full(*_):
        raise MemoryError

    monkeypatch.setattr("flowinv_fast.data.images._fit", full)
    with pytest.raises(DataError, match=f"{path}.*memory"):
        load_images(path)
