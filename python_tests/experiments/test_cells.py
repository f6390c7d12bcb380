"""What a run reads back: damaged files and bombs are one error that names the file."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from flowinv_fast._base.errors import DataError
from flowinv_fast.experiments import cells
from flowinv_fast.experiments.cells import load_arrays, load_result, save_arrays, save_json
from flowinv_fast.experiments.config import ReproduceConfig


def refused(path: Path, load) -> str:
    with pytest.raises(DataError) as caught:
        load()
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_pictures_of_a_cell(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    arrays = {"x": torch.rand(2, 3).numpy(), "y": np.zeros(4096, np.uint8)}
    save_arrays(path, arrays)
    again = load_arrays(path)
    assert again.keys() == arrays.keys() and all((again[k] == arrays[k]).all() for k in arrays)
    good = path.read_bytes()
    for content in (b"", b"PK", good[:-30], good[:60] + bytes(40) + good[100:], b"no archive"):
        path.write_bytes(content)
        refused(path, lambda: load_arrays(path))
    path.write_bytes(good)
    monkeypatch.setattr(cells, "_MOST_UNPACKED", 4096, raising=False)
    assert "unpacks to" in refused(path, lambda: load_arrays(path))
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("x.npy", objects.getvalue())
    refused(path, lambda: load_arrays(path))


def test_results(tmp_path, monkeypatch):
    plain, packed = tmp_path / "results.json", tmp_path / "results.json.gz"
    load = lambda: load_result(tmp_path)
    whole = {"config": {}, "rows": [1], "tuned": [], "posterior": {}, "bound": {}}
    packed.write_bytes(gzip.compress(json.dumps(whole).encode()))
    assert load() == whole
    good = packed.read_bytes()
    middle = len(good) // 2
    for content in (good[:-9], good[:middle] + b"\xff" * 9, good + b"more", b"\x1f\x8b"):
        packed.write_bytes(content)
        refused(packed, load)
    monkeypatch.setattr(cells, "_MOST_UNPACKED", 2**20, raising=False)
    packed.write_bytes(gzip.compress(b'{"rows": []}' + b" " * 2**20))
    assert "unpacks to" in refused(packed, load)
    for content in ("[" * 100_000, '{"rows"', "[1]", '{"rows": 1}', "\udcff"):
        plain.write_bytes(content.encode("utf-8", "surrogateescape"))
        refused(plain, load)
    plain.unlink()
    os.mkfifo(plain)
    assert "it is a pipe" in refused(plain, load)
    plain.unlink()
    save_json(plain, whole)
    assert load() == whole


def test_configurations(tmp_path):
    path = tmp_path / "config.toml"
    load = lambda: ReproduceConfig.load(path)
    assert "No such file" in refused(path, load)
    for content in (b"images = ", b"\xff\xfe", b"a = " + b"[" * 100_000, b"#" * 2**21):
        path.write_bytes(content)
        refused(path, load)
    path.unlink()
    os.mkfifo(path)
    assert "it is a pipe" in refused(path, load)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_every_byte_of_an_archive_counts(tmp_path, write):
    """Also those that numpy does not read: behind the numbers, and of a member that is none."""
    path, last = tmp_path / "a.npz", np.arange(40.0)
    write(path, x=np.zeros(3), y=last)
    whole = path.read_bytes()
    for size in (1, 2**16, 2**31):  # the directory says that the last member is longer
        data, at = bytearray(whole), whole.rindex(b"PK\x01\x02")
        for field in (20, 24):
            (stored,) = struct.unpack_from("<I", data, at + field)
            struct.pack_into("<I", data, at + field, stored + size * (field == 20 or size < 2**20))
        path.write_bytes(data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        refused(path, lambda: load_arrays(path))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**17  # in kB
    for name, content in (("y.npy", b""), ("y", b"no array"), ("x.npy", None)):
        write(path, x=np.zeros(3))
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a name that stands twice
            archive.writestr(name, archive.read("x.npy") if content is None else content)
        refused(path, lambda: load_arrays(path))
    with zipfile.ZipFile(path, "w") as archive:
        buffer = io.BytesIO()
        np.save(buffer, last)
        archive.writestr("y.npy", buffer.getvalue() + b"more")
    refused(path, lambda: load_arrays(path))
