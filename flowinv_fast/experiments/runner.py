"""``flowinv-fast reproduce``: every task, method and image of a configuration, resumable.

The work is cut into cells: (setting, method, value of its parameter, chunk of images). A cell that
is done is one file, written whole; a run that is killed or interrupted goes on at the first one
missing. The answer of a cell depends on its key alone: the contents of images and priors, the
configuration, the versions. A cell of another key, or a damaged one, is solved again, and named.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .. import metrics
from .._base import backend
from .._base.errors import DataError, ResultWarning, SolverError, is_whole, require
from .._base.files import locked_folder, made_folder
from .._base.identity import changes
from .._base.interrupts import held_back
from ..flows import load_flow
from . import report, uncertainty
from .cells import (
    POSTERIOR,
    Arrays,
    Outdated,
    load_arrays,
    load_keyed,
    load_pictures,
    save_arrays,
    save_json,
    save_keyed,
)
from .config import ReproduceConfig
from .contents import Contents, Key
from .datasets import DATASETS
from .images import Images
from .methods import (
    MAP_METHOD,
    METHODS,
    Answer,
    Context,
    Method,
    chosen_methods,
    left_out,
    missing_packages,
)
from .store import Cell, Store
from .task import Inputs, Setting
from .tasks import TASKS

_SSIM = "pip install 'flowinv_fast[metrics]'"
SHOWN = 8  # images of a cell that are kept as pictures


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
        KeyboardInterrupt: interrupted; the cells that are done are kept, and the next call goes on.
        SolverError: a process of ``jobs`` has ended, say for want of memory.
    Warns:
        ResultWarning: methods that are left out, with the reason; cells that are solved again, for
            other images or weights than they were solved with, or damaged.
    """
    require(is_whole(jobs, 1), "reproduce", "jobs", "an integer of at least 1", jobs)
    folder = Path(folder)
    kept = folder / "config.toml"
    if kept.exists():
        other = changes(asdict(ReproduceConfig.load(kept)), asdict(config))
        wanted = "a new one, or one of this same configuration"
        got = f"{folder} with another {', another '.join(other)} in config.toml"
        require(not other, "reproduce", "folder", wanted, got)
    run = _Run(config, folder, progress, jobs)  # may refuse files; then the folder is left alone
    made_folder(folder / "cells")
    with locked_folder(folder, "reproduce"):
        config.save(kept)
        run.tell_what_is_left_out()
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
        self.contents = Contents(config, self.context, self.images, self.other)
        self.store = Store(folder, self.contents)
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

    def _work(self, cells: list[Cell], label: str) -> None:
        left = self.store.left(cells)
        bar = tqdm(total=len(left), desc=label, disable=self.disable, unit="cell", smoothing=0.05)
        with bar, self._answers(left) as done:
            for cell, _ in zip(left, done):
                bar.set_postfix_str(f"{cell.setting.title}, {cell.method.name}")
                bar.update()

    @contextlib.contextmanager
    def _answers(self, cells: list[Cell]) -> Iterator[Iterator[None]]:
        """One after the other, or by other processes, which end when this one stops."""
        if self.jobs == 1:
            yield map(self.solve, cells)
            return
        others = set(multiprocessing.active_children())
        arguments = (self.config, self.folder, max(1, torch.get_num_threads() // self.jobs))
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(self.jobs, spawn, _start_worker, arguments)
        try:
            with held_back():  # the calls start the processes
                answers = pool.map(_solve_named, [cell.name for cell in cells])
            yield answers
        except BrokenExecutor:
            told = "try fewer --jobs if memory ran out; the same command goes on"
            raise SolverError(f"reproduce: a process of --jobs has ended; {told}") from None
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def solve(self, cell: Cell) -> None:
        """Do a cell and write it."""
        truth = self.truth(cell.setting, cell.part)[cell.first : cell.last]
        y = self._measurements(cell.setting, cell.part, cell.first, truth)
        started = time.perf_counter()
        answer = cell.method.solve(self.context, cell.setting, y, cell.value)
        seconds = (time.perf_counter() - started) / len(truth)
        columns = self._columns(cell, answer, truth, y)
        numbers = lambda i: {k: _number(v[i]) for k, v in columns.items() if v is not None}
        ends = [{"status": status.name} for status in answer.found.status] if answer.found else []
        rows = [
            {"image": cell.first + i, "seconds": round(seconds, 4), **numbers(i), **end}
            for i, end in enumerate(ends or [{}] * len(truth))
        ]
        if cell.part == "test" and cell.first == 0:
            shown = {"x": answer.x, "truth": truth, "y": cell.setting.naive(y[:SHOWN])}
            levels = lambda t: (255 * t[:SHOWN].clamp(0, 1)).round().byte().numpy()
            arrays = {name: levels(images) for name, images in shown.items()}
            save_arrays(self.store.path(cell).with_suffix(".npz"), arrays)
        save_keyed(self.store.path(cell), self.store.key(cell), rows)  # last: the cell is done

    def _columns(
        self, cell: Cell, answer: Answer, truth: Tensor, y: Tensor
    ) -> dict[str, Tensor | None]:
        """What there is to tell of each image, (B,) each."""
        x, found = answer.x.clamp(0, 1), answer.found
        columns: dict[str, Tensor | None] = {
            "psnr": metrics.psnr(x, truth).clamp_max(200.0),  # of the same image: not infinite
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
        seeds = setting.seeds(self.config.seed, part, first, len(truth))
        return setting.measurements(truth, seeds)

    def _rows(self, setting: Setting, method: Method, value: float, part: str) -> list[dict]:
        found: list[dict] = []
        for cell in self._cells(setting, method, value, part):
            try:
                found += self.store.kept(cell) or []
            except Outdated as error:  # by another process, just now
                raise DataError("reproduce", "folder", self.store.path(cell), str(error)) from None
        return found

    # --- the run ---------------------------------------------------------------------------------

    def left_out(self) -> list[dict[str, str]]:
        """What this run does without, and why: methods of tasks, and columns of the table."""
        methods = [
            {"task": setting.task, "method": name, "reason": reason}
            for setting in self.settings
            for name, reason in left_out(setting).items()
        ]
        found = (
            [{"task": "all", "method": "ssim", "reason": f"{gone}: {_SSIM}"}]
            if (gone := missing_packages("torchmetrics"))
            else []
        )
        return [row for i, row in enumerate(methods) if row not in methods[:i]] + found

    def tell_what_is_left_out(self) -> None:
        """A warning for each reason."""
        reasons: dict[str, list[str]] = {}
        for row in self.left_out():
            reasons.setdefault(f"{row['method']} is left out: {row['reason']}", []).append(
                row["task"]
            )
        for reason, tasks in reasons.items():
            warnings.warn(f"{reason} (tasks: {', '.join(tasks)})", ResultWarning, stacklevel=3)

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
        # A grid of which nothing is finite keeps its first value.
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
            "sha256": self.contents.told(),
            "left_out": self.left_out(),
            "tuned": tuned,
            "rows": rows,
        }

    def uncertainty(self) -> tuple[dict, dict, Arrays]:
        """Posterior draws and Theorem 4.1 on the first test images; a file each once done."""
        count = 2 if self.config.quick else 6
        truth, steps, seed = self.images.test[:count], self.config.steps, self.config.seed
        key, pictures = self.contents.of_uncertainty(count), self.folder / POSTERIOR

        def draw() -> dict:
            facts, arrays = uncertainty.posterior(self.flow, truth, steps, seed)
            save_arrays(pictures, arrays)
            return facts

        some = truth[:0] if DATASETS[self.config.dataset].large else truth
        bound = lambda: uncertainty.bound(self.flow, some, steps, seed)
        facts = self._once("posterior", key, draw)
        return facts, self._once("bound", key, bound), load_arrays(pictures)

    def _once(self, name: str, key: Key, compute: Callable[[], dict]) -> dict:
        """What is kept under this name and key, or else computed and kept."""
        path = self.folder / "cells" / f"{name}.json"
        try:
            found = load_keyed(path, key)
            if name == "posterior" and found is not None:
                load_arrays(self.folder / POSTERIOR)
        except (Outdated, DataError) as error:
            warnings.warn(f"{path} is computed again, being {error}", ResultWarning, stacklevel=4)
            found = None
        if found is None:
            found = compute()
            save_keyed(path, key, found)
        return found


# --- other processes ------------------------------------------------------------------------------

_worker: _Run | None = None  # of a process that does cells for another
_worker_cells: dict[str, Cell] = {}


def _start_worker(config: ReproduceConfig, folder: Path, threads: int) -> None:
    global _worker, _worker_cells
    torch.set_num_threads(threads)
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process would leave
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


def _mean(values: list[float | None]) -> float:
    """Of the tuning images; the least there is where one of them has no finite number."""
    finite = [value for value in values if value is not None]
    return sum(finite) / len(finite) if len(finite) == len(values) > 0 else -math.inf
