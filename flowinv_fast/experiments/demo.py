"""``flowinv-fast demo``: four inverse problems on real test images with the shipped flows.

Each is solved twice from the same measurement: by MAP with the true noise model (METHOD eq. 4 and
10), and by MAP that believes the noise to be Gaussian (Asim et al., eq. 7), with the gamma of a
small grid that gives the highest mean PSNR: the choice favours the baseline.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .. import metrics, noise, operators
from .._reconstruct import Reconstruction, reconstruct
from ..data import sample_images, save_png
from ..errors import require
from ..flows import load_flow

GAMMAS = (0.003, 0.03, 0.3)


@dataclass(frozen=True)
class Task:
    """One inverse problem.

    Args:
        name: short name, used in files.
        title: what a reader sees.
        operator: the forward operator f.
        noise: the noise model the solver is given, which is the law the noise was drawn from.
        draw: (count, generator) to the noise itself, shaped like the measurements.
        preview: measurement to an image worth looking at (what one would show without a solver).
        options: settings of ``reconstruct`` for both methods.
    """

    name: str
    title: str
    operator: Any
    noise: Any
    draw: Callable[[int, torch.Generator], Tensor]
    preview: Callable[[Tensor], Tensor]
    options: dict


def run_demo(
    folder: str | os.PathLike = "demo",
    images: int = 4,
    seed: int = 0,
    tasks: list[str] | None = None,
    progress: bool = True,
    report: Callable[[str], None] = print,
) -> dict:
    """Solve the demo's tasks, print a table, write ``panel.png`` and ``results.json``.

    Args:
        folder: where the files go; created.
        images: how many of the shipped Fashion-MNIST test images, 1..32.
        seed: fixes the noise and the sensing matrices.
        tasks: names of the tasks to run; None is all of them.
        progress: show progress bars.
        report: receives the lines of the table.
    Returns:
        What results.json holds.
    Raises:
        ArgumentError: images out of range, or an unknown task.
    """
    require(1 <= images <= 32, "run_demo", "images", "an integer in 1..32", images)
    available = {task.name: task for task in _tasks(seed)}
    chosen = list(available) if tasks is None else tasks
    for name in chosen:
        require(name in available, "run_demo", "tasks", f"names from {list(available)}", name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    truth = sample_images("fashion-28", images)
    prior = load_flow("fashion-28")
    rows, strips, started = [], [], time.perf_counter()
    for name in chosen:
        row, strip = _solve(available[name], truth, prior, seed, progress)
        rows.append(row)
        strips.append((available[name].title, strip))
    result = {
        "images": images, "seed": seed, "data": "Fashion-MNIST test, selection of the paper",
        "gammas": GAMMAS, "tasks": rows, "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    _write_panel(strips, folder / "panel.png")
    temporary = folder / "results.json.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, folder / "results.json")
    for line in _table(result):
        report(line)
    report(f"{time.perf_counter() - started:.0f} s; {folder}/panel.png, {folder}/results.json")
    return result


def _tasks(seed: int) -> list[Task]:
    digits_flow = load_flow("digits-noise-28")
    digits = sample_images("mnist-28", 32)
    identity = operators.Identity()
    half = operators.Scale(0.5)
    rows = noise.Sinusoidal(level=0.2, form="exp")
    sensing = operators.GaussianSensing(measurements=196, shape=(1, 28, 28), seed=seed)
    one_bit = operators.SignSensing(measurements=784, shape=(1, 28, 28), seed=seed)
    channel = noise.Sinusoidal.measurements(level=0.1, mean=0.3)
    flat = lambda n: (n, 196)  # noqa: E731
    return [
        Task("digits", "digits removed: y = 0.5 x + 0.5 digit", half,
             noise.Flow(digits_flow, scale=0.5), lambda n, g: 0.5 * digits[:n], lambda y: 2 * y, {}),
        Task("sinusoidal", "2-D sinusoidal noise, c = 0.2", identity, rows,
             lambda n, g: rows.sample((n, 1, 28, 28), g), lambda y: y, {}),
        Task("cs", "compressed sensing, m = 196 of 784, sinusoidal noise", sensing, channel,
             lambda n, g: channel.sample(flat(n), g), sensing.adjoint, {}),
        Task("1bit", "1-bit sensing, m = 784, noise outside the sign", one_bit, channel,
             lambda n, g: channel.sample((n, 784), g), one_bit.adjoint, {}),
    ]  # fmt: skip
