"""A reproduction as tables, curves, panels and one self-contained report.html."""

from __future__ import annotations

import base64
import gzip
import html
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from .._base.errors import ArgumentError
from .._base.files import whole_file
from ..data import image_grid, to_picture
from ..metrics import interval
from ..reconstruction.objectives import CSGM, MAP, AsimLikelihood
from .methods import OURS

ABOUT = {
    "digits": "y = 0.5 x + 0.5 digit: real handwritten digits over the image; the noise model is "
    "a flow trained on digits.",
    "cs-sinusoidal": "y = A x + noise, A Gaussian; the noise's standard deviation is a sinusoid "
    "over the measurements and its mean is 0.3.",
    "denoise-gaussian": "y = x + white Gaussian noise of standard deviation 0.1.",
    "denoise-sinusoidal": "y = x + noise whose standard deviation, exp(sin) of height c, is the "
    "same along each row.",
    "denoise-radial": "y = x + noise, strongest at the centre.",
    "cs-1bit": "y = sign(A x) + noise of mean 0.5 and sinusoidal standard deviation.",
    "sensitivity": "Compressed sensing, m = 200, over a grid of weights, the same factors around "
    "the default of each: beta of MAP, gamma of Asim.",
    "ood": "2-D sinusoidal noise (c = 0.2) on images of the other data set.",
}


def read(folder: str | os.PathLike) -> dict:
    """What results.json of a run's folder holds, or results.json.gz.

    Raises:
        ArgumentError: neither is there, or it is not JSON.
    """
    plain = Path(folder) / "results.json"
    packed = plain.with_suffix(".json.gz")
    try:
        return json.loads(
            plain.read_text() if plain.exists() else gzip.decompress(packed.read_bytes())
        )
    except (OSError, ValueError) as error:
        raise ArgumentError("report", "folder", "one with a results.json", error) from None


def psnrs(row: dict) -> np.ndarray:
    """PSNR of every image of a row of results.json, in their order."""
    return np.array([image["psnr"] for image in row["images"]])


def claims(result: dict) -> list[tuple[str, str]]:
    """The paper's three claims and the optimality gap, each with its number."""
    rows = result["rows"]
    by = lambda task, method: [r for r in rows if r["task"] == task and r["method"] == method]
    mean = lambda row: psnrs(row).mean()
    told = []
    for kind in ("gan", "vae"):
        mle, csgm = by("digits", f"mle-{kind}"), by("digits", f"csgm-{kind}")
        if mle and csgm:
            gain = psnrs(mle[0]) - psnrs(csgm[0])
            told.append((
                f"The right noise model helps the same generator ({kind.upper()}, digits)",
                f"MLE minus CSGM: {gain.mean():+.2f} dB, 95 % interval +-{interval(gain):.2f}",
            ))  # fmt: skip
    growth = {}
    for method in dict.fromkeys(r["method"] for r in rows):
        at = lambda row: row["at"]["measurements m"]
        sweep = sorted(by("cs-sinusoidal", method), key=at)
        if len(sweep) > 1:
            growth[method] = mean(sweep[-1]) - mean(sweep[0])
    if OURS in growth:
        others = {m: g for m, g in growth.items() if m not in (OURS, "noisy")}
        most = max(others, key=others.__getitem__)
        told.append((
            "More measurements help MAP most",
            f"fewest to most measurements: MAP {growth[OURS]:+.2f} dB, next {most} "
            f"{others[most]:+.2f} dB",
        ))  # fmt: skip
    ranges = {}
    for method in (OURS, "asim"):
        means = [mean(r) for r in by("sensitivity", method)]
        if means:
            ranges[method] = max(means) - min(means)
    if len(ranges) == 2:
        told.append((
            "MAP varies less over beta than Asim over gamma",
            f"best minus worst: MAP {ranges[OURS]:.2f} dB, Asim {ranges['asim']:.2f} dB",
        ))  # fmt: skip
    for row in by("digits", OURS):
        noisy = by("digits", "noisy")
        gap = np.median([i["gap"] for i in row["images"] if i["gap"] is not None])
        gain = mean(row) - mean(noisy[0])
        told.append(("Digits removed", f"{gain:+.2f} dB over the noisy image 2y"))
        told.append((
            "The solver finds a loss no higher than the truth's (digits)",
            f"median gap {gap:+.1f} nats",
        ))  # fmt: skip
    scored = [i for r in rows if r["method"] == OURS for i in r["images"]]
    over = sum(image.get("prior_overshoot", False) for image in scored)
    if scored:
        told.append((
            "Prior overshoot",
            f"{over} of {len(scored)} MAP solutions have a log p that no held-out image comes near",
        ))  # fmt: skip
    return told


def table(result: dict, task: str) -> list[list[str]]:
    """Mean PSNR of a task, methods by settings; the first row and column are headings."""
    rows = [r for r in result["rows"] if r["task"] == task]
    settings = list(dict.fromkeys(r["setting"] for r in rows))
    methods = list(dict.fromkeys(r["method"] for r in rows))
    cells = {(r["method"], r["setting"]): r for r in rows}
    lines = [["method", *(f"{setting or 'PSNR'}, dB" for setting in settings)]]
    for method in methods:
        found = [cells.get((method, setting)) for setting in settings]
        title = next(row["title"] for row in found if row)
        lines.append([title, *(_cell(row, cells.get((OURS, row["setting"]))) if row else ""
                               for row in found)])  # fmt: skip
    return lines


def _cell(row: dict, ours: dict | None) -> str:
    """Mean and interval; ours minus it, paired by image; the parameter it was tuned to."""
    found = psnrs(row)
    text = f"{found.mean():.2f} ± {interval(found):.2f}"
    if ours and row["method"] != OURS:
        paired = psnrs(ours) - found
        text += f"\nours {paired.mean():+.2f} ± {interval(paired):.2f}"
    if row["parameter"]:
        text += f"\n{row['parameter']} = {row['value']:g}"
    return text


def write(result: dict, pictures: dict, extras: dict[str, np.ndarray], folder: Path) -> None:
    """Write the PNGs and report.html into the folder."""
    config, body = result["config"], []
    tasks = list(dict.fromkeys(r["task"] for r in result["rows"]))
    body.append("<h2>What the paper claims, here</h2>")
    body.append(_html_table([["claim", "measured"], *map(list, claims(result))]))
    for task in tasks:
        body.append(f"<h2>{task}</h2><p>{html.escape(ABOUT[task])}</p>")
        if task != "sensitivity":
            body.append(_html_table(table(result, task)))
        for axis in _axes(result, task):
            path = folder / f"{task}-over-{axis.replace(' ', '-') or 'weight'}.png"
            drawn = _curves(result, task, axis, path)
            body.append(_embedded(path) if drawn else "<p>Curves need matplotlib.</p>")
        shown = {k: v for k, v in pictures.items() if k[0] == task}
        for setting in dict.fromkeys(k[1] for k in shown):
            some = {k[2]: v for k, v in shown.items() if k[1] == setting}
            name = f"{task}-{setting}".replace(" ", "").replace(",", "-").replace("=", "")
            path = folder / f"{name.rstrip('-')}.png"
            _panel(result, some, path)
            body.append(f"<h3>{html.escape(setting)}</h3>" if setting else "")
            body.append(_embedded(path))
    body.append(_beyond(result, extras, folder))
    body.append("<h2>Tuning</h2><p>Every method's one parameter was chosen from four values by "
                f"mean PSNR on {config['tuning_images']} images outside the test set, at every "
                "setting.</p>")  # fmt: skip
    lines = [["problem", "method", "parameter", "grid", "chosen"]]
    for row in result["tuned"]:
        grid = ", ".join(f"{v:g}" for v in row["grid"])
        lines.append([row["problem"], row["method"], row["parameter"], grid, f"{row['value']:g}"])
    body.append(f"<details><summary>what was chosen</summary>{_html_table(lines)}</details>")
    facts = ", ".join(f"{k} = {v}" for k, v in config.items())
    head = (
        f"<h1>flowinv_fast: the paper's experiments on {config['signal']}</h1>"
        f"<p>{config['images']} test images a task, seed {config['seed']}, {config['steps']} "
        "steps. Mean PSNR in dB of images clipped to [0, 1], with the 95 % interval of the mean "
        "over images; below it ours minus the method, paired by image, and the value of the "
        "method's parameter.</p>"
        f"<p class=small>flowinv_fast {result['version']}, torch {result['torch']}, "
        f"{result['threads']} threads; {html.escape(facts)}</p>"
    )
    with whole_file(folder / "report.html") as temporary:
        temporary.write_text(_PAGE.format(body=head + "\n".join(body)))


def _beyond(result: dict, extras: dict[str, np.ndarray], folder: Path) -> str:
    """Uncertainty of the posterior, and the bound of Theorem 4.1."""
    drawn, bound = result["posterior"], result["bound"]
    text = (
        "<h2>Beyond the paper: uncertainty</h2><p>Posterior draws for 2-D sinusoidal noise, "
        f"c = 0.2: {drawn['samples']} draws after {drawn['warm_up']} steps of preconditioned "
        "Langevin sampling from the MAP solution, one chain an image. The root mean square of "
        f"error over standard deviation is {drawn['z']:.2f} (1 where the draws' spread tells the "
        "whole error), acceptance "
        f"{drawn['acceptance']:.2f}. Grey levels of the last two rows end at {drawn['top']:.2f}."
        "</p>"
    )
    top = drawn["top"]
    strips = [("truth", extras["truth"]), ("measurement", extras["y"]),
              ("posterior mean", extras["mean"]), ("posterior std", extras["std"] / top),
              ("error of the mean", np.abs(extras["mean"] - extras["truth"]) / top)]  # fmt: skip
    _strips(strips, folder / "posterior.png")
    text += _embedded(folder / "posterior.png")
    if not bound["images"]:
        return text + "<p>Theorem 4.1 is not estimated for images of this size.</p>"
    text += (
        "<h2>Beyond the paper: Theorem 4.1</h2><p>Denoising with Gaussian noise of standard "
        f"deviation {bound['std']}: ||x - x*|| &le; ||delta|| / (1 + mu std^2), with mu, the "
        "smallest curvature of -log p_G, estimated at the reconstruction by Lanczos iterations "
        "and the true image as x*: an estimate at a point, no proof over the ball (and the true "
        "image is not quite a local optimum of the prior, which the theorem wants).</p>"
    )
    head = ["image", "mu", "||delta||", "bound", "||x - x*||", "PSNR, dB"]
    keys = ("mu", "delta_norm", "bound", "distance", "psnr")
    number = lambda v: "none" if v is None else f"{v:.2f}"  # where 1 + mu std^2 is not positive
    rows = [[str(r["image"]), *(number(r[k]) for k in keys)] for r in bound["images"]]
    return text + _html_table([head, *rows])


# --- pieces ---------------------------------------------------------------------------------------

_PAGE = """<!doctype html><html lang=en><meta charset=utf-8><title>flowinv_fast report</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em}}
table{{border-collapse:collapse;margin:1em 0}}td,th{{border:1px solid #ccc;padding:.25em .6em;
text-align:left}}.small{{color:#666;font-size:12px}}img{{max-width:100%}}</style>
<body>{body}</body></html>
"""


def _html_table(lines: list[list[str]]) -> str:
    def cell(text: str, tag: str) -> str:
        first, *others = html.escape(text).split("\n")
        return f"<{tag}>{first}" + "".join(f"<br><small>{o}</small>" for o in others) + f"</{tag}>"

    row = lambda cells, tag: "<tr>" + "".join(cell(c, tag) for c in cells) + "</tr>"
    return "<table>" + row(lines[0], "th") + "".join(row(c, "td") for c in lines[1:]) + "</table>"


def _embedded(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}"></p>'


def _axes(result: dict, task: str) -> list[str]:
    """Names of the axes that a task is swept over."""
    if task == "sensitivity":
        return [""]
    rows = [r for r in result["rows"] if r["task"] == task]
    axes = dict.fromkeys(axis for r in rows for axis in r["at"])
    return [a for a in axes if len({r["at"][a] for r in rows if a in r["at"]}) > 1]


def _curves(result: dict, task: str, axis: str, path: Path) -> bool:
    """PSNR over an axis as a PNG; False, and no file, without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    rows = [r for r in result["rows"] if r["task"] == task and (axis in r["at"] or not axis)]
    weights = {"beta": MAP().beta, "gamma": AsimLikelihood().gamma, "lam": CSGM().lam}
    at = lambda r: r["at"][axis] if axis else r["value"] / weights[r["parameter"]]
    for method in dict.fromkeys(r["method"] for r in rows):
        own = [r for r in rows if r["method"] == method]
        own.sort(key=at)
        if len(own) == 1:
            continue
        found = [psnrs(r) for r in own]
        label = own[0]["title"]
        if not axis:
            label += f", {own[0]['parameter']}"
        axes.errorbar(
            [at(r) for r in own], [f.mean() for f in found], [interval(f) for f in found],
            label=label, capsize=3, linewidth=2.5 if method == OURS else 1.2, marker="o",
            markersize=4,
        )  # fmt: skip
    if axis != "c":
        axes.set_xscale("log")
        places = sorted({at(r) for r in rows})
        axes.set_xticks(places, [f"{v:g}" for v in places])
        axes.minorticks_off()
    axes.set_xlabel(axis or "weight over its default (beta = 1, gamma = 0.1)")
    axes.set_ylabel("PSNR, dB")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    with whole_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return True


def _panel(result: dict, pictures: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A row per method, truth and measurement first, columns the first test images."""
    titles = {r["method"]: r["title"] for r in result["rows"]}
    any_one = next(iter(pictures.values()))
    strips = [("truth", any_one["truth"]), ("measurement", any_one["y"])]
    strips += [(titles[m], v["x"]) for m, v in pictures.items() if m != "noisy"]
    _strips([(label, images / 255) for label, images in strips], path)


def _strips(strips: list[tuple[str, np.ndarray]], path: Path) -> None:
    """Labelled rows of images (N, C, H, W) in [0, 1]."""
    tiles = []
    for label, images in strips:
        grid = image_grid(torch.from_numpy(np.asarray(images, np.float32)), len(images))
        tiles.append((label, to_picture(grid, max(1, 64 // images.shape[-1]))))
    width, height = tiles[0][1].size
    panel = Image.new("RGB", (width + 190, len(tiles) * (height + 4)), "white")
    pen = ImageDraw.Draw(panel)
    for i, (label, tile) in enumerate(tiles):
        pen.text((6, i * (height + 4) + height // 2 - 6), label, "black")
        panel.paste(tile, (190, i * (height + 4)))
    with whole_file(path) as temporary:
        panel.save(temporary, "PNG")
