"""The posterior mean of one call, and MAP of one call, beside a reproduction: paired by image.

    python bench/estimators.py [--reproduction fashion-28] [--flow fashion-28-tarflow]
                               [--images 8] [--only "cs-sinusoidal, m = 50" ...] [--done]

Takes a run of ``flowinv-fast reproduce`` that is in bench/results/ and solves the first of its test
images anew, the same measurements, by ``reconstruct`` without options (MAP) and with
``objective="posterior-mean"``. Beside the PSNR it tells whether the chains agreed, the error over
the predicted deviation, and how many pixels lie in their 50, 80 and 95 % intervals. Settings that
are done are kept in bench/partial/, and not solved again: ``--only`` does some of them, for two
processes side by side, and ``--done`` writes those that are done to bench/results/.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from harness import RESULTS, conditions, write
from torch import Tensor

import flowinv_fast as ff
from flowinv_fast.experiments.config import ReproduceConfig
from flowinv_fast.experiments.datasets import DATASETS
from flowinv_fast.experiments.images import Images
from flowinv_fast.experiments.task import Inputs, Setting
from flowinv_fast.experiments.tasks import TASKS

SHARES = (0.5, 0.8, 0.95)


def measured(setting: Setting, flow: ff.Flow, truth: Tensor, config: ReproduceConfig) -> dict:
    """Both estimates of some images, and how well the draws tell their errors."""
    y = setting.measurements(truth, setting.seeds(config.seed, "test", 0, len(truth)))
    common = {"seed": config.seed, "progress": False}
    started = time.process_time()
    most = ff.reconstruct(y, setting.operator, flow, setting.noise, **common)
    between = time.process_time()
    draws = ff.sample_posterior(y, setting.operator, flow, setting.noise, **common)
    ended = time.process_time()
    psnr = lambda x: [round(v, 4) for v in ff.metrics.psnr(x.clamp(0, 1), truth).tolist()]
    error = (draws.mean - truth).square().flatten(1).mean(1).sqrt()
    spread = draws.std.square().flatten(1).mean(1).sqrt()
    inside = {}
    for share in SHARES:
        low, high = (torch.quantile(draws.x, q, 0) for q in ((1 - share) / 2, (1 + share) / 2))
        inside[f"{share:g}"] = round(((truth >= low) & (truth <= high)).float().mean().item(), 4)
    return {
        "task": setting.task,
        "setting": setting.label,
        "map": psnr(most.x),
        "mean": psnr(draws.estimate),
        "one_draw": psnr(draws.x[-1]),
        "r_hat": [round(v, 4) for v in draws.median_r_hat.tolist()],
        "error_over_std": [round(v, 4) for v in (error / spread).tolist()],
        "inside": inside,
        "cost_over_map": round((ended - between) / (between - started), 1),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flow", default="fashion-28-tarflow", help="name or file")
    parser.add_argument("--reproduction", default="fashion-28", help="what it is compared with")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--only", nargs="+", help='settings, as "cs-sinusoidal, m = 50"')
    parser.add_argument("--done", action="store_true", help="solve nothing more")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", ff.ResultWarning)
    config = ReproduceConfig.load(RESULTS / f"reproduce-{given.reproduction}" / "config.toml")
    images, flow = Images.of(config), ff.load_flow(given.flow)
    inputs = Inputs(DATASETS[config.dataset], config.seed, images.digits)
    folder = Path(__file__).parent / "partial" / f"estimators-{given.flow}-{given.images}"
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    tasks = [task for task in config.tasks if TASKS[task].tuned and task != "ood"]
    found = {s.title: s for task in tasks for s in TASKS[task].build(inputs, config.quick)}
    for title in given.only or found:
        path = folder / f"{title}.json"
        if given.done and not path.exists():
            continue
        if not path.exists():
            row = measured(found[title], flow, images.test[: given.images], config)
            path.write_text(json.dumps(row))
        rows.append(json.loads(path.read_text()))
        means = {k: round(sum(rows[-1][k]) / given.images, 3) for k in ("map", "mean", "r_hat")}
        print(title, means, flush=True)
    if given.only:
        return 0
    facts = {"reproduction": given.reproduction, "flow": given.flow, "seed": config.seed}
    where = conditions("cpu", images=given.images, **facts)
    print(write(f"estimators-{given.flow}", {"conditions": where, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
