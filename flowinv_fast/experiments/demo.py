"""``flowinv-fast demo``: four inverse problems on real test images with the shipped flows.

Each is solved twice from the same measurement: by MAP with the true noise model (docs/method.md,
eq. 3, 4 and 10), and by MAP that believes the noise to be Gaussian (Asim et al., eq. 7) with the
gamma of a small grid that gives the highest mean PSNR: the choice, made with the truth, favours the
baseline.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from tqdm import tqdm

from .. import metrics, noise, operators
from .._base.errors import require
from .._base.files import whole_file
from ..data import image_grid, sample_images, to_picture
from ..flows import load_flow
from ..reconstruction.objectives import AsimLikelihood
from ..reconstruction.reconstruct import measure, reconstruct
from ..reconstruction.strategies import tempered
from .tasks import loss_of_truth

SHAPE = (1, 28, 28)
STEPS = 150


@dataclass(frozen=True)
class Task:
    """One inverse problem.

    Args:
        name: short name, as given on the command line.
        title: what a reader sees.
        images: name of the shipped test images.
        prior: name of the shipped flow that is the prior.
        operator: the forward operator f.
        noise: the noise model the solver is given.
        drawn: the law the noise is drawn from, where it is not the model itself (real digits).
        preview: measurement to an image: what one would show without a solver.
        gammas: grid of the baseline.
        ours, baseline: settings of ``reconstruct``.
    """

    name: str
    title: str
    images: str
    prior: str
    operator: Any
    noise: Any
    drawn: Any
    preview: Callable[[Tensor], Tensor]
    gammas: tuple[float, ...]
    ours: dict = field(default_factory=dict)
    baseline: dict = field(default_factory=dict)


class _RealDigits:
    """The shipped MNIST test digits, one over each image: real noise, not the flow's own draws."""

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        digits = sample_images("mnist-28")
        chosen = torch.randperm(len(digits), generator=generator)[: shape[0]]
        return 0.5 * digits[chosen]


def tasks(seed: int = 0) -> list[Task]:
    """The demo's tasks; ``seed`` fixes the sensing matrices."""
    rows = noise.Sinusoidal(level=0.2, form="exp")
    linear = operators.GaussianSensing(196, SHAPE, seed)
    one_bit = operators.SignSensing(784, SHAPE, seed)
    channel = noise.Sinusoidal.measurements(level=0.3, mean=0.3)
    loud = noise.Sinusoidal.measurements(level=1.0, mean=0.5)
    digit_flow = noise.FlowNoise(load_flow("digits-noise-28"), scale=0.5)
    same = lambda y: y
    return [
        Task(
            "digits", "digits on clothes, y = 0.5 x + 0.5 digit", "fashion-28", "fashion-28",
            operators.Scale(0.5), digit_flow, _RealDigits(), lambda y: 2 * y, (0.001, 0.01, 0.1),
            {"objective": "map-image", "restarts": 4},
        ),
        Task(
            "sinusoidal", "2-D sinusoidal noise (exp, c = 0.2)", "fashion-28", "fashion-28",
            operators.Identity(), rows, rows, same, (0.02, 0.05, 0.1),
            {"objective": "map-image"},
        ),
        Task(
            "cs", "compressed sensing, 196 of 784, sinusoidal noise (level 0.3, mean 0.3)",
            "fashion-28", "fashion-28", linear, channel, channel, linear.adjoint, (0.05, 0.1, 0.2),
            {"lr": 0.1}, {"lr": 0.1},
        ),
        Task(
            "1bit", "1-bit sensing, m = 784, sinusoidal noise outside the sign (level 1, mean 0.5)",
            "mnist-28", "digits-noise-28", one_bit, loud, loud, one_bit.guess, (0.1, 0.3, 0.6),
            {"objective": "map-image", "lr": 0.05, "strategy": tempered(0.1)}, {"start": "zeros"},
        ),
    ]  # fmt: skip


def run_demo(
    folder: str | os.PathLike = "demo",
    images: int = 4,
    seed: int = 0,
    names: list[str] | None = None,
    steps: int = STEPS,
    progress: bool | None = None,
    report: Callable[[str], None] = print,
) -> dict:
    """Solve the demo's tasks, print a table, write ``panel.png`` and ``results.json``.

    Args:
        folder: where the files go; created.
        images: how many of the shipped test images, 1..32 (the paper's selection).
        seed: fixes noise, digits and sensing matrices.
        names: tasks to run, of digits, sinusoidal, cs, 1bit; None is all of them.
        steps: of every solve.
        progress: show a progress bar; None: only on a terminal.
        report: receives the lines of the table.
    Returns:
        What results.json holds.
    Raises:
        ArgumentError: images out of range, or an unknown task.
    """
    whole = isinstance(images, int) and 1 <= images <= 32
    require(whole, "run_demo", "images", "an integer in 1..32", images)
    available = {task.name: task for task in tasks(seed)}
    names = list(available) if names is None else names
    for name in names:
        require(name in available, "run_demo", "tasks", f"names from {list(available)}", name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    disable = None if progress is None else not progress
    solves = [
        _solve(available[name], images, seed, steps)
        for name in tqdm(names, "demo", disable=disable)
    ]
    result = {
        "images": images, "seed": seed, "selection": "first images of the paper's test selection",
        "steps": steps, "torch": torch.__version__, "threads": torch.get_num_threads(),
        "tasks": [row for row, _ in solves],
    }  # fmt: skip
    _write_panel([(row["title"], strips) for row, strips in solves], folder / "panel.png")
    with whole_file(folder / "results.json") as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n")
    for line in _table(result):
        report(line)
    report(
        f"{time.perf_counter() - started:.0f} s; wrote {folder}/panel.png, {folder}/results.json"
    )
    return result


def _solve(task: Task, images: int, seed: int, steps: int) -> tuple[dict, list[Tensor]]:
    """(row of the table, images to show: truth, measurement, baseline, ours)."""
    truth, prior = sample_images(task.images, images), load_flow(task.prior)
    y = measure(truth, task.operator, task.drawn, torch.Generator().manual_seed(seed))
    mean_psnr = lambda x: metrics.psnr(x, truth).mean().item()
    common = {"steps": steps, "seed": seed, "progress": False}
    ours = reconstruct(y, task.operator, prior, task.noise, **common, **task.ours)
    # The grid of gammas is one batch: every image with every gamma.
    grid = torch.tensor(task.gammas).repeat_interleave(images)
    tiled = y.repeat(len(task.gammas), *[1] * (y.dim() - 1))
    gaussian = reconstruct(
        tiled, task.operator, prior, objective=AsimLikelihood(grid), **common, **task.baseline
    )
    candidates = gaussian.x.view(len(task.gammas), images, *truth.shape[1:])
    scores = [mean_psnr(x) for x in candidates]
    best = max(range(len(scores)), key=scores.__getitem__)
    preview = task.preview(y)
    row = {
        "name": task.name, "title": task.title, "prior": task.prior,
        "psnr_measurement": mean_psnr(preview), "psnr_gaussian": scores[best],
        "gamma": task.gammas[best], "gammas": task.gammas, "psnr_ours": mean_psnr(ours.x),
        "psnr_ours_each": metrics.psnr(ours.x, truth).tolist(),
        "loss_gap": (ours.loss - loss_of_truth(truth, y, task, prior)).median().item(),
        "status": [status.name for status in ours.status],
    }  # fmt: skip
    return row, [truth, preview, candidates[best], ours.x]


def _table(result: dict) -> list[str]:
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
    """One block per task: a title, then truth, measurement, Gaussian MAP and ours side by side."""
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
