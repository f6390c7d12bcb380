"""The report: one file that needs nothing else, and numbers computed by hand."""

from __future__ import annotations

import base64
import gzip
import io
import math
import shutil
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats
from helpers import assert_names
from PIL import Image

from flowinv_fast.experiments import report
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.datasets import DATASETS
from flowinv_fast.experiments.methods import METHODS
from flowinv_fast.experiments.runner import reproduce
from flowinv_fast.experiments.tasks import TASKS
from flowinv_fast.metrics import interval

PLAIN = ("digits", "denoise-radial", "ood")  # without a sweep, so without curves


class Page(HTMLParser):
    """Text, attributes and tables of a page."""

    def __init__(self, path):
        super().__init__()
        self.text, self.links, self.pictures, self.open = "", [], [], []
        self.feed(path.read_text())
        self.close()

    def handle_starttag(self, tag, attributes):
        facts = dict(attributes)
        self.links += [facts[k] for k in ("src", "href", "data", "poster") if k in facts]
        if tag == "img":
            self.pictures.append((facts["alt"], facts["src"]))
        assert tag not in ("script", "link", "iframe", "object", "base"), tag
        if tag not in ("img", "br", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag != "body":  # the page leaves some ends out, as HTML allows
            while self.open.pop() != tag:
                pass

    def handle_data(self, data):
        self.text += data


def written(folder, tasks, **changes) -> tuple[dict, Page]:
    config = ReproduceConfig(tasks, **{"images": 3, "tuning_images": 1, "quick": True, **changes})
    result = reproduce(config, folder, False)
    return result, Page(folder / "report.html")


def decoded(page: Page) -> dict[str, Image.Image]:
    found = {}
    for name, source in page.pictures:
        head, data = source.split(",", 1)
        assert head == "data:image/png;base64"
        found[name] = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        found[name].load()
        assert found[name].format == "PNG"
    return found


def test_every_task_and_method_in_one_file(tmp_path, no_solves):
    pytest.importorskip("matplotlib")
    result, page = written(tmp_path, tuple(TASKS))
    assert all(link.startswith("data:") for link in page.links)
    assert "url(" not in (source := (tmp_path / "report.html").read_text())
    assert source.startswith("<!doctype html>") and source.endswith("</html>\n")
    for name, task in TASKS.items():
        assert f"<h2>{name}</h2>" in source
        assert task.sentence(DATASETS["fashion-28"], True) in page.text
    titles = {row["title"] for row in result["rows"]}
    assert all(title in page.text for title in titles)
    assert titles >= {m.title for name, m in METHODS.items() if name != "bm3d"}
    pictures = decoded(page)
    want = {
        *("digits", "denoise-gaussian", "denoise-radial", "ood-c0.2", "posterior"),
        *(f"cs-sinusoidal-{part}" for part in ("m100", "m300", "over-measurements-m")),
        *(f"denoise-sinusoidal-{part}" for part in ("c0.1", "c0.3", "over-c")),
        *(f"cs-1bit-{part}" for part in ("m200", "m784", "m784-level4")),
        *(f"cs-1bit-over-{axis}" for axis in ("measurements-m", "noise-level")),
        "sensitivity-over-weight",
    }
    assert set(pictures) == want == {path.stem for path in tmp_path.glob("*.png")}
    for claim, number in report.claims(result):
        assert claim in page.text and number in page.text


def test_no_curves_need_no_matplotlib(tmp_path, monkeypatch, no_solves):
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # import raises ImportError
    _, page = written(tmp_path, PLAIN)
    assert set(decoded(page)) == {"digits", "denoise-radial", "ood-c0.2", "posterior"}
    assert "matplotlib" not in page.text


def test_curves_are_left_out_without_matplotlib(tmp_path, monkeypatch, no_solves):
    """After hours of solves the report is still written, and says what is missing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    _, page = written(tmp_path, ("sensitivity", "denoise-sinusoidal"))
    assert page.text.count("Curves need matplotlib.") == 2
    panels = {"denoise-sinusoidal-c0.1", "denoise-sinusoidal-c0.3"}
    assert set(decoded(page)) == panels | {"posterior"}


def test_panels_show_the_pictures(tmp_path, no_solves):
    """A row per method, truth and measurement first; columns are the images, at twice the size."""
    result, page = written(tmp_path, ("denoise-radial",), chunk=2)
    panel = np.asarray(decoded(page)["denoise-radial"])
    shown = [
        "truth",
        "measurement",
        *(r["method"] for r in result["rows"] if r["method"] != "noisy"),
    ]
    height = 2 * 30 + 4
    assert panel.shape[0] == len(shown) * height
    assert panel.shape[1] == 190 + 2 * (2 * 29 + 1)  # the first chunk, a gap around each
    for i, name in enumerate(shown):
        source = "map" if name in ("truth", "measurement") else name
        (path,) = (tmp_path / "cells").glob(f"denoise-radial_{source}_*_test_0.npz")
        with np.load(path) as kept:
            images = kept[{"truth": "truth", "measurement": "y"}.get(name, "x")]
        for j, image in enumerate(images):
            top, left = i * height + 2, 190 + 2 + 58 * j
            tile = panel[top : top + 56 : 2, left : left + 56 : 2, 0]
            assert np.array_equal(tile, image[0]), (name, j)


def test_a_report_is_made_again_from_the_numbers(tmp_path, no_solves):
    """The very same page; without the cells, one without pictures; also of packed numbers."""
    folder = tmp_path / "run"
    result, page = written(folder, ("denoise-radial", "ood"))
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    for name in before.keys() - {"results.json", "config.toml"}:
        (folder / name).unlink()
    assert report.report(folder) == folder / "report.html"
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    shutil.rmtree(folder / "cells")
    packed = gzip.compress((folder / "results.json").read_bytes())
    (folder / "results.json.gz").write_bytes(packed)
    (folder / "results.json").unlink()
    path = report.report(folder, tmp_path / "new")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["report.html"]
    bare = Page(path)
    assert not bare.pictures and len(bare.text) > 0.9 * len(page.text)
    assert all(number in bare.text for _, number in report.claims(result))


def test_a_folder_without_numbers_is_named(tmp_path):
    assert_names("folder", lambda: report.report(tmp_path))
    for name, content in (("results.json", b"{"), ("results.json.gz", b"no gzip")):
        (tmp_path / name).write_bytes(content)
        assert_names("folder", lambda: report.report(tmp_path, tmp_path / "new"))
        (tmp_path / name).unlink()
    assert not (tmp_path / "new").exists()


def row(task, method, psnrs, setting="", at=None, value=1.0, parameter="", **each) -> dict:
    images = [
        {"image": i, "psnr": p, **{key: column[i] for key, column in each.items()}}
        for i, p in enumerate(psnrs)
    ]
    return {
        "task": task,
        "setting": setting,
        "at": at or {},
        "representative": True,
        "method": method,
        "title": f"The {method}",
        "parameter": parameter,
        "value": value,
        "images": images,
    }


def test_text_is_escaped(tmp_path):
    evil = "<script>alert('&')</script>"
    fact = row("digits", "noisy", [1.0, 2.0], setting=evil, parameter=evil) | {"title": evil}
    tuned = {"setting": evil, "method": evil, "parameter": evil, "grid": [1.0], "value": 1.0}
    zeros = np.zeros((2, 1, 28, 28), np.uint8)
    config = {"dataset": "mnist-28", "images": 2, "tuning_images": 1, "seed": 0, "steps": 1}
    numbers = {"mu": -30.0, "delta_norm": 5.6, "bound": None, "distance": 3.0, "psnr": 20.0}
    result = {
        "config": {**config, "test_file": evil},
        "version": "0",
        "torch": "0",
        "threads": 1,
        "tuned": [tuned],
        "rows": [fact],
        "posterior": {"samples": 1, "warm_up": 2, "z": 1.0, "acceptance": 0.5, "top": 0.5},
        "bound": {"std": 0.2, "images": [{"image": 0, **numbers}]},
    }
    extras = dict.fromkeys(("truth", "y", "mean", "std"), zeros / 255)
    report.write(result, {}, extras, tmp_path)
    page = Page(tmp_path / "report.html")
    assert page.text.count(evil) == 7  # title, label, parameter, setting, method, parameter, config
    assert "<td>-30.00</td><td>5.60</td><td>none</td>" in (tmp_path / "report.html").read_text()


# --- numbers --------------------------------------------------------------------------------------


def test_interval_is_students():
    for count in (2, 3, 10, 100):
        values, level = np.random.default_rng().normal(3, 2, count), np.random.uniform(0.5, 0.99)
        low, high = scipy.stats.t.interval(level, count - 1, values.mean(), scipy.stats.sem(values))
        assert math.isclose(interval(values, level), (high - low) / 2, rel_tol=1e-9)
    assert math.isclose(interval(np.array([1.0, 3.0])), 12.7062, rel_tol=1e-5)
    assert math.isnan(interval(np.array([1.0]))) and math.isnan(interval(np.array([])))


def test_claims_by_hand():
    """Differences by image; t for 2 values is 12.7062 times half their distance."""
    gap, over = [-3.0, None], [True, False]
    at = lambda m: {"measurements m": m}
    sweep = lambda method, few, many: [
        row("cs-sinusoidal", method, [many, many], "m = 400", at(400)),
        row("cs-sinusoidal", method, [few, few], "m = 50", at(50)),
    ]
    weights = lambda method, means: [
        row("sensitivity", method, [m - 1, m + 1], value=v) for v, m in enumerate(means)
    ]
    rows = [
        row("digits", "noisy", [15.0, 16.0]),
        row("digits", "map", [20.0, 22.0], gap=gap, prior_overshoot=over),
        row("digits", "mle-gan", [18.0, 19.0]),
        row("digits", "csgm-gan", [17.0, 16.0]),
        row("digits", "mle-vae", [14.0, 18.0]),
        row("digits", "csgm-vae", [15.0, 19.0]),
        *sweep("map", 15.0, 24.0),
        *sweep("asim", 15.0, 20.5),
        *sweep("noisy", 0.0, 30.0),
        *sweep("lasso", 10.0, 16.0),
        row("cs-sinusoidal", "map-latent", [1.0], "m = 50", at(50)),
        *weights("map", [20.0, 21.5, 20.5]),
        *weights("asim", [14.0, 19.0, 22.0]),
    ]
    helps = "The right noise model helps the same generator ({}, digits)"
    assert dict(report.claims({"rows": rows})) == {
        helps.format("GAN"): "MLE minus CSGM: +2.00 dB, 95 % interval +-12.71",
        helps.format("VAE"): "MLE minus CSGM: -1.00 dB, 95 % interval +-0.00",
        "More measurements help MAP most": "fewest to most measurements: MAP +9.00 dB, next lasso "
        "+6.00 dB",
        "MAP varies less over beta than Asim over gamma": "best minus worst: MAP 1.50 dB, Asim "
        "8.00 dB",
        "Digits removed": "+5.50 dB over the noisy image 2y",
        "The solver finds a loss no higher than the truth's (digits)": "median gap -3.0 nats",
        "Prior overshoot": "1 of 12 MAP solutions have a log p that no held-out image comes near",
    }


def test_claims_of_what_was_not_run():
    assert report.claims({"rows": []}) == []
    assert report.claims({"rows": [row("digits", "noisy", [1.0]), row("ood", "asim", [1.0])]}) == []


def test_tables_pair_by_image():
    """Far apart images, all better by about 1: a wide interval of means, a narrow one of gains."""
    other = np.array([10.0, 20.0, 30.0])
    ours = other + [0.9, 1.0, 1.1]
    rows = [
        row("denoise-sinusoidal", "noisy", other, "c = 0.1"),
        row("denoise-sinusoidal", "map", ours, "c = 0.1", parameter="beta", value=0.25),
        row("denoise-sinusoidal", "map", ours, "c = 0.3", parameter="beta"),
        row("ood", "map", [1.0], "c = 0.2"),
    ]
    result = {"rows": rows}
    half = lambda spread: 4.302653 * spread / 3**0.5
    wide, narrow = half(10.0), half(0.1)
    own = f"21.00 ± {half((ours).std(ddof=1)):.2f}\nbeta = "
    assert report.table(result, "denoise-sinusoidal") == [
        ["method", "c = 0.1, dB", "c = 0.3, dB"],
        ["The noisy", f"20.00 ± {wide:.2f}\nours +1.00 ± {narrow:.2f}", ""],
        ["The map", own + "0.25", own + "1"],
    ]
    assert report.table(result, "ood")[1] == ["The map", "1.00 ± nan"]
