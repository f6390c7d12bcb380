"""Another flow as prior on the tasks of a reproduction: MAP over images, beside the old figures.

    python bench/priors.py --flow fashion-28-tarflow [--levels] [--reproduction fashion-28]

Takes a run of ``flowinv-fast reproduce`` that is in bench/results/ and solves its test images anew
by MAP with the other flow: the same images, measurements, steps, weights to choose from and images
to choose on. Where that run takes its steps over latents, these are over images, as a flow is for
whose ``decode`` is sequential. Settings that are done are kept in bench/partial/, and not solved
again. tables.py puts both beside one another, paired by image. ``--levels`` takes a flow of levels
at the level that fits the noise, where that is not its smoothing anyway.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from harness import RESULTS, conditions, write
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.datasets import DATASETS
from flowinv_fast.experiments.images import Images
from flowinv_fast.experiments.methods import METHODS, Context
from flowinv_fast.experiments.task import Inputs, Setting
from flowinv_fast.experiments.tasks import TASKS
from flowinv_fast.reconstruction.level import at_level, noise_std
from flowinv_fast.reconstruction.problem import Problem


def psnr(context: Context, setting: Setting, images: Images, beta: float, part: str) -> Tensor:
    """By image of a part, (B,)."""
    config, truth = context.config, images.test if part == "test" else images.tuning
    method = METHODS["map" if setting.map_settings["space"] == "image" else "map-image"]
    found = []
    for first in range(0, len(truth), config.chunk):
        x = truth[first : first + config.chunk]
        y = setting.measurements(x, setting.seeds(config.seed, part, first, len(x)))
        answer = method.solve(context, setting, y, beta)
        found.append(ff.metrics.psnr(answer.x.clamp(0, 1), x))
    return torch.cat(found)


def fitting(flow: ff.Flow, setting: Setting, x: Tensor, seed: int) -> ff.Flow:
    """A flow of levels at the one that fits the noise of a setting."""
    y = setting.measurements(x, setting.seeds(seed, "tuning", 0, len(x)))
    goal = ff.MAP()
    problem = Problem.checked("bench", y, setting.operator, flow, setting.noise, goal)
    return at_level(problem, noise_std("bench", problem)).prior


def row(context: Context, setting: Setting, images: Images) -> dict:
    """A setting at the weight that is best on the tuning images."""
    score = lambda beta: float(psnr(context, setting, images, beta, "tuning").mean())
    beta = max(METHODS["map"].grid, key=score)
    test = psnr(context, setting, images, beta, "test")
    numbers = [round(value, 4) for value in test.tolist()]
    return {"task": setting.task, "setting": setting.label, "value": beta, "psnr": numbers}


def measured(config: ReproduceConfig, folder: Path, levels: bool) -> list[dict]:
    """A row for each setting; those that are in the folder are taken from there."""
    flow, images = ff.load_flow(config.flow), Images.of(config)
    context = Context(config, flow)
    other = Images.other(config)
    inputs, rows = Inputs(DATASETS[config.dataset], config.seed, images.digits), []
    folder.mkdir(parents=True, exist_ok=True)
    for task in config.tasks:
        for setting in TASKS[task].build(inputs, config.quick):
            at = fitting(flow, setting, images.tuning, config.seed) if levels else flow
            if levels and at.config.smoothing == flow.config.smoothing:
                continue
            context = Context(config, at) if levels else context
            path = folder / f"{setting.title}.json"
            if not path.exists():
                found = row(context, setting, other if setting.other_images else images)
                level = {"level": round(at.config.smoothing, 4)} if levels else {}
                path.write_text(json.dumps({**found, **level}))
            rows.append(json.loads(path.read_text()))
            print(setting.title, sum(rows[-1]["psnr"]) / len(rows[-1]["psnr"]), flush=True)
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flow", required=True, help="name or file")
    parser.add_argument("--reproduction", default="fashion-28", help="what it is compared with")
    parser.add_argument("--images", type=int, help="test images a task (default: that run's)")
    parser.add_argument("--levels", action="store_true", help="at the level that fits the noise")
    parser.add_argument("--task", nargs="+", help="these alone (default: all of that run)")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    config = ReproduceConfig.load(RESULTS / f"reproduce-{given.reproduction}" / "config.toml")
    tasks = tuple(given.task or (task for task in config.tasks if TASKS[task].tuned))
    config = replace(config, tasks=tasks, flow=given.flow, images=given.images or config.images)
    facts = {"reproduction": given.reproduction, "flow": given.flow, "seed": config.seed}
    facts |= {name: getattr(config, name) for name in ("images", "steps", "tuning_images")}
    kind = "levels" if given.levels else "priors"
    name = f"{kind}-{given.flow}-{config.images}"
    rows = measured(config, Path(__file__).parent / "partial" / name, given.levels)
    print(write(f"{kind}-{given.flow}", {"conditions": conditions("cpu", **facts), "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
