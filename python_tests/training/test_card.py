"""Model cards: facts against direct computation, files, other images, bad input."""

from __future__ import annotations

import copy
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_names, standardisation
from PIL import Image

from flowinv_fast._base.errors import ArgumentError
from flowinv_fast.cli import main
from flowinv_fast.data import Crops, sample_images
from flowinv_fast.flows import Flow, RealNVPConfig, realnvp, save_flow
from flowinv_fast.training.card import write_card
from flowinv_fast.training.card_page import card_page
from flowinv_fast.training.measure import held_out_images

KINDS = {
    "bounded": {"support": "bounded"},
    "smoothed": {"smoothing": 0.1},
    "colour": {"shape": (3, 8, 12), "smoothing": 0.0, "bits": 5},
}


def make(kind: str = "smoothed") -> Flow:
    options = {"shape": (1, 8, 8), "scales": 2, "hidden": 4, "blocks": 1, **KINDS[kind]}
    flow = realnvp(RealNVPConfig(**options))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return flow


def pictures(flow: Flow, count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, *flow.shape), dtype=torch.uint8)


def levels(flow: Flow, images: torch.Tensor) -> torch.Tensor:
    """Grey levels as float32 in [0, 1]."""
    step = 256 // 2**flow.config.bits
    return ((images // step).float() * 255 / (2**flow.config.bits - 1)).round() / 255


@pytest.fixture
def no_matplotlib(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # import raises ImportError


@pytest.mark.parametrize("kind", KINDS)
def test_facts_against_direct_computation(tmp_path, no_matplotlib, kind):
    flow, seed = make(kind), 3
    flow.info = {"data": "stripes | dots", "seconds": 1234.5, "command": "flowinv-fast train"}
    images = pictures(flow, 150)  # more than two batches
    facts = write_card(flow, images, tmp_path, "a", "random ones", seed=seed)
    x = flow.dequantise(levels(flow, images), seed)
    exact = copy.deepcopy(flow).double()
    with torch.no_grad():
        log_prob = exact.log_prob(x.double())
        trip = (flow.decode(flow.encode(x)[0])[0] - x).abs().max().item()
    dims = math.prod(flow.shape)
    bits = (flow.config.bits - log_prob / math.log(2) / dims).numpy()
    held_out = facts["held_out"]
    assert held_out["images"] == held_out["finite"] == 150 and held_out["data"] == "random ones"
    assert held_out["bits_per_dim"] == pytest.approx(bits.mean(), rel=1e-4)
    half = 1.976 * bits.std(ddof=1) / math.sqrt(150)  # Student's t at 149
    assert held_out["interval"] == pytest.approx(half, rel=1e-3)
    rows = {row["group"].split(":")[0]: row for row in facts["groups"]}
    assert [row["images"] for row in rows.values()] == [150, 32, 256, 256]
    row = rows["held-out images"]
    assert row["log_prob"] == pytest.approx(np.median(log_prob), rel=1e-4, abs=1e-3)
    assert row["bits_per_dim"] == pytest.approx(np.quantile(bits, (0.05, 0.5, 0.95)), rel=1e-4)
    assert row["likelier"] == 0.5
    grey = torch.arange(256).view(-1, 1, 1, 1).expand(-1, *flow.shape)
    with torch.no_grad():
        grey = exact.log_prob(flow.dequantise(levels(flow, grey), seed).double())
    row = rows["constant grey"]
    assert row["log_prob"] == pytest.approx(np.median(grey), rel=1e-4, abs=1e-3)
    assert row["likelier"] == pytest.approx(
        (grey > log_prob.median()).double().mean().item(), abs=0.01
    )
    back = facts["round_trip"]
    assert (back["images"], back["latents"], back["latents_finite"]) == (150, 64, 64)
    assert trip / 4 < back["pixels"] < 4 * trip < 1e-4 and back["latent_median"] < 1e-4
    assert facts["architecture"]["couplings"] == 10
    assert facts["architecture"]["parameters"] == sum(p.numel() for p in flow.parameters())
    assert facts["training"] == flow.info and facts["conditions"]["seed"] == seed
    page = (tmp_path / "a.md").read_text()
    meaning = "differential" if kind == "smoothed" else "a bound"
    told = (meaning, "150 of 150", "1,234.5", "stripes \\| dots", "`flowinv-fast train`")
    for words in (f"**{held_out['bits_per_dim']:.4f} ± ", *told):
        assert words in page


def test_files(tmp_path):
    """The page is that of the JSON; the same seed gives the same files; pictures as told."""
    pytest.importorskip("matplotlib")
    flow = make()
    images = pictures(flow, 40)
    for folder in ("a", "b"):
        facts = write_card(flow, images, tmp_path / folder, "x", seed=5)
    names = ["x-log_prob.png", "x-samples.png", "x.json", "x.md"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == names
    assert json.loads((tmp_path / "a" / "x.json").read_text()) == facts
    page = (tmp_path / "a" / "x.md").read_text()
    assert page == card_page(facts) and "](x-log_prob.png)" in page and "](x-samples.png)" in page
    shown = np.asarray(Image.open(tmp_path / "a" / "x-samples.png"))[::8, ::8]  # eightfold
    assert shown.shape == (4 * 9 + 1 + 8 + 2 * 9 + 1, 16 * 9 + 1)
    samples = flow.sample(64, 0.8, torch.Generator().manual_seed(5))
    first = (255 * samples[0, 0].clamp(0, 1)).round()
    torch.testing.assert_close(torch.from_numpy(shown[1:9, 1:9].copy()).float(), first)
    assert (shown[4 * 9 + 1 :][:9] == 255).all()
    assert np.array_equal(shown[-18:-10, -9:-1], images[15, 0])


def test_without_matplotlib(tmp_path, no_matplotlib):
    flow = make()
    facts = write_card(flow, pictures(flow, 3), tmp_path, "x")
    assert not facts["pictures"]["histogram"] and facts["pictures"]["held_out"] == 3
    page = (tmp_path / "x.md").read_text()
    assert "needs matplotlib" in page and "log_prob.png" not in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x-samples.png", "x.json", "x.md"]


def test_densities_over_orders_of_magnitude(tmp_path):
    flow = make()
    standardisation(flow).std.mul_(1e-4)
    facts = write_card(flow, pictures(flow, 5), tmp_path, "x")
    assert facts["groups"][0]["bits_per_dim"][1] > 1e4
    assert "5 of 5" in (tmp_path / "x.md").read_text()


def test_no_finite_density(tmp_path):
    """Still a card, which says so."""
    flow = make()
    standardisation(flow).mean.fill_(1e30)  # whose square float32 cannot hold
    facts = write_card(flow, pictures(flow, 5), tmp_path, "x")
    assert facts["held_out"]["finite"] == 0 and facts["held_out"]["bits_per_dim"] is None
    page = (tmp_path / "x.md").read_text()
    assert "**not finite" in page and "0 of 5" in page


def test_other_images(tmp_path, no_matplotlib):
    """Shipped by name, files of any size, folders; grey to colour and back; the data's opposite."""
    flow = make("colour")
    images = pictures(flow, 8)
    label = lambda name="x", **given: write_card(flow, images, tmp_path, name, **given)["groups"][
        1
    ]["group"]
    assert label() == "other images: fashion-28"
    assert label("fashion-own") == "other images: mnist-28"
    flow.info = {"data": "Fashion-MNIST, 60,000 training images"}
    assert label() == "other images: mnist-28"
    (tmp_path / "folder").mkdir()
    Image.new("L", (30, 20), 200).save(tmp_path / "folder" / "a.png")
    assert label(other=str(tmp_path / "folder")) == "other images: folder"
    flat = (torch.arange(1, 10) * 25).to(torch.uint8).view(9, 1, 1, 1)
    np.save(tmp_path / "flat.npy", flat.expand(9, 3, 20, 31))
    grey = make()
    facts = write_card(grey, pictures(grey, 20), tmp_path, "x", other=str(tmp_path / "flat.npy"))
    with torch.no_grad():
        x = (flat / 255).expand(9, 1, 8, 8).contiguous()
        want = grey.log_prob(grey.dequantise(x, 0)).median()
    assert facts["groups"][1]["images"] == 9
    assert facts["groups"][1]["log_prob"] == pytest.approx(want.item(), rel=1e-4, abs=1e-2)


def test_held_out_images(tmp_path):
    data = pictures(make(), 50)
    np.save(tmp_path / "x.npy", data[:, 0])
    some = held_out_images(tmp_path / "x.npy", (1, 8, 8), 20, 1)
    assert torch.equal(some, held_out_images(tmp_path / "x.npy", (1, 8, 8), 20, 1))
    every = held_out_images(tmp_path / "x.npy", (1, 8, 8))
    rows = lambda images: sorted(map(bytes, images.flatten(1).numpy()))
    assert rows(every) == rows(data) and len(some) == 20 and set(rows(some)) < set(rows(data))
    assert not torch.equal(every[:20], some)
    photo = np.random.default_rng().integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    crops = held_out_images(tmp_path, (3, 8, 12), 7, 2, crops=True)
    assert crops.shape == (7, 3, 8, 12) and crops.dtype == torch.uint8
    patches = held_out_images(tmp_path, (3, 8, 12), 7, 2, patches=True)
    want = Crops(tmp_path, (3, 8, 12), ()).take(7, 2)
    assert torch.equal(patches, want) and not torch.equal(patches, crops)
    bad = {
        "path": ((1, 8, 9),),
        "count": ((1, 8, 8), 0),
        "seed": ((1, 8, 8), 1, -1),
        "folder": ((1, 8, 8), 1, 0, True),
    }
    for argument, given in bad.items():
        assert_names(argument, lambda given=given: held_out_images(tmp_path / "x.npy", *given))


def test_bad_input(tmp_path):
    flow = make()
    images = pictures(flow, 2)
    (tmp_path / "file").touch()
    bad = {
        "images": {"images": images[:, :, :4]},
        "name": {"name": "a/b"},
        "out": {"out": tmp_path / "file"},
        "other": {"other": "photographs"},
        "seed": {"seed": 2**40},
        "flow": {"flow": copy.deepcopy(flow).double()},
    }
    for argument, given in bad.items():
        given = {"flow": flow, "images": images, "out": tmp_path / "out", "name": "x", **given}
        assert_names(argument, lambda given=given: write_card(**given))
    with pytest.raises(ArgumentError, match="fashion-28"):  # what there is
        write_card(flow, images, tmp_path / "out", "x", other="photographs")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_command(tmp_path, capsys, monkeypatch, no_matplotlib):
    """Named by the folder of training; bench/fill.py writes the same page from the JSON."""
    (tmp_path / "digits").mkdir()
    flow = realnvp(RealNVPConfig((1, 28, 28), scales=2, hidden=4, blocks=1))
    save_flow(flow, tmp_path / "digits" / "flow.safetensors")
    np.save(tmp_path / "x.npy", (255 * sample_images("mnist-28", 6)).round().to(torch.uint8))
    command = ["card", str(tmp_path / "digits" / "flow.safetensors"), "--data"]
    models = tmp_path / "models"
    assert main([*command, str(tmp_path / "x.npy"), "--count", "4", "--out", str(models)]) == 0
    assert f"on 4 held-out images, log p finite for 4; wrote {models}" in capsys.readouterr().out
    page = models / "digits.md"
    assert f"{tmp_path.name}/x.npy" in page.read_text()
    assert main([*command, str(tmp_path / "none")]) == 2
    assert "none: No such file" in capsys.readouterr().err

    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "bench"))
    import fill

    for name in ("ROOT", "DOCS", "RESULTS"):
        monkeypatch.setattr(fill, name, tmp_path)
    assert fill.main(["--check"]) == 0
    written = page.read_text()
    page.write_text(written.replace("bits/dim", "bits"))
    assert fill.main(["--check"]) == 1
    assert fill.main([]) == 0 and page.read_text() == written
