"""A reconstruction on disk: everything comes back; damaged and foreign files are refused."""

from __future__ import annotations

import json
import math
import os
from dataclasses import fields, replace

import pytest
import torch
from helpers import assert_names
from safetensors.torch import save_file
from toy_flows import SHAPE, AffineFlow

import flowinv_fast as ff
from flowinv_fast import Reconstruction, noise, operators
from flowinv_fast.reconstruction.result import plain

QUIET = {"progress": False, "steps": 4, "throw": False}


@pytest.fixture
def affine() -> AffineFlow:
    flow = AffineFlow(torch.randn(SHAPE).double(), torch.rand(SHAPE).double() + 0.5)
    flow.info = {"log_prob_peak": 0.0}
    return flow


def found(affine, batch: int = 3, **options) -> Reconstruction:
    y = torch.randn(batch, *SHAPE, dtype=torch.float64)
    y[:1] = math.nan  # a status of its own
    return ff.reconstruct(y, operators.Identity(), affine, noise.Gaussian(0.4), **options, **QUIET)


CASES = {
    "latent": {},
    "image": {"objective": "map-image"},
    "no-density": {"objective": "csgm"},
    "empty": {"batch": 0},
    "one": {"batch": 1},
    "weights": {"objective": ff.MAP(torch.ones(3))},
}


@pytest.mark.parametrize("case", CASES)
def test_everything_comes_back(affine, case, tmp_path):
    kept = found(affine, **CASES[case])
    path = tmp_path / "kept.safetensors"
    kept.save(path)
    got = Reconstruction.load(path)
    for field in fields(Reconstruction):
        before, after = getattr(kept, field.name), getattr(got, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after) and before.dtype == after.dtype, field.name
        else:
            assert before == after and type(before) is type(after), field.name
    assert [p.name for p in tmp_path.iterdir()] == ["kept.safetensors"]
    assert repr(got) == repr(kept)


def test_the_header_is_json(affine, tmp_path):
    from safetensors import safe_open

    kept, path = found(affine), tmp_path / "kept.safetensors"
    kept.save(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["flowinv_fast"])
    assert header["status"] == ["BAD_MEASUREMENT", "UNSETTLED", "UNSETTLED"]
    assert header["config"] == kept.config


def header(**changes) -> dict:
    whole = {"format": "flowinv_fast.reconstruction.2", "status": ["MAX_STEPS"] * 2, "config": {}}
    return {"flowinv_fast": json.dumps({**whole, **changes})}


def tensors(**changes) -> dict:
    one, images = torch.zeros(2), torch.zeros(2, *SHAPE)
    whole = {
        "x": images,
        "z": torch.zeros(2, 16),
        "noise": images.clone(),
        "loss": one,
        "log_noise": one.clone(),
        "log_prior": one.clone(),
        "history": torch.zeros(5, 2),
        "steps": torch.zeros(2, dtype=torch.long),
    }
    return {k: v for k, v in {**whole, **changes}.items() if v is not None}


FOREIGN = {
    "format": (tensors(), header(format="flowinv_fast.flow.1")),
    "no-header": (tensors(), {}),
    "no-json": (tensors(), {"flowinv_fast": "{"}),
    "list": (tensors(), {"flowinv_fast": "[]"}),
    "status": (tensors(), header(status=["FINE", "FINE"])),
    "status-few": (tensors(), header(status=["MAX_STEPS"])),
    "config": (tensors(), header(config=None)),
    "missing": (tensors(x=None), header()),
    "more": (tensors(y=torch.zeros(2)), header()),
    "batch": (tensors(loss=torch.zeros(3)), header()),
    "history": (tensors(history=torch.zeros(5, 3)), header()),
    "history-flat": (tensors(history=torch.zeros(5)), header()),
    "scalar": (tensors(loss=torch.tensor(1.0)), header()),
}


def test_the_made_up_file_is_whole(tmp_path):
    save_file(tensors(), tmp_path / "file", metadata=header())
    assert Reconstruction.load(tmp_path / "file").status == [ff.Status.MAX_STEPS] * 2


@pytest.mark.parametrize("case", FOREIGN)
def test_foreign_files_are_refused(case, tmp_path):
    data, metadata = FOREIGN[case]
    save_file(data, tmp_path / "file", metadata=metadata)
    assert_names("path", lambda: Reconstruction.load(tmp_path / "file"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ff.DataError, match="pipe"):
        Reconstruction.load(tmp_path / "pipe")


def test_a_header_with_a_name_twice_is_refused(tmp_path):
    text = header()["flowinv_fast"]
    save_file(tensors(), tmp_path / "file", metadata={"flowinv_fast": text[:-1] + "," + text[1:]})
    with pytest.raises(ff.DataError, match="twice"):
        Reconstruction.load(tmp_path / "file")


def test_damaged_and_missing_files_are_refused(affine, tmp_path):
    path = tmp_path / "kept"
    found(affine).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:50], whole[:-1], whole[1:]):
        path.write_bytes(damaged)
        assert_names("path", lambda: Reconstruction.load(path))
    assert_names("path", lambda: Reconstruction.load(tmp_path / "none"))
    assert_names("path", lambda: Reconstruction.load(tmp_path))


def test_a_failed_save_leaves_the_file_as_it_was(affine, tmp_path):
    path, kept = tmp_path / "kept", found(affine)
    kept.save(path)
    before = path.read_bytes()
    kept.config["odd"] = object()
    with pytest.raises(TypeError):
        kept.save(path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_what_a_file_holds_is_what_it_means(affine, tmp_path):
    """Booleans are 0 or 1, names stand once, numbers are finite; a bare pipe is no file."""
    path = tmp_path / "kept.safetensors"
    kept = found(affine)
    kept.save(path)
    whole = path.read_bytes()
    for name in ("outside", "prior_overshoot"):
        tensors = {n: getattr(kept, n) for n in (f.name for f in fields(kept))}
        tensors = {n: v for n, v in tensors.items() if isinstance(v, torch.Tensor)}
        odd = tensors[name].to(torch.uint8).add(6).view(torch.bool)
        header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])["__metadata__"]
        save_file({**tensors, name: odd}, path, metadata=header)
        with pytest.raises(ff.ArgumentError, match=f"{name} has booleans that are none"):
            Reconstruction.load(path)
        facts = json.loads(header["flowinv_fast"])
        for text in (
            json.dumps({**facts, "config": {"lr": math.nan}}),
            json.dumps({**facts, "config": ""}),
            json.dumps(facts)[:-1] + ', "config": {}}',
        ):
            save_file(tensors, path, metadata={"flowinv_fast": text})
            assert_names("path", lambda: Reconstruction.load(path))
    path.unlink()
    os.mkfifo(path)
    assert "it is a pipe" in assert_names("path", lambda: Reconstruction.load(path))


def test_infinity_among_the_options_is_kept_in_words(affine, tmp_path):
    stage = ff.Stage(tol=0.0)
    object.__setattr__(stage, "patience", math.inf)
    kept = found(affine)
    kept = replace(kept, config={**kept.config, "strategy": plain(ff.Strategy((stage,)))})
    kept.save(tmp_path / "a")
    got = Reconstruction.load(tmp_path / "a").config["strategy"]["stages"][0]
    assert got["patience"] == "inf"
