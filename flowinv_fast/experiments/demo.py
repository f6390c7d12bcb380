"""``flowinv-fast demo``: four inverse problems on real test images with the shipped flows.

They are settings of the experiments' tasks. Each is solved twice from the same measurement: by
MAP with the true noise model (docs/method.md, eq. 3, 4 and 10), and by MAP that believes the noise
to be Gaussian (Asim et al., eq. 7) with the gamma of a small grid that gives the highest mean PSNR:
the choice, made with the truth, favours the baseline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from .. import metrics
from .._base.errors import did_you_mean, is_whole, require
from .._base.files import locked_folder, made_folder, whole_file
from .._base.strict_json import to_json
from ..data import image_grid, sample_images, to_picture
from ..flows import load_flow
from ..noise import Sinusoidal
from ..reconstruction.objectives import AsimLikelihood
from ..reconstruction.reconstruct import measure
from .datasets import DATASETS
from .methods import map_options
from .solving import solved
from .task import Setting
from .tasks import denoising, digits_over, one_bit, sensing

STEPS = 150
SELECTION = "first images of the paper's test selection"


@dataclass(frozen=True)
class Demo:
    """One problem of the demo.

    Args:
        name: as given on the command line.
        title: what a reader sees.
        setting: the inverse problem; its data set names the test images and the prior.
        gammas: grid of the baseline.
        baseline: options of the baseline's solve other than the usual ones.
    """

    name: str
    title: str
    setting: Setting
    gammas: tuple[float, ...]
    baseline: Mapping[str, Any] = field(default_factory=dict)


def demos(seed: int = 0) -> list[Demo]:
    """The demo's problems; ``seed`` fixes the sensing matrices."""
    digits = digits_over(sample_images("mnist-28"), replace=False)
    rows = denoising(Sinusoidal(level=0.2, form="exp"))
    few = sensing(196, level=0.3, mean=0.3, seed=seed)
    signs = one_bit(784, level=1.0, mean=0.5, seed=seed)
    return [
        Demo(
            "digits",
            "digits on clothes, y = 0.5 x + 0.5 digit",
            replace(digits, map_settings={**digits.map_settings, "restarts": 4}),
            (0.001, 0.01, 0.1),
        ),
        Demo("sinusoidal", "2-D sinusoidal noise (exp, c = 0.2)", rows, (0.02, 0.05, 0.1)),
        Demo(
            "cs",
            "compressed sensing, 196 of 784, sinusoidal noise (level 0.3, mean 0.3)",
            replace(few, map_settings={"space": "latent", "strategy": "adam", "lr": 0.1}),
            (0.05, 0.1, 0.2),
            {"lr": 0.1},
        ),
        Demo(
            "1bit",
            "1-bit sensing, m = 784, sinusoidal noise outside the sign (level 1, mean 0.5)",
            replace(signs, dataset=DATASETS["mnist-28"]),
            (0.1, 0.3, 0.6),
            {"start": "zeros"},
        ),
    ]


def run_demo(
    folder: str | os.PathLike = "demo",
    images: int = 4,
    seed: int = 0,
    names: list[str] | None = None,
    steps: int = STEPS,
    progress: bool | None = None,
    report: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Solve the demo's problems, print a table, write ``panel.png`` and ``results.json``.

    Args:
        folder: where the files go; created.
        images: how many of the shipped test images, 1..32 (the paper's selection).
        seed: fixes noise, digits and sensing matrices.
        names: problems to run, of digits, sinusoidal, cs, 1bit; None is all of them.
        steps: of every solve.
        progress: show a progress bar; None: only on a terminal.
        report: receives the lines of the table.
    Returns:
        What results.json holds.
    Raises:
        ArgumentError: images out of range, or an unknown name.
    """
    require(is_whole(steps, 1), "run_demo", "steps", "an integer of at least 1", steps)
    whole = is_whole(images, 1) and images <= 32
    require(whole, "run_demo", "images", "an integer in 1..32", images)
    available = {demo.name: demo for demo in demos(seed)}
    names = list(available) if names is None else names
    for name in names:
        got = did_you_mean(name, available)
        require(name in available, "run_demo", "tasks", f"names from {list(available)}", got)
    folder = made_folder(folder)
    with locked_folder(folder, "run_demo"):
        return _run(
            folder, images, seed, [available[name] for name in names], steps, progress, report
        )


def _run(
    folder: Path,
    images: int,
    seed: int,
    demos: list[Demo],
    steps: int,
    progress: bool | None,
    report: Callable[[str], None],
) -> dict[str, Any]:
    started = time.perf_counter()
    with tqdm(demos, "demo", disable=None if progress is None else not progress) as bar:
        solves = [_solve(demo, images, seed, steps) for demo in bar]
    result = {
        "images": images,
        "seed": seed,
        "selection": SELECTION,
        "steps": steps,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "tasks": [row for row, _ in solves],
    }
    _write_panel([(row["title"], strips) for row, strips in solves], folder / "panel.png")
    with whole_file(folder / "results.json") as temporary:
        temporary.write_text(to_json(result, 1) + "\n", "utf-8")
    for line in _table(result):
        report(line)
    seconds = time.perf_counter() - started
    report(f"{seconds:.0f} s; wrote {folder}/panel.png, {folder}/results.json")
    return result


def _solve(demo: Demo, images: int, seed: int, steps: int) -> tuple[dict[str, Any], list[Tensor]]:
    """Row of the table, and images to show: truth, measurement, baseline, ours."""
    setting, dataset = demo.setting, demo.setting.dataset
    truth, prior = sample_images(dataset.images, images), load_flow(dataset.flow)
    generator = torch.Generator().manual_seed(seed)
    y = measure(truth, setting.operator, setting.noise_source, generator)
    mean_psnr = lambda x: metrics.psnr(x, truth).mean().item()
    common: dict[str, Any] = {"steps": steps, "seed": seed}
    ours = solved(y, setting.operator, prior, setting.noise, **common, **map_options(setting))
    # The grid of gammas is one batch: every image with every gamma.
    grid = torch.tensor(demo.gammas).repeat_interleave(images)
    tiled = y.repeat(len(demo.gammas), *[1] * (y.dim() - 1))
    options = {"strategy": "adam", "start": "measurement", "lr": 0.05, **common, **demo.baseline}
    objective = AsimLikelihood(grid)
    gaussian = solved(tiled, setting.operator, prior, objective=objective, **options)
    candidates = gaussian.x.view(len(demo.gammas), images, *truth.shape[1:])
    scores = [mean_psnr(x) for x in candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    naive = setting.naive(y)
    row = {
        "name": demo.name,
        "title": demo.title,
        "prior": dataset.flow,
        "psnr_measurement": mean_psnr(naive),
        "psnr_gaussian": scores[best],
        "gamma": demo.gammas[best],
        "gammas": demo.gammas,
        "psnr_ours": mean_psnr(ours.x),
        "psnr_ours_each": metrics.psnr(ours.x, truth).tolist(),
        "loss_gap": (ours.loss - setting.loss_of_truth(truth, y, prior)).median().item(),
        "status": [status.name for status in ours.status],
    }
    return row, [truth, naive, candidates[best], ours.x]


def _table(result: dict[str, Any]) -> list[str]:
    count, seed = result["images"], result["seed"]
    lines = [
        f"Mean PSNR in dB over {count} real test images, seed {seed}. The Gaussian-noise MAP takes "
        "its best gamma.",
        f"{'task':<12} {'measured':>9} {'Gaussian MAP':>16} {'ours':>7} {'gain':>6}"
        f" {'loss gap':>9}",
    ]
    for row in result["tasks"]:
        gaussian = f"{row['psnr_gaussian']:.2f} ({row['gamma']:g})"
        gain = row["psnr_ours"] - row["psnr_gaussian"]
        lines.append(
            f"{row['name']:<12} {row['psnr_measurement']:>9.2f} {gaussian:>16} "
            f"{row['psnr_ours']:>7.2f} {gain:>+6.2f} {row['loss_gap']:>9.1f}"
        )
    lines.append("loss gap: median loss at our solution minus loss of the true image, in nats")
    return lines


def _write_panel(strips: list[tuple[str, list[Tensor]]], path: Path, zoom: int = 3) -> None:
    """One block per problem: a title, then truth, measurement, Gaussian MAP and ours in a row."""
    labels = ("truth", "measurement", "Gaussian-noise MAP", "ours")
    blocks = []
    for title, images in strips:
        columns = max(1, min(4, len(images[0])))
        tiles = [to_picture(image_grid(x.clamp(0, 1), columns), zoom) for x in images]
        width, height = tiles[0].size
        block = Image.new("RGB", (4 * (width + 12) + 12, height + 46), "white")
        pen = ImageDraw.Draw(block)
        pen.text((12, 6), title, "black")
        for i, (label, tile) in enumerate(zip(labels, tiles)):
            left = 12 + i * (width + 12)
            pen.text((left, 24), label, "black")
            block.paste(tile, (left, 40))
        blocks.append(block)
    panel = Image.new("RGB", (max(b.width for b in blocks), sum(b.height for b in blocks)), "white")
    top = 0
    for block in blocks:
        panel.paste(block, (0, top))
        top += block.height
    with whole_file(path) as temporary:
        panel.save(temporary)
