"""``flowinv-fast reproduce``: every task, method and image of a configuration, resumable.

The work is cut into cells: (task, setting, method, value of its parameter, chunk of images). A cell
that is done is one file, written whole; a run that is killed goes on at the first one missing. The
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
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .. import metrics
from .._base import backend
from .._base.errors import is_whole, require
from .._base.files import whole_file
from ..flows import load_flow
from . import beyond, report
from .config import ReproduceConfig
from .methods import BETAS, GAMMAS, METHODS, OURS, Context, Method, chosen_methods
from .signals import SIGNALS
from .tasks import Images, Problem, loss_of_truth, problems

SHOWN = 8  # images of a cell that are kept as pictures


@dataclass(frozen=True)
class Cell:
    """A piece of work: these images of a problem by a method at a value."""

    problem: Problem
    method: Method
    value: float
    part: str  # "test" or "tuning"
    first: int
    last: int

    @property
    def name(self) -> str:
        """File name, without suffix."""
        facts = [self.problem.title, self.method.name, f"{self.value:g}", self.part, self.first]
        text = "_".join(str(f).replace(" ", "").replace(",", "_") for f in facts)
        return text.replace("/", "-")


def reproduce(
    config: ReproduceConfig,
    folder: str | os.PathLike,
    progress: bool | None = None,
    jobs: int = 1,
) -> dict:
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
        require(same, "reproduce", "folder", "a new one, or one of this same configuration",
                f"{folder} with another config.toml")  # fmt: skip
    run = _Run(config, folder, progress, jobs)  # may refuse files; then the folder is left alone
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    config.save(kept)
    run.tune()
    run.test()
    result = run.result()
    result["posterior"], result["bound"], extras = run.beyond()
    _save_json(folder / "results.json", result, 1)
    report.write(result, run.pictures(), extras, folder)
    return result


class _Run:
    def __init__(self, config: ReproduceConfig, folder: Path, progress: bool | None, jobs: int):
        self.config, self.folder, self.jobs = config, folder, jobs
        self.disable = None if progress is None else not progress
        self.images, self.other = Images.of(config), Images.other(config)
        self.flow = load_flow(config.flow or SIGNALS[config.signal].flow)
        self.context = Context(config, self.flow)
        self.problems = [
            p for task in config.tasks for p in problems(task, config, self.images.digits)
        ]
        self.chosen: dict[tuple[str, str], float] = {}

    def truth(self, problem: Problem, part: str) -> Tensor:
        """Test or tuning images of a problem; those out of distribution are another signal's."""
        images = self.other if problem.images else self.images
        return images.test if part == "test" else images.tuning

    # --- cells -----------------------------------------------------------------------------------

    def _cells(self, problem: Problem, method: Method, value: float, part: str) -> Iterator[Cell]:
        count = len(self.truth(problem, part))
        for first in range(0, count, self.config.chunk):
            yield Cell(problem, method, value, part, first, min(count, first + self.config.chunk))

    def every_cell(self) -> dict[str, Cell]:
        """All that a run of this configuration could ask for, by name."""
        return {
            cell.name: cell
            for problem in self.problems
            for method in chosen_methods(problem)
            for value in (*method.grid, *_weights(method))
            for part in ("tuning", "test")
            for cell in self._cells(problem, method, value, part)
        }

    def _path(self, cell: Cell) -> Path:
        return self.folder / "cells" / f"{cell.name}.json"

    def _work(self, cells: list[Cell], label: str) -> None:
        left = [cell for cell in cells if not self._path(cell).exists()]
        bar = tqdm(total=len(left), desc=label, disable=self.disable, unit="cell", smoothing=0.05)
        with bar, contextlib.ExitStack() as stack:
            if self.jobs == 1:
                done = map(self.solve, left)
            else:
                threads = max(1, torch.get_num_threads() // self.jobs)
                pool = stack.enter_context(ProcessPoolExecutor(
                    self.jobs, multiprocessing.get_context("spawn"), _start_worker,
                    (self.config, self.folder, threads),
                ))  # fmt: skip
                done = pool.map(_solve_named, [cell.name for cell in left])
            for cell, _ in zip(left, done):
                bar.set_postfix_str(f"{cell.problem.title}, {cell.method.name}")
                bar.update()

    def solve(self, cell: Cell) -> None:
        """Do a cell and write it."""
        problem = cell.problem
        truth = self.truth(problem, cell.part)[cell.first : cell.last]
        y = self._measurements(problem, cell.part, cell.first, truth)
        started = time.perf_counter()
        answer = cell.method.solve(self.context, problem, y, cell.value)
        seconds = (time.perf_counter() - started) / len(truth)
        x = answer.x.clamp(0, 1)
        table = {"psnr": metrics.psnr(x, truth), "ssim": _ssim(x, truth)}
        found = answer.found
        if found is not None:
            table |= {n: getattr(found, n) for n in ("loss", "log_noise", "log_prior", "steps")}
        if found is not None and cell.method.name.startswith(OURS):
            least = loss_of_truth(truth, y, problem, self.context.flow, cell.value)
            table["gap"] = found.loss - least
            table["prior_overshoot"] = found.prior_overshoot
        rows = [
            {"image": cell.first + i, "seconds": round(seconds, 4),
             **{k: _number(v[i]) for k, v in table.items() if v is not None}}
            for i in range(len(truth))
        ]  # fmt: skip
        if cell.part == "test" and cell.first == 0:
            pictures = {"x": x[:SHOWN], "truth": truth[:SHOWN], "y": problem.preview(y[:SHOWN])}
            bytes_of = lambda t: (255 * t.clamp(0, 1)).round().byte().numpy()
            arrays = {name: bytes_of(picture) for name, picture in pictures.items()}
            _save_arrays(self._path(cell).with_suffix(".npz"), arrays)
        _save_json(self._path(cell), rows)  # last: the cell is done

    def _measurements(self, problem: Problem, part: str, first: int, truth: Tensor) -> Tensor:
        """The same for every method, value and size of the chunks."""
        text = f"{self.config.seed} {problem.task} {problem.setting} {part}"
        digests = [hashlib.sha256(f"{text} {first + i}".encode()) for i in range(len(truth))]
        return problem.measurements(truth, [int(d.hexdigest()[:8], 16) for d in digests])

    def _rows(self, problem: Problem, method: Method, value: float, part: str) -> list[dict]:
        return [
            row
            for cell in self._cells(problem, method, value, part)
            for row in json.loads(self._path(cell).read_text())
        ]

    # --- the run ---------------------------------------------------------------------------------

    def tune(self) -> None:
        """Choose every method's parameter on the tuning images, all with as many trials."""
        pairs = [(p, m) for p in self.problems if p.task != "sensitivity"
                 for m in chosen_methods(p)]  # fmt: skip
        self._work([
            cell for problem, method in pairs if len(method.grid) > 1
            for value in method.grid
            for cell in self._cells(problem, method, value, "tuning")
        ], "tuning")  # fmt: skip
        for problem, method in pairs:
            score = lambda value, of=(problem, method): _mean(
                [row["psnr"] for row in self._rows(*of, value, "tuning")]
            )
            best = max(method.grid, key=score) if len(method.grid) > 1 else method.grid[0]
            self.chosen[problem.title, method.name] = best

    def _planned(self) -> list[tuple[Problem, Method, float]]:
        plan = []
        for problem in self.problems:
            for method in chosen_methods(problem):
                if problem.task == "sensitivity":
                    values = _weights(method)[:: 2 if self.config.quick else 1]
                else:
                    values = (self.chosen[problem.title, method.name],)
                plan += [(problem, method, value) for value in values]
        return plan

    def test(self) -> None:
        """Solve the test images at the chosen parameters."""
        self._work(
            [cell for what in self._planned() for cell in self._cells(*what, "test")], "test"
        )

    def result(self) -> dict:
        rows = [
            {
                "task": problem.task, "setting": problem.setting, "at": problem.at,
                "middle": problem.middle, "method": method.name, "title": method.title,
                "parameter": method.parameter, "value": value,
                "images": self._rows(problem, method, value, "test"),
            }
            for problem, method, value in self._planned()
        ]  # fmt: skip
        return {
            "config": {k: getattr(self.config, k) for k in self.config.__dataclass_fields__},
            "version": backend.build_info().get("version", ""), "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "tuned": [
                {"problem": title, "method": name, "parameter": METHODS[name].parameter,
                 "grid": METHODS[name].grid, "value": value}
                for (title, name), value in self.chosen.items() if len(METHODS[name].grid) > 1
            ],
            "rows": rows,
        }  # fmt: skip

    def beyond(self) -> tuple[dict, dict, dict[str, np.ndarray]]:
        """Posterior draws and Theorem 4.1 on the first test images; a file each once done."""
        count = 2 if self.config.quick else 6
        truth, steps, seed = self.images.test[:count], self.config.steps, self.config.seed
        done = lambda name: self.folder / "cells" / name
        drawn, arrays, told = map(done, ("posterior.json", "posterior.npz", "bound.json"))
        if not drawn.exists():
            facts, pictures = beyond.posterior(self.flow, truth, steps, seed)
            _save_arrays(arrays, pictures)
            _save_json(drawn, facts)
        if not told.exists():
            some = truth[:0] if SIGNALS[self.config.signal].large else truth
            _save_json(told, beyond.bound(self.flow, some, steps, seed))
        with np.load(arrays) as kept:
            return json.loads(drawn.read_text()), json.loads(told.read_text()), dict(kept)

    def pictures(self) -> dict[tuple[str, str, str], dict[str, np.ndarray]]:
        """(task, setting, method) to the kept pictures."""
        found = {}
        for problem, method, value in self._planned():
            cell = next(self._cells(problem, method, value, "test"))
            path = self._path(cell).with_suffix(".npz")
            if path.exists() and problem.task != "sensitivity":
                with np.load(path) as arrays:
                    found[problem.task, problem.setting, method.name] = dict(arrays)
        return found


def _weights(method: Method) -> tuple[float, ...]:
    """Of the sensitivity task."""
    return BETAS if method.name == OURS else GAMMAS if method.name == "asim" else ()


_worker: _Run | None = None  # of a process that does cells for another
_worker_cells: dict[str, Cell] = {}


def _start_worker(config: ReproduceConfig, folder: Path, threads: int) -> None:
    global _worker, _worker_cells
    torch.set_num_threads(threads)
    _worker = _Run(config, folder, False, 1)
    _worker_cells = _worker.every_cell()
    # A parent that is killed takes its workers with it.
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _solve_named(name: str) -> None:
    _worker.solve(_worker_cells[name])


def _save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with whole_file(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _save_json(path: Path, value: object, indent: int | None = None) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=indent) + "\n")


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
