"""``flowinv-fast reproduce``: every task, method and image of a configuration, resumable.

The work is cut into cells: (setting, method, value of its parameter, chunk of images). A cell that
is done is one file, written whole; a run that is killed goes on at the first one missing. The
answer of a cell depends on the configuration alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import metrics
from .._base import backend
from .._base.errors import is_whole, require
from ..flows import load_flow
from . import report, uncertainty
from .cells import POSTERIOR, Arrays, cell_name, load_arrays, load_pictures, save_arrays, save_json
from .config import ReproduceConfig
from .datasets import DATASETS
from .images import Images
from .methods import MAP_METHOD, METHODS, Answer, Context, Method, chosen_methods
from .task import Inputs, Setting
from .tasks import TASKS

SHOWN = 8  # images of a cell that are kept as pictures


@dataclass(frozen=True)
class Cell:
    """A piece of work: these images of a setting by a method at a value."""

    setting: Setting
    method: Method
    value: float
    part: str  # "test" or "tuning"
    first: int
    last: int

    @property
    def name(self) -> str:
        """File name, without suffix."""
        return cell_name(self.setting.title, self.method.name, self.value, self.part, self.first)


def reproduce(
    config: ReproduceConfig,
    folder: str | os.PathLike,
    progress: bool | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Run a configuration, or what is left of it, and write results.json, PNGs and report.html.

    Args:
        config: what to run.
        folder: where; created. One that holds another configuration's run is refused.
        progress: show a progress bar with the time left; None: only on a terminal.
        jobs: processes that share the work and torch's threads; small images gain by it.
    Returns:
        What results.json holds.
    Raises:
        ArgumentError: a folder of another configuration, or files that cannot be used.
    """
    require(is_whole(jobs, 1), "reproduce", "jobs", "an integer of at least 1", jobs)
    folder = Path(folder)
    kept = folder / "config.toml"
    if kept.exists():
        same = ReproduceConfig.load(kept) == config
        wanted = "a new one, or one of this same configuration"
        require(same, "reproduce", "folder", wanted, f"{folder} with another config.toml")
    run = _Run(config, folder, progress, jobs)  # may refuse files; then the folder is left alone
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    config.save(kept)
    run.tune()
    run.test()
    result = run.result()
    result["posterior"], result["bound"], posterior = run.uncertainty()
    save_json(folder / "results.json", result, 1)
    report.write(result, load_pictures(folder, result), posterior, folder)
    return result


class _Run:
    def __init__(
        self, config: ReproduceConfig, folder: Path, progress: bool | None, jobs: int
    ) -> None:
        self.config, self.folder, self.jobs = config, folder, jobs
        self.disable = None if progress is None else not progress
        self.images, self.other = Images.of(config), Images.other(config)
        dataset = DATASETS[config.dataset]
        self.flow = load_flow(config.flow or dataset.flow)
        self.context = Context(config, self.flow)
        inputs = Inputs(dataset, config.seed, self.images.digits)
        self.settings = [
            s for task in config.tasks for s in TASKS[task].build(inputs, config.quick)
        ]
        self.chosen: dict[tuple[str, str], float] = {}

    def truth(self, setting: Setting, part: str) -> Tensor:
        """Test or tuning images of a setting, its own data set's or the other's."""
        images = self.other if setting.other_images else self.images
        return images.test if part == "test" else images.tuning

    # --- cells -----------------------------------------------------------------------------------

    def _cells(self, setting: Setting, method: Method, value: float, part: str) -> Iterator[Cell]:
        count = len(self.truth(setting, part))
        for first in range(0, count, self.config.chunk):
            yield Cell(setting, method, value, part, first, min(count, first + self.config.chunk))

    def every_cell(self) -> dict[str, Cell]:
        """All that a run of this configuration could ask for, by name."""
        return {
            cell.name: cell
            for setting in self.settings
            for method in chosen_methods(setting)
            for value in (*method.grid, *method.weights)
            for part in ("tuning", "test")
            for cell in self._cells(setting, method, value, part)
        }

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _work(self, cells: list[Cell], label: str) -> None:
        left = [cell for cell in cells if not self._path(cell).exists()]
        bar = tqdm(total=len(left), desc=label, disable=self.disable, unit="cell", smoothing=0.05)
        with bar, contextlib.ExitStack() as stack:
            if self.jobs == 1:
                done: Iterator[None] = map(self.solve, left)
            else:
                threads = max(1, torch.get_num_threads() // self.jobs)
                arguments = (self.config, self.folder, threads)
                spawn = multiprocessing.get_context("spawn")
                pool = ProcessPoolExecutor(self.jobs, spawn, _start_worker, arguments)
                done = stack.enter_context(pool).map(_solve_named, [cell.name for cell in left])
            for cell, _ in zip(left, done):
                bar.set_postfix_str(f"{cell.setting.title}, {cell.method.name}")
                bar.update()

    def solve(self, cell: Cell) -> None:
        """Do a cell and write it."""
        truth = self.truth(cell.setting, cell.part)[cell.first : cell.last]
        y = self._measurements(cell.setting, cell.part, cell.first, truth)
        started = time.perf_counter()
        answer = cell.method.solve(self.context, cell.setting, y, cell.value)
        seconds = (time.perf_counter() - started) / len(truth)
        columns = self._columns(cell, answer, truth, y)
        numbers = lambda i: {k: _number(v[i]) for k, v in columns.items() if v is not None}
        rows = [
            {"image": cell.first + i, "seconds": round(seconds, 4), **numbers(i)}
            for i in range(len(truth))
        ]
        if cell.part == "test" and cell.first == 0:
            shown = {"x": answer.x, "truth": truth, "y": cell.setting.naive(y[:SHOWN])}
            levels = lambda t: (255 * t[:SHOWN].clamp(0, 1)).round().byte().numpy()
            arrays = {name: levels(images) for name, images in shown.items()}
            save_arrays(self._path(cell).with_suffix(".npz"), arrays)
        save_json(self._path(cell), rows)  # last: the cell is done

    def _columns(
        self, cell: Cell, answer: Answer, truth: Tensor, y: Tensor
    ) -> dict[str, Tensor | None]:
        """What there is to tell of each image, (B,) each."""
        x, found = answer.x.clamp(0, 1), answer.found
        columns: dict[str, Tensor | None] = {
            "psnr": metrics.psnr(x, truth),
            "ssim": _ssim(x, truth),
        }
        if found is None:
            return columns
        columns |= {n: getattr(found, n) for n in ("loss", "log_noise", "log_prior", "steps")}
        if cell.method.name.startswith(MAP_METHOD):
            least = cell.setting.loss_of_truth(truth, y, self.context.flow, cell.value)
            columns |= {"gap": found.loss - least, "prior_overshoot": found.prior_overshoot}
        return columns

    def _measurements(self, setting: Setting, part: str, first: int, truth: Tensor) -> Tensor:
        """The same for every method, value and size of the chunks."""
        text = f"{self.config.seed} {setting.task} {setting.label} {part}"
        digests = [hashlib.sha256(f"{text} {first + i}".encode()) for i in range(len(truth))]
        return setting.measurements(truth, [int(d.hexdigest()[:8], 16) for d in digests])

    def _rows(self, setting: Setting, method: Method, value: float, part: str) -> list[dict]:
        return [
            row
            for cell in self._cells(setting, method, value, part)
            for row in json.loads(self._path(cell).read_text())
        ]

    # --- the run ---------------------------------------------------------------------------------

    def tune(self) -> None:
        """Choose every method's parameter on the tuning images, all with as many trials."""
        tuned = [setting for setting in self.settings if TASKS[setting.task].tuned]
        pairs = [(setting, method) for setting in tuned for method in chosen_methods(setting)]
        cells = [
            cell
            for setting, method in pairs
            if len(method.grid) > 1
            for value in method.grid
            for cell in self._cells(setting, method, value, "tuning")
        ]
        self._work(cells, "tuning")
        for setting, method in pairs:
            self.chosen[setting.title, method.name] = self._best(setting, method)

    def _best(self, setting: Setting, method: Method) -> float:
        """The value of the grid with the highest mean PSNR of the tuning images."""
        if len(method.grid) == 1:
            return method.grid[0]
        rows = lambda value: self._rows(setting, method, value, "tuning")
        return max(method.grid, key=lambda value: _mean([row["psnr"] for row in rows(value)]))

    def _planned(self) -> list[tuple[Setting, Method, float]]:
        plan = []
        for setting in self.settings:
            for method in chosen_methods(setting):
                if TASKS[setting.task].tuned:
                    values: tuple[float, ...] = (self.chosen[setting.title, method.name],)
                else:
                    values = method.weights[:: 2 if self.config.quick else 1]
                plan += [(setting, method, value) for value in values]
        return plan

    def test(self) -> None:
        """Solve the test images at the chosen parameters."""
        self._work(
            [cell for what in self._planned() for cell in self._cells(*what, "test")], "test"
        )

    def result(self) -> dict[str, Any]:
        """What results.json holds, but for the uncertainty."""
        rows = [
            {
                "task": setting.task,
                "setting": setting.label,
                "at": dict(setting.at),
                "representative": setting.representative,
                "method": method.name,
                "title": method.title,
                "parameter": method.parameter,
                "value": value,
                "images": self._rows(setting, method, value, "test"),
            }
            for setting, method, value in self._planned()
        ]
        tuned = [
            {
                "setting": title,
                "method": name,
                "parameter": METHODS[name].parameter,
                "grid": METHODS[name].grid,
                "value": value,
            }
            for (title, name), value in self.chosen.items()
            if len(METHODS[name].grid) > 1
        ]
        return {
            "config": {**asdict(self.config), "tasks": list(self.config.tasks)},
            "version": backend.build_info().get("version", ""),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "tuned": tuned,
            "rows": rows,
        }

    def uncertainty(self) -> tuple[dict, dict, Arrays]:
        """Posterior draws and Theorem 4.1 on the first test images; a file each once done."""
        count = 2 if self.config.quick else 6
        truth, steps, seed = self.images.test[:count], self.config.steps, self.config.seed
        cells = self.folder / "cells"
        draws, bound = cells / "posterior.json", cells / "bound.json"
        pictures = self.folder / POSTERIOR
        if not draws.exists():
            facts, arrays = uncertainty.posterior(self.flow, truth, steps, seed)
            save_arrays(pictures, arrays)
            save_json(draws, facts)
        if not bound.exists():
            some = truth[:0] if DATASETS[self.config.dataset].large else truth
            save_json(bound, uncertainty.bound(self.flow, some, steps, seed))
        kept = load_arrays(pictures)
        return json.loads(draws.read_text()), json.loads(bound.read_text()), kept


# --- other processes ------------------------------------------------------------------------------

_worker: _Run | None = None  # of a process that does cells for another
_worker_cells: dict[str, Cell] = {}


def _start_worker(config: ReproduceConfig, folder: Path, threads: int) -> None:
    global _worker, _worker_cells
    torch.set_num_threads(threads)
    _worker = _Run(config, folder, False, 1)
    _worker_cells = _worker.every_cell()
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    """A parent that is killed takes its workers with it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _solve_named(name: str) -> None:
    assert _worker is not None
    _worker.solve(_worker_cells[name])


# --- numbers --------------------------------------------------------------------------------------


def _ssim(x: Tensor, truth: Tensor) -> Tensor | None:
    """Per image (B,), where torchmetrics is installed."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure as ssim
    except ImportError:
        return None
    return ssim(x, truth, data_range=1.0, reduction="none").reshape(-1)


def _number(value: Tensor) -> float | bool | None:
    """For JSON, which knows no infinity: None, say the loss of a solve that failed."""
    if value.dtype == torch.bool:
        return bool(value)
    return round(float(value), 4) if math.isfinite(value) else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
